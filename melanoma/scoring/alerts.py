"""Raised images become alerts for people: ranked, each photograph once, marked where an earlier run raised it."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

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


def ranked(raised: pa.Table, earlier: pa.Table) -> pa.Table:
    """The alerts, `tables.ALERTS`, of raised scores, `tables.SCORES`.

    The most probable melanoma comes first, and equal ones in order of URI, so that a run has one ranking. Images with
    the same bytes or of one photograph (near-duplicates, `melanoma.imaging.hashing`) are one alert: that of the most
    probable. The others are its `copies`, and one that is held back holds the alert back, too. `first_raised` is the
    date of the first of the `earlier` alerts (`EARLIER`) that shows the same photograph, or null. Images of different
    patients never show the same. Each image is compared with the one that is shown: a chain of images, each a little
    like the next, must not hide one that is like none.
    """
    rows = raised.sort_by([("p_melanoma", "descending"), ("image_uri", "ascending")]).to_pylist()
    before = earlier.to_pylist()
    near = _near_hashes([row["perceptual_hash"] for row in (*rows, *before)])
    alerts: list[dict[str, Any]] = []
    alerts_by_key: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        same = (alert for key in _keys(row, near) for alert in alerts_by_key[key] if _may_be_of_one_patient(alert, row))
        if best := min(same, key=lambda alert: alert["rank"], default=None):
            best["copies"].append(row["image_uri"])
            best["is_held_back"] |= row["is_held_back"]
            continue
        alerts.append({**row, "rank": len(alerts) + 1, "explanation_uri": None, "copies": [], "first_raised": None})
        for key in _exact_keys(row):
            alerts_by_key[key].append(alerts[-1])
    before_by_key = defaultdict(list)
    for row in before:
        for key in _exact_keys(row):
            before_by_key[key].append(row)
    for alert in alerts:
        same = (row for key in _keys(alert, near) for row in before_by_key[key])
        dates = [row["run_date"] for row in same if _may_be_of_one_patient(row, alert)]
        alert["first_raised"] = min(dates, default=None)
    return pa.Table.from_pylist(alerts, schema=tables.ALERTS)


def _exact_keys(row: Mapping[str, Any]) -> set[str]:
    """The digest and the hash of a row."""
    return {key for key in (row["content_sha256"], row["perceptual_hash"]) if key}


def _keys(row: Mapping[str, Any], near: Mapping[str, set[str]]) -> set[str]:
    """The digests and hashes of all that shows the same photograph as a row."""
    return _exact_keys(row) | near.get(row["perceptual_hash"], set())


def _may_be_of_one_patient(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    return not one["patient_id"] or not other["patient_id"] or one["patient_id"] == other["patient_id"]


def _near_hashes(hashes: Sequence[str | None]) -> dict[str, set[str]]:
    """For each hash the others that are so near that they show the same photograph."""
    # Heavy, and `by_patient` needs none of it.
    from melanoma.catalog.near_duplicates import hash_pairs
    from melanoma.imaging.hashing import NEAR_DUPLICATE_DISTANCE

    unique = sorted({value for value in hashes if value})
    found: dict[str, set[str]] = defaultdict(set)
    for one, other in hash_pairs(unique, NEAR_DUPLICATE_DISTANCE):
        found[unique[one]].add(unique[other])
        found[unique[other]].add(unique[one])
    return found


def by_patient(alerts: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Ranked alerts with those of a patient together: a patient stands where the worst of their alerts does."""
    worst: dict[str, int] = {}
    for place, alert in enumerate(alerts):
        worst.setdefault(alert["patient_id"] or alert["image_uri"], place)
    return sorted(alerts, key=lambda alert: worst[alert["patient_id"] or alert["image_uri"]])
