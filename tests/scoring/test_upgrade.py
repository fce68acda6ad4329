"""What cluster/README.md promises of an upgrade and of a roll back: columns are added, and none is removed or retyped;
and what a later version adds to results stops none of the readers of this one."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import duckdb
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from melanoma import storage
from melanoma.scoring import channels, deliver, plan, results, status, tables
from melanoma.scoring.config import DeliveryConfig
from melanoma.scoring.record import RunRecord, moment, read
from melanoma.scoring.run import Outcome
from tests.scoring import test_earlier_version as earlier
from tests.support.receiver import receiving

DATA = earlier.DATA
SCHEMAS = {"scores": tables.SCORES, "rejects": tables.REJECTS, "alerts": tables.ALERTS, "plans": plan.SHARD}
PROMISED = Path(__file__).parent / "data" / "columns.json"
ADDED = "added_later"
out, score_archive = earlier.out, earlier.score_archive


def types(schema: pa.Schema) -> dict[str, str]:
    """The types of columns as readers see them: a dictionary is a way to write strings, and what a file calls an
    element Arrow calls an item."""
    seen = {field.name: field.type.value_type if pa.types.is_dictionary(field.type) else field.type for field in schema}
    return {name: str(type_).replace("list<element:", "list<item:") for name, type_ in seen.items()}


def make_later(folder: Path) -> None:
    """Results become those of a version that is later than this one: all its columns, and one and a key more."""
    for path in folder.rglob("*.parquet"):
        schema = SCHEMAS[path.relative_to(folder).parts[0]]
        table = storage.completed(pq.ParquetFile(path).read(), schema)
        table = table.drop_columns([name for name in ("run_id", "run_date") if name in schema.names])
        storage.write_table(str(path), table.append_column(ADDED, pa.array([1.5] * len(table), pa.float64())))
    for path in folder.rglob("*.json"):
        path.write_text(json.dumps(json.loads(path.read_text()) | {ADDED: {"of": "a later version"}}))


@pytest.fixture(params=["of an earlier version", "of a later version"])
def written(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Results that another version has written; one run of two is committed."""
    shutil.copytree(DATA, tmp_path / "out")
    if request.param == "of a later version":
        make_later(tmp_path / "out")
    return tmp_path / "out"


# --- Columns ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", SCHEMAS)
def test_a_column_is_never_removed_or_retyped(kind: str) -> None:
    """A new column is to be added to the file of what is promised. Nothing may be taken from it."""
    assert types(SCHEMAS[kind]) == json.loads(PROMISED.read_text())[kind]


@pytest.mark.parametrize("kind", SCHEMAS)
def test_each_column_of_an_earlier_version_is_there_with_its_type(kind: str) -> None:
    files = list((DATA / kind).rglob("*.parquet"))
    assert files
    for path in files:
        before = types(pq.read_schema(path))
        assert before.items() <= types(SCHEMAS[kind]).items()


def test_what_a_reader_of_the_earlier_columns_asks_for_is_in_the_files_of_today(tmp_path: Path) -> None:
    """`run_id` and `run_date` come from the names of the folders since."""
    for kind in ("scores", "rejects", "alerts"):
        (path,) = (DATA / kind).rglob("run_id=finished/*.parquet")
        before = pq.read_schema(path).names
        today = storage.completed(pq.ParquetFile(path).read(), SCHEMAS[kind])
        place = tmp_path / path.relative_to(DATA)
        storage.write_table(str(place), tables.in_file(today))
        table = pd.read_parquet(tmp_path / kind, columns=before)
        assert list(table.columns) == before
        assert set(table["run_id"].astype(str)) <= {"finished"}


# --- Readers ----------------------------------------------------------------------------------------------------------


def test_status_reads_it(written: Path) -> None:
    record = read(RunRecord, str(DATA / earlier.RECORD))
    found = status.look(str(written), at=moment(record.finished_at))
    assert [night.record.run_id for night in found.nights] == ["finished"]
    assert found.nights[0].record.counts == record.counts


