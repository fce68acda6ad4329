"""The objects of an archive, as a stream: folders and prefixes are listed; manifests and S3 Inventories are lists."""

import contextlib
import csv
import gzip
import itertools
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import unquote_plus

import pyarrow as pa
import pyarrow.csv
import pyarrow.orc
import pyarrow.parquet as pq

from melanoma import storage
from melanoma.errors import InputError
from melanoma.storage import ObjectInfo, Store

_LOOKED_UP_AT_ONCE = 64
_LOCATIONS = ("uri", "image_uri", "path")
# The names of S3 Inventory's columns in CSV, and in ORC and Parquet:
# https://docs.aws.amazon.com/AmazonS3/latest/userguide/storage-inventory.html
_INVENTORY = {"Bucket": "bucket", "Key": "key", "Size": "size", "ETag": "e_tag"}
_VERSIONS = {"IsLatest": "is_latest", "IsDeleteMarker": "is_delete_marker"}


def objects(archives: Sequence[str], store: Store) -> Iterator[ObjectInfo]:
    """Every object of the archives, one after the other; one that two of them hold comes twice.

    An archive is a folder or prefix (or one object), a manifest (a name that ends in .csv or .parquet, with a column
    `uri`, `image_uri` or `path`, the last relative to the manifest, and `size` and `etag` if they are known), or the
    ``manifest.json`` of an S3 Inventory. What a manifest does not know, `store` is asked for.

    Raises InputError for a manifest that cannot be understood, and OSError where something cannot be listed or read.
    """
    for archive in archives:
        uri = storage.normalize(archive)
        if storage.name(uri) == "manifest.json":
            yield from _inventory(uri)
        elif uri.endswith((".csv", ".parquet")):
            yield from _manifest(uri, store)
        else:
            yield from storage.list_objects(uri)


def _manifest(uri: str, store: Store) -> Iterator[ObjectInfo]:
    def info(row: tuple[str, str | None, str | None]) -> ObjectInfo:
        where, size, etag = row
        return ObjectInfo(where, _number(size), etag.strip('"')) if size and etag else _looked_up(where, store)

    base = storage.parent(uri)
    with _copied(uri) as path, ThreadPoolExecutor(_LOOKED_UP_AT_ONCE) as pool:
        for rows in _rows(path, None, (*_LOCATIONS, "size", "etag")):
            column = next((name for name in _LOCATIONS if name in rows), None)
            if column is None:
                raise InputError(f"The manifest {uri} has none of the columns uri, image_uri and path.")
            places = [place for place in rows[column] if place]
            if len(places) < len(rows[column]):
                raise InputError(f"The manifest {uri} has a row without {column}.")
            uris = [storage.normalize(place if _is_absolute(place) else storage.join(base, place)) for place in places]
            unknown = [None] * len(uris)
            listed = list(zip(uris, rows.get("size", unknown), rows.get("etag", unknown), strict=True))
            yield from (map if "size" in rows and "etag" in rows else pool.map)(info, listed)


def _is_absolute(uri: str) -> bool:
    return "://" in uri or uri.startswith("/")


def _number(text: str) -> int:
    """pandas writes 3.0 where a size is missing in another row."""
    try:
        return int(float(text))
    except (ValueError, OverflowError):
        raise InputError(f"The size {text!r} in a manifest is not a number of bytes.") from None


def _looked_up(uri: str, store: Store) -> ObjectInfo:
    try:
        return store.info(uri)
    except storage.UnavailableError:
        raise
    except OSError:  # listed all the same, so that it ends in the rejects, with its reason
        return ObjectInfo(uri, 0, "")


def _inventory(uri: str) -> Iterator[ObjectInfo]:
    try:
        manifest = storage.read_json(uri)
        bucket = manifest["destinationBucket"].rpartition(":::")[2]
        files = [f"s3://{bucket}/{file['key']}" for file in manifest["files"]]
        is_csv = manifest["fileFormat"] == "CSV"
        names = [name.strip() for name in manifest["fileSchema"].split(",")] if is_csv else None
    except (KeyError, TypeError, AttributeError, ValueError):
        raise InputError(f"{uri} is not the manifest of an S3 Inventory.") from None
    wanted = {name: name if is_csv else other for name, other in {**_INVENTORY, **_VERSIONS}.items()}
    for file in files:
        with _copied(file) as path:
            for rows in _rows(path, names, tuple(wanted.values())):
                if missing := [wanted[name] for name in _INVENTORY if wanted[name] not in rows]:
                    raise InputError(
                        f"The S3 Inventory {uri} lacks {', '.join(missing)}: add it to its optional fields."
                    )
                latest = rows.get(wanted["IsLatest"], itertools.repeat("true"))
                deleted = rows.get(wanted["IsDeleteMarker"], itertools.repeat("false"))
                columns = [rows[wanted[name]] for name in _INVENTORY]
                for name, key, size, etag, is_latest, is_deleted in zip(*columns, latest, deleted, strict=False):
                    if is_latest == "true" and is_deleted == "false":
                        key = unquote_plus(key or "") if is_csv else key
                        yield ObjectInfo(f"s3://{name}/{key}", _number(size or "0"), (etag or "").strip('"'))


@contextlib.contextmanager
def _copied(uri: str) -> Iterator[Path]:
    """A file on this machine, for a reader that streams: a copy, or the file itself."""
    if not storage.is_s3(uri):
        yield Path(uri)
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / storage.name(uri)
        storage.download(uri, path)
        yield path


def _rows(path: Path, names: list[str] | None, wanted: tuple[str, ...]) -> Iterator[dict[str, list[str | None]]]:
    """The wanted columns that a table has, some thousand rows at a time, every value as text.

    `names`: the columns of a CSV without a header.
    """
    try:
        for batch in _batches(path, names, wanted):
            columns = zip(batch.schema.names, batch.columns, strict=True)
            yield {name: column.cast(pa.string()).to_pylist() for name, column in columns}
    except (FileNotFoundError, PermissionError):
        raise
    except (pa.ArrowException, OSError, UnicodeDecodeError, EOFError) as error:
        raise InputError(f"{path.name} cannot be read as a table: {str(error).splitlines()[0]}") from None


def _batches(path: Path, names: list[str] | None, wanted: tuple[str, ...]) -> Iterator[pa.RecordBatch]:
    if path.name.endswith(".parquet"):
        with pq.ParquetFile(path) as file:
            yield from file.iter_batches(columns=[name for name in file.schema_arrow.names if name in wanted])
    elif path.name.endswith(".orc"):
        file = pyarrow.orc.ORCFile(path)
        columns = [name for name in file.schema.names if name in wanted]
        yield from (file.read_stripe(stripe, columns) for stripe in range(file.nstripes))
    else:
        columns = [name for name in names or _header(path) if name in wanted]
        options = pyarrow.csv.ConvertOptions(
            column_types=dict.fromkeys(columns, pa.string()), include_columns=columns, strings_can_be_null=False
        )
        # pyarrow takes the compression from the name.
        yield from pyarrow.csv.open_csv(path, pyarrow.csv.ReadOptions(column_names=names), convert_options=options)


def _header(path: Path) -> list[str]:
    is_packed = path.name.endswith(".gz")
    with (
        gzip.open(path, "rt", encoding="utf-8-sig", newline="")
        if is_packed
        else path.open(encoding="utf-8-sig", newline="") as file
    ):
        return next(csv.reader(file), [])
