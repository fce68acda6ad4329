"""A configuration becomes a bundle: Ray Data decodes, Ray Train trains, the best epoch is calibrated and measured."""

import datetime
import hashlib
import io
import json
import os
import platform
import threading
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import ray
from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
from ray.train.tensorflow import TensorflowTrainer
from ray.util.queue import Empty, Queue
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

import melanoma
from melanoma import ray_session, storage, taxonomy
from melanoma.catalog import schema
from melanoma.catalog.audit import split_groups
from melanoma.errors import InputError, MelanomaError
from melanoma.evaluation import run as evaluation
from melanoma.evaluation.calibration import fit_temperature
from melanoma.evaluation.card import model_card
from melanoma.evaluation.operating_point import choose_threshold_by_specificity, operating_point
from melanoma.imaging.decode import PREPROCESSING
from melanoma.model import bundle as bundles
from melanoma.model import outliers
from melanoma.model.bundle import Bundle
from melanoma.model.predictor import Predictor, calibrated
from melanoma.training import loop, networks, plan, tracking
from melanoma.training.augment import operations
from melanoma.training.config import TrainConfig
from melanoma.training.input import augmented_copies, cache_images
from melanoma.training.studies import twin

OnEpoch = Callable[[dict[str, float]], None]
Member = tuple[Any, list[dict[str, float]], int]  # a model at its best epoch, the history, that epoch (counted from 0)


def train(
    config: TrainConfig,
    on_epoch: OnEpoch = lambda metrics: None,
    say: Callable[[str], None] = print,
    on_distribution: Callable[[list[plan.ClassShare]], None] = lambda classes: None,
) -> Bundle:
    """Train as configured and write the bundle to `config.out`, on the Ray that `ray_session.connect` finds or starts.

    `on_epoch` is given the figures of each epoch, `on_distribution` the classes before and after balancing, `say` one
    line a step. Raises InputError before anything is trained where the catalog, the augmentations, the operating point
    or the number of workers cannot be used; MelanomaError when training fails.
    """
    frame = check(config)
    if config.run_name is None:
        config = config.model_copy(update={"run_name": new_run_name()})
    ray_session.connect()
    check_resources(config, say)
    rows = pd.concat([schema.usable(frame, "train"), schema.usable(frame, "validation")])
    train_count = int((rows["split"] == "train").sum())
    on_distribution(_class_distribution(config, rows[:train_count]))
    say(f"Decoding {len(rows)} images ({train_count} train, {len(rows) - train_count} validation).")
    originals = cache_images(rows["uri"].tolist(), config.image_size)
    twin_exhibit = _train_twin(config, frame, rows, originals, on_epoch, say) if config.leaked_twin else None
    images, splits = with_copies(config, originals, rows, train_count, say)
    counts = config.worker_counts
    workers = f"{counts[0]} to {counts[-1]} workers" if len(counts) > 1 else f"{counts[0]} worker(s)"
    say(
        f"Training {config.network.name} for {config.epochs} epochs with {workers}. Should it be "
        f"interrupted, run_name={config.run_name} goes on with it."
    )
    members, trained = [], []
    for member in range(config.members):
        own = config
        if config.members > 1:
            own = config.model_copy(
                update={"seed": (config.seed + member) % 2**32, "run_name": f"{config.run_name}-{member}"}
            )
            say(f"Member {member + 1} of {config.members}, seed {own.seed}.")
        with tracking.track(own, say) as track_epoch:
            members.append(fit(own, images, splits, _both(on_epoch, track_epoch)))
        trained.append(own)
        _, history, best = members[-1]
        chosen = "Last epoch" if config.select_by == "last" else f"Best epoch by {config.select_by}:"
        say(
            f"{chosen} {best + 1} of {len(history)}, accuracy {history[best]['accuracy']:.3f}, balanced "
            f"{history[best]['balanced_accuracy']:.3f}, melanoma AUC {history[best]['melanoma_auc']:.3f}."
        )
    say("Calibrating and measuring.")
    bundle = _write_bundle(config, frame, rows, originals, train_count, members, twin_exhibit)
    tracking.note_model(trained, bundle.version, say)
    return bundle


def _both(first: OnEpoch, second: OnEpoch) -> OnEpoch:
    def on_epoch(metrics: dict[str, float]) -> None:
        first(metrics)
        second(metrics)

    return on_epoch


def new_run_name() -> str:
    return f"{datetime.datetime.now(datetime.UTC):%Y%m%d-%H%M%S}-{os.urandom(3).hex()}"


