"""DICOM as hospitals keep it: the picture that was put in comes out, whatever its coding; damage is a reject.

Longer than 500 lines: one reader, tried with every coding and fault.
"""

import io
import os
import resource
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom import uid
from pydicom.pixels import convert_color_space

from melanoma.imaging import dicom
from melanoma.imaging.decode import decode, decode_frames, decode_image
from melanoma.imaging.errors import ImageError
from melanoma.imaging.header import Header
from melanoma.imaging.limits import Limits
from tests.support.dicom_files import (
    HEIGHT,
    LOSSLESS,
    NATIVE,
    WIDTH,
    changed,
    element,
    file,
    jpeg,
    picture,
    with_elements,
)


def decoded(data: bytes) -> np.ndarray:
    return np.asarray(decode_image(data))


@pytest.mark.parametrize("syntax", LOSSLESS, ids=lambda syntax: syntax.name)
@pytest.mark.parametrize("bits", [8, 16])
def test_a_lossless_picture_comes_out_as_it_went_in(syntax: uid.UID, bits: int) -> None:
    pixels = picture(bits)
    assert (decoded(file(pixels, syntax)) == (pixels >> (bits - 8))).all()


@pytest.mark.parametrize("syntax", NATIVE, ids=lambda syntax: syntax.name)
def test_planes_one_after_the_other(syntax: uid.UID) -> None:
    planes = np.ascontiguousarray(picture().transpose(2, 0, 1)).tobytes()
    assert (decoded(file(picture(), syntax, PlanarConfiguration=1, PixelData=planes)) == picture()).all()


@pytest.mark.parametrize("bits", [10, 12])
def test_fewer_bits_than_their_bytes_hold(bits: int) -> None:
    pixels = picture(bits)
    found = decoded(file(pixels, BitsStored=bits, HighBit=bits - 1))
    assert (found == (pixels >> (bits - 8))).all()


def test_luminance_and_chrominance() -> None:
    ybr = convert_color_space(picture(), "RGB", "YBR_FULL")
    found = decoded(file(ybr, photometric="YBR_FULL"))
    assert np.abs(found.astype(int) - picture()).max() <= 2
    assert (found == convert_color_space(ybr, "YBR_FULL", "RGB")).all()


def test_chrominance_for_every_second_pixel() -> None:
    ybr = convert_color_space(picture(), "RGB", "YBR_FULL")
    pairs = ybr.reshape(HEIGHT, WIDTH // 2, 2, 3)
    packed = np.stack([pairs[:, :, 0, 0], pairs[:, :, 1, 0], pairs[:, :, 0, 1], pairs[:, :, 0, 2]], axis=2)
    found = decoded(file(ybr, photometric="YBR_FULL_422", PixelData=packed.tobytes()))
    shared = pairs.copy()
    shared[:, :, 1, 1:] = shared[:, :, 0, 1:]
    assert (found == convert_color_space(shared.reshape(ybr.shape), "YBR_FULL", "RGB")).all()


def test_a_header_that_was_not_changed_when_the_picture_was_unpacked() -> None:
    """RGB under the photometric interpretation of the JPEG that it once was: https://github.com/OHIF/Viewers/issues/2934"""
    assert (decoded(file(picture(), photometric="YBR_FULL_422")) == picture()).all()


@pytest.mark.parametrize("bits", [8, 16])
def test_a_palette(bits: int) -> None:
    indexed = Image.fromarray(picture()).quantize(250)
    table = np.array(indexed.getpalette()).reshape(-1, 3)[:250]
    entries = table.astype("<u2") * 257 if bits == 16 else table.astype(np.uint8)
    lut: dict[str, Any] = {}
    for column, name in enumerate(("Red", "Green", "Blue")):
        lut[f"{name}PaletteColorLookupTableDescriptor"] = [len(table), 0, bits]
        lut[f"{name}PaletteColorLookupTableData"] = np.ascontiguousarray(entries[:, column]).tobytes()
    found = decoded(file(np.asarray(indexed), photometric="PALETTE COLOR", **lut))
    assert (found == np.asarray(indexed.convert("RGB"))).all()


@pytest.mark.parametrize("syntax", LOSSLESS, ids=lambda syntax: syntax.name)
@pytest.mark.parametrize("bits", [8, 16])
def test_grey_and_its_negative(syntax: uid.UID, bits: int) -> None:
    grey = picture(bits)[..., 1].copy()
    expected = np.repeat((grey >> (bits - 8)).astype(np.uint8)[..., None], 3, axis=2)
    assert (decoded(file(grey, syntax, "MONOCHROME2")) == expected).all()
    assert (decoded(file(grey, syntax, "MONOCHROME1")) == 255 - expected).all()


def test_grey_is_seen_through_the_window_of_its_header() -> None:
    grey = (np.arange(HEIGHT * WIDTH, dtype=np.uint16) % 4096).reshape(HEIGHT, WIDTH)
    found = decoded(
        file(grey, photometric="MONOCHROME2", BitsStored=12, HighBit=11, WindowCenter=1024, WindowWidth=1024)
    )[..., 0]
    assert set(found[grey < 512]) == {0}
    assert set(found[grey > 1536]) == {255}
    assert 126 <= found[grey == 1024].mean() <= 129


def without_markers(data: bytes) -> bytes:
    """A JPEG without its JFIF marker, as the ones in DICOM mostly are."""
    assert data[2:4] == b"\xff\xe0"
    return data[:2] + data[4 + struct.unpack(">H", data[4:6])[0] :]


@pytest.mark.parametrize("photometric", ["YBR_FULL_422", "YBR_FULL", "RGB"])
@pytest.mark.parametrize("has_marker", [True, False])
def test_a_jpeg_is_what_its_markers_say_or_else_its_header(photometric: str, has_marker: bool) -> None:
    smooth = np.asarray(Image.fromarray(picture()).resize((6, 6)).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC))
    if photometric == "RGB" and not has_marker:
        # The three planes as they are: what YCbCr would be is red, green and blue.
        raw = io.BytesIO()
        Image.merge("YCbCr", Image.fromarray(smooth).split()).save(raw, "JPEG", quality=95, subsampling=0)
        data = without_markers(raw.getvalue())
    else:
        data = jpeg(smooth) if has_marker else without_markers(jpeg(smooth))
    found = decoded(file(smooth, uid.JPEGBaseline8Bit, photometric, frame_data=[data + b"\0" * (len(data) % 2)]))
    assert np.abs(found.astype(int) - smooth).mean() < 1.5
    assert np.abs(found.astype(int) - smooth).max() < 16


