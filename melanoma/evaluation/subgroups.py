"""Figures apart by what is known of the images and the patients."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd

from melanoma.evaluation.intervals import (
    RESAMPLES,
    UNDEFINED,
    Bools,
    Estimate,
    Floats,
    Ints,
    bootstrap,
    percentile_interval,
    proportion,
)
from melanoma.evaluation.predictions import (
    Side,
    floats,
    frozen_threshold,
    group_codes,
    malignant_side,
    melanoma_side,
    p_malignant,
    raised_as_malignant,
)
from melanoma.evaluation.roc import area_under_roc, roc_of_sorted, tie_ends
from melanoma.evaluation.weighted_figures import groups_of_each_side

UNKNOWN = "unknown"
DEFAULT_COLUMNS = ("source", "sex", "age", "anatomic_site")
MOST_VALUES = 50
_DISCRETE = 8  # at most this many different numbers are groups as they are


@dataclass(frozen=True)
class GroupCount:
    """How many images, melanomas and groups of images have one value of a column."""

    value: str
    n: int
    n_melanoma: int
    n_melanoma_unknown: int  # images whose label leaves open whether they are melanoma
    n_malignant: int
    n_groups: int


@dataclass(frozen=True)
class GroupFigures(GroupCount):
    """The figures of the images that have one value of a column, each of the images whose labels answer its question,
    see `melanoma.evaluation.metrics.Metrics`."""

    sensitivity: Estimate  # at the frozen threshold, as is specificity
    specificity: Estimate
    melanoma_auc: Estimate
    mean_p_melanoma: float | None  # a calibrated model has it within the interval of `share_of_melanoma`
    share_of_melanoma: Estimate
    malignant_auc: Estimate  # what is malignant against the rest
    # Of what is malignant, at the frozen threshold of that question, where the model asks it.
    malignancy_sensitivity: Estimate | None = None
    malignancy_specificity: Estimate | None = None


@dataclass(frozen=True)
class ColumnCounts:
    column: str
    groups: list[GroupCount]


@dataclass(frozen=True)
class ColumnFigures:
    column: str
    groups: list[GroupFigures]


def subgroups(
    predictions: pd.DataFrame, column: str, values: Sequence[Any], seed: int = 0, resamples: int = RESAMPLES
) -> ColumnFigures:
    """Figures of a table of predictions by the values that its images have in a column of the catalog.

    None and NaN are the group "unknown". Ages are in the groups under 30, 30 to 49, 50 to 69, 70 and over; other
    numbers of more than eight values in quarters of the known ones.

    Args:
        predictions: n rows, see `melanoma.evaluation.predictions`.
        column: The column's name.
        values: The value of each image [n].
        seed: Seed of the bootstrap.
        resamples: How often the bootstrap draws.

    Returns:
        The figures of each value of the column.

    Raises:
        ValueError: There are more than 50 values.
    """
    names, in_order = binned(column, values)
    if len(in_order) > MOST_VALUES:
        raise ValueError(f"the column {column!r} has {len(in_order)} values: choose one with at most {MOST_VALUES}")
    name_of_image = np.array(names, dtype=object)
    found = [_figures(predictions, name, name_of_image == name, seed, resamples) for name in in_order]
    return ColumnFigures(column, found)


def _figures(predictions: pd.DataFrame, name: str, chosen: Bools, seed: int, resamples: int) -> GroupFigures:
    predictions = predictions[chosen]
    melanoma, score = melanoma_side(predictions), floats(predictions, "p_melanoma")
    group, _ = group_codes(predictions)
    sensitivity = specificity = UNDEFINED
    if (threshold := frozen_threshold(predictions)) is not None:
        raised = score >= threshold
        sensitivity = proportion(raised[melanoma.yes], group[melanoma.yes])
        specificity = proportion(~raised[melanoma.no], group[melanoma.no])
    malignant, of_malignancy = malignant_side(predictions), None
    if (found := raised_as_malignant(predictions).get("review")) is not None:
        of_malignancy = (
            proportion(found[malignant.yes], group[malignant.yes]),
            proportion(~found[malignant.no], group[malignant.no]),
        )
    known = melanoma.known
    return GroupFigures(
        **asdict(_count(name, predictions)),
        sensitivity=sensitivity,
        specificity=specificity,
        melanoma_auc=auc(melanoma, score, group, seed, resamples),
        mean_p_melanoma=float(score[known].mean()) if known.any() else None,
        share_of_melanoma=proportion(melanoma.yes[known], group[known]),
        malignant_auc=auc(malignant, p_malignant(predictions), group, seed, resamples),
        malignancy_sensitivity=of_malignancy[0] if of_malignancy else None,
        malignancy_specificity=of_malignancy[1] if of_malignancy else None,
    )


def auc(side: Side, score: Floats, group: Ints, seed: int, resamples: int = RESAMPLES) -> Estimate:
    """The area under the ROC curve of the images whose side is known, with its interval.

    Args:
        side: Which images are positive.
        score: float [n], the higher the likelier.
        group: int [n], which images belong together.
        seed: Seed of the bootstrap.
        resamples: How often the bootstrap draws.

    Returns:
        The area, undefined without images of both sides.
    """
    rows = np.flatnonzero(side.known)
    rows = rows[np.argsort(-score[rows], kind="stable")]
    if not len(rows):
        return UNDEFINED
    positive, ends = side.yes[rows], tie_ends(score[rows])

    def area(weight: Floats) -> Floats:
        return np.array([area_under_roc(*roc_of_sorted(positive, ends, weight))])

    smaller_side = groups_of_each_side(side, group)
    value = float(area(np.ones(len(rows)))[0])
    draws = bootstrap(area, group[rows], seed, resamples)[:, 0] if smaller_side > 1 else np.empty(0)
    return percentile_interval(value, draws, smaller_side)


def counts(predictions: pd.DataFrame, column: str, values: Sequence[Any]) -> ColumnCounts:
    """How many images, melanomas and groups have each of the `values` [n] of a `column`, as `subgroups` groups them."""
    names, in_order = binned(column, values)
    name_of_image = np.array(names, dtype=object)
    return ColumnCounts(column, [_count(name, predictions[name_of_image == name]) for name in in_order])


def _count(name: str, predictions: pd.DataFrame) -> GroupCount:
    melanoma = melanoma_side(predictions)
    return GroupCount(
        value=name,
        n=len(predictions),
        n_melanoma=int(melanoma.yes.sum()),
        n_melanoma_unknown=int((~melanoma.known).sum()),
        n_malignant=int(malignant_side(predictions).yes.sum()),
        n_groups=predictions["group_id"].nunique(),
    )


def binned(column: str, values: Sequence[Any]) -> tuple[list[str], list[str]]:
    """The name of the group that each value falls in, and the names in their order, "unknown" last."""
    known = [value for value in values if not _missing(value)]
    edges: list[float] = []
    if not all(isinstance(value, int | float | np.number) and not isinstance(value, bool) for value in known):
        by_value = {value: str(value) for value in sorted(set(known), key=lambda v: (v == UNKNOWN, str(v)))}
    elif column == "age":
        edges, names = [30, 50, 70], ["under 30", "30 to 49", "50 to 69", "70 and over"]
    elif len(set(known)) > _DISCRETE:
        edges = sorted(set(np.quantile(np.array(known, dtype=np.float64), [0.25, 0.5, 0.75]).tolist()))
        between = [f"{_number(low)} to under {_number(high)}" for low, high in pairwise(edges)]
        names = [f"under {_number(edges[0])}", *between, f"{_number(edges[-1])} and over"]
    else:
        by_value = {value: f"{value:g}" for value in sorted(set(known))}
    if edges:
        by_value = {value: names[int(np.searchsorted(edges, value, side="right"))] for value in sorted(set(known))}
    found = [UNKNOWN if _missing(value) else by_value[value] for value in values]
    return found, [name for name in dict.fromkeys([*by_value.values(), UNKNOWN]) if name in set(found)]


def _number(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def _missing(value: Any) -> bool:
    return value is None or (isinstance(value, float | np.floating) and bool(np.isnan(value)))
