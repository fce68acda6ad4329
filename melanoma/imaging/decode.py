"""Image bytes become pixels: the one decoder of training, evaluation, batch scoring and serving.

The bytes are hostile. The kind of a file is decided by its magic bytes, exactly one reader is tried, the size is
compared with the limits before memory for pixels is taken, and whatever goes wrong ends as an `ImageError` with a kind
and a sentence. Everything here is safe to call from several threads. Whoever has a URI calls `melanoma.imaging.load`.
"""

import io
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import numpy as np
from PIL import ExifTags, Image, ImageFile, ImageOps
from PIL.BmpImagePlugin import BmpImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from melanoma.imaging import jpeg, kinds, png, samples, tiff
from melanoma.imaging.errors import ImageError, blank, crashed, damaged, too_large, unsupported
from melanoma.imaging.header import NO_HEADER, Header
from melanoma.imaging.limits import DEFAULT_LIMITS, Limits

if TYPE_CHECKING:
    from melanoma.imaging import dicom

PREPROCESSING = "squash-1"
"""Stands in every bundle. Any change of the pixels that `decode` returns is a new version."""

READS = 3
"""Raised with what can be read at all: what an earlier version could not read is then tried again."""

# Pillow warns of odd EXIF and TIFF tags. They are no concern of ours, and `catch_warnings` is not safe in threads.
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")


@dataclass(frozen=True)
class Decoded:
    """A picture, squashed to a square."""

    pixels: np.ndarray  # uint8 RGB [size, size, 3], C-contiguous, upright
    width: int  # of the upright original, in pixels
    height: int
    format: str  # "JPEG", "PNG", "TIFF", "WEBP", "BMP" or "DICOM"
    header: Header = NO_HEADER  # what a DICOM file says of its picture; of others nothing is known
    frame: int | None = None  # counted from 1, of a DICOM file that has several


def decode(data: bytes, size: int, limits: Limits = DEFAULT_LIMITS) -> Decoded:
    """The whole frame of an image file, squashed to a square of `size` pixels a side.

    The aspect ratio is not kept, so that no part of a lesion is cut away. Alpha is laid over white, unless it hides all
    there is; EXIF orientation is applied, ICC profiles are ignored, 16-bit samples keep their upper eight bits. The
    first picture of a phone's multi-picture JPEG (MPO) counts. A picture of one flat colour is an error.

    Raises `ImageError` only, whatever the bytes.
    """
    (only,) = _squashed(data, size, limits, "only")
    return only


def decode_frames(data: bytes, size: int, limits: Limits = DEFAULT_LIMITS) -> list[Decoded]:
    """As `decode`, of every frame of a DICOM file but those of one flat colour; any other file has one. The limit of
    pixels is that of all frames together."""
    return _squashed(data, size, limits, "all")


def decode_image(
    data: bytes, limits: Limits = DEFAULT_LIMITS, longest: int | None = None, frame: int | None = None
) -> Image.Image:
    """The whole frame of an image file for people, aspect ratio kept; else read as `decode` reads it.

    Args:
        data: The file.
        limits: What the file may have at most.
        longest: The longer side has at most this many pixels; None: as many as the file.
        frame: Which one of a DICOM file with several, counted from 1; None: the file has one.

    Returns:
        Upright RGB, without the file's comment and other metadata, some of which Pillow would save again.

    Raises:
        ImageError: The file cannot be read. Nothing else is raised, whatever the bytes.
    """
    if longest is not None and longest < 1:
        raise ValueError(f"longest is {longest}: it must be at least 1.")

    def fit(width: int, height: int) -> tuple[int, int]:
        scale = min(1.0, longest / max(width, height)) if longest else 1.0
        return max(1, round(width * scale)), max(1, round(height * scale))

    (picture,) = _read(data, limits, fit, frame or "only")[0]
    picture.image.info = {}
    return picture.image


# --- bytes to upright RGB pictures -----------------------------------------------------------------------------------

_Frames = int | Literal["only", "all"]  # of a DICOM file: one, counted from 1; the only one; all

_Fit = Callable[[int, int], tuple[int, int]]
"""Width and height of an original to those wanted. It must not care which of the two is which, as a picture is turned
upright last: by then it is small."""


@dataclass(frozen=True)
class _Picture:
    image: Image.Image  # upright RGB, in the size that was wanted
    width: int  # of the upright original
    height: int
    is_blank: bool  # of one flat colour
    frame: int | None = None  # see `Decoded`


