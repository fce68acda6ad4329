"""The jobs, submitted to a Ray that asks for a token, as on a cluster."""

import contextlib
import http.client
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import pytest

from melanoma.demo.local_s3 import LocalS3, _ended_with_this_process

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent


@dataclass(frozen=True)
class Cluster:
    """A Ray of one node with a dashboard on `port`, and the environment of a user who may submit jobs to it."""

    port: int
    environment: dict[str, str]
    log: Path

    def submit(self, *words: str) -> "subprocess.CompletedProcess[str]":
        command = [str(BIN / "ray"), "job", "submit", "--working-dir", ".", "--", "python", *words]
        return subprocess.run(
            command, cwd=ROOT, env=self.environment, capture_output=True, text=True, check=False, timeout=300
        )

    def followed(self, *words: str, **environment: str) -> "subprocess.CompletedProcess[str]":
        """`melanoma submit ... --wait`"""
        command = [str(BIN / "melanoma"), "submit", *words, "--address", f"http://127.0.0.1:{self.port}", "--wait"]
        return subprocess.run(
            command,
            env={**self.environment, "COLUMNS": "1000", "PYTHONPATH": str(ROOT), **environment},
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )

    def status(self, path: str, token: str | None) -> int:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.request("GET", path, headers={"Authorization": f"Bearer {token}"} if token else {})
            return connection.getresponse().status
        finally:
            connection.close()


def free_ports(count: int) -> list[int]:
    probes = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [int(probe.getsockname()[1]) for probe in probes]
    for probe in probes:
        probe.close()
    return ports


@pytest.fixture(scope="module")
def cluster(
    s3: LocalS3, descendants: Callable[[int], dict[int, str]], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Cluster]:
    # Not pytest's folder, as the path of a Unix socket must be short.
    temporary = Path(tempfile.mkdtemp(prefix="ray-"))
    port, gcs, agent, client = free_ports(4)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")} | {
        "PATH": f"{BIN}:{os.environ['PATH']}",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
    }
    log = tmp_path_factory.mktemp("ray") / "start.log"
    ports = {"--port": gcs, "--dashboard-port": port, "--dashboard-agent-listen-port": agent}
    ports["--ray-client-server-port"] = client
    command = [str(BIN / "ray"), "start", "--head", "--block", "--num-cpus", "2", "--disable-usage-stats"]
    command += ["--node-ip-address", "127.0.0.1", "--dashboard-host", "127.0.0.1", "--temp-dir", str(temporary)]
    command += [str(word) for pair in ports.items() for word in pair]
    with log.open("wb") as said:
        head = subprocess.Popen(command, env=environment, stdout=said, stderr=subprocess.STDOUT, start_new_session=True)
    user = {**environment, "RAY_ADDRESS": f"http://127.0.0.1:{port}"}
    running = Cluster(port, user, log)
    try:
        with _ended_with_this_process(head.pid):
            deadline = time.monotonic() + 180
            while not answers(running):
                assert head.poll() is None, log.read_text()
                assert time.monotonic() < deadline, log.read_text()
                time.sleep(0.2)
            yield running
    finally:
        # Never `ray stop`: it stops every Ray of the machine.
        for pid in [head.pid, *descendants(head.pid)]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        head.wait()
        shutil.rmtree(temporary, ignore_errors=True)


def answers(cluster: Cluster) -> bool:
    try:
        return cluster.status("/api/version", cluster.environment["RAY_AUTH_TOKEN"]) == 200
    except OSError:
        return False


def test_the_dashboard_answers_only_who_has_the_token(cluster: Cluster) -> None:
    token = cluster.environment["RAY_AUTH_TOKEN"]
    for path in ("/api/version", "/api/jobs/", "/api/serve/applications/"):
        assert [cluster.status(path, sent) for sent in (None, token[::-1], token)] == [401, 403, 200], path


