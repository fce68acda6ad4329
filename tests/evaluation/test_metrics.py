import json
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy.special import softmax
from scipy.stats import binomtest
from sklearn.metrics import (
    accuracy_score,
    balanced_accuracy_score,
    brier_score_loss,
    confusion_matrix,
    roc_auc_score,
    roc_curve,
)

from melanoma.evaluation.calibration import bin_of, fit_temperature
from melanoma.evaluation.intervals import proportion
from melanoma.evaluation.metrics import compute_metrics, top_of_patient
from melanoma.evaluation.operating_point import choose_threshold, choose_threshold_by_specificity
from melanoma.evaluation.roc import area_under_roc, partial_area_under_roc, roc
from melanoma.taxonomy import CODES, codes_of

ESTIMATES = (
    "accuracy",
    "balanced_accuracy",
    "melanoma_auc",
    "melanoma_pauc",
    "sensitivity",
    "specificity",
    "specificity_at_95_sensitivity",
    "sensitivity_at_95_specificity",
    "calibration_intercept",
    "calibration_slope",
    "ece",
    "brier",
)
ROC_FIGURES = {name for name in ESTIMATES if name.startswith(("melanoma_", "calibration_")) or "_at_95_" in name}


def predict(labels: Sequence[str], seed: int = 0, skill: float = 1.5, threshold: float = 0.2) -> pd.DataFrame:
    """Predictions of a model that leans towards the right class; every image is a group of its own."""
    logits = np.random.default_rng(seed).normal(size=(len(labels), len(CODES)))
    for i, label in enumerate(labels):
        logits[i, [CODES.index(code) for code in codes_of(label)]] += skill
    probability = softmax(logits, axis=1).astype(np.float32)
    names = [f"image-{i:05}" for i in range(len(labels))]
    frame = pd.DataFrame({"uri": [f"s3://set/{name}.jpg" for name in names], "image_id": names, "group_id": names})
    frame["label"] = list(labels)
    frame[[f"p_{code}" for code in CODES]] = probability
    frame["p_melanoma"] = frame["p_MEL"]
    frame["threshold"] = threshold
    return frame


def measured(frame: pd.DataFrame, **settings: Any) -> dict[str, Any]:
    """What metrics.json says of a table."""
    return compute_metrics(frame, **settings).to_json()


def random_labels(n: int, among: Sequence[str] = CODES, seed: int = 0) -> list[str]:
    return [str(label) for label in np.random.default_rng(seed).choice(among, size=n)]


NINE = predict(random_labels(300))
NINE_METRICS = measured(NINE, resamples=200)
IS_MELANOMA = (NINE["label"] == "MEL").to_numpy()
SCORE = NINE["p_melanoma"].to_numpy(np.float64)


def test_values_agree_with_scikit_learn() -> None:
    answer = np.array(CODES)[NINE[[f"p_{code}" for code in CODES]].to_numpy().argmax(axis=1)]
    m = NINE_METRICS
    assert m["accuracy"]["value"] == pytest.approx(accuracy_score(NINE["label"], answer), abs=1e-9)
    assert m["balanced_accuracy"]["value"] == pytest.approx(balanced_accuracy_score(NINE["label"], answer), abs=1e-9)
    assert m["melanoma_auc"]["value"] == pytest.approx(roc_auc_score(IS_MELANOMA, SCORE), abs=1e-9)
    assert m["brier"]["value"] == pytest.approx(brier_score_loss(IS_MELANOMA, SCORE), abs=1e-9)
    assert m["confusion"] == confusion_matrix(NINE["label"], answer, labels=CODES).tolist()
    assert m["class_counts"] == NINE["label"].value_counts().to_dict()
    assert m["majority_class_accuracy"] == NINE["label"].value_counts().max() / 300
    assert (m["n"], m["n_melanoma"], m["n_groups"]) == (300, IS_MELANOMA.sum(), 300)


