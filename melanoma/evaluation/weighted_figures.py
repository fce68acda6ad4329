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
from melanoma.evaluation.intervals import Bools, Floats
from melanoma.evaluation.predictions import class_probabilities, classes_of, floats, is_melanoma, true_class
from melanoma.evaluation.roc import (
    area_under_roc,
    partial_area_under_roc,
    roc_of_sorted,
    sensitivity_at_specificity,
    specificity_at_sensitivity,
    tie_ends,
)

# Figures that need both melanoma and something else.
ROC_FIGURES = (
    "melanoma_auc",
    "melanoma_pauc",
    "specificity_at_95_sensitivity",
    "sensitivity_at_95_specificity",
    "calibration_intercept",
    "calibration_slope",
)
FIGURES = ("balanced_accuracy", *ROC_FIGURES, "ece", "brier")


def weighted_figures(predictions: pd.DataFrame) -> Callable[[Floats], Floats]:
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
