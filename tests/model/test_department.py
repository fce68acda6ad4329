"""The file of an operating point: what it changes of a bundle, and what is refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from melanoma.errors import InputError
from melanoma.model.bundle import Bundle
from melanoma.model.department import at_operating_point
from melanoma.model.predictor import Outputs, columns

Write = Callable[..., str]


@pytest.fixture
def write(bundle: Bundle, tmp_path: Path) -> Write:
    """Writes an operating point of `bundle` with other values of some keys, and returns where it lies."""

    def call(**values: Any) -> str:
        tree = {
            "model_version": bundle.version,
            "created": "2026-11-20T01:02:03+00:00",
            "question": "malignancy",
            "thresholds": {"review": 0.2, "urgent": 0.4, "malignancy": {"review": 0.3, "urgent": 0.5}},
            "catalog": "catalog.parquet",
            "catalog_fingerprint": "0" * 64,
            "split": "test",
            "n": 9,
            "alerts_per_1000": {},
            "by_source": [],
        }
        path = tmp_path / "point.json"
        path.write_text(json.dumps(tree | values))
        return str(path)

    return call


def test_a_bundle_takes_the_thresholds_and_stays_the_model_that_it_is(bundle: Bundle, write: Write) -> None:
    taken = at_operating_point(bundle, write())
    assert (taken.version, taken.model) == (bundle.version, bundle.model)
    assert (taken.thresholds.review, taken.thresholds.urgent) == (0.2, 0.4)
    assert at_operating_point(bundle, None) is bundle
    pixels = np.full((1, bundle.input_size, bundle.input_size, 3), 128, dtype=np.uint8)
    # BCC at nearly 1: malignant, and no melanoma.
    logits = np.array([[0, 9, 0, 0, 0, 0, 0, 0, 0]], dtype=np.float32)
    outputs = Outputs(logits, np.zeros((1, 4), dtype=np.float32))
    names = ["alert_level", "alert_reason", "threshold", "threshold_urgent"]
    names += ["threshold_malignancy", "threshold_malignancy_urgent"]
    found = {name: values[0] for name, values in columns(taken, pixels, outputs).items() if name in names}
    assert tuple(found.values()) == ("urgent", "malignancy", 0.2, 0.4, 0.3, 0.5)
    found = {name: values[0] for name, values in columns(bundle, pixels, outputs).items() if name in names}
    own = bundle.thresholds
    assert tuple(found.values()) == ("none", None, own.review, own.urgent, None, None)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"model_version": "0123456789abcdef"}, "was made for the model 0123456789abcdef, and not for"),
        ({"thresholds": {"review": 0.2}}, "is not an operating point"),
        ({"thresholds": {"review": float("nan"), "urgent": 0.4}}, "has thresholds that are none"),
        ({"thresholds": {"review": 0.5, "urgent": 0.4}}, "has thresholds that are none"),
        (
            {"thresholds": {"review": 0.2, "urgent": 0.4, "malignancy": {"review": 0.5, "urgent": 0.4}}},
            "has thresholds that are none",
        ),
    ],
)
def test_what_is_no_operating_point_of_this_model_is_refused(
    bundle: Bundle, write: Write, values: dict[str, Any], words: str
) -> None:
    with pytest.raises(InputError, match=words):
        at_operating_point(bundle, write(**values))


def test_a_file_that_is_not_there_or_no_json_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"The operating point .*none.json cannot be read"):
        at_operating_point(bundle, str(tmp_path / "none.json"))
    (tmp_path / "text.json").write_text("review: 0.2")
    with pytest.raises(InputError, match="is not an operating point"):
        at_operating_point(bundle, str(tmp_path / "text.json"))
