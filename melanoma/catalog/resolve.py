"""Repair of a catalog by rule: which label wins, what is dropped, what is grouped, each with its reason on record.

Rules are read from YAML, see ``configs/isic9.yaml``, and applied in order:

- ``prefer``: of a photograph (same ISIC id or same bytes) under both labels, all copies get `label` instead of `over`.
- ``relabel``: images under `label`, or those of `image_ids` under it, get the label `to`.
- ``drop``: images under `label`, or those of `image_ids`, are no longer used.
- ``drop_copies``: of several copies of a photograph (same ISIC id or same bytes) one is kept, of the first split of
  `keep` that has one. Copies whose labels still exclude one another stay as they are: no rule has said which wins.
  With `within_source`, one is kept of each source, so that each can still be measured whole.
- ``group``: the images of `image_ids` share a group.
- ``set_aside``: images of the split `split` whose group is in the split `when_in`, too, are in no split.

A dropped image keeps its row: without a label and a split, but with its reason.
"""

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import pandas as pd
from pydantic import BeforeValidator, Field, model_validator

from melanoma import taxonomy
from melanoma.catalog import groups
from melanoma.config import Model
from melanoma.taxonomy import vocabulary


def _label(word: object) -> str:
    if (label := vocabulary.label_of(str(word))) is None:
        raise ValueError(f"is no diagnosis known here: use one of {', '.join(taxonomy.CODES)}, benign or malignant")
    return label


Label = Annotated[str, BeforeValidator(_label)]
Split = Literal["train", "validation", "test"]
ImageIds = Annotated[tuple[str, ...], Field(min_length=1)]


class _Rule(Model):
    reason: Annotated[str, Field(min_length=1)]


class Prefer(_Rule):
    rule: Literal["prefer"]
    label: Label
    over: Label


class Relabel(_Rule):
    rule: Literal["relabel"]
    label: Label
    to: Label
    image_ids: ImageIds | None = None


class Drop(_Rule):
    rule: Literal["drop"]
    label: Label | None = None
    image_ids: ImageIds | None = None

    @model_validator(mode="after")
    def _not_everything(self) -> "Drop":
        if self.label is None and self.image_ids is None:
            raise ValueError("give a label or image_ids")
        return self


class DropCopies(_Rule):
    rule: Literal["drop_copies"]
    keep: Annotated[tuple[Split, ...], Field(min_length=3, max_length=3)] = ("test", "validation", "train")
    within_source: bool = False


class Group(_Rule):
    rule: Literal["group"]
    image_ids: Annotated[tuple[str, ...], Field(min_length=2)]


class SetAside(_Rule):
    rule: Literal["set_aside"]
    split: Split
    when_in: Split


Rule = Annotated[Prefer | Relabel | Drop | DropCopies | Group | SetAside, Field(discriminator="rule")]


class Rules(Model):
    rules: Annotated[tuple[Rule, ...], Field(min_length=1)]


def resolve(frame: pd.DataFrame, rules: Rules) -> tuple[pd.DataFrame, list[int]]:
    """A copy of the catalog with the rules applied in order, and how many images each of them changed.

    A rule that changes nothing is no error: the set may be a part of the one that the rules were written for.
    """
    frame = frame.copy()
    return frame, [_apply(frame, rule) for rule in rules.rules]


def _apply(frame: pd.DataFrame, rule: Rule) -> int:
    """Apply one rule in place; returns how many images it changed."""
    used = frame["label"].notna() & frame["error"].isna()
    if isinstance(rule, Prefer):
        changed = [
            row
            for rows in _copies(frame[used])
            if {rule.label, rule.over} <= set(frame.loc[rows, "label"])
            for row in rows
            if frame.at[row, "label"] == rule.over
        ]
        _relabel(frame, changed, rule.label, rule.reason)
    elif isinstance(rule, Relabel):
        changed = list(frame.index[used & _named(frame, rule.label, rule.image_ids)])
        _relabel(frame, changed, rule.to, rule.reason)
    elif isinstance(rule, Drop):
        changed = list(frame.index[used & _named(frame, rule.label, rule.image_ids)])
        _drop(frame, changed, rule.reason)
    elif isinstance(rule, DropCopies):
        # "" is after all splits: an image that is in none.
        rank = frame["split"].fillna("").map({split: place for place, split in enumerate((*rule.keep, ""))})
        # Of two copies in a split, the one whose label leaves less open: a nevus rather than "benign".
        codes = frame["label"].fillna("").str.count(r"\|")
        order = frame.assign(rank=rank, codes=codes).sort_values(["rank", "codes", "uri"], kind="stable").index
        place = {row: number for number, row in enumerate(order)}
        changed = [
            row
            for rows in _copies(frame[used], rule.within_source)
            if set.intersection(*(set(taxonomy.codes_of(label)) for label in frame.loc[rows, "label"]))
            for row in sorted(rows, key=place.__getitem__)[1:]
        ]
        _drop(frame, changed, rule.reason)
    elif isinstance(rule, Group):
        group_ids = set(frame.loc[frame["image_id"].isin(rule.image_ids), "group_id"])
        one = min(group_ids, default="")
        joined = frame["group_id"].isin(group_ids)
        changed = list(frame.index[joined & (frame["group_id"] != one)])
        _note(frame, changed, f"grouped with {one}", rule.reason)
        frame.loc[changed, "group_id"] = one
    else:
        there = set(frame.loc[used & (frame["split"] == rule.when_in), "group_id"])
        changed = list(frame.index[used & (frame["split"] == rule.split) & frame["group_id"].isin(there)])
        _note(frame, changed, f"set aside (was {rule.split})", rule.reason)
        frame.loc[changed, "split"] = None
    return len(changed)


def _copies(frame: pd.DataFrame, within_source: bool = False) -> list[list[int]]:
    """The index labels of the rows of each photograph that has several, in all sources or within one."""
    sources = frame["source"] if within_source else [None] * len(frame)
    keys = [
        [value and (source, value) for source, value in zip(sources, values, strict=True)]
        for values in (groups.image_keys(frame), frame["sha256"])
    ]
    photograph = groups.components(len(frame), keys)
    return [rows for rows in pd.Series(frame.index).groupby(photograph).agg(list) if len(rows) > 1]


def _named(frame: pd.DataFrame, label: str | None, image_ids: tuple[str, ...] | None) -> pd.Series:
    rows = pd.Series(True, index=frame.index)
    if label is not None:
        rows &= frame["label"] == label
    if image_ids is not None:
        rows &= frame["image_id"].isin(image_ids)
    return rows


def _relabel(frame: pd.DataFrame, rows: list[int], label: str, reason: str) -> None:
    for row, before in frame.loc[rows, "label"].items():
        _note(frame, [row], f"label {before!s} became {label}", reason)
    frame.loc[rows, "label"] = label


def _drop(frame: pd.DataFrame, rows: list[int], reason: str) -> None:
    for row, label, split in frame.loc[rows, ["label", "split"]].itertuples():
        _note(frame, [row], f"dropped (was {label!s}, {split or 'no split'!s})", reason)
    frame.loc[rows, ["label", "split"]] = None


def _note(frame: pd.DataFrame, rows: Sequence[Any], what: str, reason: str) -> None:
    notes = frame.loc[list(rows), "changes"]
    frame.loc[list(rows), "changes"] = [
        "; ".join([*filter(None, [before]), f"{what}: {reason}"]) for before in notes.tolist()
    ]
