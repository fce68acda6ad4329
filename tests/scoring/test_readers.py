"""What analysts read results with sees the nights of an output as one table."""

import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import duckdb
import pandas as pd
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

from melanoma import config
from melanoma.scoring import tables
from melanoma.scoring.config import ScoreConfig
from melanoma.scoring.run import score
from tests.support.in_this_process import scored_in_this_process

BEFORE = Path(__file__).parent / "data" / "before"
SCHEMAS = {"scores": tables.SCORES, "rejects": tables.REJECTS, "alerts": tables.ALERTS}
KINDS = list(SCHEMAS)
NIGHTS = {"2026-11-18": 3, "2026-11-19": 1, "2026-11-20": 2}  # images that are new on each


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory, lesion: Callable[..., bytes], bundle_path: Path) -> Path:
    """Three nights, each with images that cannot be read as well; on the second there is no alert."""
    folder = tmp_path_factory.mktemp("nights")
    (folder / "archive").mkdir()
    for night, (date, number) in enumerate(NIGHTS.items()):
        for seed in range(number):
            (folder / "archive" / f"{date}-{seed}.jpg").write_bytes(lesion("MEL", seed=10 * night + seed))
        (folder / "archive" / f"{date}.jpg").write_bytes(b"no image")
        places = {"archive": str(folder / "archive"), "out": str(folder / "out"), "bundle": str(bundle_path)}
        with scored_in_this_process():
            score(config.load(ScoreConfig, None, **places, run_date=date, workers=1), say=lambda _: None)
    return folder / "out"


def columns(kind: str) -> list[str]:
    return list(SCHEMAS[kind].names)


def rows(kind: str, out: Path) -> dict[str, int]:
    """How many rows of each night there are, by the names of the folders."""
    counted: Counter[str] = Counter()
    for path in out.glob(f"{kind}/*/*/*.parquet"):
        counted[path.parts[-3].removeprefix("run_date=")] += pq.ParquetFile(path).metadata.num_rows
    return dict(+counted)


def arrow_counts(table: pa.Table) -> dict[str, int]:
    return dict(Counter(table["run_date"].to_pylist()))


@pytest.fixture(scope="module", params=["these nights", "with a night of the version before"])
def nights(request: pytest.FixtureRequest, out: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    if request.param == "these nights":
        return out
    both = tmp_path_factory.mktemp("both") / "out"
    shutil.copytree(out, both)
    for kind in KINDS:
        shutil.copytree(BEFORE / kind, both / kind, dirs_exist_ok=True)
    return both


def test_the_nights_are_there(out: Path) -> None:
    assert rows("scores", out) == NIGHTS
    assert rows("rejects", out) == dict.fromkeys(NIGHTS, 1)


@pytest.mark.parametrize("kind", KINDS)
def test_pandas(nights: Path, kind: str) -> None:
    table = pd.read_parquet(nights / kind)
    assert set(table.columns) == set(columns(kind))
    assert dict(table["run_date"].astype(str).value_counts()) == rows(kind, nights)


@pytest.mark.parametrize("kind", KINDS)
def test_pyarrow(nights: Path, kind: str) -> None:
    table = pq.read_table(nights / kind)
    assert set(table.column_names) == set(columns(kind))
    assert arrow_counts(table) == rows(kind, nights)


@pytest.mark.parametrize("kind", KINDS)
def test_a_dataset_of_pyarrow(out: Path, kind: str) -> None:
    data = ds.dataset(out / kind, partitioning="hive")
    assert set(data.schema.names) == set(columns(kind))
    assert arrow_counts(data.to_table()) == rows(kind, out)
    night = data.to_table(filter=ds.field("run_date") == "2026-11-18")
    assert arrow_counts(night) == {date: n for date, n in rows(kind, out).items() if date == "2026-11-18"}


@pytest.mark.parametrize("kind", KINDS)
def test_a_dataset_of_pyarrow_with_nights_of_the_version_before(nights: Path, kind: str) -> None:
    """These have both columns in their files, too, as dictionaries."""
    data = ds.dataset(nights / kind, partitioning=ds.HivePartitioning.discover(infer_dictionary=True))
    assert set(data.schema.names) == set(columns(kind))
    assert arrow_counts(data.to_table()) == rows(kind, nights)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("files", ["*/*/*.parquet", "**/*.parquet"])
def test_duckdb(nights: Path, kind: str, files: str) -> None:
    place = f"{nights}/{kind}/{files}"
    with duckdb.connect() as database:
        for table in (
            database.sql(f"FROM '{place}'"),
            database.read_parquet(place, hive_partitioning=True),
            database.read_parquet(place, hive_partitioning=True, union_by_name=True),
        ):
            assert set(table.columns) == set(columns(kind))
            assert dict(table.aggregate("run_date::VARCHAR, count(*)").fetchall()) == rows(kind, nights)


@pytest.mark.parametrize("kind", KINDS)
def test_polars(nights: Path, kind: str) -> None:
    polars = pytest.importorskip("polars")
    table = polars.read_parquet(nights / kind)
    assert set(table.columns) == set(columns(kind))
    assert {str(date): n for date, n in table["run_date"].value_counts().rows()} == rows(kind, nights)


@pytest.mark.slow
def test_ray_data(nights: Path, ray_cluster: None) -> None:
    import ray.data

    for kind in KINDS:
        table = ray.data.read_parquet(str(nights / kind)).to_pandas()
        assert set(table.columns) == set(columns(kind))
        assert dict(table["run_date"].astype(str).value_counts()) == rows(kind, nights)


@pytest.mark.slow  # a Spark of its own
def test_pyspark(nights: Path) -> None:
    sql = pytest.importorskip("pyspark.sql")
    if not shutil.which("java"):
        pytest.skip("PySpark needs Java.")
    spark = sql.SparkSession.builder.master("local[1]").config("spark.ui.enabled", "false").getOrCreate()
    try:
        for kind in ("scores", "rejects", "alerts"):
            table = spark.read.parquet(str(nights / kind))
            assert set(table.columns) == set(columns(kind))
            counted = {str(row["run_date"]): row["count"] for row in table.groupBy("run_date").count().collect()}
            assert counted == rows(kind, nights)
    finally:
        spark.stop()
