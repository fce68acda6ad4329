"""Headers as dirty as in the wild: what is not wholly understood says nothing, and kills no picture."""

import struct
from typing import Any

import numpy as np
import pytest
from pydicom import uid

from melanoma.imaging import dicom, times
from melanoma.imaging.decode import decode, decode_image
from melanoma.imaging.errors import ImageError
from melanoma.imaging.header import Header
from tests.support.dicom_files import NATIVE, element, file, jpeg, picture, with_elements

# pydicom's, while it writes such files.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


def header(**values: Any) -> Header:
    return dicom.header(dicom.read(file(picture(), **values)))


def seen(data: bytes) -> np.ndarray:
    return np.asarray(decode_image(data))


# --- when a picture was taken ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("date", "time", "expected"),
    [
        ("20260314", "101112", "2026-03-14T10:11:12"),
        ("20260314", "101112.123456", "2026-03-14T10:11:12"),
        ("20260314", "1011", "2026-03-14T10:11:00"),
        ("20260314", "10", "2026-03-14T10:00:00"),
        ("20260314", "101160", "2026-03-14T10:11:59"),  # a leap second
        ("2026.03.14", "10:11:12", "2026-03-14T10:11:12"),
        ("2026.03.14", "10:11:12.5", "2026-03-14T10:11:12"),
        ("2026-03-14", "10:11", "2026-03-14T10:11:00"),
        ("2026/03/14", "", "2026-03-14"),
        ("20260314", "", "2026-03-14"),
        ("20260314", "noon", "2026-03-14"),
        ("20260314", "101112-111213", "2026-03-14"),
        ("20260314", "1", "2026-03-14"),
        ("20260314", "250000", "2026-03-14"),
        ("20260314", "10:1112", "2026-03-14"),
        ("", "101112", None),
        ("20260314-20260315", "101112", None),
        ("-20260314", "", None),
        ("202603", "", None),
        ("2026", "", None),
        ("20260230", "", None),
        ("2026.0314", "", None),
        ("14.03.2026", "", None),
        ("03/14/2026", "", None),
        ("202603141", "", None),
        ("20260314x", "", None),
        ("00000000", "", None),
        ("00010101", "", None),
        ("18990101", "", None),
        ("\u0662\u0660\u0662\u0666\u0660\u0663\u0661\u0664", "", None),  # digits, but not of ASCII
    ],
)
def test_a_date_and_a_time_are_wholly_understood_or_not_at_all(date: str, time: str, expected: str | None) -> None:
    assert times.of_date_and_time(date, time, None) == expected
    if date.isascii():
        assert header(StudyDate=date.encode(), StudyTime=time.encode()).acquired_at == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("20260314101112.25+0100", "2026-03-14T10:11:12+01:00"),
        ("20260314101112-0500", "2026-03-14T10:11:12-05:00"),
        ("202603141011+0545", "2026-03-14T10:11:00+05:45"),
        ("2026031410", "2026-03-14T10:00:00"),
        ("20260314+0100", "2026-03-14"),
        ("20260314", "2026-03-14"),
        ("2026.03.14 10:11:12", "2026-03-14T10:11:12"),
        ("2026-03-14T10:11:12", "2026-03-14T10:11:12"),
        ("20260314101112+9900", "2026-03-14T10:11:12"),
        ("2026", None),
        ("202603", None),
        ("2026031499", None),
        ("20260314-20260315", None),
        ("20260314101112-", None),
        ("20260314101112 or so", None),
        ("101112", None),
        ("", None),
    ],
)
def test_a_date_time_is_wholly_understood_or_not_at_all(value: str, expected: str | None) -> None:
    assert times.of_date_time(value, None) == expected
    assert header(AcquisitionDateTime=value.encode()).acquired_at == expected


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"AcquisitionDateTime": b"2026", "StudyDate": b"20260314"}, "2026-03-14"),
        ({"AcquisitionTime": b"101112", "StudyDate": b"20260314", "StudyTime": b"0900"}, "2026-03-14T09:00:00"),
        ({"ContentDate": b"20260314\\20260315", "StudyDate": b"20260313"}, "2026-03-13"),
        (
            {"StudyDate": b"20260314", "StudyTime": b"09", "TimezoneOffsetFromUTC": b"-0330"},
            "2026-03-14T09:00:00-03:30",
        ),
        ({"StudyDate": b"20260314", "StudyTime": b"09", "TimezoneOffsetFromUTC": b"CET"}, "2026-03-14T09:00:00"),
        ({"StudyDate": b"20260314", "TimezoneOffsetFromUTC": b"+0100"}, "2026-03-14"),
        (
            {"AcquisitionDateTime": b"20260314101112+0200", "TimezoneOffsetFromUTC": b"-0500"},
            "2026-03-14T10:11:12+02:00",
        ),
        ({"StudyDate": b'"20260314"', "StudyTime": b" 101112 "}, "2026-03-14T10:11:12"),
    ],
)
def test_the_first_that_is_a_date_counts(values: dict[str, Any], expected: str) -> None:
    assert header(**values).acquired_at == expected


