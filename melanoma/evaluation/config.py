"""The configuration of an evaluation: `configs/evaluate.yaml` becomes an `EvaluateConfig`."""

from typing import Annotated, Literal

from pydantic import Field

from melanoma.config import Model, Place, Seed


class EvaluateConfig(Model):
    bundle: Place
    catalog: Place
    out: Place
    split: Literal["train", "validation", "test", "all"] = "test"
    sources: tuple[str, ...] | None = None  # of the catalog; None: all of them
    seed: Seed = 0  # of the bootstrap, and of the images that are drawn
    against: Place | None = None  # another bundle, to compare with on the same images
    # Columns of the catalog to measure subgroups by; None: source, sex, age and anatomic_site, where they tell apart.
    by: tuple[str, ...] | None = None
    # A share of melanoma to show alerts and predictive values at, besides the set's, 2% and 0.1%.
    prevalence: Annotated[float, Field(gt=0, lt=1)] | None = None
    # At most this many images are changed a little and predicted again, and copied for the outlier rates.
    stability_images: Annotated[int, Field(ge=0)] = 500
    others: tuple[Place, ...] = ()  # folders of pictures that are no dermoscopy, for the outlier rates