@pytest.mark.parametrize("syntax", [uid.JPEG2000, uid.JPEGLSNearLossless], ids=lambda syntax: syntax.name)
def test_a_lossy_picture_is_near(syntax: uid.UID) -> None:
    options: dict[str, Any] = {"j2k_cr": [4]} if syntax == uid.JPEG2000 else {"jls_error": 3}
    made = pydicom.dcmread(io.BytesIO(file(picture())))
    made.compress(syntax, generate_instance_uid=False, **options)
    buffer = io.BytesIO()
    made.save_as(buffer, enforce_file_format=True)
    found = decoded(buffer.getvalue())
    assert np.abs(found.astype(int) - picture()).mean() < 6
    buffer.seek(0)
    assert (found == pydicom.dcmread(buffer).pixel_array).all()


def test_a_file_without_a_preamble_is_read() -> None:
    whole = file(picture())
    assert (decoded(whole[132:]) == picture()).all()


def test_quotes_around_a_value_are_not_part_of_it() -> None:
    assert (decoded(file(picture(), photometric='"RGB"')) == picture()).all()


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: file(picture(), Rows=40_000, Columns=40_000), "more than the limit"),
        (lambda: file(picture(), photometric="YBR_PARTIAL_420"), "a photometric interpretation that is not read"),
        (lambda: file(picture(), uid.MPEG2MPML, frame_data=[b"\0\0"]), "transfer syntax MPEG2"),
        (lambda: file(picture())[:-3000], "damaged"),
        (lambda: changed(file(picture(), uid.RLELossless), Rows=4), "larger picture than it says"),
        (
            lambda: changed(file(picture(), uid.JPEG2000Lossless), Rows=4),
            "says 60 x 4 x 3, and its picture 60 x 45 x 3",
        ),
        (
            lambda: changed(file(picture(), uid.JPEGLSLossless), Columns=4),
            "says 4 x 45 x 3, and its picture 60 x 45 x 3",
        ),
        (lambda: file(picture(), uid.JPEG2000Lossless)[:600], "damaged"),
    ],
)
def test_what_cannot_be_read_is_a_sentence(make: Callable[[], bytes], words: str) -> None:
    with pytest.raises(ImageError, match=words) as caught:
        decode(make(), 32)
    assert caught.value.kind in ("dicom", "too_large", "truncated")