def _squashed(data: bytes, size: int, limits: Limits, frames: _Frames) -> list[Decoded]:
    if size < 1:
        raise ValueError(f"size is {size}: it must be at least 1.")
    pictures, name, header = _read(data, limits, lambda width, height: (size, size), frames)
    return [Decoded(np.array(p.image), p.width, p.height, name, header, p.frame) for p in pictures]


def _read(data: bytes, limits: Limits, fit: _Fit, frames: _Frames) -> tuple[list[_Picture], str, Header]:
    """The pictures in the size that `fit` wants, the format, and what is known of them."""
    limits.check_bytes(data)
    if kinds.is_dicom(data):
        (pictures, header), name = _read_dicom(data, limits, fit, frames), "DICOM"
    else:
        name = kinds.identify(data)
        pictures, header = [_rendered(data, name, limits, fit)], NO_HEADER
    pictures = [picture for picture in pictures if not picture.is_blank]
    if not pictures:
        raise blank()
    return pictures, name, header


def _read_dicom(data: bytes, limits: Limits, fit: _Fit, frames: _Frames) -> tuple[list[_Picture], Header]:
    from melanoma.imaging import dicom  # takes 0.3 s to import, and most archives hold none

    dataset = dicom.read(data)
    number = dicom.number_of_frames(dataset)
    if frames == "only" and number > 1:
        raise unsupported(f"This DICOM file holds {number:,} frames, and only `melanoma score` reads several")
    dicom.check_size(dataset, limits)
    pictures = []
    for index in range(number) if frames == "all" else [0 if frames == "only" else frames - 1]:
        picture = _dicom_frame(dicom.frame(dataset, index), limits, fit)
        pictures.append(picture if number == 1 else replace(picture, frame=index + 1))
        # A JPEG may be larger than the header says.
        if sum(p.width * p.height for p in pictures) > limits.max_pixels:
            raise too_large(f"The picture has more than {limits.max_pixels:,} pixels in all its frames, the limit")
    return pictures, dicom.header(dataset)


def _dicom_frame(frame: "np.ndarray | dicom.Jpeg", limits: Limits, fit: _Fit) -> _Picture:
    """The picture of what `dicom.frame` gives."""
    if isinstance(frame, np.ndarray):
        height, width = frame.shape[:2]
        image, is_blank = samples.seen(Image.fromarray(frame), fit(width, height))
        return _Picture(image, width, height, is_blank)
    # DICOM says itself how a picture lies, and its decoders do not look for EXIF in a frame.
    picture = _rendered(frame.data, "JPEG", limits, fit, frame.is_rgb, is_upright=True)
    return replace(picture, image=ImageOps.invert(picture.image)) if frame.is_negative else picture


def _rendered(
    data: bytes, name: str, limits: Limits, fit: _Fit, is_rgb: bool = False, is_upright: bool = False
) -> _Picture:
    """What `_render` gives; raises `ImageError` only."""
    try:
        return _render(data, name, limits, fit, is_rgb, is_upright)
    except ImageError:
        raise
    except Image.DecompressionBombError as error:
        raise too_large(f"The picture has more than {limits.max_pixels:,} pixels, the limit") from error
    except MemoryError as error:
        raise crashed("takes more memory than it may take here") from error
    # Pillow raises nearly anything on damaged files: OSError, SyntaxError, struct.error, AssertionError.
    except Exception as error:
        # Nobody uses what it may have stumbled over: profiles, comments, texts, private tags.
        bare = _WITHOUT_EXTRAS[name](data) if name in _WITHOUT_EXTRAS else None
        if bare is None:
            raise damaged(name) from error
    return _rendered(bare, name, limits, fit, is_rgb, is_upright)


_WITHOUT_EXTRAS = {"JPEG": jpeg.without_extras, "PNG": png.without_extras, "TIFF": tiff.without_extras}


