"""The loop that every worker runs: a hand-written step under tf.distribute, since Keras 3's `fit` fails there.

Keras 3's `fit` cannot run under MultiWorkerMirroredStrategy (https://github.com/keras-team/keras/issues/20585), but a
Keras 3 model and optimizer can in a hand-written `strategy.run`. The optimizer adds up the gradients of all replicas,
so the loss of each is divided by the *global* batch.
"""

import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import ray
import ray.train
import tensorflow as tf
from sklearn.metrics import roc_auc_score

from melanoma import taxonomy
from melanoma.evaluation.predictions import side
from melanoma.model import device
from melanoma.model.keras_settings import keras
from melanoma.training import networks, plan
from melanoma.training.config import TrainConfig
from melanoma.training.data import Split
from melanoma.training.graph_augment import GraphAugmentation
from melanoma.training.input import training_batches
from melanoma.training.learner import Learner, averaged, exchange, make_normalize
from melanoma.training.optimizer import make_optimizer

Batch = tuple[Any, Any, Any, Any, Any]
Step = Callable[[Batch], Any]


def label_loss(logits: Any, targets: Any, smoothing: float) -> Any:
    """Cross-entropy of "one of these codes": -log of the probability summed over the ones of `targets`.

    logits float32 [n, classes], targets float32 [n, classes] of zeros and ones; float32 [n]. With a single one it is
    the usual cross-entropy. `smoothing` mixes in the mean over all classes (Szegedy et al. 2016, arXiv:1512.00567).
    """
    log_probabilities = tf.nn.log_softmax(tf.cast(logits, tf.float32))
    of_label = tf.reduce_logsumexp(tf.where(targets > 0, log_probabilities, -np.inf), axis=-1)
    return -(1.0 - smoothing) * of_label - smoothing * tf.reduce_mean(log_probabilities, axis=-1)


def make_step(learner: Learner, strategy: tf.distribute.Strategy, config: TrainConfig) -> Step:
    """One optimizer step over the global batch; returns this worker's parts of the mean weighted loss and accuracy.

    A replica's batch: images uint8 [n, size, size, 3], targets float32 [n, classes], weights float32 [n], and shares
    float32 [n] of mixup (Zhang et al. 2018, arXiv:1710.09412): by how much an image counts beside its neighbour in the
    batch, with which it makes a pair; and what augmentation in the graph draws, see `GraphAugmentation.draw`.
    """
    model, optimizer, averages = learner.model, learner.optimizer, learner.averages
    learned = list(model.trainable_variables)

    def on_replica(images: Any, targets: Any, weights: Any, shares: Any) -> Any:
        if config.mixup:
            share = shares[:, None, None, None]
            mixed = share * tf.cast(images, tf.float32) + (1.0 - share) * tf.cast(_neighbours(images), tf.float32)
            images = tf.cast(tf.round(mixed), tf.uint8)
        with tf.GradientTape() as tape:
            logits = model(images, training=True)
            losses = label_loss(logits, targets, config.label_smoothing) * weights
            if config.mixup:
                others = label_loss(logits, _neighbours(targets), config.label_smoothing) * _neighbours(weights)
                losses = shares * losses + (1.0 - shares) * others
            loss = tf.nn.compute_average_loss(losses, global_batch_size=config.batch_size)
        optimizer.apply(tape.gradient(loss, learned), learned)
        right = _right(logits, targets, shares if config.mixup else None)
        return tf.stack([loss, tf.nn.compute_average_loss(right, global_batch_size=config.batch_size)])

    @tf.function(reduce_retracing=True, jit_compile=config.xla)
    def learn(images: Any, targets: Any, weights: Any, shares: Any) -> Any:
        losses = strategy.run(on_replica, args=(images, targets, weights, shares))
        if averages:
            # The first steps are forgotten sooner, or the random weights of the start would stay for long.
            count = tf.cast(optimizer.iterations.value, tf.float32)
            momentum = tf.minimum(config.averaged_weights, (1.0 + count) / (10.0 + count))
            for variable, average in averages:
                strategy.extended.update(
                    average, lambda mean, now: mean.assign(momentum * mean + (1.0 - momentum) * now), (variable.value,)
                )
        return strategy.experimental_local_results(losses)[0]

    # By itself, since XLA cannot compile it.
    augment = tf.function(graph_augmentation(config))

    def step(batch: Batch) -> Any:
        images, *others, draws = batch
        return learn(augment(images, draws), *others)

    return step


