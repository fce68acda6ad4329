"""Bytes in, pixels or an `ImageError` out.

Longer than 500 lines: one decoder, tried with every format and fault.
"""

import base64
import hashlib
import io
import json
import os
import pickle
import resource
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile

from melanoma.imaging.decode import Decoded, decode, decode_image
from melanoma.imaging.errors import ImageError
from melanoma.imaging.limits import Limits
from melanoma.imaging.measures import quality
from tests.support.image_files import (
    BLACK,
    BLUE,
    GREEN,
    RED,
    WHITE,
    close,
    corners,
    encoded,
    photograph,
    png,
    quadrants,
    tiff,
    tiff_page,
)

# What the module itself ignores; pytest sets its own filters for each test.
pytestmark = [
    pytest.mark.filterwarnings(f"ignore::UserWarning:PIL.{module}") for module in ("TiffImagePlugin", "PngImagePlugin")
]


def rejected(data: bytes, limits: Limits | None = None) -> ImageError:
    with pytest.raises(ImageError) as caught:
        decode(data, 16, limits or Limits())
    reason = caught.value.reason
    assert str(caught.value) == reason
    assert reason[0].isupper()
    assert reason.endswith(".")
    assert "\n" not in reason
    assert "Error" not in reason
    return caught.value


def outcome(data: bytes, size: int) -> Decoded | ImageError:
    try:
        return decode(data, size)
    except ImageError as error:
        return error


# --- what is read ----------------------------------------------------------------------------------------------------

COLOUR_FILES: dict[str, tuple[str, Callable[[Image.Image], bytes]]] = {
    "jpeg": ("JPEG", lambda im: encoded(im, "JPEG", quality=95)),
    "jpeg progressive": ("JPEG", lambda im: encoded(im, "JPEG", quality=95, progressive=True)),
    "jpeg without subsampling": ("JPEG", lambda im: encoded(im, "JPEG", quality=95, subsampling=0)),
    "jpeg as RGB": ("JPEG", lambda im: encoded(im, "JPEG", quality=95, keep_rgb=True)),
    "jpeg with restarts": ("JPEG", lambda im: encoded(im, "JPEG", quality=95, restart_marker_rows=1)),
    "mpo": (
        "JPEG",
        lambda im: encoded(im, "MPO", quality=95, save_all=True, append_images=[Image.new("RGB", (32, 32))]),
    ),
    "png": ("PNG", lambda im: encoded(im, "PNG")),
    "png palette": ("PNG", lambda im: encoded(im.quantize(4), "PNG")),
    "tiff": ("TIFF", lambda im: encoded(im, "TIFF")),
    "tiff lzw": ("TIFF", lambda im: encoded(im, "TIFF", compression="tiff_lzw")),
    "tiff deflate": ("TIFF", lambda im: encoded(im, "TIFF", compression="tiff_adobe_deflate")),
    "tiff packbits": ("TIFF", lambda im: encoded(im, "TIFF", compression="packbits")),
    "tiff jpeg": ("TIFF", lambda im: encoded(im, "TIFF", compression="jpeg", quality=95)),
    "bigtiff": ("TIFF", lambda im: encoded(im, "TIFF", big_tiff=True)),
    "tiff palette": ("TIFF", lambda im: encoded(im.quantize(4), "TIFF")),
    "webp lossy": ("WEBP", lambda im: encoded(im, "WEBP", quality=95)),
    "webp lossless": ("WEBP", lambda im: encoded(im, "WEBP", lossless=True)),
    "bmp": ("BMP", lambda im: encoded(im, "BMP")),
    "bmp palette": ("BMP", lambda im: encoded(im.quantize(4), "BMP")),
}


@pytest.mark.parametrize("kind", COLOUR_FILES)
def test_colours_and_size_are_read(kind: str) -> None:
    name, encode = COLOUR_FILES[kind]
    decoded = decode(encode(quadrants()), 40)
    assert (decoded.width, decoded.height, decoded.format) == (64, 48, name)
    assert decoded.pixels.shape == (40, 40, 3)
    assert decoded.pixels.dtype == np.uint8
    assert decoded.pixels.flags.c_contiguous
    assert decoded.pixels.flags.writeable
    lossless = name in ("PNG", "BMP") or kind in (
        "tiff", "tiff lzw", "tiff deflate", "tiff packbits", "bigtiff", "tiff palette", "webp lossless"
    )  # fmt: skip
    assert close(corners(decoded.pixels), (RED, GREEN, BLUE, WHITE), 0 if lossless else 6)


@pytest.mark.parametrize(("kind", "options"), [("JPEG", {}), ("PNG", {}), ("TIFF", {}), ("BMP", {})])
def test_greyscale(kind: str, options: dict[str, object]) -> None:
    decoded = decode(encoded(quadrants().convert("L"), kind, **options), 40)
    grey = [tuple([value] * 3) for value in (87, 130, 56, 255)]
    assert close(corners(decoded.pixels), grey, 2)


