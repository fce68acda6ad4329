"""The directory of a zip, as a stream: `zipfile` reads all of it at once, of which a hostile zip makes gigabytes.

In the words of PKWARE's APPNOTE.TXT: a zip ends with an end record, which says how many entries its central directory
has and how large it is; the end record of a zip64 stands before it.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

_END = struct.Struct("<4s4H2LH")
_LOCATOR_64 = struct.Struct("<4sLQL")
_END_64 = struct.Struct("<4sQ2H2L4Q")
_ENTRY = struct.Struct("<4s6H3L5H2L")
_LONGEST_COMMENT = 65_535
_SIZES_64 = 0x0001  # the extra field that has what does not fit into 32 bits
_IS_ENCRYPTED, _IS_UTF_8 = 0x1, 0x800  # flags


class DamagedError(ValueError):
    """It is no zip, or a damaged one."""


@dataclass(frozen=True)
class End:
    """What the end record says, and where the directory begins if that is true."""

    entries: int  # modulo 65,536 in a zip of many entries that is no zip64
    directory_size: int
    directory_begin: int
    shift: int  # bytes that stand before the zip, as in an archive that unpacks itself


@dataclass(frozen=True)
class Entry:
    name: str
    is_encrypted: bool
    method: int
    checksum: int
    size: int  # unpacked
    length: int  # in the zip
    offset: int  # of the local header


def read_end(file: BinaryIO, size: int) -> End:
    """The end record of a zip of `size` bytes. Raises DamagedError."""
    begin = max(0, size - _END.size - _LONGEST_COMMENT)
    file.seek(begin)
    tail = file.read(size - begin)
    place = tail.rfind(b"PK\x05\x06")
    if place < 0 or place + _END.size > len(tail):
        raise DamagedError
    _, disk, _, _, entries, directory_size, offset, _ = _END.unpack_from(tail, place)
    before = begin + place
    place_64 = before - _LOCATOR_64.size - _END_64.size
    if place_64 >= 0:
        file.seek(place_64)
        records = file.read(_END_64.size + _LOCATOR_64.size)
        if records.startswith(b"PK\x06\x06") and records[_END_64.size :].startswith(b"PK\x06\x07"):
            _, _, _, _, disk, _, _, entries, directory_size, offset = _END_64.unpack_from(records)
            before = place_64
    directory_begin = before - directory_size
    if directory_begin < 0 or disk:
        raise DamagedError
    return End(entries, directory_size, directory_begin, directory_begin - offset)


def entries(file: BinaryIO, end: End) -> Iterator[Entry]:
    """The entries, one after the other. Raises DamagedError where there is none in the bytes of the directory."""
    file.seek(end.directory_begin)
    left = end.directory_size
    while left > 0:
        (signature, _, _, flags, method, _, _, checksum, length, size, *lengths, _, _, _, offset) = _ENTRY.unpack(
            _exactly(file, _ENTRY.size)
        )
        if signature != b"PK\x01\x02":
            raise DamagedError
        name, extra, _ = (_exactly(file, each) for each in lengths)
        left -= _ENTRY.size + sum(lengths)
        size, length, offset = _in_64_bits(extra, [size, length, offset])
        # What is no UTF-8 is escaped: a strange name makes no other file unreadable.
        words = name.decode("utf-8" if flags & _IS_UTF_8 else "cp437", "backslashreplace").split("\0")[0]
        yield Entry(words, bool(flags & _IS_ENCRYPTED), method, checksum, size, length, offset + end.shift)
    if left:
        raise DamagedError


def _exactly(file: BinaryIO, count: int) -> bytes:
    data = file.read(count)
    if len(data) < count:
        raise DamagedError
    return data


def _in_64_bits(extra: bytes, values: list[int]) -> list[int]:
    """The values; those that do not fit into 32 bits from the extra fields."""
    while len(extra) >= 4:
        kind, length = struct.unpack_from("<HH", extra)
        field, extra = extra[4 : 4 + length], extra[4 + length :]
        if kind == _SIZES_64:
            large = [place for place, value in enumerate(values) if value == 0xFFFFFFFF]
            if len(field) < 8 * len(large):
                raise DamagedError
            found = struct.unpack_from(f"<{len(large)}Q", field)
            for place, value in zip(large, found, strict=True):
                values[place] = value
            return values
    return values