# --- who and where ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (b"\x1b[31m4711\x1b[0m", "[31m4711[0m"),
        (b"47\x0711", "4711"),
        (b"47\n11", "47 11"),
        (b"4711\0\0", "4711"),
        (b"A  B", "A  B"),
        (b"\x1b\x07", None),
        (b"P" * 256, "P" * 256),
        (b"P" * 257, None),  # not the first characters of it: they may be another patient's
    ],
)
def test_no_control_character_and_no_half_of_a_name_comes_out_of_a_header(value: bytes, expected: str | None) -> None:
    found = header(PatientID=value, StudyInstanceUID=value, BodyPartExamined=value)
    assert (found.patient_id, found.study_uid, found.body_site) == (expected, expected, expected)


def test_characters_that_turn_the_line_around_do_not_come_out_of_a_header() -> None:
    found = header(SpecificCharacterSet=b"ISO_IR 192", PatientID="47\u202e1\u200b1 ä".encode())
    assert found.patient_id == "4711 ä"


# --- numbers ---------------------------------------------------------------------------------------------------------

GREY = picture()[..., 1].copy()
WHOLE = {"WindowCenter": b"128", "WindowWidth": b"256"}
UNUSED: dict[str, dict[str, Any]] = {
    "slope": {"RescaleSlope": b"", "RescaleIntercept": b""},
    "slope and window": {"RescaleSlope": b"", "RescaleIntercept": b"", **WHOLE},
    "slope in words": {"RescaleSlope": b"one", "RescaleIntercept": b"none", **WHOLE},
    "slope that is no number": {"RescaleSlope": b"nan", "RescaleIntercept": b"inf", **WHOLE},
    "slope beyond all bounds": {"RescaleSlope": b"1e308", "RescaleIntercept": b"0", **WHOLE},
    "intercept beyond all bounds": {"RescaleSlope": b"1", "RescaleIntercept": b"-1e308", **WHOLE},
    "width beyond all bounds": {"WindowCenter": b"128", "WindowWidth": b"1e308"},
    "intercept alone": {"RescaleIntercept": b"7", **WHOLE},
    "window": {"WindowCenter": b"", "WindowWidth": b""},
    "width": {"WindowCenter": b"128", "WindowWidth": b""},
    "width 0": {"WindowCenter": b"128", "WindowWidth": b"0"},
    "width in words": {"WindowCenter": b"128", "WindowWidth": b"wide"},
    "center alone": {"WindowCenter": b"10"},
    "several windows": {"WindowCenter": b"128\\40", "WindowWidth": b"256\\80"},
    "fewer widths than centers": {"WindowCenter": b"128\\40", "WindowWidth": b"256"},
    "quoted window": {"WindowCenter": b'"128"', "WindowWidth": b'"256"'},
    "function": {"VOILUTFunction": b"", **WHOLE},
    "function of no known name": {"VOILUTFunction": b"MAGIC", **WHOLE},
    "quoted function": {"VOILUTFunction": b'"linear"', **WHOLE},
    "representation": {"PixelRepresentation": b""},
    "representation that there is not": {"PixelRepresentation": 7},
    "planes of grey": {"PlanarConfiguration": 5},
    "more bits than there are": {"BitsStored": 16, "HighBit": 15},
    "bits stored": {"BitsStored": b""},
    "high bit": {"HighBit": b""},
    "frames": {"NumberOfFrames": b""},
    "frames 0": {"NumberOfFrames": b"0"},
    "quoted frames": {"NumberOfFrames": b'"1"'},
    "samples": {"SamplesPerPixel": b""},
    "no samples": {"SamplesPerPixel": None},
    "no representation": {"PixelRepresentation": None},
    "no bits stored": {"BitsStored": None},
    "no high bit": {"HighBit": None},
}


@pytest.mark.parametrize("syntax", [*NATIVE[:2], uid.RLELossless, uid.JPEG2000Lossless], ids=lambda syntax: syntax.name)
@pytest.mark.parametrize("name", UNUSED)
def test_numbers_that_say_nothing_kill_no_picture(name: str, syntax: uid.UID) -> None:
    data = file(GREY, photometric="MONOCHROME2")
    if syntax != NATIVE[1]:
        data = file(GREY, syntax, "MONOCHROME2")
    frame_data = None if syntax in NATIVE else [encapsulated(data)]
    found = seen(file(GREY, syntax, "MONOCHROME2", frame_data=frame_data, **UNUSED[name]))[..., 0]
    assert np.abs(found.astype(int) - GREY).max() <= 1


def encapsulated(data: bytes) -> bytes:
    """The frame of a compressed file."""
    at = data.index(b"\xe0\x7f\x10\x00OB") + 12
    (table,) = struct.unpack_from("<I", data, at + 4)
    (length,) = struct.unpack_from("<I", data, at + 8 + table + 4)
    return data[at + 16 + table : at + 16 + table + length]