def test_black_and_white() -> None:
    image = quadrants([WHITE, BLACK, BLACK, WHITE]).convert("1")
    for data in (encoded(image, "PNG"), encoded(image, "TIFF", compression="group4"), encoded(image, "BMP")):
        assert corners(decode(data, 40).pixels) == [WHITE, BLACK, BLACK, WHITE]


def test_cmyk_and_ycck_jpeg() -> None:
    def with_a_corner(inks: tuple[int, int, int, int]) -> Image.Image:
        image = Image.new("CMYK", (32, 32), inks)
        image.paste((0, 0, 0, 128), (0, 0, 4, 4))
        return image

    cmyk = encoded(with_a_corner((0, 200, 200, 0)), "JPEG", quality=95, subsampling=0)
    assert close(corners(decode(cmyk, 8).pixels), [(255, 55, 55)] * 4, 3)

    # Adobe's transform 2 says that the first three inks are stored as YCbCr. This is that of RGB (55, 195, 195),
    # whose complement is what the picture shows.
    luma, blue, red = Image.new("RGB", (1, 1), (55, 195, 195)).convert("YCbCr").getpixel((0, 0))  # type: ignore[misc]
    stored = encoded(with_a_corner((255 - luma, 255 - blue, 255 - red, 0)), "JPEG", quality=95, subsampling=0)
    adobe = stored.index(b"Adobe")
    assert stored[adobe + 11] == 0
    ycck = stored[: adobe + 11] + b"\2" + stored[adobe + 12 :]
    assert close(corners(decode(ycck, 8).pixels), [(200, 60, 60)] * 4, 4)


WHITE_16 = (0xFFFF,) * 3


def test_sixteen_bits_keep_their_upper_eight() -> None:
    grey = b"".join(b"\0" + struct.pack(">2H", 0x1234, 0xFEDC) for _ in range(2))
    assert decode(png(2, 2, 16, 0, grey), 2).pixels[0].tolist() == [[0x12] * 3, [0xFE] * 3]
    rgb = b"\0" + struct.pack(">6H", 0x1234, 0xFEDC, 0x8080, *WHITE_16)
    assert decode(png(2, 1, 16, 2, rgb), 2).pixels[0].tolist() == [[0x12, 0xFE, 0x80], list(WHITE)]
    # Half transparent over white: 0x12 * 0.5 + 255 * 0.5.
    grey_alpha = b"\0" + struct.pack(">4H", 0x1234, 0x8000, 0xFFFF, 0xFFFF)
    assert decode(png(2, 1, 16, 4, grey_alpha), 2).pixels[0, 0] == pytest.approx([136] * 3, abs=1)
    rgb_alpha = b"\0" + struct.pack(">8H", 0x1234, 0xFEDC, 0x8080, 0x8000, *WHITE_16, 0xFFFF)
    assert decode(png(2, 1, 16, 6, rgb_alpha), 2).pixels[0, 0] == pytest.approx([136, 254, 191], abs=1)
    for order in "<>":
        grey = struct.pack(f"{order}2H", 0x1234, 0xFEDC)
        assert decode(tiff(2, 1, [16], grey, order), 2).pixels[0].tolist() == [[0x12] * 3, [0xFE] * 3]
        rgb = struct.pack(f"{order}6H", 0x1234, 0xFEDC, 0x8080, *WHITE_16)
        assert decode(tiff(2, 1, [16] * 3, rgb, order), 2).pixels[0].tolist() == [[0x12, 0xFE, 0x80], list(WHITE)]


@pytest.mark.parametrize(("kind", "options"), [("PNG", {}), ("TIFF", {}), ("WEBP", {"lossless": True, "exact": True})])
def test_alpha_is_laid_over_white(kind: str, options: dict[str, object]) -> None:
    image = quadrants([RED, RED, RED, RED]).convert("RGBA")
    alpha = quadrants([WHITE, (128,) * 3, BLACK, WHITE]).convert("L")
    image.putalpha(alpha)
    decoded = decode(encoded(image, kind, **options), 40)
    assert close(corners(decoded.pixels), [RED, (237, 142, 142), WHITE, RED], 1)
    # What lies under a transparent part does not shine through where it meets an opaque one.
    image.putalpha(quadrants([WHITE, BLACK, WHITE, BLACK]).convert("L"))
    image.paste((0, 0, 0, 0), (32, 0, 64, 48))
    edge = decode(encoded(image, kind, **options), 3).pixels[1, 1]
    assert close([tuple(edge.tolist())], [(238, 143, 143)], 8)


