"""Augmentor operations on single images, on the fly."""

import random
from collections.abc import Sequence

import Augmentor
import numpy as np
from PIL import Image

from melanoma.config import Augmentation
from melanoma.errors import InputError


def operations(augmentations: Sequence[Augmentation]) -> list[Augmentor.Operations.Operation]:
    """The Augmentor operations of a configuration. Raises InputError where one lacks or does not know a parameter."""
    pipeline = Augmentor.Pipeline()
    for augmentation in augmentations:
        parameters = augmentation.model_extra or {}
        try:
            getattr(pipeline, augmentation.operation)(probability=augmentation.probability, **parameters)
        except (TypeError, ValueError) as error:
            raise InputError(f"The augmentation {augmentation.operation!r}: {str(error).rstrip('.')}.") from None
    return list(pipeline.operations)


def augment(pixels: np.ndarray, chain: Sequence[Augmentor.Operations.Operation], seed: int) -> np.ndarray:
    """uint8 RGB [size, size, 3] to the same, decided by `seed` alone.

    Augmentor draws from the global generators of `random` and NumPy, so both are seeded for this one image, and put
    back after it. Not thread-safe for that reason; Ray runs a task a process.
    """
    if not chain:
        return pixels
    states = random.getstate(), np.random.get_state()
    random.seed(seed)
    np.random.seed(seed)
    try:
        images = [Image.fromarray(pixels)]
        for operation in chain:
            if random.random() < operation.probability:  # noqa: S311
                images = operation.perform_operation(images)
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
    image = images[0].convert("RGB")
    if image.size != (pixels.shape[1], pixels.shape[0]):
        image = image.resize((pixels.shape[1], pixels.shape[0]), Image.Resampling.BILINEAR)
    return np.asarray(image)
