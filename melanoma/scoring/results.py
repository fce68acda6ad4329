"""What runs have left is read back: commit records, alerts and rejects. For this no Ray, TensorFlow or model is needed.

Which runs a list of alerts is of: those of the newest date, those that were cut off before it and finished since, and
those that nobody has seen before the newest were there. A run was seen if `melanoma alerts` has shown it, which that
command notes in ``OUT/shown/run_id=ID.json``, or if a delivery has brought it.
"""

import array
import datetime
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import pyarrow as pa

from melanoma import storage
from melanoma.errors import InputError
from melanoma.imaging.errors import Reason, counted
from melanoma.scoring import layout, tables
from melanoma.scoring.record import RunRecord, now, read
from melanoma.storage import Store

T = TypeVar("T")
U = TypeVar("U")

LISTED = tables.ALERTS.append(pa.field("archive", pa.string()))
"""A list of alerts of several runs: `rank` is that of the list, and `archive` the URI of the image's archive."""
DAYS = 30
"""A run that is this much older than the newest is neither shown nor delivered without being asked for."""
_READ_AT_ONCE = 16  # objects


@dataclass(frozen=True)
class Nights:
    """The runs that a list of alerts is of, oldest first."""

    runs: list[RunRecord]
    left_out: list[RunRecord]  # that nobody has seen either
    archive: str | None = None  # the only one whose alerts are wanted


# --- Which runs -------------------------------------------------------------------------------------------------------


def nights(out: str, date: str | None = None, archive: str | None = None) -> Nights:
    """The runs of a date; without one the newest, and what nobody has seen before them.

    Args:
        out: Folder or s3:// URI of the results.
        date: ISO date.
        archive: One of the archives, as the run was given it or by its short name; None: all.

    Returns:
        The runs, and which were left out because they are old.

    Raises:
        InputError: There is no committed run, or none of this date or archive.
    """
    root = storage.normalize(out)
    records = committed_records(out)
    if archive is not None:
        archive = _known_archive(out, records, archive)
        records = [record for record in records if archive in archives_of(record)]
    of_date = [record for record in records if record.run_date == (date or newest_date(records))]
    if not of_date:
        dates = ", ".join(sorted({record.run_date for record in records}))
        raise InputError(f"{out} holds no finished run of {date}: there are runs of {dates}.")
    return Nights(of_date, [], archive) if date else Nights(*_unseen(root, records, of_date), archive)


def committed_records(out: str) -> list[RunRecord]:
    """The commit records below a folder or s3:// URI, oldest first; raises InputError where there are none."""
    try:
        records = committed_runs(storage.normalize(out))
    except OSError as error:
        raise InputError(f"The output {out} cannot be read: {error}") from None
    if not records:
        raise InputError(f"{out} holds no finished run: score an archive with `melanoma score`.")
    return records


def newest_date(records: Sequence[RunRecord]) -> str:
    return max(record.run_date for record in records)


def _unseen(
    root: str, records: Sequence[RunRecord], newest: Sequence[RunRecord]
) -> tuple[list[RunRecord], list[RunRecord]]:
    """The newest runs with those that come with them, and the runs that nobody has seen and that do not."""
    notes = _notes(root)
    # What is older than the first run that anybody has seen here was never meant to be seen here.
    since = min((record.finished_at for record in records if record.run_id in notes), default="")
    date, before = newest[0].run_date, min(record.finished_at for record in newest)
    others = [record for record in records if record.run_date != date]
    recent = [record for record in others if not is_old(record, date)]
    seen = in_parallel(lambda record: _was_seen(notes.get(record.run_id, ()), before), recent)
    due = {record.run_id for record, was_seen in zip(recent, seen, strict=True) if not was_seen}
    due |= {record.run_id for record in others if was_resumed_since(record, date)}
    left_out = [record for record in others if record.run_id not in due | notes.keys() and record.finished_at >= since]
    return [record for record in records if record.run_date == date or record.run_id in due], left_out


def is_old(record: RunRecord, newest: str) -> bool:
    """Whether a run is more than `DAYS` older than the newest date."""
    least = datetime.date.fromisoformat(newest) - datetime.timedelta(days=DAYS)
    return record.run_date < least.isoformat()


