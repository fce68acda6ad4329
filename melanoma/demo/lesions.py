"""Generated lesions, for the demo and for tests where there are no real images.

A picture is skin under four layers: melanin and blood absorb light (Beer-Lambert), pigment deep in the skin looks
blue-grey (Tyndall effect), keratin and scar look white. Each diagnosis lays them out as dermoscopy teaches it: see the
functions below. Skin tone, light, hairs, ruler, position and scale tell nothing of the diagnosis.

These pictures teach a model to tell drawings apart. They say nothing about how well it would do on patients.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from melanoma.taxonomy import CODES, NAMES

Layer = np.ndarray  # float32 [height, width]
Points = np.ndarray  # float64 [count, 2], in units of the lesion


def draw_lesion(code: str, seed: int, width: int = 180, height: int = 180) -> np.ndarray:
    """A dermoscopic picture of a diagnosis. The same arguments give the same picture.

    Args:
        code: The diagnosis, a code of the taxonomy.
        seed: Which of its pictures.
        width: In pixels.
        height: In pixels.

    Returns:
        uint8 RGB [height, width, 3].

    Raises:
        ValueError: The code is not of the taxonomy.
    """
    if code not in _DRAWINGS:
        raise ValueError(f"{code!r} is not a diagnosis that can be drawn: use one of {', '.join(CODES)}")
    rng = np.random.default_rng([CODES.index(code), seed, width, height])
    field = _Field(rng, width, height)
    lesion = _DRAWINGS[code](field, rng)
    return _photograph(_skin(field, rng), lesion, field, rng)


# --- the field of view -----------------------------------------------------------------------------------------------


class _Field:
    """The picture's pixels seen from its lesion, which lies somewhere near the middle and has a radius of about 1.

    `u`, `v`: float32 [height, width], place in units of the lesion. `scale`: the lesion's radius in units of half the
    shorter side of the picture, which is `half_side` pixels. All random fields have about unit variance.
    """

    def __init__(self, rng: np.random.Generator, width: int, height: int) -> None:
        self._rng = rng
        self.width, self.height = width, height
        self.half_side = min(width, height) / 2
        self.scale = rng.uniform(0.48, 0.76)
        angle, stretch = rng.uniform(0, 2 * np.pi), rng.uniform(0.78, 1.0)
        turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
        self._to_lesion = np.diag([1.0, 1 / stretch]) @ turn / (self.scale * self.half_side)
        self._centre = np.array([width, height]) / 2 + rng.uniform(-0.2, 0.2, 2) * self.half_side
        x = np.arange(width, dtype=np.float32) + np.float32(0.5 - self._centre[0])
        y = np.arange(height, dtype=np.float32)[:, None] + np.float32(0.5 - self._centre[1])
        matrix = self._to_lesion.astype(np.float32)
        self.u: Layer = matrix[0, 0] * x + matrix[0, 1] * y
        self.v: Layer = matrix[1, 0] * x + matrix[1, 1] * y
        self.radius: Layer = np.hypot(self.u, self.v)
        self._angle: Layer = np.arctan2(self.v, self.u)

    def noise(self, cells: float) -> Layer:
        """Smooth noise with about `cells` bumps along the shorter side of the picture."""
        columns, rows = (int(np.ceil(cells * side / (2 * self.half_side))) + 3 for side in (self.width, self.height))
        coarse = self._rng.standard_normal((rows, columns), dtype=np.float32)
        resized = Image.fromarray(coarse).resize(
            (self.width, self.height), Image.Resampling.BICUBIC, box=(1, 1, columns - 1, rows - 1)
        )
        return np.asarray(resized) * np.float32(1.4)

    def depth(self, lobes: Sequence[float], ragged: float = 0.0) -> Layer:
        """How far inside the outline a place is: 1 in the centre, 0 on the border, below 0 outside.

        `lobes`: strengths of 1, 2, ... waves around the outline. `ragged`: strength of fine irregularity.
        """
        turn = np.linspace(-np.pi, np.pi, 1024)
        outline = np.ones_like(turn)
        for wave, strength in enumerate(lobes, start=1):
            outline += strength * self._rng.normal() * np.cos(wave * turn + self._rng.uniform(0, 2 * np.pi))
        outline = np.clip(outline, 0.35, 1.6).astype(np.float32)
        index = ((self._angle + np.float32(np.pi)) * np.float32(1023 / (2 * np.pi))).astype(np.intp)
        depth = 1 - self.radius / outline[index]
        return depth + np.float32(ragged) * self.noise(14 / self.scale) if ragged else depth

    def network(self, period: float, warp: float = 0.3) -> Layer:
        """A honeycomb of dark lines, 0 in the holes to 1 on the lines. `period` is a share of half the shorter side."""
        k = np.float32(2 * np.pi * self.scale / period)
        u = k * self.u + np.float32(warp * 2 * np.pi) * self.noise(5)
        v = k * self.v + np.float32(warp * 2 * np.pi) * self.noise(5)
        waves = np.cos(u) + np.cos(0.5 * u + 0.866 * v) + np.cos(0.5 * u - 0.866 * v)
        return _step(1.1 - waves, 1.6)

    def ridges(self, period: float, warp: float) -> Layer:
        """Parallel bent ridges as of a fingerprint, 0 to 1."""
        k = np.float32(2 * np.pi * self.scale / period)
        return 0.5 + 0.5 * np.sin(k * self.u + np.float32(warp * 2 * np.pi) * self.noise(3))

    def places(self, count: int | np.int64, low: float = 0.0, high: float = 0.95) -> Points:
        """`count` random places between two radii."""
        radius = np.sqrt(self._rng.uniform(low**2, high**2, count))
        angle = self._rng.uniform(0, 2 * np.pi, count)
        return np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1)

    def spots(self, places: Points, low: float, high: float, oval: float = 1.0) -> Layer:
        """Filled spots at places of the lesion, 0 to 1. Radii between `low` and `high` of half the shorter side."""
        centres = self._pixels(places)
        radii = self._rng.uniform(low, high, len(places)) * self.half_side
        ovals = self._rng.uniform(oval, 1 / oval, len(places))

        def draw(pen: ImageDraw.ImageDraw) -> None:
            for (x, y), radius, shape in zip(centres, radii, ovals, strict=True):
                a, b = radius * shape, radius / shape
                pen.ellipse([2 * (x - a), 2 * (y - b), 2 * (x + a), 2 * (y + b)], fill=255)

        return self.drawn(draw)

    def tree(self, start: Points, heading: float, length: float, thickness: float) -> Layer:
        """A vessel that branches and thins out, 0 to 1. `length` in units of the lesion, `thickness` in half sides."""
        strokes: list[tuple[list[float], int]] = []
        ends = [(start, heading, length, thickness)]
        while ends:
            place, direction, left, thick = ends.pop()
            path = [place]
            for _ in range(max(2, int(left / 0.13))):
                direction += self._rng.normal(0, 0.28)
                path.append(path[-1] + 0.13 * np.array([np.cos(direction), np.sin(direction)]))
            line = 2 * self._pixels(np.stack(path))
            strokes.append((line.ravel().tolist(), max(1, round(2 * thick * self.half_side))))
            if left > 0.3:
                fork = self._rng.uniform(0.35, 0.8)
                shares = self._rng.uniform(0.5, 0.85, 2)
                ends += [
                    (path[-1], direction + fork, left * shares[0], thick * 0.72),
                    (path[len(path) // 2], direction - fork, left * shares[1], thick * 0.6),
                ]

        def draw(pen: ImageDraw.ImageDraw) -> None:
            for line, thick in strokes:
                pen.line(line, fill=255, width=thick, joint="curve")

        return self.drawn(draw)

    def drawn(self, draw: Callable[[ImageDraw.ImageDraw], None]) -> Layer:
        """What `draw` draws in pixels times two, smoothed to the picture's size, 0 to 1."""
        image = Image.new("L", (2 * self.width, 2 * self.height))
        draw(ImageDraw.Draw(image))
        return np.asarray(image.reduce(2), np.float32) / 255

    def blurred(self, mask: Layer, radius: float) -> Layer:
        """`mask`, 0 to 1, with its edges softened over `radius` of half the shorter side."""
        image = Image.fromarray((mask * 255).astype(np.uint8))
        return np.asarray(image.filter(ImageFilter.GaussianBlur(radius * self.half_side)), np.float32) / 255

    def _pixels(self, places: Points) -> Points:
        return places @ np.linalg.inv(self._to_lesion).T + self._centre


