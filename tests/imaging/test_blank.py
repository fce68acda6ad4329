"""A picture that shows nothing is no picture: it is read otherwise, where its colours are there, or rejected."""

import struct
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pydicom import uid

from melanoma.imaging.decode import decode, decode_frames, decode_image
from melanoma.imaging.errors import UNREAD, ImageError
from melanoma.imaging.load import load
from tests.support.dicom_files import HEIGHT, WIDTH, file, jpeg, picture
from tests.support.image_files import RED, WHITE, encoded, photograph, png, quadrants, tiff

PICTURE = photograph(64, 48)
PIXELS = np.asarray(PICTURE)
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


def with_alpha(value: int, picture: Image.Image = PICTURE) -> Image.Image:
    picture = picture.convert("RGBA")
    picture.putalpha(value)
    return picture


def bmp32(alpha: int, header: int = 40) -> bytes:
    """A 32-bit BMP by hand: bottom up, blue first; of a header of 108 bytes (version 4) or more, alpha has a mask."""
    rows = np.dstack([PIXELS[::-1, :, ::-1], np.full(PIXELS.shape[:2], alpha, np.uint8)]).tobytes()
    info = struct.pack("<IiiHHIIiiII", header, 64, 48, 1, 32, 3 if header > 40 else 0, len(rows), 0, 0, 0, 0)
    masks = struct.pack("<4I", 0xFF0000, 0xFF00, 0xFF, 0xFF000000)
    info = (info + masks).ljust(header, b"\0") if header > 40 else info
    return b"BM" + struct.pack("<IHHI", 14 + len(info) + len(rows), 0, 0, 14 + len(info)) + info + rows


def tiff_of_four(fourth: int) -> bytes:
    return tiff(64, 48, [8] * 4, np.dstack([PIXELS, np.full(PIXELS.shape[:2], fourth, np.uint8)]).tobytes())


HIDDEN: dict[str, Callable[[], bytes]] = {
    "BMP whose fourth byte is 0": lambda: bmp32(0),
    "BMP of version 4 whose alpha is 0": lambda: bmp32(0, 108),
    "BMP of version 5 whose alpha is 0": lambda: bmp32(0, 124),
    "BMP of version 5 whose alpha is 1": lambda: bmp32(1, 124),
    "TIFF of four samples, the fourth 0": lambda: tiff_of_four(0),
    "TIFF of four samples, the fourth 1": lambda: tiff_of_four(1),
    "TIFF": lambda: encoded(with_alpha(0), "TIFF"),
    "TIFF lzw": lambda: encoded(with_alpha(0), "TIFF", compression="tiff_lzw"),
    "PNG": lambda: encoded(with_alpha(0), "PNG"),
    "WebP": lambda: encoded(with_alpha(0), "WEBP", lossless=True, exact=True),
}


@pytest.mark.parametrize("masks", [struct.pack("<3I", 0xFF0000, 0xFF00, 0xFF), bytes(12)])
def test_a_fourth_byte_without_a_mask_is_no_alpha(masks: bytes) -> None:
    rows = np.dstack([PIXELS[::-1, :, ::-1], np.full(PIXELS.shape[:2], 77, np.uint8)]).tobytes()
    info = struct.pack("<IiiHHIIiiII", 40, 64, 48, 1, 32, 3, len(rows), 0, 0, 0, 0) + masks
    data = b"BM" + struct.pack("<IHHI", 14 + len(info) + len(rows), 0, 0, 14 + len(info)) + info + rows
    assert np.array_equal(np.asarray(decode_image(data)), PIXELS)


@pytest.mark.parametrize("name", HIDDEN)
def test_alpha_that_hides_everything_is_not_meant(name: str) -> None:
    data = HIDDEN[name]()
    assert np.array_equal(np.asarray(decode_image(data)), PIXELS)
    assert np.array_equal(decode(data, 24).pixels, decode(encoded(PICTURE, "PNG"), 24).pixels)


def test_a_fourth_sample_that_a_tiff_does_not_explain_is_no_alpha() -> None:
    infrared = np.asarray(PICTURE.convert("L"))
    data = tiff(64, 48, [8] * 4, np.dstack([PIXELS, infrared]).tobytes())
    assert np.array_equal(np.asarray(decode_image(data)), PIXELS)
    # One that is explained as alpha is alpha.
    shown = encoded(Image.fromarray(np.dstack([PIXELS, infrared]), "RGBA"), "TIFF")
    assert not np.array_equal(np.asarray(decode_image(shown)), PIXELS)


