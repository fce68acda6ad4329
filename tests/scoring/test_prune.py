"""What is old goes, and what a later run or an audit needs never does."""

import datetime
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from melanoma import storage
from melanoma.errors import InputError
from melanoma.scoring import prune, run
from melanoma.scoring.config import ScoreConfig


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_only_pictures_pages_and_replaced_plans_go(
    tmp_path: Path,
    lesions: Path,
    lesion: Callable[..., bytes],
    bundle_path: Path,
    scored_in_this_process: None,
    command: Callable[..., Any],
) -> None:
    archive, out = tmp_path / "archive", tmp_path / "out"
    archive.mkdir()
    for seed in range(12):
        (archive / f"{seed}.jpg").write_bytes(lesion("MEL", seed))
    config = ScoreConfig(archive=str(archive), out=str(out), bundle=str(bundle_path), run_date="2026-01-01")
    first = run.score(config, say=lambda line: None).record
    assert first.counts.alerts
    replaced = out / "plans" / f"run_id={first.run_id}" / "0badc0de" / "shard-00000.parquet"
    replaced.parent.mkdir()
    replaced.write_bytes(b"of an attempt that died")
    before = files(out)

    said = command("prune", out, "--keep", "0d")
    assert (said.code, files(out)) == (0, before)
    assert "Nothing was deleted" in said.out
    assert command("prune", out, "--keep", "1w", "--yes").out == "Nothing is older than 1w.\n"
    said = command("prune", out, "--keep", "0d", "--yes", "--json")
    assert set(json.loads(said.out)["kinds"]) == {"explanations", "pages", "plans"}
    gone = before - files(out)
    assert {name.split("/")[0] for name in gone} == {"explanations", "runs", "plans"}
    assert all(name.endswith((".png", "run.html")) or "0badc0de" in name for name in gone)

    # What was done is still known, and so is what was raised.
    (archive / "new.jpg").write_bytes(lesion("MEL", 99))
    (archive / "copy.jpg").write_bytes((archive / "0.jpg").read_bytes())
    second = run.score(config.model_copy(update={"run_date": "2026-01-02"}), say=lambda line: None).record
    assert (second.counts.done_before, second.images) == (12, 2)


def test_checkpoints_of_old_trainings_go_and_those_of_young_ones_stay(tmp_path: Path) -> None:
    out, checkpoints = tmp_path / "out", tmp_path / "checkpoints"
    storage.write_json(
        str(out / "runs" / "run_id=x.json"),
        {"run_id": "x", "run_date": "2026-01-01", "finished_at": "2026-01-01T03:00:00+00:00"},
    )
    for name, dates in {"old": ("2026-01-01", "2026-01-02"), "young": ("2026-01-01", "2026-03-01"), "none": ()}.items():
        (checkpoints / f"{name}").mkdir(parents=True)
        (checkpoints / f"{name}.json").write_text("{}")
        (checkpoints / name / "state").write_text("x")
        for date in dates:
            folder = checkpoints / name / f"checkpoint_{date}_01-02-03.456"
            folder.mkdir()
            (folder / "weights.npz").write_bytes(b"1234")
    before = datetime.datetime(2026, 2, 1, tzinfo=datetime.UTC)
    (found,) = prune.find(str(out), before, str(checkpoints))
    assert found.kind == "checkpoints"
    prune.delete([found])
    assert {name.split("/")[0] for name in files(checkpoints)} == {"young.json", "young", "none.json", "none"}


@pytest.mark.parametrize(("text", "days"), [("90d", 90), ("12w", 84), (" 3 d ", 3)])
def test_an_age(text: str, days: int) -> None:
    assert prune.age(text) == datetime.timedelta(days=days)


@pytest.mark.parametrize("text", ["", "90", "d", "-3d", "1y", "3.5d"])
def test_what_is_no_age_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="is no age: give days or weeks"):
        prune.age(text)


def test_an_output_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no finished run: nothing was deleted"):
        prune.find(str(tmp_path), datetime.datetime.now(datetime.UTC))
