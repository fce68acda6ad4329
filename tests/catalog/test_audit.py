"""An audit finds what was planted, and says no more.

Longer than 500 lines: every kind of finding is planted in the same small catalogs.
"""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from scipy.stats import norm
from sklearn.metrics import roc_auc_score

from melanoma.catalog import audit, audit_page, audit_words, properties, reference, schema
from melanoma.catalog.audit import examine, read
from melanoma.catalog.build import build
from melanoma.catalog.leaks import split_groups
from melanoma.catalog.split import split
from melanoma.demo.archive_files import dicom_file
from melanoma.demo.lesions import draw_lesion
from melanoma.errors import InputError
from melanoma.imaging.hashing import perceptual_hash, thumbnail

Command = Callable[..., Any]


def clean(count: int = 300) -> pd.DataFrame:
    """Images of pairs that share a stored group, split: nothing else joins any two."""
    generator = np.random.default_rng(0)
    rows = [
        {
            "uri": f"/x/{place}.jpg",
            "image_id": f"id-{place}",
            "source": "x",
            "sha256": generator.bytes(32).hex(),
            "label": "MEL" if place % 3 else "NV",
            "group_id": f"g{place // 2}",
        }
        for place in range(count)
    ]
    frame = pd.DataFrame(rows, columns=schema.SCHEMA.names, dtype=object)
    return split(frame.where(frame.notna(), None), 0.2, 0.2, seed=0)


def apart(count: int = 30) -> pd.DataFrame:
    """Images that nothing joins, all of one label, all in train."""
    frame = clean(max(count, 30)).head(count)
    return frame.assign(group_id=[f"g{place}" for place in range(count)], label="NV", split="train").astype(object)


def with_cells(frame: pd.DataFrame, **cells: Any) -> pd.DataFrame:
    """The frame with other values in its first rows: ``image_id=("a", "a")``."""
    frame = frame.copy()
    for column, values in cells.items():
        for row, value in enumerate(values):
            frame.at[row, column] = value
    return frame


def findings(answer: dict[str, Any], kind: str) -> list[tuple[list[str], list[str]]]:
    """Of each finding the reasons and the file names."""
    return [(f["by"], sorted(Path(i["uri"]).name for i in f["images"])) for f in answer[kind]["findings"]]


def pictured(frame: pd.DataFrame, rows: tuple[int, int]) -> pd.DataFrame:
    """The frame with the same picture in two rows."""
    picture = Image.fromarray(draw_lesion("NV", 1, 128, 128))
    for row in rows:
        frame.at[row, "thumbnail"], frame.at[row, "perceptual_hash"] = thumbnail(picture), perceptual_hash(picture)
    return frame


# --- leaks -----------------------------------------------------------------------------------------------------------


def test_a_clean_set_has_no_findings() -> None:
    for frame in (clean(), clean().assign(split=None), clean().iloc[:0]):
        answer = examine(frame)
        assert audit.is_clean(answer)
        assert answer["leaks"] == {"by_splits": [], "findings": []}
        assert answer["contradictions"] == {"by_pair": [], "findings": []}
        assert answer["reference"] is None
        json.dumps(answer, allow_nan=False)


@pytest.mark.parametrize("reason", ["image_id", "sha256", "lesion_id", "patient_id", "group_id"])
def test_each_reason_is_a_leak(reason: str) -> None:
    # An id of another folder would be another photograph.
    answer = examine(with_cells(apart(), split=("train", "test"), **{reason: ("ISIC_0000001", "ISIC_0000001")}))
    assert findings(answer, "leaks") == [([reason], ["0.jpg", "1.jpg"])]
    (row,) = answer["leaks"]["by_splits"]
    assert (row["splits"], row["images"]) == (["train", "test"], 1)
    assert {name: count for name, count in row["by"].items() if count} == {"any": 1, reason: 1}
    assert not audit.is_clean(answer)


