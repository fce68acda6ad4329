"""Locate: which images a run is to score, frozen as Parquet before it begins.

The shards are written first, and ``plan.json`` last: with it the plan is frozen. Millions of objects pass through here
as a stream. DuckDB sorts them, makes them unique and compares them with earlier runs; it uses the disk where its memory
ends.
"""

import contextlib
import itertools
import tempfile
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from melanoma import storage
from melanoma.errors import MelanomaError
from melanoma.imaging.errors import ErrorKind
from melanoma.scoring import layout, tar_and_zip
from melanoma.scoring.record import PlanDetails, RunHeader
from melanoma.scoring.record import read as read_record
from melanoma.storage import ObjectInfo, Store

_THREADS = 16
_MEMORY = "512MB"
_DATABASE_THREADS = 4  # each takes its part of the memory: with 32 of them it does not suffice
_ROWS_AT_ONCE = 50_000
_MEMBERS_AT_ONCE = 5_000  # of each archive that is read

# An image to score: an object, or a member of a tar or zip with the ETag of its archive.
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
class PlannedImage:
    """A row of a shard, `SHARD`: an object, or a member of a tar or zip."""

    image_uri: str
    size: int
    etag: str = ""  # of an archive, for its member
    archive: str | None = None  # URI, of a member; the fields below are then as in `tar_and_zip.Member`
    offset: int = 0
    length: int = 0
    is_zip: bool = False
    checksum: int | None = None
    error_kind: ErrorKind | None = None
    refused: str | None = None
    tried: bool = False


def planned_images(shard: pa.Table) -> list[PlannedImage]:
    """The rows of a shard, as this version of the program or an earlier one has written it."""
    rows = storage.completed(shard, SHARD).to_pylist()
    return [PlannedImage(**{name: value for name, value in row.items() if value is not None}) for row in rows]


@dataclass(frozen=True)
class Plan:
    """What a run is to score, and where its files lie."""

    out: str
    run_id: str
    details: PlanDetails

    @property
    def run_date(self) -> str:
        return self.details.run_date

    @property
    def images(self) -> int:
        return self.details.images

    @property
    def shards(self) -> range:
        return range(self.details.shards)

    def uri(self, shard: int) -> str:
        """The planned images of a shard, `SHARD`."""
        return layout.planned_shard(self.out, self.run_id, self.details.attempt, shard)

    def begun_uri(self, shard: int) -> str:
        """Says that a shard was begun, and not ended yet: see `melanoma.scoring.begun`."""
        return layout.begun_shard(self.out, self.run_id, self.details.attempt, shard)

    def folder(self, kind: str) -> str:
        """The folder of the run's scores, rejects, alerts or explanations."""
        return layout.folder(self.out, kind, self.run_date, self.run_id)

    def result_uri(self, kind: str, shard: int) -> str:
        """The scores or rejects of a shard."""
        return layout.result_shard(self.out, kind, self.run_date, self.run_id, shard)

    def images_of(self, shard: int) -> int:
        size = self.details.shard_size
        return min(size, self.images - shard * size)


def read(out: str, run_id: str, store: Store = storage.DEFAULT) -> Plan | None:
    """The plan of a run, or None where it is not frozen. Raises InputError, and as `store` does."""
    uri = layout.plan(out, run_id)
    return Plan(out, run_id, read_record(PlanDetails, uri, store)) if store.exists(uri) else None


@dataclass(frozen=True)
class Done:
    """A committed run of the same model: what it was to score, and which of its rejects are tried again."""

    run_id: str
    plan_uris: Sequence[str]
    retried_kinds: Sequence[str]  # of its rejects
    reject_uris: Sequence[str]  # of its shards with rejects of these kinds; none where there are none


class NothingToScoreError(Exception):
    """Earlier runs have done all that is listed."""


