"""Image bytes become pixels: the one decoder of training, batch scoring and serving.

The bytes are hostile. The kind of a file is decided by its magic bytes, exactly one Pillow reader is tried, its size is
checked before memory for pixels is taken, and whatever goes wrong ends as an `ImageError` with a kind and a sentence.
Everything here is safe to call from several threads.
"""

import io
import re
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from PIL import ExifTags, Image, ImageFile, ImageOps
from PIL.BmpImagePlugin import BmpImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import ImageFileDirectory_v2, TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from melanoma.imaging import kinds
from melanoma.imaging.errors import ImageError, damaged, too_many_pixels, unsupported
from melanoma.imaging.header import NO_HEADER, Header
from melanoma.imaging.limits import DEFAULT_LIMITS, Limits

# Stored in a model bundle. Any change of the pixels that `decode` returns is a new version.
PREPROCESSING = "squash-1"
# Raised with what can be read at all: what an earlier night could not read is then tried again.
READS = 2

# Pillow warns of odd EXIF and TIFF tags. They are no concern of ours, and `catch_warnings` is not safe in threads.
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")


@dataclass(frozen=True)
class Decoded:
    """`pixels`: uint8 RGB [size, size, 3], C-contiguous, upright. `width`, `height`: of the upright original, pixels.
    `header`: what a DICOM file says of its picture; of others nothing is known.

    `format` is one of "JPEG", "PNG", "TIFF", "WEBP", "BMP", "DICOM".
    """

    pixels: np.ndarray
    width: int
    height: int
    format: str
    header: Header = NO_HEADER


def decode(data: bytes, size: int, limits: Limits = DEFAULT_LIMITS) -> Decoded:
    """The whole frame of an image file, squashed to a square of `size` pixels a side.

    The aspect ratio is not kept, so that no part of a lesion is cut away. Alpha is laid over white, EXIF orientation is
    applied, ICC profiles are ignored, 16-bit samples keep their upper eight bits. Of a phone's multi-picture JPEG (MPO)
    the first picture counts.

    Raises `ImageError` only, whatever the bytes.
    """
    (only,) = _decoded(data, size, limits, several=False)
    return only


def decode_frames(data: bytes, size: int, limits: Limits = DEFAULT_LIMITS) -> list[Decoded]:
    """As `decode`, of every frame of a DICOM file; any other file has one. The limit of pixels is that of all frames
    together."""
    return _decoded(data, size, limits, several=True)


def _decoded(data: bytes, size: int, limits: Limits, several: bool) -> list[Decoded]:
    if size < 1:
        raise ValueError(f"size is {size}: it must be at least 1.")
    pictures, name, header = _read(data, limits, lambda width, height: (size, size), None if several else 0)
    return [Decoded(np.array(image), width, height, name, header) for image, (width, height) in pictures]


def decode_image(
    data: bytes, limits: Limits = DEFAULT_LIMITS, longest: int | None = None, frame: int | None = None
) -> Image.Image:
    """The whole frame, upright RGB, aspect ratio kept, its longer side at most `longest` pixels.

    `frame`, counted from 1: which one of a DICOM file with several. Without the file's comment and other metadata, some
    of which Pillow would save again. Read as `decode` reads it. Raises `ImageError` only, whatever the bytes.
    """
    if longest is not None and longest < 1:
        raise ValueError(f"longest is {longest}: it must be at least 1.")

    def fit(width: int, height: int) -> tuple[int, int]:
        scale = min(1.0, longest / max(width, height)) if longest else 1.0
        return max(1, round(width * scale)), max(1, round(height * scale))

    ((picture, _),) = _read(data, limits, fit, frame or 0)[0]
    picture.info = {}
    return picture


# --- bytes to an upright RGB picture ---------------------------------------------------------------------------------

_READERS: dict[str, type[ImageFile.ImageFile]] = {
    "JPEG": JpegImageFile,
    "PNG": PngImageFile,
    "TIFF": TiffImageFile,
    "WEBP": WebPImageFile,
    "BMP": BmpImageFile,
}