def test_a_near_duplicate_is_a_leak() -> None:
    answer = examine(pictured(with_cells(apart(), split=("train", "test")), (0, 1)))
    assert findings(answer, "leaks") == [(["near-duplicate"], ["0.jpg", "1.jpg"])]
    (match,) = answer["leaks"]["findings"][0]["matches"]
    assert {match["first"], match["second"]} == {0, 1}
    assert answer["leaks"]["by_splits"][0]["by"]["picture only"] == 1
    assert answer["summary"]["near_duplicates_of_different_ids"] == 1


def test_a_copy_is_no_near_duplicate() -> None:
    """Two files of the same bytes and a near-duplicate of them: each reason counts what it is a reason for."""
    frame = with_cells(apart(), split=("train", "test", None), sha256=("a", "a"))
    frame = pictured(pictured(frame, (0, 1)), (1, 2))
    answer = examine(frame)
    assert findings(answer, "leaks") == [(["sha256"], ["0.jpg", "1.jpg", "2.jpg"])]
    assert answer["leaks"]["by_splits"][0]["by"]["near-duplicate"] == 0


def test_one_set_of_images_is_one_finding_with_all_its_reasons() -> None:
    same = ("ISIC_0000001", "ISIC_0000001")
    answer = examine(with_cells(apart(), split=("train", "test"), image_id=same, sha256=same, lesion_id=same))
    assert findings(answer, "leaks") == [(["image_id", "sha256", "lesion_id"], ["0.jpg", "1.jpg"])]


def test_images_of_later_splits_are_counted() -> None:
    frame = with_cells(
        apart(), split=("train", "validation", "test", "test", "test"), patient_id=("P", "P", "P", "P", "Q")
    )
    counts = {tuple(row["splits"]): row["by"]["patient_id"] for row in examine(frame)["leaks"]["by_splits"]}
    assert counts == {("train", "validation"): 1, ("train", "test"): 2, ("validation", "test"): 2}


def test_the_first_images_of_a_finding_show_both_sides() -> None:
    answer = examine(apart(30).assign(sha256="same", split=["test"] * 20 + ["train"] * 10))
    (finding,) = answer["leaks"]["findings"]
    assert [image["split"] for image in finding["images"][:4]] == ["test", "train", "test", "train"]


def test_images_set_aside_are_no_leak() -> None:
    assert audit.is_clean(examine(with_cells(apart(), split=(None, "test"), patient_id=("P", "P"))))


def test_a_leak_by_a_chain_over_an_image_in_no_split() -> None:
    frame = with_cells(apart(), split=("train", None, "test"), patient_id=("P", "P"), lesion_id=(None, "L", "L"))
    answer = examine(frame)
    assert findings(answer, "leaks") == [(["lesion_id", "patient_id"], ["0.jpg", "1.jpg", "2.jpg"])]
    assert answer["leaks"]["findings"][0]["chain"]
    assert {n: c for n, c in answer["leaks"]["by_splits"][0]["by"].items() if c} == {"any": 1}


@pytest.mark.parametrize("number", ["HAM_0000118", "7"])
def test_a_finding_names_the_lesion_as_the_catalog_does(number: str) -> None:
    answer = examine(with_cells(apart(), split=("train", "test"), lesion_id=(number, number)))
    assert [image["lesion_id"] for image in answer["leaks"]["findings"][0]["images"]] == [[number]] * 2


def test_lesions_and_patients_go_with_the_photograph() -> None:
    """Neither image of rows 0 and 1 has a lesion, but others of their ids have, and these are of one."""
    ids = ("ISIC_0000001", "ISIC_0000002", "ISIC_0000001", "ISIC_0000002")
    frame = with_cells(
        apart(),
        split=("train", "test", None, None),
        image_id=ids,
        lesion_id=(None, None, "L", "L"),
        source=("isic9",) * 2,
    )
    answer = examine(frame)
    assert answer["leaks"]["by_splits"][0]["by"]["lesion_id"] == 1
    assert answer["leaks"]["findings"][0]["by"] == ["lesion_id"]
    assert [image["lesion_id"] for image in answer["leaks"]["findings"][0]["images"]] == [["L"]] * 4