def freeze(
    out: str,
    run_id: str,
    header: RunHeader,
    listed: Iterable[ObjectInfo],
    done: Sequence[Done],
    shard_size: Callable[[int], int],
    confirm_held: Callable[[], None] = lambda: None,
    store: Store = storage.DEFAULT,
    may_be_empty: bool = True,
    limit: int | None = None,
) -> Plan:
    """Write the plan of a run: what is listed, each object once, less what earlier runs have done.

    Args:
        out: Normal URI of the output.
        run_id: Name of the run.
        header: What is known of the run before its archive is listed.
        listed: Objects of the archives, in any order; one may come twice.
        done: Earlier runs of the same model. An object is the one that was done if its URI, size and ETag are the same.
        shard_size: Gives the images a shard, at least 1, of the number of images.
        confirm_held: Called before the plan is frozen; raises where another driver has the lease.
        store: Reads the directories of archives and what earlier runs have left, and writes the plan.
        may_be_empty: Whether a plan without any image is written, too.
        limit: Images at most; what is left out is for a later run. None: all.

    Returns:
        The frozen plan.

    Raises:
        NothingToScoreError: There is no image, and the plan may not be empty.
        MelanomaError: The database failed, or another driver has the lease.
        UnavailableError: The store does not answer.
        OSError: The output cannot be read or written.
    """
    attempt = uuid.uuid4().hex[:8]
    with _planned(listed, done, store) as database:
        found = _count(database)
        if not found.images and not may_be_empty:
            raise NothingToScoreError
        if limit is not None and limit < found.images:
            database.execute(_LIMITED, [limit])
        images, _, untried = database.execute(_COUNTED).fetchall()[0]
        size = shard_size(images) if images else 1
        rows = database.table("planned").project(", ".join(map(_quoted, SHARD.names))).order(_ORDER)
        tables = _in_shards(rows.to_arrow_reader(_ROWS_AT_ONCE), size)
        shards = _write(out, run_id, attempt, tables, store)
    details = PlanDetails(
        **header.to_json(),
        listed=found.listed,
        done_before=found.listed - found.images,
        images=images,
        left_out=found.images - images,
        untried=untried,
        shards=shards,
        shard_size=size,
        attempt=attempt,
    )
    confirm_held()
    store.write_json(layout.plan(out, run_id), details.to_json())
    return Plan(out, run_id, details)


@dataclass(frozen=True)
class Counted:
    """What a run would score: objects that are listed, each once; `images`, those of them that no earlier run has done,
    and their bytes, where they are known."""

    listed: int
    images: int
    bytes: int


def count(listed: Iterable[ObjectInfo], done: Sequence[Done], store: Store = storage.DEFAULT) -> Counted:
    """What a plan would hold; nothing is written. `listed`, `done` and what is raised are as of `freeze`."""
    with _planned(listed, done, store) as database:
        return _count(database)


@contextlib.contextmanager
def _planned(listed: Iterable[ObjectInfo], done: Sequence[Done], store: Store) -> Iterator[duckdb.DuckDBPyConnection]:
    """A database with the table `planned`: what is listed, each object once, less what earlier runs have done."""
    with tempfile.TemporaryDirectory() as folder:
        _stage(listed, Path(folder))
        _fetch_done(done, Path(folder), store)
        try:
            with _database(Path(folder), done) as database:
                _find_members(database, Path(folder), store)
                database.execute(_PLANNED)
                yield database
        except duckdb.Error as error:
            raise MelanomaError(f"The plan of the run failed in {folder}: {error}") from None


def _count(database: duckdb.DuckDBPyConnection) -> Counted:
    images, size, _ = database.execute(_COUNTED).fetchall()[0]
    ((distinct,),) = database.execute("SELECT count(DISTINCT image_uri) FROM listed").fetchall()
    return Counted(distinct, images, size)


def _quoted(name: str) -> str:
    return f'"{name}"'


