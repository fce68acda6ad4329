import numpy as np
import pytest
from scipy.stats import binom

from melanoma.evaluation.decision import THRESHOLDS, decision_curve, predictive_values
from melanoma.evaluation.intervals import UNDEFINED

# Ten images, four of them melanoma.
MELANOMA = np.array([True, True, True, True, False, False, False, False, False, False])
SCORE = np.array([0.9, 0.45, 0.25, 0.05, 0.6, 0.25, 0.15, 0.04, 0.02, 0.005])
SINGLE = np.arange(10)


def at(line: list[float], threshold: float) -> float:
    return line[round(threshold * 100) - 1]


def test_net_benefit_computed_by_hand() -> None:
    curve = decision_curve(MELANOMA, SCORE, SINGLE, resamples=50)
    assert curve is not None
    assert curve.threshold == pytest.approx([i / 100 for i in range(1, 51)])
    # At 20%: raised are .9 .45 .25 (3 melanomas) and .6 .25 (2 others): 3/10 - 2/10 * 0.2/0.8.
    assert at(curve.model, 0.20) == pytest.approx(0.25, abs=1e-12)
    # At 25% itself an image of 25% is raised: 3/10 - 2/10 * 1/3; at 26% no more: 2/10 - 1/10 * 26/74.
    assert at(curve.model, 0.25) == pytest.approx(0.3 - 0.2 / 3, abs=1e-12)
    assert at(curve.model, 0.26) == pytest.approx(0.2 - 0.1 * 26 / 74, abs=1e-12)
    assert at(curve.model, 0.50) == pytest.approx(0.1 - 0.1, abs=1e-12)
    # All raised: 4/10 - 6/10 * odds, which crosses zero at the share of melanoma.
    assert at(curve.all, 0.20) == pytest.approx(0.4 - 0.6 / 4, abs=1e-12)
    assert at(curve.all, 0.40) == pytest.approx(0, abs=1e-12)


def test_band_holds_the_line_and_is_wider_for_groups() -> None:
    melanoma, score = np.tile(MELANOMA, 20), np.tile(SCORE, 20)
    single = decision_curve(melanoma, score, np.arange(200), resamples=200)
    grouped = decision_curve(melanoma, score, np.arange(200) % 20, resamples=200)
    assert single is not None
    assert grouped is not None
    for curve in (single, grouped):
        low, model, high = (np.array(line) for line in (curve.low, curve.model, curve.high))
        assert (low <= model).all()
        assert (model <= high).all()
        assert curve.method == "bootstrap over groups"
    widths = [np.subtract(curve.high or 0, curve.low or 0).mean() for curve in (single, grouped)]
    assert widths[1] > 2 * widths[0]


def test_no_curve_without_both_kinds_and_no_band_of_one_group() -> None:
    assert decision_curve(np.zeros(3, bool), np.ones(3), np.arange(3)) is None
    assert decision_curve(np.ones(3, bool), np.ones(3), np.arange(3)) is None
    curve = decision_curve(MELANOMA, SCORE, np.zeros(10, int))
    assert curve is not None
    assert (curve.low, curve.high, curve.method) == (None, None, None)
    assert len(curve.model) == len(THRESHOLDS)


def test_predictive_values_by_bayes_computed_by_hand() -> None:
    """Sensitivity 90 of 100, specificity 160 of 200; of 10,000 images, 2% are melanoma."""
    melanoma = np.arange(300) < 100
    raised = np.concatenate([np.arange(100) < 90, np.arange(200) >= 160])
    values = predictive_values(melanoma, raised, np.arange(300), 0.02)
    # 200 melanomas, of which 180 are raised; 9,800 others, of which 1,960 are raised.
    assert values.ppv.value == pytest.approx(180 / (180 + 1960), abs=1e-12)
    assert values.npv.value == pytest.approx(7840 / (7840 + 20), abs=1e-12)
    assert values.alerts_per_1000.value == pytest.approx(214, abs=1e-9)
    assert values.missed_per_1000.value == pytest.approx(2, abs=1e-9)
    for estimate in vars(values).values():
        assert (estimate.low or 0) < (estimate.value or 0) < (estimate.high or 0)
    # At the set's own share they are what the set itself shows.
    at_share = predictive_values(melanoma, raised, np.arange(300), 1 / 3)
    assert at_share.ppv.value == pytest.approx(90 / 130, abs=1e-12)
    assert at_share.npv.value == pytest.approx(160 / 170, abs=1e-12)
    assert at_share.alerts_per_1000.value == pytest.approx(1000 * 130 / 300, abs=1e-9)


def test_predictive_values_that_do_not_exist() -> None:
    nothing = predictive_values(MELANOMA, np.zeros(10, bool), SINGLE, 0.1)
    assert nothing.ppv == UNDEFINED
    assert nothing.npv.value == pytest.approx(0.9)
    assert nothing.alerts_per_1000.value == 0
    assert predictive_values(np.zeros(10, bool), SCORE > 0.2, SINGLE, 0.1).npv.value is None
    # No image of 10 is missed, which does not say that none ever would be.
    perfect = predictive_values(MELANOMA, MELANOMA, SINGLE, 0.1)
    assert (perfect.ppv.value, perfect.ppv.high) == (1, 1)
    assert (perfect.ppv.low or 0) < 0.3


def test_intervals_of_predictive_values_hold_the_truth() -> None:
    sensitivity, specificity, prevalence = 0.85, 0.7, 0.02
    true_positives, false_positives = sensitivity * prevalence, (1 - specificity) * (1 - prevalence)
    truth = {
        "ppv": true_positives / (true_positives + false_positives),
        "npv": specificity * (1 - prevalence) / (specificity * (1 - prevalence) + (1 - sensitivity) * prevalence),
        "alerts_per_1000": 1000 * (true_positives + false_positives),
        "missed_per_1000": 1000 * prevalence * (1 - sensitivity),
    }
    held = dict.fromkeys(truth, 0)
    melanoma = np.arange(160) < 40
    for seed in range(300):
        rng = np.random.default_rng([3, seed])
        raised = rng.random(160) < np.where(melanoma, sensitivity, 1 - specificity)
        values = predictive_values(melanoma, raised, np.arange(160), prevalence)
        for name, estimate in vars(values).items():
            held[name] += (estimate.low or 0) <= truth[name] <= (estimate.high or 0)
    assert min(held.values()) >= binom.ppf(0.001, 300, 0.95)
