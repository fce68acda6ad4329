"""Figures of merit with 95% intervals from a table of predictions, alert thresholds, and temperature scaling.

Two kinds of interval, neither of which takes two pictures of one lesion for two independent observations:

- *Proportions* (accuracy, recall, sensitivity, specificity): the exact binomial interval of Clopper and Pearson. Where
  groups hold several images it is taken at the effective number of independent images (Korn and Graubard 1998,
  "Confidence intervals for proportions with small expected number of positive counts estimated from survey data",
  Survey Methodology 24:193-201), which is the number of images again when every image is its own group. A percentile
  bootstrap was not chosen here because it collapses to a point at 0% and 100%, the very place where few melanomas make
  the reader most need a width.
- *Everything else*: the percentile bootstrap, drawing whole groups with replacement.
"""

import math
from typing import Any, TypedDict

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.optimize import minimize_scalar
from scipy.special import logsumexp
from scipy.stats import beta, t

from melanoma.taxonomy import CODES, MELANOMA, codes_of, merged_classes

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.intp]
Bools = npt.NDArray[np.bool_]

CALIBRATION_BINS = 15
EXACT = "exact binomial"
EXACT_CLUSTERED = "exact binomial over groups"
BOOTSTRAP = "bootstrap over groups"


class Estimate(TypedDict):
    """A figure and its 95% interval. `value` is None where it is undefined; `low`, `high` and `method` are None where
    there is no interval."""

    value: float | None
    low: float | None
    high: float | None
    method: str | None


UNDEFINED = Estimate(value=None, low=None, high=None, method=None)


def compute_metrics(predictions: pd.DataFrame, seed: int = 0, resamples: int = 2000) -> dict[str, Any]:
    """The contents of metrics.json: plain Python values without NaN, ready for strict JSON.

    `predictions` has one row an image with the columns `image_id`, `group_id`, `label` (never null), `p_AK` ...
    `p_VASC` (sum 1), `p_melanoma` and `threshold` (one value in all rows).

    Estimates, each ``{"value", "low", "high", "method"}``:

    - `accuracy`, `recall` (by class), `balanced_accuracy` (mean recall of the classes that have images). The answer is
      the class of the highest probability, the first one on a tie; a class that has no image of its own can still be a
      wrong answer.
    - `sensitivity`, `specificity`: of ``p_melanoma >= threshold``, melanoma against the rest.
    - `melanoma_auc`, and `melanoma_pauc`: the area under the ROC curve, and that above 80% sensitivity as in the ISIC
      2024 challenge, 0 to 0.2, 0.02 for a random order.
    - `specificity_at_95_sensitivity`: the best specificity on this set's own ROC curve. It is optimistic, because its
      threshold is chosen on the very images it is measured on.
    - `ece`: expected calibration error of the answer's probability, 15 bins of equal width (Guo et al. 2017).
    - `brier`: mean of ``(p_melanoma - melanoma)**2``.

    Also `n`, `n_melanoma`, `n_groups`, `classes`, `class_counts`, `threshold`, `majority_class_accuracy`, `confusion`
    (rows: true class, columns: answer, both in the order of `classes`) and `bootstrap` (resamples and seed).

    An interval by bootstrap leaves out resamples in which the figure is undefined, and is widened to the value where it
    does not hold it: the calibration error of a resample is biased upwards. With fewer than two groups of melanoma, or
    of anything else, a ROC figure has no interval; with fewer than two groups in all, no bootstrap figure has one.

    Raises ValueError for an empty table, a label that leaves open whether it is melanoma, a probability or threshold
    that is not finite, and several thresholds.
    """
    _check(predictions)
    # In falling order of score, so that the ROC curve of a resample needs no sorting of its own.
    predictions = predictions.iloc[np.argsort(-_floats(predictions, "p_melanoma"), kind="stable")]
    n = len(predictions)
    score = _floats(predictions, "p_melanoma")
    melanoma = is_melanoma(predictions)
    threshold = float(predictions["threshold"].iloc[0])
    group, n_groups = group_codes(predictions)
    classes = classes_of(predictions)
    truth = true_class(predictions, classes)
    probability = class_probabilities(predictions, classes)
    answer = probability.argmax(axis=1)
    confidence = probability.max(axis=1)
    right = answer == truth
    raised = score >= threshold
    counts = np.bincount(truth, minlength=len(classes))
    ends = _tie_ends(score)
    calibration_bin = bin_of(confidence)

    def bootstrapped(weight: Floats) -> Floats:
        fpr, tpr = _roc_of_sorted(melanoma, ends, weight)
        present = np.bincount(truth, weights=weight)
        recalls = np.bincount(truth, weights=weight * right)[present > 0] / present[present > 0]
        gaps = np.bincount(calibration_bin, weights=weight * (right - confidence))
        total = weight.sum()
        return np.array(
            [
                recalls.mean(),
                area_under_roc(fpr, tpr),
                partial_area_under_roc(fpr, tpr),
                specificity_at_sensitivity(fpr, tpr, 0.95),
                np.abs(gaps).sum() / total,
                (weight * (score - melanoma) ** 2).sum() / total,
            ]
        )

    values = bootstrapped(np.ones(n))
    rng = np.random.default_rng(seed)
    draws = np.empty((resamples, len(values)))
    for i in range(resamples):
        drawn = np.bincount(rng.integers(n_groups, size=n_groups), minlength=n_groups)
        draws[i] = bootstrapped(drawn[group].astype(np.float64))
    roc_groups = min(len(np.unique(group[melanoma])), len(np.unique(group[~melanoma])))
    needed = (n_groups, roc_groups, roc_groups, roc_groups, n_groups, n_groups)
    balanced_accuracy, auc, pauc, specificity_at_95, ece, brier = (
        _percentile_interval(value, draws[:, i], needed[i]) for i, value in enumerate(values)
    )

    confusion = np.zeros((len(classes), len(classes)), dtype=int)
    np.add.at(confusion, (truth, answer), 1)
    return {
        "n": n,
        "n_melanoma": int(melanoma.sum()),
        "n_groups": n_groups,
        "classes": list(classes),
        "class_counts": dict(zip(classes, counts.tolist(), strict=True)),
        "threshold": threshold,
        "majority_class_accuracy": counts.max().item() / n,
        "accuracy": proportion(right, group),
        "balanced_accuracy": balanced_accuracy,
        "melanoma_auc": auc,
        "melanoma_pauc": pauc,
        "sensitivity": proportion(raised[melanoma], group[melanoma]),
        "specificity": proportion(~raised[~melanoma], group[~melanoma]),
        "specificity_at_95_sensitivity": specificity_at_95,
        "ece": ece,
        "brier": brier,
        "recall": {c: proportion(right[truth == i], group[truth == i]) for i, c in enumerate(classes)},
        "confusion": confusion.tolist(),
        "bootstrap": {"resamples": resamples, "seed": seed},
    }


