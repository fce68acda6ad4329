import dataclasses
import hashlib
import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from melanoma import taxonomy
from melanoma.errors import MelanomaError
from melanoma.imaging.decode import decode
from melanoma.imaging.errors import of_storage
from melanoma.imaging.limits import Limits
from melanoma.model import bundle as bundles
from melanoma.model import triage
from melanoma.model.bundle import Bundle
from melanoma.model.manifest import Calibration
from melanoma.model.predictor import Predictor, calibrated, predict_bytes

P_COLUMNS = [f"p_{code}" for code in taxonomy.CODES]


@pytest.fixture(scope="module")
def pixels(lesions: Path) -> np.ndarray:
    """65 images: one more than the largest batch below."""
    generator = np.random.default_rng(0)
    noise = generator.integers(0, 256, (29, 32, 32, 3), dtype=np.uint8)
    return np.concatenate(
        [np.stack([decode(p.read_bytes(), 32).pixels for p in sorted(lesions.rglob("*.jpg"))]), noise]
    )


@pytest.mark.parametrize("batch_size", [1, 7, 64])
def test_the_batch_does_not_change_a_probability(bundle: Bundle, pixels: np.ndarray, batch_size: int) -> None:
    whole = Predictor(bundle, batch_size=len(pixels)).probabilities(pixels)
    predictor = Predictor(bundle, batch_size)
    np.testing.assert_allclose(predictor.probabilities(pixels), whole, rtol=0, atol=1e-6)
    order = np.random.default_rng(1).permutation(len(pixels))
    np.testing.assert_allclose(predictor.probabilities(pixels[order]), whole[order], rtol=0, atol=1e-6)
    assert whole.shape == (65, 9)
    assert whole.dtype == np.float32
    assert np.ptp(whole[:, taxonomy.CODES.index("MEL")]) > 0.01  # or the test would hold for a constant


def test_a_prediction_is_a_row_of_scores(predictor: Predictor, pixels: np.ndarray) -> None:
    columns = predictor.predict(pixels)
    table = pa.Table.from_pydict(columns, schema=pa.schema(triage.PREDICTION_FIELDS))
    assert list(columns) == table.column_names
    p = np.array([columns[name] for name in P_COLUMNS]).T
    np.testing.assert_allclose(p.sum(axis=1), 1, atol=1e-6)
    assert p.min() >= 0
    assert columns["p_melanoma"] == columns["p_MEL"]
    np.testing.assert_allclose(columns["p_malignant"], p[:, [1, 3, 7]].sum(axis=1), atol=1e-6)
    assert columns["diagnosis"] == [taxonomy.CODES[place] for place in p.argmax(axis=1)]
    thresholds = predictor.bundle.thresholds
    raised = [level != "none" for level in columns["alert_level"]]
    assert raised == [value >= thresholds.review for value in columns["p_melanoma"]]
    assert set(columns["alert_level"]) == {"none", "review", "urgent"}
    assert set(columns["threshold"]) == {thresholds.review}
    assert set(columns["model_version"]) == {predictor.bundle.version}
    assert all(0 <= quality["exposure"] <= 1 and quality["sharpness"] >= 0 for quality in columns["quality"])
    assert np.mean(np.array(columns["outlier_score"][:36]) < 1) > 0.8
    assert min(columns["outlier_score"][36:]) > 1  # noise


def test_no_images_give_empty_columns(predictor: Predictor) -> None:
    columns = predictor.predict(np.zeros((0, 32, 32, 3), dtype=np.uint8))
    assert list(columns) == [field.name for field in triage.PREDICTION_FIELDS]
    assert not any(columns.values())


@pytest.mark.parametrize("value", [0, 255])
def test_a_picture_of_one_colour_has_finite_figures(predictor: Predictor, value: int) -> None:
    columns = predictor.predict(np.full((2, 32, 32, 3), value, dtype=np.uint8))
    for name in (*P_COLUMNS, "p_malignant", "outlier_score"):
        assert np.isfinite(columns[name]).all()


