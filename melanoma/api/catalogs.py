"""Catalogs: which images exist, what is known of them, and which split they are in."""

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from melanoma.api.shared import OnImage, Place, Say, several
from melanoma.errors import InputError

if TYPE_CHECKING:
    import pandas as pd

    from melanoma.catalog.mapping import Map
    from melanoma.catalog.resolve import Rules


def build_catalog(
    sources: Place | Sequence[Place],
    out: Place | None = None,
    *,
    metadata: Sequence[Place] = (),
    rules: "Place | Rules | None" = None,
    words: "Place | Map | None" = None,
    unlabelled: bool = False,
    on_image: OnImage = lambda done, total: None,
    say: Say = print,
) -> "pd.DataFrame":
    """List images with their labels, digests and groups; see `melanoma.catalog.build`.

    Example: ``m.build_catalog("data/isic9", out="catalog.parquet", rules="configs/isic9.yaml")``

    Args:
        sources: Folders with one sub-folder a class or with a table of their images, and CSV or Parquet manifests.
        out: Where the catalog is written as Parquet; None writes nothing.
        metadata: Tables that know the lesion, patient, age, sex or site of images by their ISIC id.
        rules: Repairs of the catalog, or the YAML file of them; see `melanoma.catalog.resolve`.
        words: What the sources' own columns and words mean, or the YAML file of it; see `melanoma.catalog.mapping`.
        unlabelled: Whether images whose word for a diagnosis is not known are taken, without a label.
        on_image: Called with the number of images read and the total.
        say: Told which words gave no label, what was left out, and what each rule changed.

    Returns:
        One row an image, with the columns of `melanoma.catalog.schema`.

    Raises:
        InputError: A source or table cannot be read or used, a word is not known, no image can be used, or the catalog
            cannot be written.
    """
    from melanoma import config
    from melanoma.catalog import build, mapping, resolve

    if rules is not None and not isinstance(rules, resolve.Rules):
        rules = config.load(resolve.Rules, os.fspath(rules))
    if words is None or not isinstance(words, mapping.Map):
        words = mapping.NO_MAP if words is None else config.load(mapping.Map, os.fspath(words))
    frame = build.build(several(sources), on_image, several(metadata), words, unlabelled, say)
    if rules is not None:
        frame, counts = resolve.resolve(frame, rules)
        for rule, count in zip(rules.rules, counts, strict=True):
            say(f"Rule {rule.rule}: {count} images changed ({rule.reason}).")
    _write_catalog(out, frame)
    return frame


def split_catalog(
    catalog: "Place | pd.DataFrame",
    out: Place | None = None,
    *,
    validation: float = 0.15,
    test: float | None = None,
    given_test: Literal["keep", "aside"] = "keep",
    seed: int = 0,
    say: Say = print,
) -> "pd.DataFrame":
    """Deal the groups of a catalog to train, validation and test; see `melanoma.catalog.split`.

    Example: ``m.split_catalog("catalog.parquet", out="catalog.parquet", validation=0.2, test=0)``

    Args:
        catalog: The catalog, or its Parquet file.
        out: Where the split catalog is written as Parquet; None writes nothing.
        validation: Share of the images for validation, 0 to below 1.
        test: Share of the images for test; None is 0.15, or 0 where a test split that is there is kept.
        given_test: Whether a test split that is there is kept, or its groups are in no split.
        seed: Decides which group goes where.
        say: Told of a split whose share is missed by far.

    Returns:
        A copy of the catalog with the column `split` set.

    Raises:
        InputError: The catalog cannot be read, split or written.
    """
    from melanoma.catalog import schema, split

    frame = schema.read(os.fspath(catalog)) if isinstance(catalog, str | os.PathLike) else catalog
    if test is None:
        test = 0.0 if given_test == "keep" and not schema.usable(frame, "test").empty else 0.15
    result = split.split(frame, validation, test, seed, given_test)
    for sentence in split.missed(result, validation, test):
        say(sentence)
    _write_catalog(out, result)
    return result


def _write_catalog(out: Place | None, frame: "pd.DataFrame") -> None:
    from melanoma.catalog import schema

    if out is None:
        return
    try:
        schema.write(os.fspath(out), frame)
    except OSError as error:
        raise InputError(f"The catalog cannot be written to {os.fspath(out)}: {error}") from None
