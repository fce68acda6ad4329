"""A configuration becomes a bundle: Ray Data decodes, Ray Train trains, the best epoch is calibrated and measured."""

import datetime
import functools
import platform
from collections.abc import Callable, Sequence
from importlib.metadata import version

import numpy as np
import pandas as pd

from melanoma import ray_session, storage, taxonomy
from melanoma.catalog import schema, seen
from melanoma.catalog.leaks import split_groups
from melanoma.errors import InputError, MelanomaError
from melanoma.evaluation.calibration import fit_temperature
from melanoma.evaluation.card import model_card
from melanoma.evaluation.operating_point import choose_malignancy, choose_thresholds
from melanoma.evaluation.predictions import side
from melanoma.evaluation.run import evaluate_frame
from melanoma.evaluation.wording import training_gap
from melanoma.imaging.decode import PREPROCESSING
from melanoma.model import bundle as bundles
from melanoma.model import device
from melanoma.model.bundle import Bundle
from melanoma.model.manifest import Calibration, Draft, Member, Thresholds, TrainingFacts
from melanoma.model.outliers import OutlierModel
from melanoma.model.predictor import CompiledNetwork, calibrated, p_malignant
from melanoma.training import fit, loop, networks, others, plan, quantize, tracking, twin
from melanoma.training.augment import operations
from melanoma.training.config import TrainConfig
from melanoma.training.data import DevelopmentSet, TrainingData, development_rows
from melanoma.training.fit import Trained
from melanoma.training.input import cache_images
from melanoma.training.measure import Figures, figures_of, in_words, learned_nothing, measure
from melanoma.training.tracking import OnEpoch
from melanoma.version import program_version

_MELANOMA = taxonomy.CODES.index(taxonomy.MELANOMA)
_LIBRARIES = ("keras", "tensorflow", "ray", "numpy", "pillow")


def train(
    config: TrainConfig,
    on_epoch: OnEpoch = lambda metrics: None,
    say: Callable[[str], None] = print,
    on_distribution: Callable[[list[plan.ClassShare]], None] = lambda classes: None,
) -> Bundle:
    """Train as configured and write the bundle to `config.out`, on the Ray that `ray_session.connect` finds or starts.

    Args:
        config: What is trained on what, and where it is written.
        on_epoch: Given the figures of each epoch.
        say: Given one line a step.
        on_distribution: Given the classes of the training split before and after balancing.

    Returns:
        The bundle that was written.

    Raises:
        InputError: Before anything is trained, where the catalog, the augmentations, the operating point or the number
            of workers cannot be used.
        MelanomaError: When training fails.
    """
    frame = check_inputs(config)
    if config.run_name is None:
        config = config.model_copy(update={"run_name": fit.new_run_name()})
    ray_session.connect()
    fit.check_resources(config, say)
    foreign = others.read(config, say)
    rows = development_rows(frame)
    on_distribution(_class_distribution(config, rows))
    train_count = int((rows["split"] == "train").sum())
    if gap := training_gap({"train": plan.class_counts(rows.loc[rows["split"] == "train", "label"].tolist())}):
        say(gap)
    say(f"Decoding {len(rows)} images ({train_count} train, {len(rows) - train_count} validation).")
    development = DevelopmentSet(rows, cache_images(rows["uri"].tolist(), config.image_size))
    exhibit = twin.train_twin(config, frame, development, on_epoch, say) if config.leaked_twin else None
    data = fit.with_copies(config, development, say)
    counts = config.worker_counts
    workers = f"{counts[0]} to {counts[-1]} workers" if len(counts) > 1 else f"{counts[0]} worker(s)"
    say(
        f"Training {config.network.name} for {config.epochs} epochs with {workers}. Should it be interrupted, "
        f"run_name={config.run_name} resumes it."
    )
    members = _train_members(config, data, on_epoch, say)
    say("Calibrating and measuring.")
    bundle = _write_bundle(config, frame, development, members, exhibit, foreign, say)
    tracking.note_model(_member_configs(config), bundle.version, say)
    return bundle