# --- the table of predictions ----------------------------------------------------------------------------------------


def is_melanoma(predictions: pd.DataFrame) -> Bools:
    """bool [n]: whether the label is melanoma."""
    return predictions["label"].to_numpy(dtype=object) == MELANOMA


def classes_of(predictions: pd.DataFrame) -> tuple[str, ...]:
    """All classes of the taxonomy, joined as this table's labels join them, such as ``"AK|SCC"``."""
    return merged_classes(predictions["label"].unique())


def true_class(predictions: pd.DataFrame, classes: tuple[str, ...]) -> Ints:
    """int [n]: the index in `classes` (from `classes_of`) of each label."""
    index = {code: i for i, joined in enumerate(classes) for code in codes_of(joined)}
    return np.array([index[codes_of(label)[0]] for label in predictions["label"]], dtype=np.intp)


def class_probabilities(predictions: pd.DataFrame, classes: tuple[str, ...]) -> Floats:
    """float64 [n, len(classes)]: the probability of each class, summed over the codes that it joins."""
    return np.stack([sum(_floats(predictions, f"p_{code}") for code in codes_of(c)) for c in classes], axis=1)


def _floats(predictions: pd.DataFrame, column: str) -> Floats:
    return predictions[column].to_numpy(dtype=np.float64)


def group_codes(predictions: pd.DataFrame) -> tuple[Ints, int]:
    """int [n], 0 to groups - 1: the group of each image; and the number of groups."""
    # Sorted, so that the draws of a seed do not depend on the order of the rows.
    codes, groups = pd.factorize(predictions["group_id"].to_numpy(dtype=object), sort=True)
    return codes.astype(np.intp), len(groups)


def _check(predictions: pd.DataFrame) -> None:
    if predictions.empty:
        raise ValueError("there are no predictions to evaluate: check the split and the labels of the catalog")
    for label in predictions["label"].unique():
        if label != MELANOMA and MELANOMA in codes_of(label):
            raise ValueError(
                f"label {label!r} leaves open whether an image is melanoma: relabel these images or leave them out"
            )
    columns = ["p_melanoma", "threshold", *(f"p_{code}" for code in CODES)]
    finite = np.isfinite(predictions[columns].to_numpy(dtype=np.float64))
    if not finite.all():
        row, column = np.argwhere(~finite)[0]
        raise ValueError(f"{columns[column]} of image {predictions['image_id'].iloc[row]!r} is not a finite number")
    if predictions["threshold"].nunique() > 1:
        raise ValueError("the predictions have several thresholds: evaluate one operating point at a time")


