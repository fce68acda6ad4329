"""That the intervals hold the truth as often as they say, on simulated sets of which the truth is known."""

from collections.abc import Callable

import numpy as np
import pytest
from scipy.stats import binom, norm

from melanoma.evaluation.intervals import (
    Estimate,
    bootstrap,
    effective_number,
    lower_bound,
    percentile_interval,
    proportion,
)
from melanoma.evaluation.roc import area_under_roc, roc


def clustered(rng: np.random.Generator, groups: int) -> tuple[np.ndarray, np.ndarray]:
    """Group numbers of 1 to 4 images a group, and a normal value a group that its images share."""
    group = np.repeat(np.arange(groups), rng.integers(1, 5, size=groups))
    return group, rng.normal(size=groups)[group]


def hits_of_groups(rng: np.random.Generator, groups: int, share: float) -> tuple[np.ndarray, np.ndarray]:
    """Hits with this expected share, of which those of a group correlate (a probit model with correlation 0.6)."""
    group, shared = clustered(rng, groups)
    hits = np.sqrt(0.6) * shared + np.sqrt(0.4) * rng.normal(size=len(group)) < norm.ppf(share)
    return hits, group


def covered(sets: int, holds: Callable[[np.random.Generator], bool]) -> int:
    return sum(holds(np.random.default_rng([7, i])) for i in range(sets))


def least(sets: int, confidence: float = 0.95) -> float:
    """So few sets of a right method would hold the truth in one of a thousand simulations."""
    return float(binom.ppf(0.001, sets, confidence))


@pytest.mark.parametrize(("groups", "share"), [(60, 0.7), (150, 0.9), (30, 0.5)])
def test_interval_of_a_clustered_share_holds_the_truth(groups: int, share: float) -> None:
    def holds(rng: np.random.Generator) -> bool:
        estimate = proportion(*hits_of_groups(rng, groups, share))
        return bool((estimate.low or 0) <= share <= (estimate.high or 0))

    # Exact intervals hold the truth rather more often than they say.
    assert least(400) <= covered(400, holds)


def test_clustered_images_taken_for_independent_hold_the_truth_too_seldom() -> None:
    """The simulation above can fail: the plain formula does."""

    def holds(rng: np.random.Generator) -> bool:
        hits, group = hits_of_groups(rng, 150, 0.9)
        estimate = proportion(hits, np.arange(len(group)))
        return bool((estimate.low or 0) <= 0.9 <= (estimate.high or 0))

    assert covered(400, holds) < least(400)


def test_one_sided_bound_holds_the_truth() -> None:
    assert least(400) <= covered(400, lambda rng: lower_bound(*hits_of_groups(rng, 100, 0.85)) <= 0.85)


def area_holds(rng: np.random.Generator, groups: int, resamples: int) -> bool:
    group, shared = clustered(rng, groups)
    positive = (np.arange(groups) % 3 == 0)[group]
    score = positive + np.sqrt(0.5) * shared + np.sqrt(0.5) * rng.normal(size=len(group))
    truth = norm.cdf(1 / np.sqrt(2))  # of two groups; within one there is no pair of a melanoma and something else

    def area(weight: np.ndarray) -> np.ndarray:
        return np.array([area_under_roc(*roc(positive, score, weight))])

    draws = bootstrap(area, group, seed=0, resamples=resamples)[:, 0]
    estimate = percentile_interval(float(area(np.ones(len(group)))[0]), draws, groups)
    return bool((estimate.low or 0) <= truth <= (estimate.high or 1))


def test_interval_of_the_area_under_the_curve_holds_the_truth() -> None:
    held = covered(200, lambda rng: area_holds(rng, groups=150, resamples=200))
    # A percentile bootstrap of a finite set is a little narrow: 93% is what the literature grants it.
    assert least(200, 0.93) <= held <= binom.ppf(0.999, 200, 0.97)


@pytest.mark.slow
def test_interval_of_the_area_holds_the_truth_in_many_sets() -> None:
    held = covered(1000, lambda rng: area_holds(rng, groups=200, resamples=500))
    assert least(1000, 0.935) <= held <= binom.ppf(0.999, 1000, 0.965)


def test_lower_bound_is_that_of_the_binomial() -> None:
    for hits, n in [(59, 59), (58, 59), (40, 50), (1, 9)]:
        bound = lower_bound(np.arange(n) < hits, np.arange(n))
        assert binom.sf(hits - 1, n, bound) == pytest.approx(0.05, abs=1e-9)
    assert lower_bound(np.zeros(5, bool), np.arange(5)) == 0
    assert lower_bound(np.ones(59, bool), np.arange(59)) > 0.95 > lower_bound(np.ones(58, bool), np.arange(58))


def test_effective_number_lies_between_one_and_all() -> None:
    assert effective_number(np.ones(6, bool), np.zeros(6), 0.025) == 1
    assert effective_number(np.ones(6, bool), np.arange(6), 0.025) == 6
    assert effective_number(np.ones(6, bool), np.repeat([0, 1, 2], 2), 0.025) == pytest.approx(3)


def test_bootstrap_draws_whole_groups_alike_for_every_statistic() -> None:
    group = np.array(["b", "a", "b", "c", "a"])
    draws = bootstrap(lambda weight: weight, group, seed=3, resamples=50)
    assert (draws[:, 0] == draws[:, 2]).all()
    assert (draws[:, 1] == draws[:, 4]).all()
    assert (draws[:, [0, 1, 3]].sum(axis=1) == 3).all()
    assert draws.std(axis=0).min() > 0
    doubled = bootstrap(lambda weight: weight[:1] * 2, group, seed=3, resamples=50)
    assert (doubled[:, 0] == 2 * draws[:, 0]).all()


def test_interval_with_an_infinite_end_is_none() -> None:
    draws = np.append(np.linspace(1, 2, 90), [np.inf] * 10)
    assert percentile_interval(1.5, draws, 10) == Estimate(value=1.5, low=None, high=None, method=None)
    few = percentile_interval(1.5, np.append(np.linspace(1, 2, 999), np.inf), 10)
    assert few.high == pytest.approx(2, abs=0.05)
    assert percentile_interval(np.inf, draws, 10).value is None
