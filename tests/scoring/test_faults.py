"""Runs that were cut off, mixed up or could read nothing: what the next call makes of them."""

import datetime
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from melanoma import config, storage
from melanoma.errors import InputError, MelanomaError
from melanoma.scoring import lease, record, run
from melanoma.scoring.config import ScoreConfig
from melanoma.scoring.record import RunRecord, Stages
from melanoma.scoring.results import committed_runs
from melanoma.scoring.run import Outcome

YESTERDAY, TODAY = "2026-11-20", "2026-11-21"
NOON = datetime.datetime(2026, 11, 21, 12, tzinfo=datetime.UTC)


@pytest.fixture
def score_archive(
    scored_in_this_process: None,
    tmp_path: Path,
    lesion: Callable[..., bytes],
    bundle_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[..., Outcome]:
    """Score an archive of four images, two a shard, into tmp_path/out; without a date it is `TODAY`'s run."""
    # By the machine's clock these tests would fail whenever midnight passes between two of their runs.
    seconds = itertools.count()
    monkeypatch.setattr(record, "now", lambda: NOON + datetime.timedelta(seconds=next(seconds)))
    for seed in range(4):
        (tmp_path / "archive").mkdir(exist_ok=True)
        (tmp_path / "archive" / f"{seed}.jpg").write_bytes(lesion(seed=seed))

    def call(**values: Any) -> Outcome:
        places = {"archive": str(tmp_path / "archive"), "out": str(tmp_path / "out"), "bundle": str(bundle_path)}
        settings = config.load(ScoreConfig, None, **{**places, "shard_size": 2, "workers": 1, **values})
        return run.score(settings, say=lambda _: None)

    return call


def cut_off(out: Path, record: RunRecord) -> Path:
    """Make of a finished run one that was killed before its last shard was written."""
    folder = f"run_id={record.run_id}"
    (out / "runs" / f"{folder}.json").unlink()
    last = out / "scores" / f"run_date={record.run_date}" / folder / "shard-00001.parquet"
    last.unlink()
    return last


def uris(out: Path) -> list[str]:
    return [
        uri
        for path in sorted(out.glob("scores/*/*/*.parquet"))
        for uri in storage.read_table(str(path))["image_uri"].to_pylist()
    ]


def test_last_nights_run_is_finished_and_then_tonights_is_done(
    score_archive: Callable[..., Outcome], tmp_path: Path, lesion: Callable[..., bytes]
) -> None:
    cut_off(tmp_path / "out", score_archive(run_date=YESTERDAY).record)
    (tmp_path / "archive" / "new.jpg").write_bytes(lesion(seed=9))
    tonight = score_archive().record
    assert (tonight.run_date, tonight.counts.scored, tonight.counts.done_before) == (TODAY, 1, 4)
    assert [record.run_date for record in committed_runs(str(tmp_path / "out"))] == [YESTERDAY, TODAY]
    assert len(uris(tmp_path / "out")) == len(set(uris(tmp_path / "out"))) == 5


def test_a_dead_run_whose_work_a_later_one_did_is_left_alone(
    score_archive: Callable[..., Outcome], tmp_path: Path
) -> None:
    last = cut_off(tmp_path / "out", score_archive(run_date=YESTERDAY).record)
    score_archive(run_date=TODAY)
    assert not score_archive().changed
    assert not last.exists()


def test_a_dead_run_whose_work_a_later_one_did_is_not_resumed(
    score_archive: Callable[..., Outcome], tmp_path: Path
) -> None:
    last = cut_off(tmp_path / "out", score_archive(run_date=YESTERDAY).record)
    score_archive(run_date=TODAY)
    with pytest.raises(InputError, match=r"was cut off, and 2026-11-21-\w+, which came after it, has done its work"):
        score_archive(run_date=YESTERDAY)
    assert not last.exists()


def test_a_run_over_midnight_is_that_of_the_day_it_began(
    score_archive: Callable[..., Outcome], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evening, seconds = NOON.replace(hour=23, minute=59, second=59), itertools.count()
    monkeypatch.setattr(record, "now", lambda: evening + datetime.timedelta(seconds=next(seconds)))
    assert score_archive().record.run_date == TODAY
    assert len(committed_runs(str(tmp_path / "out"))) == 1
    # The next night has another date, and does its own work.
    (tmp_path / "archive" / "new.jpg").write_bytes((tmp_path / "archive" / "0.jpg").read_bytes())
    assert score_archive().record.counts.scored == 1


def test_the_order_of_the_archives_makes_no_other_run(score_archive: Callable[..., Outcome], tmp_path: Path) -> None:
    places = [str(tmp_path / "archive" / name) for name in ("0.jpg", "1.jpg")]
    assert score_archive(archive=places).changed
    assert not score_archive(archive=[*reversed(places), places[0]]).changed


def test_another_run_of_the_same_archive_waits_for_its_turn(
    score_archive: Callable[..., Outcome], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "BEAT", 0.2)
    committed = score_archive().record
    with (
        lease.hold(str(tmp_path / "out" / "runs" / f"key={committed.key}" / "lease.json"), pytest.fail),
        pytest.raises(InputError, match="Another driver is at work on the same archive"),
    ):
        score_archive(run_id="another")
    assert score_archive(run_id="another").changed


def test_a_driver_that_has_lost_its_lease_publishes_nothing(
    score_archive: Callable[..., Outcome], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run._score_shards

    def overtaken(*arguments: Any) -> Stages:
        stages = whole(*arguments)
        for path in (tmp_path / "out").rglob("lease.json"):
            path.unlink()
        return stages

    monkeypatch.setattr(run, "_score_shards", overtaken)
    with pytest.raises(MelanomaError, match="Another driver has taken over"):
        score_archive()
    assert committed_runs(str(tmp_path / "out")) == []


def test_results_that_an_inventory_names_are_refused(score_archive: Callable[..., Outcome], tmp_path: Path) -> None:
    score_archive()
    (tmp_path / "manifest.csv").write_text("path\narchive/0.jpg\nout/scores/x.parquet\n")
    with pytest.raises(InputError, match=r"The output .* lies in the archive"):
        score_archive(archive=str(tmp_path / "manifest.csv"), run_id="another")


def test_a_night_that_finds_little_of_what_was_listed_does_not_succeed(
    score_archive: Callable[..., Outcome], tmp_path: Path
) -> None:
    score_archive(run_id="other", out=str(tmp_path / "other"))  # makes the archive
    (tmp_path / "manifest.csv").write_text("path\narchive/0.jpg\narchive/8.jpg\narchive/9.jpg\n")
    with pytest.raises(MelanomaError, match="2 of 3 images could not be read"):
        score_archive(archive=str(tmp_path / "manifest.csv"))


def test_a_shard_that_is_not_what_was_planned_is_undone_and_scored_again(
    score_archive: Callable[..., Outcome], tmp_path: Path
) -> None:
    committed = score_archive().record
    last = cut_off(tmp_path / "out", committed)
    first = last.with_name("shard-00000.parquet")
    storage.write_table(str(last), storage.read_table(str(first)))  # the right number of images, but not the right ones
    with pytest.raises(MelanomaError, match=r"is not committed: in 1 of its shards .* scores them again"):
        score_archive()
    assert score_archive().record.counts == committed.counts
    assert len(set(uris(tmp_path / "out"))) == 4


def test_a_run_that_can_read_nothing_does_not_succeed(score_archive: Callable[..., Outcome], tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "linked").mkdir()
    for name in ("2025", "2026"):
        (tmp_path / "linked" / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(MelanomaError, match=r"2 of 2 images could not be read .*is not a regular file"):
        score_archive(archive=str(tmp_path / "linked"))
    assert committed_runs(str(tmp_path / "out")) == []


def test_a_run_that_could_read_too_little_is_resumed_with_that_alone(
    score_archive: Callable[..., Outcome], tmp_path: Path
) -> None:
    """Two of six: the run fails at its end, and once they can be read, only their shard is done again."""
    gone = [tmp_path / "archive" / name for name in ("x.jpg", "y.jpg")]
    score_archive(run_id="other", out=str(tmp_path / "other"))  # makes the archive
    for path in gone:
        path.symlink_to(tmp_path)
    with pytest.raises(MelanomaError, match=r"2 of 6 images could not be read \(max_access_share is 0.25\)"):
        score_archive()
    written = {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "scores").rglob("*.parquet")}
    assert len(written) == 2
    for path in gone:
        path.unlink()
        path.write_bytes((tmp_path / "archive" / "0.jpg").read_bytes())
    counts = score_archive().record.counts
    assert (counts.scored, counts.rejected) == (6, 0)
    assert {path: path.stat().st_mtime_ns for path in written} == written


def test_a_linked_folder_is_not_lost(score_archive: Callable[..., Outcome], tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "archive" / "2025").symlink_to(tmp_path / "elsewhere")
    counts = score_archive().record.counts
    assert (counts.listed, counts.scored, counts.rejects_by_kind) == (5, 4, {"access": 1})


def test_a_run_id_stands_for_one_date(score_archive: Callable[..., Outcome]) -> None:
    score_archive(run_id="nightly", run_date=YESTERDAY)
    with pytest.raises(InputError, match="choose another --run-id"):
        score_archive(run_id="nightly", run_date=TODAY)
