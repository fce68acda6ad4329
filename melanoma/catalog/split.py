"""Who is in which split: over groups, stratified by label, decided by one seed, before any augmentation."""

import numpy as np
import pandas as pd

from melanoma.catalog import schema
from melanoma.errors import InputError


def split(frame: pd.DataFrame, validation: float, test: float, seed: int) -> pd.DataFrame:
    """A copy of the catalog with `split` set for every usable image.

    No group lies in two splits. Within each label, groups are dealt in a seeded random order to the split that lacks
    most of its share. A test split that the catalog brings along (a ``Test`` folder, a column of the manifest) is kept
    as it is, `test` then must be 0, and images of its groups outside it are set aside (split null): training on them
    would leak. Images without a label or with an error have no split.

    `validation` and `test` are shares of the images, 0 to below 1. Raises InputError where they leave nothing to train.
    """
    if not (validation >= 0 and test >= 0 and validation + test < 1):  # NaN, too
        raise InputError("The shares of validation and test must be 0 or more, and together below 1.")
    result = frame.copy()
    usable = schema.usable(frame, "all")
    if usable.empty:
        raise InputError("No image of the catalog has both a label and readable bytes: there is nothing to split.")
    given_test = usable[usable["split"] == "test"]
    if not given_test.empty and test > 0:
        raise InputError(
            f"The catalog brings its own test split ({len(given_test)} images): leave --test at 0, or drop that split."
        )
    tested = set(given_test["group_id"])
    result["split"] = pd.Series([None] * len(frame), index=frame.index, dtype=object)
    result.loc[given_test.index, "split"] = "test"
    free = usable[~usable["group_id"].isin(tested)]

    shares = {"train": 1.0 - validation - test, "validation": validation, "test": test}
    generator = np.random.default_rng(seed)
    sizes = free.groupby("group_id").size()
    # A group with several labels counts for its most frequent one (the first in order of name among equals).
    labels = free.groupby("group_id")["label"].agg(lambda values: sorted(values.mode())[0])
    split_of: dict[str, str] = {}
    for label in sorted(labels.unique()):
        groups = sorted(labels.index[labels == label])
        generator.shuffle(groups)
        total = int(sizes.loc[groups].sum())
        given = dict.fromkeys(shares, 0)
        for group in groups:
            lacking = {name: share * total - given[name] for name, share in shares.items() if share > 0}
            name = max(lacking, key=lambda name: (lacking[name], shares[name]))
            given[name] += int(sizes[group])
            split_of[group] = name
    result.loc[free.index, "split"] = free["group_id"].map(split_of)
    return result
