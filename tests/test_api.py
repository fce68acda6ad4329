"""The Python interface: what its functions return, and how that shows itself."""

import hashlib
import io
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

import melanoma as m
from melanoma import api, taxonomy
from melanoma.errors import InputError
from melanoma.model.bundle import Bundle
from melanoma.scoring import tables
from melanoma.scoring.config import ScoreConfig

SILENT: dict[str, Any] = {"say": lambda line: None}


@pytest.fixture(scope="module")
def model(bundle_path: Path) -> m.TrainedModel:
    return m.load(bundle_path)


@pytest.fixture(scope="module")
def catalog(lesions: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("catalog") / "catalog.parquet"
    m.split_catalog(m.build_catalog(lesions), path, validation=0.25, test=0.25)
    return path


def test_importing_the_package_imports_no_library() -> None:
    code = "import sys, melanoma; print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    imported = set(done.stdout.split())
    assert "melanoma" in imported
    assert not {"numpy", "pandas", "pyarrow", "pydantic", "yaml", "typer", "rich", "ray", "keras"} & imported


def test_the_package_offers_the_interface() -> None:
    for name in api.__all__:
        assert getattr(m, name) is getattr(api, name)
    assert set(dir(m)) == {*api.__all__, "__version__"}
    with pytest.raises(AttributeError, match="has no attribute 'paint'"):
        _ = m.paint  # type: ignore[attr-defined]


# --- catalogs --------------------------------------------------------------------------------------------------------


def test_a_catalog_is_built_repaired_split_and_written(lesions: Path, tmp_path: Path) -> None:
    rules, manifest, out = tmp_path / "rules.yaml", tmp_path / "more.csv", tmp_path / "c.parquet"
    rules.write_text("rules: [{rule: relabel, label: SK, to: MEL, reason: histology}]")
    manifest.write_text(f"path,label\n{lesions}/melanoma/MEL-0.jpg,MEL\n")
    said: list[str] = []
    done: list[tuple[int, int]] = []
    frame = m.build_catalog(
        [lesions, manifest], out, rules=rules, say=said.append, on_image=lambda *of: done.append(of)
    )
    assert (len(frame), done[-1]) == (37, (37, 37))
    assert "SK" not in set(frame["label"])
    assert said == ["Rule relabel: 4 images changed (histology)."]

    split = m.split_catalog(out, validation=0.25, test=0)
    assert set(split["split"]) == {"train", "validation"}
    assert m.split_catalog(frame, validation=0.25, test=0)["split"].tolist() == split["split"].tolist()
    with pytest.raises(InputError, match="cannot be written"):
        m.split_catalog(out, rules / "below.parquet")


# --- models ----------------------------------------------------------------------------------------------------------


def test_paths_uris_and_bytes_are_predicted_alike(model: m.TrainedModel, lesions: Path) -> None:
    paths = sorted(lesions.rglob("*-0.jpg"))
    found = model.predict(paths)
    assert isinstance(found, pd.DataFrame)
    assert found["image_uri"].tolist() == [str(path) for path in paths]
    assert found["content_sha256"].tolist() == [hashlib.sha256(path.read_bytes()).hexdigest() for path in paths]
    assert (found["model_version"] == model.version).all()
    assert found["error_kind"].isna().all()
    np.testing.assert_allclose(found[[f"p_{code}" for code in taxonomy.CODES]].sum(axis=1), 1, atol=1e-5)

    for others in ([str(path) for path in paths], [path.read_bytes() for path in paths]):
        pd.testing.assert_series_equal(model.predict(others)["p_melanoma"], found["p_melanoma"])
    for one in (paths[0], str(paths[0]), paths[0].read_bytes()):
        assert model.predict(one)["p_melanoma"].tolist() == found["p_melanoma"].tolist()[:1]
    assert model.predict([]).columns.tolist() == found.columns.tolist()


def test_pixels_are_predicted_as_a_file_of_them(model: m.TrainedModel, lesion: Callable[..., bytes]) -> None:
    files = [lesion("MEL", seed, format="PNG", size=301) for seed in range(3)]
    pixels = np.stack([np.asarray(Image.open(io.BytesIO(data))) for data in files])
    expected = model.predict(files)["p_melanoma"].tolist()
    for images in (pixels, list(pixels)):
        assert model.predict(images)["p_melanoma"].tolist() == expected
    found = model.predict(pixels[0])
    assert found["p_melanoma"].tolist() == expected[:1]
    assert found[["image_uri", "content_sha256"]].isna().all(axis=None)


def test_what_is_no_image_is_a_row_with_its_reason(model: m.TrainedModel, lesions: Path, tmp_path: Path) -> None:
    good = lesions / "nevus" / "NV-0.jpg"
    found = model.predict([b"", b"text", tmp_path / "nowhere.jpg", good])
    assert found["error_kind"].fillna("").tolist() == ["empty", "not_an_image", "not_found", ""]
    assert found["error"].isna().tolist() == [False, False, False, True]
    assert found["p_melanoma"].isna().tolist() == [True, True, True, False]


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (np.zeros((8, 8, 3)), r"float64 \[8, 8, 3\]"),
        (np.zeros((8, 8), np.uint8), r"uint8 \[8\]"),
        (np.zeros((8, 8, 4), np.uint8), r"uint8 \[8, 8, 4\]"),
        ([3], "int"),
    ],
)
def test_what_is_no_image_at_all_is_refused(model: m.TrainedModel, image: Any, words: str) -> None:
    with pytest.raises(InputError, match=f"An image is {words}: give a path, a URI, bytes, or uint8 RGB"):
        model.predict(image)


