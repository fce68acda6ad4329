"""Averaged weights have batch statistics of their own."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from melanoma import config, taxonomy
from melanoma.demo.lesions import draw_lesion
from melanoma.training import loop, plan
from melanoma.training.config import TrainConfig
from melanoma.training.data import Split, TrainingData
from melanoma.training.fit import fit
from melanoma.training.learner import averaged, make_normalize

SIZE, COUNT = 32, 36
LABELS = tuple(taxonomy.CODES[number % 9] for number in range(COUNT))
IMAGES = np.stack([draw_lesion(label, seed, SIZE, SIZE) for seed, label in enumerate(LABELS)])
EVERY = Split(np.arange(COUNT), LABELS)


def settings(folder: Path, **values: Any) -> TrainConfig:
    """All images are one batch, so that the statistics of a network are those of a single batch."""
    return config.load(
        TrainConfig,
        None,
        catalog="unused",
        out="unused",
        checkpoints=str(folder),
        run_name="run",
        image_size=SIZE,
        epochs=6,
        batch_size=COUNT,
        averaged_weights=0.9,
        select_by="last",
        balance={"sampling": 0.0},
        **{"network": {"width": 4, "dropout": 0.0}, **values},
    )


def loss(logits: np.ndarray) -> float:
    return float(np.mean(loop.label_loss(tf.constant(logits), tf.constant(plan.targets(LABELS)), 0.0)))


@pytest.mark.parametrize("ghost_batch", [None, 12])
def test_averaged_weights_are_validated_with_statistics_of_their_own(tmp_path: Path, ghost_batch: int | None) -> None:
    """Of one batch, a network normalizes as with the statistics of that very batch, which is what `training` does."""
    training = settings(tmp_path, network={"width": 4, "dropout": 0.0, "ghost_batch": ghost_batch})
    strategy = tf.distribute.get_strategy()
    learner = loop.make_learner(training, 1, 1, strategy)
    step = loop.make_step(learner, strategy, training)
    ones = np.ones(COUNT, np.float32)
    batch = (IMAGES, plan.targets(LABELS), ones, ones, np.zeros((COUNT, 0), np.float32))
    for _ in range(6):
        step(tuple(tf.constant(each) for each in batch))
    before = [np.asarray(variable) for variable in learner.model.variables]

    rows = plan.statistics_rows(EVERY.rows, COUNT, 0)
    assert sorted(rows.ravel()) == list(range(COUNT))
    with averaged(learner, lambda: None):
        of_other_weights = np.asarray(learner.model(IMAGES, training=False))
    with averaged(learner, make_normalize(learner.model, IMAGES, rows, strategy)) as kept:
        own = np.asarray(learner.model(IMAGES, training=False))
        if ghost_batch is None:
            np.testing.assert_allclose(own, np.asarray(learner.model(IMAGES, training=True)), atol=1e-4)
    assert abs(loss(own) - loss(of_other_weights)) > 0.01
    # The averages are what is kept, and of the training nothing has changed.
    for variable, average in learner.averages:
        place = next(n for n, each in enumerate(learner.model.variables) if each is variable)
        np.testing.assert_array_equal(kept[place], np.asarray(average))
    for variable, value in zip(learner.model.variables, before, strict=True):
        np.testing.assert_array_equal(np.asarray(variable), value)


def test_statistics_of_several_batches_are_their_means() -> None:
    """Each batch weighs as the moving average of training would have it, and the zero that it begins with nothing."""
    training = settings(Path("unused"))
    strategy = tf.distribute.get_strategy()
    model = loop.make_learner(training, 1, 1, strategy).model
    first = next(layer for layer in model.layers if "batch_normalization" in layer.name)
    of_inputs = type(model)(model.input, first.input)
    rows = np.arange(COUNT).reshape(3, 12)
    make_normalize(model, IMAGES, rows, strategy)()
    means = [np.asarray(of_inputs(IMAGES[batch])).mean(axis=(0, 1, 2)) for batch in rows]
    weights = first.momentum ** np.arange(2, -1, -1)
    expected = np.average(means, axis=0, weights=weights)
    np.testing.assert_allclose(np.asarray(first.moving_mean), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.slow  # the quick test above is of the same code without Ray
@pytest.mark.parametrize("workers", [1, 2])
def test_a_training_keeps_averaged_weights_with_their_statistics(
    ray_cluster: None, tmp_path: Path, workers: int
) -> None:
    training = settings(tmp_path, workers=workers, cpus_per_worker=0.5)
    trained = fit(training, TrainingData(IMAGES, train=EVERY, validation=EVERY))
    own = np.asarray(trained.model(IMAGES, training=True))
    np.testing.assert_allclose(np.asarray(trained.model(IMAGES, training=False)), own, atol=1e-3)
    assert trained.history[-1]["validation_loss"] == pytest.approx(loss(own), abs=1e-3)


@pytest.mark.parametrize(
    ("devices", "workers", "deterministic", "done"),
    [
        (["GPU"], 2, True, ["deterministic", "NCCL"]),
        (["GPU"], 2, False, ["NCCL"]),
        (["GPU"], 1, True, ["deterministic"]),
        (["GPU"], 1, False, []),
        ([], 2, True, ["AUTO"]),
    ],
)
def test_gpus_exchange_by_nccl_and_are_deterministic_where_that_is_asked_for(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    devices: list[str],
    workers: int,
    deterministic: bool,
    done: list[str],
) -> None:
    """What TensorFlow is asked for: no GPU is here."""
    asked = []
    monkeypatch.setattr(tf.config, "get_visible_devices", lambda kind: devices)
    for name in ("set_intra_op_parallelism_threads", "set_inter_op_parallelism_threads"):
        monkeypatch.setattr(tf.config.threading, name, lambda number: None)
    monkeypatch.setattr(tf.config.experimental, "enable_op_determinism", lambda: asked.append("deterministic"))
    monkeypatch.setattr(
        tf.distribute,
        "MultiWorkerMirroredStrategy",
        lambda communication_options: asked.append(communication_options.implementation.value),
    )
    loop._strategy(settings(tmp_path, deterministic=deterministic), workers, 1)
    assert asked == done


def test_losses_stay_on_the_device_until_the_epoch_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """To take a number off the device is to wait for it. The sum is that of Python's floats, to the last bit."""
    losses = np.random.default_rng(0).random(1000).astype(np.float32)

    def wait(tensor: object) -> float:
        raise AssertionError("a step was waited for")

    monkeypatch.setattr(type(tf.constant(0.0)), "__float__", wait)
    total, _ = loop.train_epoch(lambda batch: batch[0], iter([(tf.constant(each),) * 5 for each in losses]), 1000)
    np.testing.assert_array_equal(total, sum(float(each) for each in losses))
