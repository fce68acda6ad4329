"""From the samples of a file to what is seen of them, and pictures that show nothing."""

from typing import cast

import numpy as np
from PIL import Image

# Levels of 256 in each colour. Of 9,000 real pictures of skin the flattest ranges over 43, scaled to 64 pixels; a file
# of one colour ranges over 1 as JPEG, and over up to 8 as WebP.
FLAT = 8
_DEPTHS = (8, 10, 12)


def eight_bits(values: np.ndarray, bits: int) -> np.ndarray:
    """uint8: the upper eight of the `bits` of unsigned samples.

    A camera of 8, 10 or 12 bits may have been saved as 16 without being scaled: nearly all would be black. Where no
    sample reaches a sixteenth of what the bits can hold, only the lower ones count.
    """
    highest = int(values.max(initial=0))
    bits = next((depth for depth in _DEPTHS if depth <= bits - 4 and highest >> depth == 0), bits)
    return (values >> (bits - 8)).astype(np.uint8)


def seen(
    image: Image.Image, wanted: tuple[int, int], box: tuple[float, float, float, float] | None = None
) -> tuple[Image.Image, bool]:
    """A picture of mode L, RGB or RGBA in the size `wanted`: RGB, with alpha laid over white.

    Alpha that hides the whole picture is not meant: some programs write a fourth sample, all 0, that is none.

    Args:
        image: The picture.
        wanted: Width and height.
        box: The part of it that counts; None: the whole.

    Returns:
        The picture, and whether it is blank: of one flat colour.
    """
    # BILINEAR with Pillow's support scaling is a triangle filter over all source pixels: no aliasing, none of the
    # ringing that BICUBIC and LANCZOS leave at hairs and at the dark rim, and the same filter as the antialiased
    # bilinear resize of TensorFlow and torchvision. Integer arithmetic: the same pixels on every machine.
    picture = _over_white(image.resize(wanted, Image.Resampling.BILINEAR, box))
    if not is_flat(picture) or not is_flat(_over_white(image)):
        return picture, False
    colours = image.convert("RGB")  # without alpha
    return colours.resize(wanted, Image.Resampling.BILINEAR, box), is_flat(colours)


def is_flat(picture: Image.Image) -> bool:
    """Whether an RGB picture is of one colour, but for what lossy compression makes of it."""
    return all(high - low <= FLAT for low, high in _extrema(picture))


def brightest(image: Image.Image) -> int:
    """The highest sample of any colour or ink, whatever alpha is."""
    return max(high for band, (_, high) in zip(image.getbands(), _extrema(image), strict=True) if band != "A")


def _extrema(picture: Image.Image) -> tuple[tuple[int, int], ...]:
    return cast(tuple[tuple[int, int], ...], picture.getextrema())


def _over_white(image: Image.Image) -> Image.Image:
    if image.mode == "RGBA":
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")