# --- intervals -------------------------------------------------------------------------------------------------------


def proportion(hits: Bools, group: Ints) -> Estimate:
    """The share of true values in `hits` [n], with its exact 95% interval; `group` [n] says which belong together.

    With one image a group: Clopper and Pearson. Otherwise the same formula at the effective number of images, between 1
    and n, which is n over the design effect as seen between the groups, with the t correction for few groups (Korn and
    Graubard 1998). At 0% and 100%, where no design effect can be seen, the images of a group count as copies of each
    other: ``n**2 / sum(size**2)`` (Kish).
    """
    n = len(hits)
    if n == 0:
        return UNDEFINED
    value = float(hits.mean())
    _, member, size = np.unique(group, return_inverse=True, return_counts=True)
    groups = len(size)
    if groups == n:
        return Estimate(value=value, **_clopper_pearson(value, n), method=EXACT)
    if value in (0.0, 1.0) or groups == 1:
        effective = n**2 / (size**2).sum()
    else:
        spread = ((np.bincount(member, weights=hits) - value * size) ** 2).sum()
        effective = n if spread == 0 else value * (1 - value) * n**2 / spread
        effective *= (t.ppf(0.975, n - 1) / t.ppf(0.975, groups - 1)) ** 2
    effective = min(max(effective, 1.0), n)
    return Estimate(value=value, **_clopper_pearson(value, effective), method=EXACT_CLUSTERED)


class _Bounds(TypedDict):
    low: float
    high: float


def _clopper_pearson(value: float, n: float) -> _Bounds:
    hits = value * n
    low = 0.0 if value == 0 else float(beta.ppf(0.025, hits, n - hits + 1))
    high = 1.0 if value == 1 else float(beta.ppf(0.975, hits + 1, n - hits))
    return _Bounds(low=low, high=high)


def _percentile_interval(value: float, draws: Floats, groups: int) -> Estimate:
    if math.isnan(value):
        return UNDEFINED
    draws = draws[~np.isnan(draws)]
    if groups < 2 or len(draws) == 0:
        return Estimate(value=float(value), low=None, high=None, method=None)
    low, high = np.percentile(draws, [2.5, 97.5])
    return Estimate(value=float(value), low=float(min(low, value)), high=float(max(high, value)), method=BOOTSTRAP)


# --- ROC curve -------------------------------------------------------------------------------------------------------


def roc(positive: Bools, score: Floats, weight: Floats | None = None) -> tuple[Floats, Floats]:
    """False and true positive rates, both float64 [k], of ``score >= threshold``, from (0, 0) to (1, 1).

    The thresholds are the distinct scores in falling order. `weight` [n] counts each image so many times. NaN where a
    side has no weight.
    """
    order = np.argsort(-score, kind="stable")
    weight = np.ones(len(score)) if weight is None else weight
    return _roc_of_sorted(positive[order], _tie_ends(score[order]), weight[order])


def _tie_ends(falling: Floats) -> Ints:
    """The last index of each run of equal scores: images of one score are raised together or not at all."""
    return np.append(np.flatnonzero(np.diff(falling)), len(falling) - 1)


def _roc_of_sorted(positive: Bools, ends: Ints, weight: Floats) -> tuple[Floats, Floats]:
    true_positives = np.concatenate([[0.0], np.cumsum(weight * positive)[ends]])
    false_positives = np.concatenate([[0.0], np.cumsum(weight * ~positive)[ends]])
    with np.errstate(invalid="ignore"):
        return false_positives / false_positives[-1], true_positives / true_positives[-1]


def area_under_roc(fpr: Floats, tpr: Floats) -> float:
    return float(np.trapezoid(tpr, fpr))


def partial_area_under_roc(fpr: Floats, tpr: Floats, min_tpr: float = 0.8) -> float:
    """The area between the ROC curve, the line of sensitivity `min_tpr` and the right edge: 0 to ``1 - min_tpr``."""
    if np.isnan(fpr[-1]) or np.isnan(tpr[-1]):
        return math.nan
    rising = tpr[1:] > np.maximum(tpr[:-1], min_tpr)
    t0, t1, f0, f1 = tpr[:-1][rising], tpr[1:][rising], fpr[:-1][rising], fpr[1:][rising]
    start = np.maximum(t0, min_tpr)
    f_start = f0 + (f1 - f0) * (start - t0) / (t1 - t0)
    return float(((t1 - start) * (1 - (f_start + f1) / 2)).sum())


def specificity_at_sensitivity(fpr: Floats, tpr: Floats, sensitivity: float) -> float:
    """The highest specificity of any threshold that reaches `sensitivity`."""
    if np.isnan(fpr[-1]) or np.isnan(tpr[-1]):
        return math.nan
    return float(1 - fpr[np.argmax(tpr >= sensitivity - 1e-9)])


