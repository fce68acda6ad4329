"""The one way from a URI to pixels: fetch, then decode.

Catalog, training, evaluation, scoring, single predictions and the pages with pictures all take it. Whatever goes wrong
is an `ImageError`, and `melanoma.imaging.errors` decides of which kind.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image

from melanoma import storage
from melanoma.imaging.decode import Decoded, decode, decode_frames, decode_image
from melanoma.imaging.errors import ImageError, of_storage
from melanoma.imaging.kinds import is_dicom
from melanoma.imaging.limits import DEFAULT_LIMITS, Limits
from melanoma.storage import Store, UnavailableError


def fetch(uri: str, limits: Limits = DEFAULT_LIMITS, store: Store = storage.DEFAULT) -> bytes:
    """The bytes of an image file, at most `limits.max_bytes` + 1 of them. Raises `ImageError`."""
    try:
        return store.read_bytes(uri, limits.max_bytes)
    except (OSError, UnavailableError) as error:
        raise of_storage(error) from error


@dataclass(frozen=True)
class Loaded:
    """What became of an image file."""

    frames: tuple[Decoded, ...]  # one, or those of a DICOM file with several; none where there is an error
    sha256: str | None  # of the content, hexadecimal; None where nothing or not all of it was read
    error: ImageError | None = None


def load(data: bytes | ImageError, size: int, limits: Limits = DEFAULT_LIMITS, several_frames: bool = False) -> Loaded:
    """Decode what was fetched. Never raises.

    Args:
        data: The content of a file, or why it could not be fetched.
        size: Pixels a side of the square that each frame is squashed to.
        limits: What the file may have at most.
        several_frames: Whether a DICOM file with several frames is decoded whole. It is rejected otherwise.

    Returns:
        One frame, or each frame of a DICOM file where `several_frames` is set; or the error.
    """

    def frames(data: bytes) -> list[Decoded]:
        return decode_frames(data, size, limits) if several_frames else [decode(data, size, limits)]

    return load_with(frames, data, limits)


def load_with(frames: Callable[[bytes], list[Decoded]], data: bytes | ImageError, limits: Limits) -> Loaded:
    """As `load`; `frames` decodes a file, and raises `ImageError` only."""
    if isinstance(data, ImageError):
        return Loaded((), None, data)
    # A file over the limit was read only up to the limit: its digest would be that of a part.
    sha256 = hashlib.sha256(data).hexdigest() if len(data) <= limits.max_bytes else None
    try:
        return Loaded(tuple(frames(data)), sha256)
    except ImageError as error:
        return Loaded((), sha256, error)


def pixels(uri: str, size: int, limits: Limits = DEFAULT_LIMITS) -> np.ndarray:
    """uint8 RGB [size, size, 3]: the whole frame of the image at `uri`. Raises `ImageError`."""
    return decode(fetch(uri, limits), size, limits).pixels


def picture(uri: str, longest: int | None = None, limits: Limits = DEFAULT_LIMITS) -> Image.Image | None:
    """The image at `uri` for people: upright RGB, its longer side at most `longest` pixels.

    None where a person may be known from the picture, as the file says itself. Raises `ImageError`.
    """
    data = fetch(uri, limits)
    return None if is_recognizable(data) else decode_image(data, limits, longest)


def is_recognizable(data: bytes) -> bool:
    """Whether a file says that a person may be known from its picture: only DICOM does. Never raises."""
    if not is_dicom(data):
        return False
    from melanoma.imaging import dicom  # takes 0.3 s to import, and most archives hold none

    return dicom.is_recognizable(data)