def test_a_patient_number_is_one_of_its_own_source() -> None:
    frame = with_cells(apart(), split=("train", "test"), patient_id=("7", "7"), source=("north", "south"))
    assert audit.is_clean(examine(frame))


def test_the_quick_check_is_of_stored_groups() -> None:
    assert split_groups(clean()) == []
    assert split_groups(with_cells(clean(), split=("train", "test"))) == ["g0"]
    assert split_groups(with_cells(clean(), split=(None, "test"))) == []


# --- labels ----------------------------------------------------------------------------------------------------------


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
@pytest.mark.parametrize("reason", ["image_id", "sha256", "near-duplicate"])
def test_labels_contradict_where_no_diagnosis_is_in_both(
    reason: str, labels: tuple[str, str | None], contradict: bool
) -> None:
    frame = with_cells(apart(), label=labels)
    frame = pictured(frame, (0, 1)) if reason == "near-duplicate" else with_cells(frame, **{reason: ("ISIC_01",) * 2})
    answer = examine(frame)
    assert findings(answer, "contradictions") == ([([reason], ["0.jpg", "1.jpg"])] if contradict else [])
    assert audit.is_clean(answer) != contradict


@pytest.mark.parametrize("reason", ["lesion_id", "patient_id", "group_id"])
def test_images_of_one_patient_may_have_several_labels(reason: str) -> None:
    assert audit.is_clean(examine(with_cells(apart(), label=("NV", "MEL"), **{reason: ("a", "a")})))


def test_three_labels_contradict_though_each_two_may_not() -> None:
    answer = examine(with_cells(apart(), sha256=("a", "a", "a"), label=("SK", "BKL|SK", "BKL")))
    (finding,) = answer["contradictions"]["findings"]
    assert finding["labels"] == ["BKL", "BKL|SK", "SK"]
    (row,) = answer["contradictions"]["by_pair"]
    assert row == {"labels": ["BKL", "SK"], "sets": 1, "images": 2, "ids": 0, "contents": 1, "near_duplicates": 0}


def test_unknown_ids_contradict_nobody() -> None:
    frame = with_cells(apart(), image_id=(None, None), sha256=(None, None), label=("NV", "MEL"))
    assert audit.is_clean(examine(frame))
    assert audit.is_clean(examine(with_cells(apart(), image_id=("", ""), sha256=("", ""), label=("NV", "MEL"))))


def test_a_photograph_with_three_reasons_is_one_finding() -> None:
    same = ("ISIC_0000001", "ISIC_0000001", "ISIC_0000001")
    frame = pictured(with_cells(apart(), image_id=same, sha256=("a", "a"), label=("NV", "MEL", "MEL")), (0, 2))
    answer = examine(frame)
    assert findings(answer, "contradictions") == [
        (["image_id", "sha256", "near-duplicate"], ["0.jpg", "1.jpg", "2.jpg"])
    ]
    (row,) = answer["contradictions"]["by_pair"]
    assert (row["sets"], row["images"], row["ids"], row["contents"], row["near_duplicates"]) == (1, 3, 1, 1, 1)


def test_the_order_of_the_rows_does_not_matter() -> None:
    frame = with_cells(
        clean(),
        image_id=("ISIC_0000001", "ISIC_0000001", "ISIC_0000002", "ISIC_0000002"),
        label=("NV", "MEL", "MEL", "NV"),
        split=("train", "test", "train", "test"),
        patient_id=(None, None, None, "P", "P"),
    )
    first = examine(frame)
    assert len(first["contradictions"]["findings"]) == 2
    for seed in range(3):
        shuffled = examine(frame.sample(frac=1, random_state=seed))
        for part in ("summary", "contradictions", "leaks", "classes", "sizes"):
            assert shuffled[part] == first[part]


# --- reference -------------------------------------------------------------------------------------------------------