def test_an_explanation_shows_itself(model: m.TrainedModel, lesions: Path, tmp_path: Path) -> None:
    image = lesions / "melanoma" / "MEL-0.jpg"
    explanation = model.explain(image)
    assert explanation._repr_png_().startswith(b"\x89PNG")
    assert explanation.heat.max() <= 1
    (row,) = model.predict(image, explain=tmp_path).to_dict("records")
    assert Path(row["explanation_uri"]).read_bytes() == explanation.overlay
    assert (row["p_melanoma"], row["p_melanoma_covered"]) == (explanation.p_melanoma, explanation.p_melanoma_covered)
    assert repr(explanation).startswith("Explanation(p_melanoma=0.")
    with pytest.raises(InputError, match="cannot be explained: The file is empty"):
        model.explain(b"")


def test_a_model_says_what_it_is(model: m.TrainedModel, bundle: Bundle, bundle_path: Path) -> None:
    assert (model.version, model.uri, model.thresholds) == (bundle.version, str(bundle_path), bundle.thresholds)
    assert repr(model) == f"TrainedModel(version={bundle.version!r}, uri={str(bundle_path)!r})"
    assert model.card._repr_markdown_().startswith("# Model card\n")
    assert bundle.version in model.card
    assert model.metrics.to_dict("index") == {"melanoma_auc": {"value": 0.5, "low": 0.25, "high": 0.75}}
    page = model._repr_html_()
    assert all(words in page for words in (bundle.version, "melanoma_auc", "Not a medical device."))
    with pytest.raises(InputError, match="is not a bundle"):
        m.load(bundle_path.parent)


@pytest.mark.parametrize(
    ("config", "values", "words"),
    [
        (None, {"catalog": "c", "out": "b", "epoch": 3}, "Unknown key 'epoch': did you mean 'epochs'?"),
        ("nowhere.yaml", {}, "The configuration nowhere.yaml does not exist."),
        (Path("nowhere.yaml"), {}, "The configuration nowhere.yaml does not exist."),
        (None, {"catalog": Path("c.parquet"), "out": Path("b")}, "c.parquet does not exist: make one"),
    ],
)
def test_a_training_that_cannot_be_is_refused(config: Any, values: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError) as caught:
        m.train(config, **values, **SILENT)
    assert words in str(caught.value)