def _step(value: Layer, width: float) -> Layer:
    """A smooth step from 0 to 1 around value 0, `width` wide."""
    t = np.clip(value / np.float32(width) + np.float32(0.5), 0, 1)
    return t * t * (3 - 2 * t)


# --- the nine diagnoses ----------------------------------------------------------------------------------------------


@dataclass
class _Lesion:
    """Layers of float32 [height, width], 0 where there is nothing. `blue` and `white` are shares, at most 1."""

    melanin: Layer | float = 0.0
    blood: Layer | float = 0.0
    blue: Layer | float = 0.0
    white: Layer | float = 0.0


def _melanoma(field: _Field, rng: np.random.Generator) -> _Lesion:
    """Asymmetric, notched and blurred in places, several browns, blue-white veil, irregular dots, pale regression."""
    depth = field.depth([0.16, 0.15, 0.12, 0.08, 0.05, 0.04, 0.03], ragged=0.045)
    inside = _step(depth, rng.uniform(0.12, 0.35))
    tones = np.exp(rng.uniform(0.25, 0.65) * field.noise(3))
    network = field.network(rng.uniform(0.09, 0.14), warp=0.6) * _step(field.noise(3), 1.5)
    dots = field.spots(field.places(rng.integers(3, 30), 0.2, 1.0) + rng.normal(0, 0.25, 2), 0.01, 0.035)
    veil = _step(field.noise(2.5) - rng.uniform(0.3, 1.4), 0.9) * _step(depth - 0.15, 0.4)
    regression = _step(field.noise(3) - rng.uniform(0.8, 1.8), 0.8) * inside
    melanin = rng.uniform(0.6, 1.6) * inside * tones * (0.75 + 0.5 * network) + 0.9 * dots * _step(depth + 0.1, 0.2)
    return _Lesion(
        melanin=melanin * (1 - 0.6 * regression),
        blood=rng.uniform(0, 0.5) * inside * _step(field.noise(3), 1),
        blue=rng.uniform(0.3, 0.65) * veil,
        white=0.3 * regression,
    )


