import base64
import io
import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, NoReturn

import jinja2
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from melanoma.evaluation.metrics import compute_metrics
from melanoma.evaluation.report import percent, select_pictures, write_report
from melanoma.taxonomy import CODES

ABOUT: dict[str, Any] = {
    "title": "Evaluation of the test model",
    "model_version": "m-123",
    "bundle_created": "2026-11-19",
    "classes": CODES,
    "catalog": "catalog.parquet",
    "sources": "isic9",
    "split": "test",
    "split_fingerprint": "sha256:feed",
    "leak_warning": None,
    "code_version": "0.1.0",
    "training": {"epochs": "60"},
    "thresholds": {"review": 0.25, "urgent": 0.75, "chosen": "on validation"},
    "date": "2026-11-21",
}
HOSTILE = '"><script>alert(1)</script><img src=x onerror=alert(2)>&amp;'


def predictions(n_melanoma: int = 16, n_nevus: int = 40, missed: int = 2, alarms: int = 5) -> pd.DataFrame:
    """Melanomas of which `missed` are below the threshold of 0.25, and nevi of which `alarms` are above it."""
    melanoma = np.array([True] * n_melanoma + [False] * n_nevus)
    p = np.concatenate(
        [
            np.linspace(0.01, 0.2, missed),
            np.linspace(0.3, 0.9, n_melanoma - missed),
            np.linspace(0.3, 0.8, alarms),
            np.linspace(0.01, 0.2, n_nevus - alarms),
        ]
    ).astype(np.float32)
    names = [f"image-{i:03}" for i in range(len(p))]
    frame = pd.DataFrame({"uri": [f"s3://set/{name}.jpg" for name in names], "image_id": names, "group_id": names})
    frame["label"] = np.where(melanoma, "MEL", "NV")
    frame[[f"p_{code}" for code in CODES]] = np.float32(0)
    frame["p_MEL"], frame["p_NV"], frame["p_melanoma"], frame["p_malignant"] = p, 1 - p, p, p
    frame["alert_level"] = np.select([p >= 0.75, p >= 0.25], ["urgent", "review"], "none")
    frame["threshold"] = 0.25
    return frame


