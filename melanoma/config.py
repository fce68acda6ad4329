"""The typed configuration tree. YAML and ``key=value`` overrides become it, or one clear error.

Each job has one model below, and its YAML files in ``configs/`` are read into it. A credential has no place here.
"""

import datetime
import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar, get_args

import pydantic
import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from melanoma.errors import InputError

Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[int, Field(gt=0)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]  # what Keras takes


def _iso_date(value: Any) -> Any:
    if value is None:
        return None
    try:
        return datetime.date.fromisoformat(str(value)).isoformat()  # YAML reads 2026-11-20 as a date
    except ValueError:
        raise ValueError("must be a date such as 2026-11-20") from None


Date = Annotated[str | None, BeforeValidator(_iso_date)]


class Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False)


class Network(Model):
    """A network of melanoma.training.networks."""

    # residual: our own; student: the students'; or any of keras.applications, such as EfficientNetV2B0.
    name: str = "residual"
    width: Positive = 16  # residual, student: channels of the first stage; the later stages double it
    blocks: Annotated[tuple[Positive, ...], Field(min_length=1, max_length=6)] = (2, 2, 2, 2)  # residual: of each stage
    stem: Literal[2, 4] = 2  # residual: by how much the first layer reduces the picture
    normalization: Literal["batch", "group"] = "batch"  # residual
    # How many images make their batch statistics together, by themselves ("ghost batches"); null: the whole global
    # batch, over all workers, which costs them several exchanges a layer and step.
    ghost_batch: Annotated[int, Field(ge=2)] | None = None
    dropout: Share = 0.3
    # The exponent of Shades of Gray, which makes the light of every picture grey (6 is usual); null: as it is.
    colour_constancy: Annotated[float, Field(ge=1, le=16)] | None = None
    # keras.applications: null (from scratch), imagenet (downloaded by Keras), or a .weights.h5 or .keras file or URI of
    # the same network without its top.
    weights: str | None = None
    # keras.applications: epochs in which only the new head learns, and the learning rate of all the epochs after.
    frozen_epochs: Annotated[int, Field(ge=0)] = 0
    fine_tuning_rate: Annotated[float, Field(gt=0)] | None = None

    @model_validator(mode="after")
    def _of_applications(self) -> Self:
        if self.name in ("residual", "student") and (self.weights or self.frozen_epochs or self.fine_tuning_rate):
            raise ValueError(f"weights, frozen_epochs and fine_tuning_rate are for keras.applications, not {self.name}")
        return self


class Augmentation(Model):
    """One operation, with its own parameters: a method of Augmentor.Pipeline, or one of melanoma.training.augment."""

    model_config = ConfigDict(extra="allow", frozen=True)

    operation: Literal[
        "flip_left_right",
        "flip_top_bottom",
        "rotate_random_90",
        "rotate",
        "zoom",
        "shear",
        "skew",
        "random_brightness",
        "random_contrast",
        "random_color",
        "random_distortion",
        "random_erasing",
        "histogram_equalisation",
        "frame",
        "colour",
        "resolution",
        "dark_border",
        "marks",
    ]
    probability: Annotated[float, Field(gt=0, le=1)] = 0.5


class Copies(Model):
    """Augmented copies, made once before the training, of images of the training split.

    `add`: so many more of every class, as the student projects do with Augmentor's ``sample(500)``. `fill_to`: a class
    of fewer images is filled up to so many.
    """

    add: Positive | None = None
    fill_to: Positive | None = None
    augmentation: Annotated[tuple[Augmentation, ...], Field(min_length=1)]

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        if (self.add is None) == (self.fill_to is None):
            raise ValueError("give either add or fill_to")
        return self


class Balance(Model):
    """Class balancing, by how often an image is drawn, how much it weighs in the loss, and by augmented copies.

    Powers: 0 leaves the classes as they are, 1 makes them count alike, and between the two the share of a class of n
    images goes with n ** (1 - power). They combine: 0.5 and 0.5 balance as much as 1 and 0 do. Copies are made first,
    and count as images for the other two.
    """

    sampling: Share = 1.0
    loss_weights: Share = 0.0
    # A class of each source counts as a class of its own: a source then tells less of the diagnosis.
    by_source: bool = False
    copies: Copies | None = None


class OperatingPoint(Model):
    """How the alert thresholds are chosen, on the validation split."""

    sensitivity: Annotated[float, Field(gt=0, le=1)] = 0.95  # of `review`
    # What must reach it: the share of these very melanomas, or that share's one-sided 95% lower confidence bound, which
    # takes 59 melanomas for 95%.
    bound: Literal["observed", "lower"] = "observed"
    urgent_specificity: Annotated[float, Field(gt=0, le=1)] = 0.95  # of `urgent`


