"""The command itself: help, wrong use, and what an error becomes."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer

from melanoma import __version__, cli
from melanoma.model import bundle as bundles
from tests.support.refusal import sentence

Run = Callable[..., Any]
COMMANDS = ["catalog", "split", "audit", "train", "evaluate", "threshold", "predict"]
COMMANDS += ["compile", "score", "alerts", "deliver", "status", "prune", "submit", "serve", "demo"]


def test_every_command_is_tested_here() -> None:
    assert sorted(COMMANDS) == sorted(typer.main.get_command(cli.app).commands)  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", COMMANDS)
def test_help_shows_an_example_that_the_command_would_take(command: Run, name: str) -> None:
    said = command(name, "--help")
    assert (said.code, said.err) == (0, "")
    text = " ".join(said.out.replace("│", " ").split())
    found = re.search(r"Example: ((?:[A-Z_]+=\S+ )?melanoma .+)", text)
    assert found, text
    words = shlex.split(found[1])
    words = words[words.index("melanoma") + 1 :]
    assert words[0] == name
    parser = typer.main.get_command(cli.app).commands[name]  # type: ignore[attr-defined]
    parser.make_context(name, words[1:])


def test_the_program_itself_starts_and_says_its_version(program: str, program_environment: dict[str, str]) -> None:
    done = subprocess.run([program, "--version"], env=program_environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{__version__}\n", "")


@pytest.mark.parametrize("arguments", [[], ["--help"]])
def test_without_a_command_there_is_help(command: Run, arguments: list[str]) -> None:
    said = command(*arguments)
    assert (said.code, said.err) == (0 if arguments else 2, "")
    assert all(name in said.out for name in COMMANDS)


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (["paint"], "No such command 'paint'"),
        (["score"], "ARCHIVE"),
        (["score", "archive"], "--out"),
        (["score", "archive", "--out", "out", "--colour", "red"], "--colour"),
        (["split", "catalog.parquet", "-o", "x.parquet", "--validation", "many"], "--validation"),
        (["predict"], "IMAGE"),
        (["predict", "x.jpg"], "No bundle was named: give one with --bundle"),
        (["score", "archive", "--out", "out"], "No bundle was named: give one with --bundle"),
        (["serve"], "MELANOMA_API_KEY"),
    ],
)
def test_wrong_use_is_one_line(
    command: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, arguments: list[str], hint: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MELANOMA_API_KEY", raising=False)
    monkeypatch.setattr(bundles, "REFERENCE", tmp_path / "reference")
    if arguments == ["serve"]:
        arguments = ["serve", "--bundle", "nowhere"]
    assert hint in sentence(command(*arguments))
    assert list(tmp_path.iterdir()) == []


def test_an_unexpected_error_says_how_to_see_where(command: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise ZeroDivisionError("first line\nsecond line")

    assert cli.run(fail) == 3
    monkeypatch.setitem(os.environ, "MELANOMA_DEBUG", "1")
    with pytest.raises(ZeroDivisionError):
        cli.run(fail)


@pytest.mark.parametrize("arguments", [["--help"], ["score", "--help"], ["alerts", "{results}"]])
def test_what_needs_no_heavy_library_imports_none(
    program_environment: dict[str, str], tmp_path: Path, arguments: list[str]
) -> None:
    results = tmp_path / "results"
    shutil.copytree(Path(__file__).parents[1] / "scoring" / "data" / "before", results)
    code = (
        "import sys\n"
        "from melanoma import cli\n"
        "cli.run(lambda: cli.app(args=sys.argv[1:], standalone_mode=False))\n"
        "print('imported:', *sorted({name.partition('.')[0] for name in sys.modules}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *(word.format(results=results) for word in arguments)],
        env=program_environment,
        capture_output=True,
        text=True,
        check=True,
    )
    imported = done.stdout.splitlines()[-1].split()
    assert imported[0] == "imported:"
    assert "melanoma" in imported
    assert not {"ray", "tensorflow", "keras", "sklearn", "scipy", "pandas", "boto3"} & set(imported)


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["alerts", "--help"]])
def test_an_answer_that_nobody_reads_is_no_failure(
    program: str, program_environment: dict[str, str], arguments: list[str]
) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer) as nobody:
        done = subprocess.run(
            [program, *arguments], env=program_environment, stdout=nobody, stderr=subprocess.PIPE, check=False
        )
    assert (done.returncode, done.stderr) == (0, b"")


def test_progress_that_nobody_reads_ends_no_work(program_environment: dict[str, str]) -> None:
    code = (
        "from melanoma.cli import console, run\n"
        "from melanoma.errors import InputError\n"
        "def work():\n"
        "    for number in range(2000): console.say(f'step {number}')\n"
        "    console.answer.print('done')\n"
        "    raise InputError('and refused')\n"
        "raise SystemExit(run(work))"
    )
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer) as nobody:
        done = subprocess.run(
            [sys.executable, "-c", code], env=program_environment, stdout=subprocess.PIPE, stderr=nobody, check=False
        )
    assert (done.returncode, done.stdout) == (2, b"done\n")
