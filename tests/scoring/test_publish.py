"""A night of many alerts is published: what is written, and what is held in memory for it."""

import re
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from melanoma import storage
from melanoma.scoring import layout, results, run_page
from tests.benchmarks import publishing


@pytest.fixture
def out(tmp_path: Path) -> str:
    """A night of about 600 alerts that waits to be published, and three nights before."""
    archive = publishing.Archive(seed=0)
    for night in range(3):
        publishing.write_earlier(str(tmp_path), archive, night, 40)
    publishing.plan_night(str(tmp_path), 1200)
    publishing.write_results(str(tmp_path), archive, share_raised=0.5)
    return str(tmp_path)


def test_a_night_is_published_whole(out: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "_ROWS_A_GROUP", 100)
    said = publishing.publish(out)
    record = results.committed_runs(out)[-1]
    assert (record.run_id, record.counts.scored, record.counts.rejected) == (publishing.RUN, 1188, 12)
    assert record.counts.alerts == said["alerts"] == record.counts.urgent + record.counts.review > 500
    # Every raised image is an alert, or a copy of one.
    scores = pd.read_parquet(f"{out}/scores")
    raised = set(scores[scores["alert_level"] != "none"]["image_uri"])
    alerts = results.read_alerts(out, publishing.DATE).to_pandas()
    copies = [uri for uris in alerts["copies"] for uri in uris]
    assert sorted([*alerts["image_uri"], *copies]) == sorted(raised)
    assert copies
    assert set(alerts["first_raised"].dropna()) <= {"2026-10-01", "2026-10-02", "2026-10-03"}
    assert alerts["first_raised"].notna().any()
    assert alerts["p_melanoma"].is_monotonic_decreasing
    assert (set(alerts["run_id"]), set(alerts["run_date"])) == ({publishing.RUN}, {publishing.DATE})
    file = pq.ParquetFile(layout.alerts(out, publishing.DATE, publishing.RUN))
    assert [file.metadata.row_group(n).num_rows for n in range(2)] == [100, 100]


def test_the_page_of_a_night_of_many_alerts_shows_the_first_and_counts_all(
    out: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_page, "ROWS_SHOWN", 7)
    publishing.publish(out)
    alerts = results.read_alerts(out, publishing.DATE).to_pandas()
    page = storage.read_bytes(layout.page(out, publishing.RUN)).decode()
    listed = re.findall(r"<td>(?:review|urgent)</td>.*?>(s3://[^<]*)<", page)
    assert listed == alerts["image_uri"].tolist()[:7]
    new = int(alerts["first_raised"].isna().sum())
    assert f"{new} of them new" in page
    assert f"{len(alerts) - 7} more alerts are left out here" in page


def test_an_earlier_night_without_some_columns_is_compared_with(out: str) -> None:
    """A version before wrote fewer of them, and those of the folder's name in the file as well."""
    for path in Path(out, "alerts").rglob("alerts.parquet"):
        table = storage.read_table(str(path)).select(["image_uri", "content_sha256", "p_melanoma"])
        date = pa.DictionaryArray.from_arrays(pa.repeat(pa.scalar(0, pa.int32()), len(table)), ["2026-10-01"])
        storage.write_table(str(path), table.append_column("run_date", date))
    publishing.publish(out)
    alerts = results.read_alerts(out, publishing.DATE).to_pandas()
    assert set(alerts["first_raised"].dropna()) == {"2026-10-01"}


@pytest.mark.slow
def test_memory_grows_by_columns_and_not_by_python_rows(tmp_path: Path) -> None:
    rows = publishing.measured(tmp_path, sizes=[8_000, 80_000], nights=2, alerts_a_night=1_000, share=0.5)
    small, large = [row["publish"]["peak_mib"] for row in rows]
    # 2,100 bytes an alert were measured, and 5,000 where every alert was a dict.
    assert (large - small) * 2**20 < 3_500 * (40_000 - 4_000)


def test_what_is_measured_is_what_the_driver_does(tmp_path: Path) -> None:
    (row,) = publishing.measured(tmp_path, sizes=[300], nights=2, alerts_a_night=20, share=0.05)
    assert [row[what]["images"] for what in ("plan", "publish", "plan-next")] == [300, 297, 3]
    assert 0 < row["publish"]["alerts"] < 60
    assert all(took["peak_mib"] > took["imports_mib"] > 0 for took in (row[what] for what in publishing.WHAT))


def test_a_process_of_the_benchmark_that_takes_more_memory_is_ended(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.benchmarks.publishing", "--images", "100", "--most-mib", "20"]
    ended = subprocess.run([*command, "--out", str(tmp_path), "--do", "plan"], capture_output=True, text=True)
    assert ended.returncode == 1
    assert "More than 20 MiB are taken: ended." in ended.stderr


@pytest.mark.slow
def test_the_benchmark_prints_its_table() -> None:
    command = [sys.executable, "-m", "tests.benchmarks.publishing", "--quick"]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    first = [[cell.strip() for cell in line.split("|")[1:3]] for line in printed[2:]]
    assert first == [[what, f"{n:,}"] for what in publishing.WHAT.values() for n in publishing.QUICK]
