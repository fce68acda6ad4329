"""The objects of an archive, as a stream: folders and prefixes are listed; manifests and S3 Inventories are lists."""

import itertools
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import unquote_plus

from melanoma import storage, table_files
from melanoma.errors import InputError
from melanoma.storage import ObjectInfo, Store

_LOOKED_UP_AT_ONCE = 64
# The names of S3 Inventory's columns in CSV, and in ORC and Parquet:
# https://docs.aws.amazon.com/AmazonS3/latest/userguide/storage-inventory.html
_INVENTORY = {"Bucket": "bucket", "Key": "key", "Size": "size", "ETag": "e_tag"}
_VERSIONS = {"IsLatest": "is_latest", "IsDeleteMarker": "is_delete_marker"}
_TRUE = ("true", "1")  # in CSV, and as `table_files` writes it


def objects(archives: Sequence[str], store: Store) -> Iterator[ObjectInfo]:
    """Every object of the archives, one after the other; one that two of them hold comes twice.

    An archive is a folder or prefix (or one object), a manifest (a table of `melanoma.table_files` with one of its
    `LOCATIONS`, and `size` and `etag` if they are known), or the ``manifest.json`` of an S3 Inventory. What a manifest
    does not know, `store` is asked for.

    Raises InputError for a manifest that cannot be understood, UnavailableError, and OSError where something cannot be
    listed or read.
    """
    for archive in archives:
        uri = storage.normalize(archive)
        if storage.name(uri) == "manifest.json":
            yield from _inventory(uri, store)
        elif table_files.is_table(uri):
            yield from _manifest(uri, store)
        else:
            yield from store.list_objects(uri)


def _manifest(uri: str, store: Store) -> Iterator[ObjectInfo]:
    def info(row: tuple[str, str | None, str | None]) -> ObjectInfo:
        where, size, etag = row
        return ObjectInfo(where, _number(size), etag.strip('"')) if size and etag else _looked_up(where, store)

    with ThreadPoolExecutor(_LOOKED_UP_AT_ONCE) as pool:
        for rows in table_files.batches(uri, store, (*table_files.LOCATIONS, "size", "etag")):
            column, sizes, etags = (
                table_files.find(rows, each) for each in (table_files.LOCATIONS, ["size"], ["etag"])
            )
            if column is None:
                raise InputError(f"The manifest {uri} has none of the columns {', '.join(table_files.LOCATIONS)}.")
            places = [place for place in rows[column] if place]
            if len(places) < len(rows[column]):
                raise InputError(f"The manifest {uri} has a row without {column}.")
            uris = [table_files.place(uri, place) for place in places]
            unknown = [None] * len(uris)
            listed = list(zip(uris, rows.get(sizes or "", unknown), rows.get(etags or "", unknown), strict=True))
            yield from (map if sizes and etags else pool.map)(info, listed)


def _number(text: str) -> int:
    """pandas writes 3.0 where a size is missing in another row."""
    try:
        return int(float(text))
    except (ValueError, OverflowError):
        raise InputError(f"The size {text!r} in a manifest is not a number of bytes.") from None


def _looked_up(uri: str, store: Store) -> ObjectInfo:
    try:
        return store.info(uri)
    except OSError:  # listed all the same, so that it ends in the rejects, with its reason
        return ObjectInfo(uri, 0, "")


def _inventory(uri: str, store: Store) -> Iterator[ObjectInfo]:
    try:
        manifest = store.read_json(uri)
        bucket = manifest["destinationBucket"].rpartition(":::")[2]
        files = [f"s3://{bucket}/{file['key']}" for file in manifest["files"]]
        is_csv = manifest["fileFormat"] == "CSV"
        names = [name.strip() for name in manifest["fileSchema"].split(",")] if is_csv else None
    except (KeyError, TypeError, AttributeError, ValueError):
        raise InputError(f"{uri} is not the manifest of an S3 Inventory.") from None
    wanted = {name: name if is_csv else other for name, other in {**_INVENTORY, **_VERSIONS}.items()}
    for file in files:
        for rows in table_files.batches(file, store, tuple(wanted.values()), names):
            if missing := [wanted[name] for name in _INVENTORY if wanted[name] not in rows]:
                raise InputError(f"The S3 Inventory {uri} lacks {', '.join(missing)}: add it to its optional fields.")
            latest = rows.get(wanted["IsLatest"], itertools.repeat("true"))
            deleted = rows.get(wanted["IsDeleteMarker"], itertools.repeat("false"))
            columns = [rows[wanted[name]] for name in _INVENTORY]
            for name, key, size, etag, is_latest, is_deleted in zip(*columns, latest, deleted, strict=False):
                if is_latest in _TRUE and is_deleted not in _TRUE:
                    key = unquote_plus(key or "") if is_csv else key
                    yield ObjectInfo(f"s3://{name}/{key}", _number(size or "0"), (etag or "").strip('"'))
