"""What a run that stands still waits for."""

import contextlib
import datetime
import json
import logging
import threading
import time
from collections.abc import Iterator

import ray

from melanoma import ray_session
from melanoma.scoring.config import ScoreConfig
from melanoma.scoring.gpus import NetworkOnGpu, Networks
from melanoma.scoring.progress import Progress
from melanoma.scoring.publish import Run

LOOK_EVERY = 5.0  # seconds
STILL_AFTER = 20.0  # seconds; a worker needs some to start
SAY_EVERY = 60.0  # seconds
_LOG = logging.getLogger("melanoma.scoring")


@contextlib.contextmanager
def watched(run: Run, progress: Progress, memory: int, networks: Networks | None) -> Iterator[None]:
    """While the block lasts, say what the run waits for where no worker or no GPU is there.

    Args:
        run: The run, which is told; its log is, too.
        progress: Gets the most workers that were there at a time.
        memory: Bytes that a worker reserves.
        networks: Those on GPUs, if they are used; without a number of GPUs in the configuration they grow with the
            cluster.
    """
    ended = threading.Event()

    def look_and_tell() -> None:
        moves, told = time.monotonic(), float("-inf")
        while not ended.wait(LOOK_EVERY):
            try:
                if networks and run.config.gpus is None:
                    networks.grow_to(ray_session.gpus(run.config.gpu_labels))
                workers, on_gpu = _there()
                waits_for = _waits_for(workers, on_gpu if networks else None, memory, run.config)
            except (OSError, RuntimeError, ray.exceptions.RayError):  # Ray does not answer: `ray_session` tells of it
                continue
            progress.workers = max(progress.workers, workers)
            now = time.monotonic()
            if not waits_for:
                moves = now
            elif now - moves >= STILL_AFTER and now - told >= SAY_EVERY:
                told = now
                run.say(waits_for)
                utc = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
                _LOG.info(json.dumps({"time": utc, "run_id": run.plan.run_id, "waiting": waits_for}))

    thread = threading.Thread(target=look_and_tell, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(LOOK_EVERY)


def _there() -> tuple[int, int]:
    """Workers and networks on GPUs of this job that run."""
    job = ray.JobID.from_hex(ray.get_runtime_context().get_job_id())
    actors = ray._private.state.actors(job_id=job, actor_state_name="ALIVE").values()
    names = [actor["ActorClassName"] for actor in actors]
    return sum("ShardScorer" in name for name in names), names.count(NetworkOnGpu.__name__)


def _waits_for(workers: int, on_gpu: int | None, memory: int, config: ScoreConfig) -> str | None:
    if workers and on_gpu != 0:
        return None
    labels = config.gpu_labels if workers else config.worker_labels
    return sentence(None if workers else memory, labels, ray.available_resources(), ray.cluster_resources())


def sentence(memory: int | None, labels: dict[str, str], free: dict[str, float], there: dict[str, float]) -> str:
    """What a run waits for that has no worker or no GPU.

    Args:
        memory: Bytes that a worker reserves; None: it is a GPU that is waited for.
        labels: Those that its node has to have.
        free: The resources of the cluster that nobody holds.
        there: All of its resources.
    """
    labelled = " labelled " + ", ".join(f"{key}={value}" for key, value in labels.items()) if labels else ""
    if memory is None:
        where = f" on a node{labelled}" if labels else ""
        return f"Waiting for a GPU{where}: the cluster has {free.get('GPU', 0):g} of {there.get('GPU', 0):g} free."
    return (
        f"Waiting for 1 core and {memory / 1e9:.1f} GB of memory on some node{labelled}: the cluster has "
        f"{free.get('CPU', 0):g} of {there.get('CPU', 0):g} cores and {free.get('memory', 0) / 1e9:.1f} of "
        f"{there.get('memory', 0) / 1e9:.1f} GB free."
    )
