"""JPEG: what Pillow and libjpeg do not notice of a file, and what they may not be asked to do."""

import io
import re
from collections.abc import Iterator

from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile

from melanoma.imaging.errors import unsupported

_MARKER = re.compile(rb"\xff[\x01-\xcf\xd8-\xfe]")  # 00 and D0 to D7 belong to the pixel data
_START_OF_FRAME = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC} | {0xF7}  # F7 is JPEG-LS
_START_OF_SCAN = 0xDA
# libjpeg walks over the whole picture for each scan of a progressive JPEG: 100 empty scans of 95 bytes cost 4 seconds
# at 64 million pixels, a hostile file of 64 MB could cost hours. Real ones have about 10.
_MAX_SCANS = 100


def open_jpeg(data: bytes) -> JpegImageFile:
    """The first picture of a JPEG, not loaded yet. Raises whatever Pillow raises on a damaged one."""
    return JpegImageFile(io.BytesIO(data))


def without_extras(data: bytes) -> bytes | None:
    """The file without EXIF, ICC profile, comments and whatever else no pixel depends on: Pillow gives up where some of
    them are damaged. None where there is nothing to leave out."""
    segments, position, left_out = [data[:2]], 2, False
    while (start := data[position : position + 2]) and start[0] == 0xFF and start[-1] not in (0xFF, _START_OF_SCAN):
        marker = start[-1]
        segment = data[position : position + 2 + int.from_bytes(data[position + 2 : position + 4])]
        # JFIF and Adobe say of which colours the components are.
        is_kept = (marker == 0xE0 and segment[4:9] == b"JFIF\0" and len(segment) >= 18) or (
            marker == 0xEE and segment[4:9] == b"Adobe" and len(segment) >= 16
        )
        if (0xE0 <= marker <= 0xEF or marker == 0xFE) and not is_kept:
            left_out = True
        else:
            segments.append(segment)
        position += len(segment)
    return b"".join(segments) + data[position:] if left_out else None


def end_marker(data: bytes) -> int | None:
    """The offset of the end marker of the first picture; None where it has none: the file is cut short.

    Raises:
        ImageError: A kind of JPEG that is not read.
    """
    scans = 0
    for marker, position in _markers(data):
        if marker in _START_OF_FRAME and len(data) >= position + 8:
            precision, components = data[position + 2], data[position + 7]
            if marker not in (0xC0, 0xC1, 0xC2) or precision != 8 or components not in (1, 3, 4):
                raise unsupported(
                    f"A JPEG of coding process {marker:X} with {components} components of {precision} bits is not read"
                )
        scans += marker == _START_OF_SCAN
        if scans > _MAX_SCANS:
            raise unsupported(f"A JPEG with more than {_MAX_SCANS} scans is not a photograph")
        if marker == 0xD9:
            return position - 2
    return None


def _markers(data: bytes) -> Iterator[tuple[int, int]]:
    """The markers of the first picture of a JPEG, each with the offset of what follows it, up to its end marker."""
    position = 2
    while found := _MARKER.search(data, position):
        marker, position = data[found.end() - 1], found.end()
        yield marker, position
        if marker == 0xD9:
            return
        if marker not in (0x01, 0xD8):
            position += int.from_bytes(data[position : position + 2], "big")


def lacks_data(image: Image.Image, data: bytes, end: int, wanted: tuple[int, int]) -> bool:
    """Whether the end marker comes before the last pixels do, by more than their own block of 8 or 16 pixels.

    libjpeg then fills the rest with mid grey and raises nothing. So where the last pixel is mid grey, the picture is
    read again with other bytes put before its end marker: only a picture that lacks data changes.

    Args:
        image: The loaded picture.
        data: The file that it was loaded from.
        end: See `end_marker`.
        wanted: The width and height that it was scaled to while it was decoded, see `Image.Image.draft`.

    Returns:
        Whether pixels are missing.
    """
    corner = image.getpixel((image.width - 1, image.height - 1))
    if not {127, 128}.issuperset(corner if isinstance(corner, tuple) else (corner,)):
        return False
    longer = open_jpeg(data[:end] + bytes(range(1, 251)) + data[end:])
    longer.draft(None, wanted)
    longer.load()
    return longer.tobytes() != image.tobytes()


def is_subsampled(image: Image.Image) -> bool:
    """Whether colours are stored more coarsely than luminance, as red, green and blue never are."""
    return isinstance(image, JpegImageFile) and len({layer[1:3] for layer in image.layer}) > 1
