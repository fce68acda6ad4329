"""Tables that people hand over, such as a list of images: CSV as it comes, Parquet and ORC, as a stream of words.

A CSV may be packed (``.csv.gz``), have commas, semicolons or tabs between its fields, begin with a byte order mark, end
its lines as any system does, have line breaks in quoted fields, and commas or blanks at the end of its lines.
"""

import contextlib
import csv
import gzip
import io
import itertools
import re
import tempfile
import unicodedata
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path
from typing import IO

import pyarrow as pa
import pyarrow.orc
import pyarrow.parquet as pq

from melanoma import storage
from melanoma.errors import InputError
from melanoma.storage import Store

LOCATIONS = ("uri", "image_uri", "path", "file", "filename", "file_name")
"""What tables call the column that says where an image lies, the first that is there. See `find`."""

_CSV = (".csv", ".tsv", ".tab")
ENDINGS = (*_CSV, *(f"{ending}.gz" for ending in _CSV), ".parquet")
_ROWS_AT_ONCE = 10_000
_LONGEST_FIELD = 2**20  # characters; a quote that is never closed would take all that follows into one field
# What programs write for a value that they do not have: the words that pandas takes for one.
_NO_VALUE = {"#N/A", "#N/A N/A", "#NA", "<NA>", "N/A", "NA", "NULL", "NaN", "None", "n/a", "nan", "null"} | {
    *("-NaN", "-nan", "-1.#IND", "-1.#QNAN", "1.#IND", "1.#QNAN")
}

Rows = dict[str, list[str | None]]
"""Some rows of a table, by column. None is a value that the table does not have."""


def plain(name: str) -> str:
    """The name of a column without what does not matter: case, blanks, "-" and how its accents are encoded."""
    return re.sub(r"[\s_\-]+", "_", unicodedata.normalize("NFC", name).strip().casefold())


def find(names: Iterable[str], wanted: Iterable[str]) -> str | None:
    """The first of the `wanted` columns that is among those of a table, as the table spells it.

    Raises InputError where two columns of the table bear that name.
    """
    spelled: dict[str, list[str]] = {}
    for name in names:
        spelled.setdefault(plain(name), []).append(name)
    found = next((spelled[name] for name in wanted if name in spelled), [])
    if len(found) > 1:
        raise InputError(f"A table has two columns that are one, {found[0]!r} and {found[1]!r}: rename one of them.")
    return found[0] if found else None


def is_table(uri: str) -> bool:
    """Whether a URI is that of a table, by its name."""
    return uri.lower().endswith(ENDINGS)


def place(table: str, words: str) -> str:
    """The URI that a table names.

    A relative path starts where the table lies, and its ``.`` and ``..`` lead through folders. A key of a bucket is
    otherwise kept as it is: ``a//b`` and ``a/b`` are two objects. Raises InputError where `words` cannot be a URI.
    """
    if storage.is_s3(words):
        storage.normalize(words)
        return words
    if "://" in words or words.startswith(("/", "~")):
        return storage.normalize(words)
    if not storage.is_s3(table):
        return storage.normalize(storage.join(storage.parent(table), words))
    bucket, *key = table.rpartition("/")[0].removeprefix("s3://").split("/")
    for name in words.split("/"):
        if name == "..":
            if not key:
                raise InputError(f"The table {table} names {words!r}, which leads out of the bucket {bucket}.")
            key.pop()
        elif name != ".":
            key.append(name)
    return f"s3://{'/'.join([bucket, *key])}"


def read(uri: str, store: Store = storage.DEFAULT) -> Rows:
    """A whole table; words such as "NA" are no value, either. Raises as `batches`."""
    whole: Rows = {}
    for rows in batches(uri, store):
        for name, values in rows.items():
            whole.setdefault(name, []).extend(None if value in _NO_VALUE else value for value in values)
    return whole


def batches(
    uri: str,
    store: Store = storage.DEFAULT,
    wanted: Collection[str] | None = None,
    names: list[str] | None = None,
) -> Iterator[Rows]:
    """The rows of a table, some thousand at a time; of one without rows, its columns.

    Numbers and dates of Parquet and ORC are written out, true is 1 and false 0, and what cannot be written (lists,
    bytes) is left out. Fields of a CSV have no blanks around them.

    Args:
        uri: A CSV, packed or not, Parquet or ORC, by its name.
        store: Reads it.
        wanted: The columns that are of interest, of which the table may have some, however it spells them; None: all.
        names: The columns of a CSV that has no header.

    Raises:
        InputError: It is not such a table, or is damaged.
        OSError: It cannot be read.
        UnavailableError: The store does not answer.
    """
    is_wanted = _wanted(wanted)
    with _copied(uri, store) as path:
        try:
            if path.name.lower().endswith((".parquet", ".orc")):
                yield from map(_in_words, _columnar(path, is_wanted))
            else:
                with _opened(path) as file:
                    yield from _of_csv(uri, file, is_wanted, names)
        except (FileNotFoundError, PermissionError):
            raise
        except UnicodeDecodeError:
            raise InputError(
                f"{uri} is not a readable CSV table in UTF-8: save it as such (in Excel: Save As, CSV UTF-8)."
            ) from None
        except (pa.ArrowException, OSError, UnicodeError, EOFError, csv.Error) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            kind = {".parquet": "Parquet file", ".orc": "ORC file"}.get(path.suffix.lower(), "readable CSV table")
            raise InputError(f"{uri} is not a {kind}, or a damaged one: {reason}") from None


