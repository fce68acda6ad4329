"""Files that an archive may hold: good ones, odd ones, broken ones, and DICOM; for the demo and for tests."""

import gzip
import io
import json
import struct
import zipfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pydicom
from PIL import ExifTags, Image
from pydicom import uid
from pydicom.encaps import encapsulate

from melanoma.demo.lesions import draw_lesion


@dataclass(frozen=True)
class BrokenFile:
    """A file that an archive's scoring must reject as `error_kind`, a value of that column of the rejects."""

    name: str
    data: bytes
    error_kind: str


def broken_files(seed: int = 0) -> list[BrokenFile]:
    """Files as archives hold them that are no readable picture, at least one of each kind that bytes can show.

    Names are unique relative paths, some with characters that mean something to URLs and shells.
    """
    picture = Image.fromarray(draw_lesion("NV", seed, 240, 180))
    jpeg, progressive = _encoded(picture, "JPEG"), _encoded(picture, "JPEG", progressive=True)
    png, tiff = _encoded(picture, "PNG"), _encoded(picture, "TIFF")
    webp, bmp = _encoded(picture, "WEBP"), _encoded(picture, "BMP")
    pages = _encoded(picture, "TIFF", save_all=True, append_images=[picture])
    depth = Image.fromarray(np.asarray(picture.convert("L"), np.float32) / 255)
    html = b"<!DOCTYPE html><html><body><h1>504 Gateway Time-out</h1></body></html>"
    record = json.dumps({"image": "ISIC_0000000", "diagnosis": "nevus"}).encode()
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr(zipfile.ZipInfo("lesion.jpg"), jpeg)  # ZipInfo: without the time of day
    return [
        BrokenFile("empty.jpg", b"", "empty"),
        BrokenFile("station 3/empty file.png", b"", "empty"),
        BrokenFile("two bytes.jpg", jpeg[:2], "truncated"),
        BrokenFile("twenty_bytes.jpg", jpeg[:20], "truncated"),
        BrokenFile("header's end.jpg", jpeg[: jpeg.index(b"\xff\xda") + 14], "truncated"),
        BrokenFile("30%.jpg", jpeg[: len(jpeg) * 3 // 10], "truncated"),
        BrokenFile("90%25.jpg", jpeg[: len(jpeg) * 9 // 10], "truncated"),
        BrokenFile("left arm #2.jpg", progressive[: len(progressive) * 6 // 10], "truncated"),
        BrokenFile("rücken, ältere Läsion.png", png[: len(png) // 2], "truncated"),
        BrokenFile("no end [1].png", png[:-12], "truncated"),
        BrokenFile("a+b.tif", tiff[: len(tiff) // 2], "truncated"),
        BrokenFile("which?.webp", webp[: len(webp) // 2], "truncated"),
        BrokenFile("half.bmp", bmp[: len(bmp) // 2], "truncated"),
        BrokenFile("notes.jpg", "Patient möchte keine Fotos.\n".encode(), "not_an_image"),
        BrokenFile('the "good" one.jpg', html, "not_an_image"),
        BrokenFile("sidecar & more.json", record, "not_an_image"),
        BrokenFile("referral.docx", packed.getvalue(), "not_an_image"),
        BrokenFile("lesion.jpg.gz", gzip.compress(jpeg, mtime=0), "not_an_image"),
        BrokenFile("consent form.pdf", b"%PDF-1.7\n1 0 obj\n<< /Type /Catalog >>\nendobj\n%%EOF\n", "not_an_image"),
        BrokenFile("failed copy.jpg", bytes(4096), "not_an_image"),
        BrokenFile("Thumbs.db", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(504), "not_an_image"),
        BrokenFile("animation.gif", _encoded(picture, "GIF"), "unsupported"),
        BrokenFile("two pages.tiff", pages, "unsupported"),
        BrokenFile("height map.tiff", _encoded(depth, "TIFF"), "unsupported"),
        BrokenFile("IMG_0001.HEIC", b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(200), "unsupported"),
        BrokenFile("皮膚.jp2", b"\0\0\0\x0cjP  \r\n\x87\n\0\0\0\x14ftypjp2 " + bytes(200), "unsupported"),
        BrokenFile("bomb.png", _png(60_000, 60_000, 1, 0, zlib.compress(bytes(3_000_000), 9)), "too_large"),
        BrokenFile("white page.png", _encoded(Image.new("RGB", (240, 180), "white"), "PNG"), "blank"),
        BrokenFile("1.2.840.10008.dcm", bytes(128) + b"DICM" + bytes(100), "dicom"),
        BrokenFile("really a DICOM file.jpg", bytes(128) + b"DICM\x02\0\0\0UL\x04\0\0\0\0\0", "dicom"),
    ]


def good_files(images: Sequence[np.ndarray]) -> list[tuple[str, bytes]]:
    """Each picture, uint8 RGB [height, width, 3], as a file of a format and a size that a clinic may send.

    The thirteen formats come in turn, and with them the picture's size and larger ones. Returns names, unique relative
    paths, and bytes, in the order of `images`.
    """
    files = []
    for index, image in enumerate(images):
        name, encode = _FORMATS[index % len(_FORMATS)]
        picture, size = Image.fromarray(image), _SIZES[index % len(_SIZES)]
        resized = picture.resize(size, Image.Resampling.BICUBIC) if size else picture
        files.append((f"{_FOLDERS[index % len(_FOLDERS)]}/{index:06d} {name}", encode(resized)))
    return files


_SIZES: tuple[tuple[int, int] | None, ...] = (None, None, (640, 480), None, (1022, 767), None, (1504, 1129))
_FOLDERS = ("clinic A/2026/11", "clinic_b", "Zürich/Müller, Änne", "clinic A/2026/12", '100% "follow-up" #1', "皮膚科")


def dicom_file(frames: Sequence[np.ndarray], syntax: uid.UID = uid.ExplicitVRLittleEndian, **elements: object) -> bytes:
    """A Dermoscopic Photography file of frames, each uint8 RGB [height, width, 3], uncompressed or JPEG Baseline.

    `elements` are DICOM's by their keywords, such as PatientID.
    """
    made = pydicom.Dataset()
    made.file_meta = pydicom.dataset.FileMetaDataset()
    made.file_meta.TransferSyntaxUID = syntax
    made.SOPClassUID = made.file_meta.MediaStorageSOPClassUID = uid.UID("1.2.840.10008.5.1.4.1.1.77.1.7")
    made.SOPInstanceUID = made.file_meta.MediaStorageSOPInstanceUID = uid.UID("2.25.1")
    made.Rows, made.Columns, made.SamplesPerPixel = frames[0].shape
    made.BitsAllocated, made.BitsStored, made.HighBit, made.PixelRepresentation = 8, 8, 7, 0
    made.PlanarConfiguration = 0
    if len(frames) > 1:
        made.NumberOfFrames = len(frames)
    if syntax == uid.JPEGBaseline8Bit:
        made.PhotometricInterpretation = "YBR_FULL_422"
        made.PixelData = encapsulate([_encoded(Image.fromarray(frame), "JPEG", quality=92) for frame in frames])
    else:
        made.PhotometricInterpretation = "RGB"
        data = b"".join(frame.tobytes() for frame in frames)
        made.PixelData = data + b"\0" * (len(data) % 2)
    made["PixelData"].VR = "OB"
    for name, value in elements.items():
        setattr(made, name, value)
    buffer = io.BytesIO()
    made.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def _encoded(picture: Image.Image, format_: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, format_, **options)
    return buffer.getvalue()


def _turned_jpeg(picture: Image.Image) -> bytes:
    """A JPEG from a phone held upright: stored lying on its side, with EXIF to say so."""
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    return _encoded(picture.transpose(Image.Transpose.ROTATE_90), "JPEG", quality=95, exif=exif)


def _png16(picture: Image.Image) -> bytes:
    samples = np.asarray(picture, np.uint16) * np.uint16(257)
    rows = samples.astype(">u2").view(np.uint8).reshape(picture.height, -1)
    filtered = np.pad(rows, ((0, 0), (1, 0)))  # each row begins with its filter: none
    return _png(picture.width, picture.height, 16, 2, zlib.compress(filtered.tobytes(), 1))


def _png(width: int, height: int, bits: int, colour_type: int, data: bytes) -> bytes:
    """A PNG file by its specification (ISO/IEC 15948) with the compressed pixels `data`, which nobody checks."""
    header = struct.pack(">IIBBBBB", width, height, bits, colour_type, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", data), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        for kind, content in chunks
    )


_FORMATS: tuple[tuple[str, Callable[[Image.Image], bytes]], ...] = (
    ("baseline.jpg", lambda picture: _encoded(picture, "JPEG", quality=92)),
    ("progressive.jpeg", lambda picture: _encoded(picture, "JPEG", quality=92, progressive=True)),
    ("grey.JPG", lambda picture: _encoded(picture.convert("L"), "JPEG", quality=92)),
    ("cmyk.jpg", lambda picture: _encoded(picture.convert("CMYK"), "JPEG", quality=95)),
    ("8 bit.png", lambda picture: _encoded(picture, "PNG")),
    ("16 bit.png", _png16),
    ("palette.png", lambda picture: _encoded(picture.quantize(256), "PNG")),
    ("opaque.png", lambda picture: _encoded(picture.convert("RGBA"), "PNG")),
    ("scan.tif", lambda picture: _encoded(picture, "TIFF", compression="tiff_lzw")),
    ("web.webp", lambda picture: _encoded(picture, "WEBP", quality=92)),
    ("windows.bmp", lambda picture: _encoded(picture, "BMP")),
    ("phone.jpg", _turned_jpeg),
    ("dermoscope.dcm", lambda picture: dicom_file([np.asarray(picture)], uid.JPEGBaseline8Bit, PatientID="SYN-1")),
)
