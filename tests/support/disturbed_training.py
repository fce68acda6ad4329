"""A small training for test_faults.py, which runs it as a process, too:

python -m tests.support.disturbed_training CHECKPOINTS WORKERS OUT
"""

import sys
from pathlib import Path
from typing import Any

import numpy as np

from melanoma import config, ray_session, taxonomy
from melanoma.demo.lesions import draw_lesion
from melanoma.training.config import TrainConfig
from melanoma.training.data import Split, TrainingData
from melanoma.training.fit import fit
from melanoma.training.tracking import OnEpoch

SIZE = 32
TRAIN = 64
EPOCHS = 4
LABELS = tuple(taxonomy.CODES[number % 9] for number in range(TRAIN + 18))


def settings(checkpoints: str, workers: int | tuple[int, int], **values: Any) -> TrainConfig:
    return config.load(
        TrainConfig,
        None,
        catalog="unused",
        out="unused",
        checkpoints=checkpoints,
        run_name="run",
        image_size=SIZE,
        network={"width": 4, "dropout": 0.0},
        optimizer="sgd",
        learning_rate=0.0002,  # at 0.005 one last bit, that of two workers' sum, is 0.04 of a weight after four epochs
        batch_size=16,
        epochs=EPOCHS,
        mixup=0.3,
        averaged_weights=0.9,
        select_by="last",
        augmentation=[{"operation": "flip_left_right"}, {"operation": "frame", "rotation": 180, "shift": 0.1}],
        workers=workers,
        cpus_per_worker=0.5,
        **values,
    )


def learn(training: TrainConfig, on_epoch: OnEpoch) -> tuple[list[np.ndarray], list[dict[str, float]]]:
    """The weights that the run ends with, and its history."""
    images = np.stack([draw_lesion(label, seed, SIZE, SIZE) for seed, label in enumerate(LABELS)])
    data = TrainingData(
        images,
        train=Split(np.arange(TRAIN), LABELS[:TRAIN]),
        validation=Split(np.arange(TRAIN, len(LABELS)), LABELS[TRAIN:]),
    )
    trained = fit(training, data, on_epoch)
    return [np.asarray(weights) for weights in trained.model.get_weights()], trained.history


def main() -> None:
    ray_session.connect()
    weights, history = learn(
        settings(sys.argv[1], int(sys.argv[2])), lambda metrics: print(f"epoch {metrics['epoch']:.0f}", flush=True)
    )
    np.savez(Path(sys.argv[3]), *weights, losses=[epoch["loss"] for epoch in history], allow_pickle=False)
    ray_session.disconnect()


if __name__ == "__main__":
    main()