def test_a_submitted_night_is_published(
    cluster: Cluster, s3: LocalS3, bucket: str, bundle_path: Path, lesions: Path
) -> None:
    shutil.copytree(lesions, s3.root / bucket / "archive")
    (s3.root / bucket / "archive" / "empty.jpg").touch()
    shutil.copytree(bundle_path, s3.root / bucket / "bundle")
    done = cluster.submit(
        *("jobs/score.py", "--config", "configs/score.yaml", "run_date=2026-11-20"),
        *(f"archive=s3://{bucket}/archive", f"out=s3://{bucket}/results", f"bundle=s3://{bucket}/bundle"),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "36 scored, 1 rejected (1 empty)" in done.stdout
    (record,) = (json.loads(path.read_text()) for path in (s3.root / bucket / "results" / "runs").glob("*.json"))
    assert (record["counts"]["scored"], record["counts"]["rejected"]) == (36, 1)
    assert record["run_date"] == "2026-11-20"
    scores = pd.read_parquet(s3.root / bucket / "results" / "scores")
    assert scores["image_uri"].nunique() == len(scores) == 36
    assert cluster.environment["RAY_AUTH_TOKEN"] not in done.stdout + done.stderr
    assert s3.secret_key not in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("override", "hint"),
    [
        ("archve=s3://archive", "melanoma: Unknown key 'archve' in configs/score.yaml: did you mean 'archive'?"),
        pytest.param(
            "out=results",
            "melanoma: The key 'out' is 'results': a submitted job needs an s3:// URI or an absolute path",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_a_job_that_cannot_run_fails_and_says_why(cluster: Cluster, override: str, hint: str) -> None:
    done = cluster.submit("jobs/score.py", "--config", "configs/score.yaml", override)
    assert done.returncode != 0
    assert hint in done.stdout
    assert "Traceback" not in done.stdout


def test_without_the_token_no_job_is_taken(cluster: Cluster, tmp_path: Path) -> None:
    stranger = {name: value for name, value in cluster.environment.items() if not name.startswith("RAY_AUTH")}
    stranger["HOME"] = str(tmp_path)  # where Ray looks for a token
    done = Cluster(cluster.port, stranger, cluster.log).submit("jobs/score.py", "--config", "configs/score.yaml")
    assert done.returncode != 0
    assert "succeeded" not in done.stdout + done.stderr


# --- melanoma submit -------------------------------------------------------------------------------------------------


def test_a_night_that_was_submitted_ends_as_it_did_and_is_submitted_once(
    cluster: Cluster, s3: LocalS3, bucket: str, bundle_path: Path, lesions: Path
) -> None:
    shutil.copytree(lesions, s3.root / bucket / "archive")
    shutil.copytree(bundle_path, s3.root / bucket / "bundle")
    words = ["nightly", "--config", str(ROOT / "configs" / "nightly.yaml"), "score.run_date=2026-11-20"]
    words += [f"score.archive=s3://{bucket}/archive", f"score.out=s3://{bucket}/results"]
    words += [f"score.bundle=s3://{bucket}/bundle", "score.explained=0"]

    refused = cluster.followed(*words, f"score.archive=s3://{bucket}/none", "--submission-id", "first")
    assert refused.returncode == 2, refused.stdout + refused.stderr
    assert "melanoma: The archive" in refused.stderr
    assert "Traceback" not in refused.stderr
    note = json.loads((s3.root / bucket / "results" / "nights" / "night=2026-11-20.json").read_text())
    assert note["state"] == "failed"

    done = cluster.followed(*words)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Submitted as night-2026-11-20.\n" in done.stderr
    assert f"its results lie in s3://{bucket}/results" in done.stdout
    (record,) = (json.loads(path.read_text()) for path in (s3.root / bucket / "results" / "runs").glob("*.json"))
    assert record["counts"]["scored"] == 36
    assert s3.secret_key not in done.stdout + done.stderr

    again = cluster.followed(*words)
    assert again.returncode == 0
    assert "A job night-2026-11-20 has succeeded already: nothing was submitted." in again.stderr


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["paint", "--config", "x.yaml"], "There is no job 'paint': the jobs are nightly, score,"),
        (["score", "--config", "configs/score.yaml", "archve=x"], "Unknown key 'archve' in"),
        (
            ["score", "--config", "configs/score.yaml", "out=results"],
            "The key 'out' is 'results': a submitted job needs",
        ),
    ],
)
def test_a_job_that_cannot_run_is_refused_before_anything_is_uploaded(
    cluster: Cluster, words: list[str], hint: str
) -> None:
    words = [str(ROOT / word) if word.startswith("configs/") else word for word in words]
    done = cluster.followed(*words)
    assert done.returncode == 2
    assert hint in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("environment", "hint"),
    [({"RAY_AUTH_TOKEN": "f" * 64}, "it does not take this token"), ({"PORT": "1"}, "nothing answers there")],
)
def test_a_cluster_that_cannot_be_used_is_one_sentence(
    cluster: Cluster, environment: dict[str, str], hint: str
) -> None:
    port = int(environment.pop("PORT", str(cluster.port)))
    words = ["score", "--config", str(ROOT / "configs" / "score.yaml")]
    done = Cluster(port, cluster.environment, cluster.log).followed(*words, **environment)
    assert done.returncode == 2, done.stderr
    assert hint in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
