"""DICOM files by hand, as dirty as they come."""

import io
import struct
from typing import Any

import numpy as np
import pydicom
from PIL import Image
from pydicom import uid
from pydicom.datadict import dictionary_VR
from pydicom.dataelem import RawDataElement
from pydicom.encaps import encapsulate
from pydicom.tag import Tag

HEIGHT, WIDTH = 45, 60
NATIVE = (uid.ImplicitVRLittleEndian, uid.ExplicitVRLittleEndian, uid.ExplicitVRBigEndian)
LOSSLESS = (*NATIVE, uid.JPEG2000Lossless, uid.JPEGLSLossless, uid.RLELossless)


def picture(bits: int = 8, seed: int = 0) -> np.ndarray:
    """RGB with large even areas, detail, and every channel unlike the others; the frame is no square."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    red = np.where((y - 20) ** 2 + (x - 25) ** 2 < 150, 0.4, 0.9)
    noise = np.random.default_rng(seed).random((HEIGHT, WIDTH, 3)) * 0.1
    levels = np.stack([red, 0.2 + x / WIDTH / 2, 0.1 + y / HEIGHT / 3], axis=2) + noise
    return np.asarray(levels.clip(0, 1) * (2**bits - 1)).astype(np.uint8 if bits == 8 else np.uint16)


@pydicom.config.disable_value_validation()
def file(
    pixels: np.ndarray,
    syntax: uid.UID = uid.ExplicitVRLittleEndian,
    photometric: str = "RGB",
    frames: int = 1,
    frame_data: list[bytes] | None = None,
    **values: Any,
) -> bytes:
    """A Dermoscopic Photography file of `pixels` [(frames), height, width(, samples)]; compressed here unless
    `frame_data` are its frames. Of `values` None leaves an element out, and bytes stand in the file as they are."""
    made = pydicom.Dataset()
    made.file_meta = pydicom.dataset.FileMetaDataset()
    made.file_meta.TransferSyntaxUID = syntax
    made.SOPClassUID = uid.UID("1.2.840.10008.5.1.4.1.1.77.1.7")
    made.SOPInstanceUID = made.file_meta.MediaStorageSOPInstanceUID = uid.UID("1.2.3")
    made.file_meta.MediaStorageSOPClassUID = made.SOPClassUID
    made.PatientID = "4711"
    shape = pixels.shape[1:] if frames > 1 else pixels.shape
    made.Rows, made.Columns = shape[:2]
    made.SamplesPerPixel = shape[2] if len(shape) == 3 else 1
    made.BitsAllocated = made.BitsStored = 8 * pixels.itemsize
    made.HighBit = made.BitsStored - 1
    made.PixelRepresentation = 0
    made.PhotometricInterpretation = photometric
    if made.SamplesPerPixel == 3:
        made.PlanarConfiguration = 0
    if frames > 1:
        made.NumberOfFrames = frames
    for name, value in values.items():
        if isinstance(value, bytes) and dictionary_VR(name) not in ("OW", "OB or OW"):
            tag = Tag(name)
            made[tag] = RawDataElement(tag, dictionary_VR(name), len(value), value, 0, False, True)
        elif value is None:
            del made[name]
        else:
            setattr(made, name, value)
    if frame_data:
        made.PixelData = encapsulate(frame_data)
    elif syntax in NATIVE:
        swapped = pixels.astype(pixels.dtype.newbyteorder(">")) if syntax == uid.ExplicitVRBigEndian else pixels
        data = values.get("PixelData") or swapped.tobytes()
        made.PixelData = data + b"\0" * (len(data) % 2)
    else:
        made.file_meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
        made.compress(syntax, pixels, generate_instance_uid=False)
    if "PixelData" in made:
        made["PixelData"].VR = "OB" if syntax.is_encapsulated or pixels.itemsize == 1 else "OW"
    buffer = io.BytesIO()
    made.save_as(
        buffer,
        implicit_vr=syntax.is_implicit_VR,
        little_endian=syntax.is_little_endian,
        enforce_file_format=True,
    )
    return buffer.getvalue()


@pydicom.config.disable_value_validation()
def changed(data: bytes, **values: Any) -> bytes:
    made = pydicom.dcmread(io.BytesIO(data))
    for name, value in values.items():
        setattr(made, name, value)
    buffer = io.BytesIO()
    made.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def jpeg(pixels: np.ndarray, **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=95, subsampling=0, **options)
    return buffer.getvalue()


def element(group: int, number: int, vr: bytes, value: bytes) -> bytes:
    """Explicit VR, little endian; of a VR with four bytes of length."""
    return struct.pack("<HH", group, number) + vr + b"\0\0" + struct.pack("<I", len(value)) + value


def with_elements(data: bytes, more: bytes) -> bytes:
    """With elements before the pixel data."""
    at = data.index(b"\xe0\x7f\x10\x00O")
    return data[:at] + more + data[at:]