def was_resumed_since(record: RunRecord, date: str) -> bool:
    """Whether a run that was begun before a date was resumed on it or later: its alerts are news of that date."""
    return record.planned_at[:10] < date <= last_attempt(record)


def last_attempt(record: RunRecord) -> str:
    """The ISO date on which the attempt began that finished the run."""
    finished = datetime.datetime.fromisoformat(record.finished_at)
    return (finished - datetime.timedelta(seconds=record.seconds)).date().isoformat()


def note_shown(out: str, chosen: Nights) -> None:
    """Note that somebody has seen the alerts of these runs. Raises OSError."""
    root = storage.normalize(out)
    noted = set(uris_below(layout.shown_runs(root)))
    for record in chosen.runs:
        uri = layout.shown(root, record.run_id)
        if uri not in noted and (chosen.archive is None or archives_of(record) == (chosen.archive,)):
            storage.write_json(uri, {"at": now().isoformat(timespec="seconds")})


def shown(root: str) -> dict[str, str]:
    """The notes that say of a run that it was shown: URIs by run id."""
    uris = uris_below(layout.shown_runs(root))
    return {storage.name(uri).removeprefix("run_id=").removesuffix(".json"): uri for uri in uris}


def _notes(root: str) -> dict[str, list[str]]:
    """What says of each run that it was shown or delivered, or was tried to: URIs by run id."""
    found = defaultdict(list, {run_id: [uri] for run_id, uri in shown(root).items()})
    for uri in uris_below(layout.deliveries(root)):
        found[storage.name(storage.parent(uri)).removeprefix("run_id=")].append(uri)
    return found


def _was_seen(notes: Iterable[str], before: str) -> bool:
    for uri in notes:
        note = storage.read_json(uri)
        if note.get("state", "delivered") == "delivered" and note["at"] < before:
            return True
    return False


# --- Which archive ----------------------------------------------------------------------------------------------------


def archives_of(record: RunRecord) -> tuple[str, ...]:
    return (record.archive,) if isinstance(record.archive, str) else record.archive


def short_names(archives: Iterable[str]) -> dict[str, str]:
    """The last parts of each URI, as many as tell it from the others."""
    parts = {archive: archive.split("/") for archive in archives}
    names = {}
    for archive, own in parts.items():
        others = [other for other in parts if other != archive]
        lengths = (n for n in range(1, len(own)) if not any(parts[other][-n:] == own[-n:] for other in others))
        names[archive] = "/".join(own[-next(lengths, len(own)) :])
    return names


def _known_archive(out: str, records: Iterable[RunRecord], wanted: str) -> str:
    names = short_names({archive for record in records for archive in archives_of(record)})
    for archive, name in names.items():
        if wanted.rstrip("/") == name or storage.normalize(wanted) == archive:
            return archive
    raise InputError(f"{out} holds no finished run of the archive {wanted}: there are {', '.join(sorted(names))}.")


def archive_of(image_uri: str, archives: Sequence[str]) -> str:
    """The archive that an image was found in."""
    around = [archive for archive in archives if image_uri.startswith((f"{archive}/", f"{archive}!/"))]
    # What is below none of them was named by a manifest, or is one object.
    others = [archive for archive in archives if archive.lower().endswith((".csv", ".parquet", ".json"))]
    default = others[0] if len(others) == 1 else ", ".join(archives)
    return image_uri if image_uri in archives else max(around, key=len, default=default)


# --- What they hold ---------------------------------------------------------------------------------------------------


def committed_runs(out: str, store: Store = storage.DEFAULT) -> list[RunRecord]:
    """The commit records below `out`, a normal URI, oldest first. Raises InputError, and as `store` does."""
    folder = layout.runs(out)
    uris = [uri for uri in uris_below(folder, store) if storage.parent(uri) == folder and uri.endswith(".json")]
    records = in_parallel(lambda uri: read(RunRecord, uri, store), uris)
    return sorted(records, key=lambda record: (record.finished_at, record.planned_at))


