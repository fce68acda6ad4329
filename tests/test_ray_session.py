"""Ray that cannot be had, or goes away, is named; and what it says goes nowhere else."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from melanoma import errors, ray_session

CONNECT = """
import os, sys
from melanoma import ray_session
from melanoma.cli.app import run
for address in sys.argv[1:]:
    os.environ["RAY_ADDRESS"] = address
    print(run(ray_session.connect))
"""
CORES = """
import os, sys
os.cpu_count = lambda: 64
if sys.argv[1:] == ["container"]:
    os.sched_getaffinity = lambda pid: set(range(64))
from melanoma import ray_session
print(ray_session.STARTED_HERE["num_cpus"], os.environ.get("TF_FORCE_GPU_ALLOW_GROWTH"))
"""


@pytest.fixture
def silent_port() -> Iterator[int]:
    """A port that accepts connections and says nothing."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        yield listening.getsockname()[1]


@pytest.fixture
def closed_port() -> int:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        port: int = bound.getsockname()[1]
        return port


def test_addresses_that_are_none_are_named(program_environment: dict[str, str]) -> None:
    addresses = ["nonsense", "http://127.0.0.1:8265"]
    words = [sys.executable, "-c", CONNECT, *addresses]
    ended = subprocess.run(words, env=program_environment, capture_output=True, text=True, check=True)
    assert ended.stdout.split() == ["2"] * len(addresses)
    said = ended.stderr.splitlines()
    assert len(said) == len(addresses)
    for line, address in zip(said, addresses, strict=True):
        assert line.startswith(f"melanoma: The Ray cluster at RAY_ADDRESS={address} cannot be used: ")


def test_why_a_cluster_does_not_answer(closed_port: int, silent_port: int) -> None:
    failed = ConnectionError("Failed to connect to Ray cluster")
    assert ray_session.why_not(f"127.0.0.1:{closed_port}", failed) == "connection refused"
    assert "not known" in ray_session.why_not("no-such-host.invalid:6379", failed)
    assert ray_session.why_not(f"127.0.0.1:{silent_port}", failed).startswith("it does not answer as a Ray")
    assert ray_session.why_not("10.0.0.1:6379", RuntimeError("Version mismatch: a\nb")) == "Version mismatch: a b"


def test_a_local_ray_has_the_cores_that_this_process_may_use(program_environment: dict[str, str]) -> None:
    ended = subprocess.run([sys.executable, "-c", CORES], env=program_environment, capture_output=True, check=True)
    assert ended.stdout.decode().split() == [str(max(2, len(os.sched_getaffinity(0)))), "true"]


def test_a_local_ray_has_the_cores_of_its_container(tmp_path: Path, program_environment: dict[str, str]) -> None:
    (tmp_path / "cpu.max").write_text("250000 100000\n")
    mount = f"mount --bind {tmp_path} /sys/fs/cgroup"
    words = ["unshare", "--mount", "sh", "-c", f'{mount} && exec "$@"', "sh", sys.executable, "-c", CORES, "container"]
    ended = subprocess.run(words, env=program_environment, capture_output=True, check=False)
    if b"unshare" in ended.stderr or b"mount" in ended.stderr:
        pytest.skip("A container's limit is put in place by unshare and mount, which need root.")
    assert ended.stdout.split()[0] == b"3"


