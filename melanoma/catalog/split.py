"""Who is in which split: over groups, stratified by source and label, decided by one seed, before any augmentation."""

from collections.abc import Mapping
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
        InputError: The shares leave nothing to train on, do not fit the test split of the catalog, or a split would be
            empty.
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

    shares = _shares(validation, test)
    split_of = _dealt(free, shares, seed)
    if set(split_of.values()) < {name for name, share in shares.items() if share > 0}:
        split_of = _dealt(free, shares, seed, is_carried=True)
    result.loc[free.index, "split"] = free["group_id"].map(split_of)
    _check(free, split_of, shares)
    return result


def _dealt(free: pd.DataFrame, shares: Mapping[str, float], seed: int, is_carried: bool = False) -> dict[str, str]:
    """The split of each group. Where no label has enough groups for a share, what it lacks is carried to the next."""
    generator = np.random.default_rng(seed)
    sizes = free.groupby("group_id").size()
    # A group of several labels or sources counts for the most frequent (the first in order of name among equals).
    strata = free.assign(source=free["source"].fillna("")).groupby("group_id")[["source", "label"]].agg(_most_frequent)
    split_of: dict[str, str] = {}
    total, given = 0, dict.fromkeys(shares, 0)
    for _, stratum in strata.groupby(["source", "label"], sort=True):
        groups = sorted(stratum.index)
        generator.shuffle(groups)
        if not is_carried:
            total, given = 0, dict.fromkeys(shares, 0)
        total += int(sizes.loc[groups].sum())
        for group in groups:
            lacking = {name: share * total - given[name] for name, share in shares.items() if share > 0}
            # Among those that lack as much, what is carried goes to one that has nothing yet.
            empty = {name: is_carried and not given[name] for name in lacking}
            name = max(lacking, key=lambda name: (lacking[name], empty[name], shares[name]))
            given[name] += int(sizes[group])
            split_of[group] = name
    return split_of


def missed(frame: pd.DataFrame, validation: float, test: float) -> list[str]:
    """A sentence for each split that has less than half of the share that was asked for, or more than twice of it.

    A group that is larger than a share cannot be dealt otherwise: the largest is named.
    """
    # A test split that the catalog brings is no share of anything.
    dealt = frame[frame["split"].isin([name for name, share in _shares(validation, test).items() if share > 0])]
    said = []
    for name, share in _shares(validation, test).items():
        images = int((dealt["split"] == name).sum())
        wanted = share * len(dealt)
        if share > 0 and abs(images - wanted) > 1 and not wanted / 2 <= images <= 2 * wanted:
            said.append(
                f"The split {name} missed its share: {images:,} of {len(dealt):,} images, where {wanted:,.0f} were "
                f"asked for; {_largest(dealt)}."
            )
    return said


def _check(free: pd.DataFrame, split_of: Mapping[str, str], shares: Mapping[str, float]) -> None:
    empty = [name for name, share in shares.items() if share > 0 and name not in split_of.values()]
    if free.empty or not empty:
        return
    raise InputError(
        f"The split {empty[0]} would be empty, and {shares[empty[0]]:.0%} of {len(free):,} images were asked for: "
        f"{_largest(free)}. Add images of other groups, or ask for a share of 0."
    )


def _largest(rows: pd.DataFrame) -> str:
    """The largest group, by what its images have in common: most often a patient, or a placeholder for one."""
    sizes = rows["group_id"].value_counts()
    largest = rows[rows["group_id"] == sizes.index[0]]
    named = next(
        (
            f", of {column.removesuffix('_id')} {largest[column].mode()[0]}"
            for column in ("patient_id", "lesion_id")
            if largest[column].notna().any()
        ),
        "",
    )
    return f"the largest of {len(sizes):,} groups that may not be split has {int(sizes.iloc[0]):,} images{named}"


def _shares(validation: float, test: float) -> dict[str, float]:
    return {"train": 1.0 - validation - test, "validation": validation, "test": test}


def _most_frequent(values: pd.Series) -> str:
    return min(values.mode())
