import json
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy.stats import binom, binomtest, norm
from sklearn.metrics import roc_auc_score

from melanoma.evaluation import comparison
from melanoma.evaluation.metrics import to_json
from melanoma.taxonomy import CODES


def table(p_melanoma: np.ndarray, melanoma: np.ndarray, threshold: float = 0.5, images: int = 1) -> pd.DataFrame:
    """Predictions with these probabilities; `images` following each other are of one lesion."""
    n = len(p_melanoma)
    frame = pd.DataFrame({f"p_{code}": np.zeros(n) for code in CODES})
    frame["p_MEL"], frame["p_NV"], frame["p_melanoma"] = p_melanoma, 1 - p_melanoma, p_melanoma
    frame["threshold"], frame["label"] = threshold, np.where(melanoma, "MEL", "NV")
    frame["group_id"] = [f"lesion-{i // images}" for i in range(n)]
    frame["image_id"] = frame["uri"] = [f"image-{i}" for i in range(n)]
    return frame


def compare(first: pd.DataFrame, second: pd.DataFrame, resamples: int = 50) -> dict[str, dict[str, Any]]:
    """What metrics.json says of two tables."""
    return dict(to_json(comparison.compare(first, second, resamples=resamples)))


def two_models(seed: int, n: int = 150, gain: float = 0.3) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Melanoma, and the probabilities of two models that err alike; the first is better by `gain`."""
    rng = np.random.default_rng(seed)
    melanoma, shared = np.arange(n) % 3 == 0, rng.normal(size=n)
    first, second = (norm.cdf(m * melanoma - 0.5 + 0.8 * shared + 0.6 * rng.normal(size=n)) for m in (1 + gain, 1))
    return melanoma, first, second


def test_a_model_does_not_differ_from_itself() -> None:
    melanoma, first, _ = two_models(0)
    frame = table(first, melanoma)
    found = compare(frame, frame.copy(), resamples=50)
    for name, figure in found.items():
        assert figure["this"] == figure["other"], name
        difference = figure["difference"]
        assert (difference["value"], difference["low"], difference["high"]) == (0, 0, 0), name
        assert not np.signbit([difference["value"], difference["low"], difference["high"]]).any()
    assert found["sensitivity"]["p_value"] == 1
    json.dumps(found, allow_nan=False)


def delong(melanoma: np.ndarray, first: np.ndarray, second: np.ndarray) -> tuple[float, float]:
    """The difference of two areas under the curve and its standard error (DeLong et al. 1988), by its definition."""
    placements = []
    for score in (first, second):
        wins = (score[melanoma][:, None] > score[~melanoma]) + 0.5 * (score[melanoma][:, None] == score[~melanoma])
        placements.append((wins.mean(axis=1), wins.mean(axis=0)))
    variance = 0.0
    for side in (0, 1):
        difference = placements[0][side] - placements[1][side]
        variance += difference.var(ddof=1) / len(difference)
    return float(placements[0][0].mean() - placements[1][0].mean()), float(np.sqrt(variance))


@pytest.mark.parametrize("seed", range(3))
def test_interval_of_the_difference_of_areas_agrees_with_delong(seed: int) -> None:
    melanoma, first, second = two_models(seed, n=300)
    expected, error = delong(melanoma, first, second)
    difference = compare(table(first, melanoma), table(second, melanoma), resamples=600)["melanoma_auc"]["difference"]
    assert difference["value"] == pytest.approx(expected, abs=1e-9)
    assert expected == pytest.approx(roc_auc_score(melanoma, first) - roc_auc_score(melanoma, second), abs=1e-9)
    width = difference["high"] - difference["low"]
    assert width == pytest.approx(2 * 1.96 * error, rel=0.15)


def test_pairing_narrows_the_interval() -> None:
    melanoma, first, second = two_models(1, n=300)
    paired = compare(table(first, melanoma), table(second, melanoma), resamples=300)["melanoma_auc"]["difference"]
    # The same scores, but each second model errs on other images than the first.
    rng = np.random.default_rng(0)
    shuffled = second.copy()
    for side in (melanoma, ~melanoma):
        shuffled[side] = rng.permutation(second[side])
    apart = compare(table(first, melanoma), table(shuffled, melanoma), resamples=300)["melanoma_auc"]["difference"]
    assert apart["value"] == pytest.approx(paired["value"], abs=1e-9)
    assert paired["high"] - paired["low"] < 0.8 * (apart["high"] - apart["low"])


def test_each_model_is_taken_at_its_own_threshold_and_tested_by_mcnemar() -> None:
    melanoma, first, second = two_models(2)
    found = compare(table(first, melanoma, 0.4), table(second, melanoma, 0.7), resamples=100)
    raised, other = first >= 0.4, second >= 0.7
    assert found["sensitivity"]["this"] == pytest.approx(raised[melanoma].mean())
    assert found["sensitivity"]["other"] == pytest.approx(other[melanoma].mean())
    assert found["specificity"]["other"] == pytest.approx((~other[~melanoma]).mean())
    ahead, behind = (raised & ~other)[melanoma].sum(), (~raised & other)[melanoma].sum()
    assert (found["sensitivity"]["only_this"], found["sensitivity"]["only_other"]) == (ahead, behind)
    assert found["sensitivity"]["p_value"] == pytest.approx(binomtest(ahead, ahead + behind).pvalue)
    assert found["sensitivity"]["difference"]["value"] == pytest.approx((ahead - behind) / melanoma.sum())


def test_copies_of_images_are_no_further_evidence() -> None:
    melanoma, first, second = (np.repeat(values, 4) for values in two_models(3, n=60))
    single = compare(table(first[::4], melanoma[::4]), table(second[::4], melanoma[::4]), resamples=200)
    copied = compare(table(first, melanoma, images=4), table(second, melanoma, images=4), resamples=200)
    assert copied["sensitivity"]["p_value"] == single["sensitivity"]["p_value"]
    for end in ("low", "high"):
        expected = single["melanoma_auc"]["difference"][end]
        assert copied["melanoma_auc"]["difference"][end] == pytest.approx(expected, abs=1e-9)


def test_two_models_that_no_image_tells_apart_may_still_differ() -> None:
    melanoma = np.arange(40) < 10
    first, second = np.where(melanoma, 0.9, 0.1), np.where(melanoma, 0.8, 0.2)
    difference = compare(table(first, melanoma), table(second, melanoma), resamples=20)["sensitivity"]["difference"]
    # None of 10 melanomas is called otherwise: by the exact binomial, up to 31% of melanomas could be.
    assert difference["value"] == 0
    assert difference["high"] == -difference["low"] == pytest.approx(1 - 0.025**0.1, abs=1e-9)
    assert difference["method"] == "exact binomial"


@pytest.mark.slow
def test_interval_of_the_difference_holds_the_truth() -> None:
    truth = norm.cdf(1.3 / np.sqrt(2)) - norm.cdf(1 / np.sqrt(2))
    held = 0
    for seed in range(200):
        melanoma, first, second = two_models(1000 + seed, n=120)
        found = compare(table(first, melanoma), table(second, melanoma), resamples=150)
        difference = found["melanoma_auc"]["difference"]
        held += difference["low"] <= truth <= difference["high"]
    assert held >= binom.ppf(0.001, 200, 0.93)


def test_other_images_are_refused() -> None:
    melanoma, first, second = two_models(0)
    frame = table(first, melanoma)
    with pytest.raises(ValueError, match="not of the same images"):
        compare(frame, table(second, melanoma).iloc[::-1].reset_index(drop=True))
    with pytest.raises(ValueError, match="not of the same images"):
        compare(frame, table(second, ~melanoma))
