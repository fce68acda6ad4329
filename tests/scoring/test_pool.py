"""Workers on a cluster: as many as fit, up to the wish, while nodes come and go; and what a run says that waits."""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import ray

from melanoma import config, privacy, ray_session
from melanoma.errors import InputError, MelanomaError
from melanoma.scoring import pool, waiting
from melanoma.scoring.config import ScoreConfig
from melanoma.scoring.run import Outcome, score
from tests.support.shared_ray import SharedRay

GB = 1e9
PLACED = ("ShardScorer", "NetworkOnGpu")
IMAGES = 1200  # half a minute of one worker: Ray Data sees a node within 20 seconds


def settings(folder: Path, bundle_path: Path, **values: Any) -> ScoreConfig:
    places = {"archive": str(folder / "archive"), "out": str(folder / "out"), "bundle": str(bundle_path)}
    return config.load(ScoreConfig, None, **places, **values)


# --- How many ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("nodes", "workers"),
    [
        ([], 0),
        ([{"CPU": 0.0, "memory": 8 * GB}], 0),  # a head that only leads
        ([{"CPU": 4.0, "memory": 8 * GB}], 4),
        ([{"CPU": 64.0, "memory": 2 * GB}], 2),
        ([{"CPU": 2.0, "memory": 1.2 * GB}], 1),
        ([{"CPU": 2.0, "memory": 0.6 * GB}], 1),  # the only node that there is
        ([{"CPU": 2.0, "memory": 0.6 * GB}, {"CPU": 2.0, "memory": 4 * GB}], 2),
    ],
)
def test_a_node_gets_as_many_workers_as_it_has_cores_and_memory_for(
    nodes: list[dict[str, float]], workers: int
) -> None:
    assert pool.room(nodes, pool.worker_memory(nodes)) == workers


