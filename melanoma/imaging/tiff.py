"""TIFF: which of the many kinds are a plain picture, and what libtiff may not be asked to do."""

import io

from PIL import ExifTags
from PIL.TiffImagePlugin import ImageFileDirectory_v2, TiffImageFile

from melanoma.imaging.errors import damaged, unsupported
from melanoma.imaging.limits import Limits

_COMPRESSIONS = (
    "raw", "tiff_ccitt", "group3", "group4", "tiff_lzw", "jpeg", "tiff_adobe_deflate", "tiff_deflate", "packbits",
    "zstd", "lzma",
)  # fmt: skip
_MAX_PAGES = 100


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
    if not all(isinstance(number, int) for number in (*bits, photometric, compression)):
        return None
    return (
        f"{len(bits)} samples of {bits[0]} bits, photometric interpretation {photometric} and compression {compression}"
    )
