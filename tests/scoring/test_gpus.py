"""A Ray with GPUs (here: with a node that says so): images are decoded by CPU workers, the network is asked there."""

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import ray

from melanoma import config, ray_session
from melanoma.errors import MelanomaError
from melanoma.model.predictor import Outputs
from melanoma.scoring import gpus
from melanoma.scoring.config import ScoreConfig
from melanoma.scoring.run import Outcome, score
from tests.support import in_this_process
from tests.support.shared_ray import SharedRay

PIXELS = np.zeros((2, 4, 4, 3), np.uint8)


class Network:
    """In the place of `gpus.NetworkOnGpu`: answers with its number, and is lost once `deaths` are left."""

    def __init__(self, number: float, registry: Any, deaths: int = 0) -> None:
        self._number, self._deaths = number, deaths
        context = ray.get_runtime_context()
        ray.get(registry.add.remote(context.current_actor, context.get_actor_id()))

    def outputs(self, pixels: np.ndarray) -> Outputs:
        if self._deaths:
            os._exit(1)
        return Outputs(np.full(len(pixels), self._number), np.zeros((len(pixels), 0)))


@pytest.fixture
def registry(ray_cluster: None) -> Iterator[Any]:
    made = ray.remote(num_cpus=0)(gpus.Registry).remote()
    yield made
    ray.kill(made)


@pytest.fixture
def network(registry: Any) -> Iterator[Callable[..., Any]]:
    """Starts a network and waits until it has answered."""
    started = []

    def start(number: float, deaths: int = 0) -> Any:
        known = len(ray.get(registry.networks.remote()))
        started.append(ray.remote(num_cpus=0)(Network).remote(number, registry, deaths))
        while len(ray.get(registry.networks.remote())) == known:
            pass
        return started[-1]

    yield start
    for actor in started:
        ray.kill(actor)


def test_networks_that_come_are_used_and_those_that_go_are_not(registry: Any, network: Callable[..., Any]) -> None:
    first = network(1.0)
    worker = gpus.Gpus(registry)
    assert worker.answer(worker.ask(PIXELS)).logits.tolist() == [1.0, 1.0]
    network(2.0)
    answers = {gpus.Gpus(registry).answer(asked).logits[0] for asked in _asked_twice(registry)}
    assert answers == {1.0, 2.0}
    ray.kill(first)
    with pytest.raises(ray.exceptions.RayActorError):  # `kill` returns before it is dead
        _ask_for_ever(first)
    assert [worker.answer(worker.ask(PIXELS)).logits[0] for _ in range(3)] == [2.0] * 3


def _ask_for_ever(network: Any) -> None:
    while True:
        ray.get(network.outputs.remote(PIXELS))


def _asked_twice(registry: Any) -> list[gpus.Question]:
    worker = gpus.Gpus(registry)
    return [worker.ask(PIXELS), worker.ask(PIXELS)]


def test_a_batch_that_every_network_dies_of_ends_the_run(
    registry: Any, network: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpus, "_TRIES", 2)
    for number in range(3):
        network(number, deaths=1)
    worker = gpus.Gpus(registry)
    with pytest.raises(MelanomaError, match="ended 2 times under the same images"):
        worker.answer(worker.ask(PIXELS))


def test_a_network_that_no_gpu_can_hold_ends_the_run(registry: Any) -> None:
    """Ray makes none again whose constructor fails, and the workers would wait for ever."""
    actor = ray.remote(num_cpus=0, max_restarts=-1)(gpus.NetworkOnGpu).remote(None, 2, registry)
    with pytest.raises(MelanomaError, match=r"The network cannot run on a GPU of \S+: "):
        gpus.Gpus(registry).ask(PIXELS)
    ray.kill(actor)


class Deadly:
    """In the place of a bundle: kills who looks into it, as a driver of GPUs may."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_network_that_is_killed_as_it_starts_ends_the_run(registry: Any) -> None:
    actor = ray.remote(num_cpus=0, max_restarts=-1)(gpus.NetworkOnGpu).remote(Deadly(), 2, registry)
    with pytest.raises(MelanomaError, match=r"The network cannot run on a GPU of \S+: it was killed 5 times"):
        gpus.Gpus(registry).ask(PIXELS)
    ray.kill(actor)


def test_worker_and_driver_leave_the_gpus_alone_that_they_were_not_given(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, lesions: Path, bundle_path: Path, scored_in_this_process: None
) -> None:
    """Otherwise TensorFlow takes the memory of every GPU that it sees, before the network there can."""
    hidden = []
    monkeypatch.setattr("tensorflow.config.set_visible_devices", lambda shown, kind: hidden.append((shown, kind)))
    places = {"archive": str(lesions), "out": str(tmp_path / "out"), "bundle": str(bundle_path)}
    chosen = config.load(ScoreConfig, None, **places, explained=1)
    assert score(chosen, say=lambda _: None).record.counts.alerts
    assert hidden == [([], "GPU"), ([], "GPU")]  # the worker's network, and the driver's heat maps


@pytest.fixture(scope="module")
def with_a_gpu(shared_ray: SharedRay) -> Iterator[None]:
    with shared_ray.set_aside(), pytest.MonkeyPatch.context() as patch:
        started = ray_session.STARTED_HERE
        patch.setattr(ray_session, "STARTED_HERE", {**started, "num_gpus": 1})
        ray_session.connect()
        yield
        ray_session.disconnect()


@pytest.mark.slow
def test_the_network_is_asked_on_the_gpu_and_says_the_same(
    with_a_gpu: None, tmp_path: Path, lesion: Callable[..., bytes], bundle_path: Path
) -> None:
    (tmp_path / "archive").mkdir()
    for seed in range(13):
        (tmp_path / "archive" / f"{seed}.jpg").write_bytes(lesion(seed=seed))
    (tmp_path / "archive" / "broken.jpg").write_bytes(b"no image")

    def scored(out: str, **values: Any) -> tuple[Outcome, pd.DataFrame]:
        places = {"archive": str(tmp_path / "archive"), "out": f"{tmp_path}/{out}", "bundle": str(bundle_path)}
        chosen = config.load(ScoreConfig, None, **places, batch_size=2, shard_size=8, **values)
        outcome = score(chosen, say=lambda _: None)
        scores = pd.read_parquet(tmp_path / out / "scores").sort_values("image_uri", ignore_index=True)
        return outcome, scores.drop(columns=["run_id", "run_date", "scored_at"])

    with in_this_process.scored_in_this_process():
        expected = scored("here", gpus=0)[1]
    # All that are there, and a wish for more than there are.
    for out, wish in (("null", None), ("3", 3)):
        outcome, found = scored(out, gpus=wish)
        assert outcome.record.counts.scored == 13
        pd.testing.assert_frame_equal(found, expected, atol=1e-5)


@pytest.mark.slow
def test_only_who_is_given_a_gpu_sees_one(with_a_gpu: None) -> None:
    def visible() -> str | None:
        return os.environ.get("CUDA_VISIBLE_DEVICES")

    assert ray.get(ray.remote(visible).remote()) == ""
    assert ray.get(ray.remote(num_gpus=1)(visible).remote()) == "0"
