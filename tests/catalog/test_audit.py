from typing import Any

import numpy as np
import pandas as pd
import pytest

from melanoma.catalog import schema
from melanoma.catalog.audit import Finding, audit
from melanoma.catalog.split import split


def clean(count: int = 300) -> pd.DataFrame:
    generator = np.random.default_rng(0)
    rows = [
        {
            "uri": f"/x/{place}.jpg",
            "image_id": f"id-{place}",
            "sha256": generator.bytes(32).hex(),
            "label": "MEL" if place % 3 else "NV",
            "group_id": f"g{place // 2}",
        }
        for place in range(count)
    ]
    frame = pd.DataFrame(rows, columns=schema.SCHEMA.names, dtype=object)
    return split(frame.where(frame.notna(), None), 0.2, 0.2, seed=0)


def with_cells(frame: pd.DataFrame, **cells: Any) -> pd.DataFrame:
    """The frame with other values in rows 0 and 1: ``image_id=("a", "a")``."""
    frame = frame.copy()
    for column, values in cells.items():
        for row, value in enumerate(values):
            frame.at[row, column] = value
    return frame


def test_a_clean_set_has_no_findings() -> None:
    assert audit(clean()) == []
    assert audit(clean().assign(split=None)) == []


def test_a_planted_leak_is_found() -> None:
    frame = with_cells(clean(), split=("train", "test"))
    assert audit(frame) == [Finding("leak", "group_id", "g0", ("/x/0.jpg", "/x/1.jpg"), ("test", "train"))]


def test_images_set_aside_are_no_leak() -> None:
    assert audit(with_cells(clean(), split=(None, "test"))) == []


@pytest.mark.parametrize("column", ["image_id", "sha256"])
def test_a_planted_contradiction_is_found(column: str) -> None:
    frame = with_cells(clean(), **{column: ("a", "a"), "label": ("NV", "MEL")})
    assert audit(frame) == [Finding("contradiction", column, "a", ("/x/0.jpg", "/x/1.jpg"), ("MEL", "NV"))]


@pytest.mark.parametrize(
    ("labels", "contradict"),
    [
        (("MEL", "MEL"), False),
        (("MEL", None), False),
        (("SK", "BKL|SK"), False),
        (("BKL|SK", "BKL"), False),
        (("AK|SCC", "BCC"), True),
        (("SK", "BKL"), True),
    ],
)
def test_labels_contradict_where_no_diagnosis_is_in_both(labels: tuple[str, str | None], contradict: bool) -> None:
    frame = with_cells(clean(), image_id=("a", "a"), label=labels)
    assert bool(audit(frame)) == contradict


def test_three_labels_contradict_though_each_two_may_not() -> None:
    frame = with_cells(clean(), image_id=("a", "a", "a"), label=("SK", "BKL|SK", "BKL"))
    assert [finding.among for finding in audit(frame)] == [("BKL", "BKL|SK", "SK")]


def test_unknown_ids_contradict_nobody() -> None:
    frame = with_cells(clean(), image_id=(None, None), sha256=(None, None), label=("NV", "MEL"))
    assert audit(frame) == []


def test_all_findings_are_listed_in_a_fixed_order() -> None:
    frame = with_cells(
        clean(), image_id=("a", "a"), sha256=("b", "b", "b"), label=("NV", "MEL"), split=("train", "test")
    )
    wanted = [("leak", "group_id", "g0"), ("contradiction", "image_id", "a"), ("contradiction", "sha256", "b")]
    for seed in range(3):
        found = audit(frame.sample(frac=1, random_state=seed))
        assert [(finding.kind, finding.by, finding.value) for finding in found] == wanted


def test_the_same_images_are_reported_once() -> None:
    frame = with_cells(clean(), image_id=("a", "a"), sha256=("b", "b"), label=("NV", "MEL"))
    assert [finding.by for finding in audit(frame)] == ["image_id"]
