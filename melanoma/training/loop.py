"""The loop that every worker runs: our own step under tf.distribute, since Keras 3's `fit` fails there.

Keras 3's `fit` cannot run under MultiWorkerMirroredStrategy (https://github.com/keras-team/keras/issues/20585), but a
Keras 3 model and optimizer in a `strategy.run` of one's own can. The optimizer adds up the gradients of all replicas,
so the loss of each is divided by the *global* batch.
"""

import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
import ray
import ray.train
import tensorflow as tf
from sklearn.metrics import roc_auc_score

from melanoma import taxonomy
from melanoma.config import TrainConfig
from melanoma.training import networks, plan
from melanoma.training.input import training_batches

Step = Callable[[tuple[Any, Any, Any]], Any]


@dataclass(frozen=True)
class Split:
    """The images of one split: rows of the image cache, and their labels (one a row)."""

    rows: np.ndarray  # int64 [n]
    labels: tuple[str, ...]


def label_loss(logits: Any, targets: Any, smoothing: float) -> Any:
    """Cross-entropy of "one of these codes": -log of the probability summed over the ones of `targets`.

    logits float32 [n, classes], targets float32 [n, classes] of zeros and ones; float32 [n]. With a single one it is
    the usual cross-entropy. `smoothing` mixes in the mean over all classes (Szegedy et al. 2016, arXiv:1512.00567).
    """
    log_probabilities = tf.nn.log_softmax(tf.cast(logits, tf.float32))
    of_label = tf.reduce_logsumexp(tf.where(targets > 0, log_probabilities, -np.inf), axis=-1)
    return -(1.0 - smoothing) * of_label - smoothing * tf.reduce_mean(log_probabilities, axis=-1)


def make_optimizer(config: TrainConfig, steps_per_epoch: int) -> keras.Optimizer:
    """The schedule is counted in steps, so that a resumed run is at the right rate; a warm-up is linear."""
    total = config.epochs * steps_per_epoch
    warmup = min(round(config.warmup_epochs * steps_per_epoch), total - 1)
    rate = keras.optimizers.schedules.CosineDecay(
        initial_learning_rate=config.learning_rate / max(1, warmup) if warmup else config.learning_rate,
        decay_steps=total - warmup,
        alpha=1.0 if config.schedule == "constant" else 0.0,  # the share of the rate that is left at the end
        warmup_target=config.learning_rate if warmup else None,
        warmup_steps=warmup,
    )
    if config.optimizer == "sgd":
        return keras.optimizers.SGD(rate, weight_decay=config.weight_decay or None)
    return keras.optimizers.AdamW(rate, weight_decay=config.weight_decay)


def make_step(
    model: keras.Model, optimizer: keras.Optimizer, strategy: tf.distribute.Strategy, batch_size: int, smoothing: float
) -> Step:
    """One optimizer step over the global batch of `batch_size` images; returns the mean weighted loss."""

    def on_replica(images: Any, targets: Any, weights: Any) -> Any:
        with tf.GradientTape() as tape:
            losses = label_loss(model(images, training=True), targets, smoothing) * weights
            loss = tf.nn.compute_average_loss(losses, global_batch_size=batch_size)
        gradients = tape.gradient(loss, model.trainable_variables)
        optimizer.apply(gradients, model.trainable_variables)
        return loss

    @tf.function(reduce_retracing=True)
    def step(batch: tuple[Any, Any, Any]) -> Any:
        losses = strategy.run(on_replica, args=batch)
        return strategy.reduce(tf.distribute.ReduceOp.SUM, losses, axis=None)

    return step