# Not here, as their range is not that of a picture or Pillow cannot convert them: F, I (float, 32 bit), LAB, La.
_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr", "I;16", "I;16B")

_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


_Picture = tuple[Image.Image, tuple[int, int]]  # upright RGB, and width and height of the upright original


def _read(
    data: bytes, limits: Limits, fit: Callable[[int, int], tuple[int, int]], frame: int | None
) -> tuple[list[_Picture], str, Header]:
    """The pictures in the size that `fit` wants, the format, and what is known of them.

    `fit` maps width and height of the original to those wanted, and must not care which of the two is which, as the
    picture is turned upright last: by then it is small. `frame`: see `_frames_of_dicom`.
    """
    limits.check_bytes(data)
    if kinds.is_dicom(data):
        pictures, header = _frames_of_dicom(data, limits, fit, frame)
        return pictures, "DICOM", header
    name = kinds.identify(data)
    return [_rendered(data, name, limits, fit)], name, NO_HEADER


def _frames_of_dicom(
    data: bytes, limits: Limits, fit: Callable[[int, int], tuple[int, int]], frame: int | None
) -> tuple[list[_Picture], Header]:
    """`frame`, counted from 1: that one; 0: the only one; None: all."""
    from melanoma.imaging import dicom

    found = dicom.read(data)
    number = dicom.number_of_frames(found)
    if frame == 0 and number > 1:
        raise unsupported(f"This DICOM file holds {number:,} frames, and only `melanoma score` reads several")
    dicom.check_size(found, limits)
    pictures = []
    for index in range(number) if frame is None else [max(0, frame - 1)]:
        picture = dicom.frame(found, index)
        if isinstance(picture, np.ndarray):
            height, width = picture.shape[:2]
            small = Image.fromarray(picture).resize(fit(width, height), Image.Resampling.BILINEAR)
            pictures.append((small, (width, height)))
        else:
            # DICOM says itself how a picture lies, and its decoders do not look for EXIF in a frame.
            image, size = _rendered(picture.data, "JPEG", limits, fit, picture.is_rgb, is_upright=True)
            pictures.append((ImageOps.invert(image) if picture.is_negative else image, size))
        # A JPEG may be larger than the header says.
        if sum(width * height for _, (width, height) in pictures) > limits.max_pixels:
            raise too_many_pixels(f"more than {limits.max_pixels:,} pixels in all its frames, the limit")
    return pictures, dicom.header(found)


def _rendered(
    data: bytes,
    name: str,
    limits: Limits,
    fit: Callable[[int, int], tuple[int, int]],
    is_rgb: bool = False,
    is_upright: bool = False,
) -> _Picture:
    """What `_render` gives; raises `ImageError` only."""
    try:
        return _render(data, name, limits, fit, is_rgb, is_upright)
    except ImageError:
        raise
    except Image.DecompressionBombError as error:
        raise too_many_pixels(f"more than {limits.max_pixels:,} pixels, the limit") from error
    # Pillow raises nearly anything on damaged files: OSError, SyntaxError, struct.error, MemoryError, AssertionError.
    except Exception as error:
        raise damaged(name) from error


