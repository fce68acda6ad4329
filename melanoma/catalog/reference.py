"""What another table says of the images of a catalog, such as the ground truth of a challenge."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from melanoma import storage
from melanoma.catalog import manifest, words
from melanoma.catalog.contradictions import label_mask
from melanoma.catalog.images_by_id import plain_id
from melanoma.catalog.joined import Joined
from melanoma.catalog.labels import LabelColumns
from melanoma.catalog.mapping import NO_MAP
from melanoma.errors import InputError


def read(uri: str) -> dict[str, str]:
    """The label of each image id of a table: ISIC's challenge tables, or any with an image id and a label column.

    Ids that the table gives two labels of no common diagnosis are left out. Raises InputError for what is
    no such table.
    """
    uri = storage.normalize(uri)
    try:
        table = manifest.read(uri)
    except OSError as error:
        raise InputError(f"The reference {uri} cannot be read: {error}") from None
    names = manifest.columns_of(table)
    of_record = LabelColumns.of(uri, table, NO_MAP)
    if names["image_id"] is None or not of_record:
        raise InputError(
            f"The reference {uri} needs a column image_id (or image) and a column label (or one column a class): its "
            f"columns are {', '.join(table)}."
        )
    labels: dict[str, str] = {}
    disputed: set[str] = set()
    unknown = Counter[str]()
    for record in manifest.records(table):
        said, image_id = of_record.read(record), plain_id((record[names["image_id"]] or "").strip())
        if said.unknown:
            unknown[said.unknown] += 1
        if said.label is None or not image_id:
            continue
        if label_mask(labels.setdefault(image_id, said.label)) & label_mask(said.label) == 0:
            disputed.add(image_id)
    if unknown:
        raise InputError(f"The reference {uri} has words that are no diagnosis known here: {words.listed(unknown)}.")
    if not labels:
        raise InputError(f"The reference {uri} has no row with an image id and a label.")
    return {image_id: label for image_id, label in labels.items() if image_id not in disputed}


def labels_of(
    frame: pd.DataFrame, image_ids: Sequence[str | None], reference: Mapping[str, str] | None
) -> list[str | None]:
    """What the reference says of each row. A number that several photographs of a catalog bear is not looked up."""
    if reference is None:
        return [None] * len(frame)
    bearers: dict[str, set[str | None]] = defaultdict(set)
    for image_id, key in zip(frame["image_id"], image_ids, strict=True):
        if image_id in reference:
            bearers[image_id].add(key)
    return [reference[i] if len(bearers.get(i, ())) == 1 else None for i in frame["image_id"]]


def by_pair(
    frame: pd.DataFrame, joined: Joined, known: Sequence[str | None], disputed: list[int]
) -> list[dict[str, Any]]:
    """How many images and ids have each label that the reference contradicts.

    Args:
        frame: The catalog.
        joined: What joins its rows.
        known: See `labels_of`.
        disputed: The rows whose label it contradicts.

    Returns:
        A row for each pair of labels, the commonest first.
    """
    rows_of_pair: dict[tuple[str, str], list[int]] = defaultdict(list)
    for row in disputed:
        rows_of_pair[str(frame["label"].iat[row]), str(known[row])].append(row)
    return [
        {"label": label, "reference": wanted, "images": len(rows), "ids": len({joined.image_ids[r] for r in rows})}
        for (label, wanted), rows in sorted(rows_of_pair.items(), key=lambda item: (-len(item[1]), item[0]))
    ]