@pytest.mark.slow
def test_a_trained_model_predicts(ray_cluster: None, catalog: Path, lesions: Path, tmp_path: Path) -> None:
    said: list[str] = []
    config = tmp_path / "train.yaml"
    config.write_text("image_size: 32\nepochs: 9\nnetwork: {name: student, width: 4}\nbatch_size: 8\n")
    model = m.train(config, catalog=catalog, out=tmp_path / "b", checkpoints=tmp_path / "c", epochs=1, say=said.append)
    assert said
    assert model.version == m.load(tmp_path / "b").version
    assert model.metrics.attrs["split"] == "test"
    assert model.predict(lesions / "nevus" / "NV-0.jpg")["model_version"].tolist() == [model.version]


# --- evaluations -----------------------------------------------------------------------------------------------------


def test_an_evaluation_is_a_table_of_figures(bundle_path: Path, catalog: Path, tmp_path: Path) -> None:
    result = m.evaluate(
        bundle=bundle_path, catalog=catalog, out=tmp_path / "out", split="test", stability_images=0, **SILENT
    )
    assert result.details == json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert Path(result.report).is_file()
    metrics = result.metrics
    assert metrics.columns.tolist() == ["value", "low", "high"]
    assert metrics.loc["accuracy", "value"] == result.details["accuracy"]["value"]
    assert metrics.loc["recall of MEL", "value"] == result.details["recall"]["MEL"]["value"]
    assert metrics.attrs == {"split": "test", "n": result.details["n"], "n_melanoma": result.details["n_melanoma"]}
    assert repr(result) == f"EvaluationResult(split='test', n={result.details['n']}, report={result.report!r})"
    assert all(words in result._repr_html_() for words in ("balanced_accuracy", "intervals of 95%", result.report))


# --- scoring runs ----------------------------------------------------------------------------------------------------


def test_a_run_shows_its_counts_alerts_and_rejects(
    scored_in_this_process: None, lesions: Path, bundle: Bundle, bundle_path: Path, tmp_path: Path
) -> None:
    archive, out, log = tmp_path / "archive", tmp_path / "out", tmp_path / "score.log"
    archive.mkdir()
    for path in lesions.rglob("*.jpg"):
        (archive / path.name).write_bytes(path.read_bytes())
    (archive / "empty.jpg").touch()
    (archive / "notes <b>.txt").write_text("text")
    settings = ScoreConfig(archive=str(archive), out=str(out), bundle=str(bundle_path), workers=1, explained=0)
    done: list[tuple[int, int]] = []
    values: dict[str, Any] = {"run_date": "2026-11-20", "run_id": "first", "log": log}
    result = m.score(settings, **values, on_image=lambda *of: done.append(of), **SILENT)
    assert (result.changed, done[-1]) == (True, (38, 38))
    assert (result.counts.scored, result.counts.rejected) == (36, 2)
    assert json.loads(log.read_text().splitlines()[-1])["run_id"] == "first"
    assert Path(result.page).is_file()

    alerts = result.alerts
    assert alerts.columns.tolist() == tables.ALERTS.names
    assert len(alerts) == result.counts.alerts > 0
    assert alerts["p_melanoma"].is_monotonic_decreasing
    listed = alerts.assign(archive=str(archive))
    pd.testing.assert_frame_equal(m.alerts(out), listed)
    pd.testing.assert_frame_equal(m.alerts(out, "2026-11-20"), listed)
    assert (result.earlier, result.has_scored_nothing) == ((), False)
    assert [(reason.error_kind, reason.count) for reason in result.reject_reasons] == [
        ("empty", 1),
        ("not_an_image", 1),
    ]
    assert sorted(result.rejects["error_kind"]) == ["empty", "not_an_image"]
    assert len(result.scores) == 36
    expected = f"ScoringResult(run_id='first', scored=36, rejected=2, alerts={len(alerts)})"
    assert repr(result) == expected
    assert all(words in result._repr_html_() for words in ("Run first", "2 (1 empty, 1 not_an_image)", bundle.version))

    again = m.score(settings, **values, **SILENT)
    assert (again.changed, again.record) == (False, result.record)
    with pytest.raises(InputError, match="there are runs of 2026-11-20"):
        m.alerts(out, "2026-11-21")