def test_twelve_bits_in_sixteen_with_alpha_are_not_scored_as_black() -> None:
    low = (PIXELS.astype(np.uint16) * 16)[..., :3]
    opaque = np.full((*PIXELS.shape[:2], 1), 65_535, np.uint16)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in np.concatenate([low, opaque], axis=2))
    with pytest.raises(ImageError, match="only their lower 12 bits"):
        decode_image(png(64, 48, 16, 6, rows))


@pytest.mark.parametrize("bits", [8, 12])
@pytest.mark.parametrize("name", ["PNG, partly transparent", "TIFF of inks"])
def test_the_lower_bits_of_sixteen_are_named_whatever_lies_around_them(name: str, bits: int) -> None:
    low = PIXELS.astype(np.uint16) << (bits - 8)
    if name == "TIFF of inks":
        inks = np.asarray(PICTURE.convert("CMYK")).astype("<u2") << (bits - 8)
        data = tiff(64, 48, [16] * 4, inks.tobytes(), photometric=5)
    else:
        alpha = np.full((48, 64, 1), 65_535, np.uint16)
        alpha[:12] = 0
        rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in np.concatenate([low, alpha], axis=2))
        data = png(64, 48, 16, 6, rows)
    with pytest.raises(ImageError, match="only their lower 12 bits") as caught:
        decode(data, 24)
    assert caught.value.kind == "unsupported"


def test_grey_and_palettes_that_are_wholly_transparent_show_their_colours() -> None:
    grey = PICTURE.convert("LA")
    grey.putalpha(0)
    expected = np.asarray(PICTURE.convert("L").convert("RGB"))
    assert np.array_equal(np.asarray(decode_image(encoded(grey, "PNG"))), expected)
    palette = PICTURE.quantize(16)
    data = encoded(palette, "PNG", transparency=bytes(16))
    assert np.array_equal(np.asarray(decode_image(data)), np.asarray(palette.convert("RGB")))


def test_what_is_cut_out_lies_on_white_as_ever() -> None:
    """Alpha that hides a part is meant."""
    image = quadrants([RED, WHITE, WHITE, RED]).convert("RGBA")
    image.putalpha(quadrants([WHITE, (0, 0, 0), (0, 0, 0), WHITE]).convert("L"))
    image.paste((9, 9, 9, 0), (32, 0, 64, 24))
    assert decode(encoded(image, "PNG"), 40).pixels[10, 30].tolist() == list(WHITE)


@pytest.mark.parametrize("bits", [8, 10, 12])
def test_grey_of_sixteen_bits_that_uses_only_the_lower_ones(bits: int) -> None:
    grey = np.asarray(PICTURE.convert("L")).astype(np.uint16)
    samples = grey << (bits - 8)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in samples)
    for data in (png(64, 48, 16, 0, rows), tiff(64, 48, [16], samples.astype("<u2").tobytes())):
        assert np.array_equal(np.asarray(decode_image(data))[..., 0], grey)


@pytest.mark.parametrize("bits", [8, 10, 12])
def test_colours_of_sixteen_bits_that_use_only_the_lower_ones_are_rejected(bits: int) -> None:
    samples = PIXELS.astype(np.uint16) << (bits - 8)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in samples)
    for data in (png(64, 48, 16, 2, rows), tiff(64, 48, [16] * 3, samples.astype("<u2").tobytes())):
        with pytest.raises(ImageError) as caught:
            decode(data, 24)
        assert caught.value.kind in ("blank", "unsupported")


def in_dicom(**values: Any) -> bytes:
    """12 bits of grey, from 0 to 4080."""
    return file(GREY << 4, photometric="MONOCHROME2", BitsStored=12, HighBit=11, **values)


GREY = picture()[..., 1].astype(np.uint16)


@pytest.mark.parametrize(
    "values",
    [
        {"RescaleSlope": 0, "RescaleIntercept": 0},
        {"RescaleSlope": 0, "RescaleIntercept": 100, "WindowCenter": 2048, "WindowWidth": 4096},
        {"WindowCenter": 60_000, "WindowWidth": 10},
        {"WindowCenter": -5, "WindowWidth": 2},
        {"WindowCenter": 2048, "WindowWidth": 0},
        {"WindowCenter": 2048, "WindowWidth": -100},
    ],
)
def test_grey_is_seen_without_a_window_that_shows_nothing(values: dict[str, Any]) -> None:
    found = np.asarray(decode_image(in_dicom(**values)))[..., 0]
    assert np.abs(found.astype(int) - GREY).max() <= 1


