"""What a file is, by its magic bytes and nothing else: a name or an ending says nothing."""

import re
import struct

from melanoma.imaging.errors import not_an_image, unsupported

_MAGIC: dict[str, tuple[bytes, ...]] = {
    "JPEG": (b"\xff\xd8\xff",),
    "PNG": (b"\x89PNG\r\n\x1a\n",),
    "TIFF": (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"),
    "WEBP": (b"RIFFWEBP",),  # without the four bytes of length between
    "BMP": (b"BM",),
}
_BMP_HEADERS = (12, 40, 52, 56, 64, 108, 124)

_OTHER_IMAGES: tuple[tuple[int, bytes, str], ...] = (
    (0, b"GIF8", "GIF"),
    (4, b"ftyphei", "HEIC"),
    (4, b"ftyphev", "HEIC"),
    (4, b"ftypmif1", "HEIC"),
    (4, b"ftypmsf1", "HEIC"),
    (4, b"ftypavi", "AVIF"),
    (4, b"ftypcrx ", "Camera raw"),
    (4, b"jP  \r\n\x87\n", "JPEG 2000"),
    (0, b"\xff\x4f\xff\x51", "JPEG 2000"),
    (4, b"JXL \r\n\x87\n", "JPEG XL"),
    (0, b"\xff\x0a", "JPEG XL"),
    (0, b"II\xbc", "JPEG XR"),
    (0, b"8BPS", "Photoshop"),
    (0, b"gimp xcf", "GIMP"),
    (0, b"\0\0\1\0", "ICO"),
    (0, b"\0\0\2\0", "CUR or TGA"),
    (0, b"IIRO", "Camera raw"),
    (0, b"IIRS", "Camera raw"),
    (0, b"MMOR", "Camera raw"),
    (0, b"IIU\0", "Camera raw"),
    (0, b"FUJIFILMCCD-RAW", "Camera raw"),
    (0, b"qoif", "QOI"),
    (0, b"DDS ", "DDS"),
    (0, b"v/1\x01", "OpenEXR"),
    (0, b"#?RADIANCE", "Radiance HDR"),
    (0, b"SIMPLE  =", "FITS"),
    (0, b"\x8aMNG", "MNG"),
    (0, b"AT&TFORM", "DjVu"),
    (0, b"%!PS", "PostScript"),
    (0, b"\xc5\xd0\xd3\xc6", "PostScript"),
)

_NOT_IMAGES: tuple[tuple[int, bytes, str], ...] = (
    (0, b"PK\3\4", "a zip archive or an Office document"),
    (0, b"PK\5\6", "an empty zip archive"),
    (0, b"\x1f\x8b", "a gzip file"),
    (0, b"BZh", "a bzip2 file"),
    (0, b"\xfd7zXZ", "an xz file"),
    (0, b"(\xb5/\xfd", "a Zstandard file"),
    (0, b"7z\xbc\xaf", "a 7-Zip archive"),
    (0, b"Rar!", "a RAR archive"),
    (257, b"ustar", "a tar archive"),
    (0, b"%PDF", "a PDF document"),
    (0, b"\xd0\xcf\x11\xe0", "an old Office document or a Windows thumbnail cache"),
    (0, b"\x7fELF", "a Linux program"),
    (0, b"MZ", "a Windows program"),
    (0, b"\xcf\xfa\xed\xfe", "a macOS program"),
    (0, b"\0\5\x16\7", "a macOS side file, whose name begins with ._"),
    (0, b"\0\0\0\1Bud1", "a macOS folder file (.DS_Store)"),
    (4, b"ftyp", "a video"),
    (0, b"\x1aE\xdf\xa3", "a video"),
    (0, b"RIFF", "a WAV or AVI file"),
    (0, b"ID3", "an audio file"),
    (0, b"OggS", "an audio file"),
    (0, b"PAR1", "a Parquet file"),
    (0, b"\x89HDF", "an HDF5 file"),
    (0, b"SQLite format 3", "an SQLite database"),
    (0, b"version https://git-lfs", "a Git LFS pointer whose image was not fetched"),
)


def identify(data: bytes) -> str:
    """JPEG, PNG, TIFF, WEBP or BMP, also for a file cut within its magic bytes. Raises `ImageError` on all else."""
    for name, magics in _MAGIC.items():
        head = data[:4] + data[8:12] if name == "WEBP" else data[:8]
        if any(len(head) >= 2 and (head.startswith(magic) or magic.startswith(head)) for magic in magics) and (
            name != "BMP" or _is_bmp(data)
        ):
            return name
    for offset, magic, other in _OTHER_IMAGES:
        if data.startswith(magic, offset):
            raise unsupported(f"{other} images are not read")
    if re.match(rb"P[1-7]\s+[\dW#]", data):
        raise unsupported("Netpbm images are not read")
    if b"<svg" in data[:1024].lower():
        raise unsupported("SVG images are not read")
    raise not_an_image(_looks_like(data))


def _is_bmp(data: bytes) -> bool:
    """Whether a file that begins with "BM" continues as a BMP does: text may begin so too."""
    return not any(data[6:10]) and (len(data) < 18 or struct.unpack_from("<I", data, 14)[0] in _BMP_HEADERS)


def _looks_like(data: bytes) -> str:
    for offset, magic, name in _NOT_IMAGES:
        if data.startswith(magic, offset):
            return name
    if data.count(0) == len(data):
        return "nothing but zero bytes, as a failed copy leaves"
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        return "a text file"
    head = data[:1024].removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if re.search(rb"[\x00-\x08\x0e-\x1f]", head):
        return "binary data of an unknown kind"
    if head.startswith((b"<!doctype html", b"<html")):
        return "an HTML page"
    if head.startswith(b"<"):
        return "an XML document"
    if head.startswith((b"{", b"[")):
        return "a JSON document"
    return "a text file"


def is_dicom(data: bytes) -> bool:
    """Whether a file is DICOM: with a preamble, as the standard has it, or without, as some archives keep it."""
    if data[128:132] == b"DICM":
        return True
    # The first element: of group 2 with an explicit VR, or of group 8 with any.
    group, element = struct.unpack("<HH", data[:4]) if len(data) >= 8 else (0, 0)
    return (
        (group == 2 and element in (0, 1, 2, 0x10) and data[4:6] in (b"UL", b"OB", b"UI"))
        or (
            group == 8
            and element in (0, 1, 5, 8, 0x12, 0x13, 0x16, 0x18)
            and (
                data[4:6] in (b"UL", b"CS", b"DA", b"TM", b"UI")
                # Of an implicit VR: the length. That of the length of the group is 4.
                or (data[6:8] == b"\0\0" and (element != 0 or data[4:6] == b"\4\0"))
            )
        )
    )
