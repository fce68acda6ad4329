"""DICOM bytes become a picture, or what makes one, and what their header says of it.

**What may a DICOM header change?** Only the elements named here are read, and Specific
Character Set, which says how text is encoded. All others are skipped unread.

*The pixels*:

- whether there is a picture: the transfer syntax, Photometric Interpretation, Bits Allocated and Bits Stored (8 to 16)
  have to be of the kinds that are read, colours have to be three, Number of Frames and Rows x Columns within the
  limits, and what is compressed has to have the size that the header says (a JPEG has its own);
- how samples become numbers: Rows, Columns, Samples per Pixel, Planar Configuration, Bits Allocated, Bits Stored, High
  Bit, Pixel Representation, Number of Frames, and where the frames lie (Extended Offset Table and its Lengths);
- how numbers become colours: Photometric Interpretation, which a JPEG's or JPEG 2000's own markers overrule, as does
  the length of uncompressed YBR_FULL_422 (whole RGB pixels are RGB); the three
  palettes (Red, Green and Blue Palette Color Lookup Table Descriptor and Data) with PALETTE COLOR;
- how grey becomes brightness: Window Center, Window Width and VOI LUT Function, with Rescale Slope and Intercept, and
  where there is no window, or one that shows nothing, the stored bits. MONOCHROME1 is a negative. Compressed as JPEG,
  grey has no window.

Numbers that are missing, empty or cannot be understood kill no picture that can be read without them: samples lie pixel
by pixel, are unsigned and fill their bytes, and grey is not rescaled.

No element turns, crops or stretches a picture, and EXIF within a frame is not asked. ICC profiles, overlays, lookup
tables of grey and the pixel aspect ratio change nothing.

*What the scores say* (`Header`; `melanoma.privacy` makes pseudonyms of the first two):

- `patient_id`: Patient ID, unless it is a placeholder such as ANONYMOUS; `study_uid`: Study Instance UID;
- `body_site`: the meaning of the code in Anatomic Region Sequence, else Body Part Examined;
- `acquired_at`: Acquisition DateTime, else Acquisition, Content or Study Date and Time, with Timezone Offset From UTC;
  the first that is a date (`melanoma.imaging.times`).

A catalog takes `patient_id` and, as `anatomic_site`, `body_site`. None of them reaches the network, and no reason of a
reject repeats a word of a header.

*What holds a picture back* from every page, though it is scored and its alert raised:

- Recognizable Visual Features = YES: a person may be known from it;
- Burned In Annotation = YES: there may be text in it. It counts on the page of a night alone, and only where
  `hold_back_annotated` is configured.

Headers are as dirty as in the wild (quoted values, wrong UIDs, a photometric interpretation that is not that of the
data), and as hostile as any bytes: what is inflated, and what a decoder may be asked to make, is bounded before: at
most 20,000 items, 200,000 reads, 8 KB an element, 128 KB a palette, 256 frames.
"""

import io
import itertools
import logging
import math
import struct
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NoReturn

import numpy as np
import pydicom
from pydicom import uid
from pydicom.datadict import dictionary_description, keyword_for_tag
from pydicom.encaps import get_frame
from pydicom.filereader import _read_file_meta_info, read_partial, read_preamble
from pydicom.pixels import apply_color_lut, apply_windowing, get_decoder
from pydicom.tag import BaseTag, Tag

from melanoma.imaging import times
from melanoma.imaging.errors import ImageError, damaged_dicom, refused_dicom, too_large, too_many_frames
from melanoma.imaging.header import Header
from melanoma.imaging.limits import Limits
from melanoma.imaging.samples import FLAT, eight_bits
from melanoma.taxonomy import placeholders

# What pydicom would say of a dirty header is no concern of ours, and `catch_warnings` is not safe in threads.
pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE
warnings.filterwarnings("ignore", module=r"pydicom\.")
logging.getLogger("pydicom").setLevel(logging.CRITICAL)

