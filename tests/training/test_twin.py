"""The leaked twin: it leaks, as it should, and what is beside it does not."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from melanoma import config, taxonomy
from melanoma.catalog import schema
from melanoma.catalog.build import build
from melanoma.catalog.split import split
from melanoma.demo.lesions import draw_lesion
from melanoma.training import train, twin
from melanoma.training.config import TrainConfig

SIZE = 32
LABELS = tuple(code for code in taxonomy.CODES for _ in range(4))
COPIES = {"add": 6, "augmentation": [{"operation": "rotate_random_90", "probability": 1.0}]}


def settings(**values: Any) -> TrainConfig:
    return config.load(TrainConfig, None, **{"catalog": "unused", "out": "unused", "image_size": SIZE, **values})


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return np.stack([draw_lesion(code, seed, SIZE, SIZE) for seed, code in enumerate(LABELS)])


def test_without_copies_every_file_is_in_one_split(images: np.ndarray) -> None:
    data, origin = twin.leaked_splits(settings(), images, LABELS, validation_share=0.25)
    np.testing.assert_array_equal(data.images, images)
    rows = np.concatenate([data.train.rows, data.validation.rows])
    assert sorted(rows) == list(range(len(LABELS)))
    assert len(data.validation.rows) == 9
    assert all(
        LABELS[origin[row]] == label
        for part in (data.train, data.validation)
        for row, label in zip(part.rows, part.labels, strict=True)
    )


def test_copies_of_one_photograph_lie_on_both_sides(ray_cluster: None, images: np.ndarray) -> None:
    training = settings(balance={"copies": COPIES})
    data, origin = twin.leaked_splits(training, images, LABELS, validation_share=0.25)
    together = data.images
    assert len(together) == len(images) + 6 * 9
    assert set(origin[data.train.rows]) & set(origin[data.validation.rows])
    # Each copy is its original, turned.
    for row in range(len(images), len(together)):
        turned = [np.rot90(images[origin[row]], turns) for turns in range(4)]
        assert any((together[row] == each).all() for each in turned)
    repeated, _ = twin.leaked_splits(training, images, LABELS, validation_share=0.25)
    np.testing.assert_array_equal(repeated.images, together)


@pytest.mark.slow
def test_the_report_shows_leaked_figures_beside_honest_ones(
    ray_cluster: None, lesion: Callable[..., bytes], tmp_path: Path
) -> None:
    for code, name in taxonomy.NAMES.items():
        (tmp_path / "set" / name).mkdir(parents=True)
        for seed in range(8):
            (tmp_path / "set" / name / f"{code}-{seed}.jpg").write_bytes(lesion(code, seed))
    catalog = str(tmp_path / "catalog.parquet")
    schema.write(catalog, split(build([str(tmp_path / "set")]), validation=0.25, test=0.25, seed=0))
    training = settings(
        catalog=catalog,
        out=str(tmp_path / "bundle"),
        checkpoints=str(tmp_path / "checkpoints"),
        network={"name": "student", "width": 4, "dropout": 0.0},
        epochs=2,
        batch_size=16,
        select_by="last",
        schedule="constant",
        warmup_epochs=0,
        balance={"sampling": 0.0, "copies": COPIES},
        leaked_twin=True,
    )
    said: list[str] = []
    bundle = train.train(training, say=said.append)

    facts = bundle.manifest.training
    shown = twin.Exhibit.model_validate(facts.leaked_twin)
    # The twin's validation is a quarter of all images and their copies; the honest one holds no copies.
    counts = facts.class_counts
    originals = sum(counts["train"].values()) + sum(counts["validation"].values())
    held_out = sum(counts["validation"].values()) / originals
    assert shown.honest_validation
    assert shown.leaked_model_on_test
    assert shown.leaked_validation.n == round(held_out * (originals + 54))
    assert shown.honest_validation.n == sum(counts["validation"].values()) == 18
    assert shown.leaked_model_on_test.n == bundle.manifest.metrics["n"] == 18
    for figures in (shown.leaked_validation, shown.honest_validation, shown.leaked_model_on_test):
        accuracy = figures.accuracy.to_json()
        assert 0 <= accuracy["low"] <= accuracy["value"] <= accuracy["high"] <= 1
    assert facts.class_distribution
    assert {row["copies"] for row in facts.class_distribution["rows"]} == {6}
    assert facts.members[0].best_epoch == 2
    # The bundle is of the honest run: it was begun with its own name, and its twin's with another.
    assert {path.name for path in (tmp_path / "checkpoints").glob("*-leaked")}
    report = (tmp_path / "bundle" / "evaluation" / "report.html").read_text()
    assert "single files" in report
    assert [epoch["epoch"] for epoch in shown.leaked_history] == [1, 2]
    for history in (shown.leaked_history, facts.members[0].history):
        assert all(0 <= epoch["training_accuracy"] <= 1 for epoch in history)
    assert (tmp_path / "bundle" / "evaluation" / "figures" / "leaked_curves.png").stat().st_size > 10_000
    assert "AnkitSalian/MelanomaDetection@9d582147" in report
    assert any("not to be believed" in line for line in said)
