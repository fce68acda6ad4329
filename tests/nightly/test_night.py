"""One night after the other: images are scored, alerts arrive once, and of a bad night somebody hears once."""

import base64
import contextlib
import datetime
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from melanoma import config, storage
from melanoma.errors import InputError, MelanomaError
from melanoma.nightly import night, notes, retrain
from melanoma.nightly.config import NightlyConfig
from melanoma.nightly.notes import Note
from melanoma.scoring import channels, lease, run
from tests.support.receiver import Receiver, receiving

pytestmark = pytest.mark.usefixtures("scored_in_this_process")


@pytest.fixture(autouse=True)
def secret(monkeypatch: pytest.MonkeyPatch) -> None:
    key = "whsec_" + base64.b64encode(b"0123456789abcdef01234567").decode()
    monkeypatch.setenv(channels.SECRET, key)
    for name, seconds in (("_SETTLE", 0.1), ("BEAT", 0.3), ("DEAD_AFTER", 1.0)):
        monkeypatch.setattr(lease, name, seconds)


@pytest.fixture
def receiver() -> Iterator[Callable[..., Receiver]]:
    with contextlib.ExitStack() as stack:
        yield lambda *answers: stack.enter_context(receiving(*answers))


@pytest.fixture
def archive(tmp_path: Path, lesion: Callable[..., bytes]) -> Path:
    folder = tmp_path / "archive"
    folder.mkdir()
    for seed in range(6):
        (folder / f"first-{seed}.jpg").write_bytes(lesion("MEL", seed))
    return folder


def settings(archive: Path, bundle_path: Path, date: str, **values: Any) -> NightlyConfig:
    score = {"archive": str(archive), "out": str(archive.parent / "out"), "bundle": str(bundle_path)}
    return config.load(NightlyConfig, None, score={**score, "run_date": date, "explained": 0}, **values)


def one_night(wanted: NightlyConfig) -> Note:
    return night.run(wanted, lambda: run.score(wanted.score, say=quiet), quiet)


def quiet(line: str) -> None:
    pass


def told(receiver: Receiver) -> list[dict[str, Any]]:
    return [json.loads(body) for _, body in receiver.acknowledged]


def test_nights_follow_each_other(
    archive: Path, bundle_path: Path, lesion: Callable[..., bytes], receiver: Callable[..., Receiver]
) -> None:
    alerts, operators = receiver(), receiver()
    where: dict[str, Any] = {"deliver": {"webhook": alerts.url}, "tell": {"webhook": operators.url}}
    note = one_night(settings(archive, bundle_path, "2026-11-20", **where))
    assert (note.state, note.problems, note.told) == ("finished", (), True)
    assert [message["type"] for message in told(alerts)] == ["melanoma.alerts"]
    assert told(operators) == []

    # The same night again changes nothing, and nobody hears of anything.
    one_night(settings(archive, bundle_path, "2026-11-20", **where))
    assert (len(told(alerts)), told(operators)) == (1, [])

    # The next night has nothing new: that is told, once.
    empty = settings(archive, bundle_path, "2026-11-21", **where)
    for _ in range(2):
        one_night(empty)
    (message,) = told(operators)
    assert (message["type"], message["night"], message["failed"]) == ("melanoma.night", "2026-11-21", False)
    assert "had no new image among 6 that are listed" in message["problems"][0]["sentence"]

    # Two nights do not begin, and the one after them says so.
    (archive / "second.jpg").write_bytes(lesion("MEL", 77))
    note = one_night(settings(archive, bundle_path, "2026-11-24", **where))
    assert "2 nights did not begin (2026-11-22 to 2026-11-23)" in note.problems[0][1]
    assert len(told(operators)) == 2
    assert [each.night for each in notes.every(str(archive.parent / "out"))] == [
        "2026-11-20",
        "2026-11-21",
        "2026-11-24",
    ]


def test_a_night_may_be_empty_where_that_is_said(archive: Path, bundle_path: Path) -> None:
    one_night(settings(archive, bundle_path, "2026-11-20"))
    note = one_night(settings(archive, bundle_path, "2026-11-21", may_be_empty=True))
    assert (note.state, note.problems) == ("finished", ())


def test_a_night_that_fails_is_told_and_finished_by_the_same_call(
    archive: Path, bundle_path: Path, receiver: Callable[..., Receiver]
) -> None:
    operators = receiver()
    wanted = settings(archive, bundle_path, "2026-11-20", tell={"webhook": operators.url})
    hidden = archive.rename(archive.parent / "hidden")
    with pytest.raises(InputError, match="cannot be listed"):
        one_night(wanted)
    (message,) = told(operators)
    assert message["failed"]
    assert "The night of 2026-11-20 failed: The archive" in message["problems"][0]["sentence"]
    note = notes.read(str(archive.parent / "out"), "2026-11-20")
    assert note is not None
    assert (note.state, note.told) == ("failed", True)

    hidden.rename(archive)
    assert one_night(wanted).state == "finished"
    assert len(told(operators)) == 1


