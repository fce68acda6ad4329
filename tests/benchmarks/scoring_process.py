"""What the scoring benchmark measures in a process that does nothing else, printed as JSON.

python -m tests.benchmarks.scoring_process limit|dicom MANIFEST BUNDLE
python -m tests.benchmarks.scoring_process score JSON-OF-KEYS
python -m tests.benchmarks.scoring_process start JSON-OF-URIS BUNDLE OUT
"""

import contextlib
import io
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from melanoma import config, storage
from melanoma.errors import InputError
from melanoma.imaging.decode import decode
from melanoma.model import bundle as bundles
from melanoma.scoring.config import ScoreConfig
from tests.benchmarks.scoring_tables import PIXEL_ARRAY, SCALED

_LIMIT_IMAGES = 200
_LIMIT_DICOM = 40


def limit(manifest: str, bundle: str) -> dict[str, float]:
    """Seconds an image, on one core, of decoding and of the network; the median of three rounds of each."""
    from melanoma.model.predictor import Predictor

    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    loaded = bundles.load(bundle).in_form("auto")
    uris = pq.read_table(manifest)["image_uri"].to_pylist()
    data = [storage.read_bytes(uri) for uri in uris[:: max(1, len(uris) // _LIMIT_IMAGES)]]
    predictor = Predictor(loaded, batch_size=32, threads=1)
    pixels = np.stack([decode(each, loaded.input_size).pixels for each in data])
    predictor.logits(pixels[:32])
    rounds: dict[str, list[float]] = {"decode_seconds": [], "predict_seconds": []}
    for _ in range(3):
        began = time.monotonic()
        for each in data:
            decode(each, loaded.input_size)
        decoded = time.monotonic()
        predictor.logits(pixels)
        rounds["decode_seconds"].append((decoded - began) / len(data))
        rounds["predict_seconds"].append((time.monotonic() - decoded) / len(data))
    return {name: float(np.median(values)) for name, values in rounds.items()}


def dicom(manifest: str, bundle: str) -> dict[str, float]:
    """Seconds an image on one core: of decoding JPEG frames of DICOM files, scaled and whole, and of the network."""
    import pydicom
    from PIL import Image
    from pydicom.encaps import get_frame

    from melanoma.model.predictor import Predictor

    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    loaded = bundles.load(bundle).in_form("auto")
    size = (loaded.input_size, loaded.input_size)
    uris = pq.read_table(manifest)["image_uri"].to_pylist()
    data = [storage.read_bytes(uri) for uri in uris[:: max(1, len(uris) // _LIMIT_DICOM)]]
    files = [pydicom.dcmread(io.BytesIO(each)) for each in data]
    for file in files:
        file.PhotometricInterpretation = str(file.PhotometricInterpretation).strip('"')
    frames = [get_frame(file.PixelData, 0, number_of_frames=1) for file in files]

    def scaled(place: int) -> np.ndarray:
        image = Image.open(io.BytesIO(frames[place]))
        image.draft("RGB", size)
        return np.asarray(image.resize(size, Image.Resampling.BILINEAR))

    def whole(place: int) -> np.ndarray:
        file = pydicom.dcmread(io.BytesIO(data[place]))
        file.PhotometricInterpretation = files[place].PhotometricInterpretation
        return np.asarray(Image.fromarray(file.pixel_array).resize(size, Image.Resampling.BILINEAR))

    predictor = Predictor(loaded, batch_size=32, threads=1)
    pixels = np.stack([scaled(place) for place in range(len(data))] * 4)
    predictor.logits(pixels)
    found = {}
    for name, one in {SCALED: scaled, PIXEL_ARRAY: whole}.items():
        began = time.monotonic()
        for place in range(len(data)):
            one(place)
        found[name] = (time.monotonic() - began) / len(data)
    began = time.monotonic()
    predictor.logits(pixels)
    return {**found, "predict_seconds": (time.monotonic() - began) / len(pixels)}


def score(values: dict[str, Any]) -> dict[str, Any]:
    """Seconds of one scoring run, without the start of Ray; `values`: keys of its configuration, and `nodes`."""
    from melanoma import ray_session
    from melanoma.scoring import run

    with _cluster(values.pop("nodes", 0)):
        ray_session.connect()
        began = time.monotonic()
        record = run.score(config.load(ScoreConfig, None, **values), say=lambda line: None).record
        seconds = time.monotonic() - began
        return {"seconds": seconds, "scored": record.counts.scored, "stages": record.stages.to_json()}


@contextlib.contextmanager
def _cluster(nodes: int) -> Iterator[None]:
    """`nodes` nodes of one core each, bound to it; 0: whatever `ray_session.connect` finds."""
    if not nodes:
        yield
        return
    from ray.cluster_utils import Cluster

    from melanoma import ray_session

    cores = sorted(os.sched_getaffinity(0))[:nodes]
    if len(cores) < nodes:
        raise InputError(f"This machine has {len(cores)} core(s): it cannot stand for {nodes} nodes.")
    os.sched_setaffinity(0, cores[:1])
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    for core in cores[1:]:
        os.sched_setaffinity(0, [core])  # what is started inherits it
        cluster.add_node(num_cpus=1)
    os.sched_setaffinity(0, cores[:1])
    os.environ["RAY_ADDRESS"] = cluster.address
    try:
        yield
    finally:
        ray_session.disconnect()
        cluster.shutdown()


def start(uris: list[str], bundle: str, out: str) -> dict[str, float]:
    """Seconds from the call of the command to its end, where Ray runs already."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": len(os.sched_getaffinity(0))})
    try:
        time.sleep(5)  # what a cluster does when it has just started is over
        command = [str(Path(sys.executable).with_name("melanoma")), "score", *uris, "--out", out, "--bundle", bundle]
        began = time.monotonic()
        subprocess.run(command, check=True, capture_output=True, env={**os.environ, "RAY_ADDRESS": cluster.address})
        return {"seconds": time.monotonic() - began}
    finally:
        cluster.shutdown()


def main() -> None:
    match sys.argv[1:]:
        case ["limit", manifest, bundle]:
            answer: dict[str, Any] = limit(manifest, bundle)
        case ["dicom", manifest, bundle]:
            answer = dicom(manifest, bundle)
        case ["score", keys]:
            answer = score(json.loads(keys))
        case ["start", uris, bundle, out]:
            answer = start(json.loads(uris), bundle, out)
        case _:
            sys.exit(__doc__)
    print(json.dumps(answer))


if __name__ == "__main__":
    main()
