"""What networks learn from: decoded images, and which of them are train and which are validation."""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from melanoma.catalog import schema


@dataclass(frozen=True)
class DevelopmentSet:
    """The usable images of a catalog's splits train and validation, in this order, decoded once."""

    rows: pd.DataFrame  # of the catalog, see `development_rows`
    images: np.ndarray  # uint8 RGB [n, size, size, 3], one a row

    @property
    def train_count(self) -> int:
        return int((self.rows["split"] == "train").sum())

    @property
    def labels(self) -> tuple[str, ...]:
        return tuple(self.rows["label"])

    @property
    def groups(self) -> np.ndarray:
        """object [n]: the group of each image."""
        return np.asarray(self.rows["group_id"].to_numpy(dtype=object))


def development_rows(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows of a catalog that a training learns from and is tuned on: train, then validation."""
    return pd.concat([schema.usable(frame, "train"), schema.usable(frame, "validation")])


@dataclass(frozen=True)
class Split:
    """The images of one split: rows of an image array, and their labels (one a row)."""

    rows: np.ndarray  # int64 [n]
    labels: tuple[str, ...]
    strata: tuple[str, ...] = ()  # what counts as a class for balancing, see melanoma.training.plan.strata; (): labels


@dataclass(frozen=True)
class TrainingData:
    """What one network is trained and validated on."""

    images: np.ndarray  # uint8 RGB [n, size, size, 3]: originals and, after them, augmented copies
    train: Split
    validation: Split
