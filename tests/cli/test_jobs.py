"""What the scripts in jobs/ share, and what a submitted job refuses."""

import sys
from pathlib import Path
from typing import Any

import pytest

from melanoma.cli import jobs
from melanoma.evaluation.config import EvaluateConfig
from melanoma.scoring.config import ScoreConfig
from melanoma.training.config import TrainConfig
from melanoma.training.studies.config import AblationConfig, RecipesConfig, TuneConfig

SUBMITTED = "RAY_JOB_CONFIG_JSON_ENV_VAR"  # what `ray job submit` sets
PLACES: dict[type[Any], list[str]] = {
    TrainConfig: ["catalog=s3://b/c.parquet", "out=s3://b/out", "checkpoints=/shared/checkpoints"],
    EvaluateConfig: ["bundle=s3://b/bundle", "catalog=file:///c.parquet", "out=/out"],
    ScoreConfig: ["archive=s3://archive", "out=s3://out"],
    AblationConfig: ["catalog=s3://b/c.parquet", "out=s3://b/out"],
    TuneConfig: ["config=configs/train.yaml", "out=s3://b/out", "search.epochs.choice=[1]"],
    RecipesConfig: ["catalog=s3://b/c.parquet", "out=s3://b/out", "leave_out=[[a]]", "recipes={a: {epochs: 1}}"],
}


@pytest.fixture
def job(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """Runs a job as configured: the exit code, and what its call was given."""

    def run(model: type[Any], *overrides: str) -> tuple[int, list[Any]]:
        called: list[Any] = []
        (tmp_path / "job.yaml").write_text("")
        words = ["jobs/x.py", "--config", str(tmp_path / "job.yaml"), *PLACES[model], *overrides]
        monkeypatch.setattr(sys, "argv", words)
        with pytest.raises(SystemExit) as ended:
            jobs.main(model, called.append, None)
        return int(ended.value.code or 0), called

    return run


@pytest.mark.parametrize("model", PLACES)
def test_a_submitted_job_takes_places_that_every_node_reaches(
    job: Any, monkeypatch: pytest.MonkeyPatch, model: type[Any]
) -> None:
    monkeypatch.setenv(SUBMITTED, "{}")
    code, called = job(model)
    assert (code, [type(settings) for settings in called]) == (0, [model])


@pytest.mark.parametrize(
    ("model", "override", "key"),
    [
        (TrainConfig, "catalog=c.parquet", "catalog"),
        (TrainConfig, "checkpoints=out/checkpoints", "checkpoints"),
        (TrainConfig, "network={name: EfficientNetV2B0, weights: w.weights.h5}", "network.weights"),
        (TrainConfig, "tracking.tensorboard=runs", "tracking.tensorboard"),
        (EvaluateConfig, "against=bundle", "against"),
        (EvaluateConfig, "others=[s3://b/others, clinical]", "others"),
        (ScoreConfig, "archive=archive", "archive"),
        (ScoreConfig, "archive=[s3://archive, more]", "archive"),
        (ScoreConfig, "bundle=./bundle", "bundle"),
        (ScoreConfig, "log=score.log", "log"),
        (AblationConfig, "repaired=repaired.parquet", "repaired"),
        (TuneConfig, "out=out", "out"),
        (RecipesConfig, "out=out", "out"),
    ],
)
def test_a_submitted_job_refuses_every_relative_place(
    job: Any,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    model: type[Any],
    override: str,
    key: str,
) -> None:
    monkeypatch.setenv(SUBMITTED, "{}")
    assert job(model, override) == (2, [])
    said = capsys.readouterr().err
    assert said.startswith(f"melanoma: The key {key!r} is '")
    assert said.count("\n") == 1
    # What cannot lie in an object store is not told to.
    wanted = "an absolute path that outlives it" if key in ("log", "tracking.tensorboard") else "an s3:// URI or an abs"
    assert f"a submitted job needs {wanted}" in said

    monkeypatch.delenv(SUBMITTED)
    assert job(model, override)[0] == 0, "a job that was not submitted runs where its user stands"


def test_weights_that_are_downloaded_are_no_place(job: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SUBMITTED, "{}")
    assert job(TrainConfig, "network={name: EfficientNetV2B0, weights: imagenet}")[0] == 0


def test_a_job_refuses_as_a_command_does(job: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert job(ScoreConfig, "archve=s3://archive") == (2, [])
    assert "Unknown key 'archve'" in capsys.readouterr().err


@pytest.mark.parametrize("model", PLACES)
def test_every_job_takes_the_place_of_its_results_as_a_flag(job: Any, model: type[Any]) -> None:
    code, called = job(model, "--out", "s3://b/elsewhere")
    assert (code, [settings.out for settings in called]) == (0, ["s3://b/elsewhere"])
