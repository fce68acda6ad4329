import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from melanoma.catalog import schema
from melanoma.catalog.build import build
from melanoma.catalog.groups import group_ids

Lesion = Callable[..., bytes]


def catalog(*rows: dict[str, Any]) -> pd.DataFrame:
    """A catalog of rows that differ in everything that they do not name."""
    generator = np.random.default_rng(0)
    defaults = [
        {
            "uri": f"/x/{place}.jpg",
            "image_id": f"id-{place}",
            "source": "set",
            "sha256": generator.bytes(32).hex(),
            "perceptual_hash": generator.bytes(32).hex(),
        }
        for place in range(len(rows))
    ]
    table = [{**default, **row} for default, row in zip(defaults, rows, strict=True)]
    frame = pd.DataFrame(table, columns=schema.SCHEMA.names, dtype=object)
    return frame.where(frame.notna(), None)


def partition(ids: list[str]) -> set[frozenset[int]]:
    return {frozenset(place for place, other in enumerate(ids) if other == value) for value in ids}


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("image_id", "ISIC_0000001"),
        ("sha256", "ab" * 32),
        ("lesion_id", "L1"),
        ("patient_id", "P1"),
        ("perceptual_hash", "0f" * 32),
        ("thumbnail", np.random.default_rng(0).bytes(4096)),
    ],
)
def test_each_reason_joins(column: str, value: str | bytes) -> None:
    ids = group_ids(catalog({column: value}, {}, {column: value}, {}))
    assert partition(ids) == {frozenset({0, 2}), frozenset({1}), frozenset({3})}


@pytest.mark.parametrize("column", ["image_id", "sha256", "lesion_id", "patient_id", "perceptual_hash", "thumbnail"])
def test_what_is_not_known_joins_nobody(column: str) -> None:
    assert len(set(group_ids(catalog({column: None}, {column: None}, {column: None})))) == 3


def test_a_patient_number_is_a_number_of_its_source() -> None:
    rows = [{"source": source, column: "7"} for source in ("a", "b", "a") for column in ("patient_id", "lesion_id")]
    assert partition(group_ids(catalog(*rows))) == {frozenset(group) for group in ({0, 4}, {1, 5}, {2}, {3})}


def test_a_chain_of_reasons_is_one_group() -> None:
    flipped = f"{0b1111:064x}"
    rows: list[dict[str, Any]] = [
        {"patient_id": "P1"},
        {"patient_id": "P1", "lesion_id": "L1"},
        {"lesion_id": "L1", "sha256": "aa" * 32},
        {"sha256": "aa" * 32, "perceptual_hash": "0" * 64},
        {"perceptual_hash": flipped, "image_id": "x"},
        {"image_id": "x"},
        {},
    ]
    assert partition(group_ids(catalog(*rows))) == {frozenset(range(6)), frozenset({6})}


def test_the_order_and_place_of_the_rows_do_not_matter() -> None:
    generator = np.random.default_rng(1)
    rows = [
        {
            "patient_id": None if generator.random() < 0.5 else str(generator.integers(40)),
            "sha256": None if generator.random() < 0.1 else generator.bytes(32).hex(),
        }
        for _ in range(200)
    ]
    frame = catalog(*rows)
    ids = dict(zip(frame["image_id"], group_ids(frame), strict=True))
    assert 50 < len(set(ids.values())) < 200
    for seed in range(3):
        shuffled = frame.sample(frac=1, random_state=seed).assign(uri=[f"s3://b/{n}" for n in range(200)])
        assert dict(zip(shuffled["image_id"], group_ids(shuffled), strict=True)) == ids


def test_copies_of_a_picture_are_one_group(tmp_path: Path, lesion: Lesion) -> None:
    """Recompressed, scaled, mirrored, rotated and cropped: and other lesions of the same diagnosis beside it."""
    folder = tmp_path / "set" / "melanoma"
    folder.mkdir(parents=True)
    for seed in range(6):
        image = Image.open(io.BytesIO(lesion("MEL", seed, size=180, quality=95)))
        image.save(folder / f"original-{seed}.png")
        image.save(folder / f"recompressed-{seed}.jpg", quality=70)
        image.resize((144, 144), Image.Resampling.LANCZOS).save(folder / f"scaled-{seed}.jpg", quality=95)
        image.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(folder / f"mirrored-{seed}.jpg", quality=80)
        image.transpose(Image.Transpose.ROTATE_90).save(folder / f"rotated-{seed}.jpg", quality=90)
        image.crop((5, 5, 175, 175)).save(folder / f"cropped-{seed}.jpg", quality=90)
    frame = build([str(tmp_path / "set")])
    seeds = frame["image_id"].str.split("-").str[1]
    assert partition(frame["group_id"].tolist()) == partition(seeds.tolist())
    other_order = build([str(folder.parent / "melanoma" / "..")])
    assert other_order["group_id"].tolist() == frame["group_id"].tolist()


@pytest.mark.parametrize("column", ["perceptual_hash", "thumbnail"])
def test_thousands_of_equal_frames_are_one_group(column: str) -> None:
    value = {"perceptual_hash": "8" + "0" * 63, "thumbnail": np.random.default_rng(0).bytes(4096)}[column]
    rows = [{column: value}] * 3000
    assert len(set(group_ids(catalog(*rows)))) == 1


def test_numbers_of_two_folders_are_two_photographs_but_isic_ids_are_not() -> None:
    frame = pd.DataFrame(
        [
            {"uri": "/set/benign/1.jpg", "image_id": "1", "sha256": "a"},
            {"uri": "/set/malignant/1.jpg", "image_id": "1", "sha256": "b"},
            {"uri": "/set/benign/ISIC_0000001.jpg", "image_id": "ISIC_0000001", "sha256": "c"},
            {"uri": "/other/ISIC_0000001.jpg", "image_id": "ISIC_0000001", "sha256": "d"},
        ],
        columns=schema.SCHEMA.names,
        dtype=object,
    )
    one, two, three, four = group_ids(frame.where(frame.notna(), None))
    assert one != two
    assert three == four


@pytest.mark.parametrize(("column", "number"), [("lesion_id", "HAM_0000118"), ("patient_id", "IP_7279968")])
def test_numbers_of_isic_join_over_sources_and_those_of_hospitals_do_not(column: str, number: str) -> None:
    rows = [{"source": source, column: value} for value in (number, "7") for source in ("one", "two")]
    assert partition(group_ids(catalog(*rows))) == {frozenset({0, 1}), frozenset({2}), frozenset({3})}
