"""Alert thresholds, chosen on validation and then frozen.

Where a threshold comes from: at the end of `melanoma train` the network predicts the validation split, a temperature
calibrates its probabilities, and `choose_thresholds` chooses on these, by the configuration's `operating_point`:

- `review` is the highest threshold at which the stated sensitivity is reached, midway between two neighbouring
  probabilities, see `operating_point`; with ``bound: lower`` its lower confidence bound has to reach it, and with
  ``by_source`` each source of validation that has 20 melanomas has to reach it, too;
- `urgent` is the lowest at which the stated specificity is reached, and never below `review`, see
  `choose_threshold_by_specificity`.

Images whose label leaves open whether they are melanoma do not count. Where no image of the split is known as melanoma,
both are chosen for what is malignant, on the same probability of melanoma, and say so.

Any malignancy is a question of its own, with both thresholds on the probability of all that is malignant, chosen
likewise by `choose_malignancy` where `operating_point.malignancy` asks it.

`melanoma.training.train` calls it; `melanoma.training.config.OperatingPoint` has the defaults (0.95, observed, 0.95);
before the training a perfect model's threshold is chosen, so that a split that allows none is refused at once. Both go
into the bundle's `bundle.json` under `thresholds`, `review` with the figures that it was chosen by. Evaluation, batch
scoring and serving compare with these numbers; what chooses them anew is a department's `melanoma threshold`, see
`melanoma.evaluation.department`.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from melanoma import taxonomy
from melanoma.evaluation.intervals import Bools, Estimate, lower_bound, proportion
from melanoma.evaluation.predictions import Side, side
from melanoma.model import manifest

Bound = Literal["observed", "lower"]
LEAST_OF_SOURCE = 20
"""Melanomas of a source that has a say in the threshold: 95% of fewer is all of them."""


def choose_thresholds(
    labels: Sequence[str],
    p_melanoma: npt.NDArray[Any],
    group: npt.NDArray[Any],
    sensitivity: float,
    bound: Bound,
    urgent_specificity: float,
    sources: Sequence[str] | None = None,
) -> manifest.Thresholds:
    """Both alert thresholds of a model, as its bundle states them.

    Args:
        labels: [n], of the validation split.
        p_melanoma: float [n], the calibrated probabilities of these images.
        group: [n], what belongs together (lesion, patient, near-duplicates).
        sensitivity: What `review` has to reach, over 0 and at most 1.
        bound: Whether the share itself has to reach it or its lower confidence bound, see `operating_point`.
        urgent_specificity: What `urgent` has to reach, over 0 and at most 1.
        sources: [n], where each image is from: the observed share of each source with `LEAST_OF_SOURCE` melanomas then
            has to reach `sensitivity`, too; None: all together have to.

    Returns:
        The thresholds, a phrase that says how they were chosen, and the figures of `review` on these images.

    Raises:
        ValueError: Where no threshold can be chosen, see `operating_point`.
    """
    melanoma = side(labels, taxonomy.melanoma_of)
    of_melanoma = bool(melanoma.yes.any())
    aim = melanoma if of_melanoma else side(labels, taxonomy.malignant_of)
    if not aim.yes.any():
        raise ValueError("there is no melanoma to choose a threshold on: use a validation split that has some")
    what = "melanomas" if of_melanoma else "malignant, none of them known as melanoma"
    levels = _levels(aim, what, p_melanoma, group, sensitivity, bound, urgent_specificity, sources)
    figures = levels.operating_point
    if figures and not of_melanoma:
        figures = figures.model_copy(update={"n_melanoma": 0, "n_malignant": figures.n_melanoma})
    return manifest.Thresholds(
        review=levels.review, urgent=levels.urgent, chosen=levels.chosen, operating_point=figures
    )


def choose_malignancy(
    labels: Sequence[str],
    p_malignant: npt.NDArray[Any],
    group: npt.NDArray[Any],
    sensitivity: float,
    bound: Bound,
    urgent_specificity: float,
    sources: Sequence[str] | None = None,
) -> manifest.Levels:
    """Both thresholds of the question of any malignancy, as a bundle states them.

    Args:
        labels: [n], of the validation split.
        p_malignant: float [n], the calibrated probabilities of all that is malignant.
        group: [n], what belongs together.
        sensitivity: What `review` has to reach of what is malignant, over 0 and at most 1.
        bound: See `choose_thresholds`.
        urgent_specificity: What `urgent` has to reach, over 0 and at most 1.
        sources: See `choose_thresholds`, with malignant images for melanomas.

    Returns:
        The thresholds, a phrase that says how they were chosen, and the figures of `review` on these images.

    Raises:
        ValueError: Where no threshold can be chosen: without anything malignant or anything else, or too little of it.
    """
    malignant = side(labels, taxonomy.malignant_of)
    if not malignant.yes.any():
        raise ValueError("there is nothing malignant to choose a threshold on: use a validation split that has some")
    levels = _levels(malignant, "malignant", p_malignant, group, sensitivity, bound, urgent_specificity, sources)
    figures = levels.operating_point
    if figures:
        n_melanoma = int(side(labels, taxonomy.melanoma_of).yes.sum())
        figures = figures.model_copy(update={"n_melanoma": n_melanoma, "n_malignant": figures.n_melanoma})
    return levels.model_copy(update={"operating_point": figures})


def _levels(
    aim: Side,
    what: str,
    score: npt.NDArray[Any],
    group: npt.NDArray[Any],
    sensitivity: float,
    bound: Bound,
    urgent_specificity: float,
    sources: Sequence[str] | None,
) -> manifest.Levels:
    """The thresholds of one question; its figures call `n_melanoma` whatever is to be raised.

    Args:
        aim: What is to be raised, of n images.
        what: These images in words, after their number.
        score: float [n], their probability.
        group: [n], which belong together.
        sensitivity: Of `review`.
        bound: What has to reach it.
        urgent_specificity: Of `urgent`.
        sources: [n], see `choose_thresholds`.

    Raises:
        ValueError: Where none can be chosen.
    """
    positive, scores, groups = aim.yes[aim.known], np.asarray(score)[aim.known], np.asarray(group)[aim.known]
    noun = "melanoma" if what == "melanomas" else "malignant image"
    review = operating_point(positive, scores, groups, sensitivity, bound, noun)
    of_sources = _of_sources(positive, scores, np.asarray(sources)[aim.known], sensitivity) if sources else []
    if min(of_sources, default=review.threshold) < review.threshold:
        review = at(min(of_sources), positive, scores, groups, sensitivity, bound)
    urgent = choose_threshold_by_specificity(positive, scores, urgent_specificity)
    reached = "the lower confidence bound of sensitivity" if bound == "lower" else "sensitivity"
    return manifest.Levels(
        review=review.threshold,
        urgent=max(review.threshold, urgent),
        chosen=f"on the validation split ({len(positive)} images, {int(positive.sum())} {what}): "
        f"review where {reached} reaches {sensitivity:.0%}{_on_each(len(of_sources))}, urgent at "
        f"{urgent_specificity:.0%} specificity",
        operating_point=manifest.OperatingPoint.model_validate(asdict(review)),
    )


def _of_sources(
    melanoma: Bools, p_melanoma: npt.NDArray[Any], sources: npt.NDArray[Any], sensitivity: float
) -> list[float]:
    """The threshold that each source with melanomas enough would have by itself."""
    parts = [sources == source for source in np.unique(sources)]
    enough = [part for part in parts if melanoma[part].sum() >= LEAST_OF_SOURCE]
    return [choose_threshold(melanoma[part], p_melanoma[part], sensitivity) for part in enough]


def _on_each(sources: int) -> str:
    return f" on all together and on each of {sources} source(s) with {LEAST_OF_SOURCE} of them" if sources else ""


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


@dataclass(frozen=True)
class OperatingPoint:
    """A threshold and what it gives on the images that it was chosen on."""

    threshold: float
    stated_sensitivity: float
    bound: Bound
    sensitivity: Estimate
    sensitivity_lower_bound: float  # one-sided, 95%
    specificity: Estimate
    n: int
    n_melanoma: int


def operating_point(
    melanoma: Bools,
    p_melanoma: npt.NDArray[Any],
    group: npt.NDArray[Any],
    sensitivity: float,
    bound: Bound = "lower",
    noun: str = "melanoma",
) -> OperatingPoint:
    """The highest threshold of ``p_melanoma >= threshold`` for a stated sensitivity, and its figures.

    Args:
        melanoma: bool [n], whether each image is melanoma.
        p_melanoma: float [n], the calibrated probabilities.
        group: [n], which images belong together.
        sensitivity: Above 0 and at most 1.
        bound: "observed" is satisfied when that share of these melanomas is raised, as in `choose_threshold`; "lower"
            when the one-sided 95% lower bound of the share reaches it (exact binomial, at the effective number of
            melanomas where a group holds several). With one melanoma a group the latter keeps its word although the
            threshold is chosen on the same images: it is a one-sided tolerance limit (Wilks 1941, "Determination of
            sample sizes for setting tolerance limits").
        noun: What an error calls what is to be raised.

    Returns:
        The threshold, with what it gives on these images.

    Raises:
        ValueError: There is no melanoma, nothing else, the sensitivity is out of range, or there are too few melanomas
            for the bound: 95% takes 59 of them.
    """
    melanoma = np.asarray(melanoma, dtype=bool)
    _check_share("sensitivity", sensitivity)
    of_melanoma, melanoma_group = np.asarray(p_melanoma, dtype=np.float32)[melanoma], np.asarray(group)[melanoma]
    if bound == "observed":
        threshold = choose_threshold(melanoma, p_melanoma, sensitivity)
    else:
        if len(of_melanoma) == 0:
            raise ValueError("there is no melanoma to choose a threshold on: use a validation split that has some")
        # From the lowest score upwards, as long as all reach it: where groups hold several melanomas the bound may
        # fall and rise again, and a lucky threshold must not be taken.
        _, code = np.unique(melanoma_group.astype(str), return_inverse=True)
        lowest_raised = None
        for score in np.unique(of_melanoma):
            if lower_bound(of_melanoma >= score, code) < sensitivity:
                break
            lowest_raised = score
        if lowest_raised is None:
            raise ValueError(_too_few(sensitivity, len(of_melanoma), melanoma_group, noun))
        # The threshold that raises just these melanomas, placed as always.
        threshold = choose_threshold(melanoma, p_melanoma, float((of_melanoma >= lowest_raised).mean()))
    return at(threshold, melanoma, p_melanoma, group, sensitivity, bound)


def at(
    threshold: float,
    melanoma: Bools,
    p_melanoma: npt.NDArray[Any],
    group: npt.NDArray[Any],
    sensitivity: float,
    bound: Bound,
) -> OperatingPoint:
    """What a threshold gives.

    Args:
        threshold: Of `p_melanoma`.
        melanoma: bool [n], whether each image is melanoma, of which there are some.
        p_melanoma: float [n].
        group: [n], which images belong together.
        sensitivity: That was stated.
        bound: What was to reach it.

    Returns:
        The threshold with its figures.
    """
    raised = np.asarray(p_melanoma, dtype=np.float32) >= np.float32(threshold)
    of_melanoma = np.asarray(group)[melanoma]
    return OperatingPoint(
        threshold=threshold,
        stated_sensitivity=sensitivity,
        bound=bound,
        sensitivity=proportion(raised[melanoma], of_melanoma),
        sensitivity_lower_bound=lower_bound(raised[melanoma], of_melanoma),
        specificity=proportion(~raised[~melanoma], np.asarray(group)[~melanoma]),
        n=len(melanoma),
        n_melanoma=len(of_melanoma),
    )


def _too_few(sensitivity: float, n: int, group: npt.NDArray[Any], noun: str) -> str:
    best = lower_bound(np.ones(n, dtype=bool), group)
    needed = f"no number of {noun}s is enough for 100%"
    if sensitivity < 1:
        least = math.ceil(math.log(0.05) / math.log(sensitivity) - 1e-9)
        needed = f"it takes {least} {noun}s, each of a group of its own, all of them raised"
    return (
        f"the validation split has {n} {noun}{'' if n == 1 else 's'} of {len(np.unique(group))} groups: too few for "
        f"a lower bound of {sensitivity:.0%} on sensitivity ({needed}; raising all of these gives {best:.1%}). Use "
        "more validation images, a lower sensitivity, or the observed one"
    )
