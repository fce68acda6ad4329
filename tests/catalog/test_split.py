from typing import Any

import numpy as np
import pandas as pd
import pytest

from melanoma.catalog import schema
from melanoma.catalog.leaks import split_groups
from melanoma.catalog.split import split
from melanoma.errors import InputError


def catalog(groups: list[tuple[str | None, int]], **columns: Any) -> pd.DataFrame:
    """One row an image: `groups` gives label and size of each group."""
    rows = [
        {"group_id": f"g{group:05d}", "label": label, "sha256": f"{group}-{member}", "image_id": f"{group}-{member}"}
        for group, (label, size) in enumerate(groups)
        for member in range(size)
    ]
    frame = pd.DataFrame(rows, columns=schema.SCHEMA.names, dtype=object)
    return frame.where(frame.notna(), None).assign(**columns)


def realistic(seed: int = 0) -> pd.DataFrame:
    """2,000 groups of HAM10000's shares, most of one image, some of up to six."""
    generator = np.random.default_rng(seed)
    labels = generator.choice(
        ["NV", "MEL", "BKL|SK", "BCC", "AK|SCC", "VASC", "DF"], 2000, p=[0.67, 0.11, 0.11, 0.05, 0.03, 0.015, 0.015]
    )
    return catalog(
        [(label, int(size)) for label, size in zip(labels, np.minimum(generator.geometric(0.75, 2000), 6), strict=True)]
    )


@pytest.mark.parametrize("shares", [(0.15, 0.15), (0.2, 0.0), (0.0, 0.3), (0.4, 0.4)])
def test_every_label_has_its_share_and_no_group_two_splits(shares: tuple[float, float]) -> None:
    frame = realistic()
    result = split(frame, *shares, seed=1)
    assert result["split"].notna().all()
    assert (result.groupby("group_id")["split"].nunique() == 1).all()
    assert split_groups(result) == []
    for _, rows in result.groupby("label"):
        found = rows["split"].value_counts(normalize=True).reindex(["validation", "test"], fill_value=0)
        # No group has more than six images.
        np.testing.assert_allclose(found.to_numpy(), shares, atol=6 / len(rows))


def test_the_catalog_itself_stays_as_it_is() -> None:
    frame = realistic()
    before = frame.copy()
    result = split(frame, 0.15, 0.15, seed=0)
    pd.testing.assert_frame_equal(frame, before)
    pd.testing.assert_frame_equal(result.drop(columns="split"), frame.drop(columns="split"))


def test_the_seed_decides_and_the_order_of_the_rows_does_not() -> None:
    frame = realistic()

    def splits(frame: pd.DataFrame, seed: int) -> dict[str, str]:
        result = split(frame, 0.15, 0.15, seed)
        return dict(zip(result["image_id"], result["split"], strict=True))

    first = splits(frame, 5)
    assert splits(frame, 5) == first
    assert splits(frame.sample(frac=1, random_state=0), 5) == first
    assert splits(frame.sample(frac=1, random_state=0).reset_index(drop=True), 5) == first
    for seed in range(3):
        moved = sum(first[image] != where for image, where in splits(frame, seed).items())
        assert moved > 200


def test_a_brought_test_split_is_kept_and_its_groups_set_aside() -> None:
    frame = realistic()
    frame["split"] = np.where(np.arange(len(frame)) % 10 == 0, "test", "train")
    result = split(frame, 0.2, 0.0, seed=0)
    brought = frame["split"] == "test"
    assert (result["split"] == "test").tolist() == brought.tolist()
    relatives = frame["group_id"].isin(set(frame["group_id"][brought])) & ~brought
    assert relatives.sum() > 50
    assert result["split"][relatives].isna().all()
    assert set(result["split"][~relatives & ~brought]) == {"train", "validation"}
    assert split_groups(result) == []
    # Splitting again is no other thing.
    pd.testing.assert_series_equal(split(result, 0.2, 0.0, seed=0)["split"], result["split"])


def test_a_brought_test_split_leaves_no_place_for_another() -> None:
    frame = catalog([("MEL", 1), ("NV", 1)], split=["test", None])
    with pytest.raises(InputError, match=r"brings its own test split \(1 images\)"):
        split(frame, 0.1, 0.1, seed=0)