def _nevus(field: _Field, rng: np.random.Generator) -> _Lesion:
    """Symmetric and even: one or two browns, regular network or globules that fade towards the border."""
    depth = field.depth([0.02, 0.07, 0.03, 0.015], ragged=0.015)
    inside = _step(depth, rng.uniform(0.12, 0.6))
    base = rng.uniform(0.3, 1.7) * inside * (1 + rng.uniform(-0.3, 0.5) * _step(depth - 0.5, 0.6))
    if rng.random() < 0.65:
        texture = field.network(rng.uniform(0.085, 0.12), warp=0.15)
    else:
        texture = field.spots(field.places(rng.integers(40, 110)), 0.014, 0.026)
    return _Lesion(melanin=base * (0.8 + rng.uniform(0.15, 0.5) * texture), blood=rng.uniform(0, 0.35) * inside)


def _basal_cell_carcinoma(field: _Field, rng: np.random.Generator) -> _Lesion:
    """Pink and pearly, arborizing vessels in sharp focus, blue-grey ovoid nests, now and then an ulcer."""
    depth = field.depth([0.06, 0.09, 0.06, 0.04], ragged=0.05)
    inside = _step(depth, rng.uniform(0.3, 0.7))
    vessels: Layer = np.zeros_like(depth)
    for _ in range(rng.integers(1, 4)):
        start = field.places(1, 0.5, 1.1)[0]
        inward = np.arctan2(-start[1], -start[0]) + rng.normal(0, 0.6)
        vessels = np.maximum(vessels, field.tree(start, inward, rng.uniform(0.6, 1.1), rng.uniform(0.012, 0.024)))
    nests = field.blurred(field.spots(field.places(rng.integers(0, 10), 0.1, 0.9), 0.025, 0.1, oval=0.7), 0.022)
    ulcer = _step(field.noise(4) - rng.uniform(1.2, 2.6), 0.4) * _step(depth - 0.3, 0.3)
    return _Lesion(
        melanin=rng.uniform(0, 0.7) * inside * _step(field.noise(4), 2) + 1.1 * ulcer,
        blood=rng.uniform(0.05, 0.5) * inside + rng.uniform(0.5, 1.0) * vessels + 1.0 * ulcer,
        blue=rng.uniform(0.35, 0.75) * nests,
        white=rng.uniform(0.05, 0.35) * inside * _step(field.noise(5), 1.5),
    )


