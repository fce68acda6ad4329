"""Pairs of images that show the same photograph: scaled, recompressed, turned, mirrored, cropped by a little, exposed
otherwise. And, where only hashes may be kept, whether a picture has been seen.

How thumbnails are compared, without comparing all pairs:

1. Each is described by its low frequencies (cosine transform, as in a perceptual hash, but not rounded to signs). The
   descriptions of its eight orientations follow from one by changes of sign and by transposition.
2. faiss finds the nearest ones: an inverted file (IVF) of k-means lists visits a few lists and not all images. faiss,
   because it is the reference implementation of such search, runs on all cores, and needs neither a service nor a GPU.
   A cropped copy is near to a picture's inner part, so each also asks with its inner parts.
3. What is near, but for a small shift and stretch, is kept: the tangent distance of Simard, LeCun and Denker (1992).
4. Those are laid over one another by the method of Lucas and Kanade (1981; Baker and Matthews 2004,
   doi:10.1023/B:VISI.0000011205.11775.fd) with shift and scale along each axis, which is what a crop does to a squashed
   picture, and compared by the correlation of what differs from its surroundings, as a share of the contrast there:
   light, exposure and a dark rim count little, hairs and pigment network count much.

The threshold was chosen on 8,063 images of HAM10000 and 2,359 of nine-class ISIC, 54 million pairs. 12 pairs of
different lesion ids are above 0.7, which by eye all show one lesion, and 3 between 0.6 and 0.7, which do so too; the
first that shows two lesions has 0.59. All 1,412 pairs of files of one ISIC id are found, and 97% or more of 600 copies
of each of the kinds below. Different photographs of one lesion are found where the camera hardly moved.

Measured then on 2,146 images of ISIC 2017, of other cameras: 16 pairs are above 0.7, by eye one lesion each; the first
pair of two lesions has 0.55. Copies of 200 of them, searched for among all, with JPEG of quality 90 or as stated:

    200  JPEG of quality 70 or 50; scaled to 80% or 50%; each of the 7 mirrored and rotated ones; cropped by 5% of the
         area, of the sides, or on each side; brightness 0.7; contrast 0.7 or 1.3; another colour; mirrored, 80% and
         quality 70; rotated, cropped by 5% of the sides and quality 70; mirrored, gamma 0.8 and 50%
    199  JPEG of quality 30; gamma 0.7; gamma 1.4
    192  or more: a black or white border of 3% or 5%; cropped by 5% on one side; cropped by 5% on each side, brightness
         1.2 and quality 70
    187  cropped by 5% of two sides that meet, where a dark rim moves with the frame
    183  brightness 1.3, where much of the skin turns white

On 932 images of palms and soles from one hospital, round fields in black, the black and its edge had to be left out:
with them 345 pairs of different lesions are above 0.7, without them four.

A crop by 10% of two sides that meet is not found. Among 2,000 generated lesions no two are paired. For the time that
100,000 images take see tests/benchmarks/near_duplicates.py.
"""

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import faiss
import joblib
import numpy as np
import pandas as pd
from scipy.fft import dct
from scipy.ndimage import gaussian_filter1d, minimum_filter

from melanoma.imaging.hashing import NEAR_DUPLICATE_DISTANCE, THUMBNAIL_SIDE, orientations

_LEAST_SIMILARITY = 0.70  # similarity from which two thumbnails are of one photograph
_FLAT = 1.0  # grey levels: a thumbnail of a lesser standard deviation has nothing to compare

