"""Who may not be split apart: same id, same bytes, near-duplicate picture, same lesion, same patient."""

from collections.abc import Iterator

import numpy as np
import pandas as pd
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from melanoma import taxonomy
from melanoma.imaging.hashing import NEAR_DUPLICATE_DISTANCE


def group_ids(frame: pd.DataFrame) -> list[str]:
    """One id for each image of a catalog: images joined by a chain of any of the five reasons share it.

    The id comes from the members' content, so it depends neither on the order of the rows nor on their location.
    """
    count = len(frame)
    ids = [i and taxonomy.identity(i, uri) for i, uri in zip(frame["image_id"], frame["uri"], strict=True)]
    edges = [edge for values in (pd.Series(ids, dtype=object), frame["sha256"]) for edge in _same(values)]
    # A lesion or patient number is a number of its own source: two hospitals both have a patient 7.
    for column in ("lesion_id", "patient_id"):
        own = [None if v is None else f"{s}/{v}" for s, v in zip(frame["source"], frame[column], strict=True)]
        edges += list(_same(pd.Series(own, dtype=object)))
    # Equal hashes are joined first: a thousand empty frames would be half a million near-duplicate pairs.
    edges += list(_same(frame["perceptual_hash"]))
    first = {value: index for index, value in reversed(list(enumerate(frame["perceptual_hash"]))) if value}
    indices = list(first.values())
    edges += [(indices[a], indices[b]) for a, b in near_duplicates(list(first), NEAR_DUPLICATE_DISTANCE)]
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


def near_duplicates(hashes: list[str | None], distance: int) -> Iterator[tuple[int, int]]:
    """All pairs (i < j) of hexadecimal hashes of one length whose Hamming distance is at most `distance`.

    Multi-index hashing (Norouzi, Punjani, Fleet 2012, doi:10.1109/CVPR.2012.6248043): of distance + 1 bands of bits at
    least one is equal in such a pair, so only images that share a band are compared, not all pairs.
    """
    known = [index for index, value in enumerate(hashes) if value]
    if not known:
        return
    bits = np.unpackbits(
        np.array([list(bytes.fromhex(hashes[index] or "")) for index in known], dtype=np.uint8), axis=1
    )
    seen: set[tuple[int, int]] = set()
    for band in np.array_split(np.arange(bits.shape[1]), distance + 1):
        buckets: dict[bytes, list[int]] = {}
        for position, key in enumerate(np.packbits(bits[:, band], axis=1)):
            buckets.setdefault(key.tobytes(), []).append(position)
        for members in buckets.values():
            for place, position in enumerate(members[:-1]):
                others = np.array(members[place + 1 :])
                close = others[np.count_nonzero(bits[others] != bits[position], axis=1) <= distance]
                for other in close.tolist():
                    pair = (known[position], known[other])
                    if pair not in seen:
                        seen.add(pair)
                        yield pair