def run(settings: dict[str, Any]) -> None:
    """What `TensorflowTrainer` runs on each worker. `settings`: see melanoma.training.trainer."""
    config = TrainConfig.model_validate(settings["config"])
    context = ray.train.get_context()
    rank, workers = context.get_world_rank(), context.get_world_size()
    # All cores of the machine, shared by its workers: Ray limits no thread, it only counts reservations.
    threads = max(1, len(os.sched_getaffinity(0)) // context.get_local_world_size())
    tf.config.threading.set_intra_op_parallelism_threads(threads)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    tf.config.experimental.enable_op_determinism()
    keras.utils.set_random_seed(config.seed)
    strategy = tf.distribute.MultiWorkerMirroredStrategy() if workers > 1 else tf.distribute.get_strategy()

    train: Split = settings["train"]
    validation: Split = settings["validation"]
    steps = plan.steps_per_epoch(len(train.rows), config.batch_size)
    with strategy.scope():
        model = networks.build(config.network, config.image_size, config.seed, synchronized=workers > 1)
        optimizer = make_optimizer(config, steps)
        optimizer.build(model.trainable_variables)
    step = make_step(model, optimizer, strategy, config.batch_size, config.label_smoothing)
    predict = tf.function(lambda images: model(images, training=False))

    targets, weights = plan.targets(train.labels), plan.loss_weights(train.labels, config.balance)
    history: list[dict[str, float]] = []
    if checkpoint := ray.train.get_checkpoint():
        history = restore(checkpoint, model, optimizer)
    images = ray.get(settings["images"])  # no copy: workers of one node share it
    part_size = config.batch_size // workers
    batches = training_batches(settings["images"], train, config, range(len(history), config.epochs), rank, workers)

    def feed(_: Any) -> tf.data.Dataset:
        def generate() -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
            for pixels, position in batches:
                yield pixels, targets[position], weights[position]

        size = config.image_size
        return tf.data.Dataset.from_generator(
            generate,
            output_signature=(
                tf.TensorSpec((part_size, size, size, 3), tf.uint8),
                tf.TensorSpec((part_size, targets.shape[1]), tf.float32),
                tf.TensorSpec((part_size,), tf.float32),
            ),
        ).prefetch(2)

    distributed = iter(strategy.distribute_datasets_from_function(feed)) if workers > 1 else iter(feed(None))
    for epoch in range(len(history), config.epochs):
        began, waited = time.monotonic(), 0.0
        total = 0.0
        for _ in range(steps):
            asked = time.monotonic()
            batch = next(distributed)
            waited += time.monotonic() - asked
            total += float(step(batch))
        trained = time.monotonic() - began
        logits = validation_logits(predict, images, validation.rows, rank, workers, strategy)
        metrics = {
            "epoch": epoch + 1,
            "loss": total / steps,
            **validation_metrics(logits, validation.labels),
            "images_per_second": steps * config.batch_size / trained,
            "input_wait_share": waited / trained,
            "seconds": time.monotonic() - began,
        }
        history.append(metrics)
        if rank == 0 and settings.get("progress") is not None:
            settings["progress"].put(metrics)
        report(metrics, history, model, optimizer, rank)


def validation_logits(
    predict: Callable[[Any], Any],
    images: np.ndarray,
    rows: np.ndarray,
    rank: int,
    workers: int,
    strategy: tf.distribute.Strategy,
) -> np.ndarray:
    """float32 [n, classes] for the images at `rows`, computed in equal parts by all workers and gathered."""
    size = -(-len(rows) // workers)
    padded = np.resize(rows, size * workers)
    mine = padded[rank * size : (rank + 1) * size]
    part = tf.concat([predict(tf.constant(images[mine[at : at + 64]])) for at in range(0, size, 64)], axis=0)
    if workers > 1:
        part = strategy.gather(strategy.experimental_distribute_values_from_function(lambda _: part), axis=0)
    return np.asarray(part)[: len(rows)]


def validation_metrics(logits: np.ndarray, labels: tuple[str, ...]) -> dict[str, float]:
    """Quick figures to follow training by and to choose the best epoch; the report's come from evaluation/."""
    wanted = plan.targets(labels)
    losses = np.asarray(label_loss(tf.constant(logits), tf.constant(wanted), 0.0))
    probabilities = np.exp(logits - logits.max(axis=1, keepdims=True))
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    classes = taxonomy.merged_classes(labels)
    membership = plan.targets(classes)  # [classes of this set, codes]
    predicted = np.array(classes)[np.argmax(probabilities @ membership.T, axis=1)]
    # A label may be narrower than its class where a set holds both "AK" and "AK|SCC".
    correct = np.array([set(taxonomy.codes_of(a)) <= set(b.split("|")) for a, b in zip(labels, predicted, strict=True)])
    melanoma = np.array(labels) == taxonomy.MELANOMA
    auc = (
        float(roc_auc_score(melanoma, probabilities[:, taxonomy.CODES.index(taxonomy.MELANOMA)]))
        if 0 < melanoma.sum() < len(melanoma)
        else 0.5
    )
    recalls = [correct[np.array(labels) == label].mean() for label in sorted(set(labels))]
    return {
        "validation_loss": float(losses.mean()),
        "accuracy": float(correct.mean()),
        "balanced_accuracy": float(np.mean(recalls)),
        "melanoma_auc": auc,
    }


def report(
    metrics: dict[str, float],
    history: list[dict[str, float]],
    model: keras.Model,
    optimizer: keras.Optimizer,
    rank: int,
) -> None:
    """Every worker reports (it is a barrier); the first brings the checkpoint."""
    if rank > 0:
        ray.train.report(metrics, checkpoint=None)
        return
    with tempfile.TemporaryDirectory() as folder:
        _save(Path(folder) / "weights.npz", model.variables)
        _save(Path(folder) / "optimizer.npz", optimizer.variables)
        (Path(folder) / "state.json").write_text(json.dumps({"history": history}))
        ray.train.report(metrics, checkpoint=ray.train.Checkpoint.from_directory(folder))


def restore(
    checkpoint: ray.train.Checkpoint, model: keras.Model, optimizer: keras.Optimizer | None
) -> list[dict[str, float]]:
    """Set the weights (and the optimizer's state) of a checkpoint; returns its history, one entry an epoch."""
    with checkpoint.as_directory() as folder:
        _assign(model.variables, Path(folder) / "weights.npz")
        if optimizer is not None:
            _assign(optimizer.variables, Path(folder) / "optimizer.npz")
        return list(json.loads((Path(folder) / "state.json").read_text())["history"])


def _save(path: Path, variables: list[Any]) -> None:
    arrays = {f"{number:05d}": keras.ops.convert_to_numpy(variable) for number, variable in enumerate(variables)}
    np.savez(path, allow_pickle=False, **arrays)


def _assign(variables: list[Any], path: str | os.PathLike[str]) -> None:
    with np.load(path, allow_pickle=False) as arrays:
        for number, variable in enumerate(variables):
            variable.assign(arrays[f"{number:05d}"])