def _stage(listed: Iterable[ObjectInfo], folder: Path) -> None:
    """Write objects to listed.parquet, and tars and zips, whose members count instead, to archives.parquet."""
    infos = iter(listed)
    with (
        pq.ParquetWriter(folder / "listed.parquet", _LISTED) as objects,
        pq.ParquetWriter(folder / "archives.parquet", _LISTED) as archives,
    ):
        while some := list(itertools.islice(infos, _ROWS_AT_ONCE)):
            for writer, is_archive in ((objects, False), (archives, True)):
                rows = [
                    {"image_uri": info.uri, "size": info.size, "etag": info.etag}
                    for info in some
                    if tar_and_zip.is_archive(info.uri) is is_archive
                ]
                writer.write_table(pa.Table.from_pylist(rows, schema=_LISTED))


def _find_members(database: duckdb.DuckDBPyConnection, folder: Path, store: Store) -> None:
    """Give the database a view of the members of archives that no earlier run has read."""
    infos = [ObjectInfo(*row) for row in database.execute(_NEW_ARCHIVES).fetchall()]
    with pq.ParquetWriter(folder / "members.parquet", _LISTED) as writer, ThreadPoolExecutor(_THREADS) as pool:
        for first in range(0, len(infos), _THREADS):
            some = infos[first : first + _THREADS]
            paths = [folder / f"members-{number}.parquet" for number in range(len(some))]
            for path in pool.map(lambda info, path: _write_members(info, path, store), some, paths):
                with pq.ParquetFile(path) as members:
                    for batch in members.iter_batches(_MEMBERS_AT_ONCE):
                        writer.write_batch(batch)
                path.unlink()
    database.read_parquet(str(folder / "members.parquet")).create_view("members")


def _write_members(info: ObjectInfo, path: Path, store: Store) -> Path:
    """Write the members of an archive, `_LISTED`, to a file, which is returned; or the archive itself, refused, where
    it cannot be read."""
    archive = {"etag": info.etag, "archive": info.uri}
    try:
        with (
            contextlib.closing(tar_and_zip.members(info, store)) as found,
            pq.ParquetWriter(path, _LISTED) as writer,
        ):
            while some := list(itertools.islice(found, _MEMBERS_AT_ONCE)):
                rows = [{**vars(member), **archive, "image_uri": member.uri} for member in some]
                writer.write_table(pa.Table.from_pylist(rows, schema=_LISTED))
    except OSError as error:
        # Without `archive` in its row, so that the next run looks for its members again.
        refused = {"image_uri": info.uri, "size": 0, "etag": info.etag, "error_kind": "access", "refused": str(error)}
        pq.write_table(pa.Table.from_pylist([refused], schema=_LISTED), path)
    return path


def _fetch_done(done: Sequence[Done], folder: Path, store: Store) -> None:
    """Copy what earlier runs have written to where DuckDB finds it."""
    copies: list[tuple[str, Path]] = []
    for number, run in enumerate(done):
        for kind, uris in (("plans", run.plan_uris), ("rejects", run.reject_uris)):
            place = folder / kind / f"run={number}"
            place.mkdir(parents=True)
            copies += [(uri, place / storage.name(uri)) for uri in uris]
    # Earlier versions of this program wrote fewer columns: these empty tables have all.
    for kind, schema in (("plans", SHARD), ("rejects", _REJECTS)):
        (folder / kind / "run=-1").mkdir(parents=True)
        pq.write_table(schema.empty_table(), folder / kind / "run=-1" / "empty.parquet")
    with ThreadPoolExecutor(_THREADS) as pool:
        for _ in pool.map(lambda copy: copy[1].write_bytes(store.read_bytes(copy[0])), copies):
            pass


