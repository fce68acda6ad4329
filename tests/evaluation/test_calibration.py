import math

import numpy as np
import pytest
from scipy.special import expit
from sklearn.calibration import calibration_curve
from sklearn.linear_model import LogisticRegression

from melanoma.evaluation.calibration import (
    CALIBRATION_BINS,
    at_prevalence,
    bin_of,
    calibration_intercept,
    calibration_slope,
    log_odds,
)


def simulated(seed: int, n: int = 300, slope: float = 1.0, intercept: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Outcomes, and the probabilities of a model whose log odds are off by a slope and an intercept."""
    rng = np.random.default_rng(seed)
    odds = rng.normal(-1, 1.5, size=n)
    return rng.random(n) < expit(intercept + slope * odds), expit(odds)


@pytest.mark.parametrize("seed", range(5))
def test_slope_is_that_of_scikit_learn(seed: int) -> None:
    outcome, probability = simulated(seed)
    weight = np.random.default_rng(seed).integers(0, 3, size=len(outcome)).astype(float)
    odds = log_odds(probability)
    for w in (np.ones(len(outcome)), weight):
        model = LogisticRegression(C=np.inf, solver="newton-cholesky", tol=1e-12, max_iter=1000)
        model.fit(odds[:, None], outcome, sample_weight=w)
        assert calibration_slope(outcome, odds, w) == pytest.approx(model.coef_[0, 0], abs=1e-9)


def test_slope_and_intercept_of_simulated_probabilities_are_recovered() -> None:
    ones = np.ones(40_000)
    outcome, probability = simulated(0, len(ones), slope=0.5)
    assert calibration_slope(outcome, log_odds(probability), ones) == pytest.approx(0.5, abs=0.03)
    outcome, probability = simulated(0, len(ones), intercept=-0.7)
    assert calibration_intercept(outcome, log_odds(probability), ones) == pytest.approx(-0.7, abs=0.04)


def test_intercept_makes_the_expected_number_of_melanomas_the_observed_one() -> None:
    for seed in range(5):
        outcome, probability = simulated(seed, slope=0.3, intercept=2.0)
        weight = np.random.default_rng(seed).integers(0, 3, size=len(outcome)).astype(float)
        odds = log_odds(probability)
        shifted = expit(calibration_intercept(outcome, odds, weight) + odds)
        assert (weight * shifted).sum() == pytest.approx((weight * outcome).sum(), abs=1e-8)


def test_slope_where_there_is_none() -> None:
    odds, ones = np.array([-2.0, -1.0, 1.0, 2.0]), np.ones(4)
    assert calibration_slope(odds > 0, odds, ones) == math.inf
    assert calibration_slope(odds < 0, odds, ones) == -math.inf
    assert math.isnan(calibration_slope(np.ones(4, bool), odds, ones))
    assert math.isnan(calibration_slope(odds > 0, np.zeros(4), ones))
    # An image that no resample drew does not count.
    assert calibration_slope(np.array([False, False, True, True, False]), np.append(odds, 9.0), np.append(ones, 0)) > 99
    assert math.isnan(calibration_intercept(np.zeros(4, bool), odds, ones))


@pytest.mark.parametrize("odds", [[-14.0, 3.0, 2.9, 14.0], [-1.0, 14.0, -14.0, 1.0], [1.0, -1.0, -1.0, 1.0]])
def test_slope_of_few_and_extreme_images_has_no_gradient_left(odds: list[float]) -> None:
    outcome, x = np.array([False, False, True, True]), np.array(odds)
    slope = calibration_slope(outcome, x, np.ones(4))
    # The best intercept for the slope found: then the gradient by the slope must vanish as well.
    p = expit(calibration_intercept(outcome, slope * x, np.ones(4)) + slope * x)
    assert (x * (outcome - p)).sum() == pytest.approx(0, abs=1e-6)


def test_probabilities_of_zero_and_one_have_finite_odds() -> None:
    assert np.isfinite(log_odds(np.array([0.0, 1.0]))).all()


def test_bins_are_those_of_scikit_learns_reliability_curve() -> None:
    outcome, probability = simulated(3, 500)
    bins = bin_of(probability)
    used = np.unique(bins)
    observed, predicted = calibration_curve(outcome, probability, n_bins=CALIBRATION_BINS)
    assert [outcome[bins == b].mean() for b in used] == pytest.approx(observed.tolist(), abs=1e-9)
    assert [probability[bins == b].mean() for b in used] == pytest.approx(predicted.tolist(), abs=1e-9)


def test_probability_at_another_prevalence() -> None:
    # Of 1,000 images 200 are melanoma; at 50% there are as many of the one as of the other. Where 20 of 1,000 are,
    # one of ten of these melanomas is left, beside 980 of 800 of the others.
    assert at_prevalence(0.5, 0.2, 0.02) == pytest.approx(0.1 / (0.1 + 980 / 800), abs=1e-12)
    assert at_prevalence(0.3, 0.2, 0.2) == pytest.approx(0.3, abs=1e-12)
    assert (at_prevalence(0.0, 0.2, 0.001), at_prevalence(1.0, 0.2, 0.001)) == (0, 1)
