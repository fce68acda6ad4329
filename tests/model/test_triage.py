import numpy as np
import pyarrow as pa
import pytest

from melanoma.model import triage
from melanoma.model.manifest import Levels, Thresholds
from melanoma.scoring import tables

# DESIGN.md, section 5.
CODES = ["AK", "BCC", "DF", "MEL", "NV", "BKL", "SK", "SCC", "VASC"]
COLUMNS = [
    "run_id", "run_date", "scored_at", "image_uri", "image_id", "patient_id", "content_sha256", "model_version",
    "diagnosis", *(f"p_{code}" for code in CODES), "p_melanoma", "p_malignant", "alert_level", "threshold", "quality",
    "outlier_score",
]  # fmt: skip
ADDED = (
    *("frame", "study_uid", "body_site", "acquired_at", "is_held_back", "perceptual_hash", "alert_reason"),
    *("threshold_urgent", "threshold_malignancy", "threshold_malignancy_urgent"),
)


def test_an_image_at_a_threshold_is_raised() -> None:
    review, urgent = np.float32(0.3), np.float32(0.7)
    p = [np.nextafter(review, np.float32(0)), review, np.nextafter(review, np.float32(1))]
    p += [np.nextafter(urgent, np.float32(0)), urgent, np.nextafter(urgent, np.float32(1))]
    levels = triage.alert_levels(np.array(p, dtype=np.float32), float(review), float(urgent))
    assert levels == ["none", "review", "review", "review", "urgent", "urgent"]


def test_a_probability_is_compared_as_it_is() -> None:
    """A threshold between 0.3 as float32 and the next float32 is above it."""
    p = np.array([0.3], dtype=np.float32)
    assert triage.alert_levels(p, float(p[0]), 1.0) == ["review"]
    assert triage.alert_levels(p, float(np.nextafter(float(p[0]), 1.0)), 1.0) == ["none"]


@pytest.mark.parametrize(
    ("review", "urgent", "levels"),
    [
        (0.0, 0.0, ["urgent", "urgent", "urgent", "urgent"]),
        (0.0, 1.0, ["review", "review", "review", "urgent"]),
        (0.5, 0.5, ["none", "none", "urgent", "urgent"]),
        # An urgent image is always one to review.
        (0.5, 0.1, ["none", "none", "urgent", "urgent"]),
        (1.0, 1.0, ["none", "none", "none", "urgent"]),
    ],
)
def test_thresholds_at_the_ends(review: float, urgent: float, levels: list[str]) -> None:
    assert triage.alert_levels(np.array([0.0, 0.25, 0.5, 1.0], dtype=np.float32), review, urgent) == levels


def test_no_images_have_no_levels() -> None:
    assert triage.alert_levels(np.zeros(0, dtype=np.float32), 0.1, 0.2) == []


def test_the_columns_are_those_of_the_contract() -> None:
    assert [name for name in tables.SCORES.names if name not in ADDED] == COLUMNS
    assert set(tables.SCORES.names) == {*COLUMNS, *ADDED}
    assert tables.ALERTS.names == [*tables.SCORES.names, "rank", "explanation_uri", "copies", "first_raised"]
    assert set(tables.REJECTS.names) == {"run_id", "run_date", "image_uri", "error_kind", "error", "content_sha256"}
    for code in CODES:
        assert tables.SCORES.field(f"p_{code}").type == pa.float32()
    assert tables.SCORES.field("scored_at").type == pa.timestamp("us", tz="UTC")
    quality = tables.SCORES.field("quality").type
    assert [quality.field(place).name for place in range(quality.num_fields)] == ["sharpness", "exposure"]


def test_two_questions_give_the_higher_level_and_say_which_of_them_raised_an_image() -> None:
    thresholds = Thresholds(review=0.3, urgent=0.6, malignancy=Levels(review=0.5, urgent=0.8))
    p = np.array([[0.1, 0.2], [0.4, 0.4], [0.1, 0.9], [0.4, 0.5], [0.4, 0.8], [0.7, 0.7]], dtype=np.float32)
    expected = [
        ("none", None),
        ("review", "melanoma"),
        ("urgent", "malignancy"),
        ("review", "melanoma, malignancy"),
        ("urgent", "melanoma, malignancy"),
        ("urgent", "melanoma, malignancy"),
    ]
    found = triage.alerts(p[:, 0], p[:, 1], thresholds)
    assert list(zip(found["alert_level"], found["alert_reason"], strict=True)) == expected
    assert set(found["alert_reason"]) - {None} == set(triage.REASONS)


def test_a_bundle_that_does_not_ask_for_malignancy_raises_melanoma_alone() -> None:
    p = np.array([0.1, 0.4, 0.7], dtype=np.float32)
    found = triage.alerts(p, np.ones(3, dtype=np.float32), Thresholds(review=0.3, urgent=0.6))
    assert found == {"alert_level": ["none", "review", "urgent"], "alert_reason": [None, "melanoma", "melanoma"]}
