"""Whether the images of a run are like those of earlier nights, and if not, whether pictures or patients have changed.

The Kolmogorov-Smirnov distance (Massey 1951, doi:10.1080/01621459.1951.10500769) compares what is measured of every
image: 0 if both sides are distributed equally, 1 if they have nothing in common. With
many images every difference is significant, so a change has to be large as well. Sharpness, exposure and the outlier
score do not depend on what a lesion is: where they have changed, pictures are taken or exported otherwise, and the
probabilities of the model cannot be believed. Where only the probabilities have changed, the patients have, or what is
photographed of them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from melanoma.scoring.record import Distribution

PICTURE = ("sharpness", "exposure", "outlier_score")
PROBABILITY = ("p_melanoma", "p_malignant")
LEAST_IMAGES = 50  # of each side
_LEAST_DISTANCE = 0.15
_SIGNIFICANCE = 0.001
_QUANTILES = 201
_VALUES = 2000  # that stand for the images of one side, at most


def distribution(measured: Mapping[str, np.ndarray]) -> Distribution:
    """Quantiles of what is measured of every image, for the commit record; all values where they are few.

    `measured`: float [images] for each name of `PICTURE` and `PROBABILITY`.
    """
    images = min(len(found) for found in measured.values())
    shares = np.linspace(0, 1, min(_QUANTILES, images)) if images else np.empty(0)
    return Distribution(
        images=images,
        quantiles={
            name: tuple(float(f"{value:.5g}") for value in np.quantile(found, shares)) if images else ()
            for name, found in measured.items()
        },
    )


def values(distributions: Sequence[Distribution]) -> dict[str, np.ndarray]:
    """At most 2000 values, float [values] by name, that stand for all images, each distribution in proportion to its
    images."""
    total = sum(distribution.images for distribution in distributions)
    wanted = min(total, _VALUES)
    return {
        name: np.concatenate(
            [
                np.interp(
                    (np.arange(number) + 0.5) / number,
                    np.linspace(0, 1, len(distribution.quantiles[name])),
                    distribution.quantiles[name],
                )
                for distribution in distributions
                if (number := round(wanted * distribution.images / max(1, total)))
            ]
            or [np.empty(0)]
        )
        for name in (*PICTURE, *PROBABILITY)
    }


@dataclass(frozen=True)
class Drift:
    """`distances`: by name, 0 to 1; `changed`: the names whose distance is large and significant. `verdict`: one of
    "few" (too few images to tell), "none", "pictures", "patients"; `sentence` says it to people."""

    distances: Mapping[str, float]
    changed: tuple[str, ...]
    verdict: str
    sentence: str


def compare(now: Mapping[str, np.ndarray], earlier: Mapping[str, np.ndarray]) -> Drift:
    """Compare two sides, each float [values] for each name of `PICTURE` and `PROBABILITY`."""
    from scipy.stats import ks_2samp

    if min(len(side[name]) for side in (now, earlier) for name in (*PICTURE, *PROBABILITY)) < LEAST_IMAGES:
        return Drift(
            {}, (), "few", f"Fewer than {LEAST_IMAGES} images tonight or before: nothing can be said of drift."
        )
    found = {name: ks_2samp(now[name], earlier[name]) for name in (*PICTURE, *PROBABILITY)}
    distances = {name: float(result.statistic) for name, result in found.items()}
    changed = tuple(
        name
        for name, result in found.items()
        if result.statistic >= _LEAST_DISTANCE and result.pvalue < _SIGNIFICANCE / len(found)
    )
    pictures = [name for name in changed if name in PICTURE]
    if pictures:
        return Drift(distances, changed, "pictures", _PICTURES.format(", ".join(pictures).replace("_", " ")))
    return Drift(distances, changed, *(("patients", _PATIENTS) if changed else ("none", _NONE)))


_PICTURES = (
    "The pictures themselves are unlike those of earlier nights ({}): look for another camera, light or export before "
    "you believe the probabilities."
)
_PATIENTS = (
    "The pictures are like those of earlier nights, but their probabilities are not: other patients or lesions were "
    "photographed."
)
_NONE = "Tonight's images are distributed like those of earlier nights."
