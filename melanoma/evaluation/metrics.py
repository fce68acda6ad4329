"""The contents of metrics.json: figures of merit with 95% intervals from a table of predictions.

`melanoma.evaluation.intervals` says how the intervals are made.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from melanoma import taxonomy
from melanoma.evaluation.calibration import at_prevalence
from melanoma.evaluation.comparison import Comparison
from melanoma.evaluation.decision import (
    PREVALENCES,
    DecisionCurve,
    PredictiveValues,
    decision_curve,
    predictive_values,
)
from melanoma.evaluation.intervals import (
    RESAMPLES,
    UNDEFINED,
    Bools,
    Estimate,
    Floats,
    Ints,
    bootstrap,
    percentile_interval,
    proportion,
)
from melanoma.evaluation.outlier_rates import OutlierRate
from melanoma.evaluation.predictions import (
    Side,
    check_measurable,
    class_probabilities,
    classes_of,
    floats,
    frozen_threshold,
    group_codes,
    malignant_side,
    melanoma_side,
    most_probable,
    raised_as_malignant,
    true_class,
)
from melanoma.evaluation.stability import Stability
from melanoma.evaluation.subgroups import ColumnCounts, ColumnFigures
from melanoma.evaluation.weighted_figures import FIGURES, groups_needed, weighted_figures

TOP = (1, 3, 15)  # of `top_of_patient`; 15 is that of the ISIC 2024 challenge


@dataclass(frozen=True)
class AtLevel:
    """Melanoma against the rest at one alert level."""

    sensitivity: Estimate
    specificity: Estimate


_NOTHING_RAISED = AtLevel(UNDEFINED, UNDEFINED)


@dataclass(frozen=True)
class Malignancy:
    """What is malignant against the rest, where the model asks for it: by ``p_malignant >= threshold``."""

    threshold: float
    review: AtLevel
    urgent: AtLevel
    either: AtLevel  # of images that this question or that of melanoma raises
    alerts_per_1000: float  # images that either raises, of 1,000 of this set
    alerts_per_1000_of_melanoma: float  # images that the question of melanoma raises


@dataclass(frozen=True)
class AtPrevalence:
    """What the alert levels would give where this share of the images is melanoma."""

    prevalence: float
    note: str  # "of this set", "as stated" or nothing
    probability_at_threshold: float  # what the review threshold becomes at this prevalence
    review: PredictiveValues
    urgent: PredictiveValues | None = None


@dataclass(frozen=True)
class Bootstrap:
    resamples: int
    seed: int


@dataclass(frozen=True)
class TopOfPatient:
    """The share of melanomas among the k highest scores of their patient."""

    estimate: Estimate
    n_melanoma: int
    n_patients: int


@dataclass(frozen=True, kw_only=True)
class Metrics:
    """The contents of metrics.json. A field with a default is left out of the file where it is None.

    The answer of the model is the class of the highest probability, the first one on a tie; a class that has no image
    can still be a wrong answer.

    An image whose label leaves a question open counts in no figure that asks it: one of the label "malignant" neither
    as melanoma nor as none, nor for any class; one of "AK|SCC" neither as malignant nor as none. What a model does not
    tell, such as classes where it gives a probability of melanoma alone, is not measured.
    """

    n: int
    n_melanoma: int
    n_melanoma_unknown: int  # images whose label leaves open whether they are melanoma
    n_malignant: int
    n_malignant_unknown: int
    n_class_unknown: int  # images whose label is coarser than a class, see `melanoma.taxonomy.is_class`
    n_groups: int
    classes: list[str]  # empty where the model tells none
    class_counts: dict[str, int]
    threshold: float | None  # None: the model is known to have none, and what is raised is not measured
    majority_class_accuracy: float | None  # None where no label names a class
    accuracy: Estimate
    # Melanoma against the rest, by ``p_melanoma >= threshold``.
    sensitivity: Estimate
    specificity: Estimate
    balanced_accuracy: Estimate  # mean recall of the classes that have images
    melanoma_auc: Estimate  # area under the ROC curve
    melanoma_pauc: Estimate  # that above 80% sensitivity (ISIC 2024 challenge), 0 to 0.2; 0.02 for a random order
    # The best on this set's ROC curve: optimistic, because the threshold is chosen on the images it is measured on.
    specificity_at_95_sensitivity: Estimate
    sensitivity_at_95_specificity: Estimate
    # See `melanoma.evaluation.calibration`; 0 and 1 are right.
    calibration_intercept: Estimate
    calibration_slope: Estimate
    ece: Estimate  # expected calibration error of the answer's probability, 15 bins of equal width (Guo et al. 2017)
    brier: Estimate  # mean of ``(p_melanoma - melanoma)**2``
    # What is malignant against the rest: by the alert, ``p_melanoma >= threshold``, and by its own probability.
    malignant_sensitivity: Estimate
    malignant_specificity: Estimate
    malignant_auc: Estimate
    malignant_pauc: Estimate
    urgent: AtLevel | None = None  # by ``p_melanoma >= threshold_urgent``, where the predictions have one
    malignancy: Malignancy | None = None  # where the model asks this question
    recall: dict[str, Estimate]  # by class
    confusion: list[list[int]]  # rows: true class, columns: answer, both in the order of `classes`
    at_prevalence: list[AtPrevalence]  # empty where the set has no melanoma or nothing else
    decision_curve: DecisionCurve | None
    bootstrap: Bootstrap
    # What `melanoma.evaluation.run` adds to the figures of `compute_metrics`.
    top_of_patient: dict[str, TopOfPatient] | None = None  # by k of `TOP`
    counts: list[ColumnCounts] | None = None
    subgroups: list[ColumnFigures] | None = None
    stability: Stability | None = None
    outliers: list[OutlierRate] | None = None
    comparison: Comparison | None = None
    leak_warning: str | None  # null in the file where there is no leak
    notes: list[str] | None = None  # what is not known of this model, in sentences

    def to_json(self) -> dict[str, Any]:
        """Plain Python values without NaN, ready for strict JSON."""
        return dict(to_json(self))

    def estimates(self) -> dict[str, Estimate]:
        """The figures of the whole set by name, each with its interval."""
        return {f.name: value for f in fields(self) if isinstance(value := getattr(self, f.name), Estimate)}


def to_json(value: Any) -> Any:
    """Dataclasses as dicts, at any depth; a field whose default is None is left out where it is None."""
    if is_dataclass(value):
        return {
            field.name: to_json(part)
            for field in fields(value)
            if (part := getattr(value, field.name)) is not None or field.default is not None
        }
    if isinstance(value, Mapping):
        return {name: to_json(part) for name, part in value.items()}
    if isinstance(value, list):
        return [to_json(part) for part in value]
    return value


def compute_metrics(
    predictions: pd.DataFrame, seed: int = 0, resamples: int = RESAMPLES, prevalence: float | None = None
) -> Metrics:
    """The figures of merit of a table of predictions, without those that `melanoma.evaluation.run` adds.

    An interval by bootstrap leaves out resamples in which the figure is undefined, and is widened to the value where it
    does not hold it: the calibration error of a resample is biased upwards. With fewer than two groups that a figure
    is of, or of either side where it has two, it has no interval.

    Args:
        predictions: See `melanoma.evaluation.predictions`.
        seed: Seed of the bootstrap.
        resamples: How often the bootstrap draws.
        prevalence: A share of melanoma, above 0 and below 1, to show alerts at, besides `decision.PREVALENCES`.

    Returns:
        What `metrics.json` holds of them.

    Raises:
        ValueError: See `check_measurable`.
    """
    check_measurable(predictions)
    # In falling order of score: the last digits of sums do not depend on the order of the rows.
    predictions = predictions.iloc[np.argsort(-floats(predictions, "p_melanoma"), kind="stable")]
    classes, melanoma, malignant = classes_of(predictions), melanoma_side(predictions), malignant_side(predictions)
    group, n_groups = group_codes(predictions)
    classed = (truth := true_class(predictions, classes)) >= 0
    right = (answer := most_probable(class_probabilities(predictions, classes))[0]) == truth
    class_counts = {c: int((truth == i).sum()) for i, c in enumerate(classes)}
    raised = _raised(predictions)
    levels = {level: _at_level(melanoma, images, group) for level, images in raised.items()}
    review = levels.get("review", _NOTHING_RAISED)
    of_malignant = _at_level(malignant, raised["review"], group) if raised else _NOTHING_RAISED
    figures: dict[str, Any] = dict(_bootstrapped(predictions, seed, resamples))  # fields of Metrics
    return Metrics(
        n=len(predictions),
        n_melanoma=int(melanoma.yes.sum()),
        n_melanoma_unknown=int((~melanoma.known).sum()),
        n_malignant=int(malignant.yes.sum()),
        n_malignant_unknown=int((~malignant.known).sum()),
        n_class_unknown=sum(not taxonomy.is_class(label) for label in predictions["label"]),
        n_groups=n_groups,
        classes=list(classes),
        class_counts=class_counts,
        threshold=frozen_threshold(predictions),
        majority_class_accuracy=max(class_counts.values()) / int(classed.sum()) if classed.any() else None,
        accuracy=proportion(right[classed], group[classed]),
        sensitivity=review.sensitivity,
        specificity=review.specificity,
        malignant_sensitivity=of_malignant.sensitivity,
        malignant_specificity=of_malignant.specificity,
        **figures,
        urgent=levels.get("urgent"),
        malignancy=_malignancy(predictions, raised, malignant, group),
        recall={c: proportion(right[truth == i], group[truth == i]) for i, c in enumerate(classes)},
        confusion=_confusion(truth[classed], answer[classed], len(classes)),
        at_prevalence=_at_prevalences(predictions, raised, prevalence),
        decision_curve=_decision_curve(predictions[melanoma.known], seed, resamples),
        bootstrap=Bootstrap(resamples, seed),
        leak_warning=None,
    )


def _decision_curve(known: pd.DataFrame, seed: int, resamples: int) -> DecisionCurve | None:
    """Of the images that are known to be melanoma or not."""
    group, _ = group_codes(known)
    return decision_curve(melanoma_side(known).yes, floats(known, "p_melanoma"), group, seed, resamples)


def _raised(predictions: pd.DataFrame) -> dict[str, Bools]:
    """Which images are raised, bool [n], by alert level; urgent only where the table says it; {} without one."""
    if (threshold := frozen_threshold(predictions)) is None:
        return {}
    raised = {"review": floats(predictions, "p_melanoma") >= threshold}
    if (urgent := frozen_threshold(predictions, "threshold_urgent")) is not None:
        raised["urgent"] = floats(predictions, "p_melanoma") >= urgent
    return raised


def _malignancy(predictions: pd.DataFrame, raised: dict[str, Bools], side: Side, group: Ints) -> Malignancy | None:
    """The figures of the question of any malignancy.

    Args:
        predictions: n rows.
        raised: Which images the question of melanoma raises.
        side: Which images are malignant.
        group: int [n], which images belong together.
    """
    of_question, threshold = raised_as_malignant(predictions), frozen_threshold(predictions, "threshold_malignancy")
    if threshold is None or not raised:
        return None
    either = of_question["review"] | raised["review"]
    return Malignancy(
        threshold=threshold,
        review=_at_level(side, of_question["review"], group),
        urgent=_at_level(side, of_question["urgent"], group),
        either=_at_level(side, either, group),
        alerts_per_1000=1000 * float(either.mean()),
        alerts_per_1000_of_melanoma=1000 * float(raised["review"].mean()),
    )


def _confusion(truth: Ints, answer: Ints, classes: int) -> list[list[int]]:
    """How often each class (row) is answered by each class (column)."""
    counts = np.zeros((classes, classes), dtype=int)
    np.add.at(counts, (truth, answer), 1)
    return counts.tolist()


def _at_level(side: Side, raised: Bools, group: Ints) -> AtLevel:
    return AtLevel(proportion(raised[side.yes], group[side.yes]), proportion(~raised[side.no], group[side.no]))


def _bootstrapped(predictions: pd.DataFrame, seed: int, resamples: int) -> dict[str, Estimate]:
    """The estimates of `FIGURES` by name."""
    group, _ = group_codes(predictions)
    statistic, needed = weighted_figures(predictions), groups_needed(predictions)
    draws = bootstrap(statistic, group, seed, resamples)
    return {
        name: percentile_interval(value, draws[:, i], needed[name])
        for i, (name, value) in enumerate(zip(FIGURES, statistic(np.ones(len(predictions))), strict=True))
    }


def _at_prevalences(predictions: pd.DataFrame, raised: dict[str, Bools], stated: float | None) -> list[AtPrevalence]:
    """`raised`: which images are raised, by alert level; `stated`: a prevalence that was asked for."""
    side, (group, _) = melanoma_side(predictions), group_codes(predictions)
    threshold = frozen_threshold(predictions)
    if threshold is None or not (side.yes.any() and side.no.any()):
        return []
    melanoma, group = side.yes[side.known], group[side.known]
    raised = {level: images[side.known] for level, images in raised.items()}
    of_set = float(melanoma.mean())
    wanted = [
        ("of this set", of_set),
        *([("as stated", stated)] if stated else []),
        *(("", prevalence) for prevalence in PREVALENCES),
    ]
    return [
        AtPrevalence(
            prevalence=prevalence,
            note=note,
            probability_at_threshold=at_prevalence(threshold, of_set, prevalence),
            **{level: predictive_values(melanoma, images, group, prevalence) for level, images in raised.items()},
        )
        for note, prevalence in wanted
    ]


def top_of_patient(
    melanoma: Bools, score: Floats, patient: Iterable[str | None], group: npt.NDArray[Any]
) -> dict[str, TopOfPatient]:
    """The share of melanomas among the k highest scores of their patient ("top-k retrieval"), by k of `TOP`.

    Only melanomas of patients with more than k images count, as with fewer there is nothing to find; ranks of equal
    scores count as the last of them.

    Args:
        melanoma: bool [n], whether each image is melanoma.
        score: float [n], the probability of melanoma.
        patient: What tells the patient of each image from all others [n], None where it is not known.
        group: int [n], which images belong together.

    Returns:
        Without a k that no melanoma counts for; empty where no patient is known.
    """
    codes, patients = pd.factorize(np.array(list(patient), dtype=object))
    size = np.bincount(codes[codes >= 0], minlength=len(patients))
    rank = np.full(len(codes), math.inf)
    for code in np.unique(codes[melanoma & (codes >= 0)]):
        images = np.flatnonzero(codes == code)
        rank[images] = (score[images] >= score[images][:, None]).sum(axis=1)
    found = {}
    for k in TOP:
        counted = melanoma & (codes >= 0)
        counted[counted] = size[codes[counted]] > k
        if counted.any():
            found[str(k)] = TopOfPatient(
                estimate=proportion(rank[counted] <= k, group[counted]),
                n_melanoma=int(counted.sum()),
                n_patients=len(np.unique(codes[counted])),
            )
    return found
