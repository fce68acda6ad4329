"""What raising images by a threshold means for those who answer the alerts: net benefit, alerts, predictive values."""

import math
from typing import Any

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
# Shares of melanoma to show beside the set's own: about those of a pigmented lesion clinic and of people who are
# screened. 1.8% is that of ISIC 2020, 0.1% that of ISIC 2024.
PREVALENCES = (0.02, 0.001)
# Two intervals that hold with this probability each both hold with at least 95%, however sensitivity and specificity
# depend on each other (Bonferroni; a patient may have images on both sides), and so does all that follows from the two.
_EACH = 0.975


def predictive_values(melanoma: Bools, raised: Bools, group: Ints, prevalence: float) -> dict[str, Estimate]:
    """What `raised` [n] would give where `prevalence` (above 0, below 1) of the images are melanoma, by Bayes' rule.

    `ppv`: share of melanoma among the raised; `npv`: share of others among those not raised; `alerts_per_1000` and
    `missed_per_1000`: images raised, and melanomas not raised, of 1,000 images. The intervals combine the exact ones of
    sensitivity and specificity, each at a level that makes them hold together: they are a little wider than they need
    be. Undefined where the set has no melanoma or nothing else. It is taken for granted that sensitivity and
    specificity stay as they are, which a milder mix of cases elsewhere need not grant.
    """
    sensitivity = proportion(raised[melanoma], group[melanoma], _EACH)
    specificity = proportion(~raised[~melanoma], group[~melanoma], _EACH)
    if sensitivity["value"] is None or specificity["value"] is None:
        return dict.fromkeys(("ppv", "npv", "alerts_per_1000", "missed_per_1000"), UNDEFINED)
    se = [float(sensitivity[key] or 0.0) for key in ("value", "low", "high")]
    sp = [float(specificity[key] or 0.0) for key in ("value", "low", "high")]
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
    return {
        "ppv": _estimate(ppv(se[0], sp[0]), ppv(se[1], sp[1]), ppv(se[2], sp[2])),
        "npv": _estimate(npv(se[0], sp[0]), npv(se[1], sp[1]), npv(se[2], sp[2])),
        "alerts_per_1000": _estimate(alerts(se[0], sp[0]), alerts(se[1], sp[2]), alerts(se[2], sp[1])),
        "missed_per_1000": _estimate(missed(se[0]), missed(se[2]), missed(se[1])),
    }


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
) -> dict[str, Any] | None:
    """Net benefit of raising at each threshold of 1% to 50%, against raising all and raising none (Vickers and Elkin
    2006, "Decision curve analysis: a novel method for evaluating prediction models").

    ``net benefit = true positives / n - false positives / n * threshold / (1 - threshold)``: melanomas found an image,
    less the false alarms at the rate of exchange that the threshold implies. Raising none gives 0.

    Lists of one length: `threshold`, `model`, its 95% interval `low` and `high` (bootstrap over groups; None with
    fewer than two groups) and `all`. None where the set has no melanoma or nothing else.
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
    curve: dict[str, Any] = {
        "threshold": THRESHOLDS.tolist(),
        "model": value.tolist(),
        "low": None,
        "high": None,
        "all": (share - (1 - share) * odds).tolist(),
        "method": None,
    }
    if len(np.unique(group)) < 2:
        return curve
    low, high = np.percentile(bootstrap(net_benefit, group, seed, resamples), [2.5, 97.5], axis=0)
    # Widened to the value, as every interval here.
    return curve | {
        "low": np.minimum(low, value).tolist(),
        "high": np.maximum(high, value).tolist(),
        "method": BOOTSTRAP,
    }
