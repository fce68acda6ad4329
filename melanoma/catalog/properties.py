"""How well melanoma can be told from the rest without the lesion: by source, size, border and quality of a picture."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from melanoma import taxonomy

FOLDS = 5
FEWEST_GROUPS = 10
"""Melanomas, and other images, of fewer groups than this tell nothing: nothing is measured."""
WARNING_ABOVE = 0.55
"""A property whose interval lies wholly above this area gives the label away."""

_MOST_CATEGORIES = 250  # the tree's histograms have 255 bins


@dataclass(frozen=True)
class Property:
    name: str
    columns: tuple[str, ...]  # of the frame that `_features` makes
    clinical: bool = False  # of the patient: a doctor may use it, a network that sees only the picture must not


PROPERTIES: tuple[Property, ...] = (
    Property("source", ("source",)),
    Property("width and height", ("width", "height")),
    Property("aspect ratio", ("aspect_ratio",)),
    Property("size in bytes", ("size_bytes",)),
    Property("dark border", ("dark_border",)),
    Property("sharpness", ("sharpness",)),
    Property("exposure", ("exposure",)),
    # That a hospital wrote down the age tells the hospital.
    Property("whether age, sex and site are known", ("age_known", "sex_known", "anatomic_site_known")),
    Property("age", ("age",), clinical=True),
    Property("sex", ("sex",), clinical=True),
    Property("anatomic site", ("anatomic_site",), clinical=True),
)
_CATEGORIES = ("source", "sex", "anatomic_site")


def measure(frame: pd.DataFrame, groups: Sequence[int] | np.ndarray) -> list[dict[str, Any]]:
    """The area under the ROC curve, melanoma against the rest, of each property, and of all but the clinical together.

    `groups` says for each row of the catalog what may not be split apart. Images that cannot be read, have no label or
    one that leaves melanoma open are left out. Scores are those of gradient-boosted trees (so that a relation need not
    be monotonic; scikit-learn's HistGradientBoostingClassifier, which takes categories and missing values as they are)
    on the folds that they were not fitted on; all images of a group are in one fold. A property is measured on the
    images that it is known of.

    Each is ``{"name", "clinical", "known", "auc", "low", "high", "warning", "note"}``: `known` counts the images with a
    value; `auc`, `low` and `high` are None where nothing could be measured, and `note` then says why. 0.5 gives nothing
    away.
    """
    usable = (frame["error"].isna() & frame["label"].notna()).to_numpy()
    melanoma = (frame["label"] == taxonomy.MELANOMA).to_numpy(bool)
    maybe = np.array(
        [isinstance(label, str) and taxonomy.MELANOMA in label.split("|") for label in frame["label"]], bool
    )
    chosen = np.flatnonzero(usable & (melanoma | ~maybe))
    positive, group = melanoma[chosen], np.asarray(groups)[chosen]
    features = _features(frame.iloc[chosen])
    together = tuple(column for p in PROPERTIES if not p.clinical for column in p.columns)
    results = []
    for prop in (*PROPERTIES, Property("all but the clinical together", together)):
        columns = features[list(prop.columns)]
        known = columns.notna().any(axis=1).to_numpy()
        result: dict[str, Any] = {
            "name": prop.name,
            "clinical": prop.clinical,
            "known": int(known.sum()),
            "auc": None,
            "low": None,
            "high": None,
            "warning": False,
            "note": None,
        }
        columns, of_melanoma, of_group = columns[known], positive[known], group[known]
        if not known.any():
            result["note"] = "not known of any image"
        elif min(len(np.unique(of_group[of_melanoma])), len(np.unique(of_group[~of_melanoma]))) < FEWEST_GROUPS:
            result["note"] = f"fewer than {FEWEST_GROUPS} groups with melanoma, or without"
        elif (columns.nunique(dropna=False) == 1).all():
            result |= {"auc": 0.5, "note": "the same for every image"}
        else:
            fold = _folds(of_melanoma, of_group)
            score = _out_of_fold_scores(columns, of_melanoma, fold)
            auc, low, high = cross_validated_auc(of_melanoma, score, fold, of_group)
            result |= {"auc": auc, "low": low, "high": high, "warning": (auc if low is None else low) > WARNING_ABOVE}
        results.append(result)
    return results


def _features(frame: pd.DataFrame) -> pd.DataFrame:
    """float64, categories as numbers of their own, NaN for what is not known."""
    numbers = ("width", "height", "size_bytes", "dark_border", "sharpness", "exposure", "age")
    columns = {name: pd.to_numeric(frame[name]).to_numpy(np.float64, na_value=np.nan) for name in numbers}
    columns["aspect_ratio"] = columns["width"] / columns["height"]
    for name in _CATEGORIES:
        most = frame[name].value_counts().sort_index().nlargest(_MOST_CATEGORIES)
        codes = {value: float(code) for code, value in enumerate(most.index)}
        number = frame[name].map(codes).astype(np.float64)
        columns[name] = number.mask(number.isna() & frame[name].notna(), float(len(codes))).to_numpy()
    for name in ("age", "sex", "anatomic_site"):
        columns[f"{name}_known"] = (~np.isnan(columns[name])).astype(np.float64)
    return pd.DataFrame(columns)


def _folds(positive: np.ndarray, group: np.ndarray) -> np.ndarray:
    """The fold, 0 to FOLDS - 1, of each image: groups are dealt in turn, those of melanomas only first.

    Then those of both kinds, and then the rest: each kind is dealt without a gap, so every fold has its share of both.
    """
    numbers, code = np.unique(group, return_inverse=True)
    order = np.random.default_rng(0).permutation(len(numbers))
    kinds = 2 * (np.bincount(code, ~positive) > 0) - (np.bincount(code, positive) > 0)
    dealt = order[np.argsort(kinds[order], kind="stable")]
    fold = np.empty(len(numbers), np.int64)
    fold[dealt] = np.arange(len(numbers)) % FOLDS
    return fold[code]


def _out_of_fold_scores(features: pd.DataFrame, positive: np.ndarray, fold: np.ndarray) -> np.ndarray:
    # They take a second to import.
    from sklearn.ensemble import HistGradientBoostingClassifier
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    score = np.empty(len(positive))
    # One thread: trees this small gain nothing by more, and lost thirtyfold where other work held the cores.
    with threadpool_limits(1, user_api="openmp"):
        for number in range(FOLDS):
            held_out, values = fold == number, features.to_numpy()
            # scikit-learn fails on a column of which it is given no value at all.
            values = np.where(np.isnan(values[~held_out]).all(axis=0), 0.0, values)
            trees = HistGradientBoostingClassifier(
                max_iter=40,
                max_leaf_nodes=4,
                min_samples_leaf=max(20, len(positive) // 40),
                early_stopping=False,
                categorical_features=[column in _CATEGORIES for column in features],
                random_state=0,
            )
            trees.fit(values[~held_out], positive[~held_out])
            score[held_out] = trees.decision_function(values[held_out])
    return score


def cross_validated_auc(
    positive: np.ndarray, score: np.ndarray, fold: np.ndarray, group: np.ndarray
) -> tuple[float, float | None, float | None]:
    """The mean of the folds' areas under the ROC curve with an interval of at least 95%.

    The variance is that of the influence curve (LeDell, Petersen and van der Laan 2015, doi:10.1214/15-EJS1035; of one
    fold it is DeLong's). Influences are summed within a group before they are squared, as images of a group are no two
    witnesses (Obuchowski 1997, doi:10.2307/2533958). It takes the fitted scores as given, but folds share what they are
    fitted on: alone, it covered 0.5 in 83% to 87% of simulated sets without any relation. So it is multiplied as Nadeau
    and Bengio say (2003, doi:10.1023/A:1024068626366), which gave 96% to 98%.

    Args:
        positive: bool [n], melanoma or not; each fold has both.
        score: float [n], fitted on the other folds.
        fold: int [n].
        group: int [n], which images belong together.

    Returns:
        The mean, and the ends of the interval, which are None where nothing varies.
    """
    folds = np.unique(fold)
    influence = np.zeros(len(positive))
    areas = []
    for number in folds:
        yes, no = np.flatnonzero((fold == number) & positive), np.flatnonzero((fold == number) & ~positive)
        beaten = _share_below(score[yes], score[no])
        beating = 1 - _share_below(score[no], score[yes])
        areas.append(float(beaten.mean()))
        influence[yes] = (beaten - areas[-1]) / len(yes)
        influence[no] = (beating - areas[-1]) / len(no)
    auc = float(np.mean(areas))
    total = np.bincount(np.unique(group, return_inverse=True)[1], influence / len(folds))
    variance = np.sum(total**2) * len(total) / max(1, len(total) - 1)
    # A k-th is held out of k folds, and the rest is fitted on: (1/k + 1/(k - 1)) instead of 1/k.
    shared = 1 + len(folds) / (len(folds) - 1) if len(folds) > 1 else 1.0
    error = float(np.sqrt(variance * shared))
    if error < 1e-12:
        return auc, None, None
    half = float(stats.norm.ppf(0.975)) * error
    return auc, max(0.0, auc - half), min(1.0, auc + half)


def _share_below(values: np.ndarray, others: np.ndarray) -> np.ndarray:
    """For each value the share of `others` below it, equal ones counted half."""
    ordered = np.sort(others)
    return (np.searchsorted(ordered, values, "left") + np.searchsorted(ordered, values, "right")) / (2 * len(ordered))