_FREQUENCIES = 8  # half waves along a side that a description counts
_INSETS = (0.0, 0.025, 0.05)  # shares of a side that are cut away on each side
_NEIGHBOURS = 20  # looked at for each orientation and inset
_LIST_LENGTH, _MOST_LISTS, _LISTS_VISITED = 100, 1024, 16
_LEAST_COSINE = 0.85  # of two descriptions
_LEAST_AGREEMENT = 0.98  # cosine of a description and the other's, when that may shift and stretch by a little
_STEPS = 3  # of the alignment
_LEAST_OVERLAP = 0.6  # share of what either picture shows
_LEAST_AREA = 0.1  # share of the picture
_EDGE = 5  # pixels, the side of the square in which nothing is black
_BLACK = 15  # grey levels: below lies what is around a dermatoscope's round field, not skin
_NEIGHBOURHOOD = 2.0  # pixels, standard deviation of the surroundings that a pixel is compared with
_LEAST_TEXTURE = 0.1  # 0 to 1, of the normalised picture: below, what is compared is the JPEG's own pattern
_NOISE = 2.0  # grey levels: a lesser contrast is not amplified
_CHUNK = 512  # pairs at a time; and descriptions eight times as many: their arrays stay below 100 MB


class Pair(NamedTuple):
    """Two rows of a catalog that show the same photograph."""

    first: int  # the row's position in the frame
    second: int  # first < second
    how: str  # "same picture", or what was done, such as "mirrored, cropped": see `_words`
    similarity: float  # 0 to 1, at least 0.7


def find(frame: pd.DataFrame) -> list[Pair]:
    """Pairs of images of a catalog that show the same photograph but are not the same bytes, in the order of rows.

    Equal thumbnails count as one picture, the first row's, which is paired with each of the others: a thousand equal
    frames are 999 pairs. So pairs by pairs all copies of a picture hang together, but not every two of them are listed.
    A picture without features (one grey) has no pairs. An image without a thumbnail of today's size is compared by its
    `perceptual_hash`, upright only.
    """
    shas = frame["sha256"].tolist() if "sha256" in frame else [None] * len(frame)
    by_thumbnail: dict[bytes, list[int]] = {}
    by_hash: dict[str, list[int]] = {}
    bare: set[int] = set()
    for row, (data, value) in enumerate(zip(frame["thumbnail"], frame["perceptual_hash"], strict=True)):
        if isinstance(data, bytes) and len(data) == THUMBNAIL_SIDE**2:
            by_thumbnail.setdefault(data, []).append(row)
        elif isinstance(value, str) and value:
            bare.add(row)
    pairs = []
    # Sorted by content: clusters, and so what an approximate search misses, do not depend on the order of the rows.
    distinct = sorted(data for data in by_thumbnail if np.frombuffer(data, dtype=np.uint8).std() >= _FLAT)
    for data in distinct:
        first, *others = by_thumbnail[data]
        pairs += [(first, other, "same picture", 1.0) for other in others]
    pictures = np.frombuffer(b"".join(distinct), dtype=np.uint8).reshape(-1, THUMBNAIL_SIDE, THUMBNAIL_SIDE)
    for a, b, how, similarity in _similar(pictures):
        pairs.append((by_thumbnail[distinct[a]][0], by_thumbnail[distinct[b]][0], how, similarity))
    if bare:
        # Those without a thumbnail come first in their list, and stand for all of it.
        for row in sorted(range(len(frame)), key=lambda row: (row not in bare, row)):
            value = frame["perceptual_hash"].iloc[row]
            if isinstance(value, str) and value:
                by_hash.setdefault(value, []).append(row)
        values = list(by_hash)
        for first, *others in by_hash.values():
            pairs += [(first, other, "same picture", 1.0) for other in others if first in bare]
        for a, b in hash_pairs(values, NEAR_DUPLICATE_DISTANCE):
            first, second = by_hash[values[a]][0], by_hash[values[b]][0]
            if first in bare or second in bare:
                distance = (int(values[a], 16) ^ int(values[b], 16)).bit_count()
                pairs.append((first, second, "same picture", 1 - distance / 256))
    return sorted(
        Pair(min(a, b), max(a, b), how, similarity)
        for a, b, how, similarity in pairs
        if shas[a] is None or shas[a] != shas[b]
    )


# --- by thumbnail: candidates ----------------------------------------------------------------------------------------


