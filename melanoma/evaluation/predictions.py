"""The table of predictions that an evaluation measures: one row an image.

Its columns: `uri`, `image_id`, `group_id`, `label` (never null), `p_AK` ... `p_VASC` (sum 1), `p_melanoma` and
`threshold` (one value in all rows; NaN: none is known); where the urgent level is measured too, `threshold_urgent`;
where any malignancy is asked too, `p_malignant`, `threshold_malignancy` and `threshold_malignancy_urgent`. A model that
gives nothing but a probability of melanoma has no `p_AK` ... `p_VASC`, and no figure of classes.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from melanoma import taxonomy
from melanoma.evaluation.intervals import Bools, Floats, Ints
from melanoma.taxonomy import CODES, codes_of, merged_classes


@dataclass(frozen=True)
class Side:
    """What the labels say of one question, such as whether an image is melanoma."""

    yes: Bools  # [n]: the label says so
    known: Bools  # [n]: the label says so or says not; a coarse one, such as "malignant" of melanoma, leaves it open

    @property
    def no(self) -> Bools:
        return self.known & ~self.yes


def side(labels: Sequence[str], of_label: Callable[[str], bool | None]) -> Side:
    """What `labels` [n] say by a function such as `taxonomy.melanoma_of`."""
    answers = {label: of_label(label) for label in set(labels)}
    return Side(
        yes=np.array([answers[label] is True for label in labels], dtype=bool),
        known=np.array([answers[label] is not None for label in labels], dtype=bool),
    )


def melanoma_side(predictions: pd.DataFrame) -> Side:
    """Which images are melanoma, and of which that is known."""
    return side(predictions["label"].tolist(), taxonomy.melanoma_of)


def malignant_side(predictions: pd.DataFrame) -> Side:
    """Which images are malignant, and of which that is known: "AK|SCC" leaves it open."""
    return side(predictions["label"].tolist(), taxonomy.malignant_of)


def p_malignant(predictions: pd.DataFrame) -> Floats:
    """float64 [n]: the probability of all that is malignant; that of melanoma where the model gives no other."""
    if not tells_classes(predictions):
        return floats(predictions, "p_melanoma")
    return np.asarray(sum(floats(predictions, f"p_{code}") for code in taxonomy.MALIGNANT))


def tells_classes(predictions: pd.DataFrame) -> bool:
    """Whether there is a probability of each class, and not of melanoma alone."""
    return f"p_{CODES[0]}" in predictions.columns


def frozen_threshold(predictions: pd.DataFrame, name: str = "threshold") -> float | None:
    """The threshold of the alert level "review", or that of another column; None where none is known."""
    if name not in predictions or pd.isna(predictions[name].iloc[0]):
        return None
    return float(predictions[name].iloc[0])


def raised_as_malignant(predictions: pd.DataFrame) -> dict[str, Bools]:
    """Which images the question of any malignancy raises, bool [n], by alert level; {} where it is not asked."""
    names = {"review": "threshold_malignancy", "urgent": "threshold_malignancy_urgent"}
    found = {level: frozen_threshold(predictions, name) for level, name in names.items()}
    return {
        level: floats(predictions, "p_malignant") >= threshold
        for level, threshold in found.items()
        if threshold is not None
    }


def classes_of(predictions: pd.DataFrame) -> tuple[str, ...]:
    """All classes of the taxonomy, joined as this table's labels join them, such as ``"AK|SCC"``.

    Labels that are coarser than a class, see `melanoma.taxonomy.is_class`, join nothing. None where the model tells no
    class, see `tells_classes`.
    """
    if not tells_classes(predictions):
        return ()
    return merged_classes(label for label in predictions["label"].unique() if taxonomy.is_class(label))


def true_class(predictions: pd.DataFrame, classes: tuple[str, ...]) -> Ints:
    """int [n]: the index in `classes` (from `classes_of`) of each label; -1 where it names none."""
    index = {code: i for i, joined in enumerate(classes) for code in codes_of(joined)}
    of_label = {
        label: index.get(codes_of(label)[0], -1) if taxonomy.is_class(label) else -1
        for label in predictions["label"].unique()
    }
    return np.array([of_label[label] for label in predictions["label"]], dtype=np.intp)


def class_probabilities(predictions: pd.DataFrame, classes: tuple[str, ...]) -> Floats:
    """float64 [n, len(classes)]: the probability of each class, summed over the codes that it joins."""
    if not classes:
        return np.empty((len(predictions), 0))
    return np.stack([sum(floats(predictions, f"p_{code}") for code in codes_of(c)) for c in classes], axis=1)


def most_probable(probability: Floats) -> tuple[Ints, Floats]:
    """The answer of each row of `probability`, float [n, classes], and its probability; -1 and 0 without classes."""
    if not probability.shape[1]:
        return np.full(len(probability), -1, dtype=np.intp), np.zeros(len(probability))
    return probability.argmax(axis=1), probability.max(axis=1)


def floats(predictions: pd.DataFrame, column: str) -> Floats:
    """float64 [n]: a column of numbers, however pandas holds it."""
    return predictions[column].to_numpy(dtype=np.float64)


def group_codes(predictions: pd.DataFrame) -> tuple[Ints, int]:
    """int [n], 0 to groups - 1: the group of each image; and the number of groups."""
    # Sorted, so that the draws of a seed do not depend on the order of the rows.
    codes, groups = pd.factorize(predictions["group_id"].to_numpy(dtype=object), sort=True)
    return codes.astype(np.intp), len(groups)


def check_measurable(predictions: pd.DataFrame) -> None:
    """Raises ValueError for an empty table, labels that say nothing that can be measured, a probability that is not
    finite, an infinite threshold, and several thresholds."""
    if predictions.empty:
        raise ValueError("there are no predictions to evaluate: check the split and the labels of the catalog")
    if unclear := unmeasurable(predictions["label"].unique()):
        raise ValueError(unclear)
    classes = [f"p_{code}" for code in CODES] if tells_classes(predictions) else []
    known = ["threshold"] if predictions["threshold"].notna().any() else []
    columns = ["p_melanoma", *known, *classes]
    finite = np.isfinite(predictions[columns].to_numpy(dtype=np.float64))
    if not finite.all():
        row, column = np.argwhere(~finite)[0]
        raise ValueError(f"{columns[column]} of image {predictions['image_id'].iloc[row]!r} is not a finite number")
    if predictions["threshold"].nunique() > 1:
        raise ValueError("the predictions have several thresholds: evaluate one operating point at a time")


def unmeasurable(labels: Iterable[str]) -> str | None:
    """Why nothing can be measured by these labels, or None where any of them says something."""
    labels = sorted(set(labels))
    if any(
        taxonomy.is_class(label) or taxonomy.malignant_of(label) is not None or taxonomy.melanoma_of(label) is not None
        for label in labels
    ):
        return None
    return (
        f"the labels ({', '.join(labels)}) leave open whether an image is melanoma, whether it is malignant and which "
        "diagnosis it is: relabel these images"
    )
