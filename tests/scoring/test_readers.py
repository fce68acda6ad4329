"""What analysts read results with sees the nights of an output as one table."""

import shutil
from collections.abc import Callable
from pathlib import Path

import duckdb
import pandas as pd
import pytest

from melanoma import config
from melanoma.scoring import tables
from melanoma.scoring.config import ScoreConfig
from melanoma.scoring.run import score
from tests.support.in_this_process import scored_in_this_process

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
    return list({"scores": tables.SCORES, "rejects": tables.REJECTS, "alerts": tables.ALERTS}[kind].names)


def rows(kind: str, out: Path) -> dict[str, int]:
    """How many rows of each night there are, as the files themselves say."""
    tables = [pd.read_parquet(path, partitioning=None) for path in out.glob(f"{kind}/*/*/*.parquet")]
    return dict(pd.concat(tables)["run_date"].value_counts())


def test_the_nights_are_there(out: Path) -> None:
    assert rows("scores", out) == NIGHTS
    assert rows("rejects", out) == dict.fromkeys(NIGHTS, 1)


@pytest.mark.parametrize("kind", ["scores", "rejects", "alerts"])
def test_pandas(out: Path, kind: str) -> None:
    table = pd.read_parquet(out / kind)
    assert set(table.columns) == set(columns(kind))
    assert dict(table["run_date"].astype(str).value_counts()) == rows(kind, out)


@pytest.mark.parametrize("kind", ["scores", "rejects", "alerts"])
def test_duckdb(out: Path, kind: str) -> None:
    with duckdb.connect() as database:
        table = database.read_parquet(f"{out}/{kind}/*/*/*.parquet")
        assert set(table.columns) == set(columns(kind))
        counted = table.aggregate("run_date::VARCHAR, count(*)").fetchall()
    assert dict(counted) == rows(kind, out)


@pytest.mark.slow  # a Spark of its own
def test_pyspark(out: Path) -> None:
    sql = pytest.importorskip("pyspark.sql")
    if not shutil.which("java"):
        pytest.skip("PySpark needs Java.")
    spark = sql.SparkSession.builder.master("local[1]").config("spark.ui.enabled", "false").getOrCreate()
    try:
        for kind in ("scores", "rejects", "alerts"):
            table = spark.read.parquet(str(out / kind))
            assert set(table.columns) == set(columns(kind))
            counted = {str(row["run_date"]): row["count"] for row in table.groupBy("run_date").count().collect()}
            assert counted == rows(kind, out)
    finally:
        spark.stop()
