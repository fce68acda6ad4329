"""A URI becomes bytes: the one way to files and objects.

A URI is ``s3://bucket/key``, see `melanoma.s3`, or a local path (``file://`` is understood). Every failure is a
`FileNotFoundError`, a `PermissionError` or another `OSError`, for S3 as for files; and an `UnavailableError` where the
object store does not answer.
"""

import functools
import io
import json
import os
import posixpath
import stat
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ParamSpec, TypeVar
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.fs
import pyarrow.parquet as pq

from melanoma import s3
from melanoma.errors import InputError
from melanoma.s3 import ChangedError as ChangedError
from melanoma.s3 import ObjectInfo as ObjectInfo
from melanoma.s3 import UnavailableError as UnavailableError
from melanoma.s3 import forget_client as forget_client
from melanoma.s3 import is_away as is_away

P = ParamSpec("P")
T = TypeVar("T")

_PIECE = 16 * 2**20  # bytes that are downloaded at a time
_ROWS_A_GROUP = 2**16  # of a Parquet file: what a reader has in memory at a time


# --- URIs -------------------------------------------------------------------------------------------------------------


def is_s3(uri: str) -> bool:
    return uri.startswith("s3://")


def normalize(uri: str) -> str:
    """The one spelling of a URI: no trailing slash, local paths absolute and without ``file://``.

    Raises InputError for a scheme that is not read here.
    """
    if is_s3(uri):
        bucket, key = s3.split(uri)
        if not bucket:
            raise InputError(f"{uri!r} names no bucket: write s3://bucket/prefix.")
        if "@" in bucket or (":" in bucket and not bucket.startswith("arn:")):
            raise InputError(
                f"{uri!r} has no name of a bucket: write s3://bucket/prefix, and set AWS_ACCESS_KEY_ID and "
                "AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, for credentials."
            )
        return f"s3://{bucket}/{key}".rstrip("/")
    if uri.startswith(("file:///", "file://localhost/")):
        uri = unquote(uri.removeprefix("file://").removeprefix("localhost"))
    elif "://" in uri or uri.startswith("s3:"):
        raise InputError(f"{uri!r} is of a kind that is not read here: use a local path or s3://bucket/prefix.")
    if not uri:
        raise InputError("An empty path was given where a local path or an s3:// URI is needed.")
    return os.path.abspath(os.path.expanduser(uri))


def join(uri: str, *parts: str) -> str:
    return posixpath.join(uri, *parts)


def parent(uri: str) -> str:
    return posixpath.dirname(uri)


def name(uri: str) -> str:
    return posixpath.basename(uri)


def is_below(uri: str, folder: str) -> bool:
    """Whether a normal URI is `folder`, a normal URI too, or lies in it, by whatever links and mounts it is reached."""
    if is_s3(uri) or is_s3(folder):
        return f"{uri}/".startswith(f"{folder}/")
    real = Path(os.path.realpath(uri))
    return any(path.exists() and os.path.exists(folder) and path.samefile(folder) for path in (real, *real.parents))


# --- Files ------------------------------------------------------------------------------------------------------------


def _plain_errors(function: Callable[P, T]) -> Callable[P, T]:
    """An error in words. The first argument is the path."""

    @functools.wraps(function)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return function(*args, **kwargs)
        except FileNotFoundError:
            raise FileNotFoundError(f"{args[0]} does not exist.") from None
        except OSError as error:
            if error.errno is None or not error.strerror:
                raise
            raise type(error)(f"{args[0]}: {error.strerror[0].lower()}{error.strerror[1:]}.") from None
        except ValueError:  # a null byte, or half a surrogate pair
            raise FileNotFoundError(f"{args[0]!a} cannot be the name of a file or object.") from None

    return wrapped


