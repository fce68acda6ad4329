"""The configuration of an evaluation: `configs/evaluate.yaml` becomes an `EvaluateConfig`."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from melanoma.config import Model, Place, Seed
from melanoma.model.form import NetworkForm


class ThresholdConfig(Model):
    """Of `melanoma threshold`, see melanoma.evaluation.department."""

    bundle: Place
    network: NetworkForm = "auto"  # the form of its model; auto: the compiled one where the bundle has it
    catalog: Place
    out: Place | None = None  # the file that is written; None: the figures alone are wanted
    split: Literal["train", "validation", "test", "all"] = "test"
    question: Literal["melanoma", "malignancy"] = "melanoma"
    # What `review` is chosen by, one of the two; with neither, 95% sensitivity.
    sensitivity: Annotated[float, Field(gt=0, le=1)] | None = None
    alerts_per_1000: Annotated[float, Field(gt=0, lt=1000)] | None = None  # of all images
    operating_point: Place | None = None  # to begin from, whose other question stays as it is; None: the bundle's

    @model_validator(mode="after")
    def _one_aim(self) -> Self:
        if self.sensitivity and self.alerts_per_1000:
            raise ValueError("give either sensitivity or alerts_per_1000")
        return self

    @property
    def stated_sensitivity(self) -> float | None:
        """None where alerts are stated."""
        return None if self.alerts_per_1000 else self.sensitivity or 0.95


class EvaluateConfig(Model):
    bundle: Place | None = None
    network: NetworkForm = "auto"  # the form of its model; auto: the compiled one where the bundle has it
    # A table of another model's probabilities instead of a bundle, see melanoma.evaluation.other_model.
    predictions: Place | None = None
    operating_point: Place | None = None  # of the bundle, as `melanoma threshold` wrote it; None: its own thresholds
    catalog: Place
    out: Place
    split: Literal["train", "validation", "test", "all"] = "test"
    sources: tuple[str, ...] | None = None  # of the catalog; None: all of them
    seed: Seed = 0  # of the bootstrap, and of the images that are drawn
    against: Place | None = None  # another bundle, to compare with on the same images
    against_network: NetworkForm = "auto"  # the form of its model: that of one bundle can be compared with the other
    # Columns of the catalog to measure subgroups by; None: source, sex, age and anatomic_site, where they tell apart.
    by: tuple[str, ...] | None = None
    # A share of melanoma to show alerts and predictive values at, besides the set's, 2% and 0.1%.
    prevalence: Annotated[float, Field(gt=0, lt=1)] | None = None
    # At most this many images are changed a little and predicted again, and copied for the outlier rates.
    stability_images: Annotated[int, Field(ge=0)] = 500
    others: tuple[Place, ...] = ()  # folders of pictures that are no dermoscopy, for the outlier rates
    allow_missing: bool = False  # of `predictions`: leave out images that it lacks
    # Of `predictions`: the split whose images its alert thresholds are chosen on; None: it has none.
    thresholds_from: Literal["train", "validation", "test"] | None = None

    @model_validator(mode="after")
    def _one_model(self) -> Self:
        if (self.bundle is None) == (self.predictions is None):
            raise ValueError("give either a bundle or predictions")
        if self.predictions is None and (self.allow_missing or self.thresholds_from):
            raise ValueError("allow_missing and thresholds_from are for predictions, not for a bundle")
        if self.predictions is not None and (self.others or self.operating_point):
            raise ValueError("others and operating_point need a bundle")
        if self.thresholds_from is not None and self.thresholds_from == self.split:
            raise ValueError("thresholds_from has to be another split than the one that is measured")
        return self