def _class_distribution(config: TrainConfig, train_rows: pd.DataFrame) -> list[plan.ClassShare]:
    return plan.class_distribution(
        train_rows["label"].tolist(), config.balance, train_rows["source"].tolist(), config.seed
    )


def with_copies(
    config: TrainConfig, originals: np.ndarray, rows: pd.DataFrame, train_count: int, say: Callable[[str], None]
) -> tuple[np.ndarray, dict[str, loop.Split]]:
    """The images and splits to train on: the training split with its augmented copies, and validation as it is."""
    copies = config.balance.copies
    labels = tuple(rows["label"])
    strata = plan.strata(labels, rows["source"].tolist(), config.balance)
    source, seeds = plan.copies(labels[:train_count], copies, config.seed)
    train_rows = np.arange(train_count)
    images = originals
    if copies and len(source):
        say(f"Making {len(source)} augmented copies of training images.")
        images = np.concatenate([originals, augmented_copies(originals, source, seeds, copies.augmentation)])
        train_rows = np.concatenate([train_rows, np.arange(len(originals), len(images))])
    return images, {
        "train": loop.Split(
            train_rows,
            labels[:train_count] + tuple(labels[place] for place in source),
            strata[:train_count] + tuple(strata[place] for place in source),
        ),
        "validation": loop.Split(np.arange(train_count, len(labels)), labels[train_count:]),
    }


