"""Another model's probabilities, from a table to a report."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from isic_challenge_scoring import ClassificationMetric, ClassificationScore
from sklearn.metrics import roc_auc_score

from melanoma import taxonomy
from melanoma.catalog import build, schema
from melanoma.catalog import split as splitting
from melanoma.evaluation.config import EvaluateConfig
from melanoma.evaluation.run import evaluate
from tests.support.refusal import sentence

pytestmark = pytest.mark.usefixtures("blank_figures")

Run = Callable[..., Any]


@pytest.fixture(scope="module")
def catalog(lesions: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("other") / "catalog.parquet"
    frame = splitting.split(build.build([str(lesions)]), validation=0.25, test=0.25, seed=0)
    frame.loc[frame.index % 2 == 0, "source"] = "clinic"
    schema.write(str(path), frame)
    return path


def probabilities(catalog: Path, columns: dict[str, str], first: str = "image", seed: int = 0) -> pd.DataFrame:
    """A row an image: its id, and the probability of each of `columns`, which are labels by the column's name.

    They lean towards the right one, as a model that has learned a little.
    """
    frame, rng = schema.read(str(catalog)), np.random.default_rng(seed)
    found = rng.dirichlet(np.ones(len(columns)), len(frame))
    right = np.array([[label in joined.split("|") for joined in columns.values()] for label in frame["label"]])
    found = 0.85 * found + 0.15 * right / right.sum(axis=1, keepdims=True)
    return pd.DataFrame(found, columns=list(columns)).assign(**{first: frame["image_id"]})[[first, *columns]]


CODES = {code: code for code in taxonomy.CODES}
ISIC_2018 = {"MEL": "MEL", "NV": "NV", "BCC": "BCC", "AKIEC": "AK|SCC", "BKL": "BKL|SK", "DF": "DF", "VASC": "VASC"}
ISIC_2019 = {**{code: code for code in ("MEL", "NV", "BCC", "AK")}, "BKL": "BKL|SK", "DF": "DF", "VASC": "VASC"}
ISIC_2019 |= {"SCC": "SCC"}


def measured(catalog: Path, table: pd.DataFrame, folder: Path, **values: Any) -> dict[str, Any]:
    name = folder / "predictions.csv"
    table.to_csv(name, index=False)
    settings = {"predictions": str(name), "catalog": str(catalog), "out": str(folder / "out"), "split": "all", **values}
    return evaluate(EvaluateConfig.model_validate(settings)).metrics.to_json()


@pytest.mark.filterwarnings("ignore::pandas.errors.Pandas4Warning")
@pytest.mark.parametrize("columns", [ISIC_2018, ISIC_2019], ids=["2018", "2019"])
def test_the_figures_are_those_of_the_challenges_own_scoring(
    catalog: Path, columns: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The package isic-challenge-scoring reads our table and the truth in its own format."""
    monkeypatch.setattr(pd.DataFrame, "applymap", pd.DataFrame.map, raising=False)  # what pandas 3 calls it
    table = probabilities(catalog, columns)
    metrics = measured(catalog, table, tmp_path)
    truth = pd.DataFrame({"image": table["image"]})
    for column, joined in columns.items():
        truth[column] = schema.read(str(catalog))["label"].isin(joined.split("|")).astype(float)
    truth.to_csv(tmp_path / "truth.csv", index=False)
    score = ClassificationScore.from_file(
        tmp_path / "truth.csv", tmp_path / "predictions.csv", ClassificationMetric.BALANCED_ACCURACY
    )
    assert metrics["melanoma_auc"]["value"] == pytest.approx(score.per_category.at["MEL", "auc"], abs=1e-12)
    assert metrics["balanced_accuracy"]["value"] == pytest.approx(score.overall, abs=1e-12)
    assert 0 < score.overall < 1  # it would agree, too, where all is right


