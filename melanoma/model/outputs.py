"""What the networks of a model give, whichever form they are in, and the orientations that they are asked in."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from melanoma.errors import MelanomaError


class Outputs(NamedTuple):
    """What the networks of a model give for n pictures: means over the orientations of each."""

    logits: np.ndarray  # float32 [n, classes], the mean over the networks
    # float32 [n, features]: what the last layer of each network decides by, those of one network after those of the
    # other.
    features: np.ndarray


def finite(outputs: Outputs, name: str) -> Outputs:
    """The same outputs; raises MelanomaError, which calls the model `name`, where a logit is no finite number."""
    if not np.isfinite(outputs.logits).all():
        # No comparison with NaN is true: such an image would pass for one without an alert.
        raise MelanomaError(f"{name} gives no finite numbers: its training has diverged.")
    return outputs


def orientations(library: Any) -> list[Callable[[Any], Any]]:
    """The eight ways to lay square pictures [n, size, size, channels]: a lesion has no up and no left, so all are the
    same lesion. `library` is numpy or tensorflow, whichever the pictures are of."""

    def turned(images: Any) -> Any:
        return library.transpose(images, [0, 2, 1, 3])

    flips: list[Callable[[Any], Any]] = [
        lambda images: images,
        lambda images: images[:, :, ::-1],
        lambda images: images[:, ::-1],
        lambda images: images[:, ::-1, ::-1],
    ]
    return [*flips, *((lambda images, flip=flip: turned(flip(images))) for flip in flips)]