def test_labels_against_a_reference() -> None:
    frame = with_cells(
        apart(),
        image_id=("ISIC_0000001", "ISIC_0000002", "ISIC_0000003", "ISIC_0000003", "5", "5"),
        uri=("/a/1", "/a/2", "/a/3", "/b/3", "/a/5", "/b/5"),
        label=("MEL", "SK", "NV", "NV", "NV", "NV"),
    )
    reference = {
        "ISIC_0000001": "NV",
        "ISIC_0000002": "BKL|SK",
        "ISIC_0000003": "MEL",
        "ISIC_9999999": "MEL",
        "5": "MEL",  # two photographs have this number: of which is it said?
        "id-9": "MEL",
    }
    answer = examine(frame, reference)
    assert answer["reference"]["by_pair"] == [
        {"label": "NV", "reference": "MEL", "images": 3, "ids": 2},
        {"label": "MEL", "reference": "NV", "images": 1, "ids": 1},
    ]
    assert answer["reference"]["known"] == 4
    assert findings(answer, "reference") == [
        (["reference"], ["1"]),
        (["reference"], ["3", "3"]),
        (["reference"], ["9.jpg"]),
    ]
    assert not audit.is_clean(answer)
    assert audit.is_clean(examine(frame, {"ISIC_0000002": "BKL|SK"}))


@pytest.mark.parametrize(
    ("table", "labels"),
    [
        ("image,MEL,NV,BKL\nISIC_0000001_downsampled,0,1,0\nISIC_0000002,0,0,1\n", ["NV", "BKL|SK"]),
        ("image_id,label\nISIC_0000001,nevus\nISIC_0000002,BKL\n", ["NV", "BKL"]),
        ("isic_id,dx\nISIC_0000001,nv\nISIC_0000002,bkl\nISIC_0000003,\n", ["NV", "BKL|SK"]),
        # Of 3 the table says both.
        ("image,label\nISIC_0000001,NV\nISIC_0000002,SK\nISIC_0000003,NV\nISIC_0000003,MEL\n", ["NV", "SK"]),
    ],
)
def test_reference_tables(tmp_path: Path, table: str, labels: list[str]) -> None:
    (tmp_path / "t.csv").write_text(table)
    wanted = dict(zip(["ISIC_0000001", "ISIC_0000002"], labels, strict=True))
    assert reference.read(str(tmp_path / "t.csv")) == wanted


@pytest.mark.parametrize(
    ("table", "hint"),
    [
        (None, "cannot be read"),
        ("", "is not a readable CSV table"),
        ("a,b\n1,2\n", "needs a column image_id"),
        ("image,size\nISIC_0000001,2\n", "a column label"),
        ("image,label\nISIC_0000001,\n", "has no row with an image id and a label"),
        ("image,label\nISIC_0000001,wart\n", "has no row with an image id and a label"),
        ("image,label\nISIC_0000001,mole\n", r"words that are no diagnosis known here: 'mole' \(1\)"),
    ],
)
def test_what_is_no_reference(tmp_path: Path, table: str | None, hint: str) -> None:
    if table is not None:
        (tmp_path / "t.csv").write_text(table)
    with pytest.raises(InputError, match=hint):
        reference.read(str(tmp_path / "t.csv"))


# --- classes ---------------------------------------------------------------------------------------------------------


def test_a_class_without_support_of_its_own() -> None:
    """Ten of SK, of which nine are also under MEL and one is a melanoma by the reference; nine of 20 melanomas."""
    count = 30
    frame = apart(count).assign(label=["SK"] * 10 + ["MEL"] * 20, image_id=[f"ISIC_{n:07d}" for n in range(count)])
    for row in range(9):
        frame.at[10 + row, "sha256"] = str(frame.at[row, "sha256"])
    melanoma, keratosis = examine(frame, {"ISIC_0000009": "MEL"})["classes"]
    assert keratosis == {
        "label": "SK",
        "images": 10,
        "photographs": 10,
        "under_another_label": 9,
        "others": {"MEL": 9},
        "contradicted_by_reference": 1,
        "confirmed_by_reference": 0,
        "independent": 0,
        "warning": "no independent support, mostly contained in MEL",
    }
    assert (melanoma["under_another_label"], melanoma["independent"], melanoma["warning"]) == (9, 11, None)
    # What the reference confirms is support, whatever other folders say.
    _, confirmed = examine(frame, {f"ISIC_{row:07d}": "SK" for row in range(9)})["classes"]
    assert (confirmed["independent"], confirmed["warning"]) == (10, "mostly contained in MEL")


