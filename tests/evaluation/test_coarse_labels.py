"""Labels coarser than a diagnosis: what leaves a question open counts in no figure that asks it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy.special import softmax
from sklearn.metrics import accuracy_score, brier_score_loss, confusion_matrix, roc_auc_score

from melanoma import taxonomy
from melanoma.catalog import build, schema
from melanoma.evaluation import wording
from melanoma.evaluation.card import model_card
from melanoma.evaluation.comparison import compare
from melanoma.evaluation.gallery import select_pictures
from melanoma.evaluation.metrics import compute_metrics
from melanoma.evaluation.operating_point import choose_malignancy, choose_threshold, choose_thresholds
from melanoma.evaluation.subgroups import subgroups

BENIGN = taxonomy.join(code for code in taxonomy.CODES if code not in taxonomy.MALIGNANT)
MALIGNANT = taxonomy.join(taxonomy.MALIGNANT)
NOT_MELANOMA = taxonomy.join(code for code in taxonomy.CODES if code != taxonomy.MELANOMA)
FINE = ("MEL", "NV", "BCC", "AK|SCC")
THRESHOLD = 0.2


def table(labels: list[str], seed: int = 0) -> pd.DataFrame:
    """Predictions of a model that leans towards one of the codes of each label; every image is a group of its own."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(len(labels), len(taxonomy.CODES)))
    for row, label in enumerate(labels):
        logits[row, taxonomy.CODES.index(rng.choice(taxonomy.codes_of(label)))] += 1.5
    names = [f"image-{number:04}" for number in range(len(labels))]
    frame = pd.DataFrame({"uri": names, "image_id": names, "group_id": names, "label": labels})
    frame[[f"p_{code}" for code in taxonomy.CODES]] = softmax(logits, axis=1)
    return frame.assign(p_melanoma=frame["p_MEL"], threshold=THRESHOLD, alert_level="none")


def drawn(among: tuple[str, ...], n: int = 240) -> pd.DataFrame:
    return table([str(label) for label in np.random.default_rng(1).choice(among, size=n)])


def measured(frame: pd.DataFrame) -> dict[str, Any]:
    metrics = compute_metrics(frame, resamples=50).to_json()
    json.dumps(metrics, allow_nan=False)
    return metrics


MIXED = drawn((*FINE, BENIGN, MALIGNANT, NOT_MELANOMA))


