"""The README files are true: what can run here runs, and every other command at least exists as it is written.

The tag of a fenced block says what is done with it: see .github/CONTRIBUTING.md.
"""

import re
import runpy
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from melanoma import cli, config
from melanoma.cli import jobs
from melanoma.demo.lesions import write_class_folders
from melanoma.training.config import TrainConfig

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    path.relative_to(ROOT).as_posix()
    for pattern in ("*.md", ".github/*.md", "*/README.md", "melanoma/*/README.md", "cluster/*/*.md")
    for path in ROOT.glob(pattern)
)
TAGS = {"sh", "python", "console", "yaml", "json", "text"}
_BLOCK = re.compile(r"^```([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_SLOW = re.compile(r"\b(melanoma (train|score|demo|serve)|jobs/)|\bm\.(train|score)\(")  # they start Ray


@dataclass(frozen=True)
class Block:
    tag: str
    text: str


def blocks(page: str, *tags: str) -> list[Block]:
    found = [Block(tag, text) for tag, text in _BLOCK.findall((ROOT / page).read_text())]
    return [block for block in found if not tags or block.tag in tags]


def quick_blocks(page: str) -> list[Block]:
    """Those that run before the first one that starts Ray."""
    found = blocks(page, "sh", "python")
    slow = [number for number, block in enumerate(found) if _SLOW.search(block.text)]
    return found[: slow[0]] if slow else found


QUICK = [page for page in PAGES if quick_blocks(page)]
SLOW = [page for page in PAGES if len(quick_blocks(page)) < len(blocks(page, "sh", "python"))]


@pytest.mark.parametrize("page", PAGES)
def test_every_block_of_code_is_tagged(page: str) -> None:
    assert {block.tag for block in blocks(page)} <= TAGS
    outside = _BLOCK.sub("", (ROOT / page).read_text())
    assert not re.findall(r"^ {4}(?:\.venv|melanoma|python|ray|make|export|pip) ?.*$", outside, re.MULTILINE)


# --- blocks that run -------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """What a newcomer has who has unpacked the nine-class set in a checkout, in small."""
    for part, seed in {"Train": 0, "Test": 1}.items():
        write_class_folders(tmp_path / "data" / "isic9" / part, 4 if part == "Train" else 1, seed, size=96)
    for name in ("configs", "jobs", "melanoma"):
        (tmp_path / name).symlink_to(ROOT / name)
    return tmp_path


def run_all(chosen: list[Block], folder: Path, environment: dict[str, str]) -> None:
    environment = {**environment, "PATH": f"{Path(sys.executable).parent}:{environment['PATH']}"}
    for block in chosen:
        shell = ["bash", "-e", "-u", "-o", "pipefail", "-c"]
        words = [*shell, block.text] if block.tag == "sh" else [sys.executable, "-c", block.text]
        ended = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, check=False)
        assert ended.returncode == 0, f"{block.text}\nended with {ended.returncode}:\n{ended.stdout}\n{ended.stderr}"


# The first page that a newcomer reads runs with every change, the others at night.
@pytest.mark.parametrize(
    "page", [page if page == "README.md" else pytest.param(page, marks=pytest.mark.slow) for page in QUICK]
)
def test_what_is_quick_runs(page: str, folder: Path, program_environment: dict[str, str]) -> None:
    run_all(quick_blocks(page), folder, program_environment)


@pytest.mark.slow
@pytest.mark.parametrize("page", SLOW)
def test_everything_runs(page: str, folder: Path, program_environment: dict[str, str]) -> None:
    run_all(blocks(page, "sh", "python"), folder, program_environment)


# --- blocks that are only looked at ----------------------------------------------------------------------------------


def commands(text: str) -> Iterator[list[str]]:
    """The words of every command in a block, without comments, prompts and what follows a pipe."""
    for line in text.replace("\\\n", " ").splitlines():
        lexer = shlex.shlex(line.removeprefix("$ "), posix=True, punctuation_chars="|&;<>")
        lexer.whitespace_split = True
        words: list[str] = []
        for word in [*lexer, ";"]:
            if set(word) <= set("|&;<>"):
                if words:
                    yield words
                words = []
            else:
                words.append(word)


def parse_melanoma(words: list[str]) -> None:
    """Raise where a command or one of its options or keys does not exist."""
    parsed: dict[str, Any] = {}
    group: Any = typer.main.get_command(cli.app)
    for command in group.commands.values():
        command.callback = lambda **values: parsed.update(values)
    group(args=words, standalone_mode=False)
    if words[0] == "train":
        config.load(TrainConfig, parsed["config_file"], parsed["overrides"], catalog="catalog", out="out")


def parse_python(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Raise where a script does not exist, or a job would refuse its configuration."""
    script = words[0]
    if script == "-m":
        script = f"{words[1].replace('.', '/')}.py"
    assert (ROOT / script).is_file(), script
    if script.startswith("jobs/"):
        whole = jobs.main

        def only_load(model: Any, call: Any, *rest: Any, **values: Any) -> None:
            whole(model, lambda settings: None, *rest, **values)

        with monkeypatch.context() as patch:
            patch.setattr(jobs, "main", only_load)
            patch.setattr(sys, "argv", words)
            with pytest.raises(SystemExit) as ended:
                runpy.run_path(script, run_name="__main__")
        assert ended.value.code == 0, words


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "console", "sh", "yaml")])
def test_commands_and_their_options_exist(page: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    for block in blocks(page, "console", "sh"):
        for words in commands(block.text):
            for file in re.findall(r"configs/[\w.-]+", " ".join(words)):
                assert Path(file).is_file(), words
            if Path(words[0]).name == "melanoma":
                parse_melanoma(words[1:])
            elif "python" in words:  # also behind `ray job submit ... --`
                parse_python(words[words.index("python") + 1 :], monkeypatch)
    for block in blocks(page, "yaml"):
        yaml.safe_load(block.text)


@pytest.mark.parametrize(
    "words",
    [["trian"], ["train", "--confg", "x"], ["train", "--out", "x", "--config", "configs/train.yaml", "epoch=1"]],
)
def test_a_wrong_command_would_be_found(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    with pytest.raises((typer.TyperException, config.InputError)):
        parse_melanoma(words)
