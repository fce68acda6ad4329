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
    check_measurable,
    class_probabilities,
    classes_of,
    floats,
    group_codes,
    is_melanoma,
    true_class,
)
from melanoma.evaluation.stability import Stability
from melanoma.evaluation.subgroups import ColumnCounts, ColumnFigures
from melanoma.evaluation.weighted_figures import FIGURES, ROC_FIGURES, groups_of_each_side, weighted_figures

TOP = (1, 3, 15)  # of `top_of_patient`; 15 is that of the ISIC 2024 challenge


@dataclass(frozen=True)
class AtLevel:
    """Melanoma against the rest at one alert level."""

    sensitivity: Estimate
    specificity: Estimate


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
    """

    n: int
    n_melanoma: int
    n_groups: int
    classes: list[str]
    class_counts: dict[str, int]
    threshold: float
    majority_class_accuracy: float
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
    urgent: AtLevel | None = None  # at the urgent alert level, where the predictions have one
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
    does not hold it: the calibration error of a resample is biased upwards. With fewer than two groups of melanoma, or
    of anything else, a ROC figure has no interval; with fewer than two groups in all, no bootstrap figure has one.

    Args:
        predictions: See `melanoma.evaluation.predictions`.
        seed: Seed of the bootstrap.
        resamples: How often the bootstrap draws.
        prevalence: A share of melanoma, above 0 and below 1, to show alerts at, besides `decision.PREVALENCES`.

    Returns:
        All that `metrics.json` holds of these predictions.

    Raises:
        ValueError: The table is empty, a label leaves open whether it is melanoma, a probability or threshold is not
            finite, or there are several thresholds.
    """
    check_measurable(predictions)
    # In falling order of score: the sums, and so the last digits, do not depend on the order of the rows.
    predictions = predictions.iloc[np.argsort(-floats(predictions, "p_melanoma"), kind="stable")]
    n, classes = len(predictions), classes_of(predictions)
    melanoma, score = is_melanoma(predictions), floats(predictions, "p_melanoma")
    group, n_groups = group_codes(predictions)
    truth = true_class(predictions, classes)
    answer = class_probabilities(predictions, classes).argmax(axis=1)
    right = answer == truth
    class_counts = {c: int((truth == i).sum()) for i, c in enumerate(classes)}
    raised = _raised(predictions)
    levels = {level: _at_level(melanoma, at_level, group) for level, at_level in raised.items()}
    figures = _bootstrapped(predictions, seed, resamples)
    return Metrics(
        n=n,
        n_melanoma=int(melanoma.sum()),
        n_groups=n_groups,
        classes=list(classes),
        class_counts=class_counts,
        threshold=float(predictions["threshold"].iloc[0]),
        majority_class_accuracy=max(class_counts.values()) / n,
        accuracy=proportion(right, group),
        sensitivity=levels["review"].sensitivity,
        specificity=levels["review"].specificity,
        balanced_accuracy=figures["balanced_accuracy"],
        melanoma_auc=figures["melanoma_auc"],
        melanoma_pauc=figures["melanoma_pauc"],
        specificity_at_95_sensitivity=figures["specificity_at_95_sensitivity"],
        sensitivity_at_95_specificity=figures["sensitivity_at_95_specificity"],
        calibration_intercept=figures["calibration_intercept"],
        calibration_slope=figures["calibration_slope"],
        ece=figures["ece"],
        brier=figures["brier"],
        urgent=levels.get("urgent"),
        recall={c: proportion(right[truth == i], group[truth == i]) for i, c in enumerate(classes)},
        confusion=_confusion(truth, answer, len(classes)),
        at_prevalence=_at_prevalences(predictions, raised, prevalence),
        decision_curve=decision_curve(melanoma, score, group, seed, resamples),
        bootstrap=Bootstrap(resamples, seed),
        leak_warning=None,
    )


def _raised(predictions: pd.DataFrame) -> dict[str, Bools]:
    """Which images are raised, bool [n], by alert level; urgent only where the table says it."""
    raised = {"review": floats(predictions, "p_melanoma") >= floats(predictions, "threshold")}
    if "alert_level" in predictions:
        raised["urgent"] = (predictions["alert_level"] == "urgent").to_numpy(dtype=bool)
    return raised


def _confusion(truth: Ints, answer: Ints, classes: int) -> list[list[int]]:
    """How often each class (row) is answered by each class (column)."""
    counts = np.zeros((classes, classes), dtype=int)
    np.add.at(counts, (truth, answer), 1)
    return counts.tolist()


def _at_level(melanoma: Bools, raised: Bools, group: Ints) -> AtLevel:
    return AtLevel(proportion(raised[melanoma], group[melanoma]), proportion(~raised[~melanoma], group[~melanoma]))


def _bootstrapped(predictions: pd.DataFrame, seed: int, resamples: int) -> dict[str, Estimate]:
    """The estimates of `FIGURES` by name."""
    melanoma, (group, n_groups) = is_melanoma(predictions), group_codes(predictions)
    statistic = weighted_figures(predictions)
    draws = bootstrap(statistic, group, seed, resamples)
    needed = dict.fromkeys(FIGURES, n_groups) | dict.fromkeys(ROC_FIGURES, groups_of_each_side(melanoma, group))
    return {
        name: percentile_interval(value, draws[:, i], needed[name])
        for i, (name, value) in enumerate(zip(FIGURES, statistic(np.ones(len(predictions))), strict=True))
    }


def _at_prevalences(predictions: pd.DataFrame, raised: dict[str, Bools], stated: float | None) -> list[AtPrevalence]:
    """`raised`: which images are raised, by alert level; `stated`: a prevalence that was asked for."""
    melanoma, (group, _) = is_melanoma(predictions), group_codes(predictions)
    threshold = float(predictions["threshold"].iloc[0])
    of_set = float(melanoma.mean())
    if of_set in (0.0, 1.0):
        return []
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
        patient: The patient of each image [n], None where it is not known.
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