def test_coarse_labels_count_where_they_answer_and_nowhere_else() -> None:
    """Each figure by scikit-learn, of the images that its question can be asked of."""
    metrics = measured(MIXED)
    label = MIXED["label"].to_numpy(dtype=object)
    p_melanoma = MIXED["p_melanoma"].to_numpy()
    p_malignant = MIXED[[f"p_{code}" for code in taxonomy.MALIGNANT]].sum(axis=1).to_numpy()
    counts = {name: int((label == name).sum()) for name in set(label)}

    known = label != MALIGNANT
    assert metrics["n"] == 240
    assert metrics["n_melanoma"] == counts["MEL"]
    assert metrics["n_melanoma_unknown"] == counts[MALIGNANT]
    melanoma = label[known] == "MEL"
    assert metrics["melanoma_auc"]["value"] == pytest.approx(roc_auc_score(melanoma, p_melanoma[known]), abs=1e-9)
    assert metrics["brier"]["value"] == pytest.approx(brier_score_loss(melanoma, p_melanoma[known]), abs=1e-9)
    raised = p_melanoma >= THRESHOLD
    assert metrics["sensitivity"]["value"] == pytest.approx(raised[label == "MEL"].mean())
    assert metrics["specificity"]["value"] == pytest.approx((~raised)[known & (label != "MEL")].mean())
    assert metrics["at_prevalence"][0]["prevalence"] == pytest.approx(melanoma.mean())

    judged = ~np.isin(label, ["AK|SCC", NOT_MELANOMA])
    malignant = np.isin(label, ["MEL", "BCC", MALIGNANT])
    assert metrics["n_malignant"] == malignant.sum()
    assert metrics["n_malignant_unknown"] == (~judged).sum()
    auc = roc_auc_score(malignant[judged], p_malignant[judged])
    assert metrics["malignant_auc"]["value"] == pytest.approx(auc, abs=1e-9)
    assert metrics["malignant_sensitivity"]["value"] == pytest.approx(raised[malignant].mean())
    assert metrics["malignant_specificity"]["value"] == pytest.approx((~raised)[judged & ~malignant].mean())

    # The classes are those of the fine labels, and not one of all.
    classed = np.isin(label, FINE)
    assert metrics["classes"] == ["AK|SCC", "BCC", "DF", "MEL", "NV", "BKL", "SK", "VASC"]
    assert metrics["n_class_unknown"] == (~classed).sum()
    probability = np.stack(
        [MIXED[[f"p_{code}" for code in name.split("|")]].sum(axis=1) for name in metrics["classes"]], axis=1
    )
    answer = np.array(metrics["classes"], dtype=object)[probability.argmax(axis=1)]
    truth = label[classed].tolist()
    assert metrics["accuracy"]["value"] == pytest.approx(accuracy_score(truth, answer[classed].tolist()))
    balanced = np.mean([(answer == name)[label == name].mean() for name in FINE])
    assert metrics["balanced_accuracy"]["value"] == pytest.approx(balanced)
    expected = confusion_matrix(truth, answer[classed].tolist(), labels=metrics["classes"])
    assert metrics["confusion"] == expected.tolist()
    assert sum(metrics["class_counts"].values()) == classed.sum()


def test_coarse_images_change_no_figure_that_they_do_not_answer() -> None:
    """As if they were not there: and so every figure of the fine images is that of an evaluation of these alone."""
    alone = measured(MIXED[MIXED["label"].isin(FINE)])
    with_malignant = measured(MIXED[MIXED["label"].isin([*FINE, MALIGNANT])])
    for name in ("sensitivity", "specificity"):
        assert with_malignant[name] == alone[name]
    for name in ("accuracy", "balanced_accuracy", "melanoma_auc", "brier", "ece", "calibration_slope"):
        assert with_malignant[name]["value"] == pytest.approx(alone[name]["value"], abs=1e-9)
    assert with_malignant["confusion"] == alone["confusion"]
    assert with_malignant["decision_curve"]["model"] == pytest.approx(alone["decision_curve"]["model"])
    assert with_malignant["n_malignant"] > alone["n_malignant"]


def test_a_set_of_benign_and_malignant_is_measured_as_that_and_says_so() -> None:
    frame = drawn((BENIGN, MALIGNANT))
    metrics = measured(frame)
    malignant = (frame["label"] == MALIGNANT).to_numpy()
    score = frame[[f"p_{code}" for code in taxonomy.MALIGNANT]].sum(axis=1)
    assert metrics["malignant_auc"]["value"] == pytest.approx(roc_auc_score(malignant, score), abs=1e-9)
    assert metrics["malignant_auc"]["low"] < metrics["malignant_auc"]["value"] < metrics["malignant_auc"]["high"]
    for name in ("sensitivity", "melanoma_auc", "accuracy", "balanced_accuracy", "ece"):
        assert metrics[name]["value"] is None, name
    assert metrics["majority_class_accuracy"] is None
    # Benign is not melanoma: that much is known.
    quiet = (frame["p_melanoma"] < THRESHOLD).to_numpy()
    assert metrics["specificity"]["value"] == pytest.approx(quiet[~malignant].mean())
    said = wording.left_out(metrics)
    assert said[0] == (
        f"The labels of {malignant.sum()} images leave open whether they are melanoma: left out of the figures of "
        "melanoma, so melanoma cannot be measured, only what is malignant."
    )
    assert said[1].startswith("The labels of 240 images leave open which diagnosis they are")
    titles = [title for title, _, _ in wording.headlines(compute_metrics(frame, resamples=20))]
    assert "Malignant images raised" in titles


