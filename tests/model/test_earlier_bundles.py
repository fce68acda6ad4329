"""Bundles that were written before `bundle.json` had types are read, mean the same and are written the same.

`data/bundle-before.zip` holds a bundle that the code before trained on generated lesions (two networks of 32 pixels, a
leaked twin, a licence), and what that code predicted with it and with the reference bundle for `pictures`.
"""

import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from melanoma.catalog import seen
from melanoma.evaluation.card import model_card
from melanoma.model import bundle as bundles
from melanoma.model.bundle import Bundle
from melanoma.model.predictor import Predictor

DATA = Path(__file__).parent / "data" / "bundle-before.zip"


@pytest.fixture(scope="module")
def before(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("before")
    with zipfile.ZipFile(DATA) as archive:
        archive.extractall(folder)
    return folder


@pytest.fixture(scope="module", params=["before", "reference"])
def folder(request: pytest.FixtureRequest, before: Path) -> Path:
    if request.param == "reference" and not bundles.REFERENCE.exists():
        pytest.skip("this checkout has no reference bundle")
    return before if request.param == "before" else bundles.REFERENCE


@pytest.fixture(scope="module")
def earlier(folder: Path) -> Bundle:
    return bundles.load(str(folder))


def pictures(size: int) -> np.ndarray:
    """uint8 [6, size, size, 3]: smooth ones, so that what is nearly the same is predicted nearly the same."""
    noise = np.random.default_rng(0).integers(0, 256, (6, 8, 8, 3), dtype=np.uint8)
    return np.stack(
        [np.asarray(Image.fromarray(each).resize((size, size), Image.Resampling.BICUBIC)) for each in noise]
    )


def test_it_predicts_what_it_predicted(before: Path, folder: Path, earlier: Bundle) -> None:
    name = "before" if folder == before else "reference"
    expected: dict[str, list[Any]] = json.loads((before / "predictions.json").read_text())[name]
    if expected["model_version"][0] != earlier.version:
        pytest.skip("the reference bundle is another one by now")
    found = Predictor(earlier).predict(pictures(earlier.input_size))
    # Columns that are newer than the bundle: it asks for melanoma alone.
    levels, reasons = found["alert_level"], found.pop("alert_reason")
    assert reasons == [None if level == "none" else "melanoma" for level in levels]
    assert set(found.pop("threshold_urgent")) == {earlier.thresholds.urgent}
    for column in ("threshold_malignancy", "threshold_malignancy_urgent"):
        assert set(found.pop(column)) == {None}
    assert list(found) == list(expected)
    for column, values in expected.items():
        if isinstance(values[0], float):
            np.testing.assert_allclose(found[column], values, rtol=1e-4, atol=1e-5, err_msg=column)
        elif column == "quality":
            assert [each["exposure"] for each in found[column]] == pytest.approx([each["exposure"] for each in values])
        else:
            assert found[column] == values, column


def test_the_same_tree_is_written(folder: Path, earlier: Bundle, tmp_path: Path) -> None:
    files = {name: (folder / name).read_bytes() for name in earlier.manifest.files}
    assert bundles.write(str(tmp_path), earlier.manifest.draft(), files) == earlier
    assert (tmp_path / "bundle.json").read_bytes() == (folder / "bundle.json").read_bytes()


def test_its_facts_have_types(earlier: Bundle) -> None:
    manifest = earlier.manifest
    assert manifest.thresholds.operating_point
    assert manifest.thresholds.operating_point.n > manifest.thresholds.operating_point.n_melanoma > 0
    assert manifest.calibration.fitted_on == "validation"
    assert all(1 <= member.best_epoch <= len(member.history) for member in manifest.training.members)
    assert manifest.metrics["melanoma_auc"]["low"] <= manifest.metrics["melanoma_auc"]["value"]
    assert f"| Licence of the weights | {manifest.licence} |" in model_card(manifest.to_json())


def test_its_training_images_are_known_as_a_leak(earlier: Bundle) -> None:
    """By its picture: what a catalog says of one image that was learned, under another name."""
    import io

    import pyarrow.parquet as pq

    known = pq.read_table(io.BytesIO(earlier.training_images)).to_pandas()
    learned = known[known["split"] == "train"].iloc[0]
    row = {"sha256": "0", "image_id": "other", "uri": "other.jpg", "perceptual_hash": learned["perceptual_hash"]}
    rows = pd.DataFrame([row | {"lesion_id": None, "patient_id": None, "source": "elsewhere"}])
    assert "Leaked: 1 of these 1 images" in str(seen.leak_warning(earlier.training_images, rows))
