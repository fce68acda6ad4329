"""Which images show the same photograph, among many: those of the same bytes, and near-duplicates by their hashes
(`melanoma.imaging.hashing`). Images of different patients never do; one without a patient may be of any.

How hashes are compared, without comparing all pairs: their 256 bits are dealt to 15 bands. Two hashes that differ in at
most 28 bits differ in at most one bit of one of the first 14 bands, or in none of the last: otherwise they would differ
in 14 times 2 and 1, which is 29 (the pigeonhole principle of multi-index hashing: Norouzi, Punjani and Fleet 2012,
doi:10.1109/CVPR.2012.6248043). So a hash is compared with those that share a band with it but for one bit, and, where
patients are known, only with those of the same. Bits are dealt at random, because neighbours are alike.

An image that is not shown is compared with no later one: of 50,000 black pictures of a camera one is left. Pictures
that share bands with thousands and are yet not the same are compared with each of them once, until one is the same. So
the worst case is the comparison of all pairs, some 10 nanoseconds each, and no more than a part of them is held. faiss,
which does the search for a catalog, returns all pairs, of any patients: of 50,000 black pictures a billion.
"""

import itertools
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from melanoma.imaging.hashing import NEAR_DUPLICATE_DISTANCE

Ints = npt.NDArray[np.int64]

_DIGITS = 64  # hexadecimal, of a hash
_BANDS = NEAR_DUPLICATE_DISTANCE // 2 + 1
_FLIPPED = NEAR_DUPLICATE_DISTANCE + 1 - _BANDS  # bands that may differ in one bit
_BOUNDS = np.linspace(0, 4 * _DIGITS, _BANDS + 1).round().astype(int)
_DEALT = np.random.default_rng(0).permutation(4 * _DIGITS)
_LEAST_BUCKETS = 18  # as a power of two: the values of the widest band
_FEW = 1024  # images that are compared with each other at once; and targets that are not worth an index
_QUERIES = 8192  # looked up at a time
_CANDIDATES = 2**20  # compared at a time


class Photographs(NamedTuple):
    """What tells n photographs apart."""

    digest: Ints  # [n]: a number for each digest, -1 where there is none
    patient: Ints  # [n]: a number for each patient, -1 where it is not known
    is_hashed: npt.NDArray[np.bool_]  # [n]
    words: npt.NDArray[np.uint64]  # [4, n]: the hash
    bands: npt.NDArray[np.int32]  # [bands, n]: the same, dealt to bands

    def take(self, rows: Ints | slice | npt.NDArray[np.bool_]) -> "Photographs":
        return Photographs(
            self.digest[rows], self.patient[rows], self.is_hashed[rows], self.words[:, rows], self.bands[:, rows]
        )