@pytest.mark.parametrize(
    ("workers", "cluster", "images", "size"),
    [
        (None, None, 60, 32),
        (None, None, 20_000, 640),  # 32 shards for the two cores that are there, and stay
        (None, "head:6379", 20_000, 64),  # more of them for nodes that may come
        (None, "head:6379", 10_000_000, 4096),
        (100, None, 1_000_000, 640),
        (1, "head:6379", 20_000, 1_280),
    ],
)
def test_shards_are_cut_for_the_workers_that_are_wished_for(
    workers: int | None,
    cluster: str | None,
    images: int,
    size: int,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setattr(ray_session, "connect", lambda: None)
    monkeypatch.setattr(ray_session, "cores", lambda: 2)
    monkeypatch.setattr(ray_session, "cluster_address", lambda: cluster)
    assert pool.shard_size(settings(tmp_path, tmp_path, workers=workers), images) == size


def test_what_a_run_waits_for_is_said_in_words() -> None:
    there = {"CPU": 4.0, "memory": 8 * GB, "GPU": 1.0}
    assert waiting.sentence(10**9, {}, {"memory": 0.25 * GB}, there) == (
        "Waiting for 1 core and 1.0 GB of memory on some node: the cluster has 0 of 4 cores and 0.2 of 8.0 GB free."
    )
    assert waiting.sentence(None, {}, {"CPU": 2.0}, there) == "Waiting for a GPU: the cluster has 0 of 1 free."
    labels = {"ray.io/node-group": "cpu", "zone": "a"}
    assert waiting.sentence(10**9, labels, {"CPU": 4.0, "memory": 8 * GB}, there) == (
        "Waiting for 1 core and 1.0 GB of memory on some node labelled ray.io/node-group=cpu, zone=a: the cluster has "
        "4 of 4 cores and 8.0 of 8.0 GB free."
    )
    assert waiting.sentence(None, {"zone": "b"}, {"GPU": 1.0}, there) == (
        "Waiting for a GPU on a node labelled zone=b: the cluster has 1 of 1 free."
    )


def test_a_label_is_a_word_and_no_operator_of_ray(tmp_path: Path) -> None:
    labels = {"ray.io/node-group": "cpu"}
    assert settings(tmp_path, tmp_path, worker_labels=labels, gpu_labels=labels).worker_labels == labels
    for value in ("!cpu", "in(cpu,gpu)", "", "-cpu"):
        with pytest.raises(InputError, match="worker_labels"):
            settings(tmp_path, tmp_path, worker_labels={"ray.io/node-group": value})


def test_a_machine_without_gpus_that_is_no_cluster_gets_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(ray_session, "gpus", lambda labels: 0)
    monkeypatch.setattr(ray_session, "cluster_address", lambda: None)
    with pytest.raises(InputError, match="gpus is 2: this machine has none"):
        pool.gpus_at_first(settings(tmp_path, tmp_path, gpus=2))
    monkeypatch.setattr(ray_session, "cluster_address", lambda: "head:6379")
    assert pool.gpus_at_first(settings(tmp_path, tmp_path, gpus=2)) == 2


def _reports(shards: Sequence[int], fails_after: int, error: Exception) -> Iterator[dict[str, Any]]:
    for place, number in enumerate(shards):
        if place == fails_after:
            raise error
        yield {"shard": number}


def test_shards_that_are_left_are_scored_when_ray_data_fails_between_them() -> None:
    """Seen while a node was being lost: ValueError and KeyError of Ray Data's own."""
    asked: list[list[int]] = []
    said: list[str] = []

    def score(left: Sequence[int]) -> Iterator[dict[str, Any]]:
        asked.append(list(left))
        return _reports(left, fails_after=2, error=ValueError("an object whose owner is unknown"))

    found = [report["shard"] for report in pool._each_once([4, 5, 6, 7, 8], score, said.append)]
    assert found == [4, 5, 6, 7, 8]
    assert asked == [[4, 5, 6, 7, 8], [6, 7, 8], [8]]
    assert said[0] == "Ray Data failed (an object whose owner is unknown): going on with the 3 shards that are left."
    assert len(said) == 2


def test_ray_data_that_fails_twice_at_one_place_ends_the_run() -> None:
    with pytest.raises(MelanomaError, match=r"Ray Data failed: .*nothing goes.* The same command resumes the run"):
        list(pool._each_once([1, 2], lambda left: _reports(left, fails_after=0, error=KeyError("nothing goes")), print))


@pytest.mark.parametrize("error", [MelanomaError("a worker"), ray.exceptions.RayError("Ray"), OSError("a disk")])
def test_what_a_worker_raises_is_not_tried_again(error: Exception) -> None:
    reports = pool._each_once([1, 2], lambda left: _reports(left, fails_after=1, error=error), print)
    assert next(reports) == {"shard": 1}
    with pytest.raises(type(error)):
        next(reports)


# --- Nodes that come and go -------------------------------------------------------------------------------------------


class Night:
    """A run in a thread of its own, on a cluster whose nodes the test adds and removes."""

    def __init__(self, chosen: ScoreConfig) -> None:
        self.said: list[str] = []
        self.done = 0
        self._outcome: Outcome | BaseException | None = None
        self._thread = threading.Thread(target=self._run, args=(chosen,), daemon=True)
        self._thread.start()

    def _run(self, chosen: ScoreConfig) -> None:
        try:
            self._outcome = score(chosen, on_progress=self._progress, say=self.said.append)
        except BaseException as error:
            self._outcome = error

    def _progress(self, progress: Any) -> None:
        self.done = progress.done

    def until(self, happened: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 240
        while not happened():
            if isinstance(self._outcome, BaseException):
                raise self._outcome
            assert time.monotonic() < deadline, (self.said, self.done)
            time.sleep(0.1)

    @property
    def waits(self) -> list[str]:
        return [line for line in self.said if line.startswith("Waiting for")]

    def outcome(self) -> Outcome:
        self._thread.join(300)
        if isinstance(self._outcome, BaseException):
            raise self._outcome
        assert self._outcome, "it goes on and on"
        return self._outcome


@pytest.fixture
def nodes(shared_ray: SharedRay, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A cluster whose only node is a head without cores."""
    from ray.cluster_utils import Cluster

    monkeypatch.setattr(waiting, "LOOK_EVERY", 0.5)
    monkeypatch.setattr(waiting, "STILL_AFTER", 2.0)
    monkeypatch.setattr(waiting, "SAY_EVERY", 2.0)
    with shared_ray.set_aside():
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "num_gpus": 0})
        monkeypatch.setenv("RAY_ADDRESS", cluster.address)
        try:
            yield cluster
        finally:
            ray_session.disconnect()
            cluster.shutdown()


@pytest.fixture
def start(tmp_path: Path, lesion: Callable[..., bytes], bundle_path: Path) -> Callable[..., Night]:
    (tmp_path / "archive").mkdir()
    for number in range(IMAGES):
        (tmp_path / "archive" / f"{number}.jpg").write_bytes(lesion(seed=number % 10))
    return lambda **values: Night(settings(tmp_path, bundle_path, explained=0, **values))


def assert_each_once(folder: Path) -> None:
    scores = pd.read_parquet(folder / "out" / "scores")
    assert sorted(scores["image_uri"]) == sorted(map(str, (folder / "archive").iterdir()))


@pytest.mark.slow
def test_a_run_without_nodes_says_what_it_waits_for_and_grows_with_those_that_come(
    nodes: Any, start: Callable[..., Night], tmp_path: Path
) -> None:
    night = start(batch_size=1, shard_size=1)
    night.until(lambda: bool(night.waits))
    assert night.waits[0].startswith("Waiting for 1 core and 1.0 GB of memory on some node: the cluster has 0 of 0 cor")
    nodes.add_node(num_cpus=1)
    night.until(lambda: night.done > 0)
    nodes.add_node(num_cpus=1)
    record = night.outcome().record
    assert record.counts.scored == IMAGES
    assert record.stages.workers == 2
    assert_each_once(tmp_path)


@pytest.mark.slow
def test_a_node_that_leaves_loses_nothing(nodes: Any, start: Callable[..., Night], tmp_path: Path) -> None:
    """With nobody left the run waits for the next node; a wish that the cluster cannot meet hinders nothing."""
    leaving = [nodes.add_node(num_cpus=1), nodes.add_node(num_cpus=1)]
    night = start(batch_size=2, shard_size=2, workers=50)
    night.until(lambda: night.done > 10)
    nodes.remove_node(leaving[0], allow_graceful=False)
    seen = night.done
    night.until(lambda: night.done > seen + 5)
    nodes.remove_node(leaving[1], allow_graceful=False)
    night.until(lambda: bool(night.waits))
    nodes.add_node(num_cpus=1)
    assert night.outcome().record.counts.scored == IMAGES
    assert_each_once(tmp_path)


@pytest.mark.slow
def test_gpus_that_come_later_are_waited_for_and_used(nodes: Any, start: Callable[..., Night], tmp_path: Path) -> None:
    nodes.add_node(num_cpus=2)
    night = start(batch_size=4, shard_size=4, gpus=2)
    night.until(lambda: "Waiting for a GPU: the cluster has 0 of 0 free." in night.waits)
    assert night.done == 0
    first = nodes.add_node(num_cpus=0, num_gpus=1)
    night.until(lambda: night.done > 0)
    nodes.add_node(num_cpus=0, num_gpus=1)
    nodes.remove_node(first, allow_graceful=False)
    assert night.outcome().record.counts.scored == IMAGES
    assert_each_once(tmp_path)


@pytest.mark.slow
def test_workers_and_networks_are_on_nodes_of_their_labels_alone(
    nodes: Any, start: Callable[..., Night], tmp_path: Path
) -> None:
    """Decoding on nodes of CPUs, and the network on those of GPUs, whose cores stay free."""
    nodes.add_node(num_cpus=2, num_gpus=1)  # neither, though it has room for both
    night = start(
        batch_size=4, shard_size=4, gpus=1, worker_labels={"kind": "cpu"}, gpu_labels={"ray.io/node-group": "gpu"}
    )
    night.until(lambda: any("on some node labelled kind=cpu: the cluster has 2 of 2 cores" in on for on in night.waits))
    cpu = nodes.add_node(num_cpus=1, num_gpus=1, labels={"kind": "cpu"})
    night.until(lambda: any("a GPU on a node labelled ray.io/node-group=gpu" in on for on in night.waits))
    assert night.done == 0
    gpu = nodes.add_node(num_cpus=2, num_gpus=1, labels={"ray.io/node-group": "gpu"})
    night.until(lambda: night.done > 0)
    actors = ray._private.state.actors(actor_state_name="ALIVE").values()
    found = {name: {a["Address"]["NodeID"] for a in actors if name in a["ActorClassName"]} for name in PLACED}
    assert found == {"ShardScorer": {cpu.node_id}, "NetworkOnGpu": {gpu.node_id}}
    assert night.outcome().record.counts.scored == IMAGES
    assert_each_once(tmp_path)


@pytest.mark.slow
def test_a_node_without_the_pseudonym_key_is_named(
    nodes: Any, start: Callable[..., Night], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray carries no key: each node has its own."""
    nodes.add_node(num_cpus=1)
    monkeypatch.setenv(privacy.KEY, "a key that is the driver's")
    with pytest.raises(MelanomaError, match=r"MELANOMA_PSEUDONYM_KEY is not the driver's on .*, which has none"):
        start().outcome()
