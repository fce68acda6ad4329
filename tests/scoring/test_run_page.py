"""The night's page: what it says and shows, and what it does not."""

import hashlib
import io
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from melanoma import storage
from melanoma.demo.archive_files import dicom_file
from melanoma.demo.lesions import draw_lesion
from melanoma.imaging.errors import ImageError
from melanoma.imaging.limits import Limits
from melanoma.model.bundle import Bundle
from melanoma.scoring import drift, run_page, tables
from melanoma.scoring.record import RunRecord
from melanoma.scoring.run_page import AlertPictures

STAGES = {
    "workers": 2,
    "images_per_second": 192.4,
    "bytes": 12_345_678,
    "resumed": False,
    "seconds": 3725.0,
    **{f"seconds_{name}": 1.5 for name in ("waiting_for_bytes", "decoding", "predicting", "writing")},
    "peak_memory_bytes": 900_000_000,
}


def values(images: int, sharper: float = 1.0, seed: int = 0) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(seed)
    return {
        "sharpness": generator.lognormal(-7, 0.8, images) * sharper,
        **{name: generator.random(images) for name in ("exposure", "outlier_score", "p_melanoma", "p_malignant")},
    }


def record(images: int = 200, **measured: Any) -> RunRecord:
    return RunRecord.model_validate(
        {
            "run_id": "run-1",
            "run_date": "2026-11-20",
            "archive": "s3://archive",
            "model_version": "abc",
            "finished_at": "2026-11-20T03:00:00+00:00",
            "counts": {
                "listed": 1003,
                "done_before": 800,
                "scored": images,
                "rejected": 3,
                "alerts": 4,
                "urgent": 1,
                "review": 3,
                "rejects_by_kind": {"truncated": 3},
            },
            "stages": STAGES,
            "seconds": 3731.0,
            "thresholds": {"review": 0.1, "urgent": 0.5},
            "versions": {"melanoma": "1"},
            "distribution": drift.distribution(values(images, **measured)),
        }
    )


def alert(rank: int, **columns: Any) -> dict[str, Any]:
    names = dict.fromkeys(tables.ALERTS.names)
    return {
        **names,
        "rank": rank,
        "image_uri": f"s3://archive/{rank}.jpg",
        "alert_level": "review",
        "diagnosis": "MEL",
        "p_melanoma": 0.9 - rank / 100,
        "p_malignant": 0.95,
        "outlier_score": 0.5,
        "copies": [],
        "is_held_back": False,
        "content_sha256": f"{rank:064x}",
        **columns,
    }


def page(
    alerts: Sequence[Mapping[str, Any]] = (),
    shown: Sequence[AlertPictures] = (),
    earlier: Sequence[RunRecord] = (),
    rejects: Mapping[str, Any] | None = None,
    tonight: RunRecord | None = None,
) -> str:
    table = pa.Table.from_pylist(list(alerts), schema=tables.ALERTS)
    return run_page.render(tonight or record(), earlier, table, shown, rejects or {})


def words(html: str) -> str:
    body = html[html.index("<body>") :]
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", body))


def test_the_page_needs_nothing_else() -> None:
    html = page([alert(1)], [AlertPictures("data:image/jpeg;base64,AA", "data:image/jpeg;base64,BB")])
    assert "default-src 'none'" in html
    assert "<script" not in html
    assert all(source.startswith("data:image/") for source in re.findall(r'(?:src|href)="([^"]*)"', html))
    assert not re.search(r"https?://", html)


def test_words_from_outside_are_no_markup() -> None:
    evil = '<script>alert("1")</script>'
    columns = alert(1, image_uri=evil, patient_id=evil, body_site=evil, first_raised=evil)
    rejected = {"truncated": [{"image_uri": evil, "error": evil}]}
    html = page([columns, alert(2, image_uri=evil + "2")], [AlertPictures(why_not=evil)], rejects=rejected)
    assert "<script" not in html
    assert html.count("&lt;script&gt;") == 8


def test_counts_and_what_is_new() -> None:
    html = words(
        page([alert(1), alert(2, first_raised="2026-11-18", copies=["x", "y"])], [AlertPictures(), AlertPictures()])
    )
    assert "1 urgent and 3 to review, 1 of them new." in html
    assert "3 of 203 images could not be read and were not looked at" in html
    assert "raised before, on 2026-11-18; 2 more images of the same photograph" in html
    assert "1,003 objects, 800 of them done before" in html
    assert "192.4 images a second, 12.3 MB read" in html
    assert "1 h 2 min, 1 h 2 min of it scoring" in html


def test_alerts_of_a_patient_stand_together() -> None:
    alerts = [alert(1, patient_id="A"), alert(2), alert(3, patient_id="B"), alert(4, patient_id="A")]
    html = page(alerts, [AlertPictures()] * 4)
    ranks = re.findall(r'class="rank">(\d+)<', html)
    assert ranks == ["1", "4", "2", "3"]
    assert re.findall(r"<h3>(.*?)</h3>", html) == [
        'Patient A <span class="soft">(2 alerts)</span>',
        "Patient B",
    ]


