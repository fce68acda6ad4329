"""What runs have left is read back: commit records and alerts. For this no Ray, TensorFlow or model is needed."""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import pyarrow as pa

from melanoma import storage
from melanoma.errors import InputError
from melanoma.scoring import layout, tables
from melanoma.scoring.record import RunRecord, read

T = TypeVar("T")
U = TypeVar("U")

_READ_AT_ONCE = 16  # objects


def read_alerts(out: str, date: str | None = None) -> pa.Table:
    """The alerts, `tables.ALERTS`, of the committed runs of a date (without one, the newest date), the most probable
    melanoma first.

    Raises InputError where there is no committed run, and OSError.
    """
    tables = [alerts_of_run(storage.normalize(out), record) for record in runs_of_date(out, date)]
    return pa.concat_tables(tables).sort_by([("p_melanoma", "descending"), ("image_uri", "ascending")])


def runs_of_date(out: str, date: str | None = None) -> list[RunRecord]:
    """The commit records of the runs of a date, without one of the newest date.

    Raises InputError where there is no committed run.
    """
    try:
        records = committed_runs(storage.normalize(out))
    except OSError as error:
        raise InputError(f"The output {out} cannot be read: {error}") from None
    if not records:
        raise InputError(f"{out} holds no finished run: score an archive with `melanoma score`.")
    date = date or max(record.run_date for record in records)
    runs = [record for record in records if record.run_date == date]
    if not runs:
        dates = ", ".join(sorted({record.run_date for record in records}))
        raise InputError(f"{out} holds no finished run of {date}: there are runs of {dates}.")
    return runs


def committed_runs(out: str) -> list[RunRecord]:
    """The commit records below `out`, a normal URI, oldest first. Raises InputError and OSError."""
    folder = layout.runs(out)
    uris = [uri for uri in uris_below(folder) if storage.parent(uri) == folder and uri.endswith(".json")]
    records = in_parallel(lambda uri: read(RunRecord, uri), uris)
    return sorted(records, key=lambda record: record.finished_at)


def alerts_of_run(out: str, record: RunRecord) -> pa.Table:
    """The alerts of a run, `tables.ALERTS`. Raises InputError and OSError."""
    table = storage.read_table(layout.alerts(out, record.run_date, record.run_id))
    return storage.completed(table, tables.ALERTS)


def uris_below(uri: str) -> list[str]:
    """The URIs of the objects below `uri`; none where it does not exist."""
    try:
        return [info.uri for info in storage.list_objects(uri)]
    except FileNotFoundError:
        return []


def in_parallel(read_one: Callable[[T], U], items: Iterable[T]) -> Iterator[U]:
    """What `read_one` returns of each item, in their order, some at a time."""
    with ThreadPoolExecutor(_READ_AT_ONCE) as pool:
        yield from pool.map(read_one, items)
