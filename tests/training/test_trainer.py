"""Training with Ray Train: what one worker learns, two learn."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

from melanoma import cluster, config, synthetic, taxonomy
from melanoma.errors import InputError
from melanoma.training import loop, networks, plan, trainer

SIZE = 32
TRAIN = 80
LABELS = tuple(taxonomy.CODES[number % 9] for number in range(TRAIN + 24))


@pytest.fixture(scope="module")
def ray_cluster() -> Iterator[None]:
    cluster.connect()
    yield
    cluster.disconnect()


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return np.stack([synthetic.draw_lesion(label, seed, SIZE, SIZE) for seed, label in enumerate(LABELS)])


def _splits() -> dict[str, loop.Split]:
    return {
        "train": loop.Split(np.arange(TRAIN), LABELS[:TRAIN]),
        "validation": loop.Split(np.arange(TRAIN, len(LABELS)), LABELS[TRAIN:]),
    }


def _config(folder: Path, **values: Any) -> config.TrainConfig:
    return config.load(
        config.TrainConfig,
        None,
        catalog="unused",
        out="unused",
        checkpoints=str(folder),
        run_name="run",
        image_size=SIZE,
        network={"width": 4, "dropout": 0.0},
        optimizer="sgd",
        # Small: what is compared is arithmetic, and a network that learns fast multiplies its rounding errors.
        learning_rate=0.005,
        batch_size=16,
        epochs=2,
        balance={"sampling": 0.7, "loss_weights": 0.3},
        augmentation=[
            {"operation": "flip_left_right"},
            {"operation": "rotate_random_90"},
            {"operation": "random_brightness", "min_factor": 0.7, "max_factor": 1.3},
        ],
        **values,
    )


def _last_weights(folder: Path) -> list[np.ndarray]:
    last = sorted(folder.glob("run/checkpoint_*/weights.npz"))[-1]
    with np.load(last) as arrays:
        return [arrays[name] for name in sorted(arrays.files)]


def test_two_workers_learn_what_one_learns(ray_cluster: None, images: np.ndarray, tmp_path: Path) -> None:
    histories, weights = [], []
    for workers in (1, 2):
        settings = _config(tmp_path / str(workers), workers=workers, cpus_per_worker=0.5)
        assert settings.epochs * plan.steps_per_epoch(TRAIN, settings.batch_size) == 10
        followed: list[dict[str, float]] = []
        _, history, _ = trainer.fit(settings, images, _splits(), followed.append)
        assert [metrics["epoch"] for metrics in followed] == [1, 2]
        histories.append(history)
        weights.append(_last_weights(tmp_path / str(workers)))

    for alone, together in zip(*weights, strict=True):
        np.testing.assert_allclose(together, alone, atol=1e-5, rtol=0)
    for name in ("loss", "validation_loss", "melanoma_auc"):
        assert [epoch[name] for epoch in histories[1]] == pytest.approx(
            [epoch[name] for epoch in histories[0]], abs=1e-4
        )
    # The weights would agree, too, if they had not moved.
    start = networks.build(settings.network, SIZE, settings.seed).variables
    moved = max(
        np.abs(weight - keras.ops.convert_to_numpy(first)).max()
        for weight, first in zip(weights[0], start, strict=True)
    )
    assert moved > 1e-3


def test_a_run_of_the_same_name_goes_on_where_it_was(ray_cluster: None, images: np.ndarray, tmp_path: Path) -> None:
    settings = _config(tmp_path, cpus_per_worker=0.5)
    _, history, best = trainer.fit(settings, images, _splits(), lambda metrics: None)
    epochs: list[dict[str, float]] = []
    _, again, best_again = trainer.fit(settings, images, _splits(), epochs.append)
    assert (again, best_again) == (history, best)
    assert epochs == []
    with pytest.raises(InputError, match="another configuration"):
        trainer.fit(settings.model_copy(update={"learning_rate": 0.1}), images, _splits(), epochs.append)
