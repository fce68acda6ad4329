"""melanoma submit."""

import datetime
import importlib
import shlex
import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import typer
import yaml

from melanoma import config
from melanoma.cli import console
from melanoma.errors import InputError

Code = Literal["clone", "lock", "image"]
_HOME = "/opt/melanoma"  # in the image, see cluster/image
_PARTS = ("melanoma", "jobs", "configs", "pyproject.toml", "requirements.lock", "README.md")


@dataclass(frozen=True)
class _Kind:
    """A job of `jobs/`: where its configuration is declared, and the dotted key of where its results lie."""

    module: str
    model: str
    out: str = "out"


_KINDS = {
    "nightly": _Kind("melanoma.nightly.config", "NightlyConfig", "score.out"),
    "score": _Kind("melanoma.scoring.config", "ScoreConfig"),
    "deliver": _Kind("melanoma.scoring.config", "DeliverConfig"),
    "train": _Kind("melanoma.training.config", "TrainConfig"),
    "evaluate": _Kind("melanoma.evaluation.config", "EvaluateConfig"),
    "tune": _Kind("melanoma.training.studies.config", "TuneConfig"),
    "recipes": _Kind("melanoma.training.studies.config", "RecipesConfig"),
    "ablation": _Kind("melanoma.training.studies.config", "AblationConfig"),
}


def submit(
    job: Annotated[str, typer.Argument(metavar="JOB", help=f"One of {', '.join(_KINDS)}.")],
    config_file: Annotated[str, typer.Option("--config", help="YAML of the job, such as configs/nightly.yaml.")],
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...")] = None,
    address: Annotated[
        str, typer.Option(envvar="RAY_API_SERVER_ADDRESS", help="The dashboard of the cluster's head.")
    ] = "http://127.0.0.1:8265",
    submission_id: Annotated[
        str | None, typer.Option(help="Name of the job; default: the job and the time, of a night its date.")
    ] = None,
    code: Annotated[
        Code,
        typer.Option(
            help="What runs: this clone, in the cluster's Python; this clone, with the packages of requirements.lock "
            "installed on each node; or what the image of the nodes holds."
        ),
    ] = "clone",
    wait: Annotated[bool, typer.Option("--wait", help="Print its log, and end with its exit code.")] = False,
) -> None:
    """Run a job on a Ray cluster, after its configuration was checked here."""
    if job not in _KINDS:
        raise InputError(f"There is no job {job!r}: the jobs are {', '.join(_KINDS)}.")
    kind = _KINDS[job]
    settings = config.load(getattr(importlib.import_module(kind.module), kind.model), config_file, overrides)
    config.refuse_relative_places(settings)
    from melanoma import submission

    cluster = submission.client(address)
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "job.yaml").write_text(yaml.safe_dump(settings.model_dump(mode="json"), sort_keys=False))
        packages = _with_code(Path(folder), code)
        script = f"{_HOME if code == 'image' else '.'}/jobs/{job}.py"
        wanted = submission.Job(
            submission_id or _name(job, settings),
            f"python {shlex.quote(script)} --config job.yaml",
            folder,
            packages,
        )
        name = submission.submit(cluster, wanted, console.say)
    results = settings
    for part in kind.out.split("."):
        results = getattr(results, part)
    if not wait:
        console.answer.print(f"{name}: its results will lie in {results}. Follow it with `ray job logs -f {name}`.")
        return
    with console.resumable(f"The job goes on: the same command with --submission-id {name} follows it again."):
        exit_code = submission.follow(cluster, name, _write)
    if exit_code:
        console.say(f"The job {name} ended with {exit_code}.")
        raise typer.Exit(exit_code)
    console.answer.print(f"The job {name} is done: its results lie in {results}.")


def _name(job: str, settings: config.Model) -> str:
    now = datetime.datetime.now(datetime.UTC)
    if job == "nightly":
        night = getattr(settings, "score").run_date or now.date().isoformat()  # noqa: B009
        return f"night-{night}"
    return f"{job}-{now:%Y%m%d-%H%M%S}"


def _with_code(folder: Path, code: Code) -> str | None:
    """Put what is run beside the configuration; returns the requirements file that Ray is to install, if any."""
    if code == "image":
        return None
    clone = Path(__file__).parents[2]
    if not (clone / "jobs").is_dir():
        raise InputError(f"{clone} is no clone of the repository: run this from one, or give --code image.")
    for part in _PARTS:
        if (clone / part).is_dir():
            shutil.copytree(clone / part, folder / part, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(clone / part, folder / part)
    return str(folder / "requirements.lock") if code == "lock" else None


def _write(text: str) -> None:
    sys.stderr.write(text)
    sys.stderr.flush()