def header(**values: Any) -> Header:
    return dicom.header(dicom.read(file(picture(), **values)))


def test_what_the_header_says_of_a_picture() -> None:
    region = pydicom.Dataset()
    region.CodeValue, region.CodingSchemeDesignator, region.CodeMeaning = (
        "281739007",
        "SCT",
        "Skin of part of lower limb",
    )
    found = header(
        StudyInstanceUID="1.2.840.1",
        BodyPartExamined="LEG",
        AnatomicRegionSequence=[region],
        AcquisitionDateTime="20260314153005.25+0100",
        RecognizableVisualFeatures="NO",
        BurnedInAnnotation="YES",
    )
    assert found == Header("4711", "1.2.840.1", "Skin of part of lower limb", "2026-03-14T15:30:05+01:00", False, True)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"PatientID": '"ISIC_1" '}, {"patient_id": "ISIC_1"}),
        ({"PatientID": '""'}, {"patient_id": None}),
        ({"StudyInstanceUID": "no uid"}, {"study_uid": "no uid"}),
        ({"BodyPartExamined": "'HEAD/NECK'"}, {"body_site": "HEAD/NECK"}),
        ({"AnatomicRegionSequence": []}, {"body_site": None}),
        ({"AcquisitionDate": "20260314", "AcquisitionTime": "1530"}, {"acquired_at": "2026-03-14T15:30:00"}),
        ({"AcquisitionDate": "20260314"}, {"acquired_at": "2026-03-14"}),
        (
            {"ContentDate": "20260314", "ContentTime": "153005", "TimezoneOffsetFromUTC": "-0500"},
            {"acquired_at": "2026-03-14T15:30:05-05:00"},
        ),
        ({"AcquisitionDate": "yesterday", "StudyDate": "20260314"}, {"acquired_at": "2026-03-14"}),
        ({"AcquisitionDateTime": "99999999"}, {"acquired_at": None}),
        ({"RecognizableVisualFeatures": '"YES"'}, {"is_recognizable": True}),
        ({"RecognizableVisualFeatures": "MAYBE"}, {"is_recognizable": None}),
    ],
)
def test_dirty_headers_are_read_with_care(values: dict[str, Any], expected: dict[str, Any]) -> None:
    found = header(**values)
    assert {name: getattr(found, name) for name in expected} == expected


# --- several frames --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("syntax", [*LOSSLESS, uid.JPEGBaseline8Bit], ids=lambda syntax: syntax.name)
def test_every_frame_is_decoded(syntax: uid.UID) -> None:
    both = [picture(seed=1), picture(seed=2)]
    if syntax == uid.JPEGBaseline8Bit:
        data = file(np.stack(both), syntax, "YBR_FULL_422", frames=2, frame_data=[jpeg(each) for each in both])
    else:
        data = file(np.stack(both), syntax, frames=2)
    found = [decoded.pixels for decoded in decode_frames(data, 24)]
    for frame, each in zip(found, both, strict=True):
        alone = decode_frames(file(each), 24)[0].pixels
        assert np.abs(frame.astype(int) - alone).mean() < (2 if syntax == uid.JPEGBaseline8Bit else 1e-9)
    assert not (found[0] == found[1]).all()
    for number in (1, 2):
        shown = np.asarray(decode_image(data, frame=number))
        assert np.abs(shown.astype(int) - both[number - 1]).mean() < 4
    with pytest.raises(ImageError, match="holds 2 frames, and only `melanoma score` reads several"):
        decode(data, 24)


def test_frames_that_are_too_many_or_too_large_together_are_refused() -> None:
    four = file(np.stack([picture()] * 4), frames=4)
    with pytest.raises(ImageError, match="4 frames of 60 x 45 pixels, more than the limit of 9,000") as caught:
        decode_frames(four, 24, Limits(max_pixels=9000))
    assert caught.value.kind == "too_large"
    with pytest.raises(ImageError, match="1,000,000,000 frames, as a film"):
        decode_frames(changed(four, NumberOfFrames=10**9), 24)
    large = jpeg(np.zeros((80, 80, 3), np.uint8))
    small = file(np.zeros((2, 2, 2, 3), np.uint8), uid.JPEGBaseline8Bit, "YBR_FULL", frames=2, frame_data=[large] * 2)
    with pytest.raises(ImageError, match="pixels in all its frames"):
        decode_frames(small, 24, Limits(max_pixels=9000))
    with pytest.raises(ImageError, match="damaged"):
        decode_frames(changed(four, NumberOfFrames=5), 24)