def test_what_the_size_of_a_class_allows() -> None:
    frame = apart(60).assign(split="test", label=["VASC"] * 3 + ["NV"] * 57)
    large, small = examine(frame)["sizes"]
    assert (small["label"], small["groups"], small["too_small"]) == ("VASC", 3, True)
    assert audit_words.size_sentence(small) == "3 groups: a recall of 67% would be 9% to 99%"
    assert (large["groups"], large["too_small"]) == (57, False)
    # Images of one patient are one witness, training makes no claim, and a label may be missing from a split.
    frame = frame.assign(patient_id=pd.Series([None] * 3 + ["P"] * 57), split=["train"] * 3 + ["test"] * 57)
    found = {(row["label"], row["split"]): (row["groups"], row["too_small"]) for row in examine(frame)["sizes"]}
    assert found == {
        ("NV", "train"): (0, False),
        ("NV", "test"): (1, True),
        ("VASC", "train"): (3, False),
        ("VASC", "test"): (0, True),
    }


def test_images_that_are_of_no_use() -> None:
    frame = with_cells(
        apart(), error=("The file is empty.",), label=("NV", None, None), changes=(None, None, "dropped (was NV): old")
    )
    answer = examine(frame)
    assert answer["unreadable"] == [{"uri": "/x/0.jpg", "image_id": "id-0", "error": "The file is empty."}]
    assert [answer["summary"][name] for name in ("unreadable", "unlabelled", "dropped")] == [1, 1, 1]
    assert audit.is_clean(answer)


# --- properties ------------------------------------------------------------------------------------------------------


def measured(frame: pd.DataFrame) -> dict[str, Any]:
    return {row["name"]: row for row in properties.measure(frame, np.arange(len(frame)))}


def test_properties_that_tell_melanoma() -> None:
    generator = np.random.default_rng(1)
    melanoma = generator.random(600) < 0.3
    frame = apart(600).assign(
        label=np.where(melanoma, "MEL", "NV"),
        # Both ends are melanoma: no threshold, nor any straight line, tells them.
        sharpness=np.where(melanoma, generator.choice([0.1, 0.9], 600), 0.5) + generator.normal(0, 0.02, 600),
        exposure=generator.random(600),
        sex=np.where(melanoma, "male", "female"),
        source=np.where(melanoma & (generator.random(600) < 0.5), "a", "b"),
        width=100,
        height=100,
        size_bytes=np.where(np.arange(600) % 2, np.nan, 1000),
    )
    found = measured(frame)
    assert found["sharpness"]["auc"] > 0.99
    assert found["sharpness"]["warning"]
    assert found["source"]["auc"] == pytest.approx(0.75, abs=0.04)
    assert found["source"]["low"] < 0.75 < found["source"]["high"]
    assert found["sex"]["warning"]
    assert found["sex"]["clinical"]
    for name in ("exposure", "size in bytes"):
        assert not found[name]["warning"]
        assert found[name]["auc"] == pytest.approx(0.5, abs=0.08)
    for name in ("width and height", "aspect ratio"):
        assert (found[name]["auc"], found[name]["note"]) == (0.5, "the same for every image")
    assert (found["age"]["auc"], found["age"]["note"]) == (None, "not known of any image")
    assert found["size in bytes"]["known"] == 300
    together = found["all but the clinical together"]
    assert together["auc"] > 0.99


