"""What a file holds beside its picture kills no picture, whatever it is and however it is damaged."""

import struct
import zlib
from collections.abc import Iterable

import numpy as np
import pytest
from PIL import Image

from melanoma.imaging.decode import decode
from melanoma.imaging.errors import ImageError
from tests.support.image_files import encoded, photograph, tiff

PICTURE = photograph(64, 48)
LARGE = bytes(3 * 2**20)
NOISE = np.random.default_rng(0).bytes(1_200_000)
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


def plain(kind: str, **options: object) -> bytes:
    return encoded(PICTURE, kind, **options)


def same_pixels(data: bytes, good: bytes) -> bool:
    return np.array_equal(decode(data, 24).pixels, decode(good, 24).pixels)


# --- PNG -------------------------------------------------------------------------------------------------------------


def chunk(name: bytes, body: bytes, checksum: int | None = None) -> bytes:
    checksum = zlib.crc32(name + body) if checksum is None else checksum
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", checksum)


PNG_EXTRAS = {
    "profile over 1 MB": chunk(b"iCCP", b"a profile\0\0" + zlib.compress(NOISE)),
    "profile that inflates": chunk(b"iCCP", b"a profile\0\0" + zlib.compress(LARGE)),
    "profile that is no profile": chunk(b"iCCP", b"nothing"),
    "profile of an unknown compression": chunk(b"iCCP", b"a profile\0\7" + zlib.compress(b"abc")),
    "XMP over 1 MB": chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(NOISE)),
    "XMP over 1 MB, not compressed": chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + b"x" * 2_000_000),
    "text that inflates": chunk(b"zTXt", b"Comment\0\0" + zlib.compress(LARGE)),
    "texts over 64 MB together": chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(2**20 - 1))) * 70,
    "text of an unknown compression": chunk(b"zTXt", b"Comment\0\7abc"),
    "EXIF that is none": chunk(b"eXIf", b"nothing"),
    "EXIF with a wrong checksum": chunk(b"eXIf", b"MM\0*" + bytes(20), 1),
    "text with a wrong checksum": chunk(b"tEXt", b"Comment\0hello", 1),
    "resolution cut short": chunk(b"pHYs", b"\0"),
    "gamma cut short": chunk(b"gAMA", b"\0"),
    "chromaticities cut short": chunk(b"cHRM", b"\0"),
    "intent cut short": chunk(b"sRGB", b""),
    "private": chunk(b"prVt", b"whatever"),
    "name of another alphabet": chunk(b"tEXt", b"\xff\xfe\0\xff"),
}


@pytest.mark.parametrize("behind", [False, True])
@pytest.mark.parametrize("name", PNG_EXTRAS)
def test_png(name: str, behind: bool) -> None:
    good = plain("PNG")
    at = len(good) - 12 if behind else 33  # before the end, or behind the header
    assert same_pixels(good[:at] + PNG_EXTRAS[name] + good[at:], good)


@pytest.mark.parametrize(("kind", "name", "length"), [("RGB", b"tRNS", 5), ("L", b"tRNS", 1), ("RGB", b"acTL", 7)])
def test_png_with_a_transparent_colour_or_a_count_of_frames_cut_short(kind: str, name: bytes, length: int) -> None:
    good = encoded(PICTURE.convert(kind), "PNG")
    assert same_pixels(good[:33] + chunk(name, bytes(length)) + good[33:], good)


def test_transparency_and_orientation_of_a_png_stay_where_its_profile_is_left_out() -> None:
    turned = Image.Exif()
    turned[0x0112] = 6
    see_through = PICTURE.quantize(16)
    good = encoded(see_through, "PNG", transparency=3, exif=turned.tobytes())
    profile = PNG_EXTRAS["profile over 1 MB"]
    found = decode(good[:33] + profile + good[33:], 24)
    assert (found.width, found.height) == (48, 64)
    assert np.array_equal(found.pixels, decode(good, 24).pixels)


def test_a_damaged_png_stays_damaged_without_its_profile() -> None:
    good = plain("PNG")
    whole = good[:33] + PNG_EXTRAS["profile over 1 MB"] + good[33:]
    flipped = bytearray(whole)
    flipped[-40] ^= 4
    for data in (whole[:-30], bytes(flipped), whole[:1000]):
        with pytest.raises(ImageError, match="The PNG is cut short or damaged") as caught:
            decode(data, 24)
        assert caught.value.kind == "truncated"


# --- JPEG ------------------------------------------------------------------------------------------------------------


def segment(marker: int, body: bytes) -> bytes:
    return bytes([0xFF, marker]) + struct.pack(">H", len(body) + 2) + body


PROFILE = b"ICC_PROFILE\0"
JPEG_EXTRAS = {
    "profile over 1 MB": b"".join(
        segment(0xE2, PROFILE + bytes([n + 1, 19]) + NOISE[n * 65_000 : (n + 1) * 65_000]) for n in range(19)
    ),
    "profile cut short": segment(0xE2, PROFILE),
    "profile with parts that are missing": segment(0xE2, PROFILE + b"\7\11abc"),
    "Photoshop data cut short": segment(0xED, b"Photoshop 3.0\0" + b"8BIM\3\xed"),
    "Photoshop resolution cut short": segment(0xED, b"Photoshop 3.0\0" + b"8BIM\3\xed\0\0\0\0\0\1\0"),
    "index of a phone's pictures cut short": segment(0xE2, b"MPF\0"),
    "index of a phone's pictures that is none": segment(0xE2, b"MPF\0" + b"\xff" * 60),
    "EXIF that is none": segment(0xE1, b"Exif\0\0nothing"),
    "EXIF twice": segment(0xE1, b"Exif\0\0MM\0*") * 2,
    "resolution in EXIF that is no fraction": segment(
        0xE1, b"Exif\0\0MM\0*\0\0\0\x08\0\1" + struct.pack(">HHII", 0x011A, 1, 1, 0) + bytes(4)
    ),
    "XMP": segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0<x:xmpmeta"),
    "JFIF cut short": segment(0xE0, b"JFIF\0"),
    "JFIF extension": segment(0xE0, b"JFXX\0\x10" + bytes(100)),
    "Adobe cut short": segment(0xEE, b"Adobe"),
    "comment": segment(0xFE, b"\xff" * 60_000),
    "empty": segment(0xE1, b"") + segment(0xFE, b"") + segment(0xE5, b""),
    "markers within": segment(0xEA, b"\xff\xd9\xff\xda\xff\xd8\xff\xc3" * 50),
}