# --- hostile bytes, real files ---------------------------------------------------------------------------------------


def in_a_jp2_box(data: bytes) -> bytes:
    """A codestream that claims to be small, in a box before another one."""
    return struct.pack(">I", 8 + 200) + b"uuid" + data[:200] + data


def hostile() -> dict[str, bytes]:
    """Small files that would have a naive decoder take gigabytes or minutes."""
    codestream = io.BytesIO()
    Image.fromarray(np.zeros((900, 900, 3), np.uint8)).save(codestream, "JPEG2000", no_jp2=True)
    small = file(picture(), uid.JPEG2000Lossless)
    hidden = in_a_jp2_box(codestream.getvalue())
    runs = struct.pack("<16I", 1, 64, *[0] * 14) + b"\x80" * 1_000_000
    overlapping = struct.pack("<16I", 15, *[64] * 15) + bytes([0, 1] * 500)
    empty_items = b"\xfe\xff\x00\xe0" + bytes(4)
    deflated = changed(file(picture()))
    deflated = deflated.replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2.1.99")
    return {
        "a frame within a frame": file(
            picture(), uid.JPEG2000Lossless, frame_data=[hidden + b"\0" * (len(hidden) % 2)]
        ),
        "a cut main header": small[: small.index(b"\xff\x4f\xff\x51") + 60],
        "runs of nothing": file(picture(), uid.RLELossless, frame_data=[runs]),
        "runs over and over": file(picture(), uid.RLELossless, frame_data=[overlapping]),
        "empty items": with_elements(file(picture()), element(0x0040, 0x0555, b"SQ", empty_items * 300_000)),
        "elements in an item": with_elements(
            file(picture()),
            struct.pack("<HH2s2xI", 0x0040, 0x0555, b"SQ", 0xFFFFFFFF)
            + b"\xfe\xff\x00\xe0\xff\xff\xff\xff"
            + struct.pack("<HH2sH", 0x0010, 0x0010, b"PN", 0) * 400_000
            + b"\xfe\xff\x0d\xe0\0\0\0\0\xfe\xff\xdd\xe0\0\0\0\0",
        ),
        "a window of many values": with_elements(
            file(picture()[..., 0].copy(), photometric="MONOCHROME2"),
            element(0x0028, 0x1050, b"UN", b"1\\" * 500_000) + element(0x0028, 0x1051, b"UN", b"1\\" * 500_000),
        ),
        "a body part like a book": with_elements(file(picture()), element(0x0018, 0x0015, b"UT", b"ARM " * 500_000)),
        "deflated": deflated,
        "64 bits": changed(file(picture()), BitsAllocated=64),
    }


@pytest.mark.parametrize("name", hostile())
def test_small_files_that_would_explode_are_refused(name: str) -> None:
    data = hostile()[name]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ImageError) as caught:
        decode(data, 16)
    assert caught.value.kind == "dicom"
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 * 1024  # KiB


def test_a_codestream_begins_the_frame() -> None:
    with pytest.raises(ImageError, match="holds no JPEG 2000 codestream"):
        decode(hostile()["a frame within a frame"], 16)


def test_a_transfer_syntax_that_is_named_elsewhere_does_not_count() -> None:
    named = with_elements(file(picture()), element(0x0018, 0x9999, b"UT", b"1.2.840.10008.1.2.1.99"))
    assert (decoded(named) == picture()).all()


def test_words_of_a_header_do_not_get_into_the_reason() -> None:
    for data in (
        file(picture(), photometric="MUSTERMANN"),
        file(picture()).replace(b"1.2.840.10008.1.2.1\0", b"Erika Mustermann\0\0\0\0"),
    ):
        with pytest.raises(ImageError) as caught:
            decode(data, 16)
        assert "MUSTERMANN" not in caught.value.reason.upper()


# --- colours that headers get wrong ----------------------------------------------------------------------------------


def test_a_jpeg_may_be_a_negative() -> None:
    grey = np.asarray(Image.fromarray(picture()).convert("L").resize((6, 6)).resize((WIDTH, HEIGHT)))
    frame = jpeg(grey)
    found = decoded(file(grey, uid.JPEGBaseline8Bit, "MONOCHROME1", frame_data=[frame + b"\0" * (len(frame) % 2)]))
    assert np.abs(found[..., 0].astype(int) - (255 - grey)).mean() < 2


