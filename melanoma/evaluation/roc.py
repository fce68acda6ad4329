"""The ROC curve of weighted images, and figures read off it."""

import math

import numpy as np

from melanoma.evaluation.intervals import Bools, Floats, Ints


def roc(positive: Bools, score: Floats, weight: Floats | None = None) -> tuple[Floats, Floats]:
    """False and true positive rates, both float64 [k], of ``score >= threshold``, from (0, 0) to (1, 1).

    The thresholds are the distinct scores in falling order. `weight` [n] is how often each image counts. NaN where a
    side has no weight.
    """
    order = np.argsort(-score, kind="stable")
    weight = np.ones(len(score)) if weight is None else weight
    return roc_of_sorted(positive[order], tie_ends(score[order]), weight[order])


def tie_ends(falling: Floats) -> Ints:
    """The last index of each run of equal scores: images of one score are raised together or not at all."""
    return np.append(np.flatnonzero(np.diff(falling)), len(falling) - 1)


def roc_of_sorted(positive: Bools, ends: Ints, weight: Floats) -> tuple[Floats, Floats]:
    """`roc` of images in falling order of score, where `ends` is `tie_ends` of the scores."""
    true_positives = np.concatenate([[0.0], np.cumsum(weight * positive)[ends]])
    false_positives = np.concatenate([[0.0], np.cumsum(weight * ~positive)[ends]])
    with np.errstate(invalid="ignore"):
        return false_positives / false_positives[-1], true_positives / true_positives[-1]


def area_under_roc(fpr: Floats, tpr: Floats) -> float:
    return float(np.trapezoid(tpr, fpr))


def partial_area_under_roc(fpr: Floats, tpr: Floats, min_tpr: float = 0.8) -> float:
    """The area between the ROC curve, the line of sensitivity `min_tpr` and the right edge: 0 to ``1 - min_tpr``."""
    if np.isnan(fpr[-1]) or np.isnan(tpr[-1]):
        return math.nan
    rising = tpr[1:] > np.maximum(tpr[:-1], min_tpr)
    t0, t1, f0, f1 = tpr[:-1][rising], tpr[1:][rising], fpr[:-1][rising], fpr[1:][rising]
    start = np.maximum(t0, min_tpr)
    f_start = f0 + (f1 - f0) * (start - t0) / (t1 - t0)
    return float(((t1 - start) * (1 - (f_start + f1) / 2)).sum())


def specificity_at_sensitivity(fpr: Floats, tpr: Floats, sensitivity: float) -> float:
    """The highest specificity of any threshold that reaches `sensitivity`."""
    if np.isnan(fpr[-1]) or np.isnan(tpr[-1]):
        return math.nan
    return float(1 - fpr[np.argmax(tpr >= sensitivity - 1e-9)])


def sensitivity_at_specificity(fpr: Floats, tpr: Floats, specificity: float) -> float:
    """The highest sensitivity of any threshold that reaches `specificity`."""
    if np.isnan(fpr[-1]) or np.isnan(tpr[-1]):
        return math.nan
    return float(tpr[np.searchsorted(fpr, 1 - specificity + 1e-9, side="right") - 1])