def _dermatofibroma(field: _Field, rng: np.random.Generator) -> _Lesion:
    """Symmetric and soft: a white scar-like patch in the middle, a faint brown network around it."""
    depth = field.depth([0.03, 0.06, 0.03], ragged=0.025)
    inside = _step(depth, rng.uniform(0.5, 0.9))
    patch = _step(depth - rng.uniform(0.45, 0.7) + 0.1 * field.noise(7), rng.uniform(0.3, 0.6))
    streaks = _step(np.abs(field.noise(12)) - 0.9, 0.8)
    network = field.network(rng.uniform(0.09, 0.13), warp=0.3)
    return _Lesion(
        melanin=rng.uniform(0.2, 1.0) * inside * (0.75 + 0.35 * network) * (1 - 0.7 * patch),
        blood=rng.uniform(0.05, 0.55) * inside,
        white=patch * (rng.uniform(0.15, 0.4) + 0.25 * streaks),
    )


def _pigmented_benign_keratosis(field: _Field, rng: np.random.Generator) -> _Lesion:
    """Flat and light brown with a sharp moth-eaten border, ridges as of a fingerprint."""
    bites = field.spots(field.places(rng.integers(5, 14), 0.85, 1.15), 0.04, 0.12)
    depth = field.depth([0.06, 0.09, 0.06, 0.05], ragged=0.03)
    inside = _step(depth, rng.uniform(0.06, 0.16)) * (1 - 0.85 * field.blurred(bites, 0.017))
    ridges = field.ridges(rng.uniform(0.07, 0.12), rng.uniform(0.7, 1.6)) * _step(field.noise(4) + 0.6, 1.5)
    return _Lesion(
        melanin=rng.uniform(0.3, 1.4) * inside * (0.7 + rng.uniform(0.2, 0.5) * ridges) * np.exp(0.2 * field.noise(5)),
        blood=rng.uniform(0, 0.4) * inside,
        blue=rng.uniform(0, 0.3) * inside * _step(field.noise(4), 1),
    )


def _seborrheic_keratosis(field: _Field, rng: np.random.Generator) -> _Lesion:
    """Stuck on and waxy: sharp border with a rim of shade, milia-like white cysts, comedo-like dark openings."""
    depth = field.depth([0.05, 0.08, 0.05, 0.04, 0.03], ragged=0.025)
    inside = _step(depth, rng.uniform(0.05, 0.12))
    cysts = field.blurred(field.spots(field.places(rng.integers(4, 22), 0, 0.85), 0.012, 0.032), 0.013)
    openings = field.blurred(field.spots(field.places(rng.integers(3, 16), 0, 0.9), 0.018, 0.042, oval=0.75), 0.009)
    furrows = rng.uniform(0, 0.45) * _step(0.15 - np.abs(field.noise(8)), 0.25)
    wax = rng.uniform(0.35, 1.6) * np.exp(0.25 * field.noise(7)) + 0.3 * _step(0.12 - depth, 0.1)
    return _Lesion(
        melanin=inside * (wax + rng.uniform(0.5, 1.2) * openings + furrows),
        blood=rng.uniform(0, 0.4) * inside,
        blue=rng.uniform(0, 0.3) * inside,
        white=inside * np.maximum(rng.uniform(0.35, 0.7) * cysts, rng.uniform(0.0, 0.2) * _step(field.noise(10), 1)),
    )


def _squamous_cell_carcinoma(field: _Field, rng: np.random.Generator) -> _Lesion:
    """Pink, a central mass of white to amber keratin, scales, clusters of glomerular vessels around it."""
    depth = field.depth([0.08, 0.09, 0.07, 0.05], ragged=0.045)
    inside = _step(depth, rng.uniform(0.3, 0.8))
    mass = _step(depth - rng.uniform(0.5, 0.8) + 0.18 * field.noise(7), rng.uniform(0.12, 0.3))
    scales = _step(field.noise(14) - rng.uniform(0.5, 1.3), 1.0) * inside
    clusters = field.places(rng.integers(2, 7), 0.45, 0.95)
    coils = (clusters[:, None] + rng.normal(0, 0.12, (len(clusters), rng.integers(9, 18), 2))).reshape(-1, 2)
    vessels = field.spots(coils, 0.01, 0.02)
    amber = rng.uniform(0, 0.9)
    return _Lesion(
        melanin=rng.uniform(0, 0.6) * inside * _step(field.noise(4), 2) + amber * mass,
        blood=rng.uniform(0.2, 0.7) * inside * (1 - 0.6 * mass) + rng.uniform(0.4, 0.9) * vessels * (1 - mass),
        white=np.maximum(rng.uniform(0.25, 0.5) * mass * (1 - 0.4 * amber), rng.uniform(0.15, 0.45) * scales),
    )


