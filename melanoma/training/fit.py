"""Train one network with Ray Train: what `melanoma.training.train` and the studies are made of."""

import contextlib
import datetime
import hashlib
import json
import os
import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import FrameType
from typing import Any

import numpy as np
import ray
from pydantic import ValidationError
from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
from ray.train.tensorflow import TensorflowTrainer
from ray.util.queue import Empty, Queue
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from melanoma import storage
from melanoma.errors import InputError, MelanomaError
from melanoma.model import device
from melanoma.model.keras_settings import keras
from melanoma.training import loop, networks, plan
from melanoma.training.config import TrainConfig
from melanoma.training.data import DevelopmentSet, Split, TrainingData
from melanoma.training.input import augmented_copies
from melanoma.training.tracking import OnEpoch

# What may change when a run is resumed: where it runs and where it writes, not what it learns.
MAY_CHANGE = {
    *("run_name", "catalog", "out", "checkpoints", "leaked_twin"),
    *("workers", "cpus_per_worker", "use_gpu", "xla", "deterministic", "max_failures", "members", "test_time_flips"),
    *("operating_point", "licence", "show_images", "half_kernels", "others", "compile"),
}


@dataclass(frozen=True)
class Trained:
    """What a training has made."""

    model: keras.Model  # with the weights that were kept
    history: list[dict[str, float]]  # the figures of each epoch, see melanoma.training.loop
    best: int  # the place in `history` of the epoch whose weights were kept

    @property
    def at_best(self) -> dict[str, float]:
        return self.history[self.best]


def new_run_name() -> str:
    return f"{datetime.datetime.now(datetime.UTC):%Y%m%d-%H%M%S}-{os.urandom(3).hex()}"


def check_resources(config: TrainConfig, say: Callable[[str], None]) -> None:
    """Ask for no more than there is: Ray would wait for it without a word.

    Raises InputError where this machine's Ray is too small; a cluster may grow, so there `say` is told instead.
    """
    workers = config.worker_counts[0]
    wanted = {"CPU": workers * config.cpus_per_worker + 1, "GPU": workers if config.use_gpu else 0}
    there = ray.cluster_resources()
    if lacking := [name for name, count in wanted.items() if there.get(name, 0) < count]:
        name = lacking[0]
        words = (
            f"{workers} workers need {wanted[name]:g} {name}s (one CPU is for Ray Data), and Ray has "
            f"{there.get(name, 0):g}"
        )
        if not os.environ.get("RAY_ADDRESS"):
            raise InputError(f"{words}: set workers, cpus_per_worker or use_gpu accordingly.")
        say(f"{words}: waiting for the cluster to grow.")


def with_copies(config: TrainConfig, development: DevelopmentSet, say: Callable[[str], None]) -> TrainingData:
    """What to train on: the training split with its augmented copies, and validation as it is."""
    copies = config.balance.copies
    labels, count = development.labels, development.train_count
    strata = plan.strata(labels, development.rows["source"].tolist(), config.balance)
    source, seeds = plan.copies(labels[:count], copies, config.seed)
    train_rows = np.arange(count)
    images = development.images
    if copies and len(source):
        say(f"Making {len(source)} augmented copies of training images.")
        images = np.concatenate([images, augmented_copies(images, source, seeds, copies.augmentation)])
        train_rows = np.concatenate([train_rows, np.arange(len(labels), len(images))])
    return TrainingData(
        images,
        train=Split(
            train_rows,
            labels[:count] + tuple(labels[place] for place in source),
            strata[:count] + tuple(strata[place] for place in source),
        ),
        validation=Split(np.arange(count, len(labels)), labels[count:]),
    )


def fit(config: TrainConfig, data: TrainingData, on_epoch: OnEpoch = lambda metrics: None) -> Trained:
    """Train one network, on the Ray that runs; a run of the name `config.run_name` is resumed.

    `on_epoch` is given the figures of each epoch that is trained here. Raises InputError where the run of that name
    learns something else, and MelanomaError where the training fails.
    """
    device.use_no_gpu()
    name = str(config.run_name)
    claim_run_name(config, name, data)
    # Beside the driver: on any other node it would die with that node, and the training with it.
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    progress = Queue(actor_options={"num_cpus": 0, "scheduling_strategy": here})
    result = _fit_and_follow(_trainer(config, name, data, progress), progress, on_epoch)
    checkpoint = result.get_best_checkpoint(_score(config), "max")
    if checkpoint is None:
        raise MelanomaError(f"Training ended without a checkpoint in {config.checkpoints}/{name}.")
    model = networks.build(config.network, config.image_size, config.seed)
    up_to_best = loop.restore_kept(checkpoint, model)
    return Trained(model, loop.read_history(result.checkpoint), len(up_to_best) - 1)