_JPEG = (uid.JPEGBaseline8Bit, uid.JPEGExtended12Bit)
_JPEG_2000 = (uid.JPEG2000Lossless, uid.JPEG2000)
_JPEG_LS = (uid.JPEGLSLossless, uid.JPEGLSNearLossless)
_READ = (
    *(*_JPEG, *_JPEG_2000, *_JPEG_LS, uid.RLELossless),
    *(uid.ImplicitVRLittleEndian, uid.ExplicitVRLittleEndian, uid.ExplicitVRBigEndian),
)
_PHOTOMETRIC = (
    *("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT"),
    *("PALETTE COLOR", "MONOCHROME1", "MONOCHROME2"),
)
_PIXEL_DATA = Tag("PixelData")
_ITEM, _ITEM_BIG_ENDIAN = b"\xfe\xff\x00\xe0", b"\xff\xfe\xe0\x00"
_MOST_ITEMS = 20_000
_MOST_READS = 200_000
_LONGEST = 8192  # bytes of an element that is read
_LONGEST_TABLE = 2 * 65_536
_UNDEFINED = 0xFFFFFFFF
_MOST_CHARACTERS = 256  # of what is taken from a header: what is longer is no name, and half of it another one
_AROUND = " \0\t\r\n\"'"  # what exports leave around values
_MOST_FRAMES = 256
_HEADER = (
    *("PatientID", "StudyInstanceUID", "BodyPartExamined", "AnatomicRegionSequence"),
    *("AcquisitionDateTime", "AcquisitionDate", "AcquisitionTime", "ContentDate", "ContentTime"),
    *("StudyDate", "StudyTime", "TimezoneOffsetFromUTC", "BurnedInAnnotation", "RecognizableVisualFeatures"),
)
_PIXELS = (
    *("SamplesPerPixel", "PhotometricInterpretation", "PlanarConfiguration", "NumberOfFrames", "Rows", "Columns"),
    *("BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "PixelData"),
    *("ExtendedOffsetTable", "ExtendedOffsetTableLengths"),
    *("RedPaletteColorLookupTableDescriptor", "GreenPaletteColorLookupTableDescriptor"),
    *("BluePaletteColorLookupTableDescriptor", "RedPaletteColorLookupTableData"),
    *("GreenPaletteColorLookupTableData", "BluePaletteColorLookupTableData"),
    *("RescaleSlope", "RescaleIntercept", "WindowCenter", "WindowWidth", "VOILUTFunction"),
)
_WANTED = [Tag(name) for name in (*_HEADER, *_PIXELS)]
_WANTED_TAGS = frozenset(_WANTED)
_TABLES = frozenset(tag for tag in _WANTED if "LookupTableData" in keyword_for_tag(tag))


# When a picture was taken, the surest first: DICOM PS3.3 C.7.6.1 and C.12.1.
_DATES_AND_TIMES = (
    ("AcquisitionDate", "AcquisitionTime"),
    ("ContentDate", "ContentTime"),
    ("StudyDate", "StudyTime"),
)


@dataclass(frozen=True)
class Jpeg:
    """A JPEG frame. `is_rgb`: its samples are RGB, though nothing in it says so; `is_negative`: 0 is white."""

    data: bytes
    is_rgb: bool
    is_negative: bool


def read(data: bytes) -> pydicom.Dataset:
    """The elements that this module's docstring names. Raises ImageError."""
    if data.count(_ITEM) + data.count(_ITEM_BIG_ENDIAN) > _MOST_ITEMS:
        _refuse(f"has more than {_MOST_ITEMS:,} items or fragments")
    try:
        # pydicom would inflate it to whatever size it has.
        if _syntax(data) == uid.DeflatedExplicitVRLittleEndian:
            _refuse("is deflated as a whole, which is not read")
        dataset = read_partial(_Counted(data), stop_when=_stop, force=True, specific_tags=list(_WANTED))
    except ImageError:
        raise
    except Exception:
        # pydicom raises nearly anything on damaged files.
        raise damaged_dicom("The DICOM file") from None
    if "PixelData" not in dataset:
        _refuse("holds no picture")
    return dataset


class _Counted(io.BytesIO):
    """Bytes that are read in a bounded number of steps: each element takes some, and more memory than it is long."""

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self._reads = 0

    def read(self, size: int | None = -1, /) -> bytes:
        self._reads += 1
        if self._reads > _MOST_READS:
            _refuse("has too many elements")
        return super().read(size)


def _syntax(data: bytes) -> str | None:
    file = _Counted(data)
    read_preamble(file, force=True)
    return _read_file_meta_info(file).get("TransferSyntaxUID")


def _stop(tag: BaseTag, vr: str | None, length: int) -> bool:
    """For pydicom: where to stop. Raises ImageError at what would be large although nothing in the standard is."""
    most = _LONGEST_TABLE if tag in _TABLES else _LONGEST
    if tag in _WANTED_TAGS and tag != _PIXEL_DATA and most < length != _UNDEFINED:
        _refuse(f"has {length:,} bytes in the element {tag}, where {most:,} are the most")
    return tag > _PIXEL_DATA


def _refuse(what: str) -> NoReturn:
    raise refused_dicom(what)


def is_recognizable(data: bytes) -> bool:
    """Whether a DICOM file says that a person may be known from its picture. Never raises."""
    try:
        return bool(header(read(data)).is_recognizable)
    except ImageError:
        return False


def header(dataset: pydicom.Dataset) -> Header:
    """Never raises: a header that cannot be understood says nothing."""
    return Header(
        patient_id=placeholders.known(_text(dataset, "PatientID")),
        study_uid=_text(dataset, "StudyInstanceUID"),
        body_site=_body_site(dataset) or _text(dataset, "BodyPartExamined"),
        acquired_at=_acquired_at(dataset),
        is_recognizable=_answer(dataset, "RecognizableVisualFeatures"),
        is_annotated=_answer(dataset, "BurnedInAnnotation"),
    )


def _text(dataset: pydicom.Dataset, name: str) -> str | None:
    try:
        value = dataset.get(name)
    except Exception:  # a value that its own representation forbids
        return None
    if value is None:
        return None
    # Escape sequences and their like would reach terminals, tables and pages.
    text = "".join(c if c.isprintable() else " " if c.isspace() else "" for c in str(value).strip(_AROUND))
    return text.strip(_AROUND) or None if len(text) <= _MOST_CHARACTERS else None


def _number(dataset: pydicom.Dataset, name: str) -> float | None:
    """The first value of an element; None where it is no number."""
    try:
        value = dataset.get(name)
    except Exception:  # as in `_text`
        value = dataset.get_item(name).value
    if isinstance(value, bytes):
        value = value.decode("ascii", "replace").split("\\")
    first = next(iter(value), None) if isinstance(value, Sequence) and not isinstance(value, str) else value
    try:
        number = float(str(first).strip(_AROUND))
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _whole_number(dataset: pydicom.Dataset, name: str, default: int | None = None) -> int:
    """Raises ImageError where an element that has no default holds no whole number."""
    number = _number(dataset, name)
    if number is not None and number == int(number) and number >= 0:
        return int(number)
    if default is None:
        _refuse(f"does not say its {dictionary_description(name)}")
    return default


def _body_site(dataset: pydicom.Dataset) -> str | None:
    try:
        return _text(dataset.AnatomicRegionSequence[0], "CodeMeaning")
    except Exception:
        return None


def _acquired_at(dataset: pydicom.Dataset) -> str | None:
    zone = _text(dataset, "TimezoneOffsetFromUTC")
    if taken := times.of_date_time(_text(dataset, "AcquisitionDateTime"), zone):
        return taken
    for date, time in _DATES_AND_TIMES:
        if taken := times.of_date_and_time(_text(dataset, date), _text(dataset, time), zone):
            return taken
    return None


def _answer(dataset: pydicom.Dataset, name: str) -> bool | None:
    return {"YES": True, "NO": False}.get((_text(dataset, name) or "").upper())


def number_of_frames(dataset: pydicom.Dataset) -> int:
    """How many pictures the file holds."""
    return max(1, _whole_number(dataset, "NumberOfFrames", 1))


def check_size(dataset: pydicom.Dataset, limits: Limits) -> None:
    """Raises ImageError where all frames together have more pixels than the limit."""
    rows, columns = _whole_number(dataset, "Rows"), _whole_number(dataset, "Columns")
    if not rows or not columns:
        _refuse(f"holds a picture of {columns} x {rows} pixels")
    frames = number_of_frames(dataset)
    if frames > _MOST_FRAMES:
        raise too_many_frames(frames, _MOST_FRAMES)
    if rows * columns * frames > limits.max_pixels:
        times = f"{frames:,} frames of " if frames > 1 else ""
        raise too_large(
            f"The picture has {times}{columns:,} x {rows:,} pixels, more than the limit of {limits.max_pixels:,}"
        )


def frame(dataset: pydicom.Dataset, index: int = 0) -> Jpeg | np.ndarray:
    """One frame, counted from 0, of a file that has passed `check_size`: a JPEG, or its pixels, uint8 RGB
    [height, width, 3]. Raises ImageError."""
    try:
        return _frame(dataset, index)
    except ImageError:
        raise
    except Exception:
        raise damaged_dicom("The picture in the DICOM file") from None


def _frame(dataset: pydicom.Dataset, index: int) -> Jpeg | np.ndarray:
    syntax = dataset.file_meta.get("TransferSyntaxUID") or uid.ImplicitVRLittleEndian
    if syntax not in _READ:
        name = uid.UID_dictionary[syntax][0] if syntax in uid.UID_dictionary else "of no known name"
        _refuse(f"has the transfer syntax {name}, which is not read")
    photometric = (_text(dataset, "PhotometricInterpretation") or "").upper()
    if not photometric:
        _refuse("does not say its Photometric Interpretation")
    if photometric not in _PHOTOMETRIC:
        _refuse("has a photometric interpretation that is not read")
    _complete(dataset, photometric, syntax.is_encapsulated)
    rows, columns = dataset.Rows, dataset.Columns
    if dataset.BitsAllocated not in (8, 16):
        _refuse(f"has {dataset.BitsAllocated} bits a sample, which is not read")
    if syntax.is_encapsulated:
        data = get_frame(dataset.PixelData, index, number_of_frames=number_of_frames(dataset))
        if syntax in _JPEG:
            if photometric == "PALETTE COLOR":
                _refuse("has the colours of a JPEG in a palette, which is not read")
            return Jpeg(data, photometric == "RGB", photometric == "MONOCHROME1")
        _check_codestream(syntax, data, rows, columns, dataset)
        if syntax in _JPEG_2000 and photometric.startswith("YBR_FULL") and _turns_colours(data):
            # What it says of itself is what openjpeg does, whatever the header says.
            photometric = "YBR_ICT"
    elif photometric == "YBR_FULL_422" and len(dataset.PixelData) >= 3 * rows * columns * number_of_frames(dataset):
        # Too long for that: whoever decompressed it did not change the header (OHIF/Viewers#2934).
        photometric = "RGB"
    dataset.PhotometricInterpretation = photometric
    pixels, properties = get_decoder(syntax).as_array(dataset, index=index)
    return _eight_bits(pixels, str(properties["photometric_interpretation"]), dataset)


def _complete(dataset: pydicom.Dataset, photometric: str, is_compressed: bool) -> None:
    """Make whole numbers of what says how samples lie. Raises ImageError where one that must be there is none."""
    for name in ("Rows", "Columns", "BitsAllocated"):
        setattr(dataset, name, _whole_number(dataset, name))
    is_grey = photometric == "PALETTE COLOR" or photometric.startswith("MONOCHROME")
    # Not as an attribute: pydicom would first read the number that is there, which may be none.
    dataset.add_new("NumberOfFrames", "IS", number_of_frames(dataset))
    dataset.SamplesPerPixel = _whole_number(dataset, "SamplesPerPixel", 1 if is_grey else 3)
    if dataset.SamplesPerPixel not in (1, 3):
        _refuse(f"has {dataset.SamplesPerPixel} samples a pixel, which is not read")
    dataset.PlanarConfiguration = int(_number(dataset, "PlanarConfiguration") == 1)
    dataset.PixelRepresentation = int(_number(dataset, "PixelRepresentation") == 1)
    stored = min(_whole_number(dataset, "BitsStored", dataset.BitsAllocated), dataset.BitsAllocated)
    highest = _whole_number(dataset, "HighBit", stored - 1)
    # Above the lowest bits lie those of a camera that aligns them to the left.
    is_left = not is_compressed and not dataset.PixelRepresentation and stored <= highest < dataset.BitsAllocated
    dataset.BitsStored = highest + 1 if is_left else stored


def _check_codestream(syntax: uid.UID, data: bytes, rows: int, columns: int, dataset: pydicom.Dataset) -> None:
    """Raise ImageError where the compressed frame would make another picture than the header says: a decoder takes
    memory for the former."""
    samples = dataset.SamplesPerPixel
    if syntax in _JPEG_2000:
        # A file around the codestream (JP2), which the standard forbids, may hide another one.
        if not data.startswith(b"\xff\x4f\xff\x51"):  # start of codestream, image and tile size
            _refuse("holds no JPEG 2000 codestream")
        right, bottom, left, top = struct.unpack(">4I", data[8:24])
        (components,) = struct.unpack(">H", data[40:42])
        size = (bottom - top, right - left, components)
    elif syntax in _JPEG_LS:
        at = _segment(data, 0xF7)
        size = struct.unpack(">HHB", data[at + 5 : at + 10])
    else:
        _check_run_lengths(data, rows * columns * samples * (dataset.BitsAllocated // 8))
        return
    if size != (rows, columns, samples):
        _refuse(f"says {columns} x {rows} x {samples}, and its picture {size[1]} x {size[0]} x {size[2]}")


def _segment(data: bytes, wanted: int) -> int:
    """Where the marker segment of a codestream's main header lies; raises ImageError where it has none."""
    at = 2
    while data[at] == 0xFF and data[at + 1] not in (wanted, 0x90, 0xDA):  # tile-part, scan: the header is over
        at += 2 + struct.unpack(">H", data[at + 2 : at + 4])[0]
    if data[at : at + 2] != bytes([0xFF, wanted]):
        _refuse("is damaged in the header of its picture")
    return at


def _turns_colours(data: bytes) -> bool:
    """Whether a JPEG 2000 codestream has a component transformation (ISO/IEC 15444-1 A.6.1): RGB comes out of it."""
    return data[_segment(data, 0x52) + 8] == 1


def _check_run_lengths(data: bytes, expected: int) -> None:
    """Raise ImageError where RLE (DICOM PS3.5 annex G) would make more bytes than the picture has."""
    number, *offsets = struct.unpack("<16I", data[:64])
    if not 1 <= number <= 15 or sorted(offsets[:number]) != offsets[:number]:
        _refuse("is damaged in its run lengths")
    made, bounds = 0, [*offsets[:number], len(data)]
    for at, end in itertools.pairwise(bounds):
        while at < end:
            count = data[at]
            at += 2 + count if count < 128 else 2 if count > 128 else 1
            made += count + 1 if count < 128 else 257 - count if count > 128 else 1  # the last does nothing, and costs
            if made > expected + 2 * number:
                _refuse("holds a larger picture than it says")


def _eight_bits(pixels: np.ndarray, photometric: str, dataset: pydicom.Dataset) -> np.ndarray:
    """uint8 RGB [height, width, 3]."""
    bits = dataset.BitsStored
    if not 8 <= bits <= 16:
        _refuse(f"holds a picture of {bits} bits, which is not read")
    if photometric == "PALETTE COLOR":
        pixels = apply_color_lut(pixels, dataset)
        bits = int(dataset.RedPaletteColorLookupTableDescriptor[2])
    elif photometric in ("MONOCHROME1", "MONOCHROME2"):
        pixels = _monochrome(pixels, bits, dataset)
        bits = 8
        if photometric == "MONOCHROME1":
            pixels = 255 - pixels
        pixels = np.repeat(pixels[..., None], 3, axis=2)
    if pixels.ndim != 3 or pixels.shape[2] != 3:
        _refuse("does not hold a picture of three colours")
    return np.ascontiguousarray(pixels.astype(np.uint8) if bits == 8 else eight_bits(pixels, bits))


def _monochrome(pixels: np.ndarray, bits: int, dataset: pydicom.Dataset) -> np.ndarray:
    """uint8: as the window of the header shows it, or the whole range of the stored bits."""
    seen = _windowed(pixels, bits, dataset)
    if seen is not None and np.ptp(seen) > FLAT:
        return seen
    least = 1 << (bits - 1) if dataset.PixelRepresentation else 0
    return eight_bits(pixels.astype(np.int32) + least, bits)


def _windowed(pixels: np.ndarray, bits: int, dataset: pydicom.Dataset) -> np.ndarray | None:
    """uint8 of grey samples through the window of the header; None where it has none that can be understood."""
    center, width = _number(dataset, "WindowCenter"), _number(dataset, "WindowWidth")
    if center is None or width is None:
        return None
    function = (_text(dataset, "VOILUTFunction") or "").upper()
    slope, intercept = _number(dataset, "RescaleSlope"), _number(dataset, "RescaleIntercept")
    if not slope or intercept is None:
        slope, intercept = 1.0, 0.0
    window = pydicom.Dataset()
    window.PhotometricInterpretation = "MONOCHROME2"
    window.BitsStored, window.PixelRepresentation = bits, dataset.PixelRepresentation
    window.RescaleSlope, window.RescaleIntercept = slope, intercept
    window.WindowCenter, window.WindowWidth = center, width
    window.VOILUTFunction = function if function in ("LINEAR_EXACT", "SIGMOID") else "LINEAR"
    if width < (1 if window.VOILUTFunction == "LINEAR" else 1e-9):
        return None
    low = (-(1 << (bits - 1)) if dataset.PixelRepresentation else 0) * slope + intercept
    high = low + ((1 << bits) - 1) * slope
    with np.errstate(all="ignore"):  # numbers beyond all bounds end as a flat picture
        values = apply_windowing(pixels.astype(np.float64) * slope + intercept, window)
        values = np.nan_to_num((values - low) / (high - low) * 255)
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)
