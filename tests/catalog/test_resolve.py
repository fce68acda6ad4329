"""Repair by rule: what changes, what is noted of it, and that nothing is lost."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from melanoma import config
from melanoma.catalog import build, resolve, schema
from melanoma.catalog import split as splitting
from melanoma.errors import InputError

Lesion = Callable[..., bytes]
ROOT = Path(__file__).parents[2]


@pytest.fixture
def broken(tmp_path: Path, lesion: Lesion) -> pd.DataFrame:
    """A set with the faults of the nine-class one: photographs in two folders, and in Train and Test."""
    photographs = {code: [lesion(code, seed) for seed in range(6)] for code in ("MEL", "AK", "NV")}

    def put(split: str, folder: str, number: int, data: bytes) -> None:
        path = tmp_path / "set" / split / folder / f"ISIC_{number:07}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)

    for seed, data in enumerate(photographs["MEL"]):
        put("Train", "melanoma", seed, data)
    for seed, data in enumerate(photographs["MEL"][:2]):
        put("Train", "seborrheic keratosis", seed, data)
    put("Test", "seborrheic keratosis", 2, photographs["MEL"][2])
    for seed, data in enumerate(photographs["AK"]):
        put("Test" if seed < 2 else "Train", "actinic keratosis", 10 + seed, data)
        put("Train", "nevus", 10 + seed, data)
    for seed, data in enumerate(photographs["NV"]):
        put("Train", "nevus", 20 + seed, data)
    put("Train", "nevus", 30, photographs["NV"][0])  # the same bytes under another id
    put("Train", "seborrheic keratosis", 40, lesion("SK", 40))
    return build.build([str(tmp_path / "set")])


def rules(*entries: dict[str, Any]) -> resolve.Rules:
    return config.load(resolve.Rules, None, rules=[{"reason": "because", **entry} for entry in entries])


def labels(frame: pd.DataFrame) -> dict[str, list[str]]:
    """The labels in use, by image id."""
    used = frame[frame["label"].notna()]
    return {str(i): sorted(rows["label"]) for i, rows in used.groupby("image_id")}


def test_the_preferred_label_wins_wherever_both_are_given(broken: pd.DataFrame) -> None:
    frame, counts = resolve.resolve(broken, rules({"rule": "prefer", "label": "MEL", "over": "SK"}))
    assert counts == [3]
    assert labels(frame)["ISIC_0000000"] == ["MEL", "MEL"]
    assert labels(frame)["ISIC_0000040"] == ["SK"]  # it lies under no other
    changed = frame[frame["changes"].notna()]
    assert changed["changes"].unique().tolist() == ["label SK became MEL: because"]
    assert set(changed["image_id"]) == {"ISIC_0000000", "ISIC_0000001", "ISIC_0000002"}


def test_a_label_or_named_images_get_another_label(broken: pd.DataFrame) -> None:
    frame, counts = resolve.resolve(
        broken,
        rules(
            {"rule": "relabel", "label": "nevus", "to": "AK", "image_ids": ["ISIC_0000020", "ISIC_0000000"]},
            {"rule": "relabel", "label": "SK", "to": "BKL"},
        ),
    )
    assert counts == [1, 4]
    assert labels(frame)["ISIC_0000020"] == ["AK"]
    assert labels(frame)["ISIC_0000000"] == ["BKL", "MEL"]


def test_one_copy_is_kept_and_the_others_keep_their_row(broken: pd.DataFrame) -> None:
    frame, counts = resolve.resolve(
        broken,
        rules(
            {"rule": "prefer", "label": "MEL", "over": "SK"},
            {"rule": "prefer", "label": "AK", "over": "NV"},
            {"rule": "drop_copies", "keep": ["test", "train", "validation"]},
        ),
    )
    assert len(frame) == len(broken)
    assert counts == [3, 6, 10]
    assert all(len(of_id) == 1 for of_id in labels(frame).values())
    kept = frame[frame["label"].notna()].set_index("image_id")
    assert kept.loc[["ISIC_0000002", "ISIC_0000010", "ISIC_0000011"], "split"].tolist() == ["test"] * 3
    assert ("ISIC_0000020" in kept.index) != ("ISIC_0000030" in kept.index)  # the same bytes
    dropped = frame[schema.dropped(frame)]
    assert len(dropped) == 10
    assert dropped["split"].isna().all()
    assert "label NV became AK: because; dropped (was AK, train): because" in set(dropped["changes"])
    assert len(schema.usable(frame, "all")) == len(kept)


def test_copies_under_labels_that_no_rule_has_settled_stay(broken: pd.DataFrame) -> None:
    frame, counts = resolve.resolve(broken, rules({"rule": "drop_copies"}))
    assert counts == [1]  # the same bytes twice under nevus
    assert labels(frame)["ISIC_0000000"] == ["MEL", "SK"]
    assert labels(frame)["ISIC_0000010"] == ["AK", "NV"]


def test_within_a_source_a_photograph_of_two_sources_stays_in_both(broken: pd.DataFrame) -> None:
    """The other set has the nevi once each, scaled: the ids tell that they are the same."""
    nevi = (broken["label"] == "NV") & broken["image_id"].between("ISIC_0000020", "ISIC_0000025")
    scaled = broken[nevi].assign(source="other", sha256=[f"scaled {i}" for i in range(6)], split=None)
    both = pd.concat([broken, scaled.assign(uri="other/" + scaled["image_id"])], ignore_index=True)
    across, counts = resolve.resolve(both, rules({"rule": "drop_copies"}))
    assert counts == [7]
    assert "other" not in set(across.loc[across["label"].notna(), "source"])
    within, counts = resolve.resolve(both, rules({"rule": "drop_copies", "within_source": True}))
    assert counts == [1]
    assert within.loc[within["source"] == "other", "label"].tolist() == ["NV"] * 6
    alone, _ = resolve.resolve(broken, rules({"rule": "drop_copies"}))
    pd.testing.assert_frame_equal(within[within["source"] != "other"], alone)


def test_images_are_dropped_by_label_or_by_id(broken: pd.DataFrame) -> None:
    frame, counts = resolve.resolve(
        broken,
        rules({"rule": "drop", "label": "SK"}, {"rule": "drop", "image_ids": ["ISIC_0000020"]}),
    )
    assert counts == [4, 1]
    assert "SK" not in set(frame["label"])
    assert "ISIC_0000020" not in labels(frame)


def test_named_images_and_all_that_hangs_on_them_share_a_group(broken: pd.DataFrame) -> None:
    frame, _ = resolve.resolve(broken, rules({"rule": "group", "image_ids": ["ISIC_0000020", "ISIC_0000005"]}))
    groups = frame.groupby("image_id")["group_id"].agg(set)
    assert groups["ISIC_0000020"] == groups["ISIC_0000005"] == groups["ISIC_0000030"]
    assert len(groups["ISIC_0000020"]) == 1
    assert groups["ISIC_0000021"] != groups["ISIC_0000020"]


def test_train_images_of_a_group_in_test_are_set_aside(broken: pd.DataFrame) -> None:
    frame, counts = resolve.resolve(broken, rules({"rule": "set_aside", "split": "train", "when_in": "test"}))
    assert counts == [3]
    split = {(i, label): s for i, label, s in zip(frame["image_id"], frame["label"], frame["split"], strict=True)}
    assert split["ISIC_0000010", "NV"] is None
    assert split["ISIC_0000010", "AK"] == "test"
    assert split["ISIC_0000002", "MEL"] is None
    assert split["ISIC_0000000", "MEL"] == "train"


def test_a_later_rule_sees_what_an_earlier_one_did_and_both_are_noted(broken: pd.DataFrame) -> None:
    frame, counts = resolve.resolve(
        broken, rules({"rule": "prefer", "label": "MEL", "over": "SK"}, {"rule": "relabel", "label": "MEL", "to": "NV"})
    )
    assert counts == [3, 9]
    first = frame[frame["image_id"] == "ISIC_0000000"]["changes"]
    assert "label SK became MEL: because; label MEL became NV: because" in set(first)


def test_the_rules_of_the_nine_class_set_are_survived_by_no_contradiction(broken: pd.DataFrame, tmp_path: Path) -> None:
    nine_classes = config.load(resolve.Rules, str(ROOT / "configs" / "isic9.yaml"))
    # Only the two that are named are relabelled: elsewhere a seborrheic keratosis under no other label is one.
    assert resolve.resolve(broken, nine_classes)[1][:3] == [3, 6, 0]
    broken = broken.replace({"image_id": {"ISIC_0000040": "ISIC_0011118"}})
    frame, counts = resolve.resolve(broken, nine_classes)
    assert counts[:3] == [3, 6, 1]
    assert all(len(of_id) == 1 for of_id in labels(frame).values())
    in_splits = frame[frame["split"].notna()]
    assert (in_splits.groupby("group_id")["split"].nunique() == 1).all()
    # The changes live on in the file, and in the split that is made of it.
    schema.write(str(tmp_path / "catalog.parquet"), frame)
    repeated = splitting.split(schema.read(str(tmp_path / "catalog.parquet")), validation=0.2, test=0.0, seed=0)
    assert repeated["changes"].tolist() == frame["changes"].tolist()
    assert repeated.loc[schema.dropped(repeated), "split"].isna().all()


@pytest.mark.parametrize(
    ("entry", "hint"),
    [
        ({"rule": "prefer", "label": "MEL"}, "over' is missing"),
        ({"rule": "prefer", "label": "MEL", "over": "wart"}, "'wart': is no diagnosis known here"),
        ({"rule": "repair"}, "rules.0"),
        ({"rule": "drop"}, "give a label or image_ids"),
        ({"rule": "relabel", "label": "SK", "to": "MEL", "reason": ""}, "reason"),
        ({"rule": "drop", "labl": "SK"}, "Unknown key .*did you mean 'label'"),
    ],
)
def test_a_rule_that_cannot_be_read_is_one_sentence(entry: dict[str, Any], hint: str) -> None:
    with pytest.raises(InputError, match=hint):
        rules(entry)