def test_partial_area_is_that_of_the_isic_2024_challenge() -> None:
    value = NINE_METRICS["melanoma_pauc"]["value"]
    # The challenge's own code: classes swapped, so that scikit-learn's limit on false positives is one on misses.
    v_gt, v_pred, max_fpr = abs(IS_MELANOMA.astype(int) - 1), -1 * SCORE, abs(1 - 0.8)
    partial_auc_scaled = roc_auc_score(v_gt, v_pred, max_fpr=max_fpr)
    partial_auc = 0.5 * max_fpr**2 + (max_fpr - 0.5 * max_fpr**2) / (1.0 - 0.5) * (partial_auc_scaled - 0.5)
    assert value == pytest.approx(partial_auc, abs=1e-9)
    # And the area itself, under the curve with the axes swapped.
    fpr, tpr, _ = roc_curve(IS_MELANOMA, SCORE, drop_intermediate=False)
    sensitivity = np.linspace(0.8, 1, 200_001)
    assert value == pytest.approx(np.trapezoid(1 - np.interp(sensitivity, tpr, fpr), sensitivity), abs=1e-4)


@pytest.mark.parametrize(("score", "area"), [([0.9, 0.8, 0.1, 0.2], 0.2), ([0.5] * 4, 0.02), ([0.1, 0.2, 0.9, 0.8], 0)])
def test_partial_area_of_perfect_random_and_reversed_order(score: list[float], area: float) -> None:
    assert partial_area_under_roc(*roc(np.array([1, 1, 0, 0], bool), np.array(score))) == pytest.approx(area, abs=1e-12)


def test_weighted_roc_agrees_with_scikit_learn_with_ties_and_absent_images() -> None:
    rng = np.random.default_rng(1)
    for _ in range(50):
        n = int(rng.integers(10, 80))
        positive = rng.random(n) < 0.4
        positive[:2] = True, False
        score = rng.integers(0, 6, size=n) / 5
        weight = rng.integers(0, 4, size=n).astype(float)
        weight[:2] = 1
        expected = roc_auc_score(positive, score, sample_weight=weight)
        assert area_under_roc(*roc(positive, score, weight)) == pytest.approx(expected, abs=1e-9)
        scaled = roc_auc_score(~positive, -score, sample_weight=weight, max_fpr=0.2)
        expected = 0.02 + 0.36 * (scaled - 0.5)
        assert partial_area_under_roc(*roc(positive, score, weight)) == pytest.approx(expected, abs=1e-9)


def test_operating_points() -> None:
    raised = SCORE >= 0.2
    assert NINE_METRICS["threshold"] == 0.2
    assert NINE_METRICS["sensitivity"]["value"] == raised[IS_MELANOMA].mean()
    assert NINE_METRICS["specificity"]["value"] == (~raised[~IS_MELANOMA]).mean()
    reached = [t for t in SCORE if (SCORE[IS_MELANOMA] >= t).mean() >= 0.95]
    best = max((SCORE[~IS_MELANOMA] < t).mean() for t in reached)
    assert NINE_METRICS["specificity_at_95_sensitivity"]["value"] == pytest.approx(best, abs=1e-12)
    reached = [t for t in SCORE if (SCORE[~IS_MELANOMA] < t).mean() >= 0.95]
    best = max((SCORE[IS_MELANOMA] >= t).mean() for t in reached)
    assert NINE_METRICS["sensitivity_at_95_specificity"]["value"] == pytest.approx(best, abs=1e-12)


