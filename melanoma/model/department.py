"""The operating point that a department has chosen: a file of `melanoma threshold`, and a bundle that takes it.

The file holds thresholds in place of the bundle's, for this very model alone, and what they gave on the images that
they were chosen on. `melanoma.evaluation.department` makes it.
"""

import dataclasses
import math
from typing import Literal

from pydantic import ValidationError

from melanoma import storage
from melanoma.errors import InputError
from melanoma.model.bundle import Bundle
from melanoma.model.manifest import Estimate, JsonModel, Levels, Thresholds
from melanoma.storage import Store

Question = Literal["melanoma", "malignancy"]


class OnSource(JsonModel):
    """What `review` of the question gives on the images of one source."""

    source: str
    n: int  # images whose labels answer the question
    n_positive: int  # of these, what is to be raised
    sensitivity: Estimate
    specificity: Estimate


class DepartmentPoint(JsonModel):
    """Thresholds of a model, as a department has chosen them."""

    model_version: str
    created: str  # ISO 8601, UTC
    question: Question  # whose thresholds were chosen; those of the other are as they were before
    stated_sensitivity: float | None = None
    stated_alerts_per_1000: float | None = None
    thresholds: Thresholds
    # The images that they were chosen on, and what they give there.
    catalog: str
    catalog_fingerprint: str
    split: str
    n: int
    leak_warning: str | None = None
    alerts_per_1000: dict[str, Estimate]  # of each question, "together", and "urgent" of both together
    by_source: tuple[OnSource, ...]


def read(uri: str, store: Store = storage.DEFAULT) -> DepartmentPoint:
    """Read an operating point. Raises InputError where it is none, and UnavailableError."""
    try:
        point = DepartmentPoint.model_validate(store.read_json(storage.normalize(uri)))
    except OSError as error:
        raise InputError(f"The operating point {uri} cannot be read: {error}") from None
    except (ValidationError, ValueError):
        raise InputError(
            f"{uri} is not an operating point: make one with `melanoma threshold BUNDLE CATALOG -o FILE`."
        ) from None
    for levels in (point.thresholds, point.thresholds.malignancy):
        if levels and not _is_usable(levels):
            raise InputError(f"The operating point {uri} has thresholds that are none: make it anew.")
    return point


def _is_usable(levels: Levels) -> bool:
    """Whether both are numbers, in their order: no comparison with NaN is true, and so nothing would be raised."""
    return 0 <= levels.review <= levels.urgent < math.inf


def at_operating_point(bundle: Bundle, uri: str | None, store: Store = storage.DEFAULT) -> Bundle:
    """The bundle with the thresholds of the file `uri`, or as it is where that is None.

    Raises InputError where the file is no operating point, or was made for another model.
    """
    if uri is None:
        return bundle
    point = read(uri, store)
    if point.model_version != bundle.version:
        raise InputError(
            f"The operating point {uri} was made for the model {point.model_version}, and not for {bundle.version}: "
            "make one for this model with `melanoma threshold`."
        )
    manifest = bundle.manifest.model_copy(update={"thresholds": point.thresholds})
    return dataclasses.replace(bundle, manifest=manifest)
