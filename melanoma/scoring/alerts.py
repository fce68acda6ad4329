"""Raised images become alerts for people: ranked, each photograph once, marked where an earlier run raised it."""

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from melanoma.scoring import tables

# What a later run needs of an alert.
EARLIER = pa.schema(
    [
        ("content_sha256", pa.string()),
        ("perceptual_hash", pa.string()),
        ("patient_id", pa.string()),
        ("run_date", pa.string()),
    ]
)
_TOLD_BY = ["content_sha256", "perceptual_hash", "patient_id"]


def ranked(raised: pa.Table, earlier: pa.Table) -> pa.Table:
    """The alerts, `tables.ALERTS`, of raised scores, `tables.SCORES`.

    They stand in the order of `tables.by_rank`. Images with the same bytes or of one photograph (near-duplicates,
    `melanoma.imaging.hashing`) are one alert: that of the first. The others are its `copies`, and one that is held
    back holds the alert back, too. `first_raised` is the date of the first of the `earlier` alerts (`EARLIER`) that
    shows the same photograph, or null. Images of different patients never show the same. Each image is compared with
    the one that is shown: a chain of images, each a little like the next, must not hide one that is like none.
    """
    # Heavy, and `by_patient` needs none of it.
    from melanoma.scoring import photographs

    order = tables.by_rank(raised)
    # What was raised night after night counts once.
    before = earlier.group_by(_TOLD_BY).aggregate([("run_date", "min")]).sort_by("run_date_min")
    both = pa.concat_tables([raised.select(_TOLD_BY).take(order), before.select(_TOLD_BY)])
    known = photographs.of_columns(*(both[name] for name in _TOLD_BY))
    shown = photographs.shown_for(known.take(slice(0, len(raised))))
    alerts = np.flatnonzero(shown == np.arange(len(raised)))
    places = photographs.first_same(known.take(alerts), known.take(slice(len(raised), None)))
    dates = before["run_date_min"].take(pa.array(places, mask=places == len(before)))
    return _table(raised, np.asarray(order), shown, dates)


def _table(raised: pa.Table, order: np.ndarray, shown: np.ndarray, first_raised: pa.ChunkedArray) -> pa.Table:
    """The alerts, `tables.ALERTS`, by rank.

    Args:
        raised: `tables.SCORES`.
        order: int [images], the rows of `raised` by rank.
        shown: int [images], for each of them the place of the one that is shown for it.
        first_raised: [alerts], the dates.
    """
    is_alert = shown == np.arange(len(shown))
    copies = np.flatnonzero(~is_alert)
    alert_of = np.cumsum(is_alert)[shown[copies]] - 1
    # Stable: the copies of an alert stay in their order.
    uris = raised["image_uri"].take(order[copies[np.argsort(alert_of, kind="stable")]])
    ends = np.cumsum(np.bincount(alert_of, minlength=is_alert.sum()))
    table = raised.take(order[is_alert])
    is_held_back = np.asarray(raised["is_held_back"].fill_null(False))[order]
    with_held_back = np.isin(np.flatnonzero(is_alert), shown[copies[is_held_back[copies]]])
    columns = {
        **{name: table[name] for name in table.column_names},
        "is_held_back": pc.or_kleene(table["is_held_back"], pa.array(with_held_back)),
        "rank": np.arange(1, len(table) + 1),
        "explanation_uri": pa.nulls(len(table), pa.string()),
        "copies": pa.ListArray.from_arrays(pa.array([0, *ends], pa.int32()), uris.combine_chunks()),
        "first_raised": first_raised,
    }
    return pa.table([columns[name] for name in tables.ALERTS.names], schema=tables.ALERTS)


def by_patient(alerts: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Ranked alerts with those of a patient together: a patient stands where the worst of their alerts does.

    Each alert has its `archive`, too: two hospitals both have a patient 7.
    """
    worst: dict[Hashable, int] = {}
    for place, alert in enumerate(alerts):
        worst.setdefault(patient_of(alert) or alert["image_uri"], place)
    return sorted(alerts, key=lambda alert: worst[patient_of(alert) or alert["image_uri"]])


def patient_of(alert: Mapping[str, Any]) -> tuple[str, str] | None:
    """What tells the patient of an alert with its `archive` from all others; None where the patient is not known."""
    return (alert["archive"], alert["patient_id"]) if alert["patient_id"] else None
