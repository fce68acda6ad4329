"""Two models on the same images: the differences of their figures, paired."""

from typing import Any

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
from melanoma.evaluation.metrics import FIGURES, ROC_FIGURES, figures_of, groups_of_each_side
from melanoma.evaluation.predictions import (
    check,
    class_probabilities,
    classes_of,
    floats,
    group_codes,
    is_melanoma,
    true_class,
)

_SHARES = ("sensitivity", "specificity", "accuracy")


def compare(
    predictions: pd.DataFrame, other: pd.DataFrame, seed: int = 0, resamples: int = RESAMPLES
) -> dict[str, dict[str, Any]]:
    """By figure: `this`, `other` (plain values) and `difference`, this less other, an Estimate.

    The two tables hold the same images in the same order; each model is taken at its own frozen threshold. A resample
    draws the same groups for both, so that what is hard for both does not widen the interval. Sensitivity, specificity
    and accuracy also have `only_this` and `only_other`, the number of images that one model alone gets right, and
    `p_value`, McNemar's exact test of whether these are as many; a group counts once, by which of the two has more
    in it. Where no image tells the models apart, the bootstrap sees no difference at all: the interval is then what
    the exact binomial leaves possible for the share of such images, and no more than a point for one and the same
    predictions.

    Raises ValueError where the tables differ in images or labels, or cannot be evaluated.
    """
    for table in (predictions, other):
        check(table)
    same = ("uri", "label", "group_id")
    if not all(predictions[column].tolist() == other[column].tolist() for column in same):
        raise ValueError("the two tables of predictions are not of the same images: predict the same split with both")
    melanoma = is_melanoma(predictions)
    group, n_groups = group_codes(predictions)
    this_right, other_right = _right(predictions), _right(other)
    statistics = figures_of(predictions), figures_of(other)

    def figures(weight: Floats) -> Floats:
        shares = [
            [
                np.average(right, weights=weight * part) if (weight * part).any() else np.nan
                for right, part in rights.values()
            ]
            for rights in (this_right, other_right)
        ]
        return np.stack([np.concatenate([s, f(weight)]) for s, f in zip(shares, statistics, strict=True)])

    values = figures(np.ones(len(melanoma)))
    # Infinite slopes have no difference.
    with np.errstate(invalid="ignore"):
        draws = bootstrap(lambda weight: np.subtract(*figures(weight)), group, seed, resamples)
        differences = np.subtract(*values)
    sides = groups_of_each_side(melanoma, group)
    needed = {
        **{name: len(np.unique(group[part])) for name, (_, part) in this_right.items()},
        **dict.fromkeys(FIGURES, n_groups),
        **dict.fromkeys(ROC_FIGURES, sides),
    }
    identical = predictions[_columns(predictions)].equals(other[_columns(predictions)])
    found: dict[str, dict[str, Any]] = {}
    for i, name in enumerate((*_SHARES, *FIGURES)):
        found[name] = {
            "this": _plain(values[0, i]),
            "other": _plain(values[1, i]),
            "difference": percentile_interval(float(differences[i]), draws[:, i], needed[name]),
        }
    for name, (right, part) in this_right.items():
        better, worse = (right & ~other_right[name][0])[part], (~right & other_right[name][0])[part]
        found[name] |= _discordant(better, worse, group[part])
        if not (better | worse).any() and not identical:
            found[name]["difference"] = _unseen(better, group[part])
    return found


def _columns(predictions: pd.DataFrame) -> list[str]:
    return [column for column in predictions.columns if column.startswith("p_")] + ["threshold"]


def _right(predictions: pd.DataFrame) -> dict[str, tuple[Bools, Bools]]:
    """By share: whether the model is right about each image [n], and which images count [n]."""
    melanoma = is_melanoma(predictions)
    raised = floats(predictions, "p_melanoma") >= floats(predictions, "threshold")
    classes = classes_of(predictions)
    answer = class_probabilities(predictions, classes).argmax(axis=1)
    return {
        "sensitivity": (raised, melanoma),
        "specificity": (~raised, ~melanoma),
        "accuracy": (answer == true_class(predictions, classes), np.ones(len(melanoma), dtype=bool)),
    }


def _discordant(better: Bools, worse: Bools, group: npt.NDArray[np.intp]) -> dict[str, Any]:
    net = np.bincount(group, weights=better.astype(float) - worse) if len(group) else np.zeros(0)
    ahead, behind = int((net > 0).sum()), int((net < 0).sum())
    p_value = float(binomtest(ahead, ahead + behind).pvalue) if ahead + behind else 1.0
    return {"only_this": int(better.sum()), "only_other": int(worse.sum()), "p_value": p_value}


def _unseen(apart: Bools, group: npt.NDArray[np.intp]) -> Estimate:
    share = proportion(apart, group)
    if share["high"] is None:
        return share
    method = EXACT if len(np.unique(group)) == len(group) else EXACT_CLUSTERED
    return Estimate(value=0.0, low=-share["high"], high=share["high"], method=method)


def _plain(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
