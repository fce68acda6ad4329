"""What is wrong with a catalog, or with several together: leaks between splits, contradictory labels, weak classes.

What joins images is in `joined`. Labels of one photograph must agree (`contradictions`, `reference`), and images that
are joined must not lie in two splits (`leaks`).
"""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy.cluster.hierarchy import DisjointSet

from melanoma import storage
from melanoma.catalog import contradictions as contradicting
from melanoma.catalog import groups, properties, schema
from melanoma.catalog import reference as references
from melanoma.catalog.classes import classes_of, sizes_of
from melanoma.catalog.contradictions import contradictions_of, label_mask
from melanoma.catalog.findings import Findings
from melanoma.catalog.joined import FoundSet, Joined
from melanoma.catalog.leaks import leaks_of


def read(catalogs: Sequence[str]) -> tuple[pd.DataFrame, int]:
    """All catalogs as one table with one more column, `catalog`, and how many rows were dropped as repeats.

    A repeat is a row of a file (the same uri and bytes) whose label, split, lesion and patient another row of that file
    says, too. Its stored group, which may have another name in another catalog, is joined with that row's. `group_id`
    bears the catalog's name: groups of two catalogs are not one because their names are equal.

    Raises InputError as `melanoma.catalog.schema.read` does.
    """
    frame = pd.concat([schema.read(uri).assign(catalog=storage.normalize(uri)) for uri in catalogs], ignore_index=True)
    stored = list(zip(frame["catalog"], frame["group_id"], strict=True))
    merged = DisjointSet(stored)
    numbers = (groups.number_keys(frame, name) for name in ("lesion_id", "patient_id"))
    said = list(zip(frame["label"], frame["split"], *numbers, strict=True))
    repeats: list[int] = []
    known = frame[frame["uri"].notna()]
    for _, rows in known[known.duplicated(["uri", "sha256"], keep=False)].groupby(["uri", "sha256"], dropna=False):
        kept: list[int] = []
        # Rows that say most come first.
        for index in sorted(rows.index.tolist(), key=lambda row: said[row].count(None)):
            same = (
                other
                for other in kept
                if all(word in (None, theirs) for word, theirs in zip(said[index], said[other], strict=True))
            )
            if (other := next(same, None)) is None:
                kept.append(index)
                continue
            repeats.append(index)
            if stored[index][1] and stored[other][1]:
                merged.merge(stored[index], stored[other])
    frame["group_id"] = ["/".join(merged[group]) if group[1] else None for group in stored]
    return frame.drop(index=repeats).reset_index(drop=True), len(repeats)


def examine(frame: pd.DataFrame, reference: Mapping[str, str] | None = None, repeats: int = 0) -> dict[str, Any]:
    """All that is wrong with the images of a catalog, ready for JSON.

    A finding is one set of images with `by` (its reasons), `splits`, `labels`, `images` and `matches` (pairs of
    near-duplicates in it: places in `images`, how they match, similarity). One image may bear both "SK" and
    "BKL|SK". Lesion and patient numbers count within their source, and go with the photograph: an image has the lesion
    of every other image of its id or bytes.

    Args:
        frame: The table of `read`, or a catalog.
        reference: The labels of `melanoma.catalog.reference.read`.
        repeats: How many rows `read` has dropped.

    Returns:
        `summary`: counts of all that follows;
        `contradictions`: `by_pair`, see `melanoma.catalog.contradictions.by_pair`, and `findings`;
        `leaks`: `by_splits`, see `melanoma.catalog.leaks.leaks_of`, and `findings`;
        `reference`: None, or how many of the `ids` are `known` to it, `by_pair` of label and reference, and `findings`;
        `classes` and `sizes`: see `melanoma.catalog.classes`;
        `unreadable`: images with an error;
        `properties`: see `melanoma.catalog.properties.measure`.
    """
    frame = frame.reset_index(drop=True).astype(object)
    frame = frame.where(frame.notna(), None)
    joined = Joined(frame)
    known = references.labels_of(frame, joined.image_ids, reference)
    findings = Findings(frame, joined, known)
    contradictions = list(contradictions_of(frame, joined))
    leaks, by_splits = leaks_of(frame, joined)
    disputed, confirmed = _compared(frame, known)
    unreadable = frame[frame["error"].notna()]
    answer = {
        "contradictions": {
            "by_pair": contradicting.by_pair(frame, joined, contradictions),
            "findings": findings.of(contradictions, "label"),
        },
        "leaks": {"by_splits": by_splits, "findings": findings.of(leaks, "split")},
        "reference": None if reference is None else _against_reference(frame, joined, known, disputed, findings),
        "classes": classes_of(frame, joined, contradictions, disputed, confirmed),
        "sizes": sizes_of(frame, joined),
        "unreadable": unreadable[["uri", "image_id", "error"]].to_dict("records"),
        "properties": properties.measure(frame, joined.group),
    }
    return {"summary": _summary(frame, joined, repeats, contradictions, answer), **answer}


