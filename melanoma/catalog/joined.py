"""Which images of a catalog belong together, and why: the ground of an audit.

Images are joined for six reasons: the same id, the same bytes, near-duplicate pictures, the same lesion, the same
patient, the same stored group. The first three say that two images are one photograph.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from melanoma.catalog import groups, near_duplicates
from melanoma.catalog.near_duplicates import Pair

IMAGE_REASONS = ("image_id", "sha256", "near-duplicate")
REASONS = (*IMAGE_REASONS, "lesion_id", "patient_id", "group_id")

_Keys = Sequence[Any]  # one value a row; None joins nothing


@dataclass(frozen=True)
class FoundSet:
    """Images in which something is wrong."""

    reasons: tuple[str, ...]
    rows: list[int]
    is_chain: bool  # only a chain of images joins the two sides


class Joined:
    """What joins each row of a catalog to others, and the components that follow.

    Attributes:
        image_ids: The image id of each row, None where there is none.
        sha256: The digest of each row, None where there is none.
        pairs: The near-duplicates.
        picture: int [rows], the component of each row by id, bytes or near-duplicate: the same photograph.
        group: int [rows], the component of each row by any of the six reasons.
    """

    def __init__(self, frame: pd.DataFrame) -> None:
        self.image_ids = groups.image_keys(frame)
        self.sha256 = [value or None for value in frame["sha256"]]
        self.pairs: list[Pair] = near_duplicates.find(frame)
        stored = [value or None for value in frame["group_id"]]
        lesion, patient = (groups.number_keys(frame, name) for name in ("lesion_id", "patient_id"))
        count = len(frame)
        same = groups.components(count, [self.image_ids, self.sha256])
        # Those that are joined by pictures only: what has the same bytes is no near-duplicate.
        self._near = groups.components(count, [self.sha256], self.pairs)
        self.picture = groups.components(count, [self.image_ids, self.sha256], self.pairs)
        self.group = groups.components(count, [self.image_ids, self.sha256, lesion, patient, stored], self.pairs)
        paired = {int(self._near[place]) for pair in self.pairs for place in (pair.first, pair.second)}
        self._keys: dict[str, Sequence[tuple[Any, ...]]] = {
            "image_id": _single(self.image_ids),
            "sha256": _single(self.sha256),
            "near-duplicate": [(key,) if key in paired else () for key in self._near.tolist()],
            "lesion_id": _carried(same, lesion),
            "patient_id": _carried(same, patient),
            "group_id": _single(stored),
        }
        self._pairs_of: dict[int, list[Pair]] = defaultdict(list)
        for pair in self.pairs:
            self._pairs_of[int(self.picture[pair.first])].append(pair)

    def relatives(self, rows: Iterable[int], reason: str) -> list[list[int]]:
        """The sets of at least two of these rows that are joined for this very reason."""
        rows_of_key: dict[Any, list[int]] = defaultdict(list)
        for row in rows:
            for key in self._keys[reason][row]:
                rows_of_key[key].append(row)
        return [found for found in rows_of_key.values() if len(found) > 1]

    def any_reason(self, rows: list[int]) -> tuple[str, ...]:
        """All reasons that join any two of these rows."""
        return tuple(reason for reason in REASONS if self.relatives(rows, reason))

    def related(self, first: int, second: int, reason: str) -> bool:
        """Whether two rows that `relatives` gives are so indeed: near-duplicates have other bytes."""
        return reason != "near-duplicate" or self.sha256[first] is None or self.sha256[first] != self.sha256[second]

    def known(self, row: int, reason: str) -> list[str]:
        """The lesions or patients of a row, without the source that a number counts in."""
        return [str(key).partition("/")[2] or str(key) for key in self._keys[reason][row]]

    def pairs_among(self, rows: Iterable[int]) -> list[Pair]:
        """The pairs of near-duplicates that lie in these rows with both their images."""
        wanted = set(rows)
        found = [pair for number in {int(self.picture[row]) for row in wanted} for pair in self._pairs_of[number]]
        return sorted(pair for pair in found if pair.first in wanted and pair.second in wanted)


def _single(values: _Keys) -> list[tuple[Any, ...]]:
    return [() if value is None else (value,) for value in values]


def _carried(same: np.ndarray, values: _Keys) -> list[tuple[Any, ...]]:
    """The values of all rows of the same component, for each row."""
    found: dict[int, set[Any]] = defaultdict(set)
    for component, value in zip(same.tolist(), values, strict=True):
        if value is not None:
            found[component].add(value)
    return [tuple(sorted(found.get(component, ()))) for component in same.tolist()]


def sets_of(components: np.ndarray, chosen: np.ndarray) -> Iterator[list[int]]:
    """The rows of each component among those chosen (bool [components]), in the order of the rows."""
    rows = np.flatnonzero(chosen[components])
    order = rows[np.argsort(components[rows], kind="stable")]
    yield from (part.tolist() for part in np.split(order, np.flatnonzero(np.diff(components[order])) + 1) if len(part))
