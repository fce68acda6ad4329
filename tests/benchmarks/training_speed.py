"""Training speed: Ray Train's loop against plain Keras `fit` in memory, and two workers of one core against one.

What two cores can give at most, which share memory and often more, is measured, too: two trainings side by side that
have nothing to do with each other.

python tests/benchmarks/training_speed.py [--config configs/reference.yaml] [key=value ...]

Pictures are noise: what is in them costs nothing. Every part is a process of its own and runs after the others, each
epoch is timed, and the median of all but the first counts, in which the graph is compiled. `fit` has the pictures in
memory, and augments nothing.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from typing import Any

import numpy as np

from melanoma import config, ray_session, taxonomy
from melanoma.training.config import TrainConfig

IMAGES = 2048
EPOCHS = 5


def _settings(arguments: argparse.Namespace, **values: Any) -> TrainConfig:
    values = {"catalog": "unused", "out": "unused", "run_name": "run", "epochs": EPOCHS, "members": 1, **values}
    return config.load(TrainConfig, arguments.config, arguments.overrides, **values)


def _images(size: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (IMAGES, size, size, 3), dtype=np.uint8)


def _fit(arguments: argparse.Namespace) -> dict[str, float]:
    """Keras's own `fit`, with the same network, optimizer, batch and precision."""
    import keras

    from melanoma.training import networks

    settings = _settings(arguments)
    model = networks.build(settings.network, settings.image_size, 0, precision=settings.precision)
    model.compile(
        keras.optimizers.AdamW(settings.learning_rate), keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    )
    labels = np.arange(IMAGES) % len(taxonomy.CODES)
    seconds: list[float] = []

    class Timer(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
            self.began = time.monotonic()

        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            seconds.append(time.monotonic() - self.began)

    images = _images(settings.image_size)
    model.fit(images, labels, batch_size=settings.batch_size, epochs=EPOCHS, callbacks=[Timer()], verbose=0)
    return {"images_per_second": IMAGES / statistics.median(seconds[1:])}


def _train(arguments: argparse.Namespace, **values: Any) -> dict[str, float]:
    from melanoma.training.data import Split, TrainingData
    from melanoma.training.fit import fit

    with tempfile.TemporaryDirectory() as folder:
        settings = _settings(arguments, checkpoints=folder, **values)
        labels = tuple(taxonomy.CODES[number % len(taxonomy.CODES)] for number in range(IMAGES))
        train, validation = Split(np.arange(IMAGES), labels), Split(np.arange(64), labels[:64])
        data = TrainingData(_images(settings.image_size), train, validation)
        ray_session.connect()
        history = fit(settings, data).history
        ray_session.disconnect()
    steady = history[1:]
    return {
        name: statistics.median(epoch[name] for epoch in steady) for name in ("images_per_second", "input_wait_share")
    }


def _one_core(arguments: argparse.Namespace, core: int = 0) -> dict[str, float]:
    # Everything of that run is on it: the worker, Ray and its Data tasks.
    os.sched_setaffinity(0, {sorted(os.sched_getaffinity(0))[core]})
    return _train(arguments, workers=1, cpus_per_worker=0.5)


def _side_by_side(arguments: argparse.Namespace) -> dict[str, float]:
    both = [_start(arguments, part) for part in (ONE, OTHER)]
    return {"images_per_second": sum(_answer(process)["images_per_second"] for process in both)}


def _start(arguments: argparse.Namespace, part: str) -> subprocess.Popen[str]:
    command = [sys.executable, __file__, "--config", arguments.config, "--part", part, *arguments.overrides]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def _answer(process: subprocess.Popen[str]) -> dict[str, float]:
    answer, _ = process.communicate()
    if process.returncode:
        raise SystemExit(f"{process.args!r} ended with {process.returncode}")
    found: dict[str, float] = json.loads(answer.splitlines()[-1])
    return found


FIT, PLAIN, WHOLE = "Keras fit, in memory, all cores", "one worker, all cores, no augmentation", "one worker, all cores"
ONE, OTHER, TWO = "one worker on one core", "one worker on the other core", "two workers on two cores"
APART = "two trainings apart, side by side on two cores"
PARTS = {
    FIT: _fit,
    PLAIN: lambda arguments: _train(arguments, workers=1, augmentation=[]),
    WHOLE: lambda arguments: _train(arguments, workers=1),
    ONE: _one_core,
    OTHER: lambda arguments: _one_core(arguments, core=1),
    APART: _side_by_side,
    TWO: lambda arguments: _train(arguments, workers=2, cpus_per_worker=0.5),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", default="configs/reference.yaml")
    parser.add_argument("--part", choices=PARTS)
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
    arguments = parser.parse_intermixed_args()
    if arguments.part:
        print(json.dumps(PARTS[arguments.part](arguments)))
        return
    speed = {}
    for part in PARTS:
        figure = _answer(_start(arguments, part))
        speed[part] = figure["images_per_second"]
        waits = figure.get("input_wait_share")
        waited = "" if waits is None else f", {waits:.1%} of the time waiting for input"
        print(f"{part}: {speed[part]:.1f} images/s{waited}", flush=True)
    print(f"against Keras fit, without augmentation: {speed[PLAIN] / speed[FIT]:.2f}")
    print(f"against Keras fit, which augments nothing: {speed[WHOLE] / speed[FIT]:.2f}")
    print(f"two workers against one: {speed[TWO] / speed[ONE]:.2f}")
    print(f"two trainings apart against one: {speed[APART] / speed[ONE]:.2f}")


if __name__ == "__main__":
    main()