def _wanted(names: Collection[str] | None) -> Callable[[str], bool]:
    """Whether a column is one of these."""
    if names is None:
        return lambda name: True
    wanted = set(map(plain, names))
    return lambda name: plain(name) in wanted


@contextlib.contextmanager
def _copied(uri: str, store: Store) -> Iterator[Path]:
    """A file on this machine, for a reader that streams: a copy, or the file itself."""
    if not storage.is_s3(uri):
        if not Path(uri).exists():
            raise FileNotFoundError(f"{uri} does not exist.")
        yield Path(uri)
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"table{''.join(Path(storage.name(uri)).suffixes[-2:])}"
        store.download(uri, path)
        yield path


# --- Parquet and ORC --------------------------------------------------------------------------------------------------


def _columnar(path: Path, is_wanted: Callable[[str], bool]) -> Iterator[pa.RecordBatch]:
    with contextlib.ExitStack() as stack:
        if path.name.lower().endswith(".parquet"):
            file = stack.enter_context(pq.ParquetFile(path))
            columns = _writable(file.schema_arrow, is_wanted)
            parts = file.iter_batches(_ROWS_AT_ONCE, columns=columns)
        else:
            orc = pyarrow.orc.ORCFile(path)
            columns = _writable(orc.schema, is_wanted)
            parts = (orc.read_stripe(stripe, columns) for stripe in range(orc.nstripes))
        yield pa.RecordBatch.from_pydict({name: pa.array([], pa.string()) for name in columns})
        yield from parts


def _writable(schema: pa.Schema, is_wanted: Callable[[str], bool]) -> list[str]:
    """The wanted columns whose values can be written in words."""
    kinds = pa.types
    refused = (kinds.is_nested, kinds.is_binary, kinds.is_large_binary, kinds.is_fixed_size_binary)
    return [
        field.name
        for field in schema
        if is_wanted(field.name) and not any(is_of_kind(field.type) for is_of_kind in refused)
    ]


def _in_words(batch: pa.RecordBatch) -> Rows:
    rows: Rows = {}
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        is_truth = pa.types.is_boolean(column.type)
        words = (column.cast(pa.int8()) if is_truth else column).cast(pa.string()).to_pylist()
        rows[name] = [word or None for word in words]
    return rows


# --- CSV --------------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[IO[str]]:
    """The text of a file that may be packed, in UTF-8 or, as spreadsheets call "Unicode", UTF-16."""
    with path.open("rb") as raw:
        is_packed = raw.read(2) == b"\x1f\x8b"
        raw.seek(0)
        data = io.BufferedReader(gzip.GzipFile(fileobj=raw)) if is_packed else raw
        encoding = "utf-16" if data.peek(2)[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
        yield io.TextIOWrapper(data, encoding, newline="")


def _of_csv(uri: str, file: IO[str], is_wanted: Callable[[str], bool], names: list[str] | None) -> Iterator[Rows]:
    records = _records(uri, file, "," if names else None)
    header = names or next(records, [])
    if not header:
        raise InputError(f"{uri} is not a readable CSV table: it is empty.")
    columns: dict[str, int] = {}
    for number, name in enumerate(header):
        if name and is_wanted(name):
            if name in columns:
                raise InputError(f"The table {uri} has two columns {name!r}: rename one of them.")
            columns[name] = number
    yield {name: [] for name in columns}
    width = len(header)
    while some := list(itertools.islice(records, _ROWS_AT_ONCE)):
        if wrong := next((record for record in some if any(record[width:])), None):
            raise InputError(
                f"The table {uri} has a row of {len(wrong)} fields, which begins with {wrong[0]!r}, and a header of "
                f"{width}: put the field that holds a separator in quotes."
            )
        yield {
            name: [record[number] or None if number < len(record) else None for record in some]
            for name, number in columns.items()
        }


def _records(uri: str, file: IO[str], separator: str | None) -> Iterator[list[str]]:
    """The rows that are not blank; without a `separator` the one that cuts the first of them into the most fields."""
    csv.field_size_limit(_LONGEST_FIELD)
    start = next((line for line in file if line.strip()), "")
    if said := re.fullmatch(r'"?sep=(.)"?\s*', start, re.IGNORECASE):  # Excel's own word for what separates the fields
        separator, start = said[1], next((line for line in file if line.strip()), "")
    separator = separator or max(",;\t", key=lambda each: len(next(csv.reader([start], delimiter=each), [])))
    ended = False

    def lines() -> Iterator[str]:
        nonlocal ended
        yield start
        yield from file
        ended = True

    for record in csv.reader(lines(), delimiter=separator, skipinitialspace=True):
        if ended:  # the reader has looked for the end of this row, and found that of the file
            raise InputError(f"{uri} is not a readable CSV table: a quote is not closed, in the last row or before.")
        fields = [field.strip() for field in record]
        if any(fields):
            yield fields
