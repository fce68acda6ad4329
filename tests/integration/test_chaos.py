"""Scoring runs that everything disturbs: processes die, the store stutters and is away. Nothing may be missing."""

import os
import random
import signal
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from melanoma.demo.local_s3 import LocalS3
from tests.support.faulty_proxy import at_random, faulty_proxy

IMAGES = 400
FAULTS = 30  # at least as many faults of requests and processes have to be survived
DISTURBED = 10  # at least as many runs have to be killed in part or in whole, or cut off from the store
_DISTURBANCES = ("driver", "everything", "worker", "process", "store")


@pytest.mark.slow
def test_no_image_is_lost_or_doubled_whatever_dies(
    s3: LocalS3,
    bucket: str,
    bundle_path: Path,
    lesion: Callable[..., bytes],
    program: str,
    program_environment: dict[str, str],
    descendants: Callable[[int], dict[int, str]],
    tmp_path: Path,
) -> None:
    archive = s3.root / bucket / "archive"
    archive.mkdir()
    pictures = [lesion(code, seed, size=900) for code in ("MEL", "NV") for seed in range(8)]
    for number in range(IMAGES):
        (archive / f"{number:03}.jpg").write_bytes(pictures[number % len(pictures)])
    for number in range(20):
        (archive / f"broken-{number}.jpg").write_bytes(pictures[0][: 500 + number])
    settings = tmp_path / "score.yaml"
    settings.write_text("shard_size: 10\nworkers: 2\n")

    def command(out: str) -> list[str]:
        words = [program, "score", f"s3://{bucket}/archive", "--out", out, "--bundle", str(bundle_path)]
        return [*words, "--config", str(settings), "--run-date", "2026-11-20"]

    calm = f"s3://{bucket}/calm"
    subprocess.run(command(calm), env=program_environment, check=True, capture_output=True)
    expected = _results(calm)
    survived = Counter[str]()
    seed = 0
    while survived.total() < FAULTS or sum(survived[fault] for fault in _DISTURBANCES) < DISTURBED:
        out = f"s3://{bucket}/stormy-{seed}"
        survived += _storm(seed, command(out), s3, program_environment, descendants)
        found = _results(out)
        for kind in ("scores", "rejects"):
            assert Counter(found[kind]["image_uri"]) == Counter(expected[kind]["image_uri"])
        columns = ["rank", "image_uri", "alert_level", "p_melanoma"]
        pd.testing.assert_frame_equal(found["alerts"][columns], expected["alerts"][columns], atol=1e-5)
        seed += 1
    print(f"{seed} runs, survived: {dict(survived)}")
    assert len(survived) >= 6


def _results(out: str) -> dict[str, pd.DataFrame]:
    tables = {kind: pd.read_parquet(f"{out}/{kind}") for kind in ("scores", "rejects", "alerts")}
    assert len(tables["scores"]) + len(tables["rejects"]) == IMAGES + 20
    return tables


def _storm(
    seed: int,
    words: list[str],
    s3: LocalS3,
    environment: dict[str, str],
    descendants: Callable[[int], dict[int, str]],
) -> Counter[str]:
    """Repeat the command until it succeeds, and disturb it meanwhile; returns how often it survived what."""
    generator = random.Random(seed)
    done = Counter[str]()
    left: set[int] = set()  # what a dead driver leaves behind lives on beside the next
    with faulty_proxy(s3.endpoint, at_random(seed, share=0.03)) as proxy:
        for attempt in range(30):
            through_proxy = {**environment, "AWS_ENDPOINT_URL": proxy.url}
            with subprocess.Popen(
                words,
                env=through_proxy,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
                start_new_session=True,
            ) as process:
                # Later attempts are left alone for longer, so that the run ends.
                disturbed = time.monotonic() + generator.uniform(8, 14 + 4 * attempt)
                while process.poll() is None and time.monotonic() < disturbed:
                    time.sleep(0.05)
                if process.poll() is None:
                    left |= set(descendants(process.pid))
                    # The first time the store is away for a minute, later for seconds.
                    fault = "store" if seed == attempt == 0 else generator.choice(_DISTURBANCES)
                    away = 60.0 if seed == attempt == 0 else generator.uniform(1, 8)
                    done[fault] += _disturb(fault, process, proxy.down, descendants, generator, away)
                said = process.communicate()[1]
                assert "Traceback" not in said
            if process.returncode == 0:
                for pid in left:
                    _kill(pid)
                done.update({fault: count for fault, count in proxy.faults.items() if fault})
                return done
            assert process.returncode in (3, -signal.SIGKILL), said
    raise AssertionError(f"the run of seed {seed} did not end: {said}")


def _disturb(
    fault: str,
    process: "subprocess.Popen[str]",
    down: threading.Event,
    descendants: Callable[[int], dict[int, str]],
    generator: random.Random,
    away: float,
) -> bool:
    """Returns whether there was anything to disturb."""
    started = descendants(process.pid)
    if fault == "driver":  # its workers live on for a while
        return _kill(process.pid)
    if fault == "everything":
        for pid in started:
            _kill(pid)
        return _kill(process.pid)
    if fault == "store":
        down.set()
        time.sleep(away)
        down.clear()
        return True
    chosen = [pid for pid, command in started.items() if fault == "process" or "ShardScorer" in command]
    return bool(chosen) and _kill(generator.choice(sorted(chosen)))


def _kill(pid: int) -> bool:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return False
    return True
