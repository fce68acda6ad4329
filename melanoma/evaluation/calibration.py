"""How far probabilities can be taken at their word, and the temperature that makes them so."""

import math
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize_scalar
from scipy.special import expit, logit, logsumexp

from melanoma.evaluation.intervals import Bools, Floats, Ints

CALIBRATION_BINS = 15
_SURE = 1e-6  # nearer to 0 or 1 than this, a probability would alone decide the slope


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


def log_odds(probability: Floats) -> Floats:
    """The logit of each probability, which is first kept a millionth away from 0 and 1."""
    return np.asarray(logit(np.clip(probability, _SURE, 1 - _SURE)))


def calibration_slope(outcome: Bools, odds: Floats, weight: Floats) -> float:
    """b of the logistic regression ``logit P(outcome) = a + b * odds``, with `odds` [n] from `log_odds` (Cox 1958).

    1 is right, below 1 the probabilities are too extreme, above 1 too cautious. Infinite where a threshold parts the
    outcomes without fault, NaN where there is one outcome or one probability only.
    """
    used = weight > 0
    outcome, odds, weight = outcome[used], odds[used], weight[used]
    if outcome.all() or not outcome.any() or np.ptp(odds) == 0:
        return math.nan
    if odds[outcome].min() >= odds[~outcome].max():
        return math.inf
    if odds[outcome].max() <= odds[~outcome].min():
        return -math.inf
    total = float(weight.sum())
    centered = odds - float(weight @ odds) / total
    share = float(weight @ outcome) / total

    def loss(a: float, b: float) -> float:
        linear = a + b * centered
        return float(weight @ (np.logaddexp(0, linear) - outcome * linear))

    # Newton's method; the loss is convex, and a step that overshoots is halved.
    a, b = math.log(share / (1 - share)), 0.0
    now = loss(a, b)
    for _ in range(100):
        p = expit(a + b * centered)
        error, curvature = weight * (outcome - p), weight * p * (1 - p)
        first, second = float(error.sum()), float(error @ centered)
        weighted = curvature * centered
        h00, h01, h11 = float(curvature.sum()), float(weighted.sum()), float(weighted @ centered)
        determinant = h00 * h11 - h01 * h01
        step = np.array([h11 * first - h01 * second, h00 * second - h01 * first]) / determinant
        after = loss(a + step[0], b + step[1])
        while after > now + 1e-9 * abs(now):
            step /= 2
            after = loss(a + step[0], b + step[1])
        a, b, now = a + float(step[0]), b + float(step[1]), after
        # Each step doubles the number of right digits.
        if np.abs(step).max() < 1e-7 * (1 + abs(b)):
            break
    return b


def calibration_intercept(outcome: Bools, odds: Floats, weight: Floats) -> float:
    """a of ``logit P(outcome) = a + odds``, with `odds` [n] from `log_odds`: calibration in the large.

    0 is right; below 0 the probabilities are too high on the whole, above 0 too low (Van Calster et al. 2019,
    "Calibration: the Achilles heel of predictive analytics"). NaN where there is one outcome only.
    """
    total = float((weight * outcome).sum())
    if total in (0.0, float(weight.sum())):
        return math.nan
    # The expected number of outcomes rises with a, so there is one a at which it is the observed number.
    a = 0.0
    low, high = -60.0, 60.0
    for _ in range(200):
        p = expit(a + odds)
        excess = float((weight * p).sum()) - total
        low, high = (low, a) if excess > 0 else (a, high)
        slope = float((weight * p * (1 - p)).sum())
        step = a - excess / slope if slope > 0 else math.nan
        previous, a = a, step if low < step < high else (low + high) / 2
        if abs(a - previous) < 1e-12:
            break
    return a


def at_prevalence(probability: float, share: float, wanted: float) -> float:
    """What a probability on a set with this `share` of melanoma becomes where the share is `wanted`.

    Bayes' rule with the same pictures of each kind, only fewer or more of them (Saerens et al. 2002, "Adjusting the
    outputs of a classifier to new a priori probabilities"). All are between 0 and 1, the two
    shares not at the ends.
    """
    up, down = probability * wanted / share, (1 - probability) * (1 - wanted) / (1 - share)
    return up / (up + down)