def test_what_nobody_could_be_told_is_told_by_the_next_night(
    archive: Path, bundle_path: Path, lesion: Callable[..., bytes], receiver: Callable[..., Receiver]
) -> None:
    operators = receiver(503)
    tell = {"webhook": operators.url, "patience": 0}
    one_night(settings(archive, bundle_path, "2026-11-20", tell=tell))
    assert not one_night(settings(archive, bundle_path, "2026-11-21", tell=tell)).told
    assert told(operators) == []
    (archive / "new.jpg").write_bytes(lesion("MEL", 50))
    one_night(settings(archive, bundle_path, "2026-11-22", tell=tell))
    (message,) = told(operators)
    assert [problem["night"] for problem in message["problems"]] == ["2026-11-21"]


def test_alerts_that_cannot_be_delivered_fail_the_night_and_go_out_with_the_next(
    archive: Path, bundle_path: Path, lesion: Callable[..., bytes], receiver: Callable[..., Receiver]
) -> None:
    alerts = receiver(503)
    where = {"webhook": alerts.url, "patience": 0}
    with pytest.raises(MelanomaError, match="was not delivered"):
        one_night(settings(archive, bundle_path, "2026-11-20", deliver=where))
    (archive / "new.jpg").write_bytes(lesion("NV", 50))
    one_night(settings(archive, bundle_path, "2026-11-21", deliver=where))
    assert "2026-11-20" in [message["run_date"] for message in told(alerts)]


def test_a_receiver_that_cannot_be_used_is_refused_before_anything_is_scored(archive: Path, bundle_path: Path) -> None:
    with pytest.raises(InputError, match="use https"):
        one_night(settings(archive, bundle_path, "2026-11-20", deliver={"webhook": "http://example.org/alerts"}))
    assert not (archive.parent / "out").exists()


# --- training anew ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dates", "today", "due"),
    [
        ([], "2026-11-20", True),
        (["2026-10-01", "2026-11-01"], "2026-11-20", False),
        (["2026-10-01"], "2026-10-31", True),
        (["2026-10-01"], "2026-10-30", False),
    ],
)
def test_when_a_training_is_due(dates: list[str], today: str, due: bool) -> None:
    assert retrain.is_due(dates, 30, datetime.date.fromisoformat(today)) is due


def test_a_candidate_is_proposed_and_nothing_uses_it(
    archive: Path, bundle_path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    candidates = tmp_path / "candidates"
    begun: list[str] = []

    def proposal(wanted: Any, promoted: str | None, date: str, say: Any) -> dict[str, Any]:
        begun.append(date)
        if len(begun) == 1:
            raise MelanomaError("The training was cut off.")
        shutil.copytree(bundle_path, candidates / date / "bundle")
        difference = {"value": 0.02, "low": -0.01, "high": 0.05}
        return {
            "date": date,
            "bundle": f"{candidates}/{date}/bundle",
            "model_version": "candidate",
            "promoted_version": "promoted",
            "leak_warning": None,
            "report": "report.html",
            "figures": {"melanoma_auc": {"this": 0.87, "other": 0.85, "difference": difference}},
        }

    monkeypatch.setattr(retrain, "_proposal", proposal)
    values = {
        "retrain": {
            "candidates": str(candidates),
            "every_days": 30,
            "train": {"catalog": "/catalog.parquet", "out": "/unused"},
        }
    }
    first = one_night(settings(archive, bundle_path, "2026-11-20", **values))
    assert first.state == "finished"  # a training that fails is no night that fails
    assert "The training anew failed, and the night has not" in first.problems[0][1]
    second = one_night(settings(archive, bundle_path, "2026-11-21", may_be_empty=True, **values))
    ((kind, sentence),) = second.problems
    assert kind == "retraining"
    assert "melanoma auc 0.870 against 0.850 (difference +0.020, 95% interval -0.010 to +0.050)" in sentence
    assert len(set(begun)) == 1  # the second goes on with the training of the first
    third = one_night(settings(archive, bundle_path, "2026-11-22", may_be_empty=True, **values))
    assert (third.problems, len(begun)) == ((), 2)
    assert storage.read_json(str(candidates / begun[0] / "proposal.json"))["model_version"] == "candidate"