def _score(config: TrainConfig) -> str:
    """The figure of an epoch whose highest value is kept."""
    return "epoch" if config.select_by == "last" else config.select_by


def claim_run_name(config: TrainConfig, name: str, data: TrainingData) -> None:
    """Note what the run of this name learns; raises InputError where another run has the name."""
    uri = storage.join(storage.normalize(config.checkpoints), f"{name}.json")
    labels = [part.labels for part in (data.train, data.validation)]
    claim = {
        "config": config.model_dump(mode="json", exclude=MAY_CHANGE),
        "images_sha256": hashlib.sha256(np.ascontiguousarray(data.images).data).hexdigest(),
        "labels_sha256": hashlib.sha256(json.dumps(labels).encode()).hexdigest(),
    }
    try:
        if not storage.exists(uri):
            storage.write_json(uri, claim)
        elif _with_later_keys(storage.read_json(uri), config) != claim:
            raise InputError(
                f"The run {name} in {config.checkpoints} was begun with another configuration or other images: choose "
                "another run_name, or none, or another place for checkpoints."
            )
    except OSError as error:
        raise InputError(f"The checkpoints cannot be written to {config.checkpoints}: {error}") from None


def _with_later_keys(claim: dict[str, Any], config: TrainConfig) -> dict[str, Any]:
    """What an earlier version noted, with the keys that it did not know as they are by default, as it did."""
    stands = {**config.model_dump(mode="json", include=MAY_CHANGE), **claim["config"]}
    try:
        return {**claim, "config": TrainConfig.model_validate(stands).model_dump(mode="json", exclude=MAY_CHANGE)}
    except (ValidationError, LookupError, TypeError):  # of a later version, or no claim
        return claim


def _trainer(config: TrainConfig, name: str, data: TrainingData, progress: Queue) -> TensorflowTrainer:
    filesystem, path = storage.arrow_filesystem(config.checkpoints)
    backbone = networks.pretrained_weights(config.network, config.image_size)
    return TensorflowTrainer(
        loop.run,
        train_loop_config={
            "config": config.model_dump(),
            "images": ray.put(data.images),
            "backbone": None if backbone is None else ray.put(backbone),
            "train": data.train,
            "validation": data.validation,
            "progress": progress,
        },
        scaling_config=ScalingConfig(
            num_workers=config.workers,
            use_gpu=config.use_gpu,
            resources_per_worker={"CPU": config.cpus_per_worker, **({"GPU": 1} if config.use_gpu else {})},
        ),
        run_config=RunConfig(
            name=name,
            storage_path=path,
            storage_filesystem=filesystem,
            failure_config=FailureConfig(max_failures=config.max_failures),
            checkpoint_config=CheckpointConfig(
                num_to_keep=2, checkpoint_score_attribute=_score(config), checkpoint_score_order="max"
            ),
        ),
    )


def _fit_and_follow(trainer: TensorflowTrainer, progress: Queue, on_epoch: OnEpoch) -> Any:
    """trainer.fit(), while a thread passes the epochs on: Ray handles an interrupt only in the main thread."""
    ended = threading.Event()

    def follow() -> None:
        while True:
            try:
                on_epoch(progress.get(timeout=0.5))
            except Empty:
                if ended.is_set():
                    return

    follower = threading.Thread(target=follow, daemon=True)
    follower.start()
    try:
        with _interruptible():
            return trainer.fit()
    except ray.train.TrainingFailedError as error:
        raise MelanomaError(f"Training failed in a worker: {_last_line(error)}") from error
    finally:
        ended.set()
        follower.join()
        progress.shutdown()


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    """Let Ctrl-C raise KeyboardInterrupt. Ray Train 2.60 makes the same SystemExit of it that Ray makes of SIGTERM, so
    that only the handler of the latter can tell them apart."""
    on_sigterm = signal.getsignal(signal.SIGTERM)
    if threading.current_thread() is not threading.main_thread() or not callable(on_sigterm):
        yield
        return
    terminated = threading.Event()

    def remember(number: int, frame: FrameType | None) -> None:
        terminated.set()
        on_sigterm(number, frame)

    signal.signal(signal.SIGTERM, remember)
    try:
        yield
    except SystemExit:
        if terminated.is_set():
            raise
        raise KeyboardInterrupt from None
    finally:
        signal.signal(signal.SIGTERM, on_sigterm)


def _last_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
