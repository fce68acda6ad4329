"""Tar and zip files in an archive: each member is an image with a URI of its own, ``ARCHIVE!/NAME``.

When a run is planned, only their directories are read. The directory of a tar lies all over it; what is between two
large members is skipped. A member is then fetched by its range like any other object, by the worker that has its shard.
Nothing is unpacked to disk. Archives are as hostile as images: what a directory says is compared with the size of the
archive, and what is fetched with what the directory says.
"""

import contextlib
import dataclasses
import io
import struct
import tarfile
import threading
import zipfile
import zlib
from collections import Counter
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from typing import Any

from melanoma.imaging.errors import ErrorKind, ImageError
from melanoma.scoring import zip_directory
from melanoma.storage import ObjectInfo, Store, UnavailableError

_READ = (".tar", ".zip")
_NOT_READ = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst", ".7z", ".rar")
_READ_AHEAD = {".tar": 8 * 2**20, ".zip": 2**20}  # bytes, while a directory is read
_LARGEST_DIRECTORY = 512 * 2**20  # bytes, of a zip
_LARGEST_HEADER = 2**20  # bytes, of the headers of one member of a tar
_MOST_MEMBERS = 1_000_000
_ENTRIES_COUNTED = 2**16  # a zip that is no zip64 counts its entries modulo this
_MANY_MEMBERS = 50_000  # of archives with more of them, one is read at a time
_of_many_members = threading.Lock()
_LOCAL_HEADER = 30  # bytes, before the name
_MOST_EXTRA = 1024  # bytes that a local header's name and extra field have as a rule
HEADERS = _LOCAL_HEADER + _MOST_EXTRA
"""Bytes that may lie between two members that are fetched together."""


@dataclass(frozen=True)
class Member:
    """A file in a tar or zip.

    `offset` and `length` are those of its bytes in the archive; in a zip its local header comes first, and is not in
    the length. `size` and `checksum` (CRC-32, of a zip only) are those of the unpacked file. `refused`, with its
    `error_kind`, is why the member is not an image that can be read; it is not fetched then.
    """

    uri: str
    size: int
    offset: int = 0
    length: int = 0
    is_zip: bool = False
    checksum: int | None = None
    error_kind: ErrorKind | None = None
    refused: str | None = None


def is_archive(uri: str) -> bool:
    return uri.lower().endswith((*_READ, *_NOT_READ))


def members(info: ObjectInfo, store: Store) -> Generator[Member]:
    """The members of a tar or zip. Where it is damaged, the last member has the archive's own URI, and says so.

    Who does not take all of them closes the iterator: one thread at a time reads an archive of many members. Raises
    UnavailableError, and OSError where it cannot be read.
    """
    suffix = info.uri.lower()[-4:]
    if suffix not in _READ:
        yield _refused(info.uri, "unsupported", "The members of such an archive cannot be fetched: use tar or zip")
        return
    # Digests, for a million names would be 200 MB. Two names of one digest would cost the second its plain name.
    seen: set[int] = set()
    copies = Counter[int]()
    ranged = _Ranged(info, store)
    found = _of_zip(info, ranged) if suffix == ".zip" else _of_tar(info, ranged, store)
    try:
        with contextlib.ExitStack() as stack:
            for number, member in enumerate(found):
                if number == _MANY_MEMBERS:
                    stack.enter_context(_of_many_members)
                # Names that are not UTF-8 cannot stand in Parquet.
                uri = name = member.uri.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
                while hash(uri) in seen:  # another image all the same
                    copies[hash(name)] += 1
                    uri = f"{name}#{copies[hash(name)] + 1}"
                seen.add(hash(uri))
                yield dataclasses.replace(member, uri=uri)
    except (OSError, UnavailableError):
        raise
    # tarfile raises nearly anything on damaged files.
    except Exception:
        yield _refused(info.uri, "truncated", "The archive is damaged or cut short: fetch or export it again")


def _refused(uri: str, kind: ErrorKind, reason: str) -> Member:
    return Member(uri, 0, error_kind=kind, refused=f"{reason}.")


def _too_many(info: ObjectInfo) -> Member:
    return _refused(info.uri, "too_large", f"The archive has more than {_MOST_MEMBERS:,} members: cut it in parts")


def _of_tar(info: ObjectInfo, ranged: "_Ranged", store: Store) -> Iterator[Member]:
    file = _Bounded(ranged, _READ_AHEAD[".tar"])
    with tarfile.open(fileobj=file, mode="r:", errorlevel=2) as tar:
        last = -1
        for number, entry in enumerate(tar):
            tar.members.clear()  # type: ignore[attr-defined]  # it would keep them all
            file.has_member()
            if number == _MOST_MEMBERS:
                yield _too_many(info)
                return
            if entry.size < 0 or entry.offset <= last:
                raise tarfile.ReadError  # it would go round in a circle
            last = entry.offset
            if entry.isdir():
                continue
            uri = f"{info.uri}!/{entry.name.removeprefix('./')}"
            if not entry.isreg():
                yield _refused(uri, "unsupported", "A link or device in a tar is not an image")
            elif entry.sparse is not None:
                yield _refused(uri, "unsupported", "A sparse file in a tar is not read")
            elif entry.offset_data + entry.size > info.size:
                yield _refused(uri, "truncated", "The archive is cut short within this member")
            else:
                yield Member(uri, entry.size, entry.offset_data, entry.size)
        # tarfile takes any end for the end: a whole archive has zeros there, and nothing else behind them.
        end = store.read_range(info.uri, tar.offset, tarfile.RECORDSIZE) if tar.offset < info.size else b""
        if not end.startswith(bytes(tarfile.BLOCKSIZE)):
            yield _refused(info.uri, "truncated", "The archive has no end: it is cut short")
        elif any(end) or tar.offset + 100 * tarfile.RECORDSIZE < info.size:
            yield _refused(info.uri, "unsupported", "The archive has data behind its end, which is not read")


