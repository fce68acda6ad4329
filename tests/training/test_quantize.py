"""A bundle gets its compiled form: on its own catalog, measured, and only where the form agrees with the network."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from melanoma.catalog import schema
from melanoma.model import bundle as bundles
from melanoma.model import compiled
from melanoma.model.bundle import Bundle
from melanoma.model.predictor import Predictor
from melanoma.training import quantize


@pytest.fixture(scope="module")
def catalog(lesions: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from melanoma import api

    path = tmp_path_factory.mktemp("catalog") / "catalog.parquet"
    api.build_catalog(str(lesions), out=str(path), say=lambda line: None)
    api.split_catalog(str(path), out=str(path), validation=0.5, test=0.0, say=lambda line: None)
    return path


@pytest.fixture(scope="module")
def trained(bundle: Bundle, catalog: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of `bundle`, as if it had been trained on `catalog`."""
    folder = tmp_path_factory.mktemp("trained") / "bundle"
    fingerprint = schema.fingerprint(schema.read(str(catalog)))
    training = bundle.manifest.training.model_copy(update={"catalog_fingerprint": fingerprint})
    files = {"model.keras": bundle.model, "training_images.parquet": bundle.training_images}
    bundles.write(str(folder), bundle.manifest.draft().model_copy(update={"training": training}), files)
    return folder


def test_a_bundle_gets_a_second_form(
    command: Callable[..., Any],
    ray_cluster: None,
    trained: Path,
    catalog: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Four random channels hardly tell the lesions apart: what 8 bits round is much of what they tell.
    monkeypatch.setattr(quantize, "_LEAST_CORRELATION", 0.9)
    monkeypatch.setattr(quantize, "_LARGEST_LOSS", 1.0)
    said = command("compile", trained, catalog, "-o", tmp_path / "both", "--json")
    assert said.code == 0, said.err
    both, before = bundles.load(str(tmp_path / "both")), bundles.load(str(trained))
    form = both.in_form("auto")
    assert json.loads(said.out)["model_version"] == form.version == f"{both.version}-int8"
    assert both.model == before.model
    assert both.thresholds == before.thresholds
    agreement = both.manifest.compiled and both.manifest.compiled.agreement
    assert agreement
    assert agreement.n == 18
    assert 0.9 < agreement.correlation < 1
    # Its own: an untrained network's temperature was made up, and this one was fitted.
    assert form.manifest.calibration.temperature != before.manifest.calibration.temperature
    point = form.thresholds.operating_point
    assert point
    assert point.n == 18
    assert point.sensitivity.value == 1.0
    assert form.manifest.metrics["split"] == "validation"
    reports = {name for name in both.manifest.files if name.startswith("compiled/")}
    assert {compiled.FILE, "compiled/evaluation/metrics.json", "compiled/evaluation/report.html"} <= reports
    assert "compiled: OpenVINO, int8" in (tmp_path / "both" / "compiled" / "evaluation" / "report.html").read_text()
    card = (tmp_path / "both" / "model_card.md").read_text()
    assert "## The compiled form" in card
    assert f"correlate by\n{agreement.correlation:.4g}" in card
    assert np.isfinite(Predictor(form).probabilities(np.zeros((1, 32, 32, 3), np.uint8))).all()


def test_another_catalog_is_refused(
    command: Callable[..., Any], bundle_path: Path, catalog: Path, tmp_path: Path
) -> None:
    said = command("compile", bundle_path, catalog, "-o", tmp_path / "both")
    assert said.code == 2
    assert "is not the one that the model was trained on" in said.err
    assert not (tmp_path / "both").exists()


def test_a_form_that_disagrees_is_refused_and_nothing_is_written(
    command: Callable[..., Any],
    ray_cluster: None,
    trained: Path,
    catalog: Path,
    bundle: Bundle,
    other_bundle_path: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What comes of the quantization is here the form of another network."""
    other = quantize.quantized(bundles.load(str(other_bundle_path)).model, 1, np.zeros((4, 32, 32, 3), np.uint8))
    monkeypatch.setattr(quantize, "quantized", lambda *_: other)
    said = command("compile", trained, catalog, "-o", tmp_path / "both")
    assert said.code == 1
    assert "The compiled form is refused: its log odds of melanoma on validation correlate by" in said.err
    assert list(tmp_path.rglob("*.*")) == []