def test_levels_and_prevalences() -> None:
    frame = NINE.assign(threshold_urgent=0.5)
    metrics = measured(frame, resamples=20, prevalence=0.05)
    assert metrics["urgent"]["sensitivity"]["value"] == (SCORE[IS_MELANOMA] >= 0.5).mean()
    assert metrics["urgent"]["specificity"]["value"] == (SCORE[~IS_MELANOMA] < 0.5).mean()
    of_set, *others = metrics["at_prevalence"]
    assert of_set["prevalence"] == IS_MELANOMA.mean()
    assert [row["prevalence"] for row in others] == [0.05, 0.02, 0.001]
    for level, threshold in (("review", 0.2), ("urgent", 0.5)):
        raised = threshold <= SCORE
        assert of_set[level]["ppv"]["value"] == pytest.approx(IS_MELANOMA[raised].mean(), abs=1e-9)
        assert of_set[level]["npv"]["value"] == pytest.approx((~IS_MELANOMA)[~raised].mean(), abs=1e-9)
        assert of_set[level]["alerts_per_1000"]["value"] == pytest.approx(1000 * raised.mean(), abs=1e-9)
    assert of_set["probability_at_threshold"] == pytest.approx(0.2)
    assert "urgent" not in NINE_METRICS["at_prevalence"][0]
    assert len(metrics["decision_curve"]["model"]) == 50


def test_a_separated_set_has_no_calibration_slope() -> None:
    frame = NINE.assign(p_melanoma=np.where(IS_MELANOMA, 0.9, 0.1) + SCORE / 100)
    metrics = measured(frame, resamples=20)
    assert metrics["melanoma_auc"]["value"] == 1
    assert metrics["calibration_slope"] == {"value": None, "low": None, "high": None, "method": None}
    json.dumps(metrics, allow_nan=False)


def test_melanomas_among_the_first_of_their_patient() -> None:
    patient = ["a"] * 4 + ["b"] * 2 + ["c"] + [None] * 3
    melanoma = np.array([1, 0, 0, 1, 0, 1, 1, 1, 0, 0], bool)
    score = np.array([0.9, 0.8, 0.3, 0.4, 0.7, 0.7, 0.1, 0.9, 0.1, 0.2])
    found = top_of_patient(melanoma, score, patient, np.arange(10))
    # Of the first: a has one melanoma there and one not, b's is level with another image. c has one image only.
    assert found["1"].estimate.value == pytest.approx(1 / 3)
    assert (found["1"].n_melanoma, found["1"].n_patients) == (3, 2)
    # Of the first three: those of a, ranks 1 and 3.
    assert found["3"].estimate.value == 1
    assert (found["3"].n_melanoma, found["3"].n_patients) == (2, 1)
    assert "15" not in found
    assert top_of_patient(melanoma, score, [None] * 10, np.arange(10)) == {}


def test_calibration_error_of_fifteen_bins() -> None:
    probability = NINE[[f"p_{code}" for code in CODES]].to_numpy(np.float64)
    right = np.array(CODES)[probability.argmax(axis=1)] == NINE["label"].to_numpy()
    confidence = probability.max(axis=1)
    expected = 0.0
    for low in np.arange(15) / 15:
        inside = (confidence > low) & (confidence <= low + 1 / 15)
        if inside.any():
            expected += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
    assert NINE_METRICS["ece"]["value"] == pytest.approx(expected, abs=1e-9)
    assert bin_of(np.array([0, 0.01, 0.2, 0.21, 0.4, 1])).tolist() == [0, 0, 2, 3, 5, 14]


@pytest.mark.parametrize(("hits", "n"), [(0, 7), (14, 16), (16, 16), (40, 118), (900, 1000)])
def test_proportion_of_single_images_is_clopper_pearson(hits: int, n: int) -> None:
    estimate = proportion(np.arange(n) < hits, np.arange(n))
    expected = binomtest(hits, n).proportion_ci(method="exact")
    assert estimate.value == hits / n
    assert estimate.low == pytest.approx(expected.low, abs=1e-9)
    assert estimate.high == pytest.approx(expected.high, abs=1e-9)
    assert estimate.method == "exact binomial"


def test_every_interval_holds_its_value_and_names_its_method() -> None:
    for estimate in [NINE_METRICS[name] for name in ESTIMATES] + list(NINE_METRICS["recall"].values()):
        assert estimate["low"] <= estimate["value"] <= estimate["high"]
        assert estimate["low"] < estimate["high"]
        assert estimate["method"] in ("exact binomial", "bootstrap over groups")


