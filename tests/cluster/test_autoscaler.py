"""Ray's own autoscaler on this machine, with the node types of the manifests: from no node up, and down again."""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import ray

from melanoma import config, ray_session
from melanoma.scoring import waiting
from melanoma.scoring.config import ScoreConfig
from melanoma.scoring.record import RunRecord
from melanoma.scoring.run import score
from tests.support.fake_cloud import autoscaled
from tests.support.manifests import KUBERAY, build, chosen, node_types
from tests.support.shared_ray import SharedRay

IMAGES = 1200  # half a minute of one worker: Ray Data sees a node within 20 seconds
MOST = 3  # nodes

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def types() -> dict[str, Any]:
    """The workers of the night's manifest, each of one core and at most three: this machine has two. What memory they
    have Ray finds out by itself."""
    workers = node_types(chosen(build(KUBERAY / "overlays" / "cpu"), "RayCronJob"))
    del workers["headgroup"]
    assert workers["cpu"]["min_workers"] == 0
    assert workers["cpu"]["max_workers"] >= MOST
    return {name: {**kind, "resources": {"CPU": 1}, "max_workers": MOST} for name, kind in workers.items()}


@pytest.fixture
def folder(tmp_path: Path, lesion: Callable[..., bytes], monkeypatch: pytest.MonkeyPatch) -> Path:
    for name, seconds in (("LOOK_EVERY", 0.5), ("STILL_AFTER", 2.0), ("SAY_EVERY", 2.0)):
        monkeypatch.setattr(waiting, name, seconds)
    (tmp_path / "archive").mkdir()
    for number in range(IMAGES):
        (tmp_path / "archive" / f"{number}.jpg").write_bytes(lesion(seed=number % 10))
    return tmp_path


class Cluster:
    """One that the autoscaler grows and shrinks: what it had of nodes with cores, since it was looked at."""

    def __init__(self) -> None:
        self.seen: list[int] = []  # numbers of nodes, each other than the one before
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def ids(self) -> list[str]:
        return [node["NodeID"] for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU")]

    def _look(self) -> None:
        while not self._ended.wait(0.2):
            with contextlib.suppress(Exception):  # as Ray begins and ends
                count = len(self.ids()) if ray.is_initialized() else 0
                if self.seen[-1:] != [count]:
                    self.seen.append(count)

    def kill_a_node(self) -> None:
        """As a spot machine goes that nobody was warned of."""
        name = f"RAY_OVERRIDE_NODE_ID_FOR_TESTING={self.ids()[0]}".encode()
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if (process / "comm").read_text() == "raylet\n" and name in (process / "environ").read_bytes():
                    return os.kill(int(process.name), signal.SIGKILL)
        raise AssertionError("there is no such raylet")

    def wait_until_empty(self) -> None:
        deadline = time.monotonic() + 120
        while self.ids():
            assert time.monotonic() < deadline, "the nodes stay"
            time.sleep(0.2)
        time.sleep(1)  # until that is seen, too

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        self._thread.start()
        try:
            yield
        finally:
            self._ended.set()
            self._thread.join()


@pytest.fixture
def scored(
    shared_ray: SharedRay, types: dict[str, Any], folder: Path, bundle_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[RunRecord, Cluster, list[str]]]:
    """Score the archive on a cluster of the autoscaler: the run, the cluster, and what the run said."""

    def run(
        on_progress: Callable[[Cluster, int], None] = lambda cluster, done: None, **cloud: Any
    ) -> tuple[RunRecord, Cluster, list[str]]:
        places = {"archive": str(folder / "archive"), "out": str(folder / "out"), "bundle": str(bundle_path)}
        wanted = config.load(ScoreConfig, None, **places, batch_size=1, shard_size=1, workers=8, explained=0)
        cluster, said = Cluster(), list[str]()
        with shared_ray.set_aside(), autoscaled(folder, types, **cloud) as address:
            monkeypatch.setenv("RAY_ADDRESS", address)
            try:
                with cluster.watched():
                    outcome = score(wanted, lambda progress: on_progress(cluster, progress.done), said.append)
                    cluster.wait_until_empty()
            finally:
                ray_session.disconnect()
        scores = pd.read_parquet(folder / "out" / "scores", columns=["image_uri"])
        assert sorted(scores["image_uri"]) == sorted(map(str, (folder / "archive").iterdir()))
        print(cluster.seen)
        return outcome.record, cluster, said

    return run


def test_nodes_come_for_a_run_and_go_after(scored: Callable[..., tuple[RunRecord, Cluster, list[str]]]) -> None:
    record, cluster, _ = scored()
    assert record.counts.scored == IMAGES
    assert (cluster.seen[0], max(cluster.seen), cluster.seen[-1]) == (0, MOST, 0)
    assert record.stages.workers == MOST


def test_a_wish_for_nodes_that_never_come_holds_up_nothing(
    scored: Callable[..., tuple[RunRecord, Cluster, list[str]]],
) -> None:
    record, cluster, _ = scored(most=1)
    assert (max(cluster.seen), record.stages.workers) == (1, 1)


def test_nodes_that_are_late_are_waited_for(scored: Callable[..., tuple[RunRecord, Cluster, list[str]]]) -> None:
    _, cluster, said = scored(late=15.0)
    assert any(line.startswith("Waiting for 1 core and") for line in said)
    assert max(cluster.seen) > 1


def test_a_node_that_is_killed_is_replaced(scored: Callable[..., tuple[RunRecord, Cluster, list[str]]]) -> None:
    killed: list[int] = []

    def kill(cluster: Cluster, done: int) -> None:
        if done > IMAGES // 20 and not killed:
            killed.append(done)
            cluster.kill_a_node()

    _, cluster, _ = scored(kill, most=1)
    assert killed
    assert cluster.seen == [0, 1, 0, 1, 0]
