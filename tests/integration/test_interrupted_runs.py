"""Scoring runs as users start them, killed and started again: the command in a process of its own."""

import json
import os
import re
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path

import pandas as pd
import pytest

from melanoma.demo.local_s3 import LocalS3


def kill(process: "subprocess.Popen[bytes]", started: Iterable[int]) -> None:
    """SIGKILL the process group of a command, and see that what it has `started` ends with it."""
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    deadline = time.monotonic() + 30
    # Ray's processes end when the one that started them does; its workers, a moment later.
    while (left := {pid for pid in started if Path(f"/proc/{pid}").exists()}) and time.monotonic() < deadline:
        time.sleep(0.05)
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert not left, f"the killed command left {left} running"


def test_a_killed_run_is_resumed_by_the_same_command(
    s3: LocalS3,
    bucket: str,
    bundle_path: Path,
    lesion: Callable[..., bytes],
    program: str,
    program_environment: dict[str, str],
    contents: Callable[[Path], dict[str, tuple[int, bytes]]],
    descendants: Callable[[int], dict[int, str]],
    tmp_path: Path,
) -> None:
    archive, out = s3.root / bucket / "archive", s3.root / bucket / "results"
    archive.mkdir()
    # Large enough that the run takes a while.
    pictures = [lesion(code, 1, size=1500) for code in ("MEL", "NV")]
    for number in range(120):
        (archive / f"{number:03}.jpg").write_bytes(pictures[number % 2])
    (archive / "text.jpg").write_bytes(b"no picture")
    settings = tmp_path / "score.yaml"
    settings.write_text("shard_size: 3\nworkers: 1\n")
    words = [program, "score", f"s3://{bucket}/archive", "--out", f"s3://{bucket}/results"]
    words += ["--bundle", str(bundle_path), "--config", str(settings)]

    first = subprocess.Popen(
        words, env=program_environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    try:
        deadline = time.monotonic() + 180
        while not any(out.glob("scores/*/*/*.parquet")):
            assert first.poll() is None, "the run ended before it could be killed"
            assert time.monotonic() < deadline, "the run did not begin"
            time.sleep(0.002)
    finally:
        if first.poll() is None:
            kill(first, descendants(first.pid))
    before = contents(out)
    done = {name for name in before if name.startswith("scores/")}
    assert 0 < len(done) < 41, "the run was not killed in its middle"
    assert not [name for name in before if re.fullmatch(r"runs/[^/]*\.json", name) or name.startswith("alerts/")]

    second = subprocess.run(words, env=program_environment, capture_output=True, text=True, check=False)
    assert second.returncode == 0, second.stderr
    lines = second.stderr.splitlines()
    (run,) = (found[1] for line in lines if (found := re.fullmatch(r"Resuming the run (\S+)\.", line)))
    assert any(re.fullmatch(r"\d+ of 121 images were done before the interruption\.", line) for line in lines)
    dead = [
        "Another driver has been at work here: looking for 15 s whether it is alive.",
        "It is not: this driver takes its place.",
    ]
    assert [line for line in lines if line in dead] == dead
    logged = [json.loads(line) for line in lines if line.startswith("{")]
    assert (logged[-1]["done"], logged[-1]["images"], logged[-1]["rejects_by_kind"]) == (121, 121, {"not_an_image": 1})
    told = [line for line in lines if line not in dead and not line.startswith("{")]
    assert all(re.match(r"Resuming|Scoring: \d+ of 121$|\d+ of 121", line) for line in told), told
    after = contents(out)
    assert {name: after[name] for name in done} == {name: before[name] for name in done}
    assert len([name for name in after if name.startswith("scores/")]) == 41
    tables = {kind: pd.read_parquet(f"s3://{bucket}/results/{kind}") for kind in ("scores", "rejects", "alerts")}
    uris = Counter([*tables["scores"]["image_uri"], *tables["rejects"]["image_uri"]])
    assert uris == Counter(f"s3://{bucket}/archive/{path.name}" for path in archive.iterdir())
    assert tables["rejects"]["image_uri"].tolist() == [f"s3://{bucket}/archive/text.jpg"]
    assert set(tables["scores"]["run_id"]) == {run}
    record = json.loads((out / "runs" / f"run_id={run}.json").read_text())
    assert (record["counts"]["scored"], record["counts"]["rejected"], record["stages"]["resumed"]) == (120, 1, True)
    assert len(tables["alerts"]) == record["counts"]["alerts"]

    third = subprocess.run(words, env=program_environment, capture_output=True, text=True, check=False)
    assert (third.returncode, third.stderr) == (0, "")
    assert f"The run {run} was finished at {record['finished_at']}: nothing was changed." in third.stdout
    assert contents(out) == after


def wait_for(moment: str, out: Path, process: "subprocess.Popen[str]", started: Callable[[], dict[int, str]]) -> None:
    """Wait until a run is at a moment of its life."""
    files = {
        "planning": "runs/key=*/lease.json",
        "scoring": "scores/*/*/*.parquet",
        "publishing": "alerts/*/*/*.parquet",
    }
    deadline = time.monotonic() + 180
    while not (
        any(out.glob(files[moment])) if moment in files else any("gcs_server" in words for words in started().values())
    ):
        assert process.poll() is None, "the run ended before it could be stopped"
        assert time.monotonic() < deadline, "the run did not come so far"
        time.sleep(0.01)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "moment", "code", "last"),
    [
        *(
            (signal.SIGINT, moment, 130, "Interrupted. The same command resumes it.")
            for moment in ("planning", "starting Ray", "scoring", "publishing")
        ),
        (signal.SIGTERM, "scoring", 3, "Terminated."),
    ],
)
def test_a_stopped_run_says_so_and_leaves_nothing_running(
    number: signal.Signals,
    moment: str,
    code: int,
    last: str,
    bundle_path: Path,
    lesion: Callable[..., bytes],
    program: str,
    program_environment: dict[str, str],
    descendants: Callable[[int], dict[int, str]],
    tmp_path: Path,
) -> None:
    archive, out = tmp_path / "archive", tmp_path / "out"
    archive.mkdir()
    picture = lesion("MEL", 1, size=1500)
    for count in range(80 if moment == "publishing" else 400):
        (archive / f"{count:03}.jpg").write_bytes(picture)
    words = [program, "score", str(archive), "--out", str(out), "--bundle", str(bundle_path)]
    with subprocess.Popen(
        words, env=program_environment, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        wait_for(moment, out, process, lambda: descendants(process.pid))
        started = descendants(process.pid)
        # Of a terminal, Ctrl-C goes to all that the command has started, too.
        os.killpg(process.pid, number) if number == signal.SIGINT else process.send_signal(number)
        said = process.communicate(timeout=60)[1]
    assert process.returncode == code, said
    assert said.splitlines()[-1] == f"melanoma: {last}"
    assert "Traceback" not in said
    deadline = time.monotonic() + 30
    while (left := [pid for pid in started if Path(f"/proc/{pid}").exists()]) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not left, [started[pid] for pid in left]
    assert not list((out / "runs").glob("*.json"))
    # Whoever resumes it need not wait for a dead driver.
    assert not list((out / "runs").glob("key=*/lease.json"))


@pytest.mark.slow
def test_a_training_that_was_interrupted_says_how_it_is_resumed_and_is(
    lesions: Path,
    program: str,
    program_environment: dict[str, str],
    descendants: Callable[[int], dict[int, str]],
    tmp_path: Path,
) -> None:
    catalog, settings = tmp_path / "catalog.parquet", tmp_path / "train.yaml"
    for words in (
        ["catalog", str(lesions), "-o", str(catalog)],
        ["split", str(catalog), "-o", str(catalog), "--test", "0"],
    ):
        subprocess.run([program, *words], env=program_environment, check=True, capture_output=True)
    settings.write_text(
        f"catalog: {catalog}\nout: {tmp_path / 'bundle'}\ncheckpoints: {tmp_path / 'checkpoints'}\nimage_size: 32\n"
        "network: {width: 4}\nbatch_size: 8\nepochs: 10\nworkers: 1\naugmentation: []\n"
    )
    train = [program, "train", "--config", str(settings)]
    with subprocess.Popen(
        train,
        env=program_environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        assert process.stderr is not None
        said = []
        for line in process.stderr:
            said.append(line)
            if line.startswith("epoch 2/"):
                break
        # Ray Train asks its workers every two seconds what they have kept: before it has, there is nothing to resume.
        deadline = time.monotonic() + 60
        while not any(tmp_path.glob("checkpoints/*/checkpoint_manager_snapshot.json")):
            assert process.poll() is None, said
            assert time.monotonic() < deadline, said
            time.sleep(0.05)
        started = descendants(process.pid)
        os.killpg(process.pid, signal.SIGINT)
        said += process.stderr.readlines()
    assert process.returncode == 130, said
    found = re.fullmatch(r"melanoma: Interrupted\. The same command with (run_name=\S+) resumes it\.\n", said[-1])
    assert found, said
    assert not any("Traceback" in line for line in said)
    deadline = time.monotonic() + 30
    while (left := [pid for pid in started if Path(f"/proc/{pid}").exists()]) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not left, [started[pid] for pid in left]
    resumed = subprocess.run([*train, found[1]], env=program_environment, capture_output=True, text=True, check=False)
    assert resumed.returncode == 0, resumed.stderr
    epochs = [int(epoch) for epoch in re.findall(r"^epoch (\d+)/10", resumed.stderr, re.MULTILINE)]
    assert epochs == list(range(epochs[0], 11))
    assert epochs[0] > 1