def _actinic_keratosis(field: _Field, rng: np.random.Generator) -> _Lesion:
    """A strawberry without a clear border: red pseudonetwork around pale follicle openings, fine white scale."""
    depth = field.depth([0.1, 0.12, 0.07], ragged=0.08)
    inside = _step(depth, rng.uniform(0.8, 1.4))
    follicles = 1 - field.network(rng.uniform(0.15, 0.24), warp=0.3)
    scale = _step(field.noise(26) - rng.uniform(0.5, 1.3), 1.0) * inside
    return _Lesion(
        melanin=rng.uniform(0, 0.7) * inside * (1 - 0.5 * follicles),
        blood=rng.uniform(0.3, 0.95) * inside * (1 - rng.uniform(0.3, 0.75) * follicles) * np.exp(0.2 * field.noise(6)),
        white=np.maximum(rng.uniform(0, 0.25) * inside * follicles, rng.uniform(0.1, 0.4) * scale),
    )


def _vascular_lesion(field: _Field, rng: np.random.Generator) -> _Lesion:
    """Round and sharp: red to purple or blue-black lacunae, parted by paler septa."""
    depth = field.depth([0.03, 0.07, 0.05], ragged=0.02)
    inside = _step(depth, rng.uniform(0.1, 0.4))
    lacunae = field.blurred(field.spots(field.places(rng.integers(10, 40), 0, 0.85), 0.05, 0.12, oval=0.8), 0.018)
    clots = _step(field.noise(4) - rng.uniform(0.2, 2.5), 0.5) * lacunae
    return _Lesion(
        melanin=0.9 * clots * inside,
        blood=inside * (rng.uniform(0.2, 0.7) + rng.uniform(0.3, 0.9) * lacunae + 0.4 * clots),
        blue=rng.uniform(0, 0.45) * inside * lacunae,
        white=rng.uniform(0, 0.2) * inside * (1 - lacunae),
    )


_DRAWINGS: dict[str, Callable[[_Field, np.random.Generator], _Lesion]] = {
    "AK": _actinic_keratosis,
    "BCC": _basal_cell_carcinoma,
    "DF": _dermatofibroma,
    "MEL": _melanoma,
    "NV": _nevus,
    "BKL": _pigmented_benign_keratosis,
    "SK": _seborrheic_keratosis,
    "SCC": _squamous_cell_carcinoma,
    "VASC": _vascular_lesion,
}

# --- skin, light and camera: the same for all diagnoses --------------------------------------------------------------

# Absorption of red, green and blue light by one unit of the pigment, and the colours of the layers that scatter light.
_MELANIN = np.array([0.42, 0.72, 0.98], np.float32)
_BLOOD = np.array([0.14, 0.85, 0.70], np.float32)
_PALE_SKIN = np.array([0.94, 0.82, 0.76], np.float32)
_BLUE_GREY = np.array([0.36, 0.38, 0.48], np.float32)
_WHITE = np.array([0.96, 0.91, 0.86], np.float32)


def _skin(field: _Field, rng: np.random.Generator) -> _Lesion:
    return _Lesion(
        melanin=rng.exponential(0.08) + np.float32(rng.uniform(0.01, 0.05)) * (field.noise(5) + field.noise(40)),
        blood=rng.uniform(0.02, 0.2) + np.float32(rng.uniform(0.01, 0.04)) * (field.noise(9) + field.noise(24)),
    )