def graph_augmentation(config: TrainConfig) -> GraphAugmentation:
    """What is done to the batches of a training within its step."""
    return GraphAugmentation(config.augmentation if config.augment_in == "graph" else ())


def _right(logits: Any, targets: Any, shares: Any) -> Any:
    """float32 [n]: 1 where the most probable class is one of the image's, of mixed ones of that which counts more."""
    of_image = tf.where(shares[:, None] >= 0.5, targets, _neighbours(targets)) if shares is not None else targets
    return tf.gather(of_image, tf.argmax(logits, axis=-1), axis=1, batch_dims=1)


def _neighbours(values: Any) -> Any:
    """`values` [n, ...] with the rows of each pair (0, 1), (2, 3), ... exchanged."""
    shape = tf.shape(values)
    pairs = tf.reshape(values, tf.concat([[shape[0] // 2, 2], shape[1:]], axis=0))
    return tf.reshape(tf.reverse(pairs, axis=[1]), shape)


def run(settings: dict[str, Any]) -> None:
    """What `TensorflowTrainer` runs on each worker.

    `settings`, as `melanoma.training.fit` makes them: `config`, a TrainConfig as a dict; `images`, a reference to uint8
    RGB [n, size, size, 3] in Ray's object store; `backbone`, one to the pretrained weights, or None; `train` and
    `validation`, each a Split; `progress`, a queue that is given the figures of each epoch, or None.
    """
    config = TrainConfig.model_validate(settings["config"])
    train: Split = settings["train"]
    validation: Split = settings["validation"]
    context = ray.train.get_context()
    rank, workers = context.get_world_rank(), context.get_world_size()
    if not config.use_gpu:
        device.use_no_gpu()
    strategy = _strategy(config, workers, context.get_local_world_size())

    steps = plan.steps_per_epoch(len(train.rows), config.batch_size)
    checkpoint = ray.train.get_checkpoint()
    # A checkpoint brings all weights.
    backbone = ray.get(settings["backbone"]) if settings["backbone"] is not None and checkpoint is None else None
    learner = make_learner(config, steps, workers, strategy, backbone)
    predict = tf.function(lambda images: learner.model(images, training=False))
    history = restore(checkpoint, learner) if checkpoint else []
    images = ray.get(settings["images"])  # no copy: workers of one node share it
    fed = feed(settings["images"], train, config, range(len(history), config.epochs), rank, workers)
    own_rows = plan.worker_part(plan.statistics_rows(train.rows, config.batch_size, config.seed), rank, workers)
    step: Step | None = None
    for epoch in range(len(history), config.epochs):
        if stopped_early(history, config):
            break
        if step is None or epoch == config.network.frozen_epochs:
            if config.network.frozen_epochs:
                learns = epoch >= config.network.frozen_epochs
                networks.let_backbone_learn(learner.model, config.network, learns)
            step = make_step(learner, strategy, config)
            normalize = make_normalize(learner.model, images, own_rows, strategy)
        began = time.monotonic()
        totals, waited = train_epoch(step, fed, steps)
        loss, accuracy = np.asarray(exchange(learner.model, tf.constant(totals), strategy)) / steps
        trained = time.monotonic() - began
        with averaged(learner, normalize) as kept:
            logits = validation_logits(predict, images, validation.rows, rank, workers, strategy)
        metrics = {
            "epoch": epoch + 1,
            "workers": workers,
            "loss": float(loss),
            "training_accuracy": float(accuracy),  # as the network was at each step, of augmented images
            **validation_metrics(logits, validation.labels),
            "images_per_second": steps * config.batch_size / trained,
            "input_wait_share": waited / trained,
            "seconds": time.monotonic() - began,
        }
        history.append(metrics)
        if rank == 0 and settings.get("progress") is not None:
            settings["progress"].put(metrics)
        report(metrics, history, learner, kept, rank)


def _strategy(config: TrainConfig, workers: int, workers_here: int) -> tf.distribute.Strategy:
    """TensorFlow set up for one of `workers`, of which `workers_here` share this machine."""
    # All cores of the machine, or of its container, shared by its workers: Ray limits no thread, it only counts what is
    # reserved.
    threads = max(1, joblib.cpu_count() // workers_here)
    tf.config.threading.set_intra_op_parallelism_threads(threads)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    on_gpu = bool(tf.config.get_visible_devices("GPU"))
    if on_gpu and config.deterministic:
        # On CPUs the same operations in the same order give the same bits without it, and 12% sooner.
        tf.config.experimental.enable_op_determinism()
    keras.utils.set_random_seed(config.seed)
    if workers == 1:
        return tf.distribute.get_strategy()
    exchange = tf.distribute.experimental.CommunicationImplementation
    options = tf.distribute.experimental.CommunicationOptions(implementation=exchange.NCCL if on_gpu else exchange.AUTO)
    return tf.distribute.MultiWorkerMirroredStrategy(communication_options=options)


def make_learner(
    config: TrainConfig,
    steps_per_epoch: int,
    workers: int,
    strategy: tf.distribute.Strategy,
    backbone: Sequence[np.ndarray] | None = None,
) -> Learner:
    """The network at its start.

    Args:
        config: The training.
        steps_per_epoch: What the schedule of the learning rate counts in.
        workers: How many train it.
        strategy: Theirs.
        backbone: See `networks.build`.

    Returns:
        The network with its optimizer and, if configured, its averaged weights.
    """
    with strategy.scope():
        model = networks.build(config.network, config.image_size, config.seed, workers, config.precision, backbone)
        shares = networks.learning_rate_shares(model, config.network)
        optimizer = make_optimizer(config, steps_per_epoch, shares)
        optimizer.build(model.trainable_variables)
        averaged = model.trainable_variables if config.averaged_weights else []
        averages = [(variable, tf.Variable(variable.value, trainable=False)) for variable in averaged]
    return Learner(model, optimizer, averages)


def feed(
    images: ray.ObjectRef, train: Split, config: TrainConfig, epochs: range, rank: int, workers: int
) -> Iterator[Batch]:
    """This worker's part of every batch of the epochs, as tensors.

    Args:
        images: A reference to uint8 RGB [n, size, size, 3].
        train: The rows of `images` that are trained on.
        config: The training.
        epochs: The numbers of the epochs, from 0.
        rank: This worker's number, from 0.
        workers: How many there are.

    Yields:
        What a step takes, see `make_step`.
    """
    targets, weights = plan.targets(train.labels), plan.loss_weights(train.strata or train.labels, config.balance)
    batches = training_batches(images, train, config, epochs, rank, workers)
    chain = graph_augmentation(config)

    def generate() -> Iterator[tuple[np.ndarray, ...]]:
        for pixels, position, share, seeds in batches:
            yield pixels, targets[position], weights[position], share, chain.draw(seeds)

    size, part = config.image_size, config.batch_size // workers
    # Not one of tf.distribute's datasets: those ask all workers, at every step, whether each of them has a batch.
    dataset = tf.data.Dataset.from_generator(
        generate,
        output_signature=(
            tf.TensorSpec((part, size, size, 3), tf.uint8),
            tf.TensorSpec((part, targets.shape[1]), tf.float32),
            tf.TensorSpec((part,), tf.float32),
            tf.TensorSpec((part,), tf.float32),
            tf.TensorSpec((part, chain.draw_count), tf.float32),
        ),
    )
    return iter(dataset.prefetch(2))


def train_epoch(step: Step, fed: Iterator[Batch], steps: int) -> tuple[np.ndarray, float]:
    """The sums of what this worker's steps return, float64 [k], and the seconds that it has waited for batches."""
    waited = 0.0
    losses = []  # on the device: to fetch one is to wait for its step, and the device then for the next
    for _ in range(steps):
        asked = time.monotonic()
        batch = next(fed)
        waited += time.monotonic() - asked
        losses.append(step(batch))
    # Of Python's floats, one after the other: the last bit, too, is that of every machine.
    return np.array([sum(each) for each in np.asarray(tf.stack(losses)).reshape(steps, -1).T.tolist()]), waited


def stopped_early(history: Sequence[dict[str, float]], config: TrainConfig) -> bool:
    """Whether the figure that the best epoch is chosen by has not risen for `patience` epochs."""
    if config.patience is None or config.select_by == "last" or not history:
        return False
    figures = [epoch[config.select_by] for epoch in history]
    return len(figures) - 1 - int(np.argmax(figures)) >= config.patience


def validation_logits(
    predict: Callable[[Any], Any],
    images: np.ndarray,
    rows: np.ndarray,
    rank: int,
    workers: int,
    strategy: tf.distribute.Strategy,
) -> np.ndarray:
    """The logits of a split, computed in equal parts by all workers and gathered by each.

    Args:
        predict: Takes uint8 [b, size, size, 3], gives float32 logits [b, classes].
        images: uint8 RGB [m, size, size, 3].
        rows: int64 [n], those of `images` that are predicted.
        rank: This worker's number, from 0.
        workers: How many there are; all of them have to call this together.
        strategy: What gathers.

    Returns:
        float32 [n, classes].
    """
    size = -(-len(rows) // workers)
    padded = np.resize(rows, size * workers)
    mine = padded[rank * size : (rank + 1) * size]
    part = tf.concat([predict(tf.constant(images[mine[at : at + 64]])) for at in range(0, size, 64)], axis=0)
    if workers > 1:
        part = strategy.gather(strategy.experimental_distribute_values_from_function(lambda _: part), axis=0)
    return np.asarray(part)[: len(rows)]


FIGURES = ("accuracy", "balanced_accuracy", "melanoma_auc", "malignant_auc")


def figures_of(labels: Sequence[str]) -> list[str]:
    """Those of `FIGURES` that labels of validation tell: an AUC takes images of both sides."""
    sides = {"melanoma_auc": side(labels, taxonomy.melanoma_of), "malignant_auc": side(labels, taxonomy.malignant_of)}
    return [name for name in FIGURES if name not in sides or (sides[name].yes.any() and sides[name].no.any())]


def validation_metrics(logits: np.ndarray, labels: tuple[str, ...]) -> dict[str, float]:
    """Quick figures to follow training by and to choose the best epoch; the report's come from evaluation/.

    The accuracies are of the images whose label is a class. Where there is none, as of "benign" and "malignant", an
    image is right when its label has more than half of the probability. A figure that the labels do not tell is not
    there, see `figures_of`.
    """
    wanted = plan.targets(labels)
    losses = np.asarray(label_loss(tf.constant(logits), tf.constant(wanted), 0.0))
    probabilities = np.exp(logits - logits.max(axis=1, keepdims=True))
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    fine = {label for label in set(labels) if taxonomy.is_class(label)}
    classed = np.array([label in fine for label in labels])
    classes = taxonomy.merged_classes(fine)
    membership = plan.targets(classes)  # [classes of this set, codes]
    predicted = np.array(classes)[np.argmax(probabilities @ membership.T, axis=1)]
    # A label may be narrower than its class where a set holds both "AK" and "AK|SCC".
    correct = np.array([set(taxonomy.codes_of(a)) <= set(b.split("|")) for a, b in zip(labels, predicted, strict=True)])
    if not classed.any():
        correct, classed = (probabilities * wanted).sum(axis=1) > 0.5, ~classed
    of_label = np.array(labels)
    recalls = [correct[of_label == label].mean() for label in sorted(set(of_label[classed]))]
    figures = {"accuracy": float(correct[classed].mean()), "balanced_accuracy": float(np.mean(recalls))}
    for name, of, codes in (
        ("melanoma_auc", taxonomy.melanoma_of, [taxonomy.MELANOMA]),
        ("malignant_auc", taxonomy.malignant_of, taxonomy.MALIGNANT),
    ):
        if name in figures_of(labels):
            known = side(labels, of)
            score = probabilities[:, [taxonomy.CODES.index(code) for code in codes]].sum(axis=1)
            figures[name] = float(roc_auc_score(known.yes[known.known], score[known.known]))
    return {"validation_loss": float(losses.mean()), **figures}


def report(
    metrics: dict[str, float], history: list[dict[str, float]], learner: Learner, kept: list[np.ndarray], rank: int
) -> None:
    """Every worker reports (it is a barrier); the first brings the checkpoint.

    A checkpoint holds the weights that are kept if the epoch is the best, and all that a resumed training needs.

    Args:
        metrics: The figures of the epoch.
        history: Those of all epochs so far, this one included.
        learner: What is trained.
        kept: All weights of the model to be kept, see `averaged`.
        rank: This worker's number, from 0.
    """
    if rank > 0:
        ray.train.report(metrics, checkpoint=None)
        return
    with tempfile.TemporaryDirectory() as folder:
        _save(Path(folder) / _KEPT, kept)
        if learner.averages:
            _save(Path(folder) / _RAW, learner.model.variables)
            _save(Path(folder) / _AVERAGES, [average for _, average in learner.averages])
        _save(Path(folder) / _OPTIMIZER, learner.optimizer.variables)
        (Path(folder) / "state.json").write_text(json.dumps({"history": history}))
        ray.train.report(metrics, checkpoint=ray.train.Checkpoint.from_directory(folder))


_KEPT, _RAW, _AVERAGES, _OPTIMIZER = "weights.npz", "raw_weights.npz", "averages.npz", "optimizer.npz"


def restore(checkpoint: ray.train.Checkpoint, learner: Learner) -> list[dict[str, float]]:
    """Set all that a resumed training needs; returns the history of the checkpoint, one entry an epoch."""
    with checkpoint.as_directory() as folder:
        _assign(learner.model.variables, Path(folder) / (_RAW if learner.averages else _KEPT))
        _assign([average for _, average in learner.averages], Path(folder) / _AVERAGES)
        _assign(learner.optimizer.variables, Path(folder) / _OPTIMIZER)
        return _history(folder)


def restore_kept(checkpoint: ray.train.Checkpoint, model: keras.Model) -> list[dict[str, float]]:
    """Set the weights that are kept of a checkpoint's epoch; returns its history, one entry an epoch."""
    with checkpoint.as_directory() as folder:
        _assign(model.variables, Path(folder) / _KEPT)
        return _history(folder)


def read_history(checkpoint: ray.train.Checkpoint) -> list[dict[str, float]]:
    """One entry an epoch, up to that of the checkpoint."""
    with checkpoint.as_directory() as folder:
        return _history(folder)


def _history(folder: str) -> list[dict[str, float]]:
    return list(json.loads((Path(folder) / "state.json").read_text())["history"])


def _save(path: Path, variables: Sequence[Any]) -> None:
    arrays = {f"{number:05d}": keras.ops.convert_to_numpy(variable) for number, variable in enumerate(variables)}
    np.savez(path, allow_pickle=False, **arrays)


def _assign(variables: Sequence[Any], path: str | os.PathLike[str]) -> None:
    if not variables:
        return
    with np.load(path, allow_pickle=False) as arrays:
        for number, variable in enumerate(variables):
            variable.assign(arrays[f"{number:05d}"])
