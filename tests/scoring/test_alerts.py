"""What a dermatologist is shown of what was raised: each photograph once, and whether it is new."""

from typing import Any

import pyarrow as pa
import pytest

from melanoma.scoring import alerts, tables

BASE = "0f" * 32


def near(value: str, bits: int) -> str:
    """A hash that differs in so many bits."""
    return f"{int(value, 16) ^ ((1 << bits) - 1):064x}"


def raised(*rows: dict[str, Any]) -> pa.Table:
    given = [{"content_sha256": f"sha {number}", **row} for number, row in enumerate(rows)]
    return pa.Table.from_pylist(given, schema=tables.SCORES)


def image(uri: str, p: float, value: str | None = None, **columns: Any) -> dict[str, Any]:
    return {"image_uri": uri, "p_melanoma": p, "perceptual_hash": value, "is_held_back": False, **columns}


def earlier(*rows: tuple[str, str | None, str], patient: str | None = None) -> pa.Table:
    names = ("content_sha256", "perceptual_hash", "run_date")
    given = [{**dict(zip(names, row, strict=True)), "patient_id": patient} for row in rows]
    return pa.Table.from_pylist(given, schema=alerts.EARLIER)


def test_the_most_probable_comes_first_and_equal_ones_in_order_of_uri() -> None:
    found = alerts.ranked(raised(image("b", 0.5), image("a", 0.5), image("c", 0.9)), earlier())
    assert found.schema == tables.ALERTS
    assert found["image_uri"].to_pylist() == ["c", "a", "b"]
    assert found["rank"].to_pylist() == [1, 2, 3]
    assert found["copies"].to_pylist() == [[], [], []]
    assert found["first_raised"].to_pylist() == [None] * 3


def test_urgent_comes_first_then_melanoma_then_any_malignancy_alone() -> None:
    def row(uri: str, level: str, reason: str | None, p: float, malignant: float) -> dict[str, Any]:
        return image(uri, p, alert_level=level, alert_reason=reason, p_malignant=malignant)

    expected = [
        row("melanoma", "urgent", "melanoma", 0.7, 0.7),
        row("both", "urgent", "melanoma, malignancy", 0.6, 0.99),
        row("carcinoma", "urgent", "malignancy", 0.01, 0.98),
        row("less of a carcinoma", "urgent", "malignancy", 0.1, 0.97),
        row("of an earlier version", "review", None, 0.3, 0.3),
        row("to review", "review", "melanoma", 0.2, 0.9),
        row("another to review", "review", "malignancy", 0.15, 0.95),
    ]
    found = alerts.ranked(raised(*reversed(expected)), earlier())
    assert found["image_uri"].to_pylist() == [each["image_uri"] for each in expected]


def test_a_photograph_is_shown_once_by_its_most_probable_image() -> None:
    far = f"{int(BASE, 16) ^ (2**256 - 1):064x}"
    found = alerts.ranked(
        raised(
            image("saved again", 0.6, near(BASE, 20)),
            image("original", 0.7, BASE),
            image("other", 0.65, far),
            image("same bytes", 0.5, BASE, content_sha256="sha 1"),
        ),
        earlier(),
    )
    assert found["image_uri"].to_pylist() == ["original", "other"]
    assert found["rank"].to_pylist() == [1, 2]
    assert found["copies"].to_pylist() == [["saved again", "same bytes"], []]


@pytest.mark.parametrize(("bits", "known"), [(0, True), (28, True), (29, False)])
def test_what_a_night_before_has_raised_is_marked_with_its_date(bits: int, known: bool) -> None:
    before = earlier(
        ("another", near(BASE, bits), "2026-11-19"),
        ("another", near(BASE, bits), "2026-11-18"),
        ("no hash", None, "2026-11-01"),
    )
    found = alerts.ranked(raised(image("a", 0.5, BASE), image("b", 0.4, None)), before)
    assert found["first_raised"].to_pylist() == ["2026-11-18" if known else None, None]


def test_the_same_bytes_are_known_again_without_a_hash() -> None:
    found = alerts.ranked(raised(image("a", 0.5)), earlier(("sha 0", None, "2026-11-19")))
    assert found["first_raised"].to_pylist() == ["2026-11-19"]


def test_a_chain_of_images_that_resemble_each_other_hides_none() -> None:
    second = near(BASE, 28)
    third = f"{int(second, 16) ^ (((1 << 28) - 1) << 100):064x}"
    found = alerts.ranked(raised(image("a", 0.9, BASE), image("b", 0.8, second), image("c", 0.7, third)), earlier())
    assert (found["image_uri"].to_pylist(), found["copies"].to_pylist()) == (["a", "c"], [["b"], []])


def test_different_patients_never_show_the_same() -> None:
    rows = [image(name, 0.9, BASE, patient_id=name, content_sha256="same") for name in "ab"]
    found = alerts.ranked(raised(*rows, image("c", 0.5, BASE)), earlier(("same", BASE, "2026-11-19"), patient="a"))
    assert found["image_uri"].to_pylist() == ["a", "b"]
    assert found["copies"].to_pylist() == [["c"], []]
    assert found["first_raised"].to_pylist() == ["2026-11-19", None]


def test_a_copy_that_is_held_back_holds_the_alert_back() -> None:
    rows = [image("export.jpg", 0.9, BASE), image("face.dcm", 0.8, near(BASE, 3), is_held_back=True)]
    (alert,) = alerts.ranked(raised(*rows), earlier()).to_pylist()
    assert (alert["image_uri"], alert["is_held_back"]) == ("export.jpg", True)


def test_a_night_without_alerts() -> None:
    assert alerts.ranked(raised(), earlier(("x", BASE, "2026-11-19"))) == tables.ALERTS.empty_table()


def test_a_patient_stands_where_the_worst_alert_does() -> None:
    ranked = [
        {"patient_id": patient, "image_uri": uri, "archive": "s3://a"}
        for uri, patient in zip("abcd", [None, "P", None, "P"], strict=True)
    ]
    assert [row["image_uri"] for row in alerts.by_patient(ranked)] == ["a", "b", "d", "c"]


def test_patient_7_of_two_archives_are_two() -> None:
    ranked = [
        {"patient_id": "7", "image_uri": uri, "archive": archive} for uri, archive in zip("abcd", "xyyx", strict=True)
    ]
    assert [row["image_uri"] for row in alerts.by_patient(ranked)] == ["a", "d", "b", "c"]