def _render(
    data: bytes,
    name: str,
    limits: Limits,
    fit: Callable[[int, int], tuple[int, int]],
    is_rgb: bool,
    is_upright: bool,
) -> _Picture:
    """`is_rgb`: a JPEG that does not say what its three components are holds RGB; `is_upright`: EXIF is not asked."""
    end = _end_of_jpeg(data) if name == "JPEG" else len(data)
    image = _open(data, name)
    limits.check_pixels(image.width, image.height)
    _check_kind(image, name, limits)
    if end is None:
        raise damaged(name)
    if name == "PNG":
        # Loading checks neither the checksums of the pixel data nor that the file has an end.
        PngImageFile(io.BytesIO(data)).verify()

    width, height = image.size
    wanted = fit(width, height)
    # libjpeg scales by 1/2, 1/4 or 1/8 while it decodes, never below what is wanted. `box` is the part of the scaled
    # picture that the original covers: odd sizes leave a fraction of a pixel over.
    # Colours that are stored more coarsely than luminance are not red, green and blue.
    is_rgb = is_rgb and image.mode == "RGB" and not {"adobe", "jfif"} & image.info.keys() and not _is_subsampled(image)
    drafted = image.draft("YCbCr" if is_rgb else None, wanted)
    box = drafted[1] if drafted else None
    image.load()
    if name == "JPEG" and _lacks_data(image, data, end, wanted):
        raise damaged(name)
    if name == "TIFF":
        width, height = image.size  # turned upright by load()
        wanted = fit(width, height)

    # BILINEAR with Pillow's support scaling is a triangle filter over all source pixels: no aliasing, none of the
    # ringing that BICUBIC and LANCZOS leave at hairs and at the dark rim, and the same filter as the antialiased
    # bilinear resize of TensorFlow and torchvision. Integer arithmetic: the same pixels on every machine.
    straight = Image.merge("RGB", image.split()) if is_rgb else _straight(image)
    picture = _over_white(straight.resize(wanted, Image.Resampling.BILINEAR, box))
    orientation = 1 if is_upright else _orientation(image)
    if orientation in _UPRIGHT:
        picture = picture.transpose(_UPRIGHT[orientation])
    return picture, ((height, width) if orientation >= 5 else (width, height))


def _is_subsampled(image: ImageFile.ImageFile) -> bool:
    return isinstance(image, JpegImageFile) and len({layer[1:3] for layer in image.layer}) > 1


def _open(data: bytes, name: str) -> ImageFile.ImageFile:
    # Image.open would read phone pictures as MPO files, whose index may be damaged, and has a pixel limit that warns.
    try:
        return _READERS[name](io.BytesIO(data))
    except Exception as error:
        if name == "JPEG" and b"Exif\0\0" in data:
            # Pillow looks for the resolution in EXIF, and not every damage of EXIF is caught there: read without it.
            return JpegImageFile(io.BytesIO(data.replace(b"Exif\0\0", b"none\0\0")))
        if name == "TIFF" and (kind := _kind_of_tiff(data)):
            raise unsupported(f"A TIFF with {kind} cannot be read") from error
        raise


def _check_kind(image: ImageFile.ImageFile, name: str, limits: Limits) -> None:
    if isinstance(image, TiffImageFile):
        _check_tiff(image, limits)
    elif (frames := getattr(image, "n_frames", 1)) > 1:
        raise unsupported(f"This {name} holds {frames:,} frames, and only single pictures are read")
    if image.mode not in _MODES:
        raise unsupported(f"A {name} with samples of Pillow's kind {image.mode} is not a plain picture")


def _straight(image: Image.Image) -> Image.Image:
    """As L, RGB or RGBA: what can be resized without mixing what must not be mixed (palette indices, inks)."""
    if image.mode.startswith("I;16"):
        # Pillow's own conversion clips at 255.
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    mode = "RGBA" if image.has_transparency_data else "L" if image.mode in ("1", "L") else "RGB"
    return image if image.mode == mode else image.convert(mode)  # convert() copies even where nothing changes


def _over_white(image: Image.Image) -> Image.Image:
    if image.mode == "RGBA":
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def _orientation(image: Image.Image) -> int:
    """EXIF orientation, 1 to 8, read after load(): a PNG may hold it behind the pixels. Unreadable EXIF counts as 1."""
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
        return int(orientation) if orientation in _UPRIGHT else 1
    except Exception:
        return 1


# --- JPEG ------------------------------------------------------------------------------------------------------------