class _Hits(NamedTuple):
    """Pairs of pictures to be verified, as arrays [n]: the picture `query`, cut and turned, looks like `other`."""

    query: np.ndarray
    other: np.ndarray
    orientation: np.ndarray  # 0 to 7, of `_turned`
    inset: np.ndarray  # place in _INSETS
    agreement: np.ndarray  # 0 to 1


_PIXELS = np.arange(THUMBNAIL_SIDE, dtype=np.float32)
_MIDDLE = (THUMBNAIL_SIDE - 1) / 2
_PLACE = (_PIXELS - _MIDDLE) / (THUMBNAIL_SIDE / 2)  # -1 to 1
_COSINES = dct(np.eye(THUMBNAIL_SIDE), axis=0, norm="ortho")[:_FREQUENCIES]
_SLOPE = np.gradient(np.eye(THUMBNAIL_SIDE), axis=0)
# Times a picture, from both sides: its spectrum, and those of its change by shift and by stretch.
_ANALYSIS = np.concatenate([_COSINES, _COSINES @ _SLOPE, _COSINES @ (_PLACE[:, None] * _SLOPE)]).astype(np.float32)
_RADIUS = np.hypot(*np.mgrid[:_FREQUENCIES, :_FREQUENCIES])
_LOW = (_RADIUS > 0) & (_RADIUS < _FREQUENCIES)  # without the mean: brightness does not count
_WEIGHT = np.sqrt(_RADIUS[_LOW]).astype(np.float32)  # pictures have less of the higher ones
_SIGNS = np.where(np.arange(_FREQUENCIES) % 2, -1, 1).astype(
    np.float32
)  # a mirrored wave of odd number is its negative


def _similar(pictures: np.ndarray) -> Iterator[tuple[int, int, str, float]]:
    """Pairs of pictures uint8 [n, side, side] that are of one photograph, how, and how similar."""
    if len(pictures) < 2:
        return
    threads = joblib.cpu_count()
    faiss.omp_set_num_threads(threads)
    hits = _candidates(pictures)
    parts = [_Hits(*(v[start : start + _CHUNK] for v in hits)) for start in range(0, len(hits.query), _CHUNK)]
    with ThreadPoolExecutor(threads) as pool:
        for part, (similarity, words) in zip(parts, pool.map(lambda part: _verify(pictures, part), parts), strict=True):
            for place in np.flatnonzero(similarity >= _LEAST_SIMILARITY).tolist():
                yield int(part.query[place]), int(part.other[place]), words[place], float(similarity[place])


def _candidates(pictures: np.ndarray) -> _Hits:
    parts = []
    for start in range(0, len(pictures), 8 * _CHUNK):
        chunk = pictures[start : start + 8 * _CHUNK].astype(np.float32)
        cropped = (_unit(_spectra(crop @ chunk @ crop.T)[:, :, 0]) for crop in _CROPS)
        parts.append((np.linalg.qr(_spectra(chunk))[0], *cropped))
    spans, *descriptions = (np.concatenate(values) for values in zip(*parts, strict=True))
    count, width = descriptions[0].shape
    lists = min(_MOST_LISTS, count // _LIST_LENGTH)
    index: Any = faiss.IndexFlatIP(width)
    if lists > _LISTS_VISITED:
        index = faiss.IndexIVFFlat(index, width, lists, faiss.METRIC_INNER_PRODUCT)
        index.cp.niter, index.nprobe = 10, _LISTS_VISITED
        index.train(descriptions[0])
    index.add(descriptions[0])
    found: list[_Hits] = []
    for inset, description in enumerate(descriptions):
        for orientation in range(8):
            queries = _turned_spectrum(description, orientation)
            cosines, neighbours = index.search(queries, _NEIGHBOURS + 1)  # itself is one of them
            query, rank = np.nonzero((cosines >= _LEAST_COSINE) & (neighbours != np.arange(count)[:, None]))
            other = neighbours[query, rank]
            agreement = np.concatenate(
                [
                    np.linalg.norm(np.einsum("nd,ndk->nk", queries[query[part]], spans[other[part]]), axis=1)
                    for part in np.array_split(np.arange(len(query)), 1 + len(query) // 65536)
                ]
            )
            query, other, agreement = (v[agreement >= _LEAST_AGREEMENT] for v in (query, other, agreement))
            turn, cut = np.full_like(query, orientation), np.full_like(query, inset)
            found.append(_Hits(query, other, turn, cut, agreement))
    hits = _Hits(*(np.concatenate(values) for values in zip(*found, strict=True)))
    # Where a pair was found in several ways, the best one is verified.
    low, high = np.minimum(hits.query, hits.other), np.maximum(hits.query, hits.other)
    order = np.lexsort((-hits.agreement, high, low))
    best = order[np.unique(low[order] * count + high[order], return_index=True)[1]]
    return _Hits(*(values[best] for values in hits))


def _spectra(pictures: np.ndarray) -> np.ndarray:
    """float32 [n, waves, 5]: of pictures float32 [n, side, side], the low frequencies of each, and how they change
    by pixel of a shift across, of a stretch (at the edge) across, of a shift along, and of a stretch along."""
    every = _ANALYSIS @ pictures @ _ANALYSIS.T
    k = _FREQUENCIES
    parts = [
        every[:, :k, :k],
        every[:, :k, k : 2 * k],
        every[:, :k, 2 * k :],
        every[:, k : 2 * k, :k],
        every[:, 2 * k :, :k],
    ]
    return np.stack([part[:, _LOW] * _WEIGHT for part in parts], axis=2)


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), np.float32(1e-6))


