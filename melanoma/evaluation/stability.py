"""Whether the model still says the same of a picture that is turned, lit or stored a little differently.

A dermatologist would: none of these changes touches the lesion. They are made of the decoded pixels at the size that
the network takes, so a change of the same name made to an original at full size would be milder.
"""

import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from PIL import Image
from scipy import ndimage

from melanoma.evaluation.intervals import (
    RESAMPLES,
    Bools,
    Estimate,
    Floats,
    Ints,
    bootstrap,
    percentile_interval,
    proportion,
)
from melanoma.evaluation.predictions import class_probabilities, classes_of, group_codes, melanoma_side
from melanoma.model.predictor import Predictor
from melanoma.taxonomy import CODES

Pixels = npt.NDArray[np.uint8]
_BATCH = 64


def _rotated_10(image: Pixels) -> Pixels:
    # The corners are mirrored: black ones would be another change.
    turned = ndimage.rotate(image.astype(np.float32), 10, axes=(1, 0), reshape=False, order=1, mode="mirror")
    return _uint8(turned)


def _brightness(factor: float) -> Callable[[Pixels], Pixels]:
    return lambda image: _uint8(image * factor)


def _contrast(factor: float) -> Callable[[Pixels], Pixels]:
    def change(image: Pixels) -> Pixels:
        mean = image.mean()
        return _uint8(mean + (image - mean) * factor)

    return change


def _recompressed(quality: int) -> Callable[[Pixels], Pixels]:
    def change(image: Pixels) -> Pixels:
        file = io.BytesIO()
        Image.fromarray(image).save(file, "JPEG", quality=quality)
        with Image.open(file) as opened:
            return np.asarray(opened.convert("RGB"))

    return change


def _half_size_and_back(image: Pixels) -> Pixels:
    size = image.shape[0]
    picture = Image.fromarray(image).resize((max(1, size // 2),) * 2, Image.Resampling.BILINEAR)
    return np.asarray(picture.resize((size, size), Image.Resampling.BILINEAR))


def _uint8(values: npt.NDArray[Any]) -> Pixels:
    return np.asarray(np.clip(np.rint(values), 0, 255), dtype=np.uint8)


# Each takes one image, uint8 RGB [size, size, 3], and gives one.
CHANGES: dict[str, Callable[[Pixels], Pixels]] = {
    "mirrored left to right": lambda image: image[:, ::-1],
    "mirrored top to bottom": lambda image: image[::-1],
    "turned by 90 degrees": np.rot90,
    "turned by 180 degrees": lambda image: image[::-1, ::-1],
    "turned by 10 degrees": _rotated_10,
    "20% brighter": _brightness(1.2),
    "20% darker": _brightness(0.8),
    "20% more contrast": _contrast(1.2),
    "20% less contrast": _contrast(0.8),
    "JPEG of quality 70": _recompressed(70),
    "JPEG of quality 50": _recompressed(50),
    "halved in size and back": _half_size_and_back,
}


@dataclass(frozen=True)
class Flips:
    """How often a call flips."""

    raised_flips: Estimate  # share of images that are raised before and not after, or the reverse
    class_flips: Estimate  # share of images whose most probable class changes
    melanomas_lost: Estimate  # share of the raised melanomas that are not raised after


@dataclass(frozen=True)
class Change:
    """The flips of one kind of change, and the mean absolute change of p_melanoma."""

    kind: str
    raised_flips: Estimate
    class_flips: Estimate
    melanomas_lost: Estimate
    mean_change: Estimate


@dataclass(frozen=True)
class Stability:
    n: int
    n_raised_melanoma: int
    size: int  # of the changed images, in pixels
    changes: list[Change]
    any: Flips  # of images that at least one change flips


def draw(rows: pd.DataFrame, images: int, seed: int) -> Ints:
    """Positions of at most `images` rows, drawn by the seed and the `uri`, in rising order."""
    by_uri = np.argsort(rows["uri"].to_numpy(dtype=object), kind="stable")
    return np.sort(np.random.default_rng(seed).permutation(by_uri)[:images])


def stability(
    predictor: Predictor, predictions: pd.DataFrame, pixels: Pixels, seed: int = 0, resamples: int = RESAMPLES
) -> Stability:
    """How often the calls flip under `CHANGES`.

    Args:
        predictor: The model.
        predictions: Its predictions of n > 0 images, see `melanoma.evaluation.predictions`.
        pixels: These images, uint8 RGB [n, size, size, 3].
        seed: Seed of the bootstrap.
        resamples: How often the bootstrap draws.

    Returns:
        How often the diagnosis and the alert flip under each change, with intervals.
    """
    melanoma = melanoma_side(predictions).yes
    group, n_groups = group_codes(predictions)
    classes = classes_of(predictions)
    threshold = predictions["threshold"].to_numpy(dtype=np.float64)

    def call(change: Callable[[Pixels], Pixels]) -> tuple[Floats, Bools, Ints]:
        parts = []
        for at in range(0, len(pixels), _BATCH):
            changed = np.stack([np.ascontiguousarray(change(image)) for image in pixels[at : at + _BATCH]])
            parts.append(predictor.probabilities(changed))
        probability = pd.DataFrame(np.concatenate(parts), columns=[f"p_{code}" for code in CODES])
        p_melanoma = probability["p_MEL"].to_numpy(dtype=np.float64)
        return p_melanoma, p_melanoma >= threshold, class_probabilities(probability, classes).argmax(axis=1)

    p_before, raised_before, class_before = call(lambda image: image)
    found = melanoma & raised_before
    differences = np.empty((len(CHANGES), len(pixels)))
    any_raised, any_class = np.zeros(len(pixels), dtype=bool), np.zeros(len(pixels), dtype=bool)
    flips: list[Flips] = []
    for i, change in enumerate(CHANGES.values()):
        p, raised, answer = call(change)
        raised_flips, class_flips = raised != raised_before, answer != class_before
        any_raised |= raised_flips
        any_class |= class_flips
        differences[i] = np.abs(p - p_before)
        flips.append(_flips(raised_flips, class_flips, found, group))
    draws = bootstrap(lambda weight: differences @ weight / weight.sum(), group, seed, resamples)
    return Stability(
        n=len(pixels),
        n_raised_melanoma=int(found.sum()),
        size=int(pixels.shape[1]),
        changes=[
            Change(
                kind,
                of_kind.raised_flips,
                of_kind.class_flips,
                of_kind.melanomas_lost,
                percentile_interval(float(difference.mean()), draws[:, i], n_groups),
            )
            for i, (kind, of_kind, difference) in enumerate(zip(CHANGES, flips, differences, strict=True))
        ],
        any=_flips(any_raised, any_class, found, group),
    )


def _flips(raised_flips: Bools, class_flips: Bools, found: Bools, group: Ints) -> Flips:
    return Flips(
        raised_flips=proportion(raised_flips, group),
        class_flips=proportion(class_flips, group),
        melanomas_lost=proportion(raised_flips[found], group[found]),
    )
