"""Raised images become alerts for people: ranked, each photograph once, marked where an earlier night raised it."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from melanoma.imaging.hashing import NEAR_DUPLICATE_DISTANCE
from melanoma.scoring import tables

EARLIER = pa.schema(
    [
        *(("content_sha256", pa.string()), ("perceptual_hash", pa.string()), ("patient_id", pa.string())),
        ("run_date", pa.string()),
    ]
)


def ranked(raised: pa.Table, earlier: pa.Table) -> pa.Table:
    """Alerts, `tables.ALERTS`, of raised scores, `tables.SCORES`: the most probable melanoma first, equal ones in order
    of URI, so that a night has one ranking.

    Of images with the same bytes or of one photograph (near-duplicates, `melanoma.imaging.hashing`) the most probable
    is the alert, and the others are its `copies`, of which one that is held back holds the alert back, too.
    `first_raised` is the date of the first of the `earlier` alerts (`EARLIER`) that shows the same, or null. What
    belongs to different patients is never the same. Each image is compared with the one that is shown: a chain of
    images that resemble each other a little must not hide one that resembles none.
    """
    rows = raised.sort_by([("p_melanoma", "descending"), ("image_uri", "ascending")]).to_pylist()
    before = earlier.to_pylist()
    near = _near([row["perceptual_hash"] for row in (*rows, *before)])
    shown: list[dict[str, Any]] = []
    shown_by_key: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        alike = (each for key in _keys(row, near) for each in shown_by_key[key] if _may_be_of_one_patient(each, row))
        if best := min(alike, key=lambda alert: alert["rank"], default=None):
            best["copies"].append(row["image_uri"])
            best["is_held_back"] |= row["is_held_back"]
            continue
        shown.append({**row, "rank": len(shown) + 1, "explanation_uri": None, "copies": [], "first_raised": None})
        for key in _own_keys(row):
            shown_by_key[key].append(shown[-1])
    before_by_key = defaultdict(list)
    for row in before:
        for key in _own_keys(row):
            before_by_key[key].append(row)
    for alert in shown:
        alike = (each for key in _keys(alert, near) for each in before_by_key[key])
        dates = [each["run_date"] for each in alike if _may_be_of_one_patient(each, alert)]
        alert["first_raised"] = min(dates, default=None)
    return pa.Table.from_pylist(shown, schema=tables.ALERTS)


def _own_keys(row: Mapping[str, Any]) -> set[str]:
    return {key for key in (row["content_sha256"], row["perceptual_hash"]) if key}


def _keys(row: Mapping[str, Any], near: Mapping[str, set[str]]) -> set[str]:
    """Digests and hashes of what shows the same as a row."""
    return _own_keys(row) | near.get(row["perceptual_hash"], set())


def _may_be_of_one_patient(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    return not one["patient_id"] or not other["patient_id"] or one["patient_id"] == other["patient_id"]


def _near(hashes: Sequence[str | None]) -> dict[str, set[str]]:
    """Of each hash those that differ from it, but so little that they show the same photograph."""
    from melanoma.catalog.near_duplicates import hash_pairs

    unique = sorted({value for value in hashes if value})
    found: dict[str, set[str]] = defaultdict(set)
    for one, other in hash_pairs(unique, NEAR_DUPLICATE_DISTANCE):
        found[unique[one]].add(unique[other])
        found[unique[other]].add(unique[one])
    return found


def by_patient(alerts: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Ranked alerts with those of a patient together, who stands where the worst of them does."""
    worst: dict[str, int] = {}
    for place, alert in enumerate(alerts):
        worst.setdefault(alert["patient_id"] or alert["image_uri"], place)
    return sorted(alerts, key=lambda alert: worst[alert["patient_id"] or alert["image_uri"]])
