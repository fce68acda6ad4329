"""Figures apart by what is known of the images and the patients."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd

from melanoma.evaluation.intervals import RESAMPLES, Bools, Floats, Ints, bootstrap, percentile_interval, proportion
from melanoma.evaluation.metrics import groups_of_each_side
from melanoma.evaluation.predictions import floats, group_codes, is_melanoma
from melanoma.evaluation.roc import area_under_roc, roc_of_sorted, tie_ends

UNKNOWN = "unknown"
DEFAULT_COLUMNS = ("source", "sex", "age", "anatomic_site")
MOST_VALUES = 50
_DISCRETE = 8  # so many different numbers are groups as they are


def subgroups(
    predictions: pd.DataFrame, column: str, values: Sequence[Any], seed: int = 0, resamples: int = RESAMPLES
) -> dict[str, Any]:
    """Figures of a table of predictions by the `values` [n] that its images have in a `column` of the catalog.

    ``{"column", "groups": [...]}``; each group has its `value` as text, the counts `n`, `n_melanoma` and `n_groups`,
    the estimates `sensitivity`, `specificity` (both at the frozen threshold), `melanoma_auc` and `share_of_melanoma`,
    and `mean_p_melanoma`, which a calibrated model has within the interval of the latter. None and NaN are the group
    "unknown". Ages are in the groups under 30, 30 to 49, 50 to 69, 70 and over; other numbers of more than eight values
    in quarters of the known ones.

    Raises ValueError where there are more than 50 values.
    """
    names, in_order = binned(column, values)
    if len(in_order) > MOST_VALUES:
        raise ValueError(f"the column {column!r} has {len(in_order)} values: choose one with at most {MOST_VALUES}")
    melanoma, score = is_melanoma(predictions), floats(predictions, "p_melanoma")
    raised = score >= floats(predictions, "threshold")
    group, _ = group_codes(predictions)
    order = np.array(names, dtype=object)
    found = []
    for name in in_order:
        rows = np.flatnonzero(order == name)
        rows = rows[np.argsort(-score[rows], kind="stable")]
        ill, ends = melanoma[rows], tie_ends(score[rows])

        def area(weight: Floats, ill: Any = ill, ends: Any = ends) -> Floats:
            return np.array([area_under_roc(*roc_of_sorted(ill, ends, weight))])

        both = groups_of_each_side(ill, group[rows])
        value = float(area(np.ones(len(rows)))[0])
        draws = bootstrap(area, group[rows], seed, resamples)[:, 0] if both > 1 else np.empty(0)
        found.append(
            {
                **_counted(name, order == name, melanoma, group),
                "sensitivity": proportion(raised[rows][ill], group[rows][ill]),
                "specificity": proportion(~raised[rows][~ill], group[rows][~ill]),
                "melanoma_auc": percentile_interval(value, draws, both),
                "mean_p_melanoma": float(score[rows].mean()),
                "share_of_melanoma": proportion(ill, group[rows]),
            }
        )
    return {"column": column, "groups": found}


def counts(predictions: pd.DataFrame, column: str, values: Sequence[Any]) -> dict[str, Any]:
    """How many images, melanomas and groups have each of the `values` [n] of a `column`, as `subgroups` groups them."""
    names, in_order = binned(column, values)
    melanoma, (group, _) = is_melanoma(predictions), group_codes(predictions)
    order = np.array(names, dtype=object)
    return {"column": column, "groups": [_counted(name, order == name, melanoma, group) for name in in_order]}


def _counted(name: str, chosen: Bools, melanoma: Bools, group: Ints) -> dict[str, Any]:
    return {
        "value": name,
        "n": int(chosen.sum()),
        "n_melanoma": int((chosen & melanoma).sum()),
        "n_groups": len(np.unique(group[chosen])),
    }


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
