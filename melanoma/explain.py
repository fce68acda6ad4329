"""What raised the melanoma probability of an image: an occlusion map (Zeiler and Fergus 2014, arXiv:1311.2901)."""

import io

import numpy as np
from PIL import Image

from melanoma import taxonomy
from melanoma.predictor import Predictor

_PATCHES = 12  # a side


def occlusion_map(predictor: Predictor, pixels: np.ndarray) -> np.ndarray:
    """float32 [12, 12]: by how much p_melanoma falls when the region around each cell is covered.

    `pixels` uint8 RGB [size, size, 3]. Each patch, two cells wide, is painted in the image's own mean colour. Negative
    cells are regions that speak against melanoma.
    """
    size = pixels.shape[0]
    edges = np.linspace(0, size, _PATCHES + 1).round().astype(int)
    half = size // _PATCHES // 2
    mean = pixels.reshape(-1, 3).mean(axis=0).astype(np.uint8)
    covered = np.repeat(pixels[None], _PATCHES**2, axis=0)
    for row in range(_PATCHES):
        for column in range(_PATCHES):
            top, left = max(0, edges[row] - half), max(0, edges[column] - half)
            covered[row * _PATCHES + column, top : edges[row + 1] + half, left : edges[column + 1] + half] = mean
    melanoma = taxonomy.CODES.index(taxonomy.MELANOMA)
    whole = predictor.probabilities(pixels[None])[0, melanoma]
    return np.asarray(whole - predictor.probabilities(covered)[:, melanoma]).reshape(_PATCHES, _PATCHES)


def overlay(image: Image.Image, heat: np.ndarray) -> bytes:
    """A PNG of `image` with the regions that raised the probability in red, the stronger the redder.

    The full red is the strongest cell's, but of a fall by at least 0.1: what hardly matters stays pale.
    """
    strength = np.clip(heat, 0, None)
    strength = strength / max(float(strength.max()), 0.1)
    mask = Image.fromarray((strength * 160).astype(np.uint8)).resize(image.size, Image.Resampling.BICUBIC)
    marked = Image.composite(Image.new("RGB", image.size, (230, 30, 30)), image.convert("RGB"), mask)
    buffer = io.BytesIO()
    marked.save(buffer, "PNG")
    return buffer.getvalue()
