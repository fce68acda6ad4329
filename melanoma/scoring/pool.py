"""The workers of a run, on Ray: as many as the cluster has room for, up to the wish, while it grows and shrinks.

Nothing is refused because it is not there yet. An actor that finds no room is what Ray's autoscaler brings a node for,
and Ray Data starts more actors as the cluster gets larger. The shards of a node that leaves are scored on another. What
a run that stands still waits for, `waiting` says.
"""

import contextlib
import warnings
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from typing import Any

import pyarrow as pa
import ray
import ray.data
from ray.util.annotations import RayDeprecationWarning

from melanoma import ray_session
from melanoma.errors import InputError, MelanomaError
from melanoma.scoring import gpus, shard, waiting
from melanoma.scoring.config import ScoreConfig
from melanoma.scoring.progress import Progress
from melanoma.scoring.publish import Run, reason

_SHARDS_A_WORKER = 16
_LARGEST_SHARD = 4096  # images
_MAY_GROW_TO = 32  # workers: a guess for clusters where no wish is told; a shard costs 60 ms
_WORKER_MEMORY = 1e9  # bytes, measured: TensorFlow, the network, batches, and what is fetched ahead


def shard_size(config: ScoreConfig, images: int) -> int:
    """Images a shard, in whole batches: large enough that the fixed cost of a shard does not count, and small enough
    that no worker waits long for the last shard."""
    if config.shard_size:
        return config.shard_size
    ray_session.connect()
    workers = config.workers or max(ray_session.cores(), _MAY_GROW_TO if ray_session.cluster_address() else 1)
    share = workers * _SHARDS_A_WORKER * config.batch_size
    return min(_LARGEST_SHARD, -(-images // share) * config.batch_size)


def reports(run: Run, unscored: Sequence[int], progress: Progress) -> Generator[dict[str, Any]]:
    """Score shards; yields what `shard.ShardScorer` reports of each. Raises InputError where this machine lacks what is
    asked for and, being no cluster, will not get it."""
    ray_session.connect()
    config = run.config
    nodes = ray_session.nodes(config.worker_labels)
    memory = worker_memory(nodes)
    most = min(config.workers or len(unscored), len(unscored))
    first = max(1, min(most, room(nodes, memory)))
    progress.workers = first
    with contextlib.ExitStack() as stack:
        count = gpus_at_first(config)
        networks = stack.enter_context(gpus.started(run.bundle, config.batch_size, count, config.gpu_labels))
        stack.enter_context(waiting.watched(run, progress, memory, networks))
        yield from _each_once(unscored, lambda left: _scored(run, left, memory, (first, most), networks), run.say)


def _each_once(
    unscored: Sequence[int], score: Callable[[Sequence[int]], Iterable[dict[str, Any]]], say: Callable[[str], None]
) -> Generator[dict[str, Any]]:
    """The report of every shard, though Ray Data may fail between them.

    While a node is being lost, Ray Data 2.60 can lose an object that it still needs, and end with a ValueError or a
    KeyError of its own; what was reported until then stands. Raises MelanomaError where it fails twice at one place,
    and whatever a worker raises.

    Args:
        unscored: The shards.
        score: Yields the reports of shards, in any order.
        say: Told of each such failure.
    """
    left = list(unscored)
    while left:
        before = len(left)
        try:
            for report in score(tuple(left)):
                left.remove(report["shard"])
                yield report
        except (ray.exceptions.RayError, MelanomaError, OSError):
            raise
        except Exception as error:
            if len(left) == before:
                raise MelanomaError(f"Ray Data failed: {reason(error)}. The same command resumes the run.") from error
            say(f"Ray Data failed ({reason(error)}): going on with the {len(left)} shards that are left.")


def _scored(
    run: Run, unscored: Sequence[int], memory: int, workers: tuple[int, int], networks: gpus.Networks | None
) -> Iterator[dict[str, Any]]:
    """Score shards with Ray Data.

    Args:
        run: The run.
        unscored: The shards.
        memory: Bytes that a worker reserves.
        workers: How many at first, and at most.
        networks: Those on GPUs, if they are used.

    Yields:
        What `shard.ShardScorer` reports of each.
    """
    first, most = workers
    shards = ray.data.from_arrow([pa.table({"shard": [number]}) for number in unscored]).map_batches(
        shard.ShardScorer,
        batch_size=None,
        batch_format="pyarrow",
        num_cpus=1,
        memory=memory,
        label_selector=run.config.worker_labels or None,
        # Ray Data restarts workers without end; `begun` bounds how often they may die over a shard.
        compute=ray.data.ActorPoolStrategy(min_size=1, max_size=most, initial_size=first),
        fn_constructor_args=(run.bundle, run.plan, run.config, networks and networks.registry),
    )
    shards.context.execution_no_progress_timeout_s = -1  # a node may take longer than half an hour, a shard as well
    _anywhere(shards.context.execution_options)
    return iter(shards.iter_rows())


def _anywhere(options: ray.data.ExecutionOptions) -> None:
    """Let any worker take any shard, which is a mere number. Where it lies is not known while a node is being lost, and
    Ray 2.60 ends with a KeyError when it asks. The option is deprecated, and nothing stands for it yet."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RayDeprecationWarning)
        options.actor_locality_enabled = False


def worker_memory(nodes: Sequence[dict[str, float]]) -> int:
    """Bytes that a worker reserves, but no more than the largest of the `nodes` with a core has: one fits a small
    node."""
    largest = max((node.get("memory", 0.0) for node in nodes if node.get("CPU", 0) >= 1), default=0.0)
    return int(min(_WORKER_MEMORY, largest or _WORKER_MEMORY))


def room(nodes: Sequence[dict[str, float]], memory: int) -> int:
    """Workers that the `nodes` have cores and memory for."""
    return sum(int(min(node.get("CPU", 0), node.get("memory", 0) // memory)) for node in nodes)


def gpus_at_first(config: ScoreConfig) -> int:
    """GPUs to begin with: the wish, or those that are there."""
    there = ray_session.gpus(config.gpu_labels)
    if config.gpus and not there and not ray_session.cluster_address():
        raise InputError(f"gpus is {config.gpus}: this machine has none that Ray finds, and no cluster is joined.")
    return there if config.gpus is None else config.gpus