# --- calibration -----------------------------------------------------------------------------------------------------


def bin_of(probability: Floats) -> Ints:
    """int [n], 0 to 14: the bin of equal width that holds each probability, its upper edge included."""
    return np.clip(np.ceil(probability * CALIBRATION_BINS) - 1, 0, CALIBRATION_BINS - 1).astype(np.intp)


def fit_temperature(logits: npt.NDArray[Any], targets: npt.NDArray[Any]) -> float:
    """The temperature T in [0.05, 20] for which ``softmax(logits / T)`` has the least negative log likelihood.

    Guo et al. 2017, "On calibration of modern neural networks". `logits` is [n, k]; `targets` is [n, k] of 0 and 1,
    with several ones where a label joins several classes: its likelihood is the sum of their probabilities.

    Raises ValueError when there is no row, a logit is not finite or a row has no target.
    """
    logits = np.asarray(logits, dtype=np.float64)
    target = np.asarray(targets) > 0
    if len(logits) == 0:
        raise ValueError("a temperature cannot be fitted on no images: the validation split is empty")
    if not np.isfinite(logits).all():
        raise ValueError(f"logits of image {np.argwhere(~np.isfinite(logits))[0][0]} are not finite: check the model")
    if not target.any(axis=1).all():
        raise ValueError(f"image {np.argmin(target.any(axis=1))} has no target class: fit on labelled images only")
    of_target = np.where(target, logits, -np.inf)

    def negative_log_likelihood(log_temperature: float) -> float:
        scale = math.exp(-log_temperature)
        return float((logsumexp(logits * scale, axis=1) - logsumexp(of_target * scale, axis=1)).mean())

    bounds = (math.log(0.05), math.log(20.0))
    found = minimize_scalar(negative_log_likelihood, bounds=bounds, method="bounded", options={"xatol": 1e-6})
    return math.exp(found.x)


# --- alert thresholds ------------------------------------------------------------------------------------------------


def choose_threshold(labels_are_melanoma: Bools, p_melanoma: npt.NDArray[Any], sensitivity: float) -> float:
    """The highest threshold at which ``p_melanoma >= threshold`` has at least this sensitivity (0 to 1, not 0).

    Every threshold between two neighbouring scores raises the same images. The middle is taken, as a float32 number, so
    that neither rounding nor the small differences between machines moves an image of this set across it; below the
    lowest score, the middle between that and 0. Scores are compared as float32, as they are stored.

    Raises ValueError when there is no melanoma or the sensitivity is out of range.
    """
    _check_share("sensitivity", sensitivity)
    scores = np.asarray(p_melanoma, dtype=np.float32)
    of_melanoma = np.sort(scores[labels_are_melanoma])[::-1]
    if len(of_melanoma) == 0:
        raise ValueError("there is no melanoma to choose a threshold on: use a validation split that has some")
    lowest_raised = of_melanoma[_at_least(sensitivity, len(of_melanoma)) - 1]
    below = scores[scores < lowest_raised]
    return _between(below.max() if len(below) else np.float32(0), lowest_raised)


def choose_threshold_by_specificity(
    labels_are_melanoma: Bools, p_melanoma: npt.NDArray[Any], specificity: float
) -> float:
    """The lowest threshold at which ``p_melanoma >= threshold`` has at least this specificity (0 to 1, not 0).

    The middle between neighbouring scores, as in `choose_threshold`; above the highest score, the middle between that
    and 1, and just above 1 when an image that must not be raised scores 1.

    Raises ValueError when every image is melanoma or the specificity is out of range.
    """
    _check_share("specificity", specificity)
    scores = np.asarray(p_melanoma, dtype=np.float32)
    of_others = np.sort(scores[~np.asarray(labels_are_melanoma)])
    if len(of_others) == 0:
        raise ValueError(
            "there is nothing but melanoma to choose a threshold on: use a validation split with other images"
        )
    highest_quiet = of_others[_at_least(specificity, len(of_others)) - 1]
    above = scores[scores > highest_quiet]
    end = above.min() if len(above) else max(np.float32(1), np.nextafter(highest_quiet, np.float32(2)))
    return _between(highest_quiet, end)


def _check_share(name: str, share: float) -> None:
    if not 0 < share <= 1:
        raise ValueError(f"{name} must be above 0 and at most 1, not {share}")


def _at_least(share: float, n: int) -> int:
    # 0.56 * 25 is a hair above 14 in floating point, and must not become 15.
    return max(1, math.ceil(share * n - 1e-9))


def _between(low: np.float32, high: np.float32) -> float:
    """A float32 number above `low` and at most `high`, in the middle where there is one."""
    middle = np.float32((float(low) + float(high)) / 2)
    return float(middle if middle > low else high)
