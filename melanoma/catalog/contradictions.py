"""One photograph under labels that exclude one another."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from itertools import combinations, product
from typing import Any

import numpy as np
import pandas as pd

from melanoma import taxonomy
from melanoma.catalog.joined import IMAGE_REASONS, FoundSet, Joined, sets_of


def label_mask(label: str) -> int:
    """The diagnoses that a label leaves open, as bits: "SK" and "BKL|SK" have one in common."""
    return sum(1 << taxonomy.CODES.index(code) for code in taxonomy.codes_of(label))


def label_masks(frame: pd.DataFrame) -> np.ndarray:
    """The diagnoses that the label of each row leaves open, as bits: int64 [rows]."""
    every = (1 << len(taxonomy.CODES)) - 1
    masks = {label: label_mask(label) for label in frame["label"].dropna().unique()}
    return np.array([masks.get(label, every) for label in frame["label"]], dtype=np.int64)


def contradictions_of(frame: pd.DataFrame, joined: Joined) -> Iterator[FoundSet]:
    """The photographs whose labels have no diagnosis in common."""
    masks = label_masks(frame)
    common = np.full(joined.picture.max(initial=-1) + 1, -1, dtype=np.int64)
    np.bitwise_and.at(common, joined.picture, masks)
    for rows in sets_of(joined.picture, common == 0):
        labelled = [row for row in rows if frame["label"].iat[row] is not None]
        reasons = tuple(
            reason
            for reason in IMAGE_REASONS
            if any(
                np.bitwise_and.reduce(masks[found]) == 0
                and any(masks[a] != masks[b] and joined.related(a, b, reason) for a, b in combinations(found, 2))
                for found in joined.relatives(labelled, reason)
            )
        )
        yield FoundSet(reasons or joined.any_reason(rows), rows, not reasons)


def label_pairs(labels: Iterable[str | None]) -> list[tuple[str, str]]:
    """The pairs of these labels that have no diagnosis in common."""
    known = sorted({label for label in labels if label is not None})
    return [(a, b) for a, b in combinations(known, 2) if label_mask(a) & label_mask(b) == 0]


def by_pair(frame: pd.DataFrame, joined: Joined, contradictions: list[FoundSet]) -> list[dict[str, Any]]:
    """For each two labels of no common diagnosis: the sets of images that have both, the images in them, and how many
    ids, contents and sets of near-duplicates have both."""
    labels = frame["label"].tolist()
    counts: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
    for rows in (found.rows for found in contradictions):
        for pair in label_pairs(labels[row] for row in rows):
            counts[pair]["sets"] += 1
            counts[pair]["images"] += sum(labels[row] in pair for row in rows)
        for reason, name in zip(IMAGE_REASONS, ("ids", "contents", "near_duplicates"), strict=True):
            for found in joined.relatives(rows, reason):
                for pair in label_pairs(labels[row] for row in found):
                    sides = ([row for row in found if labels[row] == label] for label in pair)
                    counts[pair][name] += any(joined.related(a, b, reason) for a, b in product(*sides))
    names = ("sets", "images", "ids", "contents", "near_duplicates")
    return [
        {"labels": list(pair), **{name: count[name] for name in names}}
        for pair, count in sorted(counts.items(), key=lambda item: (-item[1]["sets"], item[0]))
    ]
