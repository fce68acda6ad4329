"""`melanoma threshold`: a department chooses an operating point of a model on images of its own.

For one of the two questions it chooses `review`, by a stated sensitivity or by how many alerts a department can look
at, as `melanoma.evaluation.operating_point` does for a bundle; `urgent` stays as it is, and never below `review`. The
figures are those of the images that the threshold was chosen on: alerts of 1,000 images at their share of melanoma.
"""

import datetime
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from melanoma import storage, taxonomy
from melanoma.catalog import schema
from melanoma.catalog.seen import leak_warning
from melanoma.errors import InputError
from melanoma.evaluation import intervals
from melanoma.evaluation.config import ThresholdConfig
from melanoma.evaluation.intervals import Bools, Ints, proportion
from melanoma.evaluation.operating_point import at, choose_threshold, choose_threshold_by_specificity
from melanoma.evaluation.predictions import Side, floats, group_codes, side
from melanoma.evaluation.run import predict_rows, rows_to_measure
from melanoma.model import triage
from melanoma.model.bundle import load as load_bundle
from melanoma.model.department import DepartmentPoint, OnSource, at_operating_point
from melanoma.model.manifest import Estimate, Levels, OperatingPoint, Thresholds
from melanoma.model.predictor import Predictor

URGENT_SPECIFICITY = 0.95
"""Of `urgent`, where the bundle has not asked the question."""
_NOUNS = {"melanoma": "melanomas", "malignancy": "malignant images"}


def choose(config: ThresholdConfig, say: Callable[[str], None] = lambda line: None) -> DepartmentPoint:
    """Choose an operating point and write it to `config.out`, if that is named. `say` is given one line a step.

    Raises InputError where nothing can be chosen on these images, and where anything cannot be read or written.
    """
    bundle = at_operating_point(load_bundle(config.bundle).in_form(config.network), config.operating_point)
    frame = schema.read(config.catalog)
    rows = rows_to_measure(frame, config.split, config.catalog, None)
    name = storage.name(storage.normalize(config.catalog))
    aim = side(rows["label"].tolist(), _of_label(config))
    _refuse(config, aim)
    say(f"Predicting {len(rows)} images of the split {config.split!r}.")
    predictions, _ = predict_rows(Predictor(bundle), rows, np.empty(0, dtype=np.intp))
    where = f"on the {config.split} split of {name}"
    thresholds = _thresholds(config, bundle.thresholds, predictions, aim, where)
    point = DepartmentPoint(
        model_version=bundle.version,
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        question=config.question,
        stated_sensitivity=config.stated_sensitivity,
        stated_alerts_per_1000=config.alerts_per_1000,
        thresholds=thresholds,
        catalog=name,
        catalog_fingerprint=schema.fingerprint(frame),
        split=config.split,
        n=len(rows),
        leak_warning=leak_warning(bundle.training_images, rows),
        alerts_per_1000=_loads(predictions, thresholds),
        by_source=_by_source(config, predictions, aim, thresholds),
    )
    if config.out:
        try:
            storage.write_json(storage.normalize(config.out), point.to_json())
        except OSError as error:
            raise InputError(f"The operating point cannot be written to {config.out}: {error}") from None
    return point


def _of_label(config: ThresholdConfig) -> Callable[[str], bool | None]:
    return taxonomy.melanoma_of if config.question == "melanoma" else taxonomy.malignant_of


def _refuse(config: ThresholdConfig, aim: Side) -> None:
    """Raise InputError where no threshold could be chosen, before anything is predicted."""
    n, noun = len(aim.yes), _NOUNS[config.question]
    where = f"The {config.split} split of {config.catalog}"
    if not aim.yes.any() or not aim.no.any():
        lacks = f"no {noun}" if not aim.yes.any() else f"nothing but {noun}"
        raise InputError(f"{where} has {lacks}, so no threshold can be chosen on it: name another with --split.")
    if config.alerts_per_1000 and n * config.alerts_per_1000 < 1000:
        raise InputError(
            f"{where} has {n:,} images, too few to tell {config.alerts_per_1000:g} alerts of 1,000 from none: use "
            f"{int(np.ceil(1000 / config.alerts_per_1000)):,} images, or ask for more alerts."
        )