class Tracking(Model):
    """Where the figures of each epoch go beside the bundle; see melanoma.training.tracking."""

    tensorboard: str | None = None  # a folder
    mlflow: str | None = None  # a tracking URI; the extra `mlflow` has to be installed
    experiment: Annotated[str, Field(min_length=1)] = "melanoma"  # of MLflow


class TrainConfig(Model):
    catalog: str
    out: str  # where the bundle is written: a folder or an s3:// URI
    checkpoints: str = "out/checkpoints"  # a folder or an s3:// URI; every worker must reach it
    # The folder of this run's checkpoints. A run of the same name is gone on with; without a name it is a new one.
    run_name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")] | None = None
    seed: Seed = 0
    image_size: Annotated[int, Field(ge=32, le=1024)] = 96
    network: Network = Network()
    epochs: Positive = 40
    batch_size: Positive = 64  # over all workers
    optimizer: Literal["adamw", "sgd"] = "adamw"
    learning_rate: Annotated[float, Field(gt=0)] = 0.002
    weight_decay: Annotated[float, Field(ge=0)] = 0.02
    warmup_epochs: Annotated[float, Field(ge=0)] = 1.0
    schedule: Literal["cosine", "constant"] = "cosine"  # of the learning rate, after the warm-up
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.05
    # Each image is mixed with its neighbour in the batch, by a share drawn from Beta(mixup, mixup); 0: not at all.
    mixup: Annotated[float, Field(ge=0)] = 0.0
    # What is validated and kept are weights averaged over the steps, with this momentum (0.998 averages over about 500
    # steps); null: the weights of the last step.
    averaged_weights: Annotated[float, Field(gt=0, lt=1)] | None = None
    balance: Balance = Balance()
    augmentation: tuple[Augmentation, ...] = ()
    # The validation figure whose best epoch is kept; "last" keeps the last epoch, whatever its figures.
    select_by: Literal["accuracy", "balanced_accuracy", "melanoma_auc", "last"] = "balanced_accuracy"
    # Stop when that figure has not risen for so many epochs; null: all epochs are trained.
    patience: Positive | None = None
    # So many networks are trained, with the seeds seed, seed + 1, ..., and the bundle's model is the mean of them.
    members: Annotated[int, Field(ge=1, le=32)] = 1
    # Predictions are averaged over so many orientations of an image: itself, mirrored, turned. Costs as many times.
    test_time_flips: Literal[1, 2, 4, 8] = 1
    operating_point: OperatingPoint = OperatingPoint()
    licence: str | None = None  # of the weights, for the model card
    # Whether the bundle's evaluation may name and show the images that it was measured on.
    show_images: bool = True
    # Train the same recipe a second time in the way of the student projects, with copies made before a split over
    # single files, and show in the report, as a warning, how good that looks.
    leaked_twin: bool = False
    # How many, or the fewest and the most: the group then grows and shrinks with the cluster.
    workers: Positive | tuple[Positive, Positive] = 1
    cpus_per_worker: Annotated[float, Field(gt=0)] = 1.0
    use_gpu: bool = False
    # mixed_bfloat16 computes in half precision, where the device gains by it: GPUs since Ampere, CPUs with AVX-512 BF16
    # or AMX. The bundle's network is float32 in any case.
    precision: Literal["float32", "mixed_bfloat16"] = "float32"
    xla: bool = False  # compile the step with XLA: gains on GPUs, loses on CPUs
    max_failures: Annotated[int, Field(ge=-1)] = 2
    # Never dumped, and so neither in a bundle nor beside a checkpoint: a tracking URI may hold a password.
    tracking: Tracking = Field(default=Tracking(), exclude=True, repr=False)

    @model_validator(mode="after")
    def _fewest_and_most(self) -> Self:
        if not self.worker_counts:
            raise ValueError(f"workers {self.workers} have to be the fewest and the most, in this order")
        return self

    @property
    def worker_counts(self) -> range:
        """The numbers of workers that the group may have."""
        low, high = self.workers if isinstance(self.workers, tuple) else (self.workers, self.workers)
        return range(low, high + 1)


class EvaluateConfig(Model):
    bundle: str
    catalog: str
    out: str
    split: Literal["train", "validation", "test", "all"] = "test"
    sources: tuple[str, ...] | None = None  # of the catalog; None: all of them
    seed: Seed = 0  # of the bootstrap, and of the images that are drawn
    against: str | None = None  # another bundle, to compare with on the same images
    # Columns of the catalog to measure subgroups by; None: source, sex, age and anatomic_site, where they tell apart.
    by: tuple[str, ...] | None = None
    # A share of melanoma to show alerts and predictive values at, beside the set's own, 2% and 0.1%.
    prevalence: Annotated[float, Field(gt=0, lt=1)] | None = None
    # At most so many images are changed a little and predicted again, and checked for outliers.
    stability_images: Annotated[int, Field(ge=0)] = 500
    others: tuple[str, ...] = ()  # folders of pictures that are no dermoscopy, for the outlier check


