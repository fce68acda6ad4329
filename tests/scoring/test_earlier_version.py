"""Results that an earlier version of this program wrote: they are read, resumed and continued by this one."""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from melanoma import config, storage
from melanoma.demo.local_s3 import LocalS3
from melanoma.imaging.decode import PREPROCESSING
from melanoma.model.bundle import Bundle
from melanoma.scoring import results
from melanoma.scoring.config import ScoreConfig
from melanoma.scoring.record import PlanDetails, RunRecord, Stages, read
from melanoma.scoring.run import Outcome, score

DATA = Path(__file__).parent / "data" / "before"
ARCHIVE, OUT = "s3://before/archive.csv", "s3://before/out"
RECORD = "runs/run_id=finished.json"


@pytest.fixture
def out(s3: LocalS3, bundle: Bundle) -> Path:
    """The folder of the bucket `OUT`. The bundle of the tests takes the place of the one that wrote the results."""
    bucket = s3.root / "before"
    shutil.rmtree(bucket, ignore_errors=True)
    shutil.copytree(DATA, bucket / "out")
    (bucket / "out" / "archive.csv").rename(bucket / "archive.csv")
    (bucket / "archive").mkdir()
    written = json.loads((DATA / RECORD).read_text())
    key = hashlib.sha256(json.dumps([[ARCHIVE], bundle.version, PREPROCESSING, False]).encode()).hexdigest()[:10]
    for path in (bucket / "out" / "runs").rglob("*.json"):
        text = path.read_text().replace(written["model_version"], bundle.version)
        path.write_text(text.replace(written["key"], key))
    return bucket / "out"


@pytest.fixture
def score_archive(out: Path, scored_in_this_process: None, bundle_path: Path) -> Callable[..., Outcome]:
    def call(**values: Any) -> Outcome:
        places = {"archive": ARCHIVE, "out": OUT, "bundle": str(bundle_path)}
        return score(config.load(ScoreConfig, None, **places, explained=0, **values), say=lambda line: None)

    return call


def rows(out: Path, pattern: str) -> list[dict[str, Any]]:
    return [row for path in sorted(out.glob(pattern)) for row in storage.read_table(str(path)).to_pylist()]


def test_a_record_with_blocks_that_this_version_does_not_understand_is_read(tmp_path: Path) -> None:
    record = json.loads((DATA / RECORD).read_text())
    record |= {"stages": None, "distribution": {"kind": "sketch"}, "thresholds": {"review": 0.1}}
    (tmp_path / "later.json").write_text(json.dumps(record))
    found = read(RunRecord, str(tmp_path / "later.json"))
    assert (found.counts.scored, found.stages, found.distribution, found.thresholds) == (4, Stages(), None, None)


def test_records_and_plans_are_read_and_written_as_they_were() -> None:
    plans = list(DATA.rglob("plan.json"))
    assert len(plans) == 2
    for path in plans:
        assert read(PlanDetails, str(path)).to_json() == json.loads(path.read_text())
    record = read(RunRecord, str(DATA / RECORD))
    assert record.to_json() == json.loads((DATA / RECORD).read_text())
    assert (record.counts.scored, record.counts.rejected, record.stages.workers) == (4, 2, 1)
    assert record.thresholds is not None
    assert 0 < record.thresholds.review < record.thresholds.urgent


def test_a_record_keeps_what_only_another_version_knows(tmp_path: Path) -> None:
    tree = {"run_id": "a", "run_date": "2026-11-18", "finished_at": "2026-11-18T02:00:05+00:00", "counts": {"new": 1}}
    storage.write_json(str(tmp_path / "runs" / "run_id=a.json"), tree)
    (record,) = results.committed_runs(str(tmp_path))
    assert record.to_json() == tree
    assert (record.reads, record.pseudonym_key, record.counts.alerts, record.distribution) == (1, None, 0, None)


def test_alerts_are_read(out: Path) -> None:
    found = results.read_alerts(str(out), "2026-11-18").to_pylist()
    # Which question has raised them was not asked, and is null.
    new = ("alert_reason", "threshold_urgent", "threshold_malignancy", "threshold_malignancy_urgent")
    written = rows(out, "alerts/*/*/*.parquet")
    assert found == [{**row, **dict.fromkeys(new), "archive": ARCHIVE} for row in written]
    assert len(found) == read(RunRecord, str(DATA / RECORD)).counts.alerts > 0


def test_a_night_that_was_cut_off_is_resumed(out: Path, score_archive: Callable[..., Outcome]) -> None:
    (first,) = out.glob("scores/*/run_id=cut-off/*.parquet")
    before = first.stat().st_mtime_ns, first.read_bytes()
    record = score_archive(run_date="2026-11-19").record
    assert (record.run_id, record.stages.resumed) == ("cut-off", True)
    assert (record.counts.listed, record.counts.done_before, record.counts.scored) == (8, 5, 2)
    assert record.counts.rejects_by_kind == {"not_found": 1}
    assert (first.stat().st_mtime_ns, first.read_bytes()) == before
    written = json.loads((out / "runs" / "run_id=cut-off.json").read_text())
    assert list(written) == list(json.loads((DATA / RECORD).read_text()))
    assert not score_archive(run_id="cut-off").changed


def test_the_next_night_does_what_is_left(
    out: Path, score_archive: Callable[..., Outcome], lesion: Callable[..., bytes]
) -> None:
    shutil.rmtree(out / "runs" / "run_id=cut-off")
    names = [*(f"{number}.jpg" for number in range(4)), "text.jpg", "gone.jpg", "new.jpg"]
    lines = ["uri,size,etag", *(f"s3://before/archive/{name},1000,first" for name in names)]
    (out.parent / "archive.csv").write_text("\n".join(lines) + "\n")
    (out.parent / "archive" / "new.jpg").write_bytes(lesion("MEL", 9))
    counts = score_archive(run_date="2026-11-20", run_id="next").record.counts
    # The text is tried again, which this version might read, and is gone as well.
    assert (counts.listed, counts.done_before, counts.scored) == (7, 4, 1)
    assert counts.rejects_by_kind == {"not_found": 2}
    assert [row["image_uri"] for row in rows(out, "scores/*/run_id=next/*.parquet")] == ["s3://before/archive/new.jpg"]
    page = (out / "runs" / "run_id=next" / "run.html").read_text()
    assert "4 images of 1 earlier night of this archive and model" in page
