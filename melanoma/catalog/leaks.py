"""One photograph, lesion or patient in several splits."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd

from melanoma.catalog import schema
from melanoma.catalog.joined import REASONS, FoundSet, Joined, sets_of


def leaks_of(frame: pd.DataFrame, joined: Joined) -> tuple[list[FoundSet], list[dict[str, Any]]]:
    """The groups of images that lie in several splits; and for each two splits how many images of the later one have a
    relative in the earlier one, by reason ("any": by a chain of reasons, too; "picture only": by a near-duplicate, with
    neither id nor bytes the same)."""
    splits = frame["split"].tolist()
    bits = np.array([0 if split is None else 1 << schema.SPLITS.index(split) for split in splits], dtype=np.int64)
    present = np.zeros(joined.group.max(initial=-1) + 1, dtype=np.int64)
    np.bitwise_or.at(present, joined.group, bits)
    affected: dict[tuple[str, str], dict[str, set[int]]] = defaultdict(lambda: defaultdict(set))
    findings: list[FoundSet] = []
    for rows in sets_of(joined.group, (present & (present - 1)) != 0):
        here: dict[str, set[int]] = defaultdict(set)
        for pair, _, late in _sides(rows, splits):
            affected[pair]["any"].update(late)
        for reason in REASONS:
            for found in joined.relatives(rows, reason):
                for pair, early, late in _sides(found, splits):
                    leaked = {row for row in late if any(joined.related(other, row, reason) for other in early)}
                    affected[pair][reason] |= leaked
                    here[reason] |= leaked
        direct = tuple(reason for reason in REASONS if here[reason])
        # The stored group is a reason only where nothing else explains it.
        reasons = tuple(reason for reason in direct if reason != "group_id") or direct
        findings.append(FoundSet(reasons or joined.any_reason(rows), rows, not reasons))
    table = []
    for (first, second), by in sorted(affected.items(), key=lambda item: [schema.SPLITS.index(s) for s in item[0]]):
        by["picture only"] = by["near-duplicate"] - by["image_id"] - by["sha256"]
        counts = {name: len(by[name]) for name in ("any", *REASONS, "picture only")}
        table.append({"splits": [first, second], "images": splits.count(second), "by": counts})
    return findings, table


def _sides(rows: Sequence[int], splits: Sequence[str | None]) -> Iterator[tuple[tuple[str, str], list[int], list[int]]]:
    """For each two splits that these rows lie in: their names, the rows of the earlier and those of the later one."""
    rows_of = {name: [row for row in rows if splits[row] == name] for name in schema.SPLITS}
    for first, second in combinations(schema.SPLITS, 2):
        if rows_of[first] and rows_of[second]:
            yield (first, second), rows_of[first], rows_of[second]


def split_groups(frame: pd.DataFrame) -> list[str]:
    """The stored groups that lie in more than one split: the quick check before a training run."""
    counts = frame[frame["split"].notna()].groupby("group_id")["split"].nunique()
    return sorted(counts.index[counts > 1])