def read_alerts(out: str, date: str | None = None, archive: str | None = None) -> pa.Table:
    """The alerts, `LISTED`, of the runs that `nights` chooses. Raises InputError and OSError."""
    table, archives = listed_alerts(out, nights(out, date, archive))
    ranks = pa.array(range(1, len(table) + 1), pa.int32())
    table = table.set_column(table.schema.get_field_index("rank"), LISTED.field("rank"), ranks)
    return table.append_column(LISTED.field("archive"), pa.array(archives, pa.string()))


def listed_alerts(out: str, chosen: Nights) -> tuple[pa.Table, list[str]]:
    """The alerts of some runs, `tables.ALERTS`, in the order of `tables.by_rank`, and the archive of each.

    An image that several of the runs have raised is there once, as the run has it that ranks it highest, and new where
    it was when the first of them raised it. Raises InputError and OSError.
    """
    root = storage.normalize(out)
    found = list(in_parallel(lambda record: alerts_of_run(root, record), chosen.runs))
    archives = [
        archive_of(uri, archives_of(record))
        for record, alerts in zip(chosen.runs, found, strict=True)
        for uri in alerts["image_uri"].to_pylist()
    ]
    table = pa.concat_tables(found)
    uris = table["image_uri"].to_pylist()
    best: dict[str, int] = {}
    for place in tables.by_rank(table).to_pylist():
        if chosen.archive in (None, archives[place]):
            best.setdefault(uris[place], place)
    first = {uri: place for place, uri in reversed(list(enumerate(uris)))}
    name = "first_raised"
    first_raised = table[name].take(_places([first[uri] for uri in best]))
    table = table.take(_places(best.values()))
    table = table.set_column(table.schema.get_field_index(name), table.schema.field(name), first_raised)
    return table, [archives[place] for place in best.values()]


def _places(rows: Iterable[int]) -> pa.Array:
    """int64. `pa.array` would import pandas, which takes longer than all the rest of `melanoma alerts`."""
    numbers = array.array("q", rows)
    return pa.Array.from_buffers(pa.int64(), len(numbers), [None, pa.py_buffer(numbers)])


def alerts_of_run(out: str, record: RunRecord, store: Store = storage.DEFAULT) -> pa.Table:
    """The alerts of a run, `tables.ALERTS`. Raises InputError, and as `store` does."""
    table = store.read_table(layout.alerts(out, record.run_date, record.run_id))
    return tables.of_run(table, tables.ALERTS, record.run_id, record.run_date)


def reject_reasons(out: str, record: RunRecord) -> list[Reason]:
    """Why files of a run were rejected, the most frequent reason first. Raises InputError and OSError."""
    root = storage.normalize(out)
    folder = layout.folder(root, "rejects", record.run_date, record.run_id)
    uris = uris_below(folder) if record.counts.rejected else []
    shards = in_parallel(lambda uri: storage.read_table(uri, ["image_uri", "error_kind", "error"]), uris)
    rows = (row for shard in shards for row in shard.to_pylist())
    return counted((row["error_kind"], row["error"] or "", row["image_uri"]) for row in rows)


def has_scored_nothing(out: str, record: RunRecord) -> bool:
    """Whether no image of these archives has been scored by the model of the run, in it or before. Raises OSError."""
    if record.counts.scored or not record.counts.listed:
        return False
    return not any(
        earlier.counts.scored
        for earlier in committed_runs(storage.normalize(out))
        if earlier.model_version == record.model_version and set(archives_of(earlier)) & set(archives_of(record))
    )


def uris_below(uri: str, store: Store = storage.DEFAULT) -> list[str]:
    """The URIs of the objects below `uri`; none where it does not exist."""
    try:
        return [info.uri for info in store.list_objects(uri)]
    except FileNotFoundError:
        return []


def in_parallel(read_one: Callable[[T], U], items: Iterable[T]) -> Iterator[U]:
    """What `read_one` returns of each item, in their order, some at a time."""
    with ThreadPoolExecutor(_READ_AT_ONCE) as pool:
        yield from pool.map(read_one, items)