# Archives whose members an earlier run has found, by a version of this program that reads as much as this one.
_READ_ARCHIVES = """
    CREATE VIEW read_archives AS
        SELECT plans.* FROM plans
        SEMI JOIN (SELECT image_uri AS archive, etag FROM archives WHERE etag <> '') USING (archive, etag)
        ANTI JOIN (SELECT run FROM retried_kinds WHERE error_kind = 'unsupported') USING (run)
"""
_NEW_ARCHIVES = """
    SELECT DISTINCT image_uri, size, etag FROM archives
    ANTI JOIN (SELECT archive AS image_uri, etag FROM read_archives) USING (image_uri, etag)
"""
# Two manifests may name one object with different details, one of them outdated.
_PLANNED = """
    CREATE VIEW listed AS
        FROM objects UNION ALL BY NAME FROM members UNION ALL BY NAME
        SELECT DISTINCT * EXCLUDE (run, tried) FROM read_archives;
    CREATE VIEW retried AS SELECT run, image_uri FROM rejects SEMI JOIN retried_kinds USING (run, error_kind);
    CREATE VIEW known AS
        SELECT image_uri, etag, size FROM plans ANTI JOIN retried USING (run, image_uri) WHERE etag <> '';
    CREATE TABLE planned AS
        SELECT unnest(any_value(listed)), image_uri IN (SELECT image_uri FROM retried) AS tried
        FROM listed ANTI JOIN known USING (image_uri, etag, size) GROUP BY image_uri;
"""
_COUNTED = "SELECT count(*), coalesce(sum(size), 0)::BIGINT, count(*) FILTER (NOT tried) FROM planned"
# Members in the order in which they lie in their archive: neighbours are then fetched in one request.
_ORDER = 'coalesce(archive, image_uri), "offset", image_uri'
_LIMITED = f"CREATE OR REPLACE TABLE planned AS FROM planned ORDER BY {_ORDER} LIMIT ?"


def _database(folder: Path, done: Sequence[Done]) -> duckdb.DuckDBPyConnection:
    """A database over the files in the folder, with the tables that _PLANNED reads."""
    database = duckdb.connect(str(folder / "plan.duckdb"))
    database.execute(f"SET memory_limit = '{_MEMORY}'; SET temp_directory = '{folder}/spilled'")
    database.execute(f"SET threads = {_DATABASE_THREADS}; SET preserve_insertion_order = false")
    # In Jupyter without ipywidgets there is no bar, and DuckDB refuses to switch it off.
    if database.execute("SELECT current_setting('enable_progress_bar')").fetchall() == [(True,)]:
        database.execute("SET enable_progress_bar = false")
    database.execute("CREATE TABLE retried_kinds (run BIGINT, error_kind VARCHAR)")
    for number, run in enumerate(done):
        for kind in run.retried_kinds:
            database.execute("INSERT INTO retried_kinds VALUES (?, ?)", [number, kind])
    database.read_parquet(str(folder / "listed.parquet")).create_view("objects")
    database.read_parquet(str(folder / "archives.parquet")).create_view("archives")
    for kind in ("plans", "rejects"):
        every = database.read_parquet(f"{folder}/{kind}/*/*.parquet", hive_partitioning=True, union_by_name=True)
        every.create_view(kind)
    database.execute(_READ_ARCHIVES)
    return database


def _write(out: str, run_id: str, attempt: str, tables: Iterator[pa.Table], store: Store) -> int:
    """Write the shards, some at a time.

    Args:
        out: Normal URI of the output.
        run_id: Name of the run.
        attempt: Keeps the shards of two drivers apart.
        tables: The shards, `SHARD`.
        store: Writes them.

    Returns:
        How many there are.

    Raises:
        UnavailableError: The store does not answer.
        OSError: The output cannot be written.
    """
    numbers = itertools.count()
    with ThreadPoolExecutor(_THREADS) as pool:
        while some := list(itertools.islice(tables, _THREADS)):
            uris = [layout.planned_shard(out, run_id, attempt, next(numbers)) for _ in some]
            list(pool.map(store.write_table, uris, some))
    return next(numbers)


def _in_shards(batches: Iterable[pa.RecordBatch], size: int) -> Iterator[pa.Table]:
    """Tables of `size` rows, the last with the rest, however long the batches are."""
    held = SHARD.empty_table()
    for batch in batches:
        held = pa.concat_tables([held, pa.Table.from_batches([batch]).cast(SHARD)])
        while len(held) >= size:
            yield held.slice(0, size).combine_chunks()
            held = held.slice(size)
    if len(held):
        yield held
