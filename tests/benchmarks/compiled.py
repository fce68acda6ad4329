"""The compiled form of a model against its TensorFlow form.

    python -m tests.benchmarks.compiled BUNDLE FOLDER [--images N]

The whole way of N JPEGs (400) on one core: read, decoded, predicted, each as a row of scores. The JPEGs are those of
FOLDER, scaled to 600 x 450. Each form runs in a process of its own, in turn, three times; said are the median and the
range of images a second, the seconds until the first answer, and the most memory that a process had.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

_ROUNDS = 3
_SIZE = (600, 450)
_TOGETHER = 32


def measure(form: str, bundle: str, folder: str) -> dict[str, float]:
    """Of one form, in this process, on one core."""
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    began = time.perf_counter()
    from melanoma.imaging import load
    from melanoma.imaging.limits import DEFAULT_LIMITS
    from melanoma.model import bundle as bundles
    from melanoma.model.predictor import Predictor

    loaded = bundles.load(bundle).in_form("compiled" if form == "compiled" else "tensorflow")
    predictor = Predictor(loaded, threads=1)
    size = loaded.input_size
    predictor.predict(np.zeros((1, size, size, 3), np.uint8))
    start = time.perf_counter() - began
    paths = sorted(Path(folder).iterdir())

    def batch(some: list[Path]) -> None:
        frames = [load.load(path.read_bytes(), size, DEFAULT_LIMITS).frames[0].pixels for path in some]
        predictor.predict(np.stack(frames))

    batch(paths[:_TOGETHER])
    began = time.perf_counter()
    for at in range(0, len(paths), _TOGETHER):
        batch(paths[at : at + _TOGETHER])
    rate = len(paths) / (time.perf_counter() - began)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"images a second": rate, "seconds to start": start, "MB at most": peak}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle")
    parser.add_argument("folder")
    parser.add_argument("--images", type=int, default=400)
    parser.add_argument("--form", help="measure this form in this process, and print JSON")
    arguments = parser.parse_args()
    if arguments.form:
        print(json.dumps(measure(arguments.form, arguments.bundle, arguments.folder)))
        return
    with tempfile.TemporaryDirectory() as folder:
        for number, path in enumerate(sorted(Path(arguments.folder).iterdir())[: arguments.images]):
            Image.open(path).convert("RGB").resize(_SIZE).save(Path(folder) / f"{number:05}.jpg", quality=90)
        found: dict[str, list[dict[str, float]]] = {"tensorflow": [], "compiled": []}
        for _ in range(_ROUNDS):
            for form, rounds in found.items():
                command = [sys.executable, "-m", "tests.benchmarks.compiled", arguments.bundle, folder, "--form", form]
                done = subprocess.run(command, capture_output=True, text=True, check=True)
                rounds.append(json.loads(done.stdout.splitlines()[-1]))
    for form, rounds in found.items():
        figures = {name: [each[name] for each in rounds] for name in rounds[0]}
        words = (
            f"{name} {np.median(each):,.1f} ({min(each):,.1f} to {max(each):,.1f})" for name, each in figures.items()
        )
        print(f"{form:10}  " + "  ".join(words))
    ratios = [
        second["images a second"] / first["images a second"] for first, second in zip(*found.values(), strict=True)
    ]
    print(f"compiled is faster by the factor {np.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")


if __name__ == "__main__":
    main()