def _of_zip(info: ObjectInfo, ranged: "_Ranged") -> Iterator[Member]:
    file = io.BufferedReader(ranged, _READ_AHEAD[".zip"])
    end = zip_directory.read_end(file, info.size)
    if end.entries > _MOST_MEMBERS or end.directory_size > _LARGEST_DIRECTORY:
        yield _too_many(info)
        return
    number = held = 0
    for number, entry in enumerate(zip_directory.entries(file, end), start=1):
        if number > _MOST_MEMBERS:  # the end record does not say so
            yield _too_many(info)
            return
        held += entry.length
        if held > info.size:
            # Members that share their bytes: https://www.bamsoftware.com/hacks/zipbomb/
            yield _refused(info.uri, "too_large", "The members of the zip overlap: it is made to explode")
            return
        if not entry.name.endswith("/"):
            yield _of_entry(f"{info.uri}!/{entry.name}", entry, info.size)
    if (number - end.entries) % _ENTRIES_COUNTED:
        reason = f"The zip has {number:,} members and says that it has {end.entries:,}: fetch or export it again"
        yield _refused(info.uri, "truncated", reason)


def _of_entry(uri: str, entry: zip_directory.Entry, archive_size: int) -> Member:
    is_within = 0 <= entry.offset < archive_size and entry.size < 2**62
    if entry.is_encrypted:
        return _refused(uri, "unsupported", "The member is encrypted, and no password is known here")
    if entry.method not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        return _refused(uri, "unsupported", "The member is compressed in a way that is not read: use deflate")
    if not is_within or entry.length > entry.size + entry.size // 1000 + _MOST_EXTRA:
        return _refused(uri, "truncated", "The directory of the zip says of this member what cannot be")
    return Member(uri, entry.size, entry.offset, entry.length, is_zip=True, checksum=entry.checksum)


def content(data: bytes, size: int, length: int, is_zip: bool, checksum: int | None) -> bytes | None:
    """Unpack a member.

    Args:
        data: Bytes of the archive from the member's `offset` on: its length, and for a zip at least `HEADERS` more, as
            far as the archive goes.
        size: Bytes of the unpacked member.
        length: Bytes of the member in the archive.
        is_zip: Whether the archive is a zip.
        checksum: CRC-32 of the unpacked member; None in a tar.

    Returns:
        The content of the member; None where the header of a zip's member is longer than `data` allows.

    Raises:
        ImageError: The content is not what the directory says.
    """
    if not is_zip:
        if len(data) < length:
            raise ImageError("truncated", "The archive is cut short within this member.")
        return data[:length]
    try:
        signature, method, name, extra = struct.unpack("<4s4xH16xHH", data[:_LOCAL_HEADER])
        if signature != b"PK\x03\x04":
            raise ValueError
    except (struct.error, ValueError):
        raise ImageError("truncated", "The zip is damaged where this member begins.") from None
    begin = _LOCAL_HEADER + name + extra
    if begin + length > len(data):
        return None
    found = data[begin : begin + length]
    if method != zipfile.ZIP_STORED:
        try:
            found = zlib.decompressobj(-zlib.MAX_WBITS).decompress(found, size + 1)
        except zlib.error:
            found = b""
    if len(found) != size or zlib.crc32(found) != checksum:
        raise ImageError("truncated", "The member of the zip is damaged.")
    return found


def fetch(
    store: Store, archive: str, etag: str, size: int, offset: int, length: int, is_zip: bool, checksum: int | None
) -> bytes:
    """Fetch and unpack a member.

    Args:
        store: Reads the archive.
        archive: URI of the archive.
        etag: ETag of the archive when it was listed.
        size: Bytes of the unpacked member.
        offset: Where the member begins in the archive.
        length: Bytes of the member in the archive.
        is_zip: Whether the archive is a zip.
        checksum: CRC-32 of the unpacked member; None in a tar.

    Returns:
        The content of the member.

    Raises:
        ImageError: The member is damaged.
        ChangedError: The archive is another than the listed one.
        OSError: The archive cannot be read.
    """
    for room in (HEADERS, _LOCAL_HEADER + 2 * 65_535) if is_zip else (0,):  # the most that the header can have
        data = store.read_range(archive, offset, length + room, etag)
        if (found := content(data, size, length, is_zip, checksum)) is not None:
            return found
    raise ImageError("truncated", "The zip is cut short within this member.")


class _Bounded(io.BufferedReader):
    """A reader for tarfile that refuses much for one member: a header claims any length, and may follow another."""

    _left = _LARGEST_HEADER

    def has_member(self) -> None:
        """The headers of a member were read."""
        self._left = _LARGEST_HEADER

    def read(self, size: int | None = -1, /) -> bytes:
        if size is None or not 0 <= size <= self._left:
            raise ValueError(f"{size} bytes at once")
        self._left -= size
        return super().read(size)


class _Ranged(io.RawIOBase):
    """An object as a file to seek in; it is read by ranges."""

    def __init__(self, info: ObjectInfo, store: Store) -> None:
        self._info, self._store, self._at = info, store, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._info.size}[whence]
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: Any) -> int:
        wanted = min(len(buffer), self._info.size - self._at)
        if wanted <= 0:
            return 0
        data = self._store.read_range(self._info.uri, self._at, wanted)
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)