def picture(kind: str) -> bytes:
    out = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 255, size=(16, 16, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(out, kind)
    return out.getvalue()


def write(out: Path, frame: pd.DataFrame, pictures: dict[str, bytes] | None = None, **about: Any) -> str:
    write_report(out, frame, compute_metrics(frame, resamples=20), pictures or {}, ABOUT | about)
    return (out / "report.html").read_text(encoding="utf-8")


class _Page(HTMLParser):
    """Elements with their attributes, and the text that a reader sees."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(html)
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if self.elements and self.elements[-1][0] != "style":
            self.words.append(data)

    def images(self) -> list[bytes]:
        sources = [attributes["src"] or "" for tag, attributes in self.elements if tag == "img"]
        return [base64.b64decode(source.partition(";base64,")[2], validate=True) for source in sources]


def test_files_and_strict_json(tmp_path: Path) -> None:
    frame = predictions(n_melanoma=0, missed=0).convert_dtypes(dtype_backend="pyarrow")
    write(tmp_path, frame)

    def refuse(constant: str) -> NoReturn:
        raise AssertionError(f"{constant} in metrics.json")

    metrics = json.loads((tmp_path / "metrics.json").read_text(encoding="utf-8"), parse_constant=refuse)
    assert metrics["melanoma_auc"] == {"value": None, "low": None, "high": None, "method": None}
    assert metrics["n"] == 40
    stored = pd.read_parquet(tmp_path / "predictions.parquet")
    pd.testing.assert_frame_equal(stored, frame.astype(stored.dtypes.to_dict()))
    names = {"confusion.png", "roc.png", "reliability.png", "reliability_melanoma.png"}
    assert {path.name for path in (tmp_path / "figures").iterdir()} == names
    for name in names:
        with Image.open(tmp_path / "figures" / name) as image:
            image.load()
            assert image.width > 600


def test_written_twice_is_the_same(tmp_path: Path) -> None:
    frame = predictions()
    write(tmp_path / "a", frame)
    write(tmp_path / "b", frame)
    for path in sorted((tmp_path / "a").rglob("*.*")):
        assert path.read_bytes() == (tmp_path / "b" / path.relative_to(tmp_path / "a")).read_bytes(), path.name


def test_headlines_in_words(tmp_path: Path) -> None:
    text = _Page(write(tmp_path, predictions())).text
    assert "Of 16 melanomas, 14 were raised (88%, 95% interval 62% to 98%)." in text
    assert "Of 40 images without melanoma, 35 were not raised (88%, 95% interval 73% to 96%)." in text
    assert "optimistic, and not the frozen operating point" in text
    assert "Not a medical device" in text
    for value in ("m-123", "catalog.parquet", "sha256:feed", "isic9", "on validation"):
        assert value in text


def test_a_set_without_melanoma_says_so(tmp_path: Path) -> None:
    text = _Page(write(tmp_path, predictions(n_melanoma=0, missed=0))).text
    assert "This set has no melanoma: sensitivity cannot be measured." in text
    assert "None" not in text
    assert "nan" not in text.lower().split()


def test_leak_warning_is_shown_only_where_there_is_one(tmp_path: Path) -> None:
    assert "not a fair test" not in write(tmp_path / "clean", predictions())
    text = _Page(write(tmp_path / "leaky", predictions(), leak_warning="3 images were seen")).text
    assert "not a fair test" in text
    assert "3 images were seen" in text


def test_a_missing_fact_stops_the_report_before_anything_is_written(tmp_path: Path) -> None:
    frame = predictions()
    about = {key: value for key, value in ABOUT.items() if key != "split_fingerprint"}
    with pytest.raises(jinja2.UndefinedError, match="split_fingerprint"):
        write_report(tmp_path / "out", frame, compute_metrics(frame, resamples=20), {}, about)
    assert not (tmp_path / "out").exists()


def test_hostile_text_stays_text(tmp_path: Path) -> None:
    frame = predictions()
    frame["image_id"] = HOSTILE + frame["image_id"]
    frame["alert_level"] = HOSTILE
    hostile = {key: HOSTILE for key, value in ABOUT.items() if isinstance(value, str)}
    pictures = dict.fromkeys(select_pictures(frame), picture("JPEG"))
    named = {HOSTILE: HOSTILE}
    html = write(tmp_path, frame, pictures, **hostile, leak_warning=HOSTILE, training=named, thresholds=named)
    page = _Page(html)
    assert HOSTILE + "image-000" in page.text
    assert "<script" not in html
    assert not [
        tag for tag, attributes in page.elements if tag == "script" or any(a.startswith("on") for a in attributes)
    ]
    assert all((attributes["src"] or "").startswith("data:image/") for tag, attributes in page.elements if tag == "img")


def test_page_loads_nothing_from_elsewhere(tmp_path: Path) -> None:
    html = write(tmp_path, predictions())
    for tag, attributes in _Page(html).elements:
        assert tag not in ("script", "link", "iframe", "object", "embed", "form")
        assert "href" not in attributes
        assert (attributes.get("src") or "data:").startswith("data:")
    assert "url(" not in html
    assert "@import" not in html
    assert "default-src 'none'" in html


def test_pictures_are_embedded_and_what_is_none_is_left_out(tmp_path: Path) -> None:
    frame = predictions(n_nevus=10)
    uris = select_pictures(frame)
    jpeg, png = picture("JPEG"), picture("PNG")
    page = _Page(write(tmp_path, frame, {uris[0]: jpeg, uris[1]: png, uris[2]: b"<svg onload=alert(1)>", uris[3]: b""}))
    images = page.images()
    assert jpeg in images
    assert png in images
    assert not any(image.startswith(b"<svg") for image in images)
    assert "no picture" in page.text


def test_pictures_are_the_worst_mistakes_and_a_fixed_sample() -> None:
    frame = predictions(n_melanoma=40, n_nevus=60, missed=15, alarms=20)
    uris = select_pictures(frame, seed=3)
    by_score = frame.sort_values("p_melanoma")
    missed = by_score[(by_score["label"] == "MEL") & (by_score["p_melanoma"] < 0.25)]
    alarms = by_score[(by_score["label"] != "MEL") & (by_score["p_melanoma"] >= 0.25)][::-1]
    assert uris[:12] == missed["uri"][:12].tolist()
    assert uris[12:24] == alarms["uri"][:12].tolist()
    assert 24 < len(uris) <= 36
    assert len(set(uris)) == len(uris)
    assert select_pictures(frame.sample(frac=1, random_state=0), seed=3) == uris
    assert select_pictures(frame, seed=4) != uris


def test_the_report_shows_the_pictures_that_were_selected_with_its_seed(tmp_path: Path) -> None:
    frame = predictions(n_melanoma=40, n_nevus=60, missed=15, alarms=20)
    metrics = compute_metrics(frame, seed=9, resamples=20)
    write_report(tmp_path, frame, metrics, dict.fromkeys(select_pictures(frame, seed=9), picture("PNG")), ABOUT)
    text = _Page((tmp_path / "report.html").read_text(encoding="utf-8")).text
    assert "no picture" not in text
    assert "Missed melanomas (12 of 15)" in text
    assert "False alarms (12 of 20)" in text


@pytest.mark.parametrize(
    ("share", "text"),
    [(0, "0%"), (1, "100%"), (0.875, "88%"), (0.998, "99.8%"), (0.9999, "over 99.9%"), (0.0004, "under 0.1%")],
)
def test_percent_never_rounds_to_certainty(share: float, text: str) -> None:
    assert percent(share) == text