def test_a_brought_test_split_is_set_aside_with_its_groups_where_that_is_asked_for() -> None:
    frame = realistic()
    frame["split"] = np.where(np.arange(len(frame)) % 10 == 0, "test", "train")
    result = split(frame, 0.1, 0.2, seed=0, given_test="aside")
    aside = frame["group_id"].isin(set(frame.loc[frame["split"] == "test", "group_id"]))
    assert aside.sum() > (frame["split"] == "test").sum()
    assert result["split"].isna().tolist() == aside.tolist()
    shares = result.loc[~aside, "split"].value_counts(normalize=True)
    np.testing.assert_allclose(shares[["validation", "test"]], [0.1, 0.2], atol=0.01)
    assert split_groups(result) == []


def test_a_brought_test_split_that_is_everything_cannot_be_set_aside() -> None:
    frame = catalog([("MEL", 2), ("NV", 1)], split=["test", None, "test"])
    with pytest.raises(InputError, match="Every image belongs to a group of the catalog's own test split"):
        split(frame, 0.1, 0.1, seed=0, given_test="aside")
    assert split(frame, 0.1, 0.0, seed=0)["split"].tolist() == ["test", None, "test"]


def test_every_label_of_every_source_has_its_share() -> None:
    """A group that two sources share is dealt whole."""
    groups: list[tuple[str | None, int]] = [
        *[("MEL", 1)] * 20,
        *[("NV", 1)] * 200,
        *[("MEL", 1)] * 40,
        *[("NV", 1)] * 20,
    ]
    frame = catalog(groups, source=["a"] * 220 + ["b"] * 60)
    for seed in range(5):
        result = split(frame, 0.25, 0.25, seed)
        counts = result.groupby(["source", "label"])["split"].value_counts().unstack()
        expected = {
            ("a", "MEL"): [5, 5, 10],
            ("a", "NV"): [50, 50, 100],
            ("b", "MEL"): [10, 10, 20],
            ("b", "NV"): [5, 5, 10],
        }
        assert counts[["validation", "test", "train"]].T.to_dict("list") == expected
    frame.loc[frame.index[-20:], "group_id"] = frame["group_id"].iloc[:20].tolist()
    result = split(frame, 0.25, 0.25, seed=0)
    assert result["split"].notna().all()
    assert split_groups(result) == []


def test_one_source_is_split_as_if_there_were_none() -> None:
    frame = realistic()
    named = split(frame.assign(source="ham10000"), 0.15, 0.15, seed=3)
    assert named["split"].tolist() == split(frame, 0.15, 0.15, seed=3)["split"].tolist()


def test_only_usable_images_are_split() -> None:
    frame = catalog([("MEL", 2), (None, 2), ("NV", 4)], error=[None, None, None, None, "broken", None, None, None])
    frame.loc[4, "split"] = "test"
    result = split(frame, 0.0, 0.0, seed=0)
    assert result["split"].tolist() == ["train", "train", None, None, None, "train", "train", "train"]


def test_tiny_classes() -> None:
    """One image of a class is trained on; of ten groups, each split has some."""
    frame = catalog([("DF", 1), ("VASC", 1), ("VASC", 1), *[("MEL", 1)] * 10])
    for seed in range(5):
        result = split(frame, 0.2, 0.2, seed)
        assert result["split"][0] == "train"
        assert "train" in set(result["split"][1:3])
        assert result["split"][3:].value_counts().to_dict() == {"train": 6, "validation": 2, "test": 2}


def test_a_group_larger_than_its_share_stays_whole() -> None:
    result = split(catalog([("MEL", 50), ("MEL", 1), ("MEL", 1), ("MEL", 1)]), 0.2, 0.2, seed=0)
    assert result["split"][:50].nunique() == 1
    assert result["split"].notna().all()


def test_a_group_of_two_labels_counts_for_the_more_frequent() -> None:
    frame = catalog([*[("NV", 3)] * 40, *[("MEL", 1)] * 40])
    frame.loc[frame.index % 3 == 1, "label"] = "MEL"
    result = split(frame, 0.5, 0.0, seed=0)
    assert (result.groupby("group_id")["split"].nunique() == 1).all()


@pytest.mark.parametrize("shares", [(-0.1, 0.1), (0.5, 0.5), (0.1, 1.0), (float("nan"), 0.1), (0.1, float("nan"))])
def test_shares_that_leave_nothing_to_train_are_refused(shares: tuple[float, float]) -> None:
    with pytest.raises(InputError, match="must be 0 or more, and together below 1"):
        split(realistic(), *shares, seed=0)


def test_a_catalog_without_labels_is_refused() -> None:
    with pytest.raises(InputError, match="nothing to split"):
        split(catalog([(None, 3)]), 0.1, 0.1, seed=0)