def of_columns(digests: pa.ChunkedArray, hashes: pa.ChunkedArray, patients: pa.ChunkedArray) -> Photographs:
    """What these columns of strings say, row by row; a null and the empty string are nothing."""
    is_hashed = np.asarray(pc.fill_null(pc.match_substring_regex(hashes, f"^[0-9a-f]{{{_DIGITS}}}$"), False))
    words = np.zeros((4, len(hashes)), np.uint64)
    bands = np.zeros((_BANDS, len(hashes)), np.int32)
    for start in range(0, len(hashes), 2**16):
        part = slice(start, start + 2**16)
        known = hashes[part].filter(pa.array(is_hashed[part])).to_pylist()
        bits = np.unpackbits(np.frombuffer(bytes.fromhex("".join(known)), np.uint8).reshape(-1, _DIGITS // 2), axis=1)
        words[:, part][:, is_hashed[part]] = np.packbits(bits, axis=1).view(np.uint64).T
        dealt = bits[:, _DEALT]
        for band, (first, last) in enumerate(itertools.pairwise(_BOUNDS)):
            bands[band, part][is_hashed[part]] = dealt[:, first:last] @ (1 << np.arange(last - first))
    return Photographs(_numbers(digests), _numbers(patients), is_hashed, words, bands)


def _numbers(values: pa.ChunkedArray) -> Ints:
    known = pc.if_else(pc.equal(values, ""), None, values).combine_chunks()
    return np.asarray(pc.fill_null(known.dictionary_encode().indices, -1)).astype(np.int64)


def shown_for(photographs: Photographs) -> Ints:
    """int [n]: for each image the first one that is shown and shows the same photograph, itself where there is none.

    Images are taken in their order, and one that shows the same photograph as one that is shown is not shown itself.
    """
    shown = np.arange(len(photographs.digest))

    def settle(rows: Ints) -> None:
        """Settle images that show the same as none that is shown before the first of them."""
        if len(rows) <= _FEW:
            _settle_few(photographs.take(rows), rows, shown)
            return
        first, second = np.array_split(rows, 2)
        settle(first)
        first = first[shown[first] == first]
        found = first_same(photographs.take(second), photographs.take(first))
        is_same = found < len(first)
        shown[second[is_same]] = first[found[is_same]]
        settle(second[~is_same])

    settle(shown.copy())
    return shown


def _settle_few(photographs: Photographs, rows: Ints, shown: Ints) -> None:
    same = np.triu(_same(photographs, photographs), 1)
    is_shown = np.ones(len(rows), bool)
    for place in np.flatnonzero(same.any(axis=0)).tolist():
        earlier = np.flatnonzero(same[:place, place] & is_shown[:place])
        if len(earlier):
            is_shown[place] = False
            shown[rows[place]] = rows[earlier[0]]


def first_same(queries: Photographs, targets: Photographs) -> Ints:
    """int [queries]: the place of the first target that shows the same photograph, or the number of targets."""
    found = np.full(len(queries.digest), len(targets.digest))
    knows, is_known = queries.patient >= 0, targets.patient >= 0
    for of_queries, of_targets, within_patient in (
        (np.full(len(found), True), ~is_known, False),
        (knows, is_known, True),
        (~knows, is_known, False),
    ):
        asked, among = np.flatnonzero(of_queries), np.flatnonzero(of_targets)
        if len(asked) and len(among):
            sides = [queries.take(asked), targets.take(among)]
            if not within_patient:
                sides = [side._replace(patient=np.zeros_like(side.patient)) for side in sides]
            _note(found, asked, _search(*sides), among)
    return found


def _note(found: Ints, asked: Ints, places: Ints, among: Ints) -> None:
    """Take over what was found of the queries `asked`, `places` in the targets `among`, where it comes before."""
    is_same = places < len(among)
    asked = asked[is_same]
    found[asked] = np.minimum(found[asked], among[places[is_same]])


def _search(queries: Photographs, targets: Photographs) -> Ints:
    """Like `first_same`, where only those of equal `patient` may be the same."""
    if len(targets.digest) <= _FEW:
        return _compare_all(queries, targets)
    found = _first_of_digest(queries, targets)
    asked, among = np.flatnonzero(queries.is_hashed), np.flatnonzero(targets.is_hashed)
    places, is_crowded = _first_near(queries.take(asked), targets.take(among))
    _note(found, asked, places, among)
    crowded = asked[is_crowded]
    _note(found, crowded, _compare_all(queries.take(crowded), targets), np.arange(len(targets.digest)))
    return found


def _first_of_digest(queries: Photographs, targets: Photographs) -> Ints:
    patients = 1 + max(queries.patient.max(initial=0), targets.patient.max(initial=0))
    wanted, held = (side.digest * patients + side.patient for side in (queries, targets))
    values, first = np.unique(held, return_index=True)
    at = np.minimum(np.searchsorted(values, wanted), len(values) - 1)
    is_same = (values[at] == wanted) & (queries.digest >= 0)
    return np.where(is_same, first[at], len(held))


def _first_near(queries: Photographs, targets: Photographs) -> tuple[Ints, npt.NDArray[np.bool_]]:
    """The place of the first target whose hash is near and whose patient is equal; and which queries are given up,
    because they share bands with so many that it is quicker to compare them with all."""
    found = np.full(len(queries.digest), len(targets.digest))
    looked_at = np.zeros(len(found), np.int64)
    most = len(targets.digest) // 4
    size = max(_LEAST_BUCKETS, len(targets.digest).bit_length())
    for band, width in enumerate(np.diff(_BOUNDS).tolist()):
        held = _buckets(targets.bands[band], targets.patient, size)
        order = np.argsort(held, kind="stable")
        counts = np.bincount(held, minlength=2**size)
        starts = np.cumsum(counts) - counts
        flips = np.array([0, *(1 << np.arange(width))]) if band < _FLIPPED else np.array([0])
        words = targets.words[0][order]
        asked = np.flatnonzero(looked_at <= most)
        for rows in np.array_split(asked, 1 + len(asked) // _QUERIES):
            buckets = _buckets(queries.bands[band][rows, None] ^ flips, queries.patient[rows, None], size)
            many = counts[buckets]
            looked_at[rows] += many.sum(axis=1)
            many[looked_at[rows] > most] = 0
            slots = np.flatnonzero(many)
            for slot, places in _expanded(starts[buckets.ravel()[slots]], many.ravel()[slots]):
                asking = rows[slots[slot] // len(flips)]
                # Most of what shares a band differs in the first word already.
                is_like = np.bitwise_count(words[places] ^ queries.words[0][asking]) <= NEAR_DUPLICATE_DISTANCE
                asking, target = asking[is_like], order[places[is_like]]
                is_same = _distance(queries.words[:, asking], targets.words[:, target]) <= NEAR_DUPLICATE_DISTANCE
                is_same &= queries.patient[asking] == targets.patient[target]
                np.minimum.at(found, asking[is_same], target[is_same])
    return found, looked_at > most


def _buckets(words: npt.NDArray[np.integer], patients: Ints, size: int) -> Ints:
    """A number below 2**size for each value of a band and patient."""
    return (words + patients * 0x9E3779B1) & (2**size - 1)


def _expanded(starts: Ints, lengths: Ints) -> Iterator[tuple[Ints, Ints]]:
    """The places from each start, as many as its length, and whose they are: two arrays [n], a part at a time."""
    ends = np.cumsum(lengths)
    for part in np.split(np.arange(len(lengths)), np.flatnonzero(np.diff(ends // _CANDIDATES)) + 1):
        many = lengths[part]
        offsets = starts[part] - (np.cumsum(many) - many)
        yield np.repeat(part, many), np.repeat(offsets, many) + np.arange(many.sum())


def _compare_all(queries: Photographs, targets: Photographs) -> Ints:
    """Like `first_same`, by comparing each with each, in order, until one is the same."""
    found = np.full(len(queries.digest), len(targets.digest))
    for start in range(0, len(targets.digest), _FEW):
        part = targets.take(slice(start, start + _FEW))
        rest = np.flatnonzero(found == len(targets.digest))
        for rows in np.array_split(rest, 1 + len(rest) // 64):
            same = _same(queries.take(rows), part)
            found[rows] = np.where(same.any(axis=1), start + same.argmax(axis=1), found[rows])
    return found


def _same(one: Photographs, other: Photographs) -> npt.NDArray[np.bool_]:
    """bool [one, other]: whether they show the same photograph."""
    same = _distance(one.words[:, :, None], other.words[:, None]) <= NEAR_DUPLICATE_DISTANCE
    same &= one.is_hashed[:, None] & other.is_hashed
    same |= (one.digest[:, None] == other.digest) & (other.digest >= 0)
    return same & ((one.patient[:, None] == other.patient) | (one.patient[:, None] < 0) | (other.patient < 0))


def _distance(one: npt.NDArray[np.uint64], other: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint16]:
    """In how many bits hashes differ; the first axis of both are their words."""
    distance = np.bitwise_count(one[0] ^ other[0]).astype(np.uint16)
    for word in range(1, len(one)):
        distance += np.bitwise_count(one[word] ^ other[word])
    return distance