def test_a_bundles_own_predictions_give_its_own_figures(bundle_path: Path, catalog: Path, tmp_path: Path) -> None:
    settings = {"bundle": str(bundle_path), "catalog": str(catalog), "out": str(tmp_path / "its"), "split": "all"}
    own = evaluate(EvaluateConfig.model_validate({**settings, "stability_images": 0})).metrics.to_json()
    table = pd.read_parquet(tmp_path / "its" / "predictions.parquet")
    found = measured(catalog, table, tmp_path)
    for name in ("accuracy", "balanced_accuracy", "melanoma_auc", "malignant_auc", "brier", "ece", "confusion"):
        assert found[name] == own[name]
    by_source = {row["value"]: row["melanoma_auc"] for row in found["subgroups"][0]["groups"]}
    assert by_source == {row["value"]: row["melanoma_auc"] for row in own["subgroups"][0]["groups"]}
    # A threshold of the bundle is not the table's: what it raises is not measured.
    assert own["sensitivity"]["value"] is not None
    assert (found["threshold"], found["sensitivity"]["value"], found["at_prevalence"]) == (None, None, [])
    assert any("No threshold of this model is known" in note for note in found["notes"])
    assert "leak" not in " ".join(found["notes"])


@pytest.mark.parametrize("column", ["target", "melanoma", "p_melanoma", "MEL"])
def test_one_column_tells_of_melanoma_alone(catalog: Path, tmp_path: Path, column: str) -> None:
    table = probabilities(catalog, CODES, "image_name")[["image_name", "MEL"]].rename(columns={"MEL": column})
    metrics = measured(catalog, table, tmp_path)
    melanoma = schema.read(str(catalog))["label"] == "MEL"
    assert metrics["melanoma_auc"]["value"] == pytest.approx(roc_auc_score(melanoma, table[column]))
    assert metrics["specificity_at_95_sensitivity"]["value"] is not None
    for name in ("accuracy", "balanced_accuracy", "ece", "sensitivity"):
        assert metrics[name]["value"] is None
    assert (metrics["classes"], metrics["recall"], metrics["confusion"]) == ([], {}, [])
    report = (tmp_path / "out" / "report.html").read_text()
    assert "one probability an image" in report
    assert "Class by class" not in report


def test_thresholds_are_chosen_on_another_split_where_one_is_named(catalog: Path, tmp_path: Path) -> None:
    table = probabilities(catalog, CODES)
    metrics = measured(catalog, table, tmp_path, split="test", thresholds_from="validation")
    frame = schema.read(str(catalog)).assign(p=table["MEL"])
    validation = frame[frame["split"] == "validation"]
    lowest = validation.loc[validation["label"] == "MEL", "p"].min()
    assert metrics["threshold"] <= lowest
    assert metrics["threshold"] > validation.loc[validation["p"] < lowest, "p"].max()
    test = frame[frame["split"] == "test"]
    raised = test.loc[test["label"] == "MEL", "p"] >= metrics["threshold"]
    assert metrics["sensitivity"]["value"] == pytest.approx(raised.mean())
    assert "on the validation split" in (tmp_path / "out" / "report.html").read_text()


def test_the_command_shows_the_figures_and_what_is_not_known(
    command: Run, catalog: Path, bundle_path: Path, tmp_path: Path
) -> None:
    path = tmp_path / "predictions.parquet"
    probabilities(catalog, CODES, "uri").assign(uri=schema.read(str(catalog))["uri"]).to_parquet(path)
    arguments = ["evaluate", "--predictions", path, catalog, "--split", "all", "--out", tmp_path / "out"]
    said = command(*arguments, "--against", bundle_path)
    assert said.code == 0
    assert "by source" in said.out
    assert "clinic" in said.out
    assert "No threshold of this model is known" in " ".join(said.out.split())
    written = json.loads((tmp_path / "out" / "metrics.json").read_text())
    auc = written["comparison"]["figures"]["melanoma_auc"]
    assert auc["this"] == written["melanoma_auc"]["value"] != auc["other"]
    assert written["comparison"]["figures"]["sensitivity"]["difference"]["value"] is None
    assert sentence(command(*arguments[:3], bundle_path, *arguments[3:])).startswith(
        "melanoma evaluate takes a catalog alone beside --predictions"
    )