def _render(data: bytes, name: str, limits: Limits, fit: _Fit, is_rgb: bool, is_upright: bool) -> _Picture:
    """Open, load, resize and turn upright.

    Args:
        data: The file.
        name: Its format, from `kinds.identify`.
        limits: What the file may have at most.
        fit: The size that is wanted.
        is_rgb: A JPEG that does not say what its three components are holds RGB.
        is_upright: EXIF is not asked how the picture lies.
    """
    end = jpeg.end_marker(data) if name == "JPEG" else len(data)
    image = _open(data, name)
    limits.check_pixels(image.width, image.height)
    _refuse_unreadable(image, name, limits)
    if end is None:
        raise damaged(name)
    if name == "PNG":
        # Loading checks neither the checksums of the pixel data nor that the file has an end.
        PngImageFile(io.BytesIO(data)).verify()

    width, height = image.size
    wanted = fit(width, height)
    is_rgb = is_rgb and image.mode == "RGB" and not {"adobe", "jfif"} & image.info.keys()
    is_rgb = is_rgb and not jpeg.is_subsampled(image)
    is_deep = image.mode in ("RGB", "RGBA", "LA", "CMYK") and name != "BMP" and ";16" in str(image.tile)
    # libjpeg scales by 1/2, 1/4 or 1/8 while it decodes, never below what is wanted. `box` is the part of the scaled
    # picture that the original covers: odd sizes leave a fraction of a pixel over.
    drafted = image.draft("YCbCr" if is_rgb else None, wanted)
    box = drafted[1] if drafted else None
    image.load()
    if name == "JPEG" and jpeg.lacks_data(image, data, end, wanted):
        raise damaged(name)
    if name == "TIFF":
        width, height = image.size  # turned upright by load()
        wanted = fit(width, height)

    if is_deep and samples.brightest(image) < 16:
        # Pillow keeps the upper eight bits, and nothing is left of the others.
        raise unsupported(f"This {name} of 16-bit colours uses only their lower 12 bits or fewer")
    straight = Image.merge("RGB", image.split()) if is_rgb else _straight(image)
    # Pillow takes a fourth sample for alpha also where the file does not say so.
    says_alpha = tiff.says_alpha(image) if isinstance(image, TiffImageFile) else name != "BMP" or _bmp_says_alpha(data)
    if straight.mode == "RGBA" and not says_alpha:
        straight = straight.convert("RGB")
    picture, is_blank = samples.seen(straight, wanted, box)
    orientation = 1 if is_upright else _orientation(image)
    if orientation in _UPRIGHT:
        picture = picture.transpose(_UPRIGHT[orientation])
    return _Picture(picture, *((height, width) if orientation >= 5 else (width, height)), is_blank)


def _open(data: bytes, name: str) -> ImageFile.ImageFile:
    # Image.open would read phone pictures as MPO files, whose index may be damaged, and has a pixel limit that warns.
    if name == "JPEG":
        return jpeg.open_jpeg(data)
    if name == "TIFF":
        return tiff.open_tiff(data)
    if name == "PNG":
        return PngImageFile(io.BytesIO(data))
    return WebPImageFile(io.BytesIO(data)) if name == "WEBP" else BmpImageFile(io.BytesIO(data))


# Not here, as their range is not that of a picture or Pillow cannot convert them: F, I (float, 32 bit), LAB, La.
_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr", "I;16", "I;16B")


def _refuse_unreadable(image: ImageFile.ImageFile, name: str, limits: Limits) -> None:
    """Raise `ImageError` for an image that is opened but no single plain picture."""
    if isinstance(image, TiffImageFile):
        tiff.refuse_unreadable(image, limits)
    elif (frames := getattr(image, "n_frames", 1)) > 1:
        raise unsupported(f"This {name} holds {frames:,} frames, and only single pictures are read")
    if image.mode not in _MODES:
        raise unsupported(f"A {name} with samples of Pillow's kind {image.mode} is not a plain picture")


def _straight(image: Image.Image) -> Image.Image:
    """As L, RGB or RGBA: what can be resized without mixing what must not be mixed (palette indices, inks)."""
    if image.mode.startswith("I;16"):
        # Pillow's own conversion clips at 255.
        return Image.fromarray(samples.eight_bits(np.asarray(image), 16))
    mode = "RGBA" if image.has_transparency_data else "L" if image.mode in ("1", "L") else "RGB"
    return image if image.mode == mode else image.convert(mode)  # convert() copies even where nothing changes


def _bmp_says_alpha(data: bytes) -> bool:
    """Whether its header, of version 3 or later, has a mask for alpha."""
    return int.from_bytes(data[14:18], "little") >= 56 and any(data[66:70])


_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def _orientation(image: Image.Image) -> int:
    """EXIF orientation, 1 to 8, read after load(): a PNG may hold it behind the pixels. Unreadable EXIF counts as 1."""
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
        return int(orientation) if orientation in _UPRIGHT else 1
    except Exception:
        return 1
