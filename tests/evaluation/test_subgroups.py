import json
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score

from melanoma.evaluation.intervals import proportion
from melanoma.evaluation.metrics import to_json
from melanoma.evaluation.subgroups import GroupCount, binned, counts, subgroups
from melanoma.taxonomy import CODES


def table(n: int = 200, seed: int = 0) -> pd.DataFrame:
    """Two images a lesion, a third of the lesions melanoma."""
    rng = np.random.default_rng(seed)
    lesion = np.arange(n) // 2
    melanoma = lesion % 3 == 0
    p = np.clip(rng.normal(0.2 + 0.3 * melanoma, 0.2), 0, 1)
    frame = pd.DataFrame({f"p_{code}": np.zeros(n) for code in CODES})
    frame["p_MEL"], frame["p_NV"], frame["p_melanoma"], frame["threshold"] = p, 1 - p, p, 0.3
    frame["label"], frame["group_id"] = np.where(melanoma, "MEL", "NV"), [f"lesion-{i}" for i in lesion]
    frame["image_id"] = frame["uri"] = [f"image-{i}" for i in range(n)]
    return frame


def test_figures_of_a_group_are_those_of_its_images_alone() -> None:
    frame = table()
    sex = np.array(["male", "female", "male", None], dtype=object)[np.arange(200) // 10 % 4]
    found = subgroups(frame, "sex", sex.tolist(), resamples=100)
    assert found.column == "sex"
    assert [group.value for group in found.groups] == ["female", "male", "unknown"]
    assert sum(group.n for group in found.groups) == 200
    for group in found.groups:
        part = frame[[str(value or "unknown") == group.value for value in sex]]
        melanoma, raised = part["label"] == "MEL", part["p_melanoma"] >= 0.3
        assert (group.n, group.n_melanoma) == (len(part), melanoma.sum())
        assert group.n_groups == part["group_id"].nunique()
        of_melanoma = part["group_id"][melanoma].to_numpy()
        assert group.sensitivity == proportion(raised[melanoma].to_numpy(), of_melanoma)
        assert group.specificity.value == (~raised[~melanoma]).mean()
        assert group.melanoma_auc.value == pytest.approx(roc_auc_score(melanoma, part["p_melanoma"]), abs=1e-9)
        auc = group.melanoma_auc
        assert (auc.low or 1) < (auc.value or 0) < (auc.high or 0)
        assert group.mean_p_melanoma == pytest.approx(part["p_melanoma"].mean(), abs=1e-12)
        assert group.share_of_melanoma.value == melanoma.mean()
    json.dumps(to_json(found), allow_nan=False)


def test_a_group_without_melanoma_has_no_sensitivity_but_is_not_dropped() -> None:
    frame = table(40)
    values = np.where(frame["label"] == "MEL", "back", "hand").tolist()
    back, hand = subgroups(frame, "anatomic_site", values, resamples=10).groups
    assert (back.specificity.value, hand.sensitivity.value) == (None, None)
    assert (back.melanoma_auc.value, hand.melanoma_auc.value) == (None, None)


@pytest.mark.parametrize(
    ("column", "values", "names", "order"),
    [
        (
            "age",
            [29, 30.0, 49.9, 50, 69, 70, 85, None, float("nan"), 0],
            [
                *("under 30", "30 to 49", "30 to 49", "50 to 69", "50 to 69", "70 and over", "70 and over"),
                *("unknown", "unknown", "under 30"),
            ],
            ["under 30", "30 to 49", "50 to 69", "70 and over", "unknown"],
        ),
        ("age", [75.0, 20.0], ["70 and over", "under 30"], ["under 30", "70 and over"]),
        ("sex", ["male", None, "female", "unknown"], ["male", "unknown", "female", "unknown"], None),
        ("width", [600, 1024, 600, None], ["600", "1024", "600", "unknown"], ["600", "1024", "unknown"]),
        ("width", [None, None], ["unknown"] * 2, ["unknown"]),
        (
            "exposure",
            list(range(12)),
            ["under 2.75"] * 3 + ["2.75 to under 5.5"] * 3 + ["5.5 to under 8.25"] * 3 + ["8.25 and over"] * 3,
            ["under 2.75", "2.75 to under 5.5", "5.5 to under 8.25", "8.25 and over"],
        ),
    ],
)
def test_bins(column: str, values: list[Any], names: list[str], order: list[str] | None) -> None:
    assert binned(column, values) == (names, order or ["female", "male", "unknown"])


def test_quarters_of_a_number_that_is_mostly_one_value_are_fewer() -> None:
    names, order = binned("dark_border", [0.0] * 90 + [i / 10 for i in range(1, 11)])
    assert order == ["0 and over"] or len(order) < 4
    assert len(names) == 100


def test_counts() -> None:
    found = counts(table(12), "source", ["a"] * 4 + ["b"] * 7 + [None])
    assert found.groups == [
        GroupCount("a", n=4, n_melanoma=2, n_melanoma_unknown=0, n_malignant=2, n_groups=2),
        GroupCount("b", n=7, n_melanoma=2, n_melanoma_unknown=0, n_malignant=2, n_groups=4),
        GroupCount("unknown", n=1, n_melanoma=0, n_melanoma_unknown=0, n_malignant=0, n_groups=1),
    ]


def test_a_column_of_names_is_refused() -> None:
    with pytest.raises(ValueError, match="'image_id' has 200 values: choose one with at most 50"):
        subgroups(table(), "image_id", [f"image-{i}" for i in range(200)])