def _turned(pictures: np.ndarray, orientation: int) -> np.ndarray:
    """Pictures [n, side, side] mirrored (bit 1), upside down (bit 2), after being transposed (bit 4)."""
    pictures = pictures.transpose(0, 2, 1) if orientation & 4 else pictures
    pictures = pictures[:, ::-1] if orientation & 2 else pictures
    return pictures[:, :, ::-1] if orientation & 1 else pictures


def _turned_spectrum(descriptions: np.ndarray, orientation: int) -> np.ndarray:
    """The descriptions [n, waves] of the turned pictures."""
    full = np.zeros((len(descriptions), _FREQUENCIES, _FREQUENCIES), dtype=np.float32)
    full[:, _LOW] = descriptions
    full = full.transpose(0, 2, 1) if orientation & 4 else full
    full = full * _SIGNS[:, None] if orientation & 2 else full
    full = full * _SIGNS if orientation & 1 else full
    return np.ascontiguousarray(full[:, _LOW])


# --- by thumbnail: verification --------------------------------------------------------------------------------------


def _sampling(zoom: np.ndarray, shift: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Matrices [n, side, side] that take pixels from `zoom * pixel + shift` by linear interpolation, and whether those
    places [n, side] lie within the picture."""
    source = zoom[:, None] * _PIXELS + shift[:, None]
    within = (source > -0.01) & (source < THUMBNAIL_SIDE - 0.99)
    source = np.clip(source, 0, THUMBNAIL_SIDE - 1)
    return np.maximum(0, 1 - np.abs(source[:, :, None] - _PIXELS)), within


_CROPS = [
    _sampling(np.array([1 - 2 * inset], np.float32), np.array([2 * inset * _MIDDLE], np.float32))[0][0]
    for inset in _INSETS
]
_BLUR = gaussian_filter1d(np.eye(THUMBNAIL_SIDE), _NEIGHBOURHOOD, axis=0, mode="constant").astype(np.float32)


def _verify(pictures: np.ndarray, hits: _Hits) -> tuple[np.ndarray, list[str]]:
    """How similar the pictures of each pair are, float32 [n], -1 to 1, and words for what one is of the other."""
    query, other = pictures[hits.query].astype(np.float32), pictures[hits.other].astype(np.float32)
    for inset, crop in enumerate(_CROPS):
        for orientation in range(8):
            those = (hits.inset == inset) & (hits.orientation == orientation)
            query[those] = _turned(crop @ query[those] @ crop.T, orientation)
    zoom, shift, aligned, within = _align(query, other)
    similarity = _similarity(query, aligned, within)
    # Where the light has changed much, what fits the low frequencies best may be less than the pictures as they are.
    as_they_are = _similarity(query, other, np.ones_like(within))
    better = as_they_are > similarity
    similarity = np.where(better, as_they_are, similarity)
    zoom[:, better], shift[:, better], aligned[better], within[better] = 1, 0, other[better], True
    cut = np.array(_INSETS)[hits.inset]
    # Where the corners of the whole query lie in the other picture, in pixels from its own.
    ends = np.array([0, THUMBNAIL_SIDE - 1]) - 2 * cut[:, None] * _MIDDLE
    ends = zoom[:, :, None] * ends / (1 - 2 * cut[:, None]) + shift[:, :, None] - [0, THUMBNAIL_SIDE - 1]
    moved = np.abs(ends).max(axis=(0, 2))
    return similarity, [
        _words(*values)
        for values in zip(hits.orientation.tolist(), moved, *_exposures(query, aligned, within), strict=True)
    ]


def _align(query: np.ndarray, other: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Lay `other` over `query`, both float32 [n, side, side].

    Returns zoom and shift [2, n], down and to the right; `other` so sampled [n, side, side]; and which of its pixels
    lie within the picture. Each step solves for shift, stretch and contrast by least squares over low frequencies,
    which see further than single pixels do.
    """
    zoom, shift = np.ones((2, len(query)), np.float32), np.zeros((2, len(query)), np.float32)
    wanted = _spectra(query)[:, :, :1]
    aligned, within = other, np.ones(other.shape, dtype=bool)
    for _ in range(_STEPS):
        change = _spectra(aligned)
        square = change.transpose(0, 2, 1) @ change
        # A picture that does not change along an axis leaves the shift along it open: none, then.
        ridge = 1e-5 * np.trace(square, axis1=1, axis2=2)[:, None, None] * np.eye(5, dtype=np.float32)
        solution = np.linalg.solve(square + ridge, change.transpose(0, 2, 1) @ wanted)[:, :, 0]
        contrast = np.maximum(solution[:, :1], 0.1)
        right, wider, down, taller = (np.clip(solution[:, 1:] / contrast, -4, 4)).T.astype(np.float32)
        samplings = []
        for axis, (step, stretch) in enumerate(((down, taller), (right, wider))):
            stretch = stretch / np.float32(THUMBNAIL_SIDE / 2)
            shift[axis] += zoom[axis] * (step - stretch * np.float32(_MIDDLE))
            zoom[axis] *= 1 + stretch
            samplings.append(_sampling(zoom[axis], shift[axis]))
        (rows, within_rows), (columns, within_columns) = samplings
        aligned = rows @ other @ columns.transpose(0, 2, 1)
        within = within_rows[:, :, None] & within_columns[:, None, :]
    return zoom, shift, aligned, within


def _similarity(one: np.ndarray, other: np.ndarray, within: np.ndarray) -> np.ndarray:
    """Correlation [n], -1 to 1, of locally normalised pictures float32 [n, side, side], where `within` is true.

    What is black in both does not count, nor what is near to it: two round fields have the same edge, whatever they
    show.
    """
    shown = minimum_filter(np.maximum(one, other), (1, _EDGE, _EDGE)) >= _BLACK
    mask = (within & shown).astype(np.float32)
    share = _BLUR @ mask @ _BLUR.T + np.float32(1e-6)

    def local(picture: np.ndarray) -> np.ndarray:
        picture = (picture - _BLUR @ (picture * mask) @ _BLUR.T / share) * mask
        return picture / np.sqrt(_BLUR @ picture**2 @ _BLUR.T / share + np.float32(_NOISE**2))

    one, other = local(one), local(other)
    area = mask.sum(axis=(1, 2))
    textures = [(picture**2).sum(axis=(1, 2)) / np.maximum(area, 1) for picture in (one, other)]
    least = np.maximum(_LEAST_OVERLAP * shown.sum(axis=(1, 2)), _LEAST_AREA * THUMBNAIL_SIDE**2)
    known = (area >= least) & (np.minimum(*textures) >= _LEAST_TEXTURE)
    covariance = (one * other).sum(axis=(1, 2)) / np.maximum(area, 1)
    return np.where(known, covariance / np.sqrt(np.maximum(textures[0] * textures[1], _LEAST_TEXTURE**2)), 0)


def _exposures(one: np.ndarray, other: np.ndarray, within: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """By how many grey levels the means differ, and by which factor the contrasts do, [n] each."""
    weight = within / np.maximum(within.sum(axis=(1, 2), keepdims=True), 1)
    means = [(p * weight).sum(axis=(1, 2)) for p in (one, other)]
    spreads = [
        np.sqrt(((p - m[:, None, None]) ** 2 * weight).sum(axis=(1, 2))) + 1e-3
        for p, m in zip((one, other), means, strict=True)
    ]
    return means[1] - means[0], spreads[1] / spreads[0]


def _words(orientation: int, moved: float, brighter: float, contrast: float) -> str:
    """What the one picture is of the other. `moved`: pixels of the thumbnail, at the corner that moved most."""
    mirrored = orientation.bit_count() % 2 == 1
    said = {
        "mirrored": mirrored,
        "rotated": orientation >= 3,
        "cropped": moved > 0.5,
        "another exposure": abs(brighter) > 6 or not 0.9 < contrast < 1.1,
    }
    return ", ".join(word for word, holds in said.items() if holds) or "same picture"


# --- by hash ---------------------------------------------------------------------------------------------------------


def seen(
    hashes: Iterable[str | None], known: Iterable[str | None], distance: int = NEAR_DUPLICATE_DISTANCE
) -> set[int]:
    """The places in `hashes` of those at most so many bits from one of `known`, mirrored and rotated ones included.

    For where no picture may be kept, only its perceptual hash. Crops by more than 1% or so are not found.
    """
    asked = {place: value for place, value in enumerate(hashes) if value}
    others = sorted({value for value in known if value})
    if not asked or not others:
        return set()
    turned = [(place, other) for place, value in asked.items() for other in orientations(value)]
    limits, _ = _within([value for _, value in turned], others, distance)
    return {turned[at][0] for at in np.flatnonzero(np.diff(limits)).tolist()}


def hash_pairs(hashes: Sequence[str | None], distance: int) -> Iterator[tuple[int, int]]:
    """All pairs (i < j) of hashes of 64 hexadecimal digits whose Hamming distance is at most `distance`, below 48.

    All pairs: of a thousand equal hashes half a million. Give each hash once.
    """
    known = [(place, value) for place, value in enumerate(hashes) if value]
    if not known:
        return
    values = [value for _, value in known]
    limits, found = _within(values, values, distance)
    for at, (place, _) in enumerate(known):
        for other in found[limits[at] : limits[at + 1]].tolist():
            if place < known[other][0]:
                yield place, known[other][0]


def _within(queries: list[str], known: list[str], distance: int) -> tuple[np.ndarray, np.ndarray]:
    """For each query the places of the known hashes within `distance`: limits [n + 1] into the places.

    faiss' multi-index hashing (Norouzi, Punjani, Fleet 2012, doi:10.1109/CVPR.2012.6248043), exact: of 16 bands of 16
    bits at least one differs in no more than distance // 16 bits, so only hashes that nearly share a band are compared.
    """
    faiss.omp_set_num_threads(joblib.cpu_count())
    bits = [
        np.frombuffer(bytes.fromhex("".join(values)), dtype=np.uint8).reshape(-1, 32) for values in (queries, known)
    ]
    index = faiss.IndexBinaryMultiHash(256, 16, 16)
    index.nflip = distance // 16
    index.add(bits[1])
    limits, _, places = index.range_search(bits[0], distance + 1)  # below, not at most
    return limits.astype(np.int64), places