def test_other_transparency_of_png() -> None:
    palette = (b"PLTE", bytes([*RED, *GREEN, *BLUE]))
    data = png(3, 1, 8, 3, b"\0\0\1\2", palette, (b"tRNS", bytes([0, 128])))
    assert close([tuple(p) for p in decode(data, 3).pixels[0].tolist()], [WHITE, (142, 227, 147), BLUE], 1)
    grey_alpha = png(2, 1, 8, 4, b"\0" + bytes([100, 255, 100, 0]))
    assert decode(grey_alpha, 2).pixels[0].tolist() == [[100] * 3, [255] * 3]
    key = png(2, 1, 8, 2, b"\0" + bytes([*RED, *GREEN]), (b"tRNS", struct.pack(">3H", *RED)))
    assert decode(key, 2).pixels[0].tolist() == [list(WHITE), list(GREEN)]


UPRIGHT = {
    1: (RED, GREEN, BLUE, WHITE),
    2: (GREEN, RED, WHITE, BLUE),
    3: (WHITE, BLUE, GREEN, RED),
    4: (BLUE, WHITE, RED, GREEN),
    5: (RED, BLUE, GREEN, WHITE),
    6: (BLUE, RED, WHITE, GREEN),
    7: (WHITE, GREEN, BLUE, RED),
    8: (GREEN, WHITE, RED, BLUE),
}