def test_patient_7_of_two_archives_are_two() -> None:
    night = record().model_copy(update={"archive": ("s3://north/2026", "s3://south/2026")})
    sites = ["north", "south", "north"]
    alerts = [
        alert(rank, patient_id="7", image_uri=f"s3://{site}/2026/{rank}.dcm") for rank, site in enumerate(sites, 1)
    ]
    html = page(alerts, [AlertPictures()] * 3, tonight=night)
    assert re.findall(r"<h3>(.*?)</h3>", html) == [
        'Patient 7 of north/2026 <span class="soft">(2 alerts)</span>',
        "Patient 7 of south/2026",
    ]


def test_alerts_without_a_picture_are_lines_of_a_table_and_then_a_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_page, "ROWS_SHOWN", 2)
    html = page([alert(number) for number in range(1, 6)], [AlertPictures()])
    assert re.findall(r"s3://archive/(\d)\.jpg", html) == ["1", "2", "3"]
    assert "2 more alerts are left out here" in words(html)


def test_rejects_are_told_by_kind_with_examples() -> None:
    html = words(page(rejects={"truncated": [{"image_uri": "a.jpg", "error": "Cut."}]}))
    assert "truncated Export it again: the file is cut short or damaged. 3 a.jpg Cut." in html


def test_a_changed_camera_is_said_at_the_top() -> None:
    earlier = [record(seed=number) for number in range(1, 6)]
    changed = page(tonight=record(sharper=4.0), earlier=earlier)
    assert "look for another camera" in words(changed[: changed.index("<main>")])
    unchanged = words(page(earlier=earlier))
    assert "camera" not in unchanged
    assert "Compared with 1,000 images of 5 earlier nights" in unchanged
    assert "There is no earlier night" in words(page())


@pytest.mark.parametrize("images", [0, 1, 49, 200, 5000])
def test_a_record_holds_the_distribution(images: int) -> None:
    measured = values(images)
    held = drift.distribution(measured)
    assert max(map(len, held.quantiles.values())) <= 201
    restored = drift.values([held])
    for name, value in measured.items():
        assert len(restored[name]) == min(images, 2000)
        if images >= 200:
            both = [np.sort(value), np.sort(restored[name])]
            steps = np.concatenate(both)
            shares = [np.searchsorted(each, steps, side="right") / len(each) for each in both]
            assert np.abs(shares[0] - shares[1]).max() < 0.02


def test_nights_count_by_their_images() -> None:
    small, large = ({name: np.full(n, v) for name in values(1)} for n, v in ((100, 0.0), (900, 1.0)))
    stands = drift.values([drift.distribution(small), drift.distribution(large)])
    assert stands["sharpness"].mean() == pytest.approx(0.9)
    assert set(stands) == {*drift.PICTURE, *drift.PROBABILITY}


# --- pictures --------------------------------------------------------------------------------------------------------


def test_what_is_held_back_is_not_even_fetched(bundle: Bundle, lesion: Callable[..., bytes]) -> None:
    fetched = []

    def fetch(uri: str) -> bytes | Exception:
        fetched.append(uri)
        if uri == "s3://archive/3.jpg":
            return ImageError("access", "gone.")
        return lesion("MEL", size=900) if uri == "s3://archive/1.jpg" else b"another file"

    digest = hashlib.sha256(lesion("MEL", size=900)).hexdigest()
    alerts = [alert(1, content_sha256=digest), alert(2, is_held_back=True), alert(3), alert(4)]
    shown = run_page.pictures(alerts, fetch, bundle, Limits())
    assert sorted(fetched) == ["s3://archive/1.jpg", "s3://archive/3.jpg", "s3://archive/4.jpg"]
    assert [each.why_not for each in shown] == [
        None,
        "held back: a person may be known from it",
        "the picture could not be fetched again",
        "the picture has changed since it was scored",
    ]
    assert shown[0].explanation is not None
    assert max(Image.open(io.BytesIO(shown[0].explanation)).size) == 480
    html = page(alerts, shown)
    assert html.count("data:image/jpeg") == 2
    assert html.count("held back: a person may be known from it") == 1


def test_the_frame_of_the_score_is_shown(bundle: Bundle) -> None:
    frames = [draw_lesion(code, 1, 120, 100) for code in ("NV", "MEL")]
    data = dicom_file(frames)
    digest = hashlib.sha256(data).hexdigest()
    first, second = run_page.pictures(
        [alert(1, frame=1, content_sha256=digest), alert(1, frame=2, content_sha256=digest)],
        lambda uri: data,
        bundle,
        Limits(),
    )
    alone = dicom_file(frames[1:])
    (only,) = run_page.pictures(
        [alert(1, content_sha256=hashlib.sha256(alone).hexdigest())], lambda uri: alone, bundle, Limits()
    )
    assert second == only != first


def test_explanations_are_files(tmp_path: Any) -> None:
    table = pa.Table.from_pylist([alert(1), alert(2), alert(3)], schema=tables.ALERTS)
    shown = [AlertPictures(explanation=b"picture"), AlertPictures(why_not="held back")]
    found = run_page.write_explanations(str(tmp_path), table, shown, storage.Store())
    assert found.schema == tables.ALERTS
    uris = found["explanation_uri"].to_pylist()
    assert uris[1:] == [None, None]
    assert storage.read_bytes(uris[0]) == b"picture"
    assert [path.name for path in tmp_path.iterdir()] == [f"{1:064x}.png"]