def _photograph(skin: _Lesion, lesion: _Lesion, field: _Field, rng: np.random.Generator) -> np.ndarray:
    # Nothing on skin is even.
    grain = np.exp(0.08 * field.noise(11) + 0.08 * field.noise(24))
    melanin = np.asarray(np.maximum(skin.melanin + lesion.melanin * grain, 0), np.float32)[..., None]
    blood = np.asarray(np.maximum(skin.blood + lesion.blood / grain, 0), np.float32)[..., None]
    picture = _PALE_SKIN * np.exp(-melanin * _MELANIN - blood * _BLOOD)
    for share, colour in ((lesion.blue, _BLUE_GREY), (lesion.white, _WHITE)):
        part = np.asarray(share, np.float32)[..., None]
        picture += part * (colour - picture)

    light = rng.uniform(0.86, 1.05) + rng.normal(0, 0.05) * field.u + rng.normal(0, 0.05) * field.v
    if rng.random() < 0.25:
        x, y = (np.linspace(-side, side, side) / (2 * field.half_side) for side in (field.width, field.height))
        from_middle = np.hypot(x, y[:, None])
        light = light * (1 - rng.uniform(0.2, 1.0) * _step(from_middle - rng.uniform(1.0, 1.3), 0.3))
    if rng.random() < 0.25:
        light = light * (1 - rng.uniform(0.5, 0.85) * field.drawn(lambda pen: _hairs(pen, field, rng)))
    if rng.random() < 0.2:
        light = light * (1 - 0.85 * field.drawn(lambda pen: _ruler(pen, field, rng)))
    white_balance = rng.normal(1, 0.025, 3).astype(np.float32)
    picture *= light.astype(np.float32)[..., None] * white_balance * 255

    sharpness = rng.uniform(0, 0.01) * field.half_side
    blurred = Image.fromarray(np.clip(picture, 0, 255).astype(np.uint8)).filter(ImageFilter.GaussianBlur(sharpness))
    noise = rng.standard_normal(picture.shape, dtype=np.float32) * np.float32(rng.uniform(1, 4))
    return np.clip(np.asarray(blurred, np.float32) + noise + 0.5, 0, 255).astype(np.uint8)


def _hairs(pen: ImageDraw.ImageDraw, field: _Field, rng: np.random.Generator) -> None:
    size = 2 * np.array([field.width, field.height])
    heading = rng.uniform(0, np.pi)
    for _ in range(rng.integers(2, 16)):
        direction = heading + rng.normal(0, 0.5)
        along, bend = np.array([np.cos(direction), np.sin(direction)]), rng.normal(0, 0.4)
        steps = np.linspace(-0.5, 0.5, 12)[:, None] * rng.uniform(0.3, 1.2)
        path = rng.uniform(0, 1, 2) + steps * along + bend * steps**2 * along[::-1] * [1, -1]
        pen.line((path * size).ravel().tolist(), fill=255, width=max(1, round(min(size) / 360 * rng.uniform(1, 3.5))))


def _ruler(pen: ImageDraw.ImageDraw, field: _Field, rng: np.random.Generator) -> None:
    width, height = 2 * field.width, 2 * field.height
    side, gap, start = rng.integers(4), rng.uniform(0.05, 0.09) * min(width, height), rng.uniform(0, 0.3)
    long, far = (width, height) if side < 2 else (height, width)
    for number, place in enumerate(np.arange(start * long, long, gap)):
        length = min(width, height) * (0.07 if number % 5 == 0 else 0.04)
        near, end = (0.0, length) if side % 2 == 0 else (far - length, float(far))
        line = (place, near, place, end) if side < 2 else (near, place, end, place)
        pen.line(line, fill=255, width=max(2, round(min(width, height) / 180)))


# --- class folders ---------------------------------------------------------------------------------------------------


def write_class_folders(root: Path, per_class: int, seed: int, size: int = 180) -> int:
    """Write ``root/<diagnosis>/SYN_<number>.jpg``, laid out as the nine-class ISIC set.

    A number stands for one picture: no two classes or seeds share one.

    Args:
        root: The folder to write to; it is made where it is missing.
        per_class: How many pictures of each diagnosis, at most 10,000.
        seed: Which pictures.
        size: Pixels a side; the files are JPEGs of quality 90.

    Returns:
        How many pictures were written.

    Raises:
        ValueError: More than 10,000 pictures a class.
    """
    if not 0 <= per_class <= _NUMBERS:
        raise ValueError(f"per_class is {per_class:,}: it must be between 0 and {_NUMBERS:,}")
    for index, code in enumerate(CODES):
        folder = root / NAMES[code]
        folder.mkdir(parents=True, exist_ok=True)
        first = (seed * len(CODES) + index) * _NUMBERS + 1
        for number in range(first, first + per_class):
            picture = Image.fromarray(draw_lesion(code, number, size, size))
            picture.save(folder / f"SYN_{number:07d}.jpg", quality=90)
    return per_class * len(CODES)


_NUMBERS = 10_000  # numbers of pictures set aside for each class of each seed