def test_a_jpeg_2000_that_turns_its_colours_is_believed() -> None:
    buffer = io.BytesIO()
    Image.fromarray(picture()).save(buffer, "JPEG2000", no_jp2=True, mct=1)
    frame = buffer.getvalue() + b"\0" * (len(buffer.getvalue()) % 2)
    for photometric in ("YBR_RCT", "YBR_FULL", "YBR_FULL_422", "RGB"):
        assert (decoded(file(picture(), uid.JPEG2000Lossless, photometric, frame_data=[frame])) == picture()).all()


def test_a_jpeg_with_coarser_colours_is_no_rgb() -> None:
    smooth = np.asarray(Image.fromarray(picture()).resize((6, 6)).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC))
    buffer = io.BytesIO()
    Image.fromarray(smooth).save(buffer, "JPEG", quality=95, subsampling=2)
    frame = without_markers(buffer.getvalue())
    found = decoded(file(smooth, uid.JPEGBaseline8Bit, "RGB", frame_data=[frame + b"\0" * (len(frame) % 2)]))
    assert np.abs(found.astype(int) - smooth).mean() < 3


def mutants() -> dict[str, bytes]:
    smooth = np.asarray(Image.fromarray(picture()).resize((6, 6)).resize((WIDTH, HEIGHT)))
    made = {syntax.name: file(picture(), syntax) for syntax in (*LOSSLESS, uid.ImplicitVRLittleEndian)}
    made["JPEG"] = file(smooth, uid.JPEGBaseline8Bit, "YBR_FULL_422", frame_data=[jpeg(smooth)])
    made["16 bits, JPEG 2000"] = file(picture(16), uid.JPEG2000Lossless)
    made["16 bits, RLE"] = file(picture(16), uid.RLELossless)
    made["two frames, RLE"] = file(np.stack([picture(), picture(seed=1)]), uid.RLELossless, frames=2)
    made["grey with a window"] = file(
        picture()[..., 0].copy(), photometric="MONOCHROME2", WindowCenter=9, WindowWidth=9
    )
    return made


MUTANTS = mutants()


@pytest.mark.parametrize("number", [150, pytest.param(10_000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", MUTANTS)
def test_mutations_end_as_pixels_or_as_an_image_error(name: str, number: int) -> None:
    rng = np.random.default_rng(len(name))
    data = MUTANTS[name]
    frames = data.index(b"\xe0\x7f\x10\x00") if b"\xe0\x7f\x10\x00" in data else len(data) // 2
    kinds = set()
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for i in range(number):
        mutant = bytearray(data)
        # The header, the beginning of the frame, and all of it, in turn.
        first, last = [(128, frames + 12), (frames, min(len(data), frames + 300)), (0, len(data))][i % 3]
        for _ in range(int(rng.integers(1, 5))):
            position = int(rng.integers(first, last))
            operation = rng.integers(0, 4)
            if operation == 0:
                mutant[position % len(mutant)] = int(rng.integers(0, 256))
            elif operation == 1:
                mutant[position % len(mutant)] ^= 1 << int(rng.integers(0, 8))
            elif operation == 2:
                del mutant[position : position + int(rng.integers(1, 9))]
            else:
                mutant[position:position] = rng.bytes(int(rng.integers(1, 9)))
        try:
            found = decode_frames(bytes(mutant), 16, Limits(max_bytes=2**20, max_pixels=2**22))
        except ImageError as error:
            kinds.add(error.kind)
        else:
            assert all(each.pixels.shape == (16, 16, 3) for each in found)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory < 2**19  # KiB
    assert "dicom" in kinds
    assert not kinds & {"empty", "not_found", "access"}


def test_real_files_look_as_a_reference_decoder_sees_them() -> None:
    folder = os.environ.get("MELANOMA_DATA")
    if not folder:
        pytest.skip("MELANOMA_DATA names no folder of real images.")
    files = sorted(Path(folder).glob("dicom/*.dcm"))
    assert files
    for path in files[::3]:
        read = decode(path.read_bytes(), 128)
        made = pydicom.dcmread(path)
        made.PhotometricInterpretation = str(made.PhotometricInterpretation).strip('"')
        reference = Image.fromarray(pydicom.pixels.pixel_array(made))
        assert (read.width, read.height) == reference.size
        small = np.asarray(reference.resize((128, 128), Image.Resampling.BILINEAR), int)
        assert np.abs(read.pixels - small).mean() < 2, path.name
        assert read.header.patient_id == str(made.PatientID).strip('"')
