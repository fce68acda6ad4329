"""TIFF: which of the many kinds are a plain picture, and what libtiff may not be asked to do."""

import io
import struct

from PIL import ExifTags
from PIL.TiffImagePlugin import ImageFileDirectory_v2, TiffImageFile

from melanoma.imaging.errors import damaged, unsupported
from melanoma.imaging.limits import Limits

_COMPRESSIONS = (
    "raw", "tiff_ccitt", "group3", "group4", "tiff_lzw", "jpeg", "tiff_adobe_deflate", "tiff_deflate", "packbits",
    "zstd", "lzma",
)  # fmt: skip
_BLACK_ON_WHITE = ("tiff_ccitt", "group3", "group4")
_MAX_PAGES = 100
_EXTRA_SAMPLES = 338
# The tags that say how the samples lie and what they are: TIFF 6.0, and JPEGTables of its supplement 2.
_OF_PIXELS = frozenset(
    [254, *range(256, 260), 262, 266, 273, 274, *range(277, 280), 284, 292, 293, 317, 320, *range(322, 326), 332]
) | {_EXTRA_SAMPLES, 339, 347, *range(529, 533)}
# The kind of page, fill order, orientation: where these are no single number, their defaults serve.
_ONE_NUMBER = (254, 266, 274)


def open_tiff(data: bytes) -> TiffImageFile:
    """The first page of a TIFF, not loaded yet.

    Raises:
        ImageError: Pillow does not read this kind of samples.
        Exception: Whatever Pillow raises on a damaged one.
    """
    try:
        return TiffImageFile(io.BytesIO(data))
    except Exception as error:
        if samples := _samples_in_words(data):
            raise unsupported(f"A TIFF with {samples} cannot be read") from error
        raise


def without_extras(data: bytes) -> bytes | None:
    """The file with none but the tags of its pixels in its first directory: Pillow gives up where another one is
    damaged. None where there is nothing to leave out."""
    order, is_big = "<" if data[:2] == b"II" else ">", b"+" in data[:4]
    counted, pointed, size = ("Q", "Q", 20) if is_big else ("H", "I", 12)
    try:
        (first,) = struct.unpack_from(f"{order}{pointed}", data, 8 if is_big else 4)
        (number,) = struct.unpack_from(f"{order}{counted}", data, first)
        start = first + struct.calcsize(counted)
        (following,) = struct.unpack_from(f"{order}{pointed}", data, start + number * size)
    except (struct.error, OverflowError):
        return None

    def is_of_pixels(entry: bytes) -> bool:
        tag, kind, count = struct.unpack_from(f"{order}HH{pointed}", entry)
        return tag in _OF_PIXELS and (tag not in _ONE_NUMBER or (kind in (3, 4) and count == 1))

    entries = [data[at : at + size] for at in range(start, start + number * size, size)]
    kept = [entry for entry in entries if is_of_pixels(entry)]
    if len(kept) == len(entries):
        return None
    directory = b"".join(
        [struct.pack(f"{order}{counted}", len(kept)), *kept, struct.pack(f"{order}{pointed}", following)]
    )
    return data[:first] + directory + data[first + len(directory) :]


def refuse_unreadable(image: TiffImageFile, limits: Limits) -> None:
    """Raise `ImageError` for a TIFF that is no plain picture, or whose tiles are larger than the limit."""
    tags = image.tag_v2
    # libtiff takes memory for one whole tile, however small the picture is, and invents a side that is not given.
    width, length = tags.get(ExifTags.Base.TileWidth), tags.get(ExifTags.Base.TileLength)
    if width is not None or length is not None:
        if not isinstance(width, int) or not isinstance(length, int):
            raise damaged("TIFF")
        limits.check_pixels(width, length)
    compression = image.info["compression"]
    if compression not in _COMPRESSIONS:
        raise unsupported(f"A TIFF with compression {compression} cannot be read")
    if ExifTags.Base.PhotometricInterpretation not in tags and compression not in _BLACK_ON_WHITE:
        raise unsupported("A TIFF that does not say how its samples become colours is not read")
    if tags.get(ExifTags.Base.PlanarConfiguration) == 2 and tags[ExifTags.Base.BitsPerSample][0] > 8:
        # Pillow takes them for bytes.
        raise unsupported("A TIFF of more than 8 bits whose colours lie one after the other is not read")
    if tags.get(ExifTags.Base.PlanarConfiguration) == 2 and 1 in tags.get(_EXTRA_SAMPLES, ()):
        # Pillow has no name for the samples of one colour that are multiplied by alpha.
        raise unsupported("A TIFF whose colours lie one after the other and are multiplied by alpha is not read")
    if image.mode.startswith("I;16"):
        bits, photometric = tags[ExifTags.Base.BitsPerSample][0], tags[ExifTags.Base.PhotometricInterpretation]
        # Pillow reads 12 bits, and those where 0 is white, as if they were 16 bits from black to white.
        if bits != 16 or photometric == 0:
            raise unsupported(f"A grey TIFF of {bits} bits with photometric interpretation {photometric} is not read")
    _refuse_several_pages(image)


def _refuse_several_pages(image: TiffImageFile) -> None:
    """A reduced copy of the picture, a preview, is no further page."""
    pages = 0
    for page in range(_MAX_PAGES):
        try:
            image.seek(page)
        except EOFError:
            break
        reduced = image.tag_v2.get(ExifTags.Base.NewSubfileType, 0) & 1
        if page == 0 and reduced:
            raise unsupported(
                "This TIFF begins with a preview, as a camera's raw file does, and is not a plain picture"
            )
        pages += not reduced
    image.seek(0)
    if pages > 1:
        raise unsupported(f"This TIFF holds {pages} pages, and only single pictures are read")


def _samples_in_words(data: bytes) -> str | None:
    """Words for the samples of a TIFF that Pillow refuses to open, or None where its directory is damaged."""
    stream = io.BytesIO(data)
    tags = ImageFileDirectory_v2(data[:16] if b"+" in data[:4] else data[:8])  # "+" is the 43 of BigTIFF
    first = tags.next
    stream.seek(first)
    tags.load(stream)
    whole = tags.next != first  # set last
    bits = tags.get(ExifTags.Base.BitsPerSample)
    photometric = tags.get(ExifTags.Base.PhotometricInterpretation)
    compression = tags.get(ExifTags.Base.Compression, 1)
    needed = {ExifTags.Base.ImageWidth, ExifTags.Base.ImageLength}
    if photometric == 3:
        needed.add(ExifTags.Base.ColorMap)
    if not whole or not needed <= tags.keys() or not isinstance(bits, tuple) or not 0 < len(bits) <= 16:
        return None
    if photometric is None and all(isinstance(number, int) for number in bits):
        return f"{len(bits)} samples of {bits[0]} bits and no photometric interpretation"
    if not all(isinstance(number, int) for number in (*bits, photometric, compression)):
        return None
    return (
        f"{len(bits)} samples of {bits[0]} bits, photometric interpretation {photometric} and compression {compression}"
    )


def says_alpha(image: TiffImageFile) -> bool:
    """Whether a TIFF says what its fourth sample is; without, it may be infrared as well, and Pillow takes it for
    alpha."""
    return _EXTRA_SAMPLES in image.tag_v2