def test_images_of_a_group_do_not_answer_for_each_other() -> None:
    """Each lesion has ten images of its own exposure: known by heart, not by rule."""
    generator = np.random.default_rng(0)
    group = np.repeat(np.arange(80), 10)
    melanoma = (generator.random(80) < 0.5)[group]
    frame = apart(800).assign(label=np.where(melanoma, "MEL", "NV"), exposure=generator.random(80)[group])
    (found,) = (row for row in properties.measure(frame, group) if row["name"] == "exposure")
    assert not found["warning"]
    assert found["low"] < 0.5 < found["high"]
    (leaked,) = (row for row in properties.measure(frame, np.arange(800)) if row["name"] == "exposure")
    assert leaked["auc"] > 0.7


def test_every_fold_has_both_kinds_where_groups_are_mixed() -> None:
    """Of 200 patients with a melanoma ten have another lesion, too; nobody has only others."""
    frame = apart(400).assign(label="MEL", exposure=np.arange(400) / 400)
    frame.loc[21:40:2, "label"] = "NV"
    (found,) = (r for r in properties.measure(frame, np.repeat(np.arange(200), 2)) if r["name"] == "exposure")
    assert found["auc"] is not None
    assert 0 <= found["auc"] <= 1


def test_too_few_melanomas_tell_nothing() -> None:
    frame = apart(100).assign(label=["MEL"] * 9 + ["NV"] * 91, exposure=np.arange(100) / 100)
    assert measured(frame)["exposure"]["note"] == "fewer than 10 groups with melanoma, or without"
    assert {row["auc"] for row in examine(frame)["properties"]} == {None}


def test_the_area_is_that_of_scikit_learn() -> None:
    generator = np.random.default_rng(0)
    for _ in range(20):
        positive = generator.random(200) < 0.3
        score = np.round(generator.normal(positive, 1), 1)  # with ties
        fold = generator.integers(0, 3, 200)
        auc, low, high = properties.cross_validated_auc(positive, score, fold, np.arange(200))
        wanted = np.mean([roc_auc_score(positive[fold == f], score[fold == f]) for f in range(3)])
        assert auc == pytest.approx(wanted, abs=1e-12)
        assert low is not None
        assert high is not None
        assert low < auc < high


def test_the_interval_covers_the_true_area_also_of_grouped_images() -> None:
    generator = np.random.default_rng(0)
    group = np.repeat(np.arange(120), 3)
    truth = norm.cdf(1 / np.sqrt(2))
    covered = 0
    for _ in range(500):
        positive = np.repeat(generator.random(120) < 0.4, 3)
        score = positive + np.sqrt(0.8) * generator.normal(size=120)[group] + np.sqrt(0.2) * generator.normal(size=360)
        _, low, high = properties.cross_validated_auc(positive, score, np.zeros(360), group)
        assert low is not None
        assert high is not None
        covered += low <= truth <= high
    assert 0.92 <= covered / 500 <= 0.98


@pytest.mark.slow
def test_the_interval_covers_one_half_where_nothing_is_to_be_learned() -> None:
    """With all that is fitted: the interval of scores taken as given covers 85% (51 of 60)."""
    generator = np.random.default_rng(0)
    covered = 0
    for _ in range(60):
        frame = apart(300).assign(label=generator.choice(["MEL", "NV"], 300), exposure=generator.random(300))
        found = measured(frame)["exposure"]
        covered += found["low"] <= 0.5 <= found["high"]
    assert covered >= 55


# --- several catalogs ------------------------------------------------------------------------------------------------


def written(folder: Path, **frames: pd.DataFrame) -> list[str]:
    for name, frame in frames.items():
        schema.write(str(folder / f"{name}.parquet"), frame)
    return [str(folder / f"{name}.parquet") for name in frames]


