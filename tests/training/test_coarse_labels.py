"""Training on labels coarser than a diagnosis, such as "benign" and "malignant"."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import tensorflow as tf
from scipy.special import log_softmax
from sklearn.metrics import roc_auc_score

from melanoma import config, taxonomy
from melanoma.catalog import build, schema
from melanoma.catalog.split import split
from melanoma.errors import InputError
from melanoma.training import loop, plan
from melanoma.training.config import Balance, TrainConfig
from melanoma.training.measure import cell, in_words, measure
from melanoma.training.train import check_inputs

BENIGN = taxonomy.join(code for code in taxonomy.CODES if code not in taxonomy.MALIGNANT)
MALIGNANT = taxonomy.join(taxonomy.MALIGNANT)
MALIGNANT_CODES = [taxonomy.CODES.index(code) for code in taxonomy.MALIGNANT]


def logits_of(labels: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Random logits, and their probabilities."""
    logits = np.random.default_rng(0).normal(size=(len(labels), 9)).astype(np.float32)
    return logits, np.exp(log_softmax(logits.astype(np.float64), axis=1))


def test_the_loss_of_a_coarse_label_is_that_of_one_of_its_codes() -> None:
    logits, probabilities = logits_of([BENIGN, MALIGNANT])
    losses = np.asarray(loop.label_loss(tf.constant(logits), tf.constant(plan.targets([BENIGN, MALIGNANT])), 0.0))
    p_malignant = probabilities[:, MALIGNANT_CODES].sum(axis=1)
    np.testing.assert_allclose(losses, [-np.log(1 - p_malignant[0]), -np.log(p_malignant[1])], rtol=1e-5)


