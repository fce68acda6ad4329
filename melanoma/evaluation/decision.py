"""What raising images by a threshold means for those who answer the alerts: net benefit, alerts, predictive values."""

import math
from dataclasses import dataclass

import numpy as np

from melanoma.evaluation.intervals import (
    BOOTSTRAP,
    RESAMPLES,
    UNDEFINED,
    Bools,
    Estimate,
    Floats,
    Ints,
    bootstrap,
    proportion,
)

JOINT = "exact binomial of both"
THRESHOLDS = np.arange(1, 51) / 100
# Shares of melanoma to show besides the set's: about those of a pigmented lesion clinic and of people who are
# screened. 1.8% is that of ISIC 2020, 0.1% that of ISIC 2024.
PREVALENCES = (0.02, 0.001)
# Two intervals that hold with this probability each both hold with at least 95%, however sensitivity and specificity
# depend on each other (Bonferroni; a patient may have images on both sides), and so does all that follows from the two.
_EACH = 0.975


@dataclass(frozen=True)
class PredictiveValues:
    """What an alert is worth at one share of melanoma."""

    ppv: Estimate  # share of melanoma among the raised
    npv: Estimate  # share of others among those not raised
    alerts_per_1000: Estimate  # images raised of 1,000 images
    missed_per_1000: Estimate  # melanomas not raised of 1,000 images


@dataclass(frozen=True)
class DecisionCurve:
    """Net benefit by threshold: lists of one length, and how the interval of `model` was made.

    `low`, `high` and `method` are None with fewer than two groups.
    """

    threshold: list[float]
    model: list[float]
    low: list[float] | None
    high: list[float] | None
    all: list[float]  # of raising every image
    method: str | None


def predictive_values(melanoma: Bools, raised: Bools, group: Ints, prevalence: float) -> PredictiveValues:
    """What raising the images `raised` would give at another share of melanoma, by Bayes' rule.

    The intervals combine the exact ones of sensitivity and specificity, each at a level that makes them hold together:
    they are a little wider than necessary. It is assumed that sensitivity and specificity stay as they are, which a
    milder mix of cases elsewhere need not grant.

    Args:
        melanoma: bool [n], whether each image is melanoma.
        raised: bool [n], whether each image is raised.
        group: int [n], which images belong together.
        prevalence: The share of melanoma, above 0 and below 1.

    Returns:
        Estimates that are undefined where the set has no melanoma or nothing else.
    """
    sensitivity = proportion(raised[melanoma], group[melanoma], _EACH)
    specificity = proportion(~raised[~melanoma], group[~melanoma], _EACH)
    if sensitivity.value is None or specificity.value is None:
        return PredictiveValues(UNDEFINED, UNDEFINED, UNDEFINED, UNDEFINED)
    se = [part or 0.0 for part in (sensitivity.value, sensitivity.low, sensitivity.high)]
    sp = [part or 0.0 for part in (specificity.value, specificity.low, specificity.high)]
    ill, well = prevalence, 1 - prevalence

    def ppv(se: float, sp: float) -> float:
        return _share(se * ill, (1 - sp) * well)

    def npv(se: float, sp: float) -> float:
        return _share(sp * well, (1 - se) * ill)

    def alerts(se: float, sp: float) -> float:
        return 1000 * (se * ill + (1 - sp) * well)

    def missed(se: float) -> float:
        return 1000 * (1 - se) * ill

    # Each of them rises or falls with sensitivity and with specificity: its bounds lie in corners.
    return PredictiveValues(
        ppv=_estimate(ppv(se[0], sp[0]), ppv(se[1], sp[1]), ppv(se[2], sp[2])),
        npv=_estimate(npv(se[0], sp[0]), npv(se[1], sp[1]), npv(se[2], sp[2])),
        alerts_per_1000=_estimate(alerts(se[0], sp[0]), alerts(se[1], sp[2]), alerts(se[2], sp[1])),
        missed_per_1000=_estimate(missed(se[0]), missed(se[2]), missed(se[1])),
    )


def _share(part: float, rest: float) -> float:
    return part / (part + rest) if part + rest > 0 else math.nan


def _estimate(value: float, low: float, high: float) -> Estimate:
    if math.isnan(value):  # nothing is raised, or everything
        return UNDEFINED
    # A bound at which nothing would be raised says nothing.
    low, high = 0.0 if math.isnan(low) else low, 1.0 if math.isnan(high) else high
    return Estimate(value=value, low=low, high=high, method=JOINT)


def decision_curve(
    melanoma: Bools, score: Floats, group: Ints, seed: int = 0, resamples: int = RESAMPLES
) -> DecisionCurve | None:
    """Net benefit of raising at each threshold of 1% to 50%, against raising all and raising none (Vickers and Elkin
    2006, "Decision curve analysis: a novel method for evaluating prediction models").

    ``net benefit = true positives / n - false positives / n * threshold / (1 - threshold)``: melanomas found an image,
    less the false alarms at the rate of exchange that the threshold implies. Raising none gives 0.

    Args:
        melanoma: bool [n], whether each image is melanoma.
        score: float [n], the probability of melanoma.
        group: int [n], which images belong together.
        seed: Seed of the bootstrap.
        resamples: How often the bootstrap draws.

    Returns:
        The curve, with a 95% interval by bootstrap over groups; None where the set has no melanoma or nothing else.
    """
    if melanoma.all() or not melanoma.any():
        return None
    odds = THRESHOLDS / (1 - THRESHOLDS)
    raised = score[:, None] >= THRESHOLDS
    gains = np.where(melanoma[:, None], raised, -odds * raised)

    def net_benefit(weight: Floats) -> Floats:
        return np.asarray(weight @ gains / weight.sum())

    value = net_benefit(np.ones(len(score)))
    share = float(melanoma.mean())
    low = high = method = None
    if len(np.unique(group)) > 1:
        bounds = np.percentile(bootstrap(net_benefit, group, seed, resamples), [2.5, 97.5], axis=0)
        # Widened to the value, as every interval here.
        low, high = np.minimum(bounds[0], value).tolist(), np.maximum(bounds[1], value).tolist()
        method = BOOTSTRAP
    return DecisionCurve(
        threshold=THRESHOLDS.tolist(),
        model=value.tolist(),
        low=low,
        high=high,
        all=(share - (1 - share) * odds).tolist(),
        method=method,
    )