def five_copies(frame: pd.DataFrame) -> pd.DataFrame:
    copies = pd.concat([frame] * 5, ignore_index=True)
    copies["uri"] += [f"#{i}" for i in range(len(copies))]
    return copies


def test_any_malignancy_is_measured_where_it_is_asked() -> None:
    assert "malignancy" not in NINE_METRICS
    p = NINE[["p_BCC", "p_MEL", "p_SCC"]].sum(axis=1)
    malignant = NINE["label"].isin(["BCC", "MEL", "SCC"])
    asked = {"threshold_malignancy": 0.6, "threshold_malignancy_urgent": 0.8}
    found = compute_metrics(NINE.assign(p_malignant=p, **asked), resamples=20).to_json()
    assert {name: found[name] for name in ("sensitivity", "specificity")} == {
        name: NINE_METRICS[name] for name in ("sensitivity", "specificity")
    }
    for level, raised in {"review": p >= 0.6, "urgent": p >= 0.8, "either": (p >= 0.6) | (SCORE >= 0.2)}.items():
        assert found["malignancy"][level]["sensitivity"]["value"] == pytest.approx(raised[malignant].mean())
        assert found["malignancy"][level]["specificity"]["value"] == pytest.approx((~raised[~malignant]).mean())
    assert found["malignancy"]["alerts_per_1000_of_melanoma"] == pytest.approx(1000 * (SCORE >= 0.2).mean())


@pytest.mark.parametrize("threshold", [0.2, 0.0, 1.0])
def test_copies_in_one_group_add_no_certainty(threshold: float) -> None:
    frame = NINE.assign(threshold=threshold)
    single = measured(frame, resamples=200)
    copied = measured(five_copies(frame), resamples=200)
    assert copied["n"] == 5 * single["n"]
    assert copied["n_groups"] == single["n_groups"]
    for before, after in [(single[name], copied[name]) for name in ESTIMATES] + [
        (single["recall"][code], copied["recall"][code]) for code in CODES
    ]:
        assert after["value"] == pytest.approx(before["value"], abs=1e-9)
        assert after["low"] <= before["low"] + 1e-9
        assert after["high"] >= before["high"] - 1e-9


def test_copies_taken_for_independent_would_narrow_every_interval() -> None:
    copies = five_copies(NINE)
    grouped = measured(copies, resamples=200)
    pretended = measured(copies.assign(group_id=copies["uri"]), resamples=200)
    for name in set(ESTIMATES) - {"ece"}:
        width, pretended_width = (m[name]["high"] - m[name]["low"] for m in (grouped, pretended))
        assert pretended_width < 0.7 * width, name


