"""How the nights went, from what they have left: no image is needed for that."""

import datetime
import json
import threading
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from melanoma import storage
from melanoma.errors import InputError
from melanoma.scoring import drift, exporter, status, tables
from melanoma.scoring.record import moment

DAY = datetime.date(2026, 11, 1)


def night(out: Path, day: int, images: int = 100, alerts: int = 10, rejected: int = 0, **values: Any) -> str:
    """Write the commit record of a night as `melanoma score` does; returns its run id."""
    date = (DAY + datetime.timedelta(days=day)).isoformat()
    run_id = f"{date}-key"
    record = {
        "key": "key",
        "run_id": run_id,
        "run_date": date,
        "archive": "s3://archive",
        "planned_at": f"{date}T01:00:00+00:00",
        "finished_at": f"{date}T03:00:00+00:00",
        "images": images,
        "counts": {
            "listed": images * (day + 1),
            "scored": images - rejected,
            "rejected": rejected,
            "rejects_by_kind": {"truncated": rejected} if rejected else {},
            "alerts": alerts,
            "urgent": 1 if alerts else 0,
            "review": max(0, alerts - 1),
        },
        "seconds": 120.0,
    }
    storage.write_json(str(out / "runs" / f"run_id={run_id}.json"), record | values)
    return run_id


def at(day: int, hour: int = 6) -> datetime.datetime:
    return datetime.datetime.combine(DAY + datetime.timedelta(days=day), datetime.time(hour), datetime.UTC)


def kinds(out: Path, day: int, **values: Any) -> list[str]:
    return [problem.kind for problem in status.look(str(out), at=at(day), **values).problems]


def test_usual_nights_have_nothing_to_look_at(tmp_path: Path) -> None:
    for day in range(10):
        night(tmp_path, day, images=100 + day % 3, alerts=10 + day % 2, rejected=day % 2)
    found = status.look(str(tmp_path), nights=4, at=at(9))
    assert [each.record.run_date for each in found.nights] == [f"2026-11-{day:02}" for day in (7, 8, 9, 10)]
    assert found.problems == ()


@pytest.mark.parametrize(
    ("values", "kind", "words"),
    [
        ({"images": 10, "alerts": 1}, "few images", "saw 10 new images, and 100 are usual"),
        ({"alerts": 60}, "alerts", "raised 60.0% of its images, and 10.0% are usual"),
        ({"alerts": 0}, "alerts", "raised 0.0% of its images"),
        ({"rejected": 40}, "rejects", "could not score 40.0% of its images, most as truncated"),
    ],
)
def test_an_unusual_night_is_said(tmp_path: Path, values: dict[str, Any], kind: str, words: str) -> None:
    for day in range(5):
        night(tmp_path, day)
    run_id = night(tmp_path, 5, **values)
    (problem,) = [each for each in status.look(str(tmp_path), at=at(5)).problems if each.kind == kind]
    assert problem.night == run_id
    assert words in problem.sentence
    night(tmp_path, 5)
    assert kinds(tmp_path, 5) == []


def test_what_is_usual_of_another_archive_or_model_does_not_count(tmp_path: Path) -> None:
    for day in range(5):
        night(tmp_path, day, key="other", images=10_000)
    night(tmp_path, 5, images=10, alerts=1)
    assert kinds(tmp_path, 5) == []


def test_one_night_without_alerts_in_a_small_archive_is_chance(tmp_path: Path) -> None:
    for day in range(5):
        night(tmp_path, day, images=20, alerts=2)
    night(tmp_path, 5, images=20, alerts=0)
    assert kinds(tmp_path, 5) == []


@pytest.mark.parametrize(("hour", "late"), [(4, []), (6, ["late"])])
def test_a_night_that_did_not_come_is_late(tmp_path: Path, hour: int, late: list[str]) -> None:
    night(tmp_path, 0)
    assert [problem.kind for problem in status.look(str(tmp_path), 26, at=at(1, hour)).problems] == late


def test_an_output_without_any_night_is_late_and_one_that_is_none_is_refused(tmp_path: Path) -> None:
    assert kinds(tmp_path / "none", 0) == ["late"]
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "run_id=x.json").write_text("{")
    with pytest.raises(InputError, match=r"run_id=x\.json is damaged"):
        status.look(str(tmp_path))