def test_fine_labels_are_told_of_as_before() -> None:
    metrics = compute_metrics(drawn(("MEL", "NV", "BCC")), resamples=20)
    assert wording.left_out(metrics.to_json()) == []
    assert len(wording.headlines(metrics)) == 4
    assert wording.left_out({"n": 3, "n_melanoma": 1}) == []  # of a bundle of an earlier version


def test_subgroups_count_what_they_leave_out() -> None:
    sites = ["head", "back"] * (len(MIXED) // 2)
    for group in subgroups(MIXED, "anatomic_site", sites, resamples=20).groups:
        chosen = MIXED[np.array(sites) == group.value]
        known = chosen[chosen["label"] != MALIGNANT]
        assert (group.n, group.n_melanoma_unknown) == (len(chosen), len(chosen) - len(known))
        melanoma = known["label"] == "MEL"
        assert group.melanoma_auc.value == pytest.approx(roc_auc_score(melanoma, known["p_melanoma"]), abs=1e-9)
        assert group.share_of_melanoma.value == pytest.approx(melanoma.mean())
        assert group.mean_p_melanoma == pytest.approx(known["p_melanoma"].mean())
        judged = chosen[~chosen["label"].isin(["AK|SCC", NOT_MELANOMA])]
        score = judged[[f"p_{code}" for code in taxonomy.MALIGNANT]].sum(axis=1)
        malignant = judged["label"].isin(["MEL", "BCC", MALIGNANT])
        assert group.malignant_auc.value == pytest.approx(roc_auc_score(malignant, score), abs=1e-9)


def test_two_models_are_compared_by_the_same_images() -> None:
    other = table(MIXED["label"].tolist(), seed=5)
    found = compare(MIXED, other, resamples=20)
    for frame, side in ((MIXED, "this"), (other, "other")):
        metrics = measured(frame)
        for name, figure in found.items():
            assert getattr(figure, side) == pytest.approx(metrics[name]["value"], abs=1e-9), name


def test_no_false_alarm_is_shown_that_may_be_a_melanoma() -> None:
    shown = MIXED.set_index("uri").loc[select_pictures(MIXED)[:24]]
    assert MALIGNANT not in set(shown["label"])
    assert {BENIGN, "MEL"} <= set(shown["label"])


def test_thresholds_leave_out_what_may_be_a_melanoma() -> None:
    labels, score = MIXED["label"].tolist(), MIXED["p_melanoma"].to_numpy()
    group = MIXED["group_id"].to_numpy()
    known = MIXED["label"] != MALIGNANT
    found = choose_thresholds(labels, score, group, 0.9, "observed", 0.9)
    melanoma = (MIXED["label"] == "MEL").to_numpy()
    assert found.review == choose_threshold(melanoma[known], score[known], 0.9)
    assert found.operating_point is not None
    assert (found.operating_point.n, found.operating_point.n_melanoma) == (known.sum(), melanoma.sum())
    assert found.operating_point.n_malignant is None


def test_without_a_known_melanoma_thresholds_are_chosen_for_what_is_malignant() -> None:
    frame = drawn((BENIGN, MALIGNANT))
    malignant, score = (frame["label"] == MALIGNANT).to_numpy(), frame["p_melanoma"].to_numpy()
    found = choose_thresholds(frame["label"].tolist(), score, frame["group_id"].to_numpy(), 0.9, "observed", 0.9)
    assert found.review == choose_threshold(malignant, score, 0.9)
    assert f"{malignant.sum()} malignant, none of them known as melanoma" in str(found.chosen)
    point = found.operating_point
    assert point is not None
    assert (point.n, point.n_melanoma, point.n_malignant) == (240, 0, malignant.sum())
    with pytest.raises(ValueError, match="no melanoma to choose a threshold on"):
        choose_thresholds([BENIGN] * 9, np.zeros(9), np.arange(9), 0.9, "observed", 0.9)
    with pytest.raises(ValueError, match="has 3 malignant images of 3 groups: too few"):
        choose_thresholds([MALIGNANT, BENIGN] * 3, np.arange(6) / 6, np.arange(6), 0.95, "lower", 0.9)


def test_the_card_says_what_labels_left_open() -> None:
    metrics = measured(drawn((BENIGN, MALIGNANT)))
    counts = {"train": {BENIGN: 90, MALIGNANT: 30}, "validation": {BENIGN: 9, MALIGNANT: 3}}
    point = {"n": 12, "n_melanoma": 0, "n_malignant": 3, "stated_sensitivity": 0.95}
    point |= dict.fromkeys(("sensitivity", "specificity"), metrics["malignant_auc"])
    thresholds = {"review": 0.1, "urgent": 0.3, "operating_point": point}
    card = model_card(
        {"training": {"class_counts": counts}, "metrics": {"split": "test", **metrics}, "thresholds": thresholds}
    )
    assert "No training image is known as melanoma" in card
    assert "so melanoma cannot be measured, only what is malignant" in card
    assert "3 malignant, none known as melanoma" in card
    counts["train"]["MEL"] = 1
    assert "No training image" not in model_card({"training": {"class_counts": counts}})


@pytest.mark.usefixtures("blank_figures")
def test_a_catalog_of_benign_and_malignant_is_evaluated(
    command: Callable[..., Any], bundle_path: Path, lesions: Path, tmp_path: Path
) -> None:
    frame = build.build([str(lesions)])
    malignant = frame["label"].isin(taxonomy.MALIGNANT)
    frame["label"] = np.where(malignant, MALIGNANT, BENIGN)
    schema.write(str(tmp_path / "coarse.parquet"), frame)
    said = command("evaluate", bundle_path, tmp_path / "coarse.parquet", "--split", "all", "--out", tmp_path / "out")
    assert said.code == 0
    words = " ".join(said.out.split())
    assert "The labels of 12 images leave open whether they are melanoma" in words
    assert "melanoma cannot be measured, only what is malignant" in words
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert (metrics["n"], metrics["n_malignant"], metrics["n_melanoma_unknown"]) == (36, 12, 12)
    predictions = pd.read_parquet(tmp_path / "out" / "predictions.parquet")
    auc = roc_auc_score(predictions["label"] == MALIGNANT, predictions["p_malignant"])
    assert metrics["malignant_auc"]["value"] == pytest.approx(auc, abs=1e-6)
    report = (tmp_path / "out" / "report.html").read_text()
    assert "melanoma cannot be measured, only what is malignant" in report
    assert "Malignant images raised" in report
    assert not {"nan", "None"} & set(report.split())


def test_thresholds_of_malignancy_leave_out_what_may_be_malignant_or_not() -> None:
    labels = ["MEL", "BCC", "AK|SCC", "NV", MALIGNANT, "NV", "MEL", BENIGN]
    score = np.array([0.9, 0.8, 0.99, 0.7, 0.6, 0.5, 0.4, 0.3])
    found = choose_malignancy(labels, score, np.arange(8), 0.75, "observed", 0.99)
    assert 0.5 < found.review < 0.6
    assert 0.7 < found.urgent < 0.8
    point = found.operating_point
    assert point is not None
    assert (point.n, point.n_malignant, point.n_melanoma, point.sensitivity.value) == (7, 4, 2, 0.75)
    assert "7 images, 4 malignant" in str(found.chosen)
    with pytest.raises(ValueError, match="nothing malignant to choose a threshold on"):
        choose_malignancy([BENIGN] * 3, np.zeros(3), np.arange(3), 0.9, "observed", 0.9)