def _list_local(path: str) -> Iterator[ObjectInfo]:
    if not os.path.lexists(path):
        raise FileNotFoundError(f"{path} does not exist.")
    if not Path(path).is_dir():
        yield _local_info(path)
        return
    os.listdir(path)  # a folder that may not be read is an error, not an empty archive
    for folder, folders, files in os.walk(path, onerror=_raise):
        folders.sort()
        # A linked folder is not followed, for it may lead round in a circle; listed, it ends in the rejects.
        for file in sorted([*files, *(name for name in folders if os.path.islink(posixpath.join(folder, name)))]):
            yield _local_info(posixpath.join(folder, file))


def _raise(error: OSError) -> None:
    raise error


def _local_info(path: str) -> ObjectInfo:
    try:
        status = os.stat(path)
    except OSError:  # a dangling link: listed, so that it ends in the rejects
        status = os.lstat(path)
    # A name that is not UTF-8 cannot stand in Parquet: it is listed escaped, is not found under that name, and so is
    # rejected rather than lost.
    uri = os.fsencode(path).decode("utf-8", "backslashreplace")
    return ObjectInfo(uri, status.st_size, _local_etag(status))


def _local_etag(status: os.stat_result) -> str:
    return f"{status.st_size:x}-{status.st_mtime_ns:x}"


@_plain_errors
def _read_file(path: str, limit: int | None) -> bytes:
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise OSError(f"{path} is not a regular file.")
    with open(path, "rb") as file:
        # Not `limit` at once: Python takes memory for all that is asked for.
        return file.read() if limit is None else file.read(min(limit, os.fstat(file.fileno()).st_size) + 1)


@_plain_errors
def _read_part(path: str, offset: int, length: int, etag: str) -> bytes:
    with open(path, "rb") as file:
        status = os.fstat(file.fileno())
        if etag and _local_etag(status) != etag:
            raise ChangedError(f"{path} has changed since it was listed.")
        file.seek(offset)
        return file.read(min(length, max(0, status.st_size - offset)))


@_plain_errors
def _info_of_file(path: str) -> ObjectInfo:
    os.stat(path)  # `_local_info` takes a dangling link for a file
    return _local_info(path)


@_plain_errors
def _write_file(uri: str, data: bytes) -> None:
    path = Path(uri)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{uuid.uuid4().hex}.partial")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@_plain_errors
def _delete_file(path: str) -> None:
    Path(path).unlink(missing_ok=True)


