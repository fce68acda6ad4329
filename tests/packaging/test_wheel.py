"""The wheel: what is in it, and that it works without a checkout."""

import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("installed")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", str(folder)]
    subprocess.run([*command, str(wheel)], check=True, capture_output=True)
    return folder


@pytest.fixture
def melanoma(installed: Path, program_environment: dict[str, str], tmp_path: Path) -> Run:
    """Runs the installed command in an empty folder. Its dependencies are those of this environment."""
    folder = tmp_path / "empty"
    folder.mkdir()
    # PYTHONPATH goes before the checkout that this environment has the package from.
    environment = {name: value for name, value in program_environment.items() if name != "MELANOMA_DATA"}
    environment["PYTHONPATH"] = str(installed)

    def run(*arguments: object) -> "subprocess.CompletedProcess[str]":
        command = [sys.executable, str(installed / "bin" / "melanoma"), *map(str, arguments)]
        return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)

    return run


def test_everything_that_the_package_needs_is_in_it(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    package = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "melanoma").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert package <= names
    for name in ("py.typed", "demo/interface.ipynb", "evaluation/report.html.j2", "reference/model.keras"):
        assert f"melanoma/{name}" in package
    assert {name.partition("/")[0] for name in names - package} == {wheel.name.rpartition("-py3")[0] + ".dist-info"}


def test_it_is_the_installed_one_that_runs(installed: Path, program_environment: dict[str, str]) -> None:
    code = "import melanoma, melanoma.api; print(melanoma.__version__, melanoma.__file__, melanoma.api.__file__)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=installed.parent,
        env={**program_environment, "PYTHONPATH": str(installed)},
        capture_output=True,
        text=True,
        check=True,
    )
    _, package, interface = done.stdout.split()
    assert Path(package).is_relative_to(installed)
    assert Path(interface).is_relative_to(installed)


@pytest.mark.slow  # the quick test looks at what the wheel holds
def test_predict_works_without_a_checkout(melanoma: Run, lesions: Path) -> None:
    image = lesions / "melanoma" / "MEL-0.jpg"
    done = melanoma("predict", image, "--json")
    assert done.returncode == 0, done.stderr
    (row,) = json.loads(done.stdout)
    assert row["image_uri"] == str(image)
    assert 0 < row["p_melanoma"] < 1


@pytest.mark.slow
def test_score_and_alerts_work_without_a_checkout(melanoma: Run, lesions: Path, tmp_path: Path) -> None:
    archive, out = tmp_path / "archive", tmp_path / "out"
    archive.mkdir()
    for path in lesions.rglob("*-0.jpg"):
        os.link(path, archive / path.name)
    done = melanoma("score", archive, "--out", out, "--json")
    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout)
    assert record["counts"]["scored"] == 9
    assert (out / "runs" / f"run_id={record['run_id']}" / "run.html").is_file()
    done = melanoma("alerts", out, "--json")
    assert (done.returncode, len(json.loads(done.stdout))) == (0, record["counts"]["alerts"])


@pytest.mark.slow
def test_the_demo_works_without_a_checkout(melanoma: Run, tmp_path: Path) -> None:
    done = melanoma("demo", "--out", tmp_path / "demo")
    assert done.returncode == 0, done.stderr
    alerts = melanoma("alerts", tmp_path / "demo" / "objects" / "results", "--json")
    assert json.loads(alerts.stdout)