@pytest.mark.parametrize("orientation", UPRIGHT)
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_exif_orientation(kind: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    options: dict[str, object] = {"lossless": True} if kind == "WEBP" else {}
    if kind == "TIFF":
        options = {"compression": "tiff_lzw"}
    data = encoded(quadrants(width=400, height=300), kind, exif=exif.tobytes(), **options)
    decoded = decode(data, 40)
    size = (300, 400) if orientation >= 5 else (400, 300)
    assert (decoded.width, decoded.height) == size
    assert close(corners(decoded.pixels), UPRIGHT[orientation], 8)
    whole = decode_image(data)
    assert (whole.size, whole.mode) == (size, "RGB")
    thumbnail = decode_image(data, longest=100)
    assert thumbnail.size == ((75, 100) if orientation >= 5 else (100, 75))
    for picture in (whole, thumbnail):
        assert close(corners(np.asarray(picture.resize((40, 40)))), UPRIGHT[orientation], 8)


def test_exif_orientation_behind_the_pixels_of_a_png() -> None:
    exif = Image.Exif()
    exif[0x0112] = 3
    data = encoded(quadrants(), "PNG")
    body = exif.tobytes().removeprefix(b"Exif\0\0")
    chunk = struct.pack(">I", len(body)) + b"eXIf" + body + struct.pack(">I", zlib.crc32(b"eXIf" + body))
    assert corners(decode(data[:-12] + chunk + data[-12:], 40).pixels) == list(UPRIGHT[3])


def test_damaged_exif_counts_as_upright() -> None:
    exif = Image.Exif()
    exif[0x0112], exif[0x011A], exif[0x0128], exif[0x010F] = 1, (72, 1), 2, "a camera"
    good = exif.tobytes()
    rng = np.random.default_rng(0)
    damaged = [b"Exif\0\0", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0nonsense" * 3]
    # Resolution as one byte instead of a fraction: Pillow raises IndexError while it opens such a JPEG.
    fraction = struct.pack(">HHI", 0x011A, 5, 1)
    assert fraction in good
    damaged += [good.replace(fraction, struct.pack(">HHI", 0x011A, kind, 1)) for kind in range(14)]
    for _ in range(100):
        mutant = bytearray(good)
        for position in rng.integers(6, len(good), 3):
            mutant[position] = rng.integers(0, 256)
        damaged.append(bytes(mutant))
    for exif_bytes in damaged:
        data = encoded(quadrants(), "JPEG", exif=exif_bytes, quality=95)
        found = corners(decode(data, 16).pixels)
        assert any(close(found, upright, 8) for upright in UPRIGHT.values())


def test_damaged_index_of_a_phone_picture_is_no_matter() -> None:
    whole = COLOUR_FILES["mpo"][1](quadrants())
    start = whole.index(b"MPF\0")
    damaged = whole[: start + 8] + b"\xff" * 40 + whole[start + 48 :]
    first_only = whole[: whole.index(b"\xff\xd8", 2) + 30]
    for data in (damaged, first_only):
        assert close(corners(decode(data, 40).pixels), (RED, GREEN, BLUE, WHITE), 6)


def test_decode_image_keeps_the_aspect_ratio_and_never_enlarges() -> None:
    data = encoded(photograph(320, 200), "JPEG")
    assert decode_image(data).size == (320, 200)
    assert decode_image(data, longest=64).size == (64, 40)
    assert decode_image(data, longest=1000).size == (320, 200)
    assert decode_image(encoded(photograph(300, 2), "PNG"), longest=20).size == (20, 1)


def test_small_pictures_are_enlarged_to_the_square() -> None:
    two = Image.new("RGB", (2, 1), RED)
    two.putpixel((1, 0), BLUE)
    pixels = decode(encoded(two, "PNG"), 32).pixels
    assert pixels[:, :8].reshape(-1, 3).tolist() == [list(RED)] * 256
    assert pixels[:, 24:].reshape(-1, 3).tolist() == [list(BLUE)] * 256


def test_wrong_use_is_not_a_bad_image() -> None:
    with pytest.raises(ValueError, match="size is 0"):
        decode(b"", 0)
    with pytest.raises(ValueError, match="longest is 0"):
        decode_image(b"", longest=0)


# --- the pixels, and how they come about -----------------------------------------------------------------------------


def test_scaled_decode_is_close_to_full_decode() -> None:
    for width, height, options in (
        (1600, 1200, {}),
        (1501, 999, {"progressive": True}),
        (997, 1333, {"subsampling": 0}),
    ):
        data = encoded(photograph(width, height), "JPEG", quality=90, **options)
        full = Image.open(io.BytesIO(data)).resize((180, 180), Image.Resampling.BILINEAR)
        difference = np.abs(decode(data, 180).pixels.astype(int) - np.asarray(full, int))
        assert difference.mean() < 1.5
        assert difference.max() < 40


def test_jpeg_is_scaled_while_decoding_and_never_below_what_is_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[tuple[int, int]] = []
    load = JpegImageFile.load

    def spy(self: JpegImageFile) -> object:
        loaded.append(self.size)
        return load(self)

    monkeypatch.setattr(JpegImageFile, "load", spy)
    for width, height in ((1600, 1200), (1000, 1440), (359, 719), (361, 721), (181, 2000), (179, 2000), (100, 90)):
        data = encoded(Image.linear_gradient("L").resize((width, height)), "JPEG")
        loaded.clear()
        decode(data, 180)
        assert loaded[0][0] >= min(180, width)
        assert loaded[0][1] >= min(180, height)
        loaded.clear()
        decode_image(data, longest=200)
        assert max(loaded[0]) >= min(200, max(width, height))
    decode(encoded(Image.linear_gradient("L").resize((1600, 1440)), "JPEG"), 180)
    assert loaded[-1] == (200, 180)


# 25 x 17 pixels, quality 75, 4:2:0.
SMALL_JPEG = base64.b64decode(
    "/9j/4AAQSkZJRgABAQAAAQABAAD/2wBDAAgGBgcGBQgHBwcJCQgKDBQNDAsLDBkSEw8UHRofHh0aHBwgJC4nICIsIxwcKDcpLDAxNDQ0Hyc5PT"
    "gyPC4zNDL/2wBDAQkJCQwLDBgNDRgyIRwhMjIyMjIyMjIyMjIyMjIyMjIyMjIyMjIyMjIyMjIyMjIyMjIyMjIyMjIyMjIyMjIyMjL/wAARCAAR"
    "ABkDASIAAhEBAxEB/8QAGQAAAgMBAAAAAAAAAAAAAAAAAAUDBAYH/8QAJhAAAQIFAwMFAAAAAAAAAAAAAAIRAQMEIXEFMkEUFSIxYWKRof/EAB"
    "gBAAIDAAAAAAAAAAAAAAAAAAMGAgQF/8QAIBEAAQMEAgMAAAAAAAAAAAAAAAECBAMRMTIVcSIzYf/aAAwDAQACEQMRAD8Anp692uM5FbDlRhKW"
    "vs7jKTqD3iq3EAPHNRt1QBCgfDdSa5Lwu+C31yfcxcnUPTyaH6W+4/JX2V1gNvqg1x4Hgc6ptkcDKTsTkAGV3rToz4ORjJ3pwXgAhSy7saqGh/"
    "/Z"
)


def test_pixels_are_pinned() -> None:
    """A change here is a new version of PREPROCESSING: models saved before would see other pixels."""
    y, x = np.mgrid[0:48, 0:64]
    pattern = np.stack([(x * 7 + y * 3) % 256, (x * y) % 256, (x ^ y) * 4 % 256], axis=-1).astype(np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    lossless = decode(encoded(Image.fromarray(pattern), "PNG", exif=exif.tobytes()), 20).pixels
    assert (
        hashlib.sha256(lossless.tobytes()).hexdigest()
        == "fa6fb6ae09523fee10cb4986f8d14c1f04567dfc9e1538dced6fa7282dd420ae"
    )
    scaled, whole = decode(SMALL_JPEG, 8).pixels, decode(SMALL_JPEG, 20).pixels
    assert close(corners(whole), [(108, 162, 110), (190, 163, 142), (108, 86, 132), (192, 86, 137)], 1)
    assert (
        hashlib.sha256(scaled.tobytes() + whole.tobytes()).hexdigest()
        == "27cb8fab881608c4096705eb271f39f4fa84381b6513bd4258f37397da84de1a"
    )


def test_threads_give_the_same_pixels() -> None:
    files = [encode(photograph(seed=i)) for i in range(4) for _, encode in COLOUR_FILES.values()]
    alone = [decode(data, 32).pixels.tobytes() for data in files]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda data: decode(data, 32).pixels.tobytes(), files)) == alone


# --- what is rejected ------------------------------------------------------------------------------------------------


def box(name: bytes) -> bytes:
    return b"\0\0\0\x20ftyp" + name + bytes(20)


REJECTED: dict[str, tuple[str, str, bytes]] = {
    "nothing": ("empty", "empty", b""),
    "dicom": ("dicom", "DICOM", bytes(128) + b"DICM" + bytes(100)),
    "dicom behind a TIFF header": ("dicom", "DICOM", b"II*\0" + bytes(124) + b"DICM" + bytes(100)),
    "gif": ("unsupported", "GIF", encoded(Image.new("P", (4, 4)), "GIF")),
    "heic": ("unsupported", "HEIC", box(b"heic")),
    "heif": ("unsupported", "HEIC", box(b"mif1")),
    "avif": ("unsupported", "AVIF", box(b"avif")),
    "jpeg 2000": ("unsupported", "JPEG 2000", encoded(Image.new("RGB", (8, 8)), "JPEG2000")),
    "jpeg xl": ("unsupported", "JPEG XL", b"\0\0\0\x0cJXL \r\n\x87\n" + bytes(20)),
    "psd": ("unsupported", "Photoshop", b"8BPS\0\1" + bytes(30)),
    "ico": ("unsupported", "ICO", encoded(Image.new("RGB", (16, 16)), "ICO")),
    "netpbm": ("unsupported", "Netpbm", encoded(Image.new("RGB", (8, 8)), "PPM")),
    "svg": ("unsupported", "SVG", b'<?xml version="1.0"?>\n<svg xmlns="http://www.w3.org/2000/svg"/>'),
    "zip": ("not_an_image", "zip", b"PK\3\4" + bytes(100)),
    "gzip": ("not_an_image", "gzip", b"\x1f\x8b\x08" + bytes(100)),
    "tar": ("not_an_image", "tar", b"image.jpg".ljust(257, b"\0") + b"ustar\0" + bytes(300)),
    "pdf": ("not_an_image", "PDF", b"%PDF-1.7\n" + bytes(100)),
    "elf": ("not_an_image", "program", b"\x7fELF\2\1\1" + bytes(100)),
    "html": ("not_an_image", "HTML", b"\n<!DOCTYPE html><html><body>AccessDenied</body></html>"),
    "xml": ("not_an_image", "XML", b'<?xml version="1.0"?><Error><Code>NoSuchKey</Code></Error>'),
    "json": ("not_an_image", "JSON", b'{"error": "secret"}'),
    "text": ("not_an_image", "text", b"secret of the patient\n"),
    "text that begins like a BMP": ("not_an_image", "text", b"BM is short for bitmap, and this is text"),
    "text in another encoding": ("not_an_image", "text", "\ufeffsecret".encode("utf-16")),
    "lfs": ("not_an_image", "Git LFS", b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n"),
    "video": ("not_an_image", "video", box(b"isom")),
    "sound": ("not_an_image", "WAV", b"RIFF\x24\0\0\0WAVEfmt " + bytes(40)),
    "zeros": ("not_an_image", "zero", bytes(5000)),
    "side file": ("not_an_image", "macOS", b"\0\5\x16\7\0\2\0\0Mac OS X        " + bytes(100)),
    "bytes": ("not_an_image", "unknown", bytes(range(1, 200))),
    "bigtiff without its first bytes": ("not_an_image", "unknown", encoded(quadrants(), "TIFF", big_tiff=True)[4:]),
    "one byte": ("not_an_image", "not an image", b"\xff"),
    "float tiff": ("unsupported", "TIFF", tiff(2, 2, [32], struct.pack("<4f", 0, 0.5, 1, 2), sample_format=3)),
    "double tiff": ("unsupported", "1 samples of 64 bits", tiff(1, 1, [64], bytes(8), sample_format=3)),
    "32-bit tiff": ("unsupported", "TIFF", tiff(1, 1, [32], bytes(4))),
    "12-bit tiff": ("unsupported", "12 bits", tiff(2, 1, [12], b"\x12\x34\x56")),
    "white is zero": ("unsupported", "16 bits", tiff(1, 1, [16], bytes(2), photometric=0)),
    "lab tiff": ("unsupported", "LAB", tiff(1, 1, [8] * 3, bytes(3), photometric=8)),
    "tiff of unknown compression": ("unsupported", "compression", tiff(1, 1, [8], bytes(9), compression=34712)),
    "tiff of old jpeg compression": ("unsupported", "tiff_jpeg", tiff(1, 1, [8] * 3, bytes(9), compression=6)),
    "tiff that says no photometric": (
        "unsupported",
        "does not say how its samples become colours",
        tiff(2, 2, [8], bytes(range(0, 200, 50))).replace(struct.pack("<HH", 262, 3), struct.pack("<HH", 260, 3)),
    ),
    "coloured tiff that says no photometric": (
        "unsupported",
        "3 samples of 8 bits and no photometric interpretation",
        tiff(2, 2, [8] * 3, bytes(range(12))).replace(struct.pack("<HH", 262, 3), struct.pack("<HH", 260, 3)),
    ),
    "planes of 16 bits": (
        "unsupported",
        "whose colours lie one after the other",
        tiff(4, 1, [16] * 3, bytes(range(24))).replace(
            struct.pack("<HHII", 254, 4, 1, 0), struct.pack("<HHII", 284, 3, 1, 2)
        ),
    ),
    "tga": ("unsupported", "TGA", encoded(quadrants(), "TGA")),
    "animated webp": (
        "unsupported",
        "3 frames",
        encoded(quadrants(), "WEBP", save_all=True, append_images=[photograph(64, 48), photograph(64, 48, 1)]),
    ),
    "animated png": (
        "unsupported",
        "2 frames",
        encoded(quadrants(), "PNG", save_all=True, append_images=[photograph(64, 48)]),
    ),
    "pages": ("unsupported", "2 pages", encoded(quadrants(), "TIFF", save_all=True, append_images=[photograph()])),
}


@pytest.mark.parametrize("name", REJECTED)
def test_rejections_say_what_and_why(name: str) -> None:
    kind, words, data = REJECTED[name]
    error = rejected(data)
    assert error.kind == kind
    assert words in error.reason
    assert "secret" not in error.reason
    if kind == "unsupported":
        assert "save the picture as" in error.reason
    with pytest.raises(ImageError):
        decode_image(data, longest=16)


@pytest.mark.parametrize(("offset", "value"), [(1, 0xC3), (1, 0xC9), (4, 12), (9, 2)])
def test_other_kinds_of_jpeg_are_unsupported(offset: int, value: int) -> None:
    """Lossless, arithmetic, 12-bit and two-channel JPEG."""
    data = bytearray(encoded(quadrants(), "JPEG"))
    data[data.index(b"\xff\xc0") + offset] = value
    error = rejected(bytes(data))
    assert error.kind == "unsupported"
    assert "JPEG" in error.reason


def test_a_preview_inside_a_tiff_is_not_a_page() -> None:
    def of_two(first: int, second: int) -> bytes:
        page = tiff_page(8, False, 64, 48, [8] * 3, _PIXELS.tobytes(), subfile=first)
        return b"II*\0\x08\0\0\0" + page + tiff_page(8 + len(page), True, 4, 4, [8], bytes(16), subfile=second)

    assert np.array_equal(np.asarray(decode_image(of_two(0, 1))), _PIXELS)
    assert "2 pages" in rejected(of_two(0, 0)).reason
    assert "preview" in rejected(of_two(1, 0)).reason
    assert rejected(of_two(0, 0)[:-40]).kind == "unsupported"
    assert rejected(of_two(0, 0)[:-200]).kind == "truncated"


@pytest.mark.parametrize("kind", ["empty", "truncated"])
def test_errors_can_be_pickled(kind: str) -> None:
    data = b"" if kind == "empty" else encoded(quadrants(), "PNG")[:-50]
    error = rejected(data)
    unpickled = pickle.loads(pickle.dumps(error))
    assert (unpickled.kind, unpickled.reason, str(unpickled)) == (kind, error.reason, error.reason)


def test_limits() -> None:
    data = encoded(photograph(40, 30), "PNG")
    assert rejected(data, Limits(max_bytes=len(data) - 1)).kind == "too_large"
    assert rejected(data, Limits(max_pixels=1199)).kind == "too_large"
    assert decode(data, 8, Limits(max_bytes=len(data), max_pixels=1200)).width == 40


def bombs() -> dict[str, bytes]:
    """Small files that declare huge pictures."""
    jpeg = bytearray(encoded(Image.new("RGB", (16, 16)), "JPEG"))
    struct.pack_into(">HH", jpeg, jpeg.index(b"\xff\xc0") + 5, 65000, 65000)
    bmp = bytearray(encoded(Image.new("RGB", (16, 16)), "BMP"))
    struct.pack_into("<ii", bmp, 18, 60000, 60000)
    lossless = b"\x2f" + struct.pack("<I", 16382 | 16382 << 14) + bytes(51)
    smaller = b"\x2f" + struct.pack("<I", 11999 | 11999 << 14) + bytes(51)
    webp = [b"WEBPVP8L" + struct.pack("<I", len(body)) + body for body in (lossless, smaller)]
    packed = zlib.compress(bytes(1000))
    one_tile = tiff(64, 64, [8], packed, compression=8, tile=46000)
    return {
        "png": png(60000, 60000, 8, 2, bytes(4_000_000)),
        "jpeg": bytes(jpeg),
        "bmp": bytes(bmp),
        "tiff": tiff(60000, 60000, [8], packed, compression=8),
        "tiff of one tile": one_tile,
        "tiff of half a tile": one_tile.replace(struct.pack("<HH", 323, 4), struct.pack("<HH", 333, 4)),
        "webp": b"RIFF" + struct.pack("<I", len(webp[0])) + webp[0],
        "smaller webp": b"RIFF" + struct.pack("<I", len(webp[1])) + webp[1],
    }


def test_bombs_take_no_memory(tmp_path: Path) -> None:
    for name, data in bombs().items():
        assert len(data) < 10_000
        (tmp_path / name).write_bytes(data)
    script = """
import json, pathlib, re, sys
from melanoma.imaging.decode import ImageError, decode
kinds = {}
for path in sorted(pathlib.Path(sys.argv[1]).iterdir()):
    try:
        decode(path.read_bytes(), 224)
    except ImageError as error:
        kinds[path.name] = error.kind
# Not getrusage: its peak is inherited from the process that started this one.
peak = re.search(r"VmHWM:\\s+(\\d+) kB", pathlib.Path("/proc/self/status").read_text())
print(json.dumps([kinds, int(peak[1]) // 1024]))
"""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script, str(tmp_path)], capture_output=True, text=True, check=True
    )
    kinds, megabytes = json.loads(done.stdout)
    assert kinds == dict.fromkeys(bombs(), "too_large") | {"tiff of half a tile": "truncated"}
    assert megabytes < 150
    assert done.stderr == ""


