"""Whether a class can be told from the others, and how small a class is for a claim about it."""

from collections import defaultdict
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from melanoma import taxonomy
from melanoma.catalog import schema
from melanoma.catalog.contradictions import label_pairs
from melanoma.catalog.joined import FoundSet, Joined

CLAIMED_RECALL = 0.8
WIDEST_INTERVAL = 0.4
"""A class is too small for a claim where the 95% interval of a recall of 80% would be wider than this."""
LEAST_INDEPENDENT = 0.1
"""A class has no independent support where less than this share of its photographs supports it."""
MOSTLY_CONTAINED = 0.5
"""A class is mostly contained in another where more than this share of its photographs is there, too."""


def classes_of(
    frame: pd.DataFrame, joined: Joined, contradictions: list[FoundSet], disputed: list[int], confirmed: list[int]
) -> list[dict[str, Any]]:
    """What supports each label.

    Images that are the same by id, bytes or picture are one photograph. A photograph supports its label independently
    where the reference confirms it, or where neither the reference nor another label contradicts it.

    Args:
        frame: The catalog.
        joined: What joins its rows.
        contradictions: See `contradictions_of`.
        disputed: The rows whose label a reference contradicts.
        confirmed: The rows whose label it confirms.

    Returns:
        A row a class, for the audit's `classes`.
    """
    labels = frame["label"].tolist()
    also: dict[str, dict[str, set[int]]] = defaultdict(lambda: defaultdict(set))
    for rows in (found.rows for found in contradictions):
        for a, b in label_pairs(labels[row] for row in rows):
            also[a][b].add(int(joined.picture[rows[0]]))
            also[b][a].add(int(joined.picture[rows[0]]))
    denied, affirmed = defaultdict[str, set[int]](set), defaultdict[str, set[int]](set)
    for verdict, rows in ((denied, disputed), (affirmed, confirmed)):
        for row in rows:
            verdict[labels[row]].add(int(joined.picture[row]))
    answer = []
    for label in sorted({label for label in labels if label is not None}):
        rows = [row for row, value in enumerate(labels) if value == label]
        photographs = set(joined.picture[rows].tolist())
        elsewhere = set().union(*also[label].values())
        independent = len((photographs - elsewhere | affirmed[label]) - denied[label])
        others = {other: len(found) for other, found in sorted(also[label].items(), key=lambda i: (-len(i[1]), i[0]))}
        warnings = []
        if independent < LEAST_INDEPENDENT * len(photographs):
            warnings.append("no independent support" if not independent else "hardly any independent support")
        warnings += [
            f"mostly contained in {other}" for other, n in others.items() if n > MOSTLY_CONTAINED * len(photographs)
        ]
        answer.append(
            {
                "label": label,
                "images": len(rows),
                "photographs": len(photographs),
                "under_another_label": len(elsewhere),
                "others": others,
                "contradicted_by_reference": len(denied[label]),
                "confirmed_by_reference": len(affirmed[label] - denied[label]),
                "independent": independent,
                "warning": ", ".join(warnings) or None,
            }
        )
    return answer


def sizes_of(frame: pd.DataFrame, joined: Joined) -> list[dict[str, Any]]:
    """Groups of each label in each split, of usable images; one row of split None where there are no splits.

    A label that is in no split, where others are, takes no part, nor does one that is coarser than a class.
    """
    usable = schema.usable(frame, "all")
    splits = [name for name in schema.SPLITS if (usable["split"] == name).any()]
    if splits:
        usable = usable[usable["split"].notna()]
    answer = []
    for label in sorted(label for label in usable["label"].unique() if taxonomy.is_class(label)):
        of_label = usable[usable["label"] == label]
        for split in splits or (None,):
            rows = of_label if split is None else of_label[of_label["split"] == split]
            groups = len(np.unique(joined.group[rows.index]))
            hits = round(CLAIMED_RECALL * groups)
            interval = stats.binomtest(hits, groups).proportion_ci(0.95, "exact") if groups else None
            low, high = (float(interval.low), float(interval.high)) if interval else (0.0, 1.0)
            answer.append(
                {
                    "label": label,
                    "split": split,
                    "images": len(rows),
                    "groups": groups,
                    "recall": hits / groups if groups else None,
                    "low": low,
                    "high": high,
                    # Nothing is claimed of what is trained on.
                    "too_small": split != "train" and high - low > WIDEST_INTERVAL,
                }
            )
    return answer
