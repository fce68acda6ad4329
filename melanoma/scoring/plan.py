"""Locate: which images a run is to score, frozen as Parquet before it begins.

    plans/run_id=ID/ATTEMPT/shard-00000.parquet   the objects of one shard, in order of URI
    runs/run_id=ID/plan.json                      how it was made and of what shards: with it the plan is frozen

Millions of objects pass through here as a stream; what has to be sorted, made unique and compared with earlier nights
is done by DuckDB, which takes the disk where its memory ends.
"""

import itertools
import tempfile
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from melanoma import storage
from melanoma.errors import MelanomaError
from melanoma.scoring import tar_and_zip
from melanoma.storage import ObjectInfo, Store

_THREADS = 16
_MEMORY = "512MB"
_DATABASE_THREADS = 4  # each takes its part of the memory: with 32 of them it does not suffice
_STAGED_TOGETHER = 50_000

# An image to score: an object, or a member of a tar or zip, whose ETag is that of its archive.
_LISTED = pa.schema(
    [
        ("image_uri", pa.string()),
        ("size", pa.int64()),
        ("etag", pa.string()),
        ("archive", pa.string()),  # null for an object; the others are as in `melanoma.scoring.tar_and_zip.Member`
        ("offset", pa.int64()),
        ("length", pa.int64()),
        ("is_zip", pa.bool_()),
        ("checksum", pa.int64()),
        ("error_kind", pa.string()),
        ("refused", pa.string()),
    ]
)
SHARD = _LISTED.append(pa.field("tried", pa.bool_()))  # an earlier run could not fetch it
_REJECTS = pa.schema([("image_uri", pa.string()), ("error_kind", pa.string())])


@dataclass(frozen=True)
class Plan:
    """What a run is to score. `about`: what its maker says of it, with `listed`, `done_before`, `images`, `untried`
    (images of which no earlier run has said that it could not fetch them), `shards`, `shard_size` and `attempt`, which
    keeps the shards of two drivers apart."""

    out: str
    run_id: str
    about: dict[str, Any]

    @property
    def run_date(self) -> str:
        return str(self.about["run_date"])

    @property
    def images(self) -> int:
        return int(self.about["images"])

    @property
    def shards(self) -> range:
        return range(self.about["shards"])

    def uri(self, shard: int) -> str:
        return _shard_uri(self.out, self.run_id, self.about["attempt"], shard)

    def folder(self, kind: str) -> str:
        """Where the run's scores, rejects or alerts lie."""
        return folder(self.out, kind, self.run_date, self.run_id)

    def result_uri(self, kind: str, shard: int) -> str:
        return storage.join(self.folder(kind), f"shard-{shard:05d}.parquet")

    def images_of(self, shard: int) -> int:
        size = int(self.about["shard_size"])
        return min(size, self.images - shard * size)


def folder(out: str, kind: str, run_date: str, run_id: str) -> str:
    return storage.join(out, kind, f"run_date={run_date}", f"run_id={run_id}")


def _about_uri(out: str, run_id: str) -> str:
    return storage.join(out, "runs", f"run_id={run_id}", "plan.json")


def _shard_uri(out: str, run_id: str, attempt: str, shard: int) -> str:
    return storage.join(out, "plans", f"run_id={run_id}", attempt, f"shard-{shard:05d}.parquet")


def read(out: str, run_id: str) -> Plan | None:
    """The plan of a run, or None where it is not frozen. Raises OSError."""
    uri = _about_uri(out, run_id)
    return Plan(out, run_id, storage.read_json(uri)) if storage.exists(uri) else None


@dataclass(frozen=True)
class Done:
    """A committed run of the same model: what it was to score, and what of it is to be tried again."""

    run_id: str
    plan_uris: Sequence[str]
    again: Sequence[str]  # kinds of its rejects
    reject_uris: Sequence[str]  # of its shards with rejects of these kinds; none where there are none