def test_a_progressive_jpeg_of_endless_scans_is_unsupported() -> None:
    data = encoded(Image.linear_gradient("L").resize((64, 64)), "JPEG", progressive=True)
    scan = data[data.rindex(b"\xff\xda") : -2]
    assert decode(data[:-2] + scan * 50 + data[-2:], 8).width == 64
    assert rejected(data[:-2] + scan * 200 + data[-2:]).kind == "unsupported"


def test_no_warning_leaks() -> None:
    exif = b"Exif\0\0II*\0\x08\0\0\0\x05\0" + b"\x12\x01\x03\0"
    data = encoded(quadrants(), "JPEG", exif=exif)
    script = "import sys; from melanoma.imaging.decode import decode; decode(sys.stdin.buffer.read(), 8)"
    for flags in ((), ("-W", "error"), ("-W", "always")):
        done = subprocess.run([sys.executable, *flags, "-c", script], input=data, capture_output=True, check=True)
        assert done.stderr == b""


# --- damage ----------------------------------------------------------------------------------------------------------

_PIXELS = np.asarray(photograph(64, 48))
FILES = {
    **{name: encode(photograph(64, 48)) for name, (_, encode) in COLOUR_FILES.items() if name != "mpo"},
    "jpeg grey": encoded(photograph(64, 48).convert("L"), "JPEG"),
    "jpeg cmyk": encoded(photograph(64, 48).convert("CMYK"), "JPEG"),
    "webp alpha": encoded(photograph(64, 48).convert("RGBA"), "WEBP", lossless=True, exact=True),
    "tiff, directory first": tiff(64, 48, [8] * 3, _PIXELS.tobytes()),
    "tiff deflate, directory first": tiff(64, 48, [8] * 3, zlib.compress(_PIXELS.tobytes()), compression=8),
}


