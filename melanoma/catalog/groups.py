"""Who may not be split apart: same id, same bytes, near-duplicate picture, same lesion, same patient."""

from collections.abc import Iterator

import numpy as np
import pandas as pd
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from melanoma import taxonomy
from melanoma.catalog.near_duplicates import find


def group_ids(frame: pd.DataFrame) -> list[str]:
    """One id for each image of a catalog: images joined by a chain of any of the five reasons share it.

    Which pictures are near-duplicates: see `melanoma.catalog.near_duplicates`.

    The id comes from the members' content, so it depends neither on the order of the rows nor on their location.
    """
    count = len(frame)
    ids = [i and taxonomy.identity(i, uri) for i, uri in zip(frame["image_id"], frame["uri"], strict=True)]
    edges = [edge for values in (pd.Series(ids, dtype=object), frame["sha256"]) for edge in _same(values)]
    for column in ("lesion_id", "patient_id"):
        own = [v and taxonomy.number_identity(v, s) for s, v in zip(frame["source"], frame[column], strict=True)]
        edges += list(_same(pd.Series(own, dtype=object)))
    edges += [(pair.first, pair.second) for pair in find(frame)]
    rows, columns = np.array(edges, dtype=np.int64).reshape(-1, 2).T
    graph = coo_matrix((np.ones(len(rows), dtype=np.int8), (rows, columns)), shape=(count, count))
    component = connected_components(graph, directed=False)[1]
    # Named after the least digest in it; one whose bytes nobody has seen after its id, or else its place.
    keys = [
        (not sha256, sha256 or image_id or uri or "")
        for sha256, image_id, uri in zip(frame["sha256"], frame["image_id"], frame["uri"], strict=True)
    ]
    names: dict[int, str] = {}
    for number, (unseen, key) in sorted(zip(component.tolist(), keys, strict=True), key=lambda item: item[1]):
        names.setdefault(number, key if unseen else key[:16])
    return [names[number] for number in component.tolist()]


def _same(values: pd.Series) -> Iterator[tuple[int, int]]:
    first: dict[str, int] = {}
    for index, value in enumerate(values):
        if value is not None and value == value and value != "":
            yield first.setdefault(value, index), index
