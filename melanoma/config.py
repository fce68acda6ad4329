"""The typed configuration tree. YAML and ``key=value`` overrides become it, or one clear error.

Each job has one model below, and its YAML files in ``configs/`` are read into it. A credential has no place here.
"""

import datetime
import difflib
from collections.abc import Sequence
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
    """`name` is a function of melanoma.training.networks."""

    name: Literal["residual", "student"] = "residual"
    width: Positive = 16  # channels of the first stage; the later stages double it
    dropout: Share = 0.3


class Augmentation(Model):
    """One Augmentor operation: a method of Augmentor.Pipeline, with its own parameters."""

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
    copies: Copies | None = None


class OperatingPoint(Model):
    """How the alert thresholds are chosen, on the validation split."""

    sensitivity: Annotated[float, Field(gt=0, le=1)] = 0.95  # of `review`
    # What must reach it: the share of these very melanomas, or that share's one-sided 95% lower confidence bound, which
    # takes 59 melanomas for 95%.
    bound: Literal["observed", "lower"] = "observed"
    urgent_specificity: Annotated[float, Field(gt=0, le=1)] = 0.95  # of `urgent`


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
    balance: Balance = Balance()
    augmentation: tuple[Augmentation, ...] = ()
    # The validation figure whose best epoch is kept; "last" keeps the last epoch, whatever its figures.
    select_by: Literal["accuracy", "balanced_accuracy", "melanoma_auc", "last"] = "balanced_accuracy"
    operating_point: OperatingPoint = OperatingPoint()
    # Train the same recipe a second time in the way of the student projects, with copies made before a split over
    # single files, and show in the report, as a warning, how good that looks.
    leaked_twin: bool = False
    workers: Positive = 1
    cpus_per_worker: Annotated[float, Field(gt=0)] = 1.0
    use_gpu: bool = False
    max_failures: Annotated[int, Field(ge=-1)] = 2


class EvaluateConfig(Model):
    bundle: str
    catalog: str
    out: str
    split: Literal["train", "validation", "test", "all"] = "test"
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


class ScoreConfig(Model):
    archive: str
    out: str
    bundle: str
    run_id: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")] | None = None
    run_date: Date = None
    all: bool = False  # score what this very model has already scored, too
    workers: Positive | None = None  # actors that fetch, decode and predict; None: one a core
    batch_size: Positive = 32
    shard_size: Positive | None = None  # images an output file; None: by the size of the archive
    max_bytes: Positive = 64 * 2**20
    max_pixels: Positive = 64_000_000


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
    return f"The key {key!r}{where} is {first['input']!r}: {first['msg'][0].lower() + first['msg'][1:]}."


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