@pytest.mark.parametrize("name", FILES)
def test_truncated_files_are_never_half_a_picture(name: str) -> None:
    data = FILES[name]
    whole = decode(data, 24).pixels
    lengths = {0, 2, 5, 20, *range(2, len(data), max(1, len(data) // 150)), *range(len(data) - 24, len(data))}
    for length in sorted(lengths):
        found = outcome(data[:length], 24)
        if isinstance(found, Decoded):
            assert np.array_equal(found.pixels, whole), length
        else:
            assert found.kind == ("truncated" if length else "empty"), length


@pytest.mark.parametrize("name", ["jpeg", "jpeg without subsampling", "jpeg as RGB", "jpeg with restarts"])
def test_a_jpeg_that_lacks_data_before_its_end_marker_is_truncated(name: str) -> None:
    """libjpeg fills what is missing with grey and raises nothing."""
    data = COLOUR_FILES[name][1](photograph())
    start = data.index(b"\xff\xda") + 20
    for length in np.linspace(start, len(data) * 0.9, 20, dtype=int):
        cut = data[:length].rstrip(b"\xff")
        assert rejected(cut + b"\xff\xd9").kind == "truncated", length
        assert rejected(cut + bytes(len(data) - length)).kind == "truncated", length


def test_a_whole_jpeg_that_ends_in_grey_is_read() -> None:
    for mode, colour in (("RGB", (128, 128, 128)), ("L", 128), ("CMYK", (128, 128, 128, 128))):
        image = Image.new(mode, (64, 48), colour)
        image.paste(10 if mode == "L" else (10,) * len(mode), (0, 0, 20, 20))
        for options in ({}, {"progressive": True}):
            assert decode(encoded(image, "JPEG", **options), 24).width == 64


@pytest.mark.parametrize("number", [200, pytest.param(10_000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", FILES)
def test_mutations_end_as_pixels_or_as_an_image_error(name: str, number: int) -> None:
    rng = np.random.default_rng(len(name))
    data = FILES[name]
    kinds = set()
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for i in range(number):
        mutant = bytearray(data)
        # Headers and directories lie at the ends: half of the mutations strike there.
        reach = min(len(mutant), 300) if i % 2 else len(mutant)
        for _ in range(int(rng.integers(1, 5))):
            position = int(rng.integers(0, reach))
            position = len(mutant) - 1 - position if i % 4 == 1 else position
            operation = rng.integers(0, 3)
            if operation == 0:
                mutant[position % len(mutant)] = int(rng.integers(0, 256))
            elif operation == 1:
                del mutant[position : position + int(rng.integers(1, 9))]
            else:
                mutant[position:position] = rng.bytes(int(rng.integers(1, 9)))
        found = outcome(bytes(mutant), 16)
        if isinstance(found, Decoded):
            assert found.pixels.shape == (16, 16, 3)
        else:
            kinds.add(found.kind)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory < 2**20  # KiB: none has taken a gigabyte
    assert "truncated" in kinds
    assert not kinds & {"empty", "dicom", "not_found", "access"}


def test_a_flipped_bit_in_a_png_is_noticed() -> None:
    data = encoded(photograph(24, 18), "PNG")
    for position in range(data.index(b"IDAT") + 4, len(data) - 12):
        assert rejected(data[:position] + bytes([data[position] ^ 4]) + data[position + 1 :]).kind == "truncated"


# --- quality, real files ---------------------------------------------------------------------------------------------


def test_quality() -> None:
    assert list(quality(np.full((9, 9, 3), 255, np.uint8))) == pytest.approx([0, 1], abs=1e-6)
    assert quality(np.zeros((9, 9, 3), np.uint8)) == (0.0, 0.0)
    # A chessboard: the Laplacian is 4 on black and -4 on white, in equal number.
    chess = (np.indices((10, 10)).sum(axis=0) % 2 * 255).astype(np.uint8)
    assert list(quality(np.repeat(chess[..., None], 3, axis=-1))) == pytest.approx([16, 0.5])
    assert quality(np.full((4, 4, 3), [255, 0, 0], np.uint8))[1] == pytest.approx(0.299)
    sharp = photograph(128, 128)
    blurred = sharp.resize((32, 32)).resize((128, 128))
    assert quality(np.asarray(blurred))[0] < quality(np.asarray(sharp))[0] / 5


def test_real_images_are_read() -> None:
    folder = os.environ.get("MELANOMA_DATA")
    if not folder:
        pytest.skip("MELANOMA_DATA names no folder of real images.")
    files = sorted(Path(folder).glob("uda1/images/*"))[:8] + sorted(Path(folder).glob("clinical/*.png"))[:3]
    files += sorted(Path(folder).glob("isic9/Test/*/*.jpg"))[::6]
    assert files
    for path in files:
        decoded = decode(path.read_bytes(), 96)
        with Image.open(path) as image:
            assert {decoded.width, decoded.height} == set(image.size)
            full = np.asarray(image.convert("RGB").resize((96, 96), Image.Resampling.BILINEAR), int)
        assert np.abs(decoded.pixels - full).mean() < 3


def test_want_of_memory_is_not_taken_for_damage(monkeypatch: pytest.MonkeyPatch, lesion: Callable[..., bytes]) -> None:
    def load(image: Image.Image) -> None:
        raise MemoryError

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", load)
    with pytest.raises(ImageError, match="takes more memory than it may take here") as caught:
        decode(lesion(), 24)
    assert caught.value.kind == "crashed"
