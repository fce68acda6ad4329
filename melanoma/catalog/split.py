"""Who is in which split: over groups, stratified by source and label, decided by one seed, before any augmentation."""

from typing import Literal

import numpy as np
import pandas as pd

from melanoma.catalog import schema
from melanoma.errors import InputError


def split(
    frame: pd.DataFrame, validation: float, test: float, seed: int, given_test: Literal["keep", "aside"] = "keep"
) -> pd.DataFrame:
    """A copy of the catalog with `split` set for every usable image.

    No group lies in two splits. Within each label of each source, groups are dealt in a seeded random order to the
    split that lacks most of its share. Images without a label or with an error have no split.

    Args:
        frame: The catalog.
        validation: Share of the images, 0 to below 1.
        test: Likewise.
        seed: Decides the order.
        given_test: What becomes of a test split that the catalog brings along (a ``Test`` folder, a column of the
            manifest). "keep": it stays as it is, `test` must be 0, and images of its groups outside it are set aside
            (split null), because training on them would leak. "aside": all images of its groups are set aside, and
            `test` is a share of the others.

    Returns:
        The copy; images that are set aside have no split.

    Raises:
        InputError: The shares leave nothing to train on, or do not fit the test split of the catalog.
    """
    if not (validation >= 0 and test >= 0 and validation + test < 1):  # NaN, too
        raise InputError("The shares of validation and test must be 0 or more, and together below 1.")
    result = frame.copy()
    usable = schema.usable(frame, "all")
    if usable.empty:
        raise InputError("No image of the catalog has both a label and readable bytes: there is nothing to split.")
    brought = usable[usable["split"] == "test"]
    if not brought.empty and test > 0 and given_test == "keep":
        raise InputError(
            f"The catalog brings its own test split ({len(brought)} images): leave --test at 0, or set that split "
            "aside with --given-test aside."
        )
    result["split"] = pd.Series([None] * len(frame), index=frame.index, dtype=object)
    if given_test == "keep":
        result.loc[brought.index, "split"] = "test"
    free = usable[~usable["group_id"].isin(set(brought["group_id"]))]
    if given_test == "aside" and free.empty:
        raise InputError("Every image belongs to a group of the catalog's own test split: keep it (--given-test keep).")

    shares = {"train": 1.0 - validation - test, "validation": validation, "test": test}
    generator = np.random.default_rng(seed)
    sizes = free.groupby("group_id").size()
    # A group of several labels or sources counts for the most frequent (the first in order of name among equals).
    strata = free.assign(source=free["source"].fillna("")).groupby("group_id")[["source", "label"]].agg(_most_frequent)
    split_of: dict[str, str] = {}
    for _, stratum in strata.groupby(["source", "label"], sort=True):
        groups = sorted(stratum.index)
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


def _most_frequent(values: pd.Series) -> str:
    return min(values.mode())
