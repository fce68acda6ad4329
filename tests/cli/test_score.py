"""melanoma score and alerts: what they answer."""

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from melanoma import config
from melanoma.model import bundle as bundles
from melanoma.model.bundle import Bundle
from melanoma.scoring.config import ScoreConfig
from tests.support.refusal import sentence

Run = Callable[..., Any]


def test_without_a_named_bundle_the_reference_is_used(
    command: Run,
    monkeypatch: pytest.MonkeyPatch,
    scored_in_this_process: None,
    lesions: Path,
    bundle: Bundle,
    bundle_path: Path,
    tmp_path: Path,
) -> None:
    monkeypatch.setattr(bundles, "REFERENCE", bundle_path)
    (row,) = json.loads(command("predict", lesions / "nevus" / "NV-0.jpg", "--json").out)
    assert row["model_version"] == bundle.version
    said = command("score", lesions / "nevus", "--out", tmp_path / "out", "--json")
    assert (said.code, json.loads(said.out)["model_version"]) == (0, bundle.version)
    settings = config.load(ScoreConfig, None, ["archive=s3://archive", "out=s3://out"])
    assert bundles.load(settings.bundle).version == bundle.version


def test_score_and_alerts_answer_in_words_and_in_json(
    command: Run,
    scored_in_this_process: None,
    lesions: Path,
    bundle: Bundle,
    bundle_path: Path,
    tmp_path: Path,
) -> None:
    out, settings = tmp_path / "out", tmp_path / "score.yaml"
    settings.write_text("workers: 1\nshard_size: 12\nbatch_size: 5\n")
    arguments = ["score", lesions, "--out", out, "--bundle", bundle_path, "--config", settings]
    said = command(*arguments, "--run-date", "2026-11-20", "--run-id", "night", "--json")
    record = json.loads(said.out)
    assert (said.code, record["changed"], record["run_id"]) == (0, True, "night")
    *lines, last = said.err.splitlines()
    assert lines == [
        "36 objects listed, 0 of them done before by this model.",
        *[f"Scoring: {done} of 36" for done in (12, 24, 36)],
    ]
    assert (json.loads(last)["run_id"], json.loads(last)["done"]) == ("night", 36)
    counts = record["counts"]
    assert (counts["scored"], counts["rejected"]) == (36, 0)
    said = command(*arguments, "--run-date", "2026-11-20", "--run-id", "night")
    assert (said.code, said.err) == (0, "")
    assert "nothing was changed" in said.out
    assert f"36 scored, 0 rejected, {counts['alerts']} alerts" in said.out

    rows = json.loads(command("alerts", out, "--json").out)
    assert [row["rank"] for row in rows] == list(range(1, counts["alerts"] + 1))
    assert {row["alert_level"] for row in rows} == {"urgent", "review"}
    assert all(row["model_version"] == bundle.version for row in rows)
    said = command("alerts", out, "--date", "2026-11-20")
    assert (said.code, said.err) == (0, "")
    assert said.out.count(bundle.version) == counts["alerts"]
    for row in rows:
        assert row["image_uri"] in said.out
        assert f"{row['p_melanoma']:.1%}" in said.out
    assert said.out.splitlines()[-1] == f"{counts['alerts']} alerts, {counts['alerts']} of them new."
    table = list(csv.DictReader(io.StringIO(command("alerts", out, "--csv").out)))
    assert [row["image_uri"] for row in table] == [row["image_uri"] for row in rows]
    assert [float(row["p_melanoma"]) for row in table] == [row["p_melanoma"] for row in rows]
    assert (out / "runs" / "run_id=night" / "run.html").exists()

    # What the night before has raised is said, and may be left out.
    again = command(*arguments, "--run-date", "2026-11-21", "--all", "--json")
    assert json.loads(again.out)["counts"]["alerts"] == counts["alerts"]
    assert command("alerts", out, "--new").out.splitlines()[-1] == "0 alerts, 0 of them new."
    assert {row["first_raised"] for row in json.loads(command("alerts", out, "--json").out)} == {"2026-11-20"}
    assert "there are runs of 2026-11-20, 2026-11-21" in sentence(command("alerts", out, "--date", "2026-11-22"))