def test_benign_and_malignant_are_balanced_as_two_classes() -> None:
    labels = [BENIGN] * 90 + [MALIGNANT] * 10
    benign, malignant = plan.class_distribution(labels, Balance(sampling=1.0))
    assert (benign["label"], benign["images"], malignant["label"], malignant["images"]) == (BENIGN, 90, MALIGNANT, 10)
    assert benign["drawn"] == pytest.approx(0.5)
    assert malignant["drawn"] == pytest.approx(0.5)
    drawn = plan.epoch_indices(labels, Balance(sampling=1.0), 10, 0, 0)
    assert abs(int((drawn >= 90).sum()) - drawn.size // 2) <= 1


def test_an_epoch_is_judged_by_what_labels_tell() -> None:
    """Accuracies of the fine labels alone; each area of the images whose side is known."""
    labels = ["MEL", "NV", "BCC", BENIGN, MALIGNANT] * 30
    logits, probabilities = logits_of(labels)
    label = np.array(labels, dtype=object)
    found = loop.validation_metrics(logits, tuple(labels))
    fine = ~np.isin(label, [BENIGN, MALIGNANT])
    right = np.array(taxonomy.CODES, dtype=object)[probabilities.argmax(axis=1)] == label
    assert found["accuracy"] == pytest.approx(right[fine].mean())
    assert found["balanced_accuracy"] == pytest.approx(
        np.mean([right[label == code].mean() for code in ("MEL", "NV", "BCC")])
    )
    known = label != MALIGNANT
    melanoma = probabilities[:, taxonomy.CODES.index("MEL")]
    assert found["melanoma_auc"] == pytest.approx(roc_auc_score(label[known] == "MEL", melanoma[known]), abs=1e-6)
    malignant = np.isin(label, ["MEL", "BCC", MALIGNANT])
    of_malignant = probabilities[:, MALIGNANT_CODES].sum(axis=1)
    assert found["malignant_auc"] == pytest.approx(roc_auc_score(malignant, of_malignant), abs=1e-6)
    assert in_words(found).endswith(f"melanoma AUC {found['melanoma_auc']:.3f}")


def test_an_epoch_without_fine_labels_is_judged_by_the_coarse_ones() -> None:
    labels = [BENIGN] * 40 + [MALIGNANT] * 10
    logits, probabilities = logits_of(labels)
    found = loop.validation_metrics(logits, tuple(labels))
    said_malignant = probabilities[:, MALIGNANT_CODES].sum(axis=1) > 0.5
    recalls = (~said_malignant[:40]).mean(), said_malignant[40:].mean()
    assert found["balanced_accuracy"] == pytest.approx(np.mean(recalls))
    assert found["accuracy"] == pytest.approx((40 * recalls[0] + 10 * recalls[1]) / 50)
    assert "melanoma_auc" not in found
    assert in_words(found).endswith(f"malignant AUC {found['malignant_auc']:.3f}")


def test_figures_that_are_not_defined_stand_in_a_table() -> None:
    figures = measure(np.full((4, 9), 1 / 9), [BENIGN, MALIGNANT] * 2, list("abcd"), 0)
    assert (figures.n, figures.n_melanoma, cell(figures.accuracy)) == (4, 0, "not defined")


@pytest.fixture
def catalog(lesions: Path) -> pd.DataFrame:
    return split(build.build([str(lesions)]), 0.5, 0.0, 0)


def training(frame: pd.DataFrame, folder: Path, **values: Any) -> TrainConfig:
    schema.write(str(folder / "catalog.parquet"), frame)
    return config.load(
        TrainConfig,
        None,
        catalog=str(folder / "catalog.parquet"),
        out=str(folder / "out"),
        checkpoints=str(folder / "checkpoints"),
        image_size=32,
        network={"width": 4},
        operating_point={"sensitivity": 0.5, "bound": "observed"},
        **values,
    )


def test_a_catalog_of_benign_and_malignant_can_be_trained_on(catalog: pd.DataFrame, tmp_path: Path) -> None:
    malignant = catalog["label"].isin(taxonomy.MALIGNANT)
    coarse = catalog.assign(label=np.where(malignant, MALIGNANT, BENIGN))
    check_inputs(training(coarse, tmp_path, batch_size=4))
    check_inputs(training(coarse, tmp_path, batch_size=4, select_by="malignant_auc"))
    with pytest.raises(
        InputError, match=r"do not tell the melanoma auc: choose by another of accuracy, .*malignant_auc"
    ):
        check_inputs(training(coarse, tmp_path, batch_size=4, select_by="melanoma_auc"))
    with pytest.raises(InputError, match=r"train split of .* has no melanoma: nothing could be learned of it"):
        check_inputs(training(coarse.assign(label=BENIGN), tmp_path))
    # Of carcinomas alone no network learns what a melanoma is: no image would ever be raised as one.
    with pytest.raises(InputError, match=r"train split of .* has no melanoma: nothing could be learned of it"):
        check_inputs(training(coarse.assign(label=np.where(malignant, "BCC", "NV")), tmp_path))
    # Known before the training, and not after it.
    one_sided = coarse.assign(label=np.where(coarse["split"] == "validation", MALIGNANT, coarse["label"]))
    with pytest.raises(InputError, match=r"operating point of .* cannot be chosen"):
        check_inputs(training(one_sided, tmp_path, batch_size=4))


def test_where_any_malignancy_cannot_be_asked_a_training_has_to_say_so(catalog: pd.DataFrame, tmp_path: Path) -> None:
    # Whether an image is melanoma is known, and whether another is malignant is not.
    labels = catalog.assign(label=np.where(catalog["label"] == "MEL", "MEL", "AK|SCC"))
    with pytest.raises(InputError, match=r"nothing but melanoma to .*, or set operating_point.malignancy=null"):
        check_inputs(training(labels, tmp_path, batch_size=4))
    settings = training(labels, tmp_path, batch_size=4)
    point = settings.operating_point.model_copy(update={"malignancy": None})
    check_inputs(settings.model_copy(update={"operating_point": point}))


@pytest.mark.slow
def test_a_model_of_benign_and_malignant_is_trained_measured_and_says_what_it_is(
    ray_cluster: None, catalog: pd.DataFrame, tmp_path: Path
) -> None:
    from melanoma.training.train import train

    malignant = catalog["label"].isin(taxonomy.MALIGNANT)
    coarse = catalog.assign(label=np.where(malignant, MALIGNANT, BENIGN))
    said: list[str] = []
    bundle = train(training(coarse, tmp_path, batch_size=4, epochs=2, leaked_twin=True), say=said.append)
    assert any("No training image is known as melanoma" in line for line in said)
    metrics = bundle.manifest.metrics
    assert metrics["melanoma_auc"]["value"] is None
    assert 0 <= metrics["malignant_auc"]["value"] <= 1
    assert metrics["n_melanoma_unknown"] == metrics["n_malignant"] > 0
    assert "none of them known as melanoma" in str(bundle.thresholds.chosen)
    assert bundle.thresholds.malignancy is not None
    assert bundle.thresholds.malignancy.operating_point is not None
    assert bundle.thresholds.malignancy.operating_point.n_malignant == metrics["n_malignant"]
    assert "No training image is known as melanoma" in (tmp_path / "out" / "model_card.md").read_text()
    assert "melanoma cannot be measured" in (tmp_path / "out" / "evaluation" / "report.html").read_text()
