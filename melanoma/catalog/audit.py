"""What is wrong with a catalog: a leak between its splits, or one image under several labels."""

from dataclasses import dataclass

import pandas as pd

from melanoma import taxonomy


@dataclass(frozen=True)
class Finding:
    kind: str  # "leak" or "contradiction"
    by: str  # the column that joins the images
    value: str
    images: tuple[str, ...]  # URIs
    among: tuple[str, ...]  # the splits, or the labels


def audit(frame: pd.DataFrame) -> list[Finding]:
    """Every group that lies in more than one split, and every id or content whose labels exclude one another.

    "SK" and "BKL|SK" may both be said of one image.
    """
    findings = [
        Finding("leak", "group_id", str(value), tuple(rows["uri"]), tuple(sorted(rows["split"].unique())))
        for value, rows in frame[frame["split"].notna()].groupby("group_id", sort=True)
        if rows["split"].nunique() > 1
    ]
    labelled = frame[frame["label"].notna()]
    reported: set[frozenset[str]] = set()
    known = labelled[labelled["image_id"].notna()]
    ids = [taxonomy.identity(i, uri) for i, uri in zip(known["image_id"], known["uri"], strict=True)]
    for column, grouped in (
        ("image_id", known.groupby(pd.Series(ids, index=known.index, dtype=object), sort=True)),
        ("sha256", labelled[labelled["sha256"].notna()].groupby("sha256", sort=True)),
    ):
        for _, rows in grouped:
            images, labels = tuple(rows["uri"]), tuple(sorted(rows["label"].unique()))
            compatible = set.intersection(*(set(taxonomy.codes_of(label)) for label in labels))
            # Most images of one id have the same bytes, too: one finding, not two.
            if not compatible and frozenset(images) not in reported:
                reported.add(frozenset(images))
                findings.append(Finding("contradiction", column, str(rows[column].iloc[0]), images, labels))
    return findings
