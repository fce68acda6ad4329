"""melanoma predict: what it answers."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from melanoma import taxonomy
from melanoma.model import bundle as bundles
from melanoma.model.bundle import Bundle
from melanoma.model.manifest import Draft

Run = Callable[..., Any]


def test_predict_answers_each_image_or_says_why_not(
    command: Run, bundle: Bundle, bundle_path: Path, lesions: Path, tmp_path: Path
) -> None:
    good, text = lesions / "melanoma" / "MEL-0.jpg", tmp_path / "notes.txt"
    text.write_text("no picture")
    said = command("predict", good, "--bundle", bundle_path, "--json", "--explain", tmp_path / "explained")
    (row,) = json.loads(said.out)
    assert (said.code, said.err) == (0, "")
    assert (row["image_uri"], row["model_version"]) == (str(good), bundle.version)
    assert row["content_sha256"] == hashlib.sha256(good.read_bytes()).hexdigest()
    assert sum(row[f"p_{code}"] for code in taxonomy.CODES) == pytest.approx(1, abs=1e-5)
    assert Path(row["explanation_uri"]).read_bytes().startswith(b"\x89PNG")
    said = command("predict", text, good, tmp_path / "nowhere.jpg", "--bundle", bundle_path, "--json")
    assert said.code == 2
    assert [row.get("error_kind") for row in json.loads(said.out)] == ["not_an_image", None, "not_found"]
    said = command("predict", text, good, "--bundle", bundle_path)
    assert said.code == 2
    assert f"{text}: rejected (not_an_image). " in said.out
    assert f"Model {bundle.version}. Not a medical device." in said.out


def test_predict_says_what_its_alert_level_means(
    command: Run, bundle: Bundle, other_bundle_path: Path, lesions: Path, tmp_path: Path
) -> None:
    draft = bundle.manifest.draft().to_json()
    point = {
        "n": 437,
        "n_melanoma": 85,
        "sensitivity": {"value": 0.96, "low": 0.91, "high": 0.99},
        "specificity": {"value": 0.61, "low": None, "high": None},
    }
    files = {"model.keras": bundle.model, "training_images.parquet": bundle.training_images}
    seen = {}
    for level, thresholds in {"none": (0.9998, 0.9999), "review": (0.0001, 0.9999), "urgent": (0.0001, 0.0002)}.items():
        chosen = dict(zip(("review", "urgent"), thresholds, strict=True))
        values = draft | {"thresholds": chosen | {"operating_point": point}}
        bundles.write(str(tmp_path / level), Draft.model_validate(values), files)
        said = command("predict", lesions / "melanoma" / "MEL-0.jpg", "--bundle", tmp_path / level)
        assert f"Alert level: {level}. The melanoma probability is " in said.out
        assert f"review begins at {thresholds[0]:.1%}, urgent at {thresholds[1]:.1%}." in said.out
        assert "the 437 validation images (85 melanomas)" in said.out
        assert "for 96% of the melanomas (95% interval 91% to 99%), and none for 61% of the other images;" in said.out
        seen[level] = said.out.split("urgent at ")[1].splitlines()[1]
    assert "no proof that it is harmless" in seen["none"]
    assert len(set(seen.values())) == 3
    # A bundle of which the operating point is not known says nothing of it.
    assert (
        "validation images" not in command("predict", lesions / "nevus" / "NV-0.jpg", "--bundle", other_bundle_path).out
    )


def test_predict_has_no_digest_of_a_file_that_it_did_not_read_to_its_end(
    command: Run, bundle_path: Path, tmp_path: Path
) -> None:
    with (tmp_path / "big.jpg").open("wb") as file:
        file.truncate(64 * 2**20 + 5)
    (row,) = json.loads(command("predict", tmp_path / "big.jpg", "--bundle", bundle_path, "--json").out)
    assert (row["error_kind"], row["content_sha256"]) == ("too_large", None)


def test_what_is_named_goes_before_the_reference(
    command: Run, monkeypatch: pytest.MonkeyPatch, lesions: Path, bundle_path: Path, other_bundle_path: Path
) -> None:
    monkeypatch.setattr(bundles, "REFERENCE", bundle_path)
    said = command("predict", lesions / "nevus" / "NV-0.jpg", "--json", "--bundle", other_bundle_path)
    assert json.loads(said.out)[0]["model_version"] == bundles.load(str(other_bundle_path)).version


def test_a_picture_that_the_model_does_not_know_is_warned_of_first_and_nothing_contradicts_it(
    command: Run, bundle_path: Path, lesions: Path, tmp_path: Path
) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (200, 260, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "phone.png")
    said = command("predict", tmp_path / "phone.png", lesions / "nevus" / "NV-0.jpg", "--bundle", bundle_path)
    of_phone, of_lesion = said.out.split("Not a medical device.\n")[:2]
    assert of_phone.startswith(f"Warning: {tmp_path / 'phone.png'} is unlike the images that the model was trained on")
    assert "Do not rely on what follows" in of_phone
    assert "Alert level: " in of_phone
    for words in ("should look at", "should see it first", "no proof", "validation images"):
        assert words not in of_phone
    assert "Warning" not in of_lesion
    (row,) = json.loads(command("predict", tmp_path / "phone.png", "--bundle", bundle_path, "--json").out)
    assert row["outlier_score"] > 1
    assert row["alert_level"] in ("none", "review", "urgent")


def test_the_flat_colour_of_a_failed_export_is_no_picture(command: Run, bundle_path: Path, tmp_path: Path) -> None:
    Image.new("RGB", (64, 48), "white").save(tmp_path / "white.png")
    said = command("predict", tmp_path / "white.png", "--bundle", bundle_path)
    assert said.code == 2
    assert "rejected (blank). The picture is one flat colour" in said.out