def test_the_same_catalog_twice_is_said_and_dropped(tmp_path: Path) -> None:
    uris = written(tmp_path, a=clean(), b=clean().assign(split=None))
    frame, repeats = read([uris[0], uris[0], uris[1]])
    assert (len(frame), repeats) == (300, 600)
    assert set(frame["split"]) == set(schema.SPLITS)
    answer = examine(frame, repeats=repeats)
    assert audit.is_clean(answer)
    assert answer["summary"]["repeats"] == 600


def test_a_file_of_two_splits_in_two_catalogs_is_a_leak(tmp_path: Path) -> None:
    frame, repeats = read(written(tmp_path, a=apart(5), b=with_cells(apart(5), split=("test",))))
    assert (len(frame), repeats) == (6, 4)
    assert findings(examine(frame), "leaks") == [(["image_id", "sha256"], ["0.jpg", "0.jpg"])]


@pytest.mark.parametrize("column", ["lesion_id", "patient_id", "group_id"])
@pytest.mark.parametrize("names", ["ab", "ba"])
def test_what_only_one_of_two_catalogs_of_the_same_files_knows(tmp_path: Path, column: str, names: str) -> None:
    plain = with_cells(apart(5), split=("train", "test"))
    frames = {"a": plain, "b": with_cells(plain, **{column: ("joined", "joined")})}
    frame, repeats = read(written(tmp_path, **{name: frames[name] for name in names}))
    assert (len(frame), repeats) == (5, 5)
    assert findings(examine(frame), "leaks") == [([column], ["0.jpg", "1.jpg"])]


def test_groups_of_two_catalogs_are_not_one_by_their_name(tmp_path: Path) -> None:
    other = apart(5).assign(
        uri=[f"/y/{n}" for n in range(5)], sha256=[f"y{n}" for n in range(5)], split="test", image_id=None
    )
    frame, _ = read(written(tmp_path, a=apart(5), b=other))
    assert audit.is_clean(examine(frame))


# --- the command, the report -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def faulty(tmp_path_factory: pytest.TempPathFactory, lesion: Callable[..., bytes]) -> Path:
    """A set with one leak, one contradiction and one label against the reference, its catalog and the reference."""
    folder = tmp_path_factory.mktemp("faulty")
    files = {
        "Train/melanoma/ISIC_0000001.jpg": lesion("MEL", 1),
        "Train/nevus/ISIC_0000002.jpg": lesion("NV", 2),
        "Test/melanoma/ISIC_0000003.jpg": lesion("MEL", 1),
        "Test/nevus/<b>d & e.jpg": lesion("NV", 3),
        "Test/melanoma/e.jpg": lesion("NV", 3),
        "Test/nevus/broken.jpg": lesion("NV", 4)[:500],
    }
    for name, data in files.items():
        (folder / "set" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "set" / name).write_bytes(data)
    schema.write(str(folder / "c.parquet"), build([str(folder / "set")]))
    (folder / "reference.csv").write_text("image,MEL,NV\nISIC_0000001,1,0\nISIC_0000002,1,0\n")
    return folder


def test_the_command_says_what_it_found(command: Command, faulty: Path) -> None:
    said = command("audit", faulty / "c.parquet", "--reference", faulty / "reference.csv")
    assert (said.code, said.err) == (1, "")
    lines = said.out.splitlines()
    assert lines[0] == "6 images: 1 leak, 1 contradictory label, 1 id against the reference."
    assert "- 1 of 4 test images has a relative in train (1 same bytes, 1 same stored group)." in lines
    assert "- 1 photograph is both MEL and NV." in lines
    assert "- 1 id of label NV: MEL by the reference." in lines
    assert "- 1 image cannot be decoded." in lines
    said = command("audit", faulty / "c.parquet", "--json")
    answer = json.loads(said.out)
    assert (said.code, answer["summary"]["leaks"], answer["reference"]) == (1, 1, None)
    assert findings(answer, "leaks") == [(["sha256"], ["ISIC_0000001.jpg", "ISIC_0000003.jpg"])]


