"""Figures of merit with 95% intervals from a table of predictions: the contents of metrics.json.

How the intervals are made is said in `melanoma.evaluation.intervals`.
"""

import math
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from melanoma.evaluation.calibration import (
    CALIBRATION_BINS,
    at_prevalence,
    bin_of,
    calibration_intercept,
    calibration_slope,
    log_odds,
)
from melanoma.evaluation.decision import PREVALENCES, decision_curve, predictive_values
from melanoma.evaluation.intervals import RESAMPLES, Bools, Floats, Ints, bootstrap, percentile_interval, proportion
from melanoma.evaluation.predictions import (
    check,
    class_probabilities,
    classes_of,
    floats,
    group_codes,
    is_melanoma,
    true_class,
)
from melanoma.evaluation.roc import (
    area_under_roc,
    partial_area_under_roc,
    roc_of_sorted,
    sensitivity_at_specificity,
    specificity_at_sensitivity,
    tie_ends,
)

# Figures that take both melanoma and something else.
ROC_FIGURES = (
    "melanoma_auc",
    "melanoma_pauc",
    "specificity_at_95_sensitivity",
    "sensitivity_at_95_specificity",
    "calibration_intercept",
    "calibration_slope",
)
FIGURES = ("balanced_accuracy", *ROC_FIGURES, "ece", "brier")
TOP = (1, 3, 15)  # of `top_of_patient`; 15 is that of the ISIC 2024 challenge


def compute_metrics(
    predictions: pd.DataFrame, seed: int = 0, resamples: int = RESAMPLES, prevalence: float | None = None
) -> dict[str, Any]:
    """The contents of metrics.json: plain Python values without NaN, ready for strict JSON.

    `predictions`: see `melanoma.evaluation.predictions`. `prevalence`: a share of melanoma to show alerts and
    predictive values at, beside the set's own and those of `decision.PREVALENCES`.

    Estimates, each ``{"value", "low", "high", "method"}``:

    - `accuracy`, `recall` (by class), `balanced_accuracy` (mean recall of the classes that have images). The answer is
      the class of the highest probability, the first one on a tie; a class that has no image of its own can still be a
      wrong answer.
    - `sensitivity`, `specificity`: of ``p_melanoma >= threshold``, melanoma against the rest; `urgent`, the two at the
      urgent alert level, where the predictions have one.
    - `melanoma_auc`, and `melanoma_pauc`: the area under the ROC curve, and that above 80% sensitivity as in the ISIC
      2024 challenge, 0 to 0.2, 0.02 for a random order.
    - `specificity_at_95_sensitivity`, `sensitivity_at_95_specificity`: the best on this set's own ROC curve. They are
      optimistic, because their threshold is chosen on the very images it is measured on.
    - `calibration_intercept`, `calibration_slope` of the melanoma probability: see `melanoma.evaluation.calibration`;
      0 and 1 are right.
    - `ece`: expected calibration error of the answer's probability, 15 bins of equal width (Guo et al. 2017).
    - `brier`: mean of ``(p_melanoma - melanoma)**2``.

    Also `n`, `n_melanoma`, `n_groups`, `classes`, `class_counts`, `threshold`, `majority_class_accuracy`, `confusion`
    (rows: true class, columns: answer, both in the order of `classes`), `bootstrap` (resamples and seed),
    `at_prevalence` (see `decision.predictive_values`, by alert level) and `decision_curve` (see there).

    An interval by bootstrap leaves out resamples in which the figure is undefined, and is widened to the value where it
    does not hold it: the calibration error of a resample is biased upwards. With fewer than two groups of melanoma, or
    of anything else, a ROC figure has no interval; with fewer than two groups in all, no bootstrap figure has one.

    Raises ValueError for an empty table, a label that leaves open whether it is melanoma, a probability or threshold
    that is not finite, and several thresholds.
    """
    check(predictions)
    # In falling order of score: the sums, and so the last digits, do not depend on the order of the rows.
    predictions = predictions.iloc[np.argsort(-floats(predictions, "p_melanoma"), kind="stable")]
    n = len(predictions)
    score = floats(predictions, "p_melanoma")
    melanoma = is_melanoma(predictions)
    threshold = float(predictions["threshold"].iloc[0])
    group, n_groups = group_codes(predictions)
    classes = classes_of(predictions)
    truth = true_class(predictions, classes)
    answer = class_probabilities(predictions, classes).argmax(axis=1)
    right = answer == truth
    raised = score >= threshold
    counts = np.bincount(truth, minlength=len(classes))
    confusion = np.zeros((len(classes), len(classes)), dtype=int)
    np.add.at(confusion, (truth, answer), 1)

    statistic = figures_of(predictions)
    draws = bootstrap(statistic, group, seed, resamples)
    needed = dict.fromkeys(FIGURES, n_groups) | dict.fromkeys(ROC_FIGURES, groups_of_each_side(melanoma, group))
    estimates = {
        name: percentile_interval(value, draws[:, i], needed[name])
        for i, (name, value) in enumerate(zip(FIGURES, statistic(np.ones(n)), strict=True))
    }
    levels = {"review": raised}
    if "alert_level" in predictions:
        levels["urgent"] = (predictions["alert_level"] == "urgent").to_numpy(dtype=bool)
    return {
        "n": n,
        "n_melanoma": int(melanoma.sum()),
        "n_groups": n_groups,
        "classes": list(classes),
        "class_counts": dict(zip(classes, counts.tolist(), strict=True)),
        "threshold": threshold,
        "majority_class_accuracy": counts.max().item() / n,
        "accuracy": proportion(right, group),
        "sensitivity": proportion(raised[melanoma], group[melanoma]),
        "specificity": proportion(~raised[~melanoma], group[~melanoma]),
        **estimates,
        **{
            level: {
                "sensitivity": proportion(at_level[melanoma], group[melanoma]),
                "specificity": proportion(~at_level[~melanoma], group[~melanoma]),
            }
            for level, at_level in levels.items()
            if level != "review"
        },
        "recall": {c: proportion(right[truth == i], group[truth == i]) for i, c in enumerate(classes)},
        "confusion": confusion.tolist(),
        "at_prevalence": _at_prevalences(melanoma, levels, group, threshold, prevalence),
        "decision_curve": decision_curve(melanoma, score, group, seed, resamples),
        "bootstrap": {"resamples": resamples, "seed": seed},
    }


