from collections import Counter

import numpy as np
import pytest

from melanoma import taxonomy
from melanoma.training import plan
from melanoma.training.config import Balance, Copies

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


def copies_of(**values: int) -> Copies:
    return Copies.model_validate({"augmentation": [{"operation": "rotate_random_90"}], **values})


@pytest.mark.parametrize(
    ("wanted", "counts"),
    [
        (None, {}),
        (copies_of(add=100), dict.fromkeys(SHARES, 100)),
        (copies_of(fill_to=150), {"BCC": 89, "AK|SCC": 120, "BKL|SK": 143, "DF": 149}),
    ],
)
def test_copies_to_a_target_count(wanted: Copies | None, counts: dict[str, int]) -> None:
    source, seeds = plan.copies(LABELS, wanted, seed=0)
    assert Counter(LABELS[place] for place in source) == counts
    assert len(seeds) == len(source)
    assert len(set(seeds.tolist())) == len(seeds)
    # Every image of a class is copied as often as any other, to within one.
    times = np.bincount(source, minlength=len(LABELS))
    for label in counts:
        of_class = times[np.array(LABELS) == label]
        assert of_class.max() - of_class.min() <= 1
    np.testing.assert_array_equal(plan.copies(LABELS, wanted, seed=0)[0], source)
    if wanted:
        assert (plan.copies(LABELS, wanted, seed=1)[0] != source).any()


@pytest.mark.parametrize("copies", [None, copies_of(add=50), copies_of(fill_to=200)])
@pytest.mark.parametrize(("sampling", "loss_weights"), [(0.0, 0.0), (0.5, 0.25), (1.0, 0.0), (0.0, 1.0)])
def test_the_class_distribution_is_what_the_epochs_hold(
    copies: Copies | None, sampling: float, loss_weights: float
) -> None:
    balance = Balance(sampling=sampling, loss_weights=loss_weights, copies=copies)
    rows = plan.class_distribution(LABELS, balance)
    assert [row["label"] for row in rows] == list(SHARES)
    assert [row["images"] for row in rows] == list(SHARES.values())
    for column in ("share", "drawn", "effective"):
        assert sum(row[column] for row in rows) == pytest.approx(1, abs=1e-5)
    source, _ = plan.copies(LABELS, copies, 0)
    labels = LABELS + [LABELS[place] for place in source]
    batches = plan.epoch_indices(labels, balance, BATCH, 0, 0)
    weights = plan.loss_weights(labels, balance)
    for row in rows:
        of_class = np.array([label == row["label"] for label in labels])[batches.ravel()]
        assert of_class.mean() == pytest.approx(row["drawn"], abs=1.1 / batches.size)
        # One image more or less, at its weight.
        share = weights[batches.ravel()][of_class].sum() / batches.size
        assert share == pytest.approx(row["effective"], abs=1.1 * float(weights.max()) / batches.size)


def test_full_sampling_makes_all_classes_alike_and_no_balance_leaves_them() -> None:
    balanced = plan.class_distribution(LABELS, Balance(sampling=1.0))
    assert {round(row["drawn"], 6) for row in balanced} == {round(1 / len(SHARES), 6)}
    for row in plan.class_distribution(LABELS, Balance(sampling=0.0)):
        assert row["share"] == pytest.approx(row["drawn"]) == pytest.approx(row["effective"], rel=1e-5)


@pytest.mark.parametrize("values", [{}, {"add": 1, "fill_to": 2}, {"add": 0}])
def test_copies_are_asked_for_in_one_way(values: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=r"add|fill_to"):
        copies_of(**values)


def test_a_class_of_each_source_counts_as_a_class_where_balance_goes_by_source() -> None:
    labels, sources = ["MEL", "NV", "NV", "NV"], ["a", "a", "b", "b"]
    assert plan.strata(labels, sources, Balance()) == tuple(labels)
    by_source = plan.strata(labels, sources, Balance(by_source=True))
    assert by_source == ("MEL of a", "NV of a", "NV of b", "NV of b")
    np.testing.assert_allclose(plan.draw_probabilities(by_source, 1.0), [1 / 3, 1 / 3, 1 / 6, 1 / 6])
    rows = plan.class_distribution(labels, Balance(sampling=1.0, by_source=True), sources)
    assert {row["label"]: row["drawn"] for row in rows} == pytest.approx({"NV": 2 / 3, "MEL": 1 / 3})


def test_shares_of_mixup_are_the_larger_ones_and_of_the_seed() -> None:
    shares = plan.mixup_shares((20, 8), 0.3, seed=1, epoch=2)
    assert shares.dtype == np.float32
    assert shares.min() >= 0.5
    assert shares.max() <= 1
    assert 0.7 < shares.mean() < 0.95
    np.testing.assert_array_equal(shares, plan.mixup_shares((20, 8), 0.3, seed=1, epoch=2))
    for other in ((2, 2), (1, 3)):
        assert not np.array_equal(shares, plan.mixup_shares((20, 8), 0.3, *other))
    np.testing.assert_array_equal(plan.mixup_shares((2, 4), 0.0, 0, 0), np.ones((2, 4)))
