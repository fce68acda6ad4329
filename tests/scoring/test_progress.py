"""What a run says of itself: log lines and Prometheus agree with what the workers reported."""

import json
import urllib.request
from typing import Any, get_args

import pytest
from prometheus_client.parser import text_string_to_metric_families

from melanoma.errors import InputError
from melanoma.imaging.errors import ErrorKind
from melanoma.scoring import progress
from melanoma.scoring.record import STAGES


def report(**values: Any) -> dict[str, Any]:
    plain = {"scored": 8, "rejected": 2, "bytes": 1000, "peak_memory_bytes": 5}
    kinds = {f"rejects_{kind}": 0 for kind in get_args(ErrorKind)}
    return {**plain, **kinds, "rejects_truncated": 2, **dict.fromkeys(STAGES, 0.5), **values}


@pytest.fixture
def running() -> progress.Progress:
    made = progress.Progress(total=100, before=20, shards=8, workers=2)
    made.add(report())
    made.add(report(peak_memory_bytes=9, rejects_truncated=1, rejects_access=1))
    return made


def test_reports_are_added_up(running: progress.Progress) -> None:
    running._began -= 10  # as if it had taken so long
    stages = running.stages()
    assert (stages.done, stages.scored, stages.rejected, stages.images) == (40, 16, 4, 100)
    assert stages.rejects_by_kind == {"access": 1, "truncated": 3}
    assert (stages.bytes, stages.peak_memory_bytes, stages.shards_waiting) == (2000, 9, 6)
    assert {getattr(stages, stage) for stage in STAGES} == {1.0}
    # What an earlier attempt did says nothing of how fast this one is.
    assert stages.images_per_second == pytest.approx(2, rel=0.1)
    assert stages.seconds_remaining == pytest.approx(30, rel=0.1)
    running.end()
    assert running.stages() == running.stages()


def test_nothing_is_known_before_the_first_shard() -> None:
    stages = progress.Progress(total=100, before=0, shards=8, workers=2).stages()
    assert (stages.images_per_second, stages.seconds_remaining) == (0, None)


def test_a_line_comes_now_and_then_and_at_the_end(running: progress.Progress, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "LINE_EVERY", 0.01)
    lines: list[str] = []
    with progress.logged(running, "run", lines.append):
        while len(lines) < 3:
            pass
        running.add(report())
    found = [json.loads(line) for line in lines]
    assert all("\n" not in line for line in lines)
    assert {each["run_id"] for each in found} == {"run"}
    assert (found[0]["done"], found[-1]["done"]) == (40, 50)


def test_prometheus_is_answered_while_the_run_lasts(running: progress.Progress) -> None:
    with progress.exported(running, "run", "127.0.0.1", 0) as port:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
            text = answer.read().decode()
        with (
            pytest.raises(InputError, match="cannot be listened on"),
            progress.exported(running, "run", "127.0.0.1", port),
        ):
            pytest.fail("one port for two")
    found = {
        (sample.name, *(value for name, value in sample.labels.items() if name != "run_id")): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
    assert found["melanoma_scoring_images",] == 100
    assert found["melanoma_scoring_images_waiting",] == 60
    assert found["melanoma_scoring_images_done_total", "scored"] == 16
    assert found["melanoma_scoring_rejects_total", "truncated"] == 3
    assert found["melanoma_scoring_rejects_total", "dicom"] == 0
    assert found["melanoma_scoring_bytes_read_total", "archive"] == 2000
    assert found["melanoma_scoring_stage_seconds_total", "decoding"] == 1.0
    with pytest.raises(OSError, match="refused"):
        urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics")


def test_no_port_no_server(running: progress.Progress) -> None:
    with progress.exported(running, "run", "127.0.0.1", None) as port:
        assert port is None