def check_inputs(config: TrainConfig) -> pd.DataFrame:
    """The catalog of a configuration, when it can be trained on; raises InputError otherwise."""
    frame = schema.read(config.catalog)
    for name in ("train", "validation"):
        labels = schema.usable(frame, name)["label"]
        if labels.empty:
            raise InputError(f"The catalog {config.catalog} has no {name} images: split it with `melanoma split`.")
        if not any(_may_be_melanoma(label) for label in labels.unique()):
            raise InputError(f"The {name} split of {config.catalog} has no melanoma: nothing could be learned of it.")
    if leaks := split_groups(frame):
        raise InputError(
            f"The catalog {config.catalog} has {len(leaks)} groups in more than one split, so its figures would be "
            "leaked: run `melanoma split` on it."
        )
    validation = schema.usable(frame, "validation")
    check_figure(config.select_by, validation["label"].tolist(), config.catalog)
    _check_operating_point(config, validation)
    _check_workers(config)
    device.use_no_gpu()
    networks.build(config.network, config.image_size, config.seed)
    networks.pretrained_weights(config.network, config.image_size)
    if config.compile != "none":
        quantize.check_installed()
    operations(config.augmentation)
    loop.graph_augmentation(config)
    if config.balance.copies:
        operations(config.balance.copies.augmentation)
    for place in (config.out, config.checkpoints):
        storage.check_writable(place)
    tracking.check_usable(config)
    return frame


def _may_be_melanoma(label: str) -> bool:
    """Whether a label is melanoma, or such as "malignant", which may be one. Of carcinomas alone none is learned."""
    return bool(taxonomy.malignant_of(label)) and taxonomy.melanoma_of(label) is not False


def check_figure(figure: str, labels: Sequence[str], catalog: str) -> None:
    """Raise InputError where the labels of validation do not tell the figure that an epoch is chosen by."""
    if figure in ("melanoma_auc", "malignant_auc") and figure not in loop.figures_of(labels):
        raise InputError(
            f"The labels of the validation split of {catalog} do not tell the {figure.replace('_', ' ')}: choose by "
            f"another of {', '.join(loop.figures_of(labels))}."
        )


def _check_operating_point(config: TrainConfig, validation: pd.DataFrame) -> None:
    """Whether a perfect model's thresholds could be chosen: it is known before the training, and fatal after it."""
    labels = validation["label"].tolist()
    malignant = side(labels, taxonomy.malignant_of).yes.astype(np.float32)
    melanoma = side(labels, taxonomy.melanoma_of).yes.astype(np.float32) if taxonomy.MELANOMA in labels else malignant
    group, sources = validation["group_id"].to_numpy(dtype=object), validation["source"].tolist()
    try:
        thresholds_of(config, labels, melanoma, malignant, group, sources)
    except ValueError as error:
        raise InputError(f"The operating point of {config.catalog} cannot be chosen: {error}.") from None


def thresholds_of(
    config: TrainConfig,
    labels: Sequence[str],
    of_melanoma: np.ndarray,
    of_malignancy: np.ndarray,
    group: np.ndarray,
    sources: Sequence[str],
) -> Thresholds:
    """The alert thresholds of a configuration.

    Args:
        config: The training.
        labels: [n], of the images of validation.
        of_melanoma: float32 [n], their probability of melanoma.
        of_malignancy: float32 [n], their probability of all that is malignant.
        group: [n], which of them belong together.
        sources: [n], where they are from.

    Raises:
        ValueError: As `choose_thresholds` and `choose_malignancy` do.
    """
    point = config.operating_point
    told = sources if point.by_source else None
    chosen = choose_thresholds(
        labels, of_melanoma, group, point.sensitivity, point.bound, point.urgent_specificity, told
    )
    if not (asked := point.malignancy):
        return chosen
    try:
        levels = choose_malignancy(
            labels, of_malignancy, group, asked.sensitivity, asked.bound, asked.urgent_specificity, told
        )
    except ValueError as error:
        raise ValueError(f"{error}, or set operating_point.malignancy=null") from None
    return chosen.model_copy(update={"malignancy": levels})


def _check_workers(config: TrainConfig) -> None:
    """Whether every number of workers can share a batch."""
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


