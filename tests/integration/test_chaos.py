"""Nights that everything disturbs: files kill, processes die, nodes come and go, the store stutters and is away, and
another day begins. No image may be missing or doubled, and no alert untold."""

import base64
import contextlib
import json
import os
import random
import signal
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import pandas as pd
import pyarrow as pa
import pytest

from melanoma import storage
from melanoma.demo.local_s3 import LocalS3
from melanoma.scoring import channels
from tests.support import deadly_files
from tests.support.faulty_proxy import PHASES, FaultyProxy, Outage, at_random, faulty_proxy
from tests.support.receiver import receiving
from tests.support.shared_ray import SharedRay

IMAGES = 400
BROKEN = {"kills.jpg": b"!crash!", "hangs.jpg": b"!hang!"}  # and 20 that are cut short
REJECTED = 20 + len(BROKEN)
FAULTS = 100  # at least as many have to be survived
ON_ONE_MACHINE = ("driver", "worker", "everything", "process", "store")
ON_A_CLUSTER = ("grows", "driver", "shrinks", "worker")
KINDS = {*ON_ONE_MACHINE, *ON_A_CLUSTER, "file kills", "file hangs", "next date", *(f"away: {name}" for name in PHASES)}
FIRST_DATE = ("--run-date", "2026-11-20")