def test_groups_that_disagree_within_themselves_cost_little() -> None:
    """Two photographs a lesion, right or wrong regardless of each other, are nearly two observations."""
    hits = np.random.default_rng(0).random(2000) < 0.8
    grouped, single = proportion(hits, np.arange(2000) // 2), proportion(hits, np.arange(2000))
    widths = [(e.high or 0) - (e.low or 0) for e in (grouped, single)]
    assert widths[0] == pytest.approx(widths[1], rel=0.1)
    assert grouped.method == "exact binomial over groups"


@pytest.mark.parametrize("hits", [[True] * 6, [False] * 6, [True, False] * 3])
def test_one_group_counts_as_one_image(hits: list[bool]) -> None:
    estimate = proportion(np.array(hits), np.zeros(6, int))
    assert estimate.value == np.mean(hits)
    assert estimate.low is not None
    assert estimate.high is not None
    assert estimate.high - estimate.low > 0.9


def test_groups_that_balance_themselves_are_no_more_than_their_images() -> None:
    hits = np.array([True, False] * 50)
    hits[:2] = True
    grouped, single = proportion(hits, np.arange(100) // 2), proportion(hits, np.arange(100))
    assert (grouped.low, grouped.high) == (single.low, single.high)


def test_few_groups_are_worth_less_than_as_many_images() -> None:
    hits = np.arange(10) < 5
    copies, single = proportion(np.repeat(hits, 5), np.repeat(np.arange(10), 5)), proportion(hits, np.arange(10))
    assert (copies.low or 0) < (single.low or 0) - 0.01
    assert (copies.high or 0) > (single.high or 0) + 0.01


def test_interval_of_a_small_calibration_error_holds_it() -> None:
    """Every resample of a perfectly calibrated set looks worse than the set."""
    tenths = np.repeat([6, 7, 8, 9], 50)
    frame = predict(np.where(np.arange(200) % 10 < tenths, "MEL", "NV").tolist())
    for code in CODES:
        frame[f"p_{code}"] = {"MEL": tenths / 10, "NV": 1 - tenths / 10}.get(code, 0.0)
    ece = measured(frame, resamples=100)["ece"]
    assert ece["value"] == pytest.approx(0, abs=1e-9)
    assert ece["low"] == ece["value"]
    assert ece["high"] > 0.03


def test_bootstrap_interval_is_that_of_resampling_the_table() -> None:
    frame = NINE.assign(group_id=[f"lesion-{i // 3}" for i in range(len(NINE))])
    rng = np.random.default_rng(5)
    areas = []
    for _ in range(400):
        drawn = (3 * rng.integers(100, size=100)[:, None] + np.arange(3)).ravel()
        areas.append(roc_auc_score(IS_MELANOMA[drawn], SCORE[drawn]))
    estimate = measured(frame)["melanoma_auc"]
    assert [estimate["low"], estimate["high"]] == pytest.approx(np.percentile(areas, [2.5, 97.5]), abs=0.02)


def test_result_depends_on_the_seed_and_on_neither_row_order_nor_storage() -> None:
    def plain(metrics: dict[str, object]) -> object:
        return json.loads(json.dumps(metrics), parse_float=lambda x: round(float(x), 9))

    frame = NINE.assign(group_id=[f"lesion-{i // 2}" for i in range(len(NINE))], p_melanoma=SCORE.round(1))
    metrics = measured(frame, resamples=50)
    assert plain(measured(frame.sample(frac=1, random_state=1), resamples=50)) == plain(metrics)
    assert plain(measured(frame.convert_dtypes(dtype_backend="pyarrow"), resamples=50)) == plain(metrics)
    assert measured(frame, seed=1, resamples=50)["brier"]["low"] != metrics["brier"]["low"]


def test_merged_labels_merge_probabilities_and_classes() -> None:
    labels = ["AK|SCC", "BCC", "BKL|SK", "DF", "MEL", "NV", "VASC"]
    frame = predict(random_labels(200, labels), skill=1.0)
    # Neither half is the best class by itself, but their sum is.
    frame.loc[0, "label"] = "AK|SCC"
    for code in CODES:
        frame.loc[0, f"p_{code}"] = {"AK": 0.3, "SCC": 0.3, "MEL": 0.4}.get(code, 0.0)
    metrics = measured(frame, resamples=50)
    assert metrics["classes"] == ["AK|SCC", "BCC", "DF", "MEL", "NV", "BKL|SK", "VASC"]
    assert list(metrics["recall"]) == metrics["classes"]
    merged = np.stack([sum(frame[f"p_{code}"] for code in codes_of(c)) for c in metrics["classes"]], axis=1)
    answer = np.array(metrics["classes"])[merged.argmax(axis=1)]
    assert answer[0] == "AK|SCC"
    assert metrics["accuracy"]["value"] == pytest.approx((answer == frame["label"]).mean(), abs=1e-9)
    expected = confusion_matrix(frame["label"], answer, labels=metrics["classes"])
    assert metrics["confusion"] == expected.tolist()


def test_a_label_within_a_merged_one_counts_for_it() -> None:
    metrics = measured(predict(["AK", "AK|SCC", "SCC", "NV"]), resamples=10)
    assert metrics["class_counts"]["AK|SCC"] == 3


def test_a_class_without_images_can_be_a_wrong_answer_but_has_no_recall() -> None:
    frame = predict(random_labels(60, ["MEL", "NV"]))
    frame.loc[0, [f"p_{code}" for code in CODES]] = [0, 0, 0, 0, 0, 0, 0, 0, 1.0]
    metrics = measured(frame, resamples=50)
    row = metrics["classes"].index(frame["label"][0])
    assert metrics["confusion"][row][CODES.index("VASC")] >= 1
    assert metrics["recall"]["VASC"] == {"value": None, "low": None, "high": None, "method": None}
    recalls = [metrics["recall"][code]["value"] for code in ("MEL", "NV")]
    assert metrics["balanced_accuracy"]["value"] == pytest.approx(np.mean(recalls))


@pytest.mark.parametrize(
    ("labels", "undefined"),
    [
        (["NV", "BCC"] * 10, {"sensitivity", *ROC_FIGURES}),
        (["MEL"] * 10, {"specificity", *ROC_FIGURES}),
        (["NV"], {"sensitivity", *ROC_FIGURES}),
    ],
)
def test_what_is_undefined_is_null(labels: list[str], undefined: set[str]) -> None:
    metrics = measured(predict(labels), resamples=50)
    assert {name for name in ESTIMATES if metrics[name]["value"] is None} == undefined
    for name in undefined:
        assert metrics[name] == {"value": None, "low": None, "high": None, "method": None}
    json.dumps(metrics, allow_nan=False)


def test_one_melanoma_gives_a_roc_curve_but_no_interval() -> None:
    auc = measured(predict(["MEL", *["NV"] * 20]), resamples=50)["melanoma_auc"]
    assert auc["value"] is not None
    assert (auc["low"], auc["high"], auc["method"]) == (None, None, None)


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (NINE.iloc[:0], "no predictions"),
        (NINE.assign(label="MEL|NV"), r"\(MEL\|NV\) leave open whether an image is melanoma"),
        (NINE.assign(p_NV=np.nan), "p_NV of image 'image-00000' is not a finite number"),
        (NINE.assign(threshold=np.linspace(0, 1, len(NINE))), "several thresholds"),
    ],
)
def test_a_table_that_cannot_be_evaluated_is_refused_in_words(broken: pd.DataFrame, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        measured(broken)


# --- thresholds ------------------------------------------------------------------------------------------------------


def rates(positive: np.ndarray, score: np.ndarray, threshold: float) -> tuple[float, float]:
    raised = score >= threshold
    return raised[positive].mean(), (~raised[~positive]).mean()


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("wanted", [0.01, 0.5, 0.55, 0.9, 0.95, 1.0])
def test_thresholds_are_the_best_that_reach_the_wanted_rate(seed: int, wanted: float) -> None:
    rng = np.random.default_rng(seed)
    score = (rng.integers(0, 12, size=40) / 11).astype(np.float32)  # many ties, 0 and 1 among them
    positive = np.arange(40) % 2 == 0
    candidates = np.append(np.unique(score), 2.0)
    reached = [rates(positive, score, t) for t in candidates]
    threshold = choose_threshold(positive, score, wanted)
    sensitivity, specificity = rates(positive, score, threshold)
    assert sensitivity >= wanted - 1e-9
    assert specificity == max(spec for sens, spec in reached if sens >= wanted - 1e-9)
    threshold = choose_threshold_by_specificity(positive, score, wanted)
    sensitivity, specificity = rates(positive, score, threshold)
    assert specificity >= wanted - 1e-9
    assert sensitivity == max(sens for sens, spec in reached if spec >= wanted - 1e-9)


def test_threshold_is_in_the_middle_between_scores() -> None:
    positive = np.array([True, True, False, False])
    score = np.array([0.75, 0.5, 0.25, 0.125])
    assert choose_threshold(positive, score, 1.0) == 0.375
    assert choose_threshold(positive, score, 0.5) == 0.625
    assert choose_threshold(positive, score[::-1], 1.0) == 0.0625
    assert choose_threshold_by_specificity(positive, score, 1.0) == 0.375
    assert choose_threshold_by_specificity(positive, score, 0.5) == 0.1875
    assert choose_threshold_by_specificity(positive, score[::-1], 1.0) == 0.875


def test_threshold_takes_no_more_melanomas_than_wanted_for_a_rounding_error() -> None:
    score = np.arange(1, 26) / 25
    assert math.ceil(0.56 * 25) == 15
    assert (score >= choose_threshold(np.ones(25, bool), score, 0.56)).sum() == 14


@pytest.mark.parametrize("low", [0.1, 0.3, 0.7, 1e-30])
def test_threshold_between_neighbouring_float32_scores_decides_alike_in_both_precisions(low: float) -> None:
    below = np.float32(low)
    above = np.nextafter(below, np.float32(1))
    score = np.array([above, below], dtype=np.float32)
    for threshold in (
        choose_threshold(np.array([True, False]), score, 1.0),
        choose_threshold_by_specificity(np.array([True, False]), score, 1.0),
    ):
        for raised in (score >= np.float32(threshold), score.astype(np.float64) >= np.float64(threshold)):
            assert raised.tolist() == [True, False]


def test_threshold_where_all_scores_are_equal() -> None:
    positive = np.array([True, False, False])
    for value in (0.0, 0.4, 1.0):
        score = np.full(3, value, dtype=np.float32)
        assert rates(positive, score, choose_threshold(positive, score, 0.95)) == (1, 0)
        assert rates(positive, score, choose_threshold_by_specificity(positive, score, 0.9)) == (0, 1)


def test_thresholds_refuse_what_cannot_be() -> None:
    score = np.array([0.1, 0.2])
    with pytest.raises(ValueError, match="there is no melanoma to choose a threshold on"):
        choose_threshold(np.array([False, False]), score, 0.95)
    with pytest.raises(ValueError, match="nothing but melanoma"):
        choose_threshold_by_specificity(np.array([True, True]), score, 0.95)
    for wanted in (0.0, 1.1, math.nan):
        with pytest.raises(ValueError, match="above 0 and at most 1"):
            choose_threshold(np.array([True, False]), score, wanted)
        with pytest.raises(ValueError, match="above 0 and at most 1"):
            choose_threshold_by_specificity(np.array([True, False]), score, wanted)


# --- temperature -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
@pytest.mark.parametrize("merged", [False, True])
def test_temperature_of_simulated_logits_is_recovered(temperature: float, merged: bool) -> None:
    rng = np.random.default_rng(2)
    logits = rng.normal(size=(8000, 9)) * 2
    cumulative = softmax(logits, axis=1).cumsum(axis=1)
    target = np.eye(9)[(rng.random((8000, 1)) > cumulative).sum(axis=1).clip(max=8)]
    if merged:  # where it is class 0 or 7, only "one of these" is known
        target[(target[:, [0, 7]] > 0).any(axis=1)] = np.eye(9)[[0, 7]].sum(axis=0)
    fitted = fit_temperature((logits * temperature).astype(np.float32), target.astype(np.float32))
    assert fitted == pytest.approx(temperature, rel=0.05)


def test_temperature_stays_in_its_range() -> None:
    right, wrong = np.array([[0.5, 0.0]]), np.array([[0.0, 0.5]])
    assert fit_temperature(right, np.array([[1.0, 0.0]])) == pytest.approx(0.05, rel=1e-3)
    assert fit_temperature(wrong, np.array([[1.0, 0.0]])) == pytest.approx(20, rel=1e-3)


@pytest.mark.parametrize(
    ("logits", "targets", "message"),
    [
        (np.zeros((0, 9)), np.zeros((0, 9)), "no images"),
        (np.full((1, 9), np.inf), np.ones((1, 9)), "logits of image 0 are not finite"),
        (np.zeros((2, 9)), np.eye(9)[[0, 0]] * [[1], [0]], "image 1 has no target class"),
    ],
)
def test_temperature_refuses_what_cannot_be_fitted(logits: np.ndarray, targets: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fit_temperature(logits, targets)
