"""The same command again: on the same day with new files, and after nights that died or could use nothing."""

import datetime
import itertools
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import melanoma as m
from melanoma import config, storage
from melanoma.errors import InputError
from melanoma.imaging.errors import Reason
from melanoma.scoring import record, results, run
from melanoma.scoring.config import ScoreConfig
from melanoma.scoring.run import Outcome
from tests.support.refusal import sentence

YESTERDAY, TODAY = "2026-11-20", "2026-11-21"
EVENING = datetime.datetime(2026, 11, 20, 22, tzinfo=datetime.UTC)

Score = Callable[..., Outcome]
Clock = Callable[[int], None]
Run = Callable[..., Any]


@pytest.fixture
def archive(tmp_path: Path, lesion: Callable[..., bytes]) -> Path:
    """Six melanomas, which the bundle of the tests raises."""
    folder = tmp_path / "archive"
    folder.mkdir()
    for seed in range(6):
        (folder / f"{seed}.jpg").write_bytes(lesion("MEL", seed))
    return folder


@pytest.fixture
def sleep(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The clock of scoring runs begins on the evening of `YESTERDAY`: each look at it takes a second, and ``sleep(10)``
    ten hours."""
    passed = itertools.count()
    slept = [0]
    monkeypatch.setattr(record, "now", lambda: EVENING + datetime.timedelta(seconds=next(passed), hours=slept[0]))
    monkeypatch.setattr(results, "now", lambda: record.now())

    def sleep(hours: int) -> None:
        slept[0] += hours

    return sleep


@pytest.fixture
def score_archive(
    scored_in_this_process: None, sleep: Clock, tmp_path: Path, archive: Path, bundle_path: Path
) -> Score:
    def call(**values: Any) -> Outcome:
        places = {"archive": str(archive), "out": str(tmp_path / "out"), "bundle": str(bundle_path)}
        settings = config.load(ScoreConfig, None, **{**places, "shard_size": 2, "workers": 1, "explained": 0, **values})
        return run.score(settings, say=lambda _: None)

    return call


def scored(out: Path, run_id: str) -> list[str]:
    """The names of the images in the scores of a run."""
    paths = sorted(out.glob(f"scores/*/run_id={run_id}/*.parquet"))
    return sorted(Path(uri).name for path in paths for uri in storage.read_table(str(path))["image_uri"].to_pylist())


# --- new files on the same day ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("everything", [False, True])
def test_new_files_of_the_same_day_are_scored_in_a_further_run(
    score_archive: Score, archive: Path, tmp_path: Path, lesion: Callable[..., bytes], everything: bool
) -> None:
    first = score_archive(all=everything).record
    assert first.counts.scored == 6
    for number in (2, 3):
        new = [f"new {number}-{seed}.jpg" for seed in range(3)]
        for seed, name in enumerate(new):
            (archive / name).write_bytes(lesion("MEL", 10 * number + seed))
        further = score_archive(all=everything)
        assert further.changed
        assert (further.record.run_id, further.record.run_date) == (f"{first.run_id}-{number}", first.run_date)
        assert (further.record.counts.scored, further.record.counts.done_before) == (3, 3 * number)
        assert scored(tmp_path / "out", further.record.run_id) == new
    # Their order is that of the day, and what one of them has raised is not new in the next.
    ids = [found.run_id for found in results.committed_runs(str(tmp_path / "out"))]
    assert ids == [first.run_id, f"{first.run_id}-2", f"{first.run_id}-3"]
    raised = results.alerts_of_run(str(tmp_path / "out"), first)["image_uri"].to_pylist()[0]
    (archive / "again.jpg").write_bytes(Path(raised).read_bytes())
    (alert,) = results.alerts_of_run(str(tmp_path / "out"), score_archive(all=everything).record).to_pylist()
    assert (Path(alert["image_uri"]).name, alert["first_raised"]) == ("again.jpg", YESTERDAY)
    assert len(m.alerts(tmp_path / "out")) == sum(
        found.counts.alerts for found in results.committed_runs(str(tmp_path / "out"))
    )


@pytest.mark.parametrize("everything", [False, True])
def test_without_new_files_nothing_is_changed(
    score_archive: Score,
    archive: Path,
    tmp_path: Path,
    lesion: Callable[..., bytes],
    contents: Callable[[Path], dict[str, tuple[int, bytes]]],
    everything: bool,
) -> None:
    first = score_archive(all=everything).record
    (archive / "new.jpg").write_bytes(lesion("MEL", 20))
    further = score_archive(all=everything).record
    assert further.run_id == f"{first.run_id}-2"
    before = contents(tmp_path / "out")
    for spelling in (f"{archive}/", f"file://{archive}"):
        outcome = score_archive(all=everything, archive=spelling)
        assert (outcome.changed, outcome.record) == (False, further)
    assert contents(tmp_path / "out") == before


def test_what_could_not_be_fetched_is_tried_again_on_the_same_day(score_archive: Score, archive: Path) -> None:
    (archive / "later.jpg").symlink_to(archive / "0000.jpg")
    assert score_archive().record.counts.rejects_by_kind == {"not_found": 1}
    (archive / "0000.jpg").write_bytes((archive / "0.jpg").read_bytes())
    counts = score_archive().record.counts
    assert (counts.scored, counts.rejected, counts.done_before) == (2, 0, 6)


def test_a_named_run_that_is_finished_is_left_alone(
    score_archive: Score, archive: Path, lesion: Callable[..., bytes]
) -> None:
    named = score_archive(run_id="named").record
    (archive / "new.jpg").write_bytes(lesion("MEL", 20))
    outcome = score_archive(run_id="named")
    assert (outcome.changed, outcome.record) == (False, named)
    assert score_archive().record.counts.scored == 1


_KILLED = """
import os, signal, sys
from melanoma import config
from melanoma.scoring import publish, run, shard
from melanoma.scoring.config import ScoreConfig
from tests.support.in_this_process import scored_in_this_process
place, archive, out, bundle = sys.argv[1:]
places = {"planned": (run.plans, "freeze"), "scored": (publish, "_summary"), "published": (publish, "_commit")}
module, name = places[place]
whole = getattr(module, name)
def killed(*arguments, **values):
    if place == "planned":
        whole(*arguments, **values)
    os.kill(os.getpid(), signal.SIGKILL)
setattr(module, name, killed)
with scored_in_this_process():
    values = {"archive": archive, "out": out, "bundle": bundle, "shard_size": 2, "run_date": "2026-11-20"}
    run.score(config.load(ScoreConfig, None, **values))
"""


@pytest.mark.slow
@pytest.mark.parametrize("place", ["planned", "scored", "published"])
def test_a_further_run_that_was_killed_is_resumed(
    score_archive: Score, archive: Path, tmp_path: Path, bundle_path: Path, lesion: Callable[..., bytes], place: str
) -> None:
    first = score_archive(run_date=YESTERDAY).record
    for seed in range(3):
        (archive / f"new {seed}.jpg").write_bytes(lesion("MEL", 20 + seed))
    words = [sys.executable, "-c", _KILLED, place, str(archive), str(tmp_path / "out"), str(bundle_path)]
    died = subprocess.run(words, check=False, capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert died.returncode == -signal.SIGKILL, died.stderr
    assert len(results.committed_runs(str(tmp_path / "out"))) == 1
    (archive / "newer.jpg").write_bytes(lesion("MEL", 30))
    resumed = score_archive(run_date=YESTERDAY).record
    assert (resumed.run_id, resumed.counts.scored) == (f"{first.run_id}-2", 3)
    third = score_archive(run_date=YESTERDAY).record
    assert (third.run_id, third.counts.scored) == (f"{first.run_id}-3", 1)
    names = [name for found in (first, resumed, third) for name in scored(tmp_path / "out", found.run_id)]
    assert sorted(names) == sorted(os.listdir(archive))


# --- a night that is resumed on the next date ------------------------------------------------------------------------


def cut_off(out: Path, found: record.RunRecord) -> None:
    """Make of a finished run one that was killed before its last shard was written."""
    folder = f"run_id={found.run_id}"
    (out / "runs" / f"{folder}.json").unlink()
    max((out / "scores" / f"run_date={found.run_date}" / folder).iterdir()).unlink()


def test_a_night_that_was_resumed_on_the_next_date_is_told_of_with_that_ones(
    score_archive: Score, tmp_path: Path, archive: Path, bundle_path: Path, command: Run, sleep: Clock
) -> None:
    out = tmp_path / "out"
    died = score_archive().record
    cut_off(out, died)
    sleep(10)
    settings = tmp_path / "score.yaml"
    settings.write_text("workers: 1\nshard_size: 2\nexplained: 0\n")
    said = command("score", archive, "--out", out, "--bundle", bundle_path, "--config", settings)
    assert said.code == 0
    runs = [line for line in said.out.splitlines() if line.startswith("Run ")]
    today = f"{TODAY}-{died.key}"
    assert [line.split(":")[0] for line in runs] == [f"Run {died.run_id}", f"Run {today}"]
    assert f"6 scored, 0 rejected, {died.counts.alerts} alerts" in runs[0]
    assert "0 scored, 0 rejected, 0 alerts" in runs[1]
    # Both the list and the interface have the alerts, more than once, until the next night is there.
    for _ in range(2):
        listed = command("alerts", out).out
        assert f"The run of {YESTERDAY} over {archive} was cut off and finished on {TODAY}" in listed
        assert f"The run of {TODAY} over {archive} finished on {TODAY}" in listed
        assert f"\n{died.counts.alerts} alerts, {died.counts.alerts} of them new." in listed
        assert len(m.alerts(out)) == died.counts.alerts > 0
        sleep(1)
    sleep(24)
    assert score_archive().record.run_date == "2026-11-22"
    assert command("alerts", out).out.endswith("\n0 alerts, 0 of them new.\n")


def test_json_tells_of_both(
    score_archive: Score, tmp_path: Path, archive: Path, bundle_path: Path, command: Run, sleep: Clock
) -> None:
    died = score_archive().record
    cut_off(tmp_path / "out", died)
    sleep(10)
    said = command("score", archive, "--out", tmp_path / "out", "--bundle", bundle_path, "--json")
    answer = json.loads(said.out)
    assert (answer["run_date"], [earlier["run_id"] for earlier in answer["earlier"]]) == (TODAY, [died.run_id])


# --- nothing can be used ---------------------------------------------------------------------------------------------


def test_a_night_that_can_use_nothing_says_why_and_ends_with_2(
    scored_in_this_process: None, tmp_path: Path, bundle_path: Path, lesion: Callable[..., bytes], command: Run
) -> None:
    archive, out, settings = tmp_path / "archive", tmp_path / "out", tmp_path / "score.yaml"
    archive.mkdir()
    settings.write_text("workers: 1\n")
    picture = lesion("MEL", 1)
    for number in range(7):
        (archive / f"cut {number}.jpg").write_bytes(picture[: 300 + 10 * number])
    for number in range(3):
        (archive / f"letter {number}.txt").write_text("Dear colleague")
    (archive / "empty.jpg").touch()
    words = ("score", archive, "--out", out, "--bundle", bundle_path, "--config", settings)
    said = command(*words, "--run-date", "2026-11-20")
    assert said.code == 2
    lines = [line.strip() for line in said.out.splitlines() if "rejected as" in line]
    assert [line.split(":")[0] for line in lines] == [
        "7 rejected as truncated",
        "3 rejected as not_an_image",
        "1 rejected as empty",
    ]
    assert all(len(line.split(": ", 1)[1]) > 10 for line in lines)
    last = said.err.splitlines()[-1]
    assert last == f"melanoma: None of the 11 images could be scored, 7 of them because: {lines[0].split(': ', 1)[1]}"
    # It is committed all the same, and the next night and the same command again say it, too.
    assert json.loads(command(*words, "--run-date", "2026-11-20", "--json").out)["counts"]["rejected"] == 11
    for date in ("2026-11-20", "2026-11-21"):
        assert "None of the 11 images could be scored" in command(*words, "--run-date", date).err
    answer = command(*words, "--run-date", "2026-11-20", "--json")
    assert answer.code == 2
    reasons = json.loads(answer.out)["reject_reasons"]
    assert [(reason["error_kind"], reason["count"]) for reason in reasons] == [
        ("truncated", 7),
        ("not_an_image", 3),
        ("empty", 1),
    ]
    # Once there is a picture, the three broken files of a night are no failure; why they are broken is said.
    (archive / "good.jpg").write_bytes(picture)
    assert command(*words, "--run-date", "2026-11-22").code == 0
    (archive / "cut.jpg").write_bytes(picture[:500])
    said = command(*words, "--run-date", "2026-11-23")
    assert said.code == 0
    assert "1 rejected as truncated: " in said.out


def test_reasons_are_counted_whatever_files_and_sizes_they_name(tmp_path: Path) -> None:
    found = record.RunRecord(
        run_id="a", run_date="2026-11-20", finished_at="2026-11-20T03:00:00", counts=record.Counts(rejected=5)
    )
    import pyarrow as pa

    from melanoma.scoring import layout, tables

    errors = {
        "/a/1.jpg": "/a/1.jpg does not exist.",
        "/a/2.jpg": "/a/2.jpg does not exist.",
        "/a/3.jpg": "It has 70,000,001 bytes: at most 67,108,864 are read.",
        "/a/4.jpg": "It has 80,000,002 bytes: at most 67,108,864 are read.",
        "/a/5.jpg": "It has 5 bytes: at most 3 are read.",
    }
    for number, (uri, error) in enumerate(errors.items()):
        row = {"image_uri": uri, "error_kind": "not_found" if "exist" in error else "too_large", "error": error}
        place = layout.result_shard(str(tmp_path), "rejects", "2026-11-20", "a", number)
        storage.write_table(place, pa.Table.from_pylist([row], schema=tables.REJECTS))
    assert results.reject_reasons(str(tmp_path), found) == [
        Reason("too_large", errors["/a/3.jpg"], 3),
        Reason("not_found", "The file does not exist.", 2),
    ]


def test_an_output_without_a_run_is_refused_by_alerts(tmp_path: Path, command: Run) -> None:
    assert "holds no finished run" in sentence(command("alerts", tmp_path))
    with pytest.raises(InputError, match="holds no finished run"):
        m.alerts(tmp_path)