@pytest.mark.slow
def test_every_command_and_job_names_the_ray_that_it_cannot_reach(
    program: str,
    program_environment: dict[str, str],
    lesions: Path,
    bundle_path: Path,
    tmp_path: Path,
    silent_port: int,
    closed_port: int,
) -> None:
    catalog, scored = tmp_path / "catalog.parquet", [f"archive={lesions}", f"bundle={bundle_path}"]
    subprocess.run([program, "catalog", str(lesions), "-o", str(catalog)], check=True, capture_output=True)
    split = [program, "split", str(catalog), "-o", str(catalog), "--validation", "0.4", "--test", "0"]
    subprocess.run(split, check=True, capture_output=True)
    train = [f"catalog={catalog}", f"checkpoints={tmp_path}/checkpoints", "operating_point.bound=observed"]
    commands = [
        [program, "score", str(lesions), "--out", f"{tmp_path}/night", "--bundle", str(bundle_path)],
        [program, "train", "--config", "configs/train.yaml", "--out", f"{tmp_path}/trained", *train],
        [program, "serve", "--bundle", str(bundle_path), "--port", str(closed_port)],
        [program, "demo", "--out", f"{tmp_path}/demo"],
        [sys.executable, "jobs/score.py", "--config", "configs/score.yaml", *scored, f"out={tmp_path}/job"],
        [sys.executable, "jobs/train.py", "--config", "configs/train.yaml", f"out={tmp_path}/made", *train],
    ]
    key = {"MELANOMA_API_KEY": "0123456789abcdef"}
    for number, command in enumerate(commands):
        port = (silent_port, closed_port)[number % 2]
        environment = {**program_environment, **key, "RAY_ADDRESS": f"127.0.0.1:{port}"}
        began = time.monotonic()
        ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert ended.returncode == 2, (command, ended.stderr)
        last = ended.stderr.splitlines()[-1]
        assert last.startswith(f"melanoma: The Ray cluster at RAY_ADDRESS=127.0.0.1:{port} cannot be used: "), command
        assert time.monotonic() - began < 120, "twice as long as it should take"


@pytest.mark.slow
def test_a_ray_that_cannot_start_is_named(program_environment: dict[str, str]) -> None:
    environment = {**program_environment, "RAY_TMPDIR": "/proc/no folder"}
    words = [sys.executable, "-c", CONNECT, ""]
    ended = subprocess.run(words, env=environment, capture_output=True, text=True, check=True)
    assert ended.stdout.split() == ["2"]
    assert ended.stderr.startswith("melanoma: Ray cannot start on this machine: ")


@pytest.fixture
def night(
    program: str,
    program_environment: dict[str, str],
    tmp_path: Path,
    lesion: Callable[..., bytes],
    bundle_path: Path,
) -> Iterator[subprocess.Popen[str]]:
    """`melanoma score --json` of 300 images, in shards of one."""
    (tmp_path / "archive").mkdir()
    for seed in range(300):
        (tmp_path / "archive" / f"{seed}.jpg").write_bytes(lesion(seed=seed))
    (tmp_path / "score.yaml").write_text("shard_size: 1\nbatch_size: 1\n")
    words = [program, "score", f"{tmp_path}/archive", "--out", f"{tmp_path}/out", "--bundle", str(bundle_path)]
    with subprocess.Popen(
        [*words, "--config", f"{tmp_path}/score.yaml", "--json"],
        env=program_environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as started:
        yield started
        started.kill()


@pytest.mark.parametrize("is_command", [True, False])
def test_a_ray_that_goes_away_ends_a_command_and_no_process_of_others(
    is_command: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ended: list[int] = []
    monkeypatch.setattr(os, "_exit", ended.append)
    monkeypatch.setattr(errors, "is_command", is_command)
    ray_session._end("its node here has died")
    assert "is gone: its node here has died. " in capsys.readouterr().err
    assert ended == ([3] if is_command else [])


def _wait_for_scores(folder: Path) -> None:
    deadline = time.monotonic() + 240
    while len(list((folder / "out" / "scores").rglob("*.parquet"))) < 5:
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.mark.slow
def test_standard_output_holds_the_answer_although_a_worker_was_killed(
    night: "subprocess.Popen[str]", tmp_path: Path, descendants: Callable[[int], dict[int, str]]
) -> None:
    _wait_for_scores(tmp_path)
    workers = [pid for pid, command in descendants(night.pid).items() if "ShardScorer" in command]
    os.kill(workers[0], signal.SIGKILL)
    out, err = night.communicate(timeout=300)
    assert (night.returncode, json.loads(out)["counts"]["scored"]) == (0, 300)
    assert "\x1b" not in err


@pytest.mark.slow
@pytest.mark.parametrize("process", ["gcs_server", "raylet"])
def test_a_ray_that_goes_away_is_named(
    night: "subprocess.Popen[str]", process: str, tmp_path: Path, descendants: Callable[[int], dict[int, str]]
) -> None:
    _wait_for_scores(tmp_path)
    started = descendants(night.pid).items()
    (pid,) = [pid for pid, command in started if command.split(" ")[0].endswith(f"/{process}")]
    os.kill(pid, signal.SIGKILL)
    out, err = night.communicate(timeout=300)
    assert (night.returncode, out) == (3, ""), err
    assert err.splitlines()[-1].startswith("melanoma: Ray is gone: "), err
