"""95% intervals that do not take two pictures of one lesion for two independent observations.

- *Proportions* (accuracy, recall, sensitivity, specificity): the exact binomial interval of Clopper and Pearson. Where
  groups hold several images it is taken at the effective number of independent images (Korn and Graubard 1998,
  "Confidence intervals for proportions with small expected number of positive counts estimated from survey data",
  Survey Methodology 24:193-201), which is the number of images again when every image is its own group. A percentile
  bootstrap was not chosen here because it collapses to a point at 0% and 100%, the very place where few melanomas make
  the reader most need a width.
- *Everything else*: the percentile bootstrap, drawing whole groups with replacement.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.stats import beta, t

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.intp]
Bools = npt.NDArray[np.bool_]

EXACT = "exact binomial"
EXACT_CLUSTERED = "exact binomial over groups"
BOOTSTRAP = "bootstrap over groups"
RESAMPLES = 2000


@dataclass(frozen=True)
class Estimate:
    """A figure and its 95% interval.

    `value` is None where the figure is undefined; `low`, `high` and `method` are None where there is no interval.
    """

    value: float | None
    low: float | None
    high: float | None
    method: str | None


UNDEFINED = Estimate(value=None, low=None, high=None, method=None)


def proportion(hits: Bools, group: npt.NDArray[Any], confidence: float = 0.95) -> Estimate:
    """The share of true values in `hits` [n], with its exact interval; `group` [n] says which belong together.

    With one image a group: Clopper and Pearson. Otherwise the same formula at the effective number of images, between 1
    and n, which is n over the design effect as seen between the groups, with the t correction for few groups (Korn and
    Graubard 1998). At 0% and 100%, where no design effect can be seen, the images of a group count as copies of each
    other: ``n**2 / sum(size**2)`` (Kish).
    """
    if len(hits) == 0:
        return UNDEFINED
    tail = (1 - confidence) / 2
    value, n = float(hits.mean()), effective_number(hits, group, tail)
    low = 0.0 if value == 0 else float(beta.ppf(tail, value * n, n - value * n + 1))
    high = 1.0 if value == 1 else float(beta.ppf(1 - tail, value * n + 1, n - value * n))
    method = EXACT if len(np.unique(group)) == len(hits) else EXACT_CLUSTERED
    return Estimate(value=value, low=low, high=high, method=method)


def lower_bound(hits: Bools, group: npt.NDArray[Any], confidence: float = 0.95) -> float:
    """The one-sided lower bound of the share of true values in `hits` [n > 0], exact as that of `proportion`."""
    value, n = float(hits.mean()), effective_number(hits, group, 1 - confidence)
    return 0.0 if value == 0 else float(beta.ppf(1 - confidence, value * n, n - value * n + 1))


def effective_number(hits: Bools, group: npt.NDArray[Any], tail: float) -> float:
    """How many independent images `hits` [n > 0] are worth for a bound that leaves out `tail` on its side: 1 to n."""
    n, value = len(hits), float(hits.mean())
    _, code, size = np.unique(group, return_inverse=True, return_counts=True)
    groups = len(size)
    if groups == n:
        return float(n)
    if value in (0.0, 1.0) or groups == 1:
        effective = n**2 / (size**2).sum()
    else:
        spread = ((np.bincount(code, weights=hits) - value * size) ** 2).sum() * groups / (groups - 1)
        effective = n if spread == 0 else value * (1 - value) * n**2 / spread
        effective *= (t.ppf(1 - tail, n - 1) / t.ppf(1 - tail, groups - 1)) ** 2
    return float(min(max(effective, 1.0), n))


def bootstrap(
    statistic: Callable[[Floats], Floats], group: npt.NDArray[Any], seed: int, resamples: int = RESAMPLES
) -> Floats:
    """A statistic of groups that are drawn with replacement.

    An image weighs as often as its group was drawn. The draws depend on the seed and the number of groups alone, so
    that two statistics of the same images are paired.

    Args:
        statistic: Image weights [n] to k figures.
        group: Which images belong together [n].
        seed: Decides the draws.
        resamples: How often is drawn.

    Returns:
        float64 [resamples, k].
    """
    _, code = np.unique(group, return_inverse=True)
    n_groups = int(code.max()) + 1
    rng = np.random.default_rng(seed)
    draws = []
    for _ in range(resamples):
        drawn = np.bincount(rng.integers(n_groups, size=n_groups), minlength=n_groups)
        draws.append(statistic(drawn[code].astype(np.float64)))
    return np.array(draws)


def percentile_interval(value: float, draws: Floats, groups: int) -> Estimate:
    """The middle 95% of `draws`, widened to the value where it does not hold it.

    Resamples in which the figure is undefined (NaN) are left out. There is no interval with fewer than two `groups`,
    nor where an end of it is infinite.
    """
    if not math.isfinite(value):
        return UNDEFINED
    draws = draws[~np.isnan(draws)]
    if groups < 2 or len(draws) == 0:
        return Estimate(value=float(value), low=None, high=None, method=None)
    # Between a finite and an infinite draw there is nothing to interpolate.
    low, high = np.percentile(draws, 2.5, method="lower"), np.percentile(draws, 97.5, method="higher")
    if not (np.isfinite(low) and np.isfinite(high)):
        return Estimate(value=float(value), low=None, high=None, method=None)
    low, high = np.percentile(draws, [2.5, 97.5])
    return Estimate(value=float(value), low=float(min(low, value)), high=float(max(high, value)), method=BOOTSTRAP)