def _class_distribution(config: TrainConfig, rows: pd.DataFrame) -> list[plan.ClassShare]:
    train = rows[rows["split"] == "train"]
    return plan.class_distribution(train["label"].tolist(), config.balance, train["source"].tolist(), config.seed)


# --- training --------------------------------------------------------------------------------------------------------


def _member_configs(config: TrainConfig) -> list[TrainConfig]:
    """The configuration of each network of the ensemble."""
    if config.members == 1:
        return [config]
    return [
        config.model_copy(update={"seed": (config.seed + number) % 2**32, "run_name": f"{config.run_name}-{number}"})
        for number in range(config.members)
    ]


def _train_members(
    config: TrainConfig, data: TrainingData, on_epoch: OnEpoch, say: Callable[[str], None]
) -> list[Trained]:
    """Train the networks of the ensemble one after the other.

    Args:
        config: The training of all of them.
        data: What each is trained on.
        on_epoch: Given the figures of each epoch.
        say: Given a line or two a network.
    """
    members = []
    for number, member in enumerate(_member_configs(config)):
        if config.members > 1:
            say(f"Member {number + 1} of {config.members}, seed {member.seed}.")
        with tracking.track(member, say) as track_epoch:
            trained = fit.fit(member, data, _both(on_epoch, track_epoch))
        chosen = "Last epoch" if config.select_by == "last" else f"Best epoch by {config.select_by}:"
        say(f"{chosen} {trained.best + 1} of {len(trained.history)}, {in_words(trained.at_best)}.")
        members.append(trained)
    return members


def _both(first: OnEpoch, second: OnEpoch) -> OnEpoch:
    def on_epoch(metrics: dict[str, float]) -> None:
        first(metrics)
        second(metrics)

    return on_epoch


# --- the bundle ------------------------------------------------------------------------------------------------------


def _write_bundle(
    config: TrainConfig,
    frame: pd.DataFrame,
    development: DevelopmentSet,
    members: list[Trained],
    exhibit: twin.Exhibit | None,
    foreign: others.Others | None,
    say: Callable[[str], None],
) -> Bundle:
    """Calibrate, choose thresholds, measure and write.

    Args:
        config: The training.
        frame: The whole catalog: the model is measured on its test split, or on validation where it has none.
        development: The images of train and validation, without copies.
        members: The networks of the ensemble.
        exhibit: The leaked twin, or None.
        foreign: Pictures that are no dermoscopy, or None.
        say: Given a line or two of the compiled form.
    """
    models = [member.model for member in members]
    model = models[0] if len(models) == 1 else networks.ensemble(models, config.image_size)
    files = {
        "model.keras": bundles.model_bytes(model, config.half_kernels),
        "training_images.parquet": seen.training_images(development.rows),
    }
    validation = development.images[development.train_count :]
    network = CompiledNetwork(files["model.keras"], config.image_size, config.test_time_flips)
    outputs = network.outputs(validation)
    logits = outputs.logits
    training = _training_facts(config, frame, development, members, int(model.count_params()))
    if exhibit:
        beside = exhibit.model_copy(update={"honest_validation": _honest_figures(config, development, logits)})
        training = training.model_copy(update={"leaked_twin": beside.to_json()})
    known = others.outlier_model(config, development, network, outputs, foreign)
    unmeasured = _draft(config, development, logits, training, known)
    split = "validation" if schema.usable(frame, "test").empty else "test"
    report = evaluate_frame(
        bundles.seal(unmeasured, files),
        frame,
        split,
        config.catalog,
        seed=config.seed,
        others=foreign.measured if foreign else None,
        show_images=config.show_images,
    )
    nothing = _learned_nothing(config, development, logits, unmeasured)
    metrics = {"split": split, **figures_of(report), **({"learned_nothing": nothing} if nothing else {})}
    draft = unmeasured.model_copy(update={"metrics": metrics})
    files |= {f"evaluation/{name}": data for name, data in report.files.items()}
    if config.compile != "none":
        say("Compiling for CPUs and measuring that form.")
        try:
            draft, files = quantize.with_compiled_form(
                config,
                draft,
                files,
                frame,
                development,
                outputs,
                foreign,
                functools.partial(calibrate, config, development),
            )
        except quantize.DisagreementError as error:
            say(f"{error} The bundle is written without it.")
    return write_with_card(config.out, draft, files)


