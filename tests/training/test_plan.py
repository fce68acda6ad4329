from collections import Counter

import numpy as np
import pytest

from melanoma import taxonomy
from melanoma.config import Balance
from melanoma.training import plan

SHARES = {"NV": 600, "MEL": 150, "BCC": 61, "AK|SCC": 30, "BKL|SK": 7, "DF": 1}
LABELS = [label for label, count in SHARES.items() for _ in range(count)]
BATCH = 64


def drawn(power: float, seed: int = 0, epoch: int = 0) -> np.ndarray:
    return plan.epoch_indices(LABELS, Balance(sampling=power), BATCH, seed, epoch)


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0])
def test_every_epoch_has_the_shares_of_the_power(power: float) -> None:
    weights = {label: count ** (1 - power) for label, count in SHARES.items()}
    for epoch in range(5):
        batches = drawn(power, epoch=epoch)
        counts = Counter(LABELS[index] for index in batches.ravel())
        for label, weight in weights.items():
            assert counts[label] == pytest.approx(batches.size * weight / sum(weights.values()), abs=1.001)


@pytest.mark.parametrize("power", [0.0, 0.3, 1.0])
def test_each_image_is_drawn_floor_or_ceil_of_its_expectation(power: float) -> None:
    expected = plan.draw_probabilities(LABELS, power)
    for seed in range(5):
        batches = drawn(power, seed=seed)
        counts = np.bincount(batches.ravel(), minlength=len(LABELS))
        assert (counts >= np.floor(expected * batches.size - 1e-6)).all()
        assert (counts <= np.ceil(expected * batches.size + 1e-6)).all()


def test_over_many_epochs_all_images_of_a_class_are_drawn_alike() -> None:
    counts = sum(np.bincount(drawn(1.0, epoch=epoch).ravel(), minlength=len(LABELS)) for epoch in range(200))
    of_nevi = np.asarray(counts)[np.array(LABELS) == "NV"]
    expected = 200 * drawn(1.0).size / len(SHARES) / SHARES["NV"]  # 46
    assert of_nevi.mean() == pytest.approx(expected, abs=1)
    assert abs(of_nevi - expected).max() < 30  # five standard deviations


def test_the_plan_is_decided_by_seed_and_epoch() -> None:
    np.testing.assert_array_equal(drawn(0.5, 3, 4), drawn(0.5, 3, 4))
    plans = {drawn(0.5, seed, epoch).tobytes() for seed in range(4) for epoch in range(4)}
    assert len(plans) == 16
    seeds = {plan.augmentation_seeds((3, 8), seed, epoch).tobytes() for seed in range(4) for epoch in range(4)}
    assert len(seeds) == 16
    np.testing.assert_array_equal(plan.augmentation_seeds((3, 8), 1, 2), plan.augmentation_seeds((3, 8), 1, 2))


def test_the_global_generator_plays_no_part() -> None:
    np.random.seed(1)
    before = drawn(0.5)
    expected = np.random.random()
    np.random.seed(1)
    np.testing.assert_array_equal(drawn(0.5), before)
    assert np.random.random() == expected


def test_batches_are_mixed() -> None:
    """The labels of the rows are sorted; those of a batch are not."""
    batches = plan.epoch_indices(LABELS, Balance(sampling=0.0), BATCH, 0, 0)
    for batch in batches:
        assert len({LABELS[index] for index in batch}) > 1
        assert (np.diff(batch) < 0).any()


@pytest.mark.parametrize(
    ("images", "batch", "steps"), [(1, 64, 1), (64, 64, 1), (100, 64, 2), (95, 64, 1), (849, 64, 13)]
)
def test_an_epoch_is_about_as_many_images_as_there_are(images: int, batch: int, steps: int) -> None:
    assert plan.steps_per_epoch(images, batch) == steps
    indices = plan.epoch_indices(["MEL"] * images, Balance(), batch, 0, 0)
    assert indices.shape == (steps, batch)
    assert indices.dtype == np.int64
    assert set(indices.ravel()) <= set(range(images))


@pytest.mark.parametrize("workers", [1, 2, 4, 64])
def test_the_workers_share_every_batch(workers: int) -> None:
    batches = drawn(0.5)
    parts = [plan.worker_part(batches, rank, workers) for rank in range(workers)]
    np.testing.assert_array_equal(np.concatenate(parts, axis=1), batches)
    assert {part.shape for part in parts} == {(len(batches), BATCH // workers)}


@pytest.mark.parametrize("sampling", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("loss_weights", [0.0, 0.5, 1.0])
def test_the_expected_weight_of_a_drawn_image_is_one(sampling: float, loss_weights: float) -> None:
    balance = Balance(sampling=sampling, loss_weights=loss_weights)
    weights = plan.loss_weights(LABELS, balance)
    assert weights.dtype == np.float32
    assert np.dot(weights, plan.draw_probabilities(LABELS, sampling)) == pytest.approx(1, abs=1e-5)
    # The two add up: a class counts in the loss as its size to 1 - sampling - loss_weights.
    counted = {
        label: float(np.sum((weights * plan.draw_probabilities(LABELS, sampling))[np.array(LABELS) == label]))
        for label in SHARES
    }
    ratio = counted["NV"] / counted["DF"]
    assert ratio == pytest.approx(600 ** (1 - sampling - loss_weights), rel=1e-4)


def test_targets_of_merged_labels() -> None:
    targets = plan.targets(["MEL", "AK|SCC", "BKL|SK"])
    assert targets.dtype == np.float32
    assert [[taxonomy.CODES[place] for place in np.flatnonzero(row)] for row in targets] == [
        ["MEL"], ["AK", "SCC"], ["BKL", "SK"],
    ]  # fmt: skip
    assert set(targets.ravel()) == {0.0, 1.0}
    assert plan.targets([]).shape == (0, 9)
    with pytest.raises(ValueError, match="'XYZ' is not one of"):
        plan.targets(["XYZ"])


def test_class_counts() -> None:
    assert plan.class_counts(LABELS) == SHARES
    assert plan.class_counts([]) == {}