def _score(config: ThresholdConfig, predictions: pd.DataFrame) -> npt.NDArray[np.float64]:
    return floats(predictions, "p_melanoma" if config.question == "melanoma" else "p_malignant")


def _thresholds(
    config: ThresholdConfig, before: Thresholds, predictions: pd.DataFrame, aim: Side, where: str
) -> Thresholds:
    """The model's thresholds with those of the question chosen.

    Args:
        config: What is to be chosen.
        before: The thresholds that the model has.
        predictions: Of the images to choose on.
        aim: Which of them are to be raised.
        where: The images in words.
    """
    score = _score(config, predictions)
    group, _ = group_codes(predictions)
    positive, scores = aim.yes[aim.known], score[aim.known]
    if config.alerts_per_1000:
        # The lowest threshold at which no more than these are raised, of all images, whatever they are.
        none = np.zeros(len(score), dtype=bool)
        review = choose_threshold_by_specificity(none, score, 1 - config.alerts_per_1000 / 1000)
        how = f"review at no more than {config.alerts_per_1000:g} alerts of 1,000 images"
    else:
        review = choose_threshold(positive, scores, config.stated_sensitivity or 1.0)
        how = f"review where sensitivity reaches {config.stated_sensitivity:.0%}"
    old: Levels | None = before if config.question == "melanoma" else before.malignancy
    urgent = old.urgent if old else choose_threshold_by_specificity(positive, scores, URGENT_SPECIFICITY)
    figures = asdict(at(review, positive, scores, group[aim.known], config.stated_sensitivity or 0.0, "observed"))
    if config.alerts_per_1000:
        figures |= {"stated_sensitivity": None, "bound": None}
    if config.question == "malignancy":
        n_melanoma = int(side(predictions["label"].tolist(), taxonomy.melanoma_of).yes.sum())
        figures |= {"n_melanoma": n_melanoma, "n_malignant": int(positive.sum())}
    levels: dict[str, Any] = {
        "review": review,
        "urgent": max(review, urgent),
        "chosen": f"{where} ({len(positive)} images, {int(positive.sum())} {_NOUNS[config.question]}): {how}",
        "operating_point": OperatingPoint.model_validate(figures),
    }
    if config.question == "malignancy":
        levels = {"malignancy": Levels(**levels)}
    return before.model_copy(update={**levels, "department": f"{where}, for the question of {config.question}"})


def _loads(predictions: pd.DataFrame, thresholds: Thresholds) -> dict[str, Estimate]:
    """Alerts of 1,000 images like these, whatever their labels: of each question and of both together."""
    group, _ = group_codes(predictions)
    melanoma, malignant = floats(predictions, "p_melanoma"), floats(predictions, "p_malignant")
    raised = {"melanoma": melanoma >= thresholds.review}
    if thresholds.malignancy:
        raised["malignancy"] = malignant >= thresholds.malignancy.review
    levels = np.array(triage.alerts(melanoma, malignant, thresholds)["alert_level"], dtype=object)
    raised |= {"together": levels != "none", "urgent": levels == "urgent"}
    return {name: _of_1000(images, group) for name, images in raised.items()}


def _of_1000(raised: Bools, group: Ints) -> Estimate:
    share = proportion(raised, group)
    value, low, high = (None if part is None else 1000 * part for part in (share.value, share.low, share.high))
    return Estimate(value=value, low=low, high=high, method=share.method)


def _by_source(
    config: ThresholdConfig, predictions: pd.DataFrame, aim: Side, thresholds: Thresholds
) -> tuple[OnSource, ...]:
    """What `review` of the question gives on each source."""
    levels: Levels | None = thresholds if config.question == "melanoma" else thresholds.malignancy
    assert levels
    raised, (group, _) = _score(config, predictions) >= levels.review, group_codes(predictions)
    sources = predictions["source"].to_numpy(dtype=object)
    found = []
    for source in sorted(set(sources)):
        yes, no = aim.yes & (sources == source), aim.no & (sources == source)
        found.append(
            OnSource(
                source=source,
                n=int(yes.sum() + no.sum()),
                n_positive=int(yes.sum()),
                sensitivity=_as_written(proportion(raised[yes], group[yes])),
                specificity=_as_written(proportion(~raised[no], group[no])),
            )
        )
    return tuple(found)


def _as_written(estimate: intervals.Estimate) -> Estimate:
    return Estimate.model_validate(asdict(estimate))
