import numpy as np
import pytest
from scipy.stats import binom, norm

from melanoma.evaluation.operating_point import (
    LEAST_OF_SOURCE,
    Bound,
    choose_threshold,
    choose_thresholds,
    operating_point,
)


def scores(n_melanoma: int, n_other: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    melanoma = np.arange(n_melanoma + n_other) < n_melanoma
    return melanoma, norm.cdf(rng.normal(np.where(melanoma, 0.7, -0.7))).astype(np.float32)


def test_observed_is_the_threshold_as_always_with_its_figures() -> None:
    melanoma, score = scores(40, 100)
    point = operating_point(melanoma, score, np.arange(140), 0.9, "observed")
    assert point.threshold == choose_threshold(melanoma, score, 0.9)
    raised = score >= point.threshold
    assert point.sensitivity.value == raised[melanoma].mean() == 0.9
    assert point.specificity.value == (~raised[~melanoma]).mean()
    assert point.sensitivity_lower_bound < 0.9
    assert (point.n, point.n_melanoma, point.bound) == (140, 40, "observed")


def test_lower_is_the_highest_threshold_whose_bound_reaches_the_stated_sensitivity() -> None:
    melanoma, score = scores(80, 100)
    point = operating_point(melanoma, score, np.arange(180), 0.9, "lower")
    assert point.sensitivity_lower_bound >= 0.9
    hits = int((score[melanoma] >= point.threshold).sum())
    # So many hits of 80 suffice, by the binomial distribution, and one less would not.
    assert binom.sf(hits - 1, 80, 0.9) <= 0.05 < binom.sf(hits - 2, 80, 0.9)
    assert point.threshold < choose_threshold(melanoma, score, 0.9)


@pytest.mark.parametrize(("n", "enough"), [(58, False), (59, True)])
def test_ninety_five_percent_takes_59_melanomas(n: int, enough: bool) -> None:
    melanoma, score = scores(n, 50)
    if enough:
        point = operating_point(melanoma, score, np.arange(n + 50), 0.95, "lower")
        assert point.sensitivity.value == 1
        assert point.sensitivity_lower_bound >= 0.95
    else:
        with pytest.raises(ValueError, match=r"58 melanomas of 58 groups.*95%.*it takes 59 melanomas"):
            operating_point(melanoma, score, np.arange(n + 50), 0.95, "lower")


def test_copies_of_melanomas_do_not_make_enough_of_them() -> None:
    melanoma, score = scores(40, 50)
    twice = np.concatenate([np.arange(90), np.arange(90)])
    with pytest.raises(ValueError, match=r"80 melanomas of 40 groups"):
        operating_point(melanoma[twice], score[twice], twice, 0.95, "lower")


def test_what_cannot_be_chosen_is_refused() -> None:
    melanoma, score = scores(5, 5)
    bounds: tuple[Bound, ...] = ("observed", "lower")
    for bound in bounds:
        with pytest.raises(ValueError, match="there is no melanoma"):
            operating_point(np.zeros(10, bool), score, np.arange(10), 0.9, bound)
        with pytest.raises(ValueError, match="above 0 and at most 1"):
            operating_point(melanoma, score, np.arange(10), 1.2, bound)
    with pytest.raises(ValueError, match="no number of melanomas is enough for 100%"):
        operating_point(melanoma, score, np.arange(10), 1.0, "lower")


def test_the_lower_bound_keeps_its_word_on_new_images_and_the_observed_share_does_not() -> None:
    """The true sensitivity of the threshold is known: scores of melanomas are normal around 0.7."""
    kept: dict[Bound, int] = {"observed": 0, "lower": 0}
    for seed in range(200):
        melanoma, score = scores(60, 10, seed)
        for bound in kept:
            point = operating_point(melanoma, score, np.arange(70), 0.9, bound)
            kept[bound] += norm.sf(norm.ppf(point.threshold) - 0.7) >= 0.9
    assert kept["lower"] >= binom.ppf(0.001, 200, 0.95)
    assert kept["observed"] < 160


def test_a_threshold_is_chosen_alike_for_scores_with_ties() -> None:
    melanoma = np.arange(120) < 60
    score = np.where(melanoma, 0.5, 0.25)
    point = operating_point(melanoma, score, np.arange(120), 0.95, "lower")
    assert point.threshold == 0.375
    assert point.specificity.value == 1


def test_each_source_with_melanomas_enough_keeps_the_sensitivity() -> None:
    """Of clinic b, the probabilities are half of those of clinic a; of c there are too few melanomas to say."""
    probability = np.linspace(0.2, 1.0, 40)
    parts = {"a": probability, "b": probability / 2, "c": np.full(LEAST_OF_SOURCE - 1, 0.5)}
    labels = [label for scores in parts.values() for label in ["MEL"] * len(scores) + ["NV"] * 50]
    scores = np.concatenate([np.concatenate([each, np.linspace(0, 0.3, 50)]) for each in parts.values()])
    sources = [source for source, each in parts.items() for _ in range(len(each) + 50)]
    arguments = (labels, scores, np.arange(len(labels)), 0.9, "observed", 0.95)
    together = choose_thresholds(*arguments)  # type: ignore[arg-type]
    apart = choose_thresholds(*arguments, sources=sources)  # type: ignore[arg-type]
    of_b = choose_threshold(np.array(labels[90:180]) == "MEL", scores[90:180], 0.9)
    assert apart.review == of_b
    lowest = {source: (parts[source] >= apart.review).mean() for source in parts}
    assert lowest["a"] == 1.0
    assert lowest["b"] == 0.9
    assert (parts["b"] >= together.review).mean() < 0.8
    assert apart.chosen is not None
    assert "on all together and on each of 2 source(s) with 20 of them" in apart.chosen
    assert apart.operating_point is not None
    assert apart.operating_point.threshold == apart.review
    assert apart.operating_point.specificity.value == pytest.approx((np.linspace(0, 0.3, 50) < of_b).mean())