@pytest.mark.parametrize("bits", [8, 10, 12])
def test_dicom_of_sixteen_bits_that_uses_only_the_lower_ones(bits: int) -> None:
    colours = picture().astype(np.uint16) << (bits - 8)
    assert np.array_equal(np.asarray(decode_image(file(colours))), picture())
    assert np.array_equal(
        np.asarray(decode_image(file(colours[..., 1].copy(), photometric="MONOCHROME2")))[..., 0], GREY
    )


def flat_dicom(value: int = 128, **values: Any) -> bytes:
    return file(np.full((HEIGHT, WIDTH, 3), value, np.uint8), **values)


FLAT: dict[str, Callable[[], bytes]] = {
    "white PNG": lambda: encoded(Image.new("RGB", (64, 48), "white"), "PNG"),
    "white BMP": lambda: encoded(Image.new("RGB", (64, 48), "white"), "BMP"),
    "black JPEG": lambda: encoded(Image.new("RGB", (64, 48)), "JPEG"),
    "grey JPEG": lambda: encoded(Image.new("L", (64, 48), 128), "JPEG"),
    "red WebP": lambda: encoded(Image.new("RGB", (64, 48), RED), "WEBP"),
    "cyan CMYK": lambda: encoded(Image.new("CMYK", (64, 48), (255, 0, 0, 0)), "JPEG"),
    "black and white TIFF": lambda: encoded(Image.new("1", (64, 48), 1), "TIFF", compression="group4"),
    "palette": lambda: encoded(Image.new("P", (64, 48), 3), "PNG"),
    "one pixel": lambda: encoded(Image.new("RGB", (1, 1), RED), "PNG"),
    "transparent PNG without colours": lambda: encoded(Image.new("RGBA", (64, 48), (9, 9, 9, 0)), "PNG"),
    "PNG of one transparent colour": lambda: encoded(Image.new("RGB", (64, 48), RED), "PNG", transparency=RED),
    "white and half transparent": lambda: encoded(Image.new("RGBA", (64, 48), (255, 255, 255, 99)), "PNG"),
    "brown WebP": lambda: encoded(Image.new("RGB", (64, 48), (120, 90, 70)), "WEBP", quality=75),
    "nearly flat": lambda: encoded(Image.fromarray(PIXELS % 4 + 100), "PNG"),
    "16 bits": lambda: tiff(2, 1, [16], struct.pack("<2H", 30_000, 30_000)),
    "DICOM": flat_dicom,
    "DICOM, JPEG": lambda: flat_dicom(
        syntax=uid.JPEGBaseline8Bit, photometric="YBR_FULL", frame_data=[jpeg(np.zeros((HEIGHT, WIDTH, 3), np.uint8))]
    ),
    "DICOM, several frames": lambda: file(np.zeros((2, HEIGHT, WIDTH, 3), np.uint8), frames=2),
}


@pytest.mark.parametrize("name", FLAT)
def test_a_picture_of_one_flat_colour_is_rejected(name: str) -> None:
    data = FLAT[name]()
    loaded = load(data, 24, several_frames=True)
    assert loaded.error is not None
    assert loaded.error.kind == "blank"
    assert "one flat colour" in loaded.error.reason
    with pytest.raises(ImageError):
        decode_image(data, frame=1 if "several" in name else None)


def test_a_later_version_looks_again_at_what_showed_nothing_and_at_what_was_damaged() -> None:
    assert {"blank", "truncated"} <= set(UNREAD)


@pytest.mark.parametrize(
    "draw",
    [
        lambda x, y: np.where(np.hypot(x, y) < 0.5, 12, 0),
        lambda x, y: 243 + 12 * (np.hypot(x, y) < 0.5),
        lambda x, y: 120 + 6 * x,
        lambda x, y: np.where(np.hypot(x, y) < 0.04, 30, 255),
    ],
)
def test_what_is_dark_bright_or_faint_is_no_blank(draw: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> None:
    y, x = np.mgrid[-1:1:200j, -1:1:200j]
    pixels = np.repeat(np.asarray(draw(x, y))[..., None], 3, axis=2).astype(np.uint8)
    assert decode(encoded(Image.fromarray(pixels), "PNG"), 8).width == 200


def test_frames_of_one_flat_colour_are_left_out_and_the_others_keep_their_numbers() -> None:
    black = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    data = file(np.stack([black, picture(), black, picture(seed=1), black]), frames=5)
    assert [found.frame for found in decode_frames(data, 24)] == [2, 4]
    assert np.array_equal(np.asarray(decode_image(data, frame=4)), picture(seed=1))
    (only,) = decode_frames(file(np.stack([picture(), black]), frames=2), 24)
    assert only.frame == 1
    assert decode(file(picture()), 24).frame is None
