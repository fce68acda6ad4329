"""The network on GPUs: one actor a GPU, and how workers on any node find those that are there."""

import collections
import contextlib
import itertools
import os
import socket
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from melanoma.errors import MelanomaError
from melanoma.model.bundle import Bundle
from melanoma.model.predictor import Outputs, Predictor

_LOOK_EVERY = 10.0  # seconds; sooner where none is there
_TRIES = 10  # of one batch, each with a GPU that went away under it
_STARTS = 5  # of one network in turn, none of which comes to an answer


class Registry:
    """The networks on GPUs that have answered: an actor beside the driver."""

    def __init__(self) -> None:
        self._networks: dict[str, Any] = {}
        self._starts: collections.Counter[str] = collections.Counter()
        self._failure = ""

    def begin(self, actor: str) -> bool:
        """Whether this network may start: Ray starts one that is killed again without end."""
        self._starts[actor] += 1
        return self._starts[actor] <= _STARTS

    def add(self, network: Any, actor: str) -> None:
        """A network that was started again replaces itself."""
        del self._starts[actor]
        self._networks = {key: known for key, known in self._networks.items() if known != network}
        self._networks[uuid.uuid4().hex] = network

    def remove(self, key: str) -> None:
        self._networks.pop(key, None)

    def fail(self, reason: str) -> None:
        """A network could not be made; Ray does not try such a one again."""
        self._failure = reason

    def networks(self) -> dict[str, Any]:
        """Raises MelanomaError where there is none and one has failed: nobody is to wait for it."""
        if self._failure and not self._networks:
            raise MelanomaError(self._failure)
        return self._networks


class NetworkOnGpu:
    """An actor that holds the network on a GPU and is asked by workers on any node: they fetch and decode."""

    def __init__(self, bundle: Bundle, batch_size: int, registry: Any) -> None:
        actor = ray.get_runtime_context().get_actor_id()
        try:
            if not ray.get(registry.begin.remote(actor)):
                raise MelanomaError(f"it was killed {_STARTS} times as it started")
            self._predictor = Predictor(bundle, batch_size)
            self.outputs(np.zeros((1, bundle.input_size, bundle.input_size, 3), np.uint8))
        except Exception as error:
            words = " ".join(str(error).split())[:300].rstrip(".") or type(error).__name__
            ray.get(registry.fail.remote(f"The network cannot run on a GPU of {socket.gethostname()}: {words}."))
            raise
        ray.get(registry.add.remote(ray.get_runtime_context().current_actor, actor))

    def outputs(self, pixels: np.ndarray) -> Outputs:
        """Of uint8 RGB [n, size, size, 3]."""
        return self._predictor.outputs(pixels)


class Networks:
    """What the driver holds of them: it starts them, and they end with it."""

    def __init__(self, bundle: Bundle, batch_size: int, labels: dict[str, str]) -> None:
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        self.registry = ray.remote(num_cpus=0)(Registry).options(scheduling_strategy=here).remote()
        # A call that fails is made again by the worker, and to another network.
        self._on_gpu = ray.remote(num_cpus=0, num_gpus=1, max_restarts=-1, label_selector=labels or None)(NetworkOnGpu)
        self._arguments = bundle, batch_size, self.registry
        self._started: list[Any] = []

    def grow_to(self, count: int) -> None:
        """Ask Ray, and so its autoscaler, for as many; those that do not fit yet come when they do."""
        while len(self._started) < count:
            self._started.append(self._on_gpu.remote(*self._arguments))

    def end(self) -> None:
        for actor in (*self._started, self.registry):
            ray.kill(actor)


@contextlib.contextmanager
def started(bundle: Bundle, batch_size: int, count: int, labels: dict[str, str]) -> Iterator[Networks | None]:
    """The networks on `count` GPUs of nodes with these labels or, as the caller lets them grow, on more; None for none.

    Args:
        bundle: The model.
        batch_size: Images that a network is given at most.
        count: How many are asked for at first.
        labels: Key and value of each label that their nodes have to have.
    """
    if not count:
        yield None
        return
    networks = Networks(bundle, batch_size, labels)
    try:
        networks.grow_to(count)
        yield networks
    finally:
        networks.end()


@dataclass(frozen=True)
class Question:
    """A batch that a network was asked about."""

    pixels: np.ndarray
    key: str  # of the network
    answer: Any  # Ray's reference to its outputs


class Gpus:
    """The networks as one worker sees them: it asks those that are there in turn."""

    def __init__(self, registry: Any) -> None:
        self._registry = registry
        self._networks: list[tuple[str, Any]] = []
        self._looked = time.monotonic()
        self._turn = itertools.count(os.getpid())  # not all workers begin with the same one

    def ask(self, pixels: np.ndarray) -> Question:
        """Ask the next network, once there is one."""
        if not self._networks or time.monotonic() - self._looked > _LOOK_EVERY:
            while not (networks := ray.get(self._registry.networks.remote())):
                time.sleep(1)
            self._networks, self._looked = list(networks.items()), time.monotonic()
        key, network = self._networks[next(self._turn) % len(self._networks)]
        return Question(pixels, key, network.outputs.remote(pixels))

    def answer(self, question: Question) -> Outputs:
        """Its outputs; of a network that went away another is asked."""
        for _ in range(_TRIES):
            try:
                answer: Outputs = ray.get(question.answer)
                return answer
            except (ray.exceptions.RayActorError, ray.exceptions.ObjectLostError):
                ray.get(self._registry.remove.remote(question.key))
                self._networks = []
                question = self.ask(question.pixels)
        raise MelanomaError(f"The network on a GPU ended {_TRIES} times under the same images.")
