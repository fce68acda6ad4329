"""A URI becomes bytes: the one place that knows endpoints, credentials and retries.

A URI is ``s3://bucket/key`` or a local path (``file://`` is understood). S3 is reached as the AWS tools reach it: by
``AWS_ACCESS_KEY_ID``, ``AWS_PROFILE`` or an instance role, and ``AWS_ENDPOINT_URL`` for a store that is not Amazon's.
Nothing here takes a credential from a configuration file of this project.

Every failure is a `FileNotFoundError`, a `PermissionError` or another `OSError`, for S3 as for files.
"""

import contextlib
import functools
import io
import json
import os
import posixpath
import stat
import threading
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ParamSpec, TypeVar
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.fs
import pyarrow.parquet as pq

from melanoma.errors import InputError

P = ParamSpec("P")
T = TypeVar("T")

_NOT_FOUND = {"NoSuchKey", "NoSuchBucket", "404", "NotFound"}
_BUSY = {"SlowDown", "RequestLimitExceeded", "Throttling", "ThrottlingException", "RequestTimeout", "InternalError"}
_BODY_ATTEMPTS = 3
_FORBIDDEN = {
    "AccessDenied",
    "403",
    "401",
    "Forbidden",
    "InvalidAccessKeyId",
    "SignatureDoesNotMatch",
    "ExpiredToken",
    "InvalidToken",
    "AuthorizationHeaderMalformed",
}


class ChangedError(OSError):
    """The object is not the one that was listed any more."""


class UnavailableError(ConnectionError):
    """The object store did not answer, broke off, or asked to be left alone for a while: a later try may succeed."""


@dataclass(frozen=True)
class ObjectInfo:
    """One listed object. `etag` changes when the content does: S3's ETag, or size and modification time of a file."""

    uri: str
    size: int
    etag: str


def is_s3(uri: str) -> bool:
    return uri.startswith("s3://")


def normalize(uri: str) -> str:
    """The one spelling of a URI: no trailing slash, local paths absolute and without ``file://``.

    Raises InputError for a scheme that is not read here.
    """
    if is_s3(uri):
        bucket, key = _split(uri)
        if not bucket:
            raise InputError(f"{uri!r} names no bucket: write s3://bucket/prefix.")
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


def _split(uri: str) -> tuple[str, str]:
    # Not urlparse: a key may hold "#" and "?".
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    return bucket, key


_client_lock = threading.Lock()


@functools.cache
def _client(process: int) -> Any:
    import boto3
    import botocore.config

    # A session of its own: the default one may not be shared by threads, and keeps the credentials it first saw.
    session = boto3.session.Session()
    return session.client(
        "s3",
        region_name=os.environ.get("AWS_REGION") or session.region_name or "us-east-1",
        config=botocore.config.Config(
            retries={"mode": "standard", "max_attempts": 5},
            connect_timeout=10,
            read_timeout=60,
            max_pool_connections=64,
            # Stores other than Amazon's know neither of the newer checksum headers.
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
        ),
    )


def forget_client() -> None:
    """Let the next request read the environment anew."""
    _client.cache_clear()


def _s3() -> Any:
    """The client of this process: it is thread-safe, but must not be carried through a fork."""
    import botocore.exceptions  # takes 0.2 s, which a command on local files need not wait for

    try:
        with _client_lock:  # or sixteen threads would each make one, at 0.2 s
            return _client(os.getpid())
    except (botocore.exceptions.BotoCoreError, ValueError) as error:
        raise OSError(
            f"The object store cannot be reached as AWS_ENDPOINT_URL, AWS_PROFILE and AWS_REGION say: {error}."
        ) from None


def _plain_errors(function: Callable[P, T]) -> Callable[P, T]:
    """botocore's errors become the OSErrors that a local file gives. The first argument is the URI."""

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
        except Exception as error:
            if plain := _plain_error(error, str(args[0])):
                raise plain from None
            raise

    return wrapped


