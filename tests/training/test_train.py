"""Training with Ray Train: what one worker learns, two learn."""

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

from melanoma import config, taxonomy
from melanoma.demo.lesions import draw_lesion
from melanoma.errors import InputError
from melanoma.training import loop, networks, plan
from melanoma.training.config import Network, TrainConfig
from melanoma.training.data import Split, TrainingData
from melanoma.training.fit import claim_run_name, fit
from melanoma.training.train import check_inputs

SIZE = 32
TRAIN = 80
LABELS = tuple(taxonomy.CODES[number % 9] for number in range(TRAIN + 24))
STRATA = tuple(f"{label} of {number % 2}" for number, label in enumerate(LABELS))


@pytest.fixture(scope="module")
def data() -> TrainingData:
    return TrainingData(
        np.stack([draw_lesion(label, seed, SIZE, SIZE) for seed, label in enumerate(LABELS)]),
        train=Split(np.arange(TRAIN), LABELS[:TRAIN], STRATA[:TRAIN]),
        validation=Split(np.arange(TRAIN, len(LABELS)), LABELS[TRAIN:]),
    )


def _config(folder: Path, **values: Any) -> TrainConfig:
    return config.load(
        TrainConfig,
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
        balance={"sampling": 0.7, "loss_weights": 0.3, "by_source": True},
        mixup=0.3,
        averaged_weights=0.9,
        augmentation=[
            {"operation": "flip_left_right"},
            {"operation": "rotate_random_90"},
            {"operation": "random_brightness", "min_factor": 0.7, "max_factor": 1.3},
            {"operation": "frame", "rotation": 180, "min_scale": 0.8, "max_scale": 1.5, "aspect": 1.3, "shift": 0.1},
            {"operation": "colour", "saturation": 0.3, "hue": 10, "light": 0.1},
            {"operation": "resolution", "min_scale": 0.5, "min_quality": 50},
            {"operation": "dark_border"},
            {"operation": "marks"},
        ],
        **values,
    )


def _last_weights(folder: Path) -> list[np.ndarray]:
    last = sorted(folder.glob("run/checkpoint_*/weights.npz"))[-1]
    with np.load(last) as arrays:
        return [arrays[name] for name in sorted(arrays.files)]


@pytest.mark.slow  # the quick tests have test_one_worker_resumes_what_two_began
@pytest.mark.parametrize("ghost_batch", [None, 4])
def test_two_workers_learn_what_one_learns(
    ray_cluster: None, data: TrainingData, tmp_path: Path, ghost_batch: int | None
) -> None:
    histories, weights = [], []
    for workers in (1, 2):
        settings = _config(tmp_path / str(workers), workers=workers, cpus_per_worker=0.5)
        network = settings.network.model_copy(update={"ghost_batch": ghost_batch})
        settings = settings.model_copy(update={"network": network})
        assert settings.epochs * plan.steps_per_epoch(TRAIN, settings.batch_size) == 10
        followed: list[dict[str, float]] = []
        history = fit(settings, data, followed.append).history
        assert [metrics["epoch"] for metrics in followed] == [1, 2]
        histories.append(history)
        weights.append(_last_weights(tmp_path / str(workers)))

    for alone, together in zip(*weights, strict=True):
        # Relative, too: the averaged weights' own variances are well above 1, and sums of them are rounded otherwise.
        np.testing.assert_allclose(together, alone, atol=1e-5, rtol=1e-5)
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


def test_the_name_of_a_run_that_an_earlier_version_began_stands_for_the_same_run(tmp_path: Path) -> None:
    """The claim was written by the code of 2026-11-24, of these very images and this very configuration."""
    (tmp_path / "run.json").write_bytes((Path(__file__).parent / "data" / "claim-before.json").read_bytes())
    pixels = np.arange(4 * 32 * 32 * 3).astype(np.uint8).reshape(4, 32, 32, 3)
    parts = [Split(np.arange(first, first + 2), ("MEL", "NV")) for first in (0, 2)]
    values: dict[str, Any] = {"network": {"width": 4}, "mixup": 0.2, "augmentation": [{"operation": "flip_left_right"}]}
    settings = config.load(TrainConfig, None, catalog="c.parquet", out="b", checkpoints=str(tmp_path), **values)
    claim_run_name(settings, "run", TrainingData(pixels, *parts))
    # Where it runs and writes may change.
    claim_run_name(settings.model_copy(update={"workers": 4, "out": "elsewhere"}), "run", TrainingData(pixels, *parts))
    others = (
        (settings.model_copy(update={"learning_rate": 0.1}), TrainingData(pixels, *parts)),
        (settings, TrainingData(pixels + np.uint8(1), *parts)),
        (settings, TrainingData(pixels, *reversed([parts[0], Split(np.arange(2, 4), ("NV", "NV"))]))),
    )
    for changed, data in others:
        with pytest.raises(InputError, match="another configuration or other images"):
            claim_run_name(changed, "run", data)