_JPEG_MARKER = re.compile(rb"\xff[\x01-\xcf\xd8-\xfe]")  # 00 and D0 to D7 belong to the pixel data
_START_OF_FRAME = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC} | {0xF7}  # F7 is JPEG-LS
# libjpeg walks over the whole picture for each scan of a progressive JPEG: 100 empty scans of 95 bytes cost 4 seconds
# at 64 million pixels, a hostile file of 64 MB could cost hours. Real ones have about 10.
_MAX_SCANS = 100


def _jpeg_markers(data: bytes) -> Iterator[tuple[int, int]]:
    """The markers of the first picture of a JPEG, each with the offset of what follows it, up to its end marker."""
    position = 2
    while found := _JPEG_MARKER.search(data, position):
        marker, position = data[found.end() - 1], found.end()
        yield marker, position
        if marker == 0xD9:
            return
        if marker not in (0x01, 0xD8):
            position += int.from_bytes(data[position : position + 2], "big")


def _end_of_jpeg(data: bytes) -> int | None:
    """The offset of the end marker of the first picture, or None. Raises `ImageError` on kinds that are not read."""
    scans = 0
    for marker, position in _jpeg_markers(data):
        if marker in _START_OF_FRAME and len(data) >= position + 8:
            precision, components = data[position + 2], data[position + 7]
            if marker not in (0xC0, 0xC1, 0xC2) or precision != 8 or components not in (1, 3, 4):
                raise unsupported(
                    f"A JPEG of coding process {marker:X} with {components} components of {precision} bits is not read"
                )
        scans += marker == 0xDA
        if scans > _MAX_SCANS:
            raise unsupported(f"A JPEG with more than {_MAX_SCANS} scans is not a photograph")
        if marker == 0xD9:
            return position - 2
    return None


def _lacks_data(image: Image.Image, data: bytes, end: int, wanted: tuple[int, int]) -> bool:
    """Whether the end marker comes before the last pixels do, by more than their own block of 8 or 16 pixels.

    libjpeg then fills the rest with mid grey and raises nothing. So where the last pixel is mid grey, the picture is
    read again with other bytes put before its end marker: only a picture that lacks data changes.
    """
    corner = image.getpixel((image.width - 1, image.height - 1))
    if not {127, 128}.issuperset(corner if isinstance(corner, tuple) else (corner,)):
        return False
    longer = _open(data[:end] + bytes(range(1, 251)) + data[end:], "JPEG")
    longer.draft(None, wanted)
    longer.load()
    return longer.tobytes() != image.tobytes()


# --- TIFF ------------------------------------------------------------------------------------------------------------

_TIFF_COMPRESSIONS = (
    "raw", "tiff_ccitt", "group3", "group4", "tiff_lzw", "jpeg", "tiff_adobe_deflate", "tiff_deflate", "packbits",
    "zstd", "lzma",
)  # fmt: skip
_MAX_TIFF_PAGES = 100


def _check_tiff(image: TiffImageFile, limits: Limits) -> None:
    tags = image.tag_v2
    # libtiff takes memory for one whole tile, however small the picture is, and invents a side that is not given.
    width, length = tags.get(ExifTags.Base.TileWidth), tags.get(ExifTags.Base.TileLength)
    if width is not None or length is not None:
        if not isinstance(width, int) or not isinstance(length, int):
            raise damaged("TIFF")
        limits.check_pixels(width, length)
    compression = image.info["compression"]
    if compression not in _TIFF_COMPRESSIONS:
        raise unsupported(f"A TIFF with compression {compression} cannot be read")
    if image.mode.startswith("I;16"):
        bits, photometric = tags[ExifTags.Base.BitsPerSample][0], tags[ExifTags.Base.PhotometricInterpretation]
        # Pillow reads 12 bits, and those where 0 is white, as if they were 16 bits from black to white.
        if bits != 16 or photometric == 0:
            raise unsupported(f"A grey TIFF of {bits} bits with photometric interpretation {photometric} is not read")

    pages = 0
    for page in range(_MAX_TIFF_PAGES):
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


def _kind_of_tiff(data: bytes) -> str | None:
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