def _plain_error(error: Exception, uri: str) -> OSError | None:
    """The plain error for one of the S3 client; None for any other."""
    import boto3.exceptions
    import botocore.exceptions

    if isinstance(error, botocore.exceptions.ClientError):
        code = str(error.response.get("Error", {}).get("Code", ""))
        status = str(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", ""))
        return _os_error(code, status, uri)
    if isinstance(error, (botocore.exceptions.NoCredentialsError, botocore.exceptions.PartialCredentialsError)):
        return PermissionError(
            f"No S3 credentials for {uri}: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE."
        )
    if isinstance(error, botocore.exceptions.ParamValidationError):
        return FileNotFoundError(f"{uri} is not a valid S3 name.")
    if isinstance(error, (*_broken_off(), boto3.exceptions.Boto3Error)):
        return UnavailableError(f"The object store did not answer for {uri} ({type(error).__name__}).")
    if isinstance(error, ValueError):  # a null byte, or half a surrogate pair
        return FileNotFoundError(f"{uri!a} cannot be the name of a file or object.")
    return None


def _broken_off() -> tuple[type[Exception], ...]:
    """While a body is read, not every error of urllib3 becomes one of botocore."""
    import botocore.exceptions
    import urllib3.exceptions

    return botocore.exceptions.BotoCoreError, urllib3.exceptions.HTTPError


def _os_error(code: str, status: str, uri: str) -> OSError:
    if code == "NoSuchBucket":
        return FileNotFoundError(f"The bucket of {uri} does not exist.")
    if code in _NOT_FOUND or status == "404":
        return FileNotFoundError(f"{uri} does not exist.")
    if code in _FORBIDDEN or status in {"401", "403"}:
        return PermissionError(f"The object store refused access to {uri} ({code}): check the credentials.")
    kind = UnavailableError if status.startswith("5") or status == "429" or code in _BUSY else OSError
    return kind(f"The object store failed for {uri} ({code or status}).")


def list_objects(uri: str) -> Iterator[ObjectInfo]:
    """Every object below `uri`, or the object that it names: files, and on S3 folder markers too, in a fixed order.

    Raises FileNotFoundError for a bucket or local folder that does not exist, PermissionError for wrong credentials.
    S3 knows no folders: a prefix that no key has lists nothing.
    """
    uri = normalize(uri)
    return _list_s3(uri) if is_s3(uri) else _list_local(uri)


def _list_s3(uri: str) -> Iterator[ObjectInfo]:
    bucket, prefix = _split(uri)
    next_page = _plain_errors(lambda _uri, pages: next(pages, None))

    def listing(prefix: str) -> Iterator[ObjectInfo]:
        pages = iter(_s3().get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix))
        while (page := next_page(uri, pages)) is not None:
            for item in page.get("Contents", ()):
                etag = str(item.get("ETag", "")).strip('"')
                yield ObjectInfo(f"s3://{bucket}/{item['Key']}", int(item["Size"]), etag)

    found = False
    # A prefix is a folder here, not a beginning: "archive" must not list "archive-2".
    for info in listing(f"{prefix}/" if prefix else ""):
        found = True
        yield info
    if not found and prefix:
        yield from (info for info in listing(prefix) if info.uri == uri)


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
def read_bytes(uri: str, limit: int | None = None) -> bytes:
    """The content of an object; at most `limit` + 1 bytes of it, so that a caller sees that it is too large.

    Raises FileNotFoundError, PermissionError or another OSError.
    """
    if is_s3(uri):
        bucket, key = _split(uri)
        for _ in range(_BODY_ATTEMPTS):
            response = _s3().get_object(Bucket=bucket, Key=key)
            if (wanted := response.get("ContentLength")) is None:
                raise UnavailableError(f"The object store did not say how long {uri} is.")
            if limit is not None:
                wanted = min(wanted, limit + 1)
            with contextlib.closing(response["Body"]) as body, contextlib.suppress(*_broken_off()):
                # botocore repeats a request, but not a body that breaks off, and takes part of one for all of it.
                if len(data := bytes(body.read(wanted))) == wanted:
                    return data
        raise UnavailableError(f"The object store broke off while sending {uri}.")
    if not stat.S_ISREG(os.stat(uri).st_mode):
        raise OSError(f"{uri} is not a regular file.")
    with open(uri, "rb") as file:
        # Not `count` at once: Python takes memory for all that is asked for.
        return file.read() if limit is None else file.read(min(limit, os.fstat(file.fileno()).st_size) + 1)


@_plain_errors
def read_range(uri: str, offset: int, length: int, etag: str = "") -> bytes:
    """Read a part of an object.

    Args:
        uri: An s3:// URI or local path.
        offset: The first byte, counted from 0.
        length: How many bytes at most; fewer are returned where the object ends.
        etag: As a listing gave it; "" is any.

    Raises ChangedError where the object is not the one of the `etag` any more, and OSError as `read_bytes`.
    """
    if length <= 0:
        return b""
    changed = ChangedError(f"{uri} has changed since it was listed.")
    if is_s3(uri):
        bucket, key = _split(uri)
        for _ in range(_BODY_ATTEMPTS):
            response = _s3().get_object(Bucket=bucket, Key=key, Range=f"bytes={offset}-{offset + length - 1}")
            # Not every store knows If-Match.
            if etag and str(response.get("ETag", "")).strip('"') != etag:
                response["Body"].close()
                raise changed
            with contextlib.closing(response["Body"]) as body, contextlib.suppress(*_broken_off()):
                if len(data := bytes(body.read(length))) == response.get("ContentLength"):
                    return data
        raise UnavailableError(f"The object store broke off while sending {uri}.")
    with open(uri, "rb") as file:
        status = os.fstat(file.fileno())
        if etag and _local_etag(status) != etag:
            raise changed
        file.seek(offset)
        return file.read(min(length, max(0, status.st_size - offset)))