def write_with_card(out: str, draft: Draft, files: dict[str, bytes]) -> Bundle:
    """Write a bundle with the card that its manifest asks for; raises MelanomaError where it cannot be written."""
    card = model_card({"preprocessing": PREPROCESSING, **draft.to_json()}).encode()
    try:
        return bundles.write(storage.normalize(out), draft, {**files, "model_card.md": card})
    except OSError as error:
        raise MelanomaError(f"The bundle cannot be written to {out}: {error}") from None


def calibrate(config: TrainConfig, development: DevelopmentSet, logits: np.ndarray) -> tuple[Calibration, Thresholds]:
    """What is chosen on the images of validation; `logits` float32 [n, classes] of these."""
    count = development.train_count
    labels = development.labels[count:]
    temperature = fit_temperature(logits, plan.targets(labels))
    probabilities = calibrated(logits, temperature)
    thresholds = thresholds_of(
        config,
        labels,
        probabilities[:, _MELANOMA],
        p_malignant(probabilities),
        development.groups[count:],
        development.rows["source"].tolist()[count:],
    )
    return Calibration(method="temperature", temperature=temperature, fitted_on="validation"), thresholds


def _draft(
    config: TrainConfig,
    development: DevelopmentSet,
    logits: np.ndarray,
    training: TrainingFacts,
    known: OutlierModel,
) -> Draft:
    """All that the bundle will say but what is measured.

    Args:
        config: The training.
        development: The images of train and validation.
        logits: float32 [n, classes] of the validation images.
        training: What was trained.
        known: Which images are of the known kind.
    """
    calibration, thresholds = calibrate(config, development, logits)
    draft = Draft(
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        input_size=config.image_size,
        test_time_flips=config.test_time_flips,
        calibration=calibration,
        thresholds=thresholds,
        outliers=known,
        training=training,
        versions={
            "melanoma": program_version(),
            "python": platform.python_version(),
            **{name: version(name) for name in _LIBRARIES},
        },
        metrics={},
    )
    return draft.model_copy(update={"licence": config.licence}) if config.licence else draft


def _training_facts(
    config: TrainConfig, frame: pd.DataFrame, development: DevelopmentSet, members: list[Trained], parameters: int
) -> TrainingFacts:
    """What the bundle says of its training.

    Args:
        config: The training.
        frame: The whole catalog.
        development: The images of train and validation.
        members: The networks of the ensemble.
        parameters: How many weights they have together.
    """
    rows, count, labels = development.rows, development.train_count, development.labels
    sources = rows[rows["split"] == "train"].groupby("source", sort=True)
    return TrainingFacts(
        config=config.model_dump(mode="json"),
        catalog_fingerprint=schema.fingerprint(frame),
        class_counts={
            "train": plan.class_counts(labels[:count]),
            "validation": plan.class_counts(labels[count:]),
        },
        source_counts={str(source): plan.class_counts(part["label"].tolist()) for source, part in sources},
        class_distribution={"rows": _class_distribution(config, rows)},
        parameters=parameters,
        initial_weights=networks.initial_weights(config.network),
        members=tuple(
            Member(seed=settings.seed, best_epoch=member.best + 1, history=tuple(member.history))
            for settings, member in zip(_member_configs(config), members, strict=True)
        ),
    )


def _learned_nothing(config: TrainConfig, development: DevelopmentSet, logits: np.ndarray, draft: Draft) -> str | None:
    """See `measure.learned_nothing`; `logits` float32 [n, classes] of validation."""
    count = development.train_count
    probabilities = calibrated(logits, draft.calibration.temperature)
    groups = development.groups[count:].tolist()
    return learned_nothing(probabilities, development.labels[count:], groups, draft.thresholds, config.seed)


def _honest_figures(config: TrainConfig, development: DevelopmentSet, logits: np.ndarray) -> Figures:
    """The figures of the bundle's model on validation, as those of its leaked twin are made."""
    count = development.train_count
    groups = development.groups[count:].tolist()
    return measure(calibrated(logits, 1.0), development.labels[count:], groups, config.seed)
