"""Who may not be split apart: same id, same bytes, near-duplicate picture, same lesion, same patient."""

from collections.abc import Hashable, Sequence

import numpy as np
import pandas as pd
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from melanoma import taxonomy
from melanoma.catalog.near_duplicates import Pair, find


def group_ids(frame: pd.DataFrame) -> list[str]:
    """One id for each image of a catalog: images joined by a chain of any of the five reasons share it.

    Which pictures are near-duplicates: see `melanoma.catalog.near_duplicates`.

    The id comes from the content of its images, so it depends neither on the order of the rows nor on their location.
    """
    sha256 = [value or None for value in frame["sha256"]]
    lesions, patients = (number_keys(frame, column) for column in ("lesion_id", "patient_id"))
    component = components(len(frame), [image_keys(frame), sha256, lesions, patients], find(frame))
    # Named after the least digest in it; one whose bytes nobody has seen after its id, or else its place.
    keys = [
        (not sha256, sha256 or image_id or uri or "")
        for sha256, image_id, uri in zip(frame["sha256"], frame["image_id"], frame["uri"], strict=True)
    ]
    names: dict[int, str] = {}
    for number, (unseen, key) in sorted(zip(component.tolist(), keys, strict=True), key=lambda item: item[1]):
        names.setdefault(number, key if unseen else key[:16])
    return [names[number] for number in component.tolist()]


def image_keys(frame: pd.DataFrame) -> list[str | None]:
    """What tells the photographs of a catalog apart by their ids; None where there is none."""
    return [
        taxonomy.identity(image_id, uri) if image_id else None
        for image_id, uri in zip(frame["image_id"], frame["uri"], strict=True)
    ]


def number_keys(frame: pd.DataFrame, column: str) -> list[str | None]:
    """What tells the lesions or patients (`column`) of a catalog apart; None where they are not known."""
    return [
        taxonomy.number_identity(value, source) if value else None
        for source, value in zip(frame["source"], frame[column], strict=True)
    ]


def components(count: int, keys: Sequence[Sequence[Hashable]], pairs: Sequence[Pair] = ()) -> np.ndarray:
    """int [count]: the number of the component of each row, where equal keys and pairs join.

    Each of `keys` has one value a row; None joins nothing.
    """
    firsts, seconds, nodes = [], [], count
    for values in keys:
        # Each key is a node of its own, so that a thousand equal ones are a thousand edges and not half a million.
        numbers: dict[Hashable, int] = {}
        rows = [row for row, value in enumerate(values) if value is not None]
        firsts += rows
        seconds += [nodes + numbers.setdefault(values[row], len(numbers)) for row in rows]
        nodes += len(numbers)
    firsts += [pair.first for pair in pairs]
    seconds += [pair.second for pair in pairs]
    graph = coo_matrix((np.ones(len(firsts), np.int8), (firsts, seconds)), shape=(nodes, nodes))
    return np.asarray(connected_components(graph, directed=False)[1][:count])