def _compared(frame: pd.DataFrame, known: Sequence[str | None]) -> tuple[list[int], list[int]]:
    """The rows whose label the reference contradicts, and those whose label it confirms."""
    agrees = {
        row: label_mask(label) & label_mask(wanted) != 0
        for row, (label, wanted) in enumerate(zip(frame["label"], known, strict=True))
        if label is not None and wanted is not None
    }
    return [row for row, same in agrees.items() if not same], [row for row, same in agrees.items() if same]


def _against_reference(
    frame: pd.DataFrame, joined: Joined, known: Sequence[str | None], disputed: list[int], findings: Findings
) -> dict[str, Any]:
    rows_of_id = defaultdict(list)
    for row in disputed:
        rows_of_id[joined.image_ids[row]].append(row)
    return {
        "ids": len({i for i in joined.image_ids if i is not None}),
        "known": len({i for i, label in zip(joined.image_ids, known, strict=True) if label is not None}),
        "by_pair": references.by_pair(frame, joined, known, disputed),
        "findings": findings.of([FoundSet(("reference",), rows, False) for rows in rows_of_id.values()], "label"),
    }


def _summary(
    frame: pd.DataFrame, joined: Joined, repeats: int, contradictions: list[FoundSet], answer: Mapping[str, Any]
) -> dict[str, Any]:
    pairs, dropped = joined.pairs, schema.dropped(frame)
    reference = answer["reference"]
    return {
        "catalogs": sorted(set(frame["catalog"])) if "catalog" in frame else [],
        "images": len(frame),
        "photographs": len(np.unique(joined.picture)),
        "groups": len(np.unique(joined.group)),
        "repeats": repeats,
        "contradictions": len(contradictions),
        "contradictory_images": sum(len(found.rows) for found in contradictions),
        "leaks": len(answer["leaks"]["findings"]),
        "reference_contradictions": len(reference["findings"]) if reference else 0,
        "near_duplicates": len(pairs),
        "near_duplicates_of_different_ids": sum(
            joined.image_ids[pair.first] != joined.image_ids[pair.second] for pair in pairs
        ),
        "near_duplicates_by_how": dict(sorted(Counter(pair.how for pair in pairs).items())),
        "same_bytes_under_different_ids": _several_ids(joined),
        "unreadable": len(answer["unreadable"]),
        "unlabelled": int((frame["label"].isna() & ~dropped).sum()),
        "dropped": int(dropped.sum()),
        "small_classes": sum(row["too_small"] for row in answer["sizes"]),
        "weak_classes": sum(bool(row["warning"]) for row in answer["classes"]),
        "properties_that_give_away": sum(row["warning"] for row in answer["properties"] if not row["clinical"]),
    }


def _several_ids(joined: Joined) -> int:
    """How many contents bear several ids."""
    ids: dict[str, set[str]] = defaultdict(set)
    for digest, image_id in zip(joined.sha256, joined.image_ids, strict=True):
        if digest is not None and image_id is not None:
            ids[digest].add(image_id)
    return sum(len(found) > 1 for found in ids.values())


def is_clean(answer: Mapping[str, Any]) -> bool:
    """Whether an audit found neither a leak nor a contradiction, the reference's included."""
    summary = answer["summary"]
    return not (summary["leaks"] or summary["contradictions"] or summary["reference_contradictions"])
