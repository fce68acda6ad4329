"""How far an image lies from the dermoscopy images that a model was trained on.

The squared Mahalanobis distance of a few statistics of colour and sharpness from those of the training images, as a
share of the distance that 99% of the validation images stay below: over 1 is unlike what the model knows. It says that
a picture is not of the known kind; it does not say that a diagnosis is right.
"""

from typing import Any

import numpy as np

from melanoma.imaging.decode import quality

_QUANTILE = 0.99
_TOGETHER = 64


def statistics(pixels: np.ndarray) -> np.ndarray:
    """float64 [n, 13] of uint8 RGB [n, size, size, 3]: means, spreads and correlations of the channels, centre against
    border, sharpness."""
    # In parts: as float64 the images of a training split would take tens of gigabytes.
    parts = [_statistics(pixels[at : at + _TOGETHER]) for at in range(0, len(pixels), _TOGETHER)]
    return np.concatenate(parts) if parts else np.zeros((0, 13))


def _statistics(pixels: np.ndarray) -> np.ndarray:
    images = pixels.astype(np.float64) / 255.0
    n, size = images.shape[:2]
    flat = images.reshape(n, -1, 3)
    means, spreads = flat.mean(axis=1), flat.std(axis=1)
    centred = flat - means[:, None, :]
    pairs = [(0, 1), (0, 2), (1, 2)]
    correlations = np.stack(
        [(centred[..., a] * centred[..., b]).mean(axis=1) / (spreads[:, a] * spreads[:, b] + 1e-3) for a, b in pairs],
        axis=1,
    )
    quarter = size // 4
    middle = images[:, quarter : size - quarter, quarter : size - quarter].mean(axis=(1, 2))
    sharpness = np.log([[quality(image)[0] + 1e-6] for image in pixels])
    return np.concatenate([means, spreads, correlations, middle - means, sharpness], axis=1)


def fit(train: np.ndarray, validation: np.ndarray) -> dict[str, Any]:
    """What `scores` needs, as plain lists for a bundle; both arguments uint8 RGB [n, size, size, 3]."""
    from sklearn.covariance import LedoitWolf  # scoring needs no scikit-learn in its memory

    estimate = LedoitWolf().fit(statistics(train))
    model = {"mean": estimate.location_.tolist(), "precision": estimate.precision_.tolist(), "scale": 1.0}
    return {**model, "scale": float(np.quantile(scores(validation, model), _QUANTILE))}


def scores(pixels: np.ndarray, model: dict[str, Any]) -> np.ndarray:
    """float32 [n], 0 and up; 1 is the distance that 99% of the validation images stay below."""
    offsets = statistics(pixels) - np.array(model["mean"])
    distances = np.einsum("ni,ij,nj->n", offsets, np.array(model["precision"]), offsets)
    return np.asarray(distances / model["scale"], dtype=np.float32)
