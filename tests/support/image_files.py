"""Pictures, and files of them, some made by hand: what Pillow does not write."""

import io
import struct
import zlib
from collections.abc import Sequence

import numpy as np
from PIL import Image

RED, GREEN, BLUE, WHITE, BLACK = (220, 30, 30), (30, 200, 40), (30, 40, 210), (255, 255, 255), (0, 0, 0)
Colour = tuple[int, int, int]


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def photograph(width: int = 160, height: int = 120, seed: int = 0) -> Image.Image:
    """Smooth skin with a dark blot and fine grain."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width] / np.array([height, width]).reshape(2, 1, 1)
    blot = 1 / (
        1 + np.exp(40 * (np.hypot(x - 0.45, y - 0.55) - 0.2 - 0.03 * np.sin(9 * np.arctan2(y - 0.55, x - 0.45))))
    )
    skin = np.array([225, 180, 160]) + 20 * (x - y)[..., None]
    pixels = skin - blot[..., None] * np.array([140, 130, 110]) + rng.normal(0, 3, (height, width, 1))
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def quadrants(colours: Sequence[Colour] = (RED, GREEN, BLUE, WHITE), width: int = 64, height: int = 48) -> Image.Image:
    """Top left, top right, bottom left, bottom right."""
    image = Image.new("RGB", (width, height))
    for i, colour in enumerate(colours):
        left, top = i % 2 * width // 2, i // 2 * height // 2
        image.paste(colour, (left, top, left + width // 2, top + height // 2))
    return image


def corners(pixels: np.ndarray) -> list[Colour]:
    """The colours in the middle of the four quadrants."""
    side = len(pixels)
    return [tuple(pixels[y, x].tolist()) for y in (side // 4, 3 * side // 4) for x in (side // 4, 3 * side // 4)]


def close(found: Sequence[tuple[int, ...]], expected: Sequence[tuple[int, ...]], tolerance: int) -> bool:
    return np.abs(np.array(found, int) - np.array(expected, int)).max() <= tolerance


def png(width: int, height: int, depth: int, kind: int, rows: bytes, *extra: tuple[bytes, bytes]) -> bytes:
    """A PNG by hand: Pillow writes no 16-bit colour. `rows` as PNG wants them, each with a filter byte."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0)
    chunks = [(b"IHDR", header), *extra, (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*c) for c in chunks)


def tiff_page(
    at: int, last: bool, width: int, height: int, bits: Sequence[int], data: bytes, order: str = "<", **changes: int
) -> bytes:
    """A page of a TIFF by hand, to stand at offset `at`: directory, then one strip (one tile, if `tile` is given)."""
    tags: dict[int, tuple[str, Sequence[int]]] = {
        254: ("I", [changes.get("subfile", 0)]),
        256: ("I", [width]),
        257: ("I", [height]),
        258: ("H", bits),
        259: ("H", [changes.get("compression", 1)]),
        262: ("H", [changes.get("photometric", 2 if len(bits) > 1 else 1)]),
        277: ("H", [len(bits)]),
        339: ("H", [changes.get("sample_format", 1)] * len(bits)),
    }
    if "tile" in changes:
        offsets = 324
        tags |= {322: ("I", [changes["tile"]]), 323: ("I", [changes["tile"]]), 325: ("I", [len(data)])}
    else:
        offsets = 273
        tags |= {278: ("I", [height]), 279: ("I", [len(data)])}
    tags[offsets] = ("I", [0])
    behind = at + 2 + 12 * len(tags) + 4
    start = behind + sum(len(v) * struct.calcsize(t) for t, v in tags.values() if len(v) * struct.calcsize(t) > 4)
    tags[offsets] = ("I", [start])
    entries, values = b"", b""
    for tag, (kind, value) in sorted(tags.items()):
        packed = struct.pack(f"{order}{len(value)}{kind}", *value)
        entries += struct.pack(f"{order}HHI", tag, {"H": 3, "I": 4}[kind], len(value))
        if len(packed) <= 4:
            entries += packed.ljust(4, b"\0")
        else:
            entries += struct.pack(f"{order}I", behind + len(values))
            values += packed
    following = 0 if last else start + len(data)
    return struct.pack(f"{order}H", len(tags)) + entries + struct.pack(f"{order}I", following) + values + data


def tiff(width: int, height: int, bits: Sequence[int], data: bytes, order: str = "<", **changes: int) -> bytes:
    """A TIFF by hand, of one page, its directory before its pixels."""
    magic = b"II*\0\x08\0\0\0" if order == "<" else b"MM\0*\0\0\0\x08"
    return magic + tiff_page(8, True, width, height, bits, data, order, **changes)