class AblationConfig(Model):
    catalog: str
    repaired: str | None = None  # the same images with labels repaired, see melanoma.catalog.resolve: one step more
    out: str
    student_epochs: Positive | None = None  # of the student steps; None: as their configurations say
    overrides: tuple[str, ...] = ()  # of every training, such as "image_size=64"


class Space(Model):
    """The values that a search draws from, in one of four ways."""

    choice: Annotated[tuple[Any, ...], Field(min_length=1)] | None = None
    uniform: tuple[float, float] | None = None
    log_uniform: tuple[Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)]] | None = None
    integer: tuple[int, int] | None = None  # both ends are drawn, too

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        given = [name for name in type(self).model_fields if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError("give one of choice, uniform, log_uniform and integer")
        ends = self.uniform or self.log_uniform or self.integer
        if ends and ends[0] >= ends[1]:
            raise ValueError(f"the first end of {given[0]} has to be below the second")
        return self


class Scheduler(Model):
    """Asynchronous successive halving (ASHA; Li et al. 2020, arXiv:1810.05934).

    After `grace_epochs`, and again whenever the epochs have grown by the factor `reduction`, a trial is stopped that is
    not among the best 1 / `reduction` of the trials that have come so far.
    """

    metric: Literal["accuracy", "balanced_accuracy", "melanoma_auc"] = "balanced_accuracy"  # of validation
    grace_epochs: Positive = 5
    reduction: Annotated[float, Field(gt=1)] = 3.0


class TuneConfig(Model):
    config: str  # YAML of the training that every trial starts from
    overrides: tuple[str, ...] = ()  # of every trial, such as "epochs=20"
    out: str  # a folder or an s3:// URI; every node must reach it
    search: Annotated[dict[str, Space], Field(min_length=1)]  # dotted keys of TrainConfig
    samples: Positive = 8  # trials
    scheduler: Scheduler = Scheduler()
    seed: Seed = 0  # of what is drawn
    parallel_trials: Positive = 1


class RecipesConfig(Model):
    config: str = "configs/reference.yaml"  # what every recipe starts from
    catalog: str
    out: str
    # The sources that are left out of training and tested on, each entry a training of its own.
    leave_out: Annotated[tuple[tuple[str, ...], ...], Field(min_length=1)]
    overrides: tuple[str, ...] = ()  # of every recipe, such as "image_size=64"
    recipes: Annotated[dict[str, dict[str, Any]], Field(min_length=1)]  # a name, and keys of the training with values


class DeliveryConfig(Model):
    """Where the alerts of a night go; secrets are in the environment, see `melanoma.deliver`."""

    webhook: Annotated[str, Field(pattern=r"^https?://")] | None = None
    smtp_host: str | None = None
    smtp_port: Annotated[int, Field(ge=1, le=65535)] = 587
    smtp_tls: bool = True
    mail_from: str | None = None
    mail_to: tuple[str, ...] = ()
    patience: Annotated[float, Field(ge=0)] = 300  # seconds for which a receiver that fails is tried again


class ScoreConfig(Model):
    archive: str | tuple[str, ...]  # folders, prefixes, manifests, inventories: see melanoma.scoring.archive
    out: str
    bundle: str | None = None  # None: the reference bundle, see melanoma.bundle
    run_id: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")] | None = None
    run_date: Date = None
    all: bool = False  # score what this very model has already scored, too
    workers: Positive | None = None  # actors that fetch, decode and predict; None: one a core
    gpus: Annotated[int, Field(ge=0)] | None = None  # on which the network is asked; None: all; 0: workers ask it
    batch_size: Positive = 32
    requests: Positive = 32  # objects that each worker fetches at a time
    bytes_ahead: Positive = 64 * 2**20  # that each worker holds of them at most
    patience: Annotated[float, Field(ge=0)] = 120  # seconds for which a store that does not answer is asked again
    shard_size: Positive | None = None  # images an output file; None: by the size of the archive
    max_access_share: Share = 0.25  # of the images: with more of them unreadable, the run fails at its end
    max_bytes: Positive = 64 * 2**20
    max_pixels: Positive = 64_000_000
    explained: Annotated[int, Field(ge=0)] = 50  # alerts, the first by rank, with picture and heat map on the page
    hold_back_annotated: bool = False  # no page shows pictures that may have text in them
    metrics_port: Annotated[int, Field(ge=0, le=65535)] | None = None  # of the driver, for Prometheus; null: none
    metrics_host: str = "127.0.0.1"
    log: str | None = None  # a file to which one line of JSON a minute is added
    deliver: DeliveryConfig | None = None  # what is done with the alerts once the run is committed


Measure = Literal["speed", "latency", "growth", "nodes", "start", "dicom", "tar"]


class BenchmarkConfig(Model):
    archive: str | tuple[str, ...]
    out: str  # a local folder for what is measured
    measure: Annotated[tuple[Measure, ...], Field(min_length=1)] = ("speed",)
    bundle: str | None = None
    images: Positive = 2000  # at most so many of the archive
    repeat: Positive = 1  # each under so many names
    rounds: Positive = 3  # of all that is measured, but for growth
    resize: tuple[Positive, Positive] | None = None  # copies of this width and height; null: as they are
    many: Annotated[int, Field(ge=100)] = 50_000  # of the larger archive of "growth"
    cores: Positive | None = None  # None: those of this machine
    peers: tuple[str, ...] | None = None  # of melanoma.scoring.peers; None: all that are installed
    score: dict[str, Any] = Field(default_factory=dict)  # keys of the scoring run, such as {batch_size: 64}


C = TypeVar("C", bound=Model)


def load(model: type[C], path: str | None, overrides: Sequence[str] | None = None, **values: Any) -> C:
    """Read `path` (YAML), apply ``a.b=value`` overrides, then `values` that are not None, and check the whole.

    Raises InputError with one sentence: which key of which file, what is wrong with it, and the nearest right one.
    """
    tree = _read_yaml(path) if path else {}
    for override in overrides or []:
        key, separator, text = override.partition("=")
        if not separator or not key:
            raise InputError(f"Override {override!r} is not of the form key=value, such as network.width=32.")
        try:
            value = yaml.safe_load(text)
        except (yaml.YAMLError, ValueError, RecursionError):  # ValueError: 2026-13-45 looks like a date and is none
            raise InputError(f"The value of override {override!r} is not valid YAML.") from None
        _set(tree, key.split("."), value, override)
    tree.update({key: value for key, value in values.items() if value is not None})
    return _checked(model, tree, path)


def changed(config: C, values: Mapping[str, Any]) -> C:
    """`config` with the values of dotted keys such as ``network.width``; raises InputError as `load` does."""
    tree = config.model_dump(mode="json")
    for key, value in values.items():
        _set(tree, key.split("."), value, key)
    return _checked(type(config), tree, None)


def _checked(model: type[C], tree: dict[str, Any], path: str | None) -> C:
    try:
        return model.model_validate(tree)
    except pydantic.ValidationError as error:
        raise InputError(_sentence(model, error, path)) from None


def _read_yaml(path: str) -> dict[str, Any]:
    try:
        tree = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"The configuration {path} does not exist.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"The configuration {path} cannot be read ({type(error).__name__}).") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" in line {mark.line + 1}" if mark else ""
        raise InputError(f"The configuration {path} is not valid YAML{where}.") from None
    except (ValueError, RecursionError) as error:  # something that looks like a date and is none
        raise InputError(f"The configuration {path} is not valid YAML: {error}.") from None
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise InputError(f"The configuration {path} is not a mapping of keys to values.")
    return tree


def _set(tree: dict[str, Any], keys: list[str], value: Any, override: str) -> None:
    for key in keys[:-1]:
        child = tree.setdefault(key, {})
        if not isinstance(child, dict):
            raise InputError(f"Override {override!r}: {key!r} is a value, not a group of keys.")
        tree = child
    tree[keys[-1]] = value


def _sentence(model: type[BaseModel], error: pydantic.ValidationError, path: str | None) -> str:
    first = error.errors()[0]
    key = ".".join(str(part) for part in first["loc"])
    where = f" in {path}" if path else ""
    if first["type"] == "missing":
        return f"The key {key!r} is missing{where}."
    if first["type"] == "extra_forbidden":
        known = list(_fields(model, first["loc"][:-1]))
        near = difflib.get_close_matches(str(first["loc"][-1]), known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"the keys there are {', '.join(known)}."
        return f"Unknown key {key!r}{where}: {hint}"
    message = first["msg"].removeprefix("Value error, ")
    return f"The key {key!r}{where} is {first['input']!r}: {message[0].lower() + message[1:]}."


def _fields(model: type[BaseModel], path: tuple[int | str, ...]) -> list[str]:
    """The keys that are known at a place of the tree. In a list of several kinds, the kind is a part of the path."""
    models = [model]
    for part in path:
        fields = [each.model_fields[part] for each in models if part in each.model_fields]
        if fields:
            models = [inner for field in fields for inner in _models(field.annotation)]
        elif isinstance(part, str):
            models = [
                each
                for each in models
                if (part,) in [get_args(field.annotation) for field in each.model_fields.values()]
            ]
    return list(dict.fromkeys(name for each in models for name in each.model_fields))


def _models(annotation: Any) -> list[type[BaseModel]]:
    """The models in an annotation such as ``tuple[A | B, ...]``."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for argument in get_args(annotation) for model in _models(argument)]