# --- Files and objects ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Store:
    """Reads and writes files and objects.

    `patience`: the seconds for which an object store that does not answer is asked again, see `melanoma.s3`, before
    UnavailableError is raised; 0 asks once. Each method may raise it, and OSError.
    """

    patience: float = 30.0

    def list_objects(self, uri: str) -> Iterator[ObjectInfo]:
        """Every object below `uri`, or the object that it names: files, and on S3 folder markers too, in a fixed order.

        Raises FileNotFoundError for a bucket or local folder that does not exist, PermissionError for wrong
        credentials. S3 knows no folders: a prefix that no key has lists nothing.
        """
        uri = normalize(uri)
        return s3.list_objects(uri, self.patience) if is_s3(uri) else _list_local(uri)

    def read_bytes(self, uri: str, limit: int | None = None) -> bytes:
        """The content of an object; at most `limit` + 1 bytes of it, so that a caller sees that it is too large."""
        return s3.read_bytes(uri, limit, self.patience) if is_s3(uri) else _read_file(uri, limit)

    def read_range(self, uri: str, offset: int, length: int, etag: str = "") -> bytes:
        """Read a part of an object.

        Args:
            uri: An s3:// URI or local path.
            offset: The first byte, counted from 0.
            length: How many bytes at most; fewer are returned where the object ends.
            etag: As a listing gave it; "" is any.

        Raises ChangedError where the object is not the one of the `etag` any more, and as `read_bytes`.
        """
        if length <= 0:
            return b""
        if is_s3(uri):
            return s3.read_range(uri, offset, length, etag, self.patience)
        return _read_part(uri, offset, length, etag)

    def info(self, uri: str) -> ObjectInfo:
        """What a listing would say of one object."""
        return s3.info(uri, self.patience) if is_s3(uri) else _info_of_file(uri)

    def exists(self, uri: str) -> bool:
        try:
            return bool(self.info(uri))
        except (FileNotFoundError, NotADirectoryError):
            return False

    def download(self, uri: str, path: Path) -> None:
        """An object as a file, however large it is."""
        whole = self.info(uri)
        with path.open("wb") as file:
            while file.tell() < whole.size:
                if not (data := self.read_range(uri, file.tell(), _PIECE, whole.etag)):
                    raise ChangedError(f"{uri} has changed while it was read.")
                file.write(data)

    def write_bytes(self, uri: str, data: bytes) -> None:
        """Write an object in one piece: a reader sees all of it or what was there before."""
        if is_s3(uri):
            s3.write_bytes(uri, data, self.patience)
        else:
            _write_file(uri, data)

    def delete(self, uri: str) -> None:
        """Delete an object; no error where there is none."""
        if is_s3(uri):
            s3.delete(uri, self.patience)
        else:
            _delete_file(uri)

    def check_writable(self, uri: str) -> None:
        """Raise InputError where objects cannot be written below `uri`: better before hours of work than after."""
        probe = join(normalize(uri), ".write-test")
        try:
            self.write_bytes(probe, b"")
            self.delete(probe)
        except OSError as error:
            raise InputError(f"Nothing can be written to {uri}: {error}") from None

    def read_json(self, uri: str) -> Any:
        """Raises ValueError where the object is not JSON."""
        return json.loads(self.read_bytes(uri))

    def write_json(self, uri: str, value: Any) -> None:
        text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)
        self.write_bytes(uri, f"{text}\n".encode())

    def read_table(self, uri: str, columns: list[str] | None = None) -> pa.Table:
        """A Parquet file as an Arrow table. Raises InputError where the file is not Parquet."""
        data = self.read_bytes(uri)
        try:
            return pq.ParquetFile(io.BytesIO(data)).read(columns=columns)
        except (pa.ArrowException, OSError, ValueError):  # pyarrow raises OSError for damaged pages
            raise InputError(f"{uri} is not a Parquet file, or a damaged one.") from None

    def write_table(self, uri: str, table: pa.Table) -> None:
        buffer = io.BytesIO()
        pq.write_table(table, buffer, row_group_size=_ROWS_A_GROUP, compression="zstd")
        self.write_bytes(uri, buffer.getvalue())


DEFAULT = Store()
"""For what has no patience configured; its methods are functions of this module, too."""

list_objects = DEFAULT.list_objects
read_bytes = DEFAULT.read_bytes
read_range = DEFAULT.read_range
info = DEFAULT.info
exists = DEFAULT.exists
write_bytes = DEFAULT.write_bytes
delete = DEFAULT.delete
check_writable = DEFAULT.check_writable
read_json = DEFAULT.read_json
write_json = DEFAULT.write_json
read_table = DEFAULT.read_table
write_table = DEFAULT.write_table


def completed(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """The columns of the schema; nulls for those that an earlier version of this program did not write."""
    columns = [
        table[field.name].cast(field.type) if field.name in table.column_names else pa.nulls(len(table), field.type)
        for field in schema
    ]
    return pa.Table.from_arrays(columns, schema=schema)


def arrow_filesystem(uri: str) -> tuple[pyarrow.fs.FileSystem, str]:
    """A pyarrow filesystem and the path in it, for Ray, which takes no bytes but a filesystem."""
    uri = normalize(uri)
    if not is_s3(uri):
        return pyarrow.fs.LocalFileSystem(), uri
    import s3fs  # heavy, and only training needs it

    filesystem = s3fs.S3FileSystem(anon=s3.is_anonymous())
    return pyarrow.fs.PyFileSystem(pyarrow.fs.FSSpecHandler(filesystem)), uri.removeprefix("s3://")
