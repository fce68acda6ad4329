"""The table of predictions that an evaluation measures: one row an image.

Its columns: `uri`, `image_id`, `group_id`, `label` (never null), `p_AK` ... `p_VASC` (sum 1), `p_melanoma` and
`threshold` (one value in all rows); where the urgent level is measured too, `alert_level`.
"""

import numpy as np
import pandas as pd

from melanoma.evaluation.intervals import Bools, Floats, Ints
from melanoma.taxonomy import CODES, MELANOMA, codes_of, merged_classes


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
    return np.stack([sum(floats(predictions, f"p_{code}") for code in codes_of(c)) for c in classes], axis=1)


def floats(predictions: pd.DataFrame, column: str) -> Floats:
    """float64 [n]: a column of numbers, however pandas holds it."""
    return predictions[column].to_numpy(dtype=np.float64)


def group_codes(predictions: pd.DataFrame) -> tuple[Ints, int]:
    """int [n], 0 to groups - 1: the group of each image; and the number of groups."""
    # Sorted, so that the draws of a seed do not depend on the order of the rows.
    codes, groups = pd.factorize(predictions["group_id"].to_numpy(dtype=object), sort=True)
    return codes.astype(np.intp), len(groups)


def check_measurable(predictions: pd.DataFrame) -> None:
    """Raises ValueError for an empty table, a label that leaves open whether it is melanoma, a probability or threshold
    that is not finite, and several thresholds."""
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