def test_a_run_that_was_cut_off_is_said_until_another_has_done_its_work(tmp_path: Path) -> None:
    night(tmp_path, 0)
    plan = {"key": "key", "run_date": "2026-11-02", "planned_at": "2026-11-02T01:00:00+00:00", "images": 7}
    storage.write_json(str(tmp_path / "runs" / "run_id=2026-11-02-key" / "plan.json"), plan)
    assert kinds(tmp_path, 1, late_after=99) == ["cut off"]
    storage.write_json(str(tmp_path / "runs" / "key=key" / "lease.json"), {"owner": "x", "beat": 3})
    assert kinds(tmp_path, 1, late_after=99) == []  # a driver is at work
    (tmp_path / "runs" / "key=key" / "lease.json").unlink()
    night(tmp_path, 2)
    assert kinds(tmp_path, 2) == []


def test_other_pictures_are_said(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)

    def measured(shift: float) -> dict[str, Any]:
        values = {name: generator.random(200) for name in (*drift.PICTURE, *drift.PROBABILITY)}
        values["sharpness"] = values["sharpness"] + shift
        return {"distribution": drift.distribution(values).to_json()}

    for day in range(4):
        night(tmp_path, day, **measured(0))
    assert kinds(tmp_path, 3) == []
    night(tmp_path, 4, **measured(0.8))
    found = status.look(str(tmp_path), at=at(4))
    assert [problem.kind for problem in found.problems] == ["drift"]
    assert found.newest is not None
    assert found.newest.drift.distances["sharpness"] > 0.5


def test_alerts_that_nobody_was_sent_are_said_where_others_were(tmp_path: Path) -> None:
    for day in (0, 1):
        run_id = night(tmp_path, day)
        date = run_id[:10]
        rows = [
            {"image_uri": f"{name}.jpg", "first_raised": first} for name, first in (("a", None), ("b", "2026-10-01"))
        ]
        place = tmp_path / "alerts" / f"run_date={date}" / f"run_id={run_id}" / "alerts.parquet"
        storage.write_table(str(place), pa.Table.from_pylist(rows, schema=tables.ALERTS))
    assert kinds(tmp_path, 1) == []  # this output delivers nothing
    note = tmp_path / "deliveries" / "run_id=2026-11-01-key" / "webhook.json"
    storage.write_json(str(note), {"state": "delivered", "at": "2026-11-01T03:01:00+00:00"})
    found = status.look(str(tmp_path), at=at(1))
    assert [(problem.kind, problem.night) for problem in found.problems] == [("undelivered", "2026-11-02-key")]
    assert "has 1 new alerts that nobody was sent" in found.problems[0].sentence


def test_the_command_prints_the_nights_and_ends_with_what_they_were(
    tmp_path: Path, command: Callable[..., Any]
) -> None:
    for day in range(4):
        night(tmp_path, day)
    said = command("status", tmp_path, "--late-after", 10**6)
    assert said.code == 0
    assert "2026-11-04" in said.out
    assert "Nothing has to be looked at." in said.out
    said = command("status", tmp_path, "--json")
    assert said.code == 1  # all of this was in another year
    found = json.loads(said.out)
    assert [each["run_date"] for each in found["nights"]] == [f"2026-11-0{day}" for day in (1, 2, 3, 4)]
    assert [problem["kind"] for problem in found["problems"]] == ["late"]


def test_prometheus_is_told_of_the_newest_night_and_of_a_store_that_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exporter, "LOOK_EVERY", 0.05)
    night(tmp_path, 0, images=50, alerts=4, rejected=5)
    said: list[str] = []
    ended, begun = threading.Event(), threading.Event()

    def say(line: str) -> None:
        said.append(line)
        begun.set()

    thread = threading.Thread(target=exporter.serve, args=(str(tmp_path), 26, "127.0.0.1", 0, say, ended))
    thread.start()
    try:
        assert begun.wait(30)
        url = said[0].split()[3].rstrip(",")

        def scraped(wanted: str) -> dict[str, float]:
            for _ in range(200):
                text = urllib.request.urlopen(url).read().decode()
                lines = [line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#")]
                found = {name: float(value) for name, value in lines}
                if found["melanoma_night_store_up"] == float(wanted):
                    return found
                ended.wait(0.05)
            raise AssertionError(text)

        found = scraped("1")
        assert found["melanoma_night_finished_timestamp_seconds"] == moment("2026-11-01T03:00:00+00:00").timestamp()
        assert found['melanoma_night_images{result="new"}'] == 50
        assert found['melanoma_night_images{result="rejected"}'] == 5
        assert found['melanoma_night_alerts{level="urgent"}'] == 1
        assert found["melanoma_night_failed"] == 0
        (tmp_path / "runs" / "run_id=2026-11-01-key.json").write_text("{")
        scraped("0")
        assert "is damaged" in said[-1]
    finally:
        ended.set()
        thread.join()