def _train_twin(
    config: TrainConfig,
    frame: pd.DataFrame,
    rows: pd.DataFrame,
    originals: np.ndarray,
    on_epoch: OnEpoch,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """The exhibit of `studies.twin`: its leaked validation figures, and those of the same model on test."""
    say("Training the leaked twin first, for the report's warning: its split is over single files.")
    labels, groups = tuple(rows["label"]), rows["group_id"].to_numpy(dtype=object)
    share = float((rows["split"] == "validation").mean())
    images, splits, origin = twin.leaked_splits(config, originals, labels, share)
    own = config.model_copy(update={"run_name": f"{config.run_name}-leaked"})
    model, _, _ = fit(own, images, splits, on_epoch)
    predictor = Predictor(unmeasured(config, model))
    validation = splits["validation"]
    figures = twin.figures(
        predictor.probabilities(images[validation.rows]),
        validation.labels,
        groups[origin[validation.rows]].tolist(),
        config.seed,
    )
    say(f"The leaked twin's validation accuracy, which is not to be believed: {figures['accuracy']['value']:.3f}.")
    exhibit = {"explanation": twin.EXPLANATION, "leaked_validation": figures}
    test = schema.usable(frame, "test")
    if not test.empty:
        exhibit["leaked_model_on_test"] = twin.figures(
            predictor.probabilities(cache_images(test["uri"].tolist(), config.image_size)),
            test["label"].tolist(),
            test["group_id"].tolist(),
            config.seed,
        )
    return exhibit


def unmeasured(config: TrainConfig, model: Any) -> Bundle:
    """A bundle in memory of a model that nothing is known of yet."""
    files = {"model.keras": bundles.model_bytes(model), "training_images.parquet": b""}
    draft = {
        "input_size": config.image_size,
        "test_time_flips": config.test_time_flips,
        "calibration": {"temperature": 1.0},
    }
    return Bundle(bundles.seal(draft, files), files["model.keras"], files["training_images.parquet"])


def check(config: TrainConfig) -> pd.DataFrame:
    """The catalog of a configuration, when it can be trained on; raises InputError otherwise."""
    frame = schema.read(config.catalog)
    for name in ("train", "validation"):
        labels = schema.usable(frame, name)["label"]
        if labels.empty:
            raise InputError(f"The catalog {config.catalog} has no {name} images: split it with `melanoma split`.")
        if taxonomy.MELANOMA not in set(labels):
            raise InputError(f"The {name} split of {config.catalog} has no melanoma: nothing could be learned of it.")
    if leaks := split_groups(frame):
        raise InputError(
            f"The catalog {config.catalog} has {len(leaks)} groups in more than one split, so its figures would be "
            "leaked: run `melanoma split` on it."
        )
    _check_operating_point(config, schema.usable(frame, "validation"))
    for workers in config.worker_counts:
        # A pair of mixup has to be one worker's.
        if config.batch_size % (workers * (2 if config.mixup else 1)):
            parts = "pairs of images" if config.mixup else "images"
            raise InputError(
                f"batch_size {config.batch_size} cannot be shared equally by {workers} workers, in whole {parts}."
            )
        part, ghost_batch = config.batch_size // workers, config.network.ghost_batch
        if ghost_batch and part % ghost_batch:
            raise InputError(
                f"batch_size {config.batch_size} gives each of {workers} worker(s) {part} images, which are not whole "
                f"groups of ghost_batch {ghost_batch}."
            )
    networks.build(config.network, config.image_size, config.seed)
    operations(config.augmentation)
    if config.balance.copies:
        operations(config.balance.copies.augmentation)
    for place in (config.out, config.checkpoints):
        storage.check_writable(place)
    tracking.check(config)
    return frame


def _check_operating_point(config: TrainConfig, validation: pd.DataFrame) -> None:
    """Whether a perfect model's threshold could be chosen: it is known before the training, and fatal after it."""
    melanoma = (validation["label"] == taxonomy.MELANOMA).to_numpy()
    groups = validation["group_id"].to_numpy(dtype=object)
    point = config.operating_point
    try:
        operating_point(melanoma, melanoma.astype(np.float32), groups, point.sensitivity, point.bound)
    except ValueError as error:
        raise InputError(f"The operating point of {config.catalog} cannot be chosen: {error}.") from None


def check_resources(config: TrainConfig, say: Callable[[str], None]) -> None:
    """Ask for no more than there is: Ray would wait for it without a word."""
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


def fit(config: TrainConfig, images: np.ndarray, splits: dict[str, loop.Split], on_epoch: OnEpoch) -> Member:
    """Train with Ray Train; `images` uint8 RGB [n, size, size, 3], of which `splits` are rows."""
    name = str(config.run_name)
    _claim(config, name, images, splits)
    # Beside the driver: on any other node it would die with that node, and the training with it.
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    progress = Queue(actor_options={"num_cpus": 0, "scheduling_strategy": here})
    filesystem, path = storage.arrow_filesystem(config.checkpoints)
    trainer = TensorflowTrainer(
        loop.run,
        train_loop_config={
            "config": config.model_dump(),
            "images": ray.put(images),
            "progress": progress,
            **splits,
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
    result = _fit_and_follow(trainer, progress, on_epoch)
    checkpoint = result.get_best_checkpoint(_score(config), "max")
    if checkpoint is None:
        raise MelanomaError(f"Training ended without a checkpoint in {config.checkpoints}/{name}.")
    model = networks.build(config.network, config.image_size, config.seed, pretrained=False)
    at_best = loop.restore_kept(checkpoint, model)
    history = loop.read_history(result.checkpoint)
    return model, history, len(at_best) - 1


def _score(config: TrainConfig) -> str:
    """The figure of an epoch whose highest value is kept."""
    return "epoch" if config.select_by == "last" else config.select_by


# What may change when a run is gone on with: where it runs and where it writes, not what it learns.
MAY_CHANGE = {
    *("run_name", "catalog", "out", "checkpoints", "leaked_twin"),
    *("workers", "cpus_per_worker", "use_gpu", "xla", "max_failures", "members", "test_time_flips", "operating_point"),
    *("licence", "show_images"),
}


def _claim(config: TrainConfig, name: str, images: np.ndarray, splits: dict[str, loop.Split]) -> None:
    """Note what the run of this name learns; raises InputError where it is another run's name."""
    uri = storage.join(storage.normalize(config.checkpoints), f"{name}.json")
    mine = {
        "config": config.model_dump(mode="json", exclude=MAY_CHANGE),
        "images_sha256": hashlib.sha256(np.ascontiguousarray(images).data).hexdigest(),
        "labels_sha256": hashlib.sha256(json.dumps([part.labels for part in splits.values()]).encode()).hexdigest(),
    }
    try:
        if not storage.exists(uri):
            storage.write_json(uri, mine)
        elif storage.read_json(uri) != mine:
            raise InputError(
                f"The run {name} in {config.checkpoints} was begun with another configuration or other images: choose "
                "another run_name, or none, or another place for checkpoints."
            )
    except OSError as error:
        raise InputError(f"The checkpoints cannot be written to {config.checkpoints}: {error}") from None


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
        return trainer.fit()
    except ray.train.TrainingFailedError as error:
        raise MelanomaError(f"Training failed in a worker: {_last_line(error)}") from error
    finally:
        ended.set()
        follower.join()
        progress.shutdown()


def _last_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


def _write_bundle(
    config: TrainConfig,
    frame: pd.DataFrame,
    rows: pd.DataFrame,
    originals: np.ndarray,
    train_count: int,
    members: list[Member],
    twin_exhibit: dict[str, Any] | None,
) -> Bundle:
    model = (
        members[0][0] if len(members) == 1 else networks.ensemble([each for each, _, _ in members], config.image_size)
    )
    labels = tuple(rows["label"])
    validation, validation_labels = originals[train_count:], labels[train_count:]
    melanoma_labels = np.array(validation_labels) == taxonomy.MELANOMA
    draft: dict[str, Any] = {
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "input_size": config.image_size,
        "test_time_flips": config.test_time_flips,
        "calibration": {"method": "temperature", "temperature": 1.0, "fitted_on": "validation"},
        "thresholds": {"review": 0.5, "urgent": 0.5},
        **({"licence": config.licence} if config.licence else {}),
        "outliers": outliers.fit(originals[:train_count], validation),
        "training": {
            "config": config.model_dump(mode="json"),
            "catalog_fingerprint": schema.fingerprint(frame),
            "class_counts": {
                "train": plan.class_counts(labels[:train_count]),
                "validation": plan.class_counts(validation_labels),
            },
            "source_counts": {
                str(source): plan.class_counts(of_source["label"].tolist())
                for source, of_source in rows[rows["split"] == "train"].groupby("source", sort=True)
            },
            "class_distribution": {"rows": _class_distribution(config, rows[:train_count])},
            "parameters": int(model.count_params()),
            "members": [
                {"seed": (config.seed + number) % 2**32, "best_epoch": best + 1, "history": history}
                for number, (_, history, best) in enumerate(members)
            ],
        },
        "versions": {
            "melanoma": melanoma.__version__,
            "python": platform.python_version(),
            **{name: version(name) for name in ("keras", "tensorflow", "ray", "numpy", "pillow")},
        },
        "metrics": {},
    }
    files = {"model.keras": bundles.model_bytes(model), "training_images.parquet": _training_images(rows)}
    logits = Predictor(unmeasured(config, model)).logits(validation)
    temperature = fit_temperature(logits, plan.targets(validation_labels))
    p_melanoma = calibrated(logits, temperature)[:, taxonomy.CODES.index(taxonomy.MELANOMA)]
    point = config.operating_point
    groups = rows["group_id"].to_numpy(dtype=object)[train_count:]
    review = operating_point(melanoma_labels, p_melanoma, groups, point.sensitivity, point.bound)
    urgent = choose_threshold_by_specificity(melanoma_labels, p_melanoma, point.urgent_specificity)
    draft["calibration"]["temperature"] = temperature
    bound = "the lower confidence bound of sensitivity" if point.bound == "lower" else "sensitivity"
    draft["thresholds"] = {
        "review": review["threshold"],
        "urgent": max(review["threshold"], urgent),
        "chosen": f"on the validation split ({len(validation)} images, {int(melanoma_labels.sum())} melanomas): "
        f"review where {bound} reaches {point.sensitivity:.0%}, urgent at {point.urgent_specificity:.0%} specificity",
        "operating_point": review,
    }
    if twin_exhibit:
        draft["training"]["leaked_twin"] = {
            **twin_exhibit,
            "honest_validation": twin.figures(calibrated(logits, 1.0), validation_labels, groups.tolist(), config.seed),
        }
    measured = "test" if not schema.usable(frame, "test").empty else "validation"
    calibrated_bundle = Bundle(bundles.seal(draft, files), files["model.keras"], files["training_images.parquet"])
    report = evaluation.evaluate_frame(
        calibrated_bundle, frame, measured, config.catalog, seed=config.seed, show_images=config.show_images
    )
    # The figures alone: the curves and tables lie in evaluation/metrics.json beside it.
    figures = {name: report.metrics[name] for name in ("n", "n_melanoma", "leak_warning", "recall", "subgroups")}
    figures |= {name: value for name, value in report.metrics.items() if isinstance(value, dict) and "value" in value}
    draft["metrics"] = {"split": measured, **figures}
    files["model_card.md"] = model_card({"preprocessing": PREPROCESSING, **draft}).encode()
    files |= {f"evaluation/{name}": data for name, data in report.files.items()}
    try:
        return bundles.write(storage.normalize(config.out), draft, files)
    except OSError as error:
        raise MelanomaError(f"The bundle cannot be written to {config.out}: {error}") from None


def _training_images(rows: pd.DataFrame) -> bytes:
    """Digests of what the model has seen. Ids and numbers are hashed: they may be a hospital's own."""
    table = pa.table(
        {
            "sha256": rows["sha256"].tolist(),
            "image_id_sha256": [
                evaluation.digest(taxonomy.identity(image_id, uri))
                for image_id, uri in zip(rows["image_id"], rows["uri"], strict=True)
            ],
            "perceptual_hash": rows["perceptual_hash"].tolist(),
            **{hashed: evaluation.relative_digests(rows, column) for column, hashed in evaluation.RELATIVES.items()},
            "split": rows["split"].tolist(),
        }
    )
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    return buffer.getvalue()