def freeze(
    out: str,
    run_id: str,
    about: Mapping[str, Any],
    listed: Iterable[ObjectInfo],
    done: Sequence[Done],
    shard_size: Callable[[int], int],
    check: Callable[[], None] = lambda: None,
    patience: float = 0,
) -> Plan:
    """Write the plan of a run: what is listed, each object once, less what the runs of `done` have done.

    An object is the one that was done if URI, size and ETag are the same. `shard_size` gives the images a shard of
    their number, `check` is called before the plan is frozen; for `patience` seconds a store that does not answer is
    asked again for the directory of an archive. Raises MelanomaError and OSError.
    """
    attempt = uuid.uuid4().hex[:8]
    with tempfile.TemporaryDirectory() as folder:
        _stage(listed, Path(folder))
        _fetch_done(done, Path(folder))
        try:
            with _open(Path(folder), done) as database:
                new = [ObjectInfo(*row) for row in database.execute(_NEW_ARCHIVES).fetchall()]
                with pq.ParquetWriter(Path(folder) / "members.parquet", _LISTED) as writer:
                    for table in _members(new, Store(patience)):
                        writer.write_table(table)
                database.read_parquet(str(Path(folder) / "members.parquet")).create_view("members")
                database.execute(_PLANNED)
                distinct, images, untried = database.execute(_COUNTED).fetchall()[0]
                size = shard_size(images) if images else 1
                # Members in the order in which they lie in their archive, so that neighbours are fetched together.
                rows = database.table("planned").project(", ".join(map(_quoted, SHARD.names)))
                rows = rows.order('coalesce(archive, image_uri), "offset", image_uri')
                shards = _write(out, run_id, attempt, _in_shards(rows.to_arrow_reader(_STAGED_TOGETHER), size))
        except duckdb.Error as error:
            raise MelanomaError(f"The plan of the run {run_id} failed in {folder}: {error}") from None
    counts = {"listed": distinct, "done_before": distinct - images, "images": images, "untried": untried}
    plan = Plan(out, run_id, {**about, **counts, "shards": shards, "shard_size": size, "attempt": attempt})
    check()
    storage.write_json(_about_uri(out, run_id), plan.about)
    return plan


def _quoted(name: str) -> str:
    return f'"{name}"'


def _stage(listed: Iterable[ObjectInfo], folder: Path) -> None:
    """Objects in listed.parquet; tars and zips, whose members count instead, in archives.parquet."""
    infos = iter(listed)
    with (
        pq.ParquetWriter(folder / "listed.parquet", _LISTED) as objects,
        pq.ParquetWriter(folder / "archives.parquet", _LISTED) as archives,
    ):
        while some := list(itertools.islice(infos, _STAGED_TOGETHER)):
            for writer, is_archive in ((objects, False), (archives, True)):
                rows = [
                    {"image_uri": info.uri, "size": info.size, "etag": info.etag}
                    for info in some
                    if tar_and_zip.is_archive(info.uri) is is_archive
                ]
                writer.write_table(pa.Table.from_pylist(rows, schema=_LISTED))


def _members(infos: Sequence[ObjectInfo], store: Store) -> Iterator[pa.Table]:
    """The members of archives, some archives at a time."""

    def rows(info: ObjectInfo) -> pa.Table:
        found = tar_and_zip.members(info, store)
        tables = [_LISTED.empty_table()]
        try:
            while some := list(itertools.islice(found, _STAGED_TOGETHER)):
                own = {"etag": info.etag, "archive": info.uri}
                rows = [{**vars(member), **own, "image_uri": member.uri} for member in some]
                tables.append(pa.Table.from_pylist(rows, schema=_LISTED))
        except storage.UnavailableError:
            raise
        except OSError as error:
            # Without `archive` in its row: its members are looked for again the next night.
            refused = {"image_uri": info.uri, "size": 0, "etag": info.etag}
            return pa.Table.from_pylist([{**refused, "error_kind": "access", "refused": str(error)}], schema=_LISTED)
        return pa.concat_tables(tables)

    with ThreadPoolExecutor(_THREADS) as pool:
        for first in range(0, len(infos), _THREADS):
            yield from pool.map(rows, infos[first : first + _THREADS])