@pytest.mark.slow  # the quick tests hold the claim, and that one worker resumes what two began
def test_a_run_of_the_same_name_is_resumed(ray_cluster: None, data: TrainingData, tmp_path: Path) -> None:
    settings = _config(tmp_path, cpus_per_worker=0.5)
    trained = fit(settings, data)
    epochs: list[dict[str, float]] = []
    resumed = fit(settings, data, epochs.append)
    assert (resumed.history, resumed.best) == (trained.history, trained.best)
    assert epochs == []
    with pytest.raises(InputError, match="another configuration"):
        fit(settings.model_copy(update={"learning_rate": 0.1}), data, epochs.append)


@pytest.mark.slow
def test_training_stops_when_the_figure_no_longer_rises(ray_cluster: None, data: TrainingData, tmp_path: Path) -> None:
    """At a rate of nothing, no epoch is better than the first; the averaged weights are its weights, too."""
    settings = _config(tmp_path, cpus_per_worker=0.5, patience=2).model_copy(
        update={"learning_rate": 1e-12, "epochs": 9, "averaged_weights": None}
    )
    trained = fit(settings, data)
    assert (len(trained.history), trained.best) == (3, 0)
    # Started again, it is as finished as it was.
    epochs: list[dict[str, float]] = []
    assert fit(settings, data, epochs.append).history == trained.history
    assert epochs == []


@pytest.mark.parametrize(
    ("figures", "stopped"),
    [([], False), ([0.5], False), ([0.5, 0.4], False), ([0.5, 0.4, 0.5], True), ([0.5, 0.4, 0.6], False)],
)
def test_patience_counts_from_the_best_epoch(figures: list[float], stopped: bool, tmp_path: Path) -> None:
    settings = _config(tmp_path, patience=2)
    history = [{"balanced_accuracy": figure} for figure in figures]
    assert loop.stopped_early(history, settings) is stopped
    assert not loop.stopped_early(history, settings.model_copy(update={"patience": None}))
    assert not loop.stopped_early(history, settings.model_copy(update={"select_by": "last"}))


@pytest.mark.slow
def test_the_head_learns_first(ray_cluster: None, data: TrainingData, tmp_path: Path) -> None:
    """Transfer learning: while the backbone is frozen its weights and statistics stay, and then they move."""
    path = tmp_path / "pretrained.weights.h5"
    start = networks.build(Network(name="MobileNetV3Small"), SIZE, 5).get_layer(networks.BACKBONE)
    start.save_weights(path)
    network = Network(name="MobileNetV3Small", weights=str(path), frozen_epochs=1, fine_tuning_rate=0.001, dropout=0.0)
    settings = _config(tmp_path / "checkpoints", cpus_per_worker=0.5).model_copy(
        update={"network": network, "averaged_weights": None, "learning_rate": 0.1, "augmentation": ()}
    )
    fit(settings, data)
    moved = []
    for path in sorted((tmp_path / "checkpoints").glob("run/checkpoint_*/weights.npz")):
        model = networks.build(network, SIZE, 0)
        loop._assign(model.variables, path)
        weights = model.get_layer(networks.BACKBONE).weights
        pairs = zip(weights, start.weights, strict=True)
        moved.append(max(np.abs(np.asarray(now) - np.asarray(before)).max() for now, before in pairs))
    assert len(moved) == 2
    assert moved[0] == 0
    assert moved[1] > 1e-4


def test_workers_that_cannot_share_a_batch_are_a_sentence(tmp_path: Path, lesions: Path) -> None:
    from melanoma.catalog import build, schema
    from melanoma.catalog.split import split

    catalog = str(tmp_path / "catalog.parquet")
    schema.write(catalog, split(build.build([str(lesions)]), 0.5, 0.0, 0))
    settings = _config(tmp_path).model_copy(update={"catalog": catalog, "out": str(tmp_path / "out")})
    settings = settings.model_copy(update={"checkpoints": str(tmp_path / "checkpoints")})
    for workers, words in {
        3: "batch_size 16 cannot be shared equally by 3 workers",
        16: "in whole pairs of images",
        (2, 3): "by 3 workers",
    }.items():
        with pytest.raises(InputError, match=words):
            check_inputs(settings.model_copy(update={"workers": workers}))
    check_inputs(settings.model_copy(update={"workers": (1, 2)}))
    ghosts = settings.model_copy(update={"network": settings.network.model_copy(update={"ghost_batch": 8})})
    check_inputs(ghosts.model_copy(update={"workers": 2}))
    with pytest.raises(
        InputError, match=r"each of 4 worker\(s\) 4 images, which are not whole groups of ghost_batch 8"
    ):
        check_inputs(ghosts.model_copy(update={"workers": 4, "mixup": 0}))
    with pytest.raises(InputError, match=r"workers \(4, 2\) have to be the fewest and the most"):
        _config(tmp_path, workers=(4, 2))
