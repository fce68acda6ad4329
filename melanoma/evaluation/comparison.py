"""Two models on the same images: the differences of their figures, paired."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.stats import binomtest

from melanoma.evaluation.intervals import (
    EXACT,
    EXACT_CLUSTERED,
    RESAMPLES,
    Bools,
    Estimate,
    Floats,
    bootstrap,
    percentile_interval,
    proportion,
)
from melanoma.evaluation.predictions import (
    check_measurable,
    class_probabilities,
    classes_of,
    floats,
    frozen_threshold,
    group_codes,
    malignant_side,
    melanoma_side,
    most_probable,
    true_class,
)
from melanoma.evaluation.weighted_figures import FIGURES, groups_needed, weighted_figures

_SHARES = ("sensitivity", "specificity", "accuracy", "malignant_sensitivity", "malignant_specificity")


@dataclass(frozen=True)
class FigureComparison:
    """One figure of two models on the same images.

    The last three are those of shares (sensitivity, specificity, accuracy and their like) and None for other figures.
    """

    this: float | None
    other: float | None
    difference: Estimate  # this less other
    only_this: int | None = None  # images that this model alone gets right
    only_other: int | None = None
    p_value: float | None = None  # McNemar's exact test of whether these are as many; a group counts once


@dataclass(frozen=True)
class Comparison:
    """A model against another on the same images; `figures` by their name in metrics.json."""

    model_version: str  # of the other model, as all that follows
    threshold: float
    leak_warning: str | None
    figures: dict[str, FigureComparison]


def compare(
    predictions: pd.DataFrame, other: pd.DataFrame, seed: int = 0, resamples: int = RESAMPLES
) -> dict[str, FigureComparison]:
    """The figures of two models on the same images, by name, each model at its own frozen threshold.

    A resample draws the same groups for both, so that what is hard for both does not widen the interval. A group counts
    once in McNemar's test, for the model that gets more of its images right. Where no image tells the models apart, the
    bootstrap sees no difference at all: the interval is then what the exact binomial leaves possible for the share of
    such images, and no more than a point for one and the same predictions.

    Args:
        predictions: n rows, see `melanoma.evaluation.predictions`.
        other: The other model's, with the same images in the same order.
        seed: Seed of the bootstrap.
        resamples: How often the bootstrap draws.

    Returns:
        A comparison for each figure, by its name.

    Raises:
        ValueError: The tables differ in images or labels, or cannot be measured.
    """
    for table in (predictions, other):
        check_measurable(table)
    same = ("uri", "label", "group_id")
    if not all(predictions[column].tolist() == other[column].tolist() for column in same):
        raise ValueError("the two tables of predictions are not of the same images: predict the same split with both")
    group, _ = group_codes(predictions)
    this_right, other_right = _right(predictions), _right(other)
    this_figures, other_figures = _all_figures(predictions), _all_figures(other)

    def figures(weight: Floats) -> Floats:
        return np.stack([this_figures(weight), other_figures(weight)])

    values = figures(np.ones(len(predictions)))
    # Infinite slopes have no difference.
    with np.errstate(invalid="ignore"):
        draws = bootstrap(lambda weight: np.subtract(*figures(weight)), group, seed, resamples)
        differences = np.subtract(*values)
    needed = {
        **{name: len(np.unique(group[part])) for name, (_, part) in this_right.items()},
        **groups_needed(predictions),
    }
    found = {
        name: FigureComparison(
            _finite_or_none(values[0, i]),
            _finite_or_none(values[1, i]),
            percentile_interval(float(differences[i]), draws[:, i], needed[name]),
        )
        for i, name in enumerate((*_SHARES, *FIGURES))
    }
    identical = predictions[_columns(predictions)].equals(other[_columns(predictions)])
    for name, (right, part) in this_right.items():
        better, worse = (right & ~other_right[name][0])[part], (~right & other_right[name][0])[part]
        found[name] = _with_discordant(found[name], better, worse, group[part], identical)
    return found


def _columns(predictions: pd.DataFrame) -> list[str]:
    return [column for column in predictions.columns if column.startswith("p_")] + ["threshold"]


def _all_figures(predictions: pd.DataFrame) -> Callable[[Floats], Floats]:
    """The figures `_SHARES` and `FIGURES` as a function of image weights [n]."""
    rights, further = _right(predictions), weighted_figures(predictions)

    def figures(weight: Floats) -> Floats:
        shares = [
            np.average(right, weights=weight * part) if (weight * part).any() else np.nan
            for right, part in rights.values()
        ]
        return np.concatenate([shares, further(weight)])

    return figures


def _right(predictions: pd.DataFrame) -> dict[str, tuple[Bools, Bools]]:
    """By share: whether the model is right about each image [n], and which images count [n]."""
    melanoma, malignant = melanoma_side(predictions), malignant_side(predictions)
    raised = floats(predictions, "p_melanoma") >= floats(predictions, "threshold")
    has_threshold = frozen_threshold(predictions) is not None
    classes = classes_of(predictions)
    truth = true_class(predictions, classes)
    answer, _ = most_probable(class_probabilities(predictions, classes))
    return {
        "sensitivity": (raised, melanoma.yes & has_threshold),
        "specificity": (~raised, melanoma.no & has_threshold),
        "accuracy": (answer == truth, truth >= 0),
        "malignant_sensitivity": (raised, malignant.yes & has_threshold),
        "malignant_specificity": (~raised, malignant.no & has_threshold),
    }


def _with_discordant(
    figure: FigureComparison, better: Bools, worse: Bools, group: npt.NDArray[np.intp], identical: bool
) -> FigureComparison:
    """The figure with the images that one model alone gets right, `better` and `worse` [n], and the test of them."""
    net = np.bincount(group, weights=better.astype(float) - worse) if len(group) else np.zeros(0)
    ahead, behind = int((net > 0).sum()), int((net < 0).sum())
    return dataclasses.replace(
        figure,
        difference=figure.difference if (better | worse).any() or identical else _unseen(better, group),
        only_this=int(better.sum()),
        only_other=int(worse.sum()),
        p_value=float(binomtest(ahead, ahead + behind).pvalue) if ahead + behind else 1.0,
    )


def _unseen(apart: Bools, group: npt.NDArray[np.intp]) -> Estimate:
    share = proportion(apart, group)
    if share.high is None:
        return share
    method = EXACT if len(np.unique(group)) == len(group) else EXACT_CLUSTERED
    return Estimate(value=0.0, low=-share.high, high=share.high, method=method)


def _finite_or_none(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
