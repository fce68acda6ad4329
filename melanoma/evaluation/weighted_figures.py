"""The figures that have no exact interval, as functions of image weights: what the bootstrap resamples."""

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from melanoma.evaluation.calibration import (
    CALIBRATION_BINS,
    bin_of,
    calibration_intercept,
    calibration_slope,
    log_odds,
)
from melanoma.evaluation.intervals import Floats
from melanoma.evaluation.predictions import (
    Side,
    class_probabilities,
    classes_of,
    floats,
    group_codes,
    malignant_side,
    melanoma_side,
    most_probable,
    p_malignant,
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

# Of the classes, of melanoma against the rest, and of what is malignant against the rest. A label that leaves the
# question open takes its image out of the figure.
_CLASS_FIGURES = ("balanced_accuracy", "ece")
_MELANOMA_ROC_FIGURES = (
    "melanoma_auc",
    "melanoma_pauc",
    "specificity_at_95_sensitivity",
    "sensitivity_at_95_specificity",
    "calibration_intercept",
    "calibration_slope",
)
_MALIGNANT_ROC_FIGURES = ("malignant_auc", "malignant_pauc")
FIGURES = ("balanced_accuracy", *_MELANOMA_ROC_FIGURES, "ece", "brier", *_MALIGNANT_ROC_FIGURES)


def weighted_figures(predictions: pd.DataFrame) -> Callable[[Floats], Floats]:
    """The figures `FIGURES` of a table of predictions as a function of image weights [n], in the order of its rows."""
    classes = classes_of(predictions)
    truth = true_class(predictions, classes)
    classed = truth >= 0
    truth, probability = truth[classed], class_probabilities(predictions, classes)[classed]
    answer, confidence = most_probable(probability)
    right = answer == truth
    calibration_bin = bin_of(confidence)
    score = floats(predictions, "p_melanoma")
    melanoma, odds = melanoma_side(predictions), log_odds(score)
    melanoma_roc = _roc_by_weight(melanoma, score)
    malignant_roc = _roc_by_weight(malignant_side(predictions), p_malignant(predictions))

    def figures(weight: Floats) -> Floats:
        of_melanoma, of_classed = weight * melanoma.known, weight[classed]
        fpr, tpr = melanoma_roc(weight)
        malignant_fpr, malignant_tpr = malignant_roc(weight)
        present = np.bincount(truth, weights=of_classed)
        recalls = np.bincount(truth, weights=of_classed * right)[present > 0] / present[present > 0]
        gaps = np.bincount(calibration_bin, weights=of_classed * (right - confidence), minlength=CALIBRATION_BINS)
        return np.array(
            [
                recalls.mean() if len(recalls) else np.nan,
                area_under_roc(fpr, tpr),
                partial_area_under_roc(fpr, tpr),
                specificity_at_sensitivity(fpr, tpr, 0.95),
                sensitivity_at_specificity(fpr, tpr, 0.95),
                calibration_intercept(melanoma.yes, odds, of_melanoma),
                calibration_slope(melanoma.yes, odds, of_melanoma),
                _share(np.abs(gaps).sum(), of_classed.sum()),
                _share((of_melanoma * (score - melanoma.yes) ** 2).sum(), of_melanoma.sum()),
                area_under_roc(malignant_fpr, malignant_tpr),
                partial_area_under_roc(malignant_fpr, malignant_tpr),
            ]
        )

    return figures


def _roc_by_weight(side: Side, score: Floats) -> Callable[[Floats], tuple[Floats, Floats]]:
    """The ROC curve as a function of image weights [n]. Sorted once: that of a resample needs no sorting of its own."""
    falling = np.argsort(-score, kind="stable")
    positive, known, ends = side.yes[falling], side.known[falling], tie_ends(score[falling])
    return lambda weight: roc_of_sorted(positive, ends, weight[falling] * known)


def _share(part: float, whole: float) -> float:
    return part / whole if whole > 0 else np.nan


def groups_needed(predictions: pd.DataFrame) -> dict[str, int]:
    """By figure: how many groups there are to draw, of the rarer side where the figure has two."""
    group, _ = group_codes(predictions)
    melanoma, malignant = melanoma_side(predictions), malignant_side(predictions)
    classed = true_class(predictions, classes_of(predictions)) >= 0
    return {
        **dict.fromkeys(_CLASS_FIGURES, len(np.unique(group[classed]))),
        **dict.fromkeys(_MELANOMA_ROC_FIGURES, groups_of_each_side(melanoma, group)),
        **dict.fromkeys(_MALIGNANT_ROC_FIGURES, groups_of_each_side(malignant, group)),
        "brier": len(np.unique(group[melanoma.known])),
    }


def groups_of_each_side(side: Side, group: npt.NDArray[Any]) -> int:
    """The number of groups with images of the one side or of those with images of the other, whichever is smaller."""
    return min(len(np.unique(group[side.yes])), len(np.unique(group[side.no])))