@pytest.mark.parametrize("name", JPEG_EXTRAS)
def test_jpeg(name: str) -> None:
    for good in (plain("JPEG"), plain("JPEG", progressive=True), encoded(PICTURE.convert("CMYK"), "JPEG")):
        assert same_pixels(good[:2] + JPEG_EXTRAS[name] + good[2:], good)
        first = 4 + struct.unpack(">H", good[4:6])[0]
        assert same_pixels(good[:first] + JPEG_EXTRAS[name] + good[first:], good)


# --- TIFF ------------------------------------------------------------------------------------------------------------


def with_tag(data: bytes, tag: int, kind: int, count: int, value: bytes) -> bytes:
    """A little-endian TIFF with one tag more, or another one, in a directory at its end."""
    (at,) = struct.unpack_from("<I", data, 4)
    (number,) = struct.unpack_from("<H", data, at)
    entries = {struct.unpack_from("<H", data, n)[0]: data[n : n + 12] for n in range(at + 2, at + 2 + 12 * number, 12)}
    entries[tag] = struct.pack("<HHI", tag, kind, count) + value
    directory = struct.pack("<H", len(entries)) + b"".join(entries[tag] for tag in sorted(entries)) + bytes(4)
    data += b"\0" * (len(data) % 2)
    return data[:4] + struct.pack("<I", len(data)) + data[8:] + directory


VALUES = [
    (0, b"\0\0\0\0"),
    (1, b"\xff\xff\xff\xff"),
    (3, b"\x08\0\0\0"),
    (1_000_000, b"\x08\0\0\0"),
    (2**31, b"\xff\xff\xff\x7f"),
]
# Description, maker, model, orientation, resolution, program, date, XMP, IPTC, Photoshop, EXIF, ICC, GPS, maker's own.
EXTRA_TAGS = [269, 270, 271, 272, 282, 283, 296, 305, 306, 315, 330, 700, 33723, 34377, 34665, 34675, 34853]
EXTRA_TAGS += [37724, 50341, 65000]


@pytest.mark.parametrize("compression", ["raw", "jpeg"])
@pytest.mark.parametrize("tag", EXTRA_TAGS)
def test_tiff(tag: int, compression: str) -> None:
    good = plain("TIFF", compression=compression)
    for kind in (0, 1, 2, 3, 4, 5, 7, 9, 12, 13, 16, 99):
        for count, value in VALUES:
            assert same_pixels(with_tag(good, tag, kind, count, value), good), (kind, count)


def test_a_damaged_tiff_stays_damaged_without_its_tags() -> None:
    good = tiff(64, 48, [8] * 3, np.asarray(PICTURE).tobytes())
    whole = good.replace(struct.pack("<HHI", 254, 4, 1), struct.pack("<HHI", 254, 99, 2**31))
    assert whole != good
    assert same_pixels(whole, good)
    for length in (len(whole) - 100, 200, 100):
        with pytest.raises(ImageError, match="The TIFF is cut short or damaged"):
            decode(whole[:length], 24)


def test_a_tiff_of_planes_multiplied_by_alpha_is_refused_by_name() -> None:
    planes = np.moveaxis(np.dstack([np.asarray(PICTURE), np.full((48, 64), 255, np.uint8)]), 2, 0)
    data = with_tag(tiff(64, 48, [8] * 4, planes.tobytes()), 284, 3, 1, struct.pack("<I", 2))
    data = with_tag(data, 338, 3, 1, struct.pack("<I", 1))
    with pytest.raises(ImageError, match="multiplied by alpha") as caught:
        decode(data, 24)
    assert caught.value.kind == "unsupported"


# --- WebP and BMP ----------------------------------------------------------------------------------------------------


def riff(chunks: Iterable[tuple[bytes, bytes]]) -> bytes:
    body = b"".join(name + struct.pack("<I", len(data)) + data + b"\0" * (len(data) % 2) for name, data in chunks)
    return b"RIFF" + struct.pack("<I", len(body) + 4) + b"WEBP" + body


@pytest.mark.parametrize("name", [b"ICCP", b"EXIF", b"XMP ", b"what"])
@pytest.mark.parametrize("body", [b"", b"nothing", NOISE])
def test_webp(name: bytes, body: bytes) -> None:
    good = plain("WEBP", lossless=True)
    picture = (good[12:16], good[20:])
    flags = {b"ICCP": 0x20, b"EXIF": 0x08, b"XMP ": 0x04}.get(name, 0)
    header = (b"VP8X", struct.pack("<I", flags) + (63).to_bytes(3, "little") + (47).to_bytes(3, "little"))
    extra = (name, body)
    chunks = [header, extra, picture] if name == b"ICCP" else [header, picture, extra]
    assert same_pixels(riff(chunks), good)


def test_bmp_with_a_profile_behind_its_pixels() -> None:
    good = plain("BMP")
    assert same_pixels(good + NOISE, good)