def test_bytes_give_what_their_pixels_give(predictor: Predictor, lesion: Callable[..., bytes]) -> None:
    data = lesion("MEL", 5)
    row = predict_bytes(predictor, data)
    columns = predictor.predict(decode(data, 32).pixels[None])
    assert row == {"content_sha256": hashlib.sha256(data).hexdigest(), **{name: v[0] for name, v in columns.items()}}


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (b"", "empty"),
        (b"no image at all", "not_an_image"),
        (b"\xff\xd8\xff\xe0", "truncated"),
        (b"GIF89a", "unsupported"),
        (bytes(128) + b"DICM", "dicom"),
        (FileNotFoundError("s3://b/k does not exist."), "not_found"),
        (PermissionError("refused"), "access"),
        (ConnectionError("did not answer"), "access"),
    ],
)
def test_what_cannot_be_scored_is_an_error_row(predictor: Predictor, data: bytes | OSError, kind: str) -> None:
    row = predict_bytes(predictor, of_storage(data) if isinstance(data, OSError) else data)
    assert row["error_kind"] == kind
    assert row["error"]
    if isinstance(data, bytes):
        assert row["content_sha256"] == hashlib.sha256(data).hexdigest()
        assert set(row) == {"content_sha256", "error_kind", "error"}
    else:
        assert row == {"error_kind": kind, "error": str(data)}


def test_limits_are_kept(predictor: Predictor, lesion: Callable[..., bytes]) -> None:
    data = lesion("NV", 1)
    assert "error_kind" not in predict_bytes(predictor, data, Limits(max_bytes=len(data), max_pixels=96 * 96))
    assert predict_bytes(predictor, data, Limits(max_bytes=len(data) - 1))["error_kind"] == "too_large"
    assert predict_bytes(predictor, data, Limits(max_pixels=96 * 96 - 1))["error_kind"] == "too_large"


def test_the_format_of_a_lossless_file_does_not_matter(predictor: Predictor) -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8))
    rows = []
    for format in ("PNG", "BMP", "TIFF"):
        buffer = io.BytesIO()
        image.save(buffer, format)
        row = predict_bytes(predictor, buffer.getvalue())
        rows.append({name: value for name, value in row.items() if name != "content_sha256"})
    assert rows[0] == rows[1] == rows[2]


def test_temperature_keeps_the_order_and_bends_the_confidence() -> None:
    logits = np.random.default_rng(0).normal(size=(50, 9)).astype(np.float32)
    sharp, plain, flat = (calibrated(logits, temperature) for temperature in (0.5, 1.0, 4.0))
    np.testing.assert_allclose(plain, np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True), rtol=1e-5)
    for p in (sharp, plain, flat):
        assert p.dtype == np.float32
        np.testing.assert_allclose(p.sum(axis=1), 1, atol=1e-6)
        np.testing.assert_array_equal(p.argsort(axis=1), logits.argsort(axis=1))
    assert (sharp.max(axis=1) > plain.max(axis=1)).all()
    assert (plain.max(axis=1) > flat.max(axis=1)).all()


def test_large_logits_do_not_overflow() -> None:
    p = calibrated(np.array([[1e30, 0, -1e30], [3e4, 3e4, 0]], dtype=np.float32), 0.01)
    np.testing.assert_array_equal(p, [[1, 0, 0], [0.5, 0.5, 0]])


def test_the_temperature_of_the_bundle_is_used(bundle: Bundle, predictor: Predictor, pixels: np.ndarray) -> None:
    manifest = bundle.manifest.model_copy(update={"calibration": Calibration(temperature=2.0)})
    other = Predictor(dataclasses.replace(bundle, manifest=manifest))
    np.testing.assert_allclose(other.probabilities(pixels), calibrated(predictor.logits(pixels), 2.0), atol=1e-6)
    assert not np.allclose(other.probabilities(pixels), predictor.probabilities(pixels), atol=1e-3)


def test_a_diverged_model_is_no_all_clear(bundle: Bundle, pixels: np.ndarray) -> None:
    model = bundles.load_model(bundle.model)
    model.layers[-1].set_weights([np.full_like(weight, np.nan) for weight in model.layers[-1].get_weights()])
    diverged = Predictor(dataclasses.replace(bundle, model=bundles.model_bytes(model)))
    with pytest.raises(MelanomaError, match="training has diverged"):
        diverged.predict(pixels)