@dataclass(frozen=True)
class Storm:
    """One night, from its first attempt until everybody has been told of it."""

    seed: int
    words: list[str]  # the command, without its date
    environment: dict[str, str]
    descendants: Callable[[int], dict[int, str]]
    cluster: Any = None  # of ray.cluster_utils; None: each attempt has a Ray of its own
    nodes: Any = None  # of the cluster, those that have a core

    def rage(self, proxy: FaultyProxy, outage: Outage) -> Counter[str]:
        """Repeat the command until it succeeds, and disturb it meanwhile; returns how often it survived what."""
        generator = random.Random(self.seed)
        # Each night draws all kinds before it draws one again.
        kinds = list(ON_A_CLUSTER if self.cluster else ON_ONE_MACHINE)
        done = Counter[str]()
        left: set[int] = set()  # what a dead driver leaves behind lives on beside the next
        for attempt in range(30):
            # Whoever tries again does so on another day: the date of the first attempt was yesterday's.
            words, fault = [*self.words, *FIRST_DATE] if attempt == 0 else self.words, ""
            with subprocess.Popen(
                words,
                env=self.environment,
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
                    left |= set(self.descendants(process.pid))
                    fault = kinds[(self.seed // 3 + attempt) % len(kinds)]
                    # The first time the store is away for a minute, later for seconds.
                    away = 60.0 if self.seed == attempt == 0 else generator.uniform(1, 8)
                    done[fault] += self._disturb(fault, process, proxy.down, generator, away)
                said = process.communicate()[1]
                assert "Traceback" not in said
            if process.returncode == 0:
                for pid in left:
                    _kill(pid)
                done["next date"] += attempt > 0 and "of an earlier night is finished" in said
                done[f"away: {list(PHASES)[self.seed % len(PHASES)]}"] += outage.began is not None
                done.update({fault: count for fault, count in proxy.faults.items() if fault})
                return done
            # A Ray that has lost one of its agents ends the process with 1, and without a word; one that has lost a
            # process while it started is named.
            could_not_start = process.returncode == 2 and "melanoma: Ray cannot start" in said
            allowed = (1, 3) if fault == "process" else (3, -signal.SIGKILL)
            assert process.returncode in allowed or (fault == "process" and could_not_start), said
        raise AssertionError(f"the run of seed {self.seed} did not end: {said}")

    def _disturb(
        self,
        fault: str,
        process: "subprocess.Popen[str]",
        down: threading.Event,
        generator: random.Random,
        away: float,
    ) -> bool:
        """Returns whether there was anything to disturb."""
        started = self.descendants(process.pid)
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
        if fault == "grows":
            self.nodes.append(self.cluster.add_node(num_cpus=1))
            return True
        if fault == "shrinks":
            self.cluster.remove_node(self.nodes.pop(0), allow_graceful=False)
            if not self.nodes:  # none is left for a while
                time.sleep(away)
                self.nodes.append(self.cluster.add_node(num_cpus=1))
            return True
        if fault == "process":
            return bool(started) and _kill(generator.choice(sorted(started)))
        root = os.getpid() if self.cluster else process.pid  # a cluster's workers are no children of the driver
        while process.poll() is None:  # a busy machine starts its workers late
            if workers := [pid for pid, command in self.descendants(root).items() if "ShardScorer" in command]:
                return _kill(generator.choice(sorted(workers)))
            time.sleep(0.05)
        return False


@pytest.mark.slow
@pytest.mark.timeout(5400)
def test_no_image_is_lost_doubled_or_untold_whatever_happens(
    s3: LocalS3,
    bucket: str,
    bundle_path: Path,
    lesion: Callable[..., bytes],
    program: str,
    program_environment: dict[str, str],
    descendants: Callable[[int], dict[int, str]],
    shared_ray: SharedRay,
    tmp_path: Path,
) -> None:
    environment = {**program_environment, "PYTHONPATH": str(deadly_files.FOLDER)}
    _fill(s3.root / bucket / "archive", lesion)
    settings = tmp_path / "score.yaml"
    settings.write_text("shard_size: 10\nworkers: 2\ndecode_seconds: 5\n")

    def command(out: str) -> list[str]:
        words = [program, "score", f"s3://{bucket}/archive", "--out", out, "--bundle", str(bundle_path)]
        return [*words, "--config", str(settings)]

    calm = f"s3://{bucket}/calm"
    first = subprocess.run([*command(calm), *FIRST_DATE], env=environment, capture_output=True, text=True, check=False)
    assert first.returncode == 0, first.stderr
    expected = _results(calm)
    survived = Counter[str]()
    seed = 0
    with shared_ray.set_aside():
        while survived.total() < FAULTS or KINDS - set(+survived):
            assert seed < 40, (survived, KINDS - set(+survived))
            out = f"s3://{bucket}/stormy-{seed}"
            pattern = list(PHASES.values())[seed % len(PHASES)]
            outage = Outage(pattern, seconds=5, otherwise=at_random(seed, share=0.03))
            with faulty_proxy(s3.endpoint, outage) as proxy, contextlib.ExitStack() as stack:
                storm = Storm(seed, command(out), {**environment, "AWS_ENDPOINT_URL": proxy.url}, descendants)
                if seed % 3 == 1:
                    storm = stack.enter_context(_on_a_cluster(storm))
                survived += storm.rage(proxy, outage)
                found = _results(out)
                survived += Counter({"file kills": 1, "file hangs": 1})
                _assert_same(found, expected)
                _assert_told(program, out, storm.environment, expected["alerts"], tmp_path)
            seed += 1
            print(f"{seed} nights, {survived.total()} faults survived: {dict(survived)}", flush=True)


def _fill(archive: Path, lesion: Callable[..., bytes]) -> None:
    archive.mkdir()
    pictures = [lesion(code, seed, size=900) for code in ("MEL", "NV") for seed in range(8)]
    for number in range(IMAGES):
        (archive / f"{number:03}.jpg").write_bytes(pictures[number % len(pictures)])
    for number in range(REJECTED - len(BROKEN)):
        (archive / f"broken-{number}.jpg").write_bytes(pictures[0][: 500 + number])
    for name, words in BROKEN.items():
        (archive / name).write_bytes(pictures[0] + words)


@contextlib.contextmanager
def _on_a_cluster(storm: Storm) -> Iterator[Storm]:
    """The same night on a cluster of two nodes with a core each, and a head without."""
    from ray.cluster_utils import Cluster

    with mock.patch.dict(os.environ, storm.environment, clear=True):  # that of its workers
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "num_gpus": 0})
        try:
            nodes = [cluster.add_node(num_cpus=1), cluster.add_node(num_cpus=1)]
            environment = {**storm.environment, "RAY_ADDRESS": cluster.address}
            yield Storm(storm.seed, storm.words, environment, storm.descendants, cluster, nodes)
        finally:
            cluster.shutdown()


def _results(out: str) -> dict[str, pd.DataFrame]:
    tables = {kind: _table(f"{out}/{kind}") for kind in ("scores", "rejects", "alerts")}
    assert len(tables["scores"]) == IMAGES
    assert len(tables["rejects"]) == REJECTED
    kinds = {
        uri.rpartition("/")[2]: kind
        for uri, kind in zip(tables["rejects"]["image_uri"], tables["rejects"]["error_kind"], strict=True)
    }
    assert (kinds["kills.jpg"], kinds["hangs.jpg"]) == ("crashed", "timeout")
    return tables


def _table(uri: str) -> pd.DataFrame:
    uris = [info.uri for info in storage.list_objects(uri)]
    return pa.concat_tables([storage.read_table(uri) for uri in uris]).to_pandas()


def _assert_same(found: dict[str, pd.DataFrame], expected: dict[str, pd.DataFrame]) -> None:
    for kind in ("scores", "rejects"):
        assert Counter(found[kind]["image_uri"]) == Counter(expected[kind]["image_uri"])
    columns = ["rank", "image_uri", "alert_level", "p_melanoma"]
    pd.testing.assert_frame_equal(found["alerts"][columns], expected["alerts"][columns], atol=1e-5)


def _assert_told(program: str, out: str, environment: dict[str, str], alerts: pd.DataFrame, folder: Path) -> None:
    """Each alert is shown once, and sent once."""
    wanted = sorted(alerts["image_uri"])
    shown = subprocess.run([program, "alerts", out, "--json"], env=environment, check=True, capture_output=True)
    assert sorted(row["image_uri"] for row in json.loads(shown.stdout)) == wanted
    secret = {channels.SECRET: "whsec_" + base64.b64encode(b"0123456789abcdef01234567").decode()}
    with receiving("reset", 503) as receiver:
        channel = folder / "deliver.yaml"
        channel.write_text(f"webhook: {receiver.url}\n")
        words = [program, "deliver", out, "--config", str(channel)]
        for _ in range(2):
            subprocess.run(words, env={**environment, **secret}, check=True, capture_output=True)
        sent = [row["image_uri"] for _, body in receiver.acknowledged for row in json.loads(body)["alerts"]]
    assert sorted(sent) == wanted


def _kill(pid: int) -> bool:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return False
    return True
