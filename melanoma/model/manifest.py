"""What `bundle.json` says of a model, typed.

Reading and writing keep the file's tree as it is: a key that this version does not know is kept, and an optional key
that an earlier version did not write is not added (`to_json`). What was measured (`metrics`), the configuration of the
training and the exhibit of the leaked twin stand there as the JSON that the rooms above wrote; they belong to
`melanoma.evaluation` and `melanoma.training`.
"""

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from melanoma.model.outliers import FeatureModel, OutlierModel


class JsonModel(BaseModel):
    """A JSON object with types; keys that are not known are kept."""

    model_config = ConfigDict(frozen=True, extra="allow", populate_by_name=True, ser_json_inf_nan="constants")

    def to_json(self) -> dict[str, Any]:
        """The very tree that was read, or that was given: keys that were not are left out."""
        return self.model_dump(mode="json", by_alias=True, exclude_unset=True)


class Calibration(JsonModel):
    """Probabilities are softmax(logits / temperature)."""

    temperature: float
    method: str | None = None
    fitted_on: str | None = None  # a split


class Estimate(JsonModel):
    """A figure with its 95% interval; None where it is not defined, such as the sensitivity without a melanoma."""

    value: float | None
    low: float | None = None
    high: float | None = None
    method: str | None = None


class OperatingPoint(JsonModel):
    """What `review` gives on the images that it was chosen on, see melanoma.evaluation.operating_point."""

    threshold: float | None = None
    stated_sensitivity: float | None = None
    bound: str | None = None  # what was to reach it: "observed" or "lower"
    sensitivity: Estimate
    sensitivity_lower_bound: float | None = None
    specificity: Estimate
    n: int  # images
    n_melanoma: int
    # How many were malignant, where the threshold was chosen for these: as that of any malignancy is, and that of
    # melanoma where no image was known as one.
    n_malignant: int | None = None


class Levels(JsonModel):
    """From which probability on an image is raised for one question, and how that was chosen."""

    review: float
    urgent: float
    chosen: str | None = None  # a phrase
    operating_point: OperatingPoint | None = None  # None: the bundle was made by an earlier version


class Thresholds(Levels):
    """From which p_melanoma on an image is raised, and from which p_malignant."""

    malignancy: Levels | None = None  # of p_malignant; None: the question is not asked
    # Where a department has chosen them, see melanoma.model.department; None: they are the bundle's own.
    department: str | None = None


class Member(JsonModel):
    """One network of the ensemble; a bundle of a single network has one."""

    seed: int | None = None
    best_epoch: int  # counted from 1: the epoch whose weights were kept
    history: tuple[dict[str, Any], ...] = ()  # the figures of each epoch


class TrainingFacts(JsonModel):
    """What the model was trained on and how."""

    config: dict[str, Any] = {}  # a TrainConfig of melanoma.training.config
    catalog_fingerprint: str | None = None
    class_counts: dict[str, dict[str, int]] = {}  # images by split and label
    source_counts: dict[str, dict[str, int]] | None = None  # training images by source and label
    class_distribution: dict[str, Any] | None = None  # `rows`: see melanoma.training.plan.ClassShare
    parameters: int | None = None
    initial_weights: str | None = None  # whose they were, and their licence
    members: tuple[Member, ...] = ()
    leaked_twin: dict[str, Any] | None = None  # see melanoma.training.twin


class Agreement(JsonModel):
    """How near the compiled form is to the TensorFlow form on the images of validation."""

    n: int  # images
    correlation: float  # of the log odds of melanoma
    auc_tensorflow: float | None = None  # of melanoma, or where no label tells it, of what is malignant
    auc_compiled: float | None = None
    largest_change: float  # of a calibrated p_melanoma


class CompiledForm(JsonModel):
    """The form for CPUs (melanoma.model.compiled), as a model of its own: what differs from the TensorFlow form."""

    form: str  # "int8"
    calibration: Calibration
    thresholds: Thresholds
    of_features: FeatureModel | None = None  # of its outlier model; all else of that looks at the pixels alone
    calibration_images: int | None = None  # training images that the ranges of the integers were found on
    agreement: Agreement
    versions: dict[str, str] = {}  # of the libraries that made it
    metrics: dict[str, Any] = {}  # as those of the TensorFlow form


class Draft(JsonModel):
    """All of a manifest but what `melanoma.model.bundle.write` derives from the program and the files."""

    created: str | None = None  # ISO 8601, UTC
    input_size: int  # pixels a side
    test_time_flips: int = 1  # orientations that a prediction is the mean of, see melanoma.model.predictor
    calibration: Calibration
    thresholds: Thresholds
    outliers: OutlierModel
    licence: str | None = None  # of the weights
    training: TrainingFacts = TrainingFacts()
    versions: dict[str, str] = {}  # of the program and its libraries
    metrics: dict[str, Any] = {}  # `split` and the figures of its evaluation/metrics.json; empty: not measured
    compiled: CompiledForm | None = None  # all else is said of the TensorFlow form


class Manifest(Draft):
    """The whole of `bundle.json`."""

    model_version: str
    schema_version: int = Field(alias="schema")
    preprocessing: str
    classes: tuple[str, ...]
    files: dict[str, str]  # relative name and sha256 of every other file

    def draft(self) -> Draft:
        """What may be written anew, with other values or beside other files."""
        derived = {"model_version", "schema", "preprocessing", "classes", "files"}
        return Draft.model_validate({key: value for key, value in self.to_json().items() if key not in derived})
