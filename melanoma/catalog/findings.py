"""What an audit says of each set of images in which something is wrong."""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import pandas as pd

from melanoma.catalog import schema
from melanoma.catalog.joined import FoundSet, Joined


class Findings:
    """Sets of images in words, ready for JSON."""

    def __init__(self, frame: pd.DataFrame, joined: Joined, known: Sequence[str | None]) -> None:
        """`known`: what a reference says of each row, see `melanoma.catalog.reference.labels_of`."""
        self._joined, self._known = joined, known
        self._cells = {
            name: frame[name].tolist() for name in ("uri", "image_id", "source", "label", "split", "sha256", "error")
        }

    def of(self, sets: Iterable[FoundSet], among: str) -> list[dict[str, Any]]:
        """The findings, in an order that does not depend on that of the rows; `among` is what differs in each."""
        found = [self._finding(each, among) for each in sets]
        return sorted(found, key=lambda f: (f[f"{among}s"], f["by"], [i["uri"] or "" for i in f["images"]]))

    def _finding(self, found: FoundSet, among: str) -> dict[str, Any]:
        rows, cells = found.rows, self._cells
        order = self._order(rows, among)
        places = {row: place for place, row in enumerate(order)}
        return {
            "by": list(found.reasons),
            "chain": found.is_chain,
            "labels": sorted({label for row in rows if (label := cells["label"][row]) is not None}),
            "splits": [name for name in schema.SPLITS if name in {cells["split"][row] for row in rows}],
            "images": [
                {
                    **{name: cells[name][row] for name in cells},
                    "lesion_id": self._joined.known(row, "lesion_id"),
                    "patient_id": self._joined.known(row, "patient_id"),
                    "reference": self._known[row],
                }
                for row in order
            ],
            "matches": [
                {
                    "first": places[pair.first],
                    "second": places[pair.second],
                    "how": pair.how,
                    "similarity": round(float(pair.similarity), 4),
                }
                for pair in self._joined.pairs_among(rows)
            ],
        }

    def _order(self, rows: list[int], among: str) -> list[int]:
        """One of each comes first: a page that shows but a few of them shows what differs."""
        cells = self._cells
        order = sorted(
            rows, key=lambda row: (cells[among][row] is None, str(cells[among][row]), str(cells["uri"][row]))
        )
        turns = Counter[Any]()
        turn = {}
        for row in order:
            turn[row] = turns[cells[among][row]]
            turns[cells[among][row]] += 1
        return sorted(order, key=turn.__getitem__)