def figures_of(predictions: pd.DataFrame) -> Callable[[Floats], Floats]:
    """The figures `FIGURES` of a table of predictions as a function of image weights [n], in the order of its rows."""
    classes = classes_of(predictions)
    truth = true_class(predictions, classes)
    probability = class_probabilities(predictions, classes)
    right = probability.argmax(axis=1) == truth
    confidence = probability.max(axis=1)
    calibration_bin = bin_of(confidence)
    score = floats(predictions, "p_melanoma")
    melanoma = is_melanoma(predictions)
    odds = log_odds(score)
    # Sorted once, so that the ROC curve of a resample needs no sorting of its own.
    falling = np.argsort(-score, kind="stable")
    melanoma_sorted, ends = melanoma[falling], tie_ends(score[falling])

    def figures(weight: Floats) -> Floats:
        fpr, tpr = roc_of_sorted(melanoma_sorted, ends, weight[falling])
        present = np.bincount(truth, weights=weight)
        recalls = np.bincount(truth, weights=weight * right)[present > 0] / present[present > 0]
        gaps = np.bincount(calibration_bin, weights=weight * (right - confidence), minlength=CALIBRATION_BINS)
        total = weight.sum()
        return np.array(
            [
                recalls.mean(),
                area_under_roc(fpr, tpr),
                partial_area_under_roc(fpr, tpr),
                specificity_at_sensitivity(fpr, tpr, 0.95),
                sensitivity_at_specificity(fpr, tpr, 0.95),
                calibration_intercept(melanoma, odds, weight),
                calibration_slope(melanoma, odds, weight),
                np.abs(gaps).sum() / total,
                (weight * (score - melanoma) ** 2).sum() / total,
            ]
        )

    return figures


def groups_of_each_side(melanoma: Bools, group: npt.NDArray[Any]) -> int:
    """The number of groups with melanoma or that of groups with anything else, whichever is smaller."""
    return min(len(np.unique(group[melanoma])), len(np.unique(group[~melanoma])))


def _at_prevalences(
    melanoma: Bools, levels: dict[str, Bools], group: Ints, threshold: float, stated: float | None
) -> list[dict[str, Any]]:
    own = float(melanoma.mean())
    if own in (0.0, 1.0):
        return []
    wanted = [("of this set", own), *([("as stated", stated)] if stated else []), *(("", p) for p in PREVALENCES)]
    return [
        {
            "prevalence": prevalence,
            "note": note,
            "probability_at_threshold": at_prevalence(threshold, own, prevalence),
            **{level: predictive_values(melanoma, raised, group, prevalence) for level, raised in levels.items()},
        }
        for note, prevalence in wanted
    ]


def top_of_patient(
    melanoma: Bools, score: Floats, patient: Iterable[str | None], group: npt.NDArray[Any]
) -> dict[str, dict[str, Any]]:
    """By k of `TOP`: the share of melanomas among the k highest scores of their own patient ("top-k retrieval").

    Only melanomas of patients with more than k images count, as with fewer there is nothing to find; ranks of equal
    scores count as the last of them. Each has `estimate`, `n_melanoma` and `n_patients`; a k without melanomas is left
    out, and so is all where no patient is known.
    """
    codes, patients = pd.factorize(np.array(list(patient), dtype=object))
    size = np.bincount(codes[codes >= 0], minlength=len(patients))
    rank = np.full(len(codes), math.inf)
    for code in np.unique(codes[melanoma & (codes >= 0)]):
        own = np.flatnonzero(codes == code)
        rank[own] = (score[own] >= score[own][:, None]).sum(axis=1)
    found = {}
    for k in TOP:
        counted = melanoma & (codes >= 0)
        counted[counted] = size[codes[counted]] > k
        if counted.any():
            found[str(k)] = {
                "estimate": proportion(rank[counted] <= k, group[counted]),
                "n_melanoma": int(counted.sum()),
                "n_patients": len(np.unique(codes[counted])),
            }
    return found