def test_alerts_and_rejects_are_read(written: Path) -> None:
    (row,) = results.read_alerts(str(written)).to_pylist()
    (before,) = earlier.rows(DATA, "alerts/*/*/*.parquet")
    assert {name: row[name] for name in before} == before
    (record,) = results.committed_records(str(written))
    assert sorted(reason.error_kind for reason in results.reject_reasons(str(written), record)) == [
        "not_an_image",
        "not_found",
    ]


def test_alerts_are_delivered(written: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(channels.SECRET, "whsec_MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3")
    (before,) = earlier.rows(DATA, "alerts/*/*/*.parquet")
    with receiving() as receiver:
        settings = DeliveryConfig(webhook=receiver.url)
        assert deliver.deliver(str(written), settings, say=lambda line: None) == 1
        make_later(written)  # and so its note that the alerts were delivered
        assert deliver.deliver(str(written), settings, say=lambda line: None) == 0
    ((_, body),) = receiver.acknowledged
    assert [alert["image_uri"] for alert in json.loads(body)["alerts"]] == [before["image_uri"]]


def test_a_night_that_a_later_version_began_is_finished(out: Path, score_archive: Callable[..., Outcome]) -> None:
    """What it did is not done again, also where its reject is of a kind that this version does not know."""
    make_later(out)
    scored, rejected = (
        next(out.glob(f"{kind}/*/run_id=cut-off/shard-00000.parquet")) for kind in ("scores", "rejects")
    )
    scores, rejects = (pq.ParquetFile(path).read() for path in (scored, rejected))
    reject = {"image_uri": scores["image_uri"][0].as_py(), "error_kind": "of_later", "error": "New.", ADDED: 1.5}
    storage.write_table(str(scored), scores.slice(1))
    storage.write_table(str(rejected), pa.Table.from_pylist([reject], schema=rejects.schema))
    before = scored.read_bytes()
    record = score_archive(run_date="2026-11-19").record
    assert (record.run_id, record.counts.done_before, record.counts.scored) == ("cut-off", 5, 1)
    assert record.counts.rejects_by_kind == {"not_found": 1, "of_later": 1}
    assert scored.read_bytes() == before
    assert "of_later" in (out / "runs" / "run_id=cut-off" / "run.html").read_text()
    assert json.loads((out / "runs" / "run_id=cut-off.json").read_text())[ADDED] == {"of": "a later version"}
    assert status.look(str(out), at=moment(record.finished_at)).nights[-1].record.counts == record.counts


def test_the_night_after_a_roll_back_knows_what_was_done(out: Path, score_archive: Callable[..., Outcome]) -> None:
    shutil.rmtree(out / "runs" / "run_id=cut-off")
    make_later(out)
    counts = score_archive(run_date="2026-11-20", run_id="next", max_access_share=1).record.counts
    # Done are four scores of six images; the other two, a text and one that is gone, are tried again.
    assert (counts.listed, counts.done_before) == (8, 4)


def test_a_column_that_only_some_nights_have_is_read_where_readers_are_told_so(written: Path) -> None:
    """As cluster/README.md says: pandas and pyarrow have the columns of the first file, unless a schema is given, and
    DuckDB refuses a file that lacks one of them."""
    night = written / "scores" / "run_date=2026-11-18"
    shutil.copytree(night, written / "scores" / "run_date=2026-11-17")
    for path in night.rglob("*.parquet"):
        table = pq.ParquetFile(path).read()
        storage.write_table(str(path), table.append_column("new", pa.array([2.5] * len(table), pa.float64())))
    assert "new" not in pd.read_parquet(written / "scores").columns
    schema = pa.schema([("image_uri", pa.string()), ("new", pa.float64())])
    given = pq.read_table(written / "scores", schema=schema)["new"]
    with duckdb.connect() as database:
        files = database.read_parquet(f"{written}/scores/*/*/*.parquet", hive_partitioning=True, union_by_name=True)
        union = [value for (value,) in files.project("new").fetchall()]
        for values in (given.to_pylist(), union):
            assert (values.count(2.5), values.count(None)) == (4, 6)
        shutil.rmtree(written / "scores" / "run_date=2026-11-17")
        with pytest.raises(duckdb.InvalidInputException, match="schema mismatch"):
            database.read_parquet(f"{written}/scores/*/*/*.parquet").project("new").fetchall()