@_plain_errors
def info(uri: str) -> ObjectInfo:
    """What a listing would say of one object. Raises FileNotFoundError, PermissionError or another OSError."""
    if not is_s3(uri):
        os.stat(uri)  # `_local_info` takes a dangling link for one
        return _local_info(uri)
    bucket, key = _split(uri)
    head = _s3().head_object(Bucket=bucket, Key=key)
    return ObjectInfo(uri, int(head["ContentLength"]), str(head.get("ETag", "")).strip('"'))


@_plain_errors
def download(uri: str, path: Path) -> None:
    """An object of a bucket as a file, however large it is."""
    bucket, key = _split(uri)
    _s3().download_file(bucket, key, str(path))


@_plain_errors
def write_bytes(uri: str, data: bytes) -> None:
    """Write an object in one piece: a reader sees all of it or what was there before.

    Raises FileNotFoundError (no such bucket), PermissionError or another OSError.
    """
    if is_s3(uri):
        bucket, key = _split(uri)
        _s3().put_object(Bucket=bucket, Key=key, Body=data)
        return
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
def delete(uri: str) -> None:
    """Delete an object; no error where there is none."""
    if is_s3(uri):
        bucket, key = _split(uri)
        _s3().delete_object(Bucket=bucket, Key=key)
    else:
        Path(uri).unlink(missing_ok=True)


def check_writable(uri: str) -> None:
    """Raise InputError where objects cannot be written below `uri`: better before hours of work than after."""
    probe = join(normalize(uri), ".write-test")
    try:
        write_bytes(probe, b"")
        delete(probe)
    except OSError as error:
        raise InputError(f"Nothing can be written to {uri}: {error}") from None


@_plain_errors
def exists(uri: str) -> bool:
    if not is_s3(uri):
        return os.path.exists(uri)
    import botocore.exceptions

    bucket, key = _split(uri)
    try:
        _s3().head_object(Bucket=bucket, Key=key)
    except botocore.exceptions.ClientError as error:
        if str(error.response.get("Error", {}).get("Code", "")) in _NOT_FOUND:
            return False
        raise
    return True


def read_json(uri: str) -> Any:
    return json.loads(read_bytes(uri))


def write_json(uri: str, value: Any) -> None:
    write_bytes(uri, (json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode())


def read_table(uri: str, columns: list[str] | None = None) -> pa.Table:
    """A Parquet file as an Arrow table. Raises InputError where the file is not Parquet, OSError as `read_bytes`."""
    data = read_bytes(uri)
    try:
        return pq.ParquetFile(io.BytesIO(data)).read(columns=columns)
    except (pa.ArrowException, OSError, ValueError):  # pyarrow raises OSError for damaged pages
        raise InputError(f"{uri} is not a Parquet file, or a damaged one.") from None


def completed(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """The columns of the schema; nulls for those that an earlier version of this program did not write."""
    columns = [
        table[field.name].cast(field.type) if field.name in table.column_names else pa.nulls(len(table), field.type)
        for field in schema
    ]
    return pa.Table.from_arrays(columns, schema=schema)


def write_table(uri: str, table: pa.Table) -> None:
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    write_bytes(uri, buffer.getvalue())


@dataclass(frozen=True)
class Store:
    """The functions of this module, with patience: a store that does not answer is asked again, later and later.

    `patience`: seconds after which `UnavailableError` is raised all the same; 0 asks once. Each method does, and raises
    otherwise, what the function of its name does.
    """

    patience: float = 0.0

    def _call(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        import tenacity

        retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception_type(UnavailableError),
            wait=tenacity.wait_random_exponential(multiplier=0.2, max=10),
            stop=tenacity.stop_after_delay(self.patience),
            reraise=True,
        )
        return retrying(function, *args, **kwargs)

    def read_bytes(self, uri: str, limit: int | None = None) -> bytes:
        return self._call(read_bytes, uri, limit)

    def read_range(self, uri: str, offset: int, length: int, etag: str = "") -> bytes:
        return self._call(read_range, uri, offset, length, etag)

    def read_table(self, uri: str, columns: list[str] | None = None) -> pa.Table:
        return self._call(read_table, uri, columns)

    def info(self, uri: str) -> ObjectInfo:
        return self._call(info, uri)

    def write_bytes(self, uri: str, data: bytes) -> None:
        self._call(write_bytes, uri, data)

    def write_json(self, uri: str, value: Any) -> None:
        self._call(write_json, uri, value)

    def write_table(self, uri: str, table: pa.Table) -> None:
        self._call(write_table, uri, table)


def arrow_filesystem(uri: str) -> tuple[pyarrow.fs.FileSystem, str]:
    """A pyarrow filesystem and the path in it, for Ray, which takes no bytes but a filesystem."""
    uri = normalize(uri)
    if not is_s3(uri):
        return pyarrow.fs.LocalFileSystem(), uri
    import s3fs  # heavy, and only training needs it

    return pyarrow.fs.PyFileSystem(pyarrow.fs.FSSpecHandler(s3fs.S3FileSystem())), uri.removeprefix("s3://")