def test_the_command_ends_with_1_on_a_label_against_the_reference_alone(
    command: Command, lesions: Path, tmp_path: Path
) -> None:
    schema.write(str(tmp_path / "c.parquet"), build([str(lesions)]))
    assert command("audit", tmp_path / "c.parquet").code == 0
    (tmp_path / "r.csv").write_text("image_id,label\nMEL-0,nevus\nNV-0,nevus\n")
    assert command("audit", tmp_path / "c.parquet", "--reference", tmp_path / "r.csv").code == 1
    (tmp_path / "r.csv").write_text("image_id,label\nMEL-0,melanoma\nNV-0,nevus\n")
    assert command("audit", tmp_path / "c.parquet", "--reference", tmp_path / "r.csv").code == 0
    (tmp_path / "r.csv").write_text("id,label\n")
    said = command("audit", tmp_path / "c.parquet", "--reference", tmp_path / "r.csv")
    assert (said.code, said.out) == (2, "")
    assert re.fullmatch(r"melanoma: The reference .* needs a column image_id [^\n]*\n", said.err)


def test_findings_beyond_the_first_are_counted(command: Command, tmp_path: Path) -> None:
    frame = apart(20).assign(sha256=[f"{n % 10}" for n in range(20)], split=["train"] * 10 + ["test"] * 10)
    schema.write(str(tmp_path / "c.parquet"), frame)
    said = command("audit", tmp_path / "c.parquet", "--out", tmp_path / "out")
    assert f"and 5 more: see {tmp_path}/out/audit.html" in said.out
    page = (tmp_path / "out/audit.html").read_text()
    assert page.count("no picture") == 20


def test_the_report_is_one_page_with_the_pictures(command: Command, faulty: Path, bucket: str, s3: Any) -> None:
    out = f"s3://{bucket}/reports/audit"
    said = command("audit", faulty / "c.parquet", "--reference", faulty / "reference.csv", "--out", out)
    assert said.code == 1
    assert said.out.splitlines()[-1] == f"Report: {out}/audit.html"
    folder = s3.root / bucket / "reports/audit"
    answer = json.loads((folder / "audit.json").read_text())
    assert answer["summary"]["contradictions"] == 1
    page = (folder / "audit.html").read_text()
    # A leak of two, a contradiction of two, one against the reference.
    assert page.count('src="data:image/jpeg;base64,') == 5
    assert "no picture" not in page
    assert not re.search(r"<script|https?://|url\(", page)
    assert "default-src 'none'" in page
    assert "<b>d" not in page
    assert "&lt;b&gt;d &amp; e" in page


def test_the_report_leaves_out_what_is_too_much(tmp_path: Path) -> None:
    count = 2 * audit_page.SETS_SHOWN + 10
    frame = apart(count).assign(
        sha256=[f"{n // 2}" for n in range(count)], split=["train", "test"] * (count // 2), error="gone"
    )
    answer = examine(frame)
    audit_page.write(str(tmp_path), answer)
    page = (tmp_path / "audit.html").read_text()
    assert page.count('class="card set"') == audit_page.SETS_SHOWN
    assert "5 more sets are left out here" in page
    assert len(json.loads((tmp_path / "audit.json").read_text())["leaks"]["findings"]) == audit_page.SETS_SHOWN + 5


def test_the_page_does_not_show_who_may_be_known(tmp_path: Path) -> None:
    for name in ("melanoma", "nevus"):  # the same picture under two labels
        (tmp_path / name).mkdir()
        data = dicom_file([draw_lesion("NV", 1, 90, 90)], RecognizableVisualFeatures="YES")
        (tmp_path / name / "a.dcm").write_bytes(data)
    schema.write(str(tmp_path / "catalog.parquet"), build([str(tmp_path)]))
    frame, repeats = audit.read([str(tmp_path / "catalog.parquet")])
    audit_page.write(str(tmp_path / "out"), audit.examine(frame, None, repeats))
    html = (tmp_path / "out" / "audit.html").read_text()
    assert html.count("no picture") == 2
    assert "data:image/jpeg" not in html