@pytest.mark.parametrize(
    "values",
    [
        {"PlanarConfiguration": 5},
        {"PlanarConfiguration": b""},
        {"PlanarConfiguration": None},
        {"SamplesPerPixel": None},
    ],
)
def test_colours_lie_pixel_by_pixel_where_nothing_else_is_said(values: dict[str, Any]) -> None:
    assert (seen(file(picture(), **values)) == picture()).all()


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"Rows": None}, "does not say its Rows"),
        ({"Columns": b""}, "does not say its Columns"),
        ({"Rows": 0}, "holds a picture of 60 x 0 pixels"),
        ({"BitsAllocated": None}, "does not say its Bits Allocated"),
        ({"PhotometricInterpretation": b""}, "does not say its Photometric Interpretation"),
        ({"BitsAllocated": 32, "BitsStored": 32}, "has 32 bits a sample"),
        ({"BitsStored": 4, "HighBit": 3}, "holds a picture of 4 bits"),
        ({"SamplesPerPixel": 4}, "has 4 samples a pixel"),
    ],
)
def test_a_reject_names_what_is_missing(values: dict[str, Any], words: str) -> None:
    with pytest.raises(ImageError, match=words) as caught:
        decode(file(picture(), **values), 24)
    assert caught.value.kind == "dicom"


@pytest.mark.parametrize(
    "more",
    [
        element(0x0009, 0x1001, b"UN", b"\xff" * 5000),
        element(0x0009, 0x1001, b"OB", bytes(3_000_000)),
        element(0x0009, 0x1001, b"UT", b"\x1b[2J" * 10),
        struct.pack("<HH2sH", 0x0028, 0x9999, b"DS", 4) + b"none",
        struct.pack("<HH2sH", 0x0028, 0x0034, b"IS", 4) + b"1\\0 ",
        struct.pack("<HH2sH", 0x0028, 0x2110, b"CS", 2) + b"?!",
        struct.pack("<HH2sH", 0x0018, 0x1164, b"DS", 0),
        element(0x0028, 0x2000, b"OB", bytes(2_000_000)),  # ICC profile
        element(0x0028, 0x3010, b"SQ", b""),
        element(0x0088, 0x0200, b"SQ", b"\xfe\xff\x00\xe0" + bytes(4)),
    ],
)
def test_elements_that_nobody_reads_may_be_anything(more: bytes) -> None:
    assert (seen(with_elements(file(picture()), more)) == picture()).all()


def test_samples_may_lie_at_the_upper_end_of_their_bytes() -> None:
    grey, colours = GREY.astype(np.uint16) << 8, picture().astype(np.uint16) << 8
    bits: dict[str, Any] = {"BitsStored": 12, "HighBit": 15}
    assert (seen(file(colours, **bits)) == picture()).all()
    assert (seen(file(grey, photometric="MONOCHROME2", **bits))[..., 0] == GREY).all()
    # A header that says so of samples at the lower end is not believed.
    assert (seen(file(grey >> 4, photometric="MONOCHROME2", **bits))[..., 0] == GREY).all()


def test_a_window_counts_where_it_can_be_understood() -> None:
    half: dict[str, Any] = {"WindowCenter": b"64", "WindowWidth": b"128"}
    plain = seen(file(GREY, photometric="MONOCHROME2", **half))
    assert plain[GREY >= 128].min() == 255
    for values in (
        half | {"RescaleSlope": b"", "RescaleIntercept": b""},
        half | {"RescaleSlope": b"1", "RescaleIntercept": b"0"},
        half | {"VOILUTFunction": b""},
        {"WindowCenter": b"64\\1", "WindowWidth": b"128\\1"},
    ):
        assert (seen(file(GREY, photometric="MONOCHROME2", **values)) == plain).all()


def test_the_header_of_a_jpeg_says_little_and_needs_little() -> None:
    smooth = np.full(picture().shape, 200, np.uint8)
    smooth[:, 30:] = (90, 40, 20)
    values: dict[str, Any] = dict.fromkeys(["BitsStored", "HighBit", "PixelRepresentation", "PlanarConfiguration"])
    frame = jpeg(smooth)
    data = file(smooth, uid.JPEGBaseline8Bit, "YBR_FULL", frame_data=[frame + b"\0" * (len(frame) % 2)], **values)
    assert np.abs(seen(data).astype(int) - smooth).mean() < 1


@pytest.mark.parametrize("number", [b"1e999 ", b"-1e999", b"nan "])
def test_a_number_of_frames_that_is_no_number_kills_no_picture(number: bytes) -> None:
    plain = file(picture())
    at = plain.index(b"\x28\0\x10\0US")
    element = b"\x28\0\x08\0IS" + len(number).to_bytes(2, "little") + number
    assert np.array_equal(np.asarray(decode_image(plain[:at] + element + plain[at:])), picture())