def _fetch_done(done: Sequence[Done], folder: Path) -> None:
    """Copies of what earlier runs have written, where DuckDB finds them."""
    copies: list[tuple[str, Path]] = []
    for number, run in enumerate(done):
        for kind, uris in (("plans", run.plan_uris), ("rejects", run.reject_uris)):
            place = folder / kind / f"run={number}"
            place.mkdir(parents=True)
            copies += [(uri, place / storage.name(uri)) for uri in uris]
    # Earlier versions of this program wrote fewer columns: here are all.
    for kind, schema in (("plans", SHARD), ("rejects", _REJECTS)):
        (folder / kind / "run=-1").mkdir(parents=True)
        pq.write_table(schema.empty_table(), folder / kind / "run=-1" / "empty.parquet")
    with ThreadPoolExecutor(_THREADS) as pool:
        for _ in pool.map(lambda copy: copy[1].write_bytes(storage.read_bytes(copy[0])), copies):
            pass


# Whose members earlier runs have found, by a version of this program that reads as much as this one.
_READ_ARCHIVES = """
    CREATE VIEW read_archives AS
        SELECT plans.* FROM plans
        SEMI JOIN (SELECT image_uri AS archive, etag FROM archives WHERE etag <> '') USING (archive, etag)
        ANTI JOIN (SELECT run FROM again WHERE error_kind = 'unsupported') USING (run)
"""
_NEW_ARCHIVES = """
    SELECT DISTINCT image_uri, size, etag FROM archives
    ANTI JOIN (SELECT archive AS image_uri, etag FROM read_archives) USING (image_uri, etag)
"""
# Two archives may hold one object, and say different things of it, one of them outdated.
_PLANNED = """
    CREATE VIEW listed AS
        FROM objects UNION ALL BY NAME FROM members UNION ALL BY NAME
        SELECT DISTINCT * EXCLUDE (run, tried) FROM read_archives;
    CREATE VIEW retried AS SELECT run, image_uri FROM rejects SEMI JOIN again USING (run, error_kind);
    CREATE VIEW known AS
        SELECT image_uri, etag, size FROM plans ANTI JOIN retried USING (run, image_uri) WHERE etag <> '';
    CREATE TABLE planned AS
        SELECT unnest(any_value(listed)), image_uri IN (SELECT image_uri FROM retried) AS tried
        FROM listed ANTI JOIN known USING (image_uri, etag, size) GROUP BY image_uri;
"""
_COUNTED = """
    SELECT (SELECT count(DISTINCT image_uri) FROM listed), count(*), count(*) FILTER (NOT tried) FROM planned
"""


def _open(folder: Path, done: Sequence[Done]) -> duckdb.DuckDBPyConnection:
    """A database with the tables that _PLANNED reads, of the files that are in the folder."""
    database = duckdb.connect(str(folder / "plan.duckdb"))
    database.execute(f"SET memory_limit = '{_MEMORY}'; SET temp_directory = '{folder}/spilled'")
    database.execute(f"SET threads = {_DATABASE_THREADS}; SET preserve_insertion_order = false")
    database.execute("SET enable_progress_bar = false")
    database.execute("CREATE TABLE again (run BIGINT, error_kind VARCHAR)")
    for number, run in enumerate(done):
        for kind in run.again:
            database.execute("INSERT INTO again VALUES (?, ?)", [number, kind])
    database.read_parquet(str(folder / "listed.parquet")).create_view("objects")
    database.read_parquet(str(folder / "archives.parquet")).create_view("archives")
    for kind in ("plans", "rejects"):
        every = database.read_parquet(f"{folder}/{kind}/*/*.parquet", hive_partitioning=True, union_by_name=True)
        every.create_view(kind)
    database.execute(_READ_ARCHIVES)
    return database


def _write(out: str, run_id: str, attempt: str, tables: Iterator[pa.Table]) -> int:
    """Write the shards, some at a time; returns how many there are."""
    numbers = itertools.count()
    with ThreadPoolExecutor(_THREADS) as pool:
        while some := list(itertools.islice(tables, _THREADS)):
            uris = [_shard_uri(out, run_id, attempt, next(numbers)) for _ in some]
            list(pool.map(storage.write_table, uris, some))
    return next(numbers)


def _in_shards(batches: Iterable[pa.RecordBatch], size: int) -> Iterator[pa.Table]:
    """Tables of `size` rows, but for the last; however long the batches are."""
    held = SHARD.empty_table()
    for batch in batches:
        held = pa.concat_tables([held, pa.Table.from_batches([batch]).cast(SHARD)])
        while len(held) >= size:
            yield held.slice(0, size).combine_chunks()
            held = held.slice(size)
    if len(held):
        yield held