def test_missing_images_are_refused_unless_they_may_be_left_out(command: Run, catalog: Path, tmp_path: Path) -> None:
    table = probabilities(catalog, CODES)
    few = pd.concat([table.iloc[2:], table.iloc[:1].assign(image="ISIC_1234567")])
    few.to_csv(tmp_path / "few.csv", index=False)
    arguments = ["evaluate", "--predictions", tmp_path / "few.csv", catalog, "--split", "all", "--out", tmp_path / "o"]
    said = sentence(command(*arguments))
    first, second = table["image"][:2]
    assert f"lack 2 of 36 images: {first}, {second}: add them, or leave them out with --allow-missing." in said
    allowed = command(*arguments, "--allow-missing", "--json")
    assert allowed.code == 0
    metrics = json.loads(allowed.out)
    assert metrics["n"] == 34
    assert any("2 of 36 images are not in the table and left out" in note for note in metrics["notes"])
    assert any("1 images of the table are not in the catalog: ISIC_1234567." in note for note in metrics["notes"])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t.assign(MEL=t["MEL"] * 9 - 4), "it is no probability from 0 to 1: take the softmax of logits"),
        (lambda t: t.assign(MEL=t["MEL"] / 2), "do not add up to 1"),
        (lambda t: t.assign(MEL=[None, *t["MEL"][1:]]), "MEL of .* is missing or not finite"),
        (lambda t: t.assign(MEL=["high", *t["MEL"][1:]]), "MEL of .* is 'high', no number"),
        (lambda t: t.drop(columns="MEL"), r"no column of melanoma \(MEL\)"),
        (lambda t: t[["image"]], "have no probability: they need a column for each class"),
        (lambda t: t.drop(columns="image"), "name no images: they need a column such as image_id or uri"),
        (lambda t: pd.concat([t, t.iloc[:1].assign(MEL=t["NV"], NV=t["MEL"])]), "two rows of .* that differ"),
        (lambda t: t.assign(AKIEC=0.0), "both AKIEC, which covers AK and SCC, and one of the two"),
        (lambda t: t.assign(image="x" + t["image"]), "lack 36 of 36 images"),
    ],
    ids=["logits", "sum", "missing", "word", "no melanoma", "no column", "no id", "twice", "akiec", "other ids"],
)
def test_a_table_that_cannot_be_measured_is_one_sentence(
    command: Run, catalog: Path, tmp_path: Path, change: Callable[[pd.DataFrame], pd.DataFrame], words: str
) -> None:
    change(probabilities(catalog, CODES)).to_csv(tmp_path / "p.csv", index=False)
    arguments = ["--predictions", tmp_path / "p.csv", catalog, "--split", "all", "--out", tmp_path / "out"]
    said = sentence(command("evaluate", *arguments))
    assert re.search(words, said), said
    assert not (tmp_path / "out").exists()


def test_rounded_probabilities_are_divided_by_their_sum(catalog: Path, tmp_path: Path) -> None:
    table = probabilities(catalog, CODES)
    rounded = table.assign(**{code: table[code].round(2) for code in CODES})
    metrics = measured(catalog, rounded, tmp_path)
    assert any("divided by their sum" in note for note in metrics["notes"])
    found = pd.read_parquet(tmp_path / "out" / "predictions.parquet")
    np.testing.assert_allclose(found[[f"p_{code}" for code in CODES]].sum(axis=1), 1)


def test_unk_is_no_class_of_ours_and_is_told(catalog: Path, tmp_path: Path) -> None:
    table = probabilities(catalog, ISIC_2019)
    table = table.assign(UNK=0.0)
    table.loc[0, [*ISIC_2019]] = 0.1 / len(ISIC_2019)
    table.loc[0, "UNK"] = 0.9
    notes = measured(catalog, table, tmp_path)["notes"]
    assert any(note.startswith("UNK is the most probable of 1 images") for note in notes)
    assert any("does not tell BKL from SK" in note for note in notes)


def test_a_bundle_and_a_table_are_not_measured_at_once(catalog: Path) -> None:
    for values in ({"bundle": "b", "predictions": "p"}, {}, {"predictions": "p", "thresholds_from": "test"}):
        with pytest.raises(ValueError, match=r"either a bundle or predictions|another split"):
            EvaluateConfig.model_validate({"catalog": str(catalog), "out": "o", **values})
