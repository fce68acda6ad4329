"""melanoma threshold: what it chooses, and what takes it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from melanoma.catalog import schema
from melanoma.model.bundle import Bundle
from tests.support.refusal import sentence

Run = Callable[..., Any]
MALIGNANT = ["BCC", "MEL", "SCC"]


@pytest.fixture
def choose(command: Run, bundle_path: Path, catalogs: Path) -> Run:
    def call(*arguments: object) -> Any:
        return command("threshold", bundle_path, catalogs / "catalog.parquet", "--split", "all", *arguments)

    return call


@pytest.fixture(scope="module")
def predicted(bundle: Bundle, lesions: Path) -> pd.DataFrame:
    """The probabilities of the lesions at the bundle's own thresholds, and the label of each."""
    from melanoma.api import TrainedModel

    files = sorted(map(str, lesions.rglob("*.jpg")))
    return TrainedModel(bundle, "bundle").predict(files).assign(label=[Path(file).name.split("-")[0] for file in files])


def test_a_sensitivity_is_reached_by_the_highest_threshold_that_does(choose: Run, predicted: pd.DataFrame) -> None:
    point = json.loads(choose("--sensitivity", 0.75, "--json").out)
    review, p = point["thresholds"]["review"], predicted["p_melanoma"]
    is_melanoma = predicted["label"] == "MEL"
    third = np.sort(p[is_melanoma])[-3]
    assert p[p < third].max() < review <= third
    figures = point["thresholds"]["operating_point"]
    assert (figures["stated_sensitivity"], figures["sensitivity"]["value"]) == (0.75, 0.75)
    assert figures["specificity"]["value"] == pytest.approx((p[~is_melanoma] < review).mean())
    load = point["alerts_per_1000"]
    assert load["melanoma"]["value"] == pytest.approx(1000 * (p >= review).mean())
    assert load["melanoma"]["low"] < load["melanoma"]["value"] < load["melanoma"]["high"]
    assert "malignancy" not in load
    assert point["thresholds"]["urgent"] >= review
    (source,) = point["by_source"]
    assert (source["n"], source["n_positive"], source["sensitivity"]["value"]) == (36, 4, 0.75)


def test_a_load_is_not_exceeded_and_used_as_far_as_it_goes(choose: Run, predicted: pd.DataFrame) -> None:
    point = json.loads(choose("--alerts-per-1000", 200, "--json").out)
    raised = (predicted["p_melanoma"] >= point["thresholds"]["review"]).sum()
    assert raised == 7  # of 36, as the eighth would be over 200 of 1,000
    assert point["alerts_per_1000"]["melanoma"]["value"] == pytest.approx(1000 * 7 / 36)
    assert point["thresholds"]["operating_point"]["stated_sensitivity"] is None


def test_each_question_is_chosen_by_itself_and_both_stand_in_one_file(
    choose: Run, predicted: pd.DataFrame, bundle: Bundle, tmp_path: Path
) -> None:
    first, both = tmp_path / "first.json", tmp_path / "both.json"
    said = choose("--question", "malignancy", "--sensitivity", 0.5, "-o", first)
    assert said.code == 0
    assert "malignancy: review from" in said.out
    assert "few: 12" in said.out
    assert f"Operating point: {first}." in " ".join(said.out.split())
    thresholds = json.loads(first.read_text())["thresholds"]
    assert (thresholds["review"], thresholds["urgent"]) == (bundle.thresholds.review, bundle.thresholds.urgent)
    malignant = predicted["label"].isin(MALIGNANT)
    asked = thresholds["malignancy"]
    assert (predicted["p_malignant"][malignant] >= asked["review"]).mean() == 0.5
    assert (asked["operating_point"]["n_malignant"], asked["operating_point"]["n_melanoma"]) == (12, 4)
    choose("--alerts-per-1000", 100, "--operating-point", first, "-o", both)
    point = json.loads(both.read_text())
    assert point["thresholds"]["malignancy"] == asked
    assert point["thresholds"]["review"] != bundle.thresholds.review
    either = predicted["p_melanoma"] >= point["thresholds"]["review"]
    either |= predicted["p_malignant"] >= asked["review"]
    assert point["alerts_per_1000"]["together"]["value"] == pytest.approx(1000 * either.mean())


def test_predict_score_and_evaluate_take_it(
    choose: Run,
    command: Run,
    scored_in_this_process: None,
    lesions: Path,
    bundle: Bundle,
    bundle_path: Path,
    catalogs: Path,
    tmp_path: Path,
) -> None:
    file, out = tmp_path / "point.json", tmp_path / "out"
    choose("--question", "malignancy", "--sensitivity", 0.9, "-o", file)
    chosen = json.loads(file.read_text())["thresholds"]
    taken = ("--bundle", bundle_path, "--operating-point", file)
    said = command("predict", *sorted(lesions.rglob("*.jpg")), *taken, "--json")
    rows = {row["image_uri"]: row for row in json.loads(said.out)}
    assert {row["alert_reason"] for row in rows.values()} > {"malignancy", None}
    words = command("predict", lesions / "nevus" / "NV-0.jpg", *taken).out
    assert "The probability of any malignancy is" in words
    said = command("score", lesions, "--out", out, *taken, "--json")
    record = json.loads(said.out)
    assert record["thresholds"] == chosen
    alerts = json.loads(command("alerts", out, "--json").out)
    assert {row["image_uri"]: row["alert_reason"] for row in alerts} == {
        uri: row["alert_reason"] for uri, row in rows.items() if row["alert_level"] != "none"
    }
    assert {row["threshold_malignancy"] for row in alerts} == {chosen["malignancy"]["review"]}
    order = [(row["alert_level"] == "review", row["alert_reason"] == "malignancy") for row in alerts]
    assert order == sorted(order)
    assert "malignancy" in command("alerts", out).out
    page = next(out.glob("runs/run_id=*/run.html")).read_text()
    assert "raised for <strong>any malignancy, and not melanoma</strong>" in page
    arguments = ["evaluate", bundle_path, catalogs / "catalog.parquet", "--split", "all", "--out", tmp_path / "report"]
    metrics = json.loads(command(*arguments, "--operating-point", file, "--by", "source", "--json").out)
    assert metrics["malignancy"]["threshold"] == chosen["malignancy"]["review"]
    assert metrics["malignancy"]["review"]["sensitivity"]["value"] >= 0.9
    (group,) = metrics["subgroups"][0]["groups"]
    assert group["malignancy_sensitivity"] == metrics["malignancy"]["review"]["sensitivity"]
    report = (tmp_path / "report" / "report.html").read_text()
    assert "A department has chosen these thresholds on the all split of catalog.parquet" in report
    assert "is the stated sensitivity kept?" in report
    assert "yes (few: 12)" in report
    # Another call with the model's own thresholds is another run, and its images were done before.
    again = json.loads(command("score", lesions, "--out", out, "--bundle", bundle_path, "--json").out)
    assert (again["key"] != record["key"], again["counts"]["done_before"]) == (True, 36)


def test_what_cannot_be_chosen_is_refused_in_a_sentence(
    choose: Run, command: Run, lesions: Path, catalogs: Path, bundle_path: Path, other_bundle_path: Path, tmp_path: Path
) -> None:
    assert "give either sensitivity or alerts_per_1000" in sentence(
        choose("--sensitivity", 0.9, "--alerts-per-1000", 50)
    )
    assert "has 36 images, too few to tell 20 alerts of 1,000 from none: use 50 images" in sentence(
        choose("--alerts-per-1000", 20)
    )
    frame = schema.read(str(catalogs / "catalog.parquet"))
    schema.write(str(tmp_path / "nevi.parquet"), frame[frame["label"] == "NV"])
    said = command("threshold", bundle_path, tmp_path / "nevi.parquet", "--split", "all")
    assert "has no melanomas, so no threshold can be chosen on it" in sentence(said)
    file = tmp_path / "point.json"
    choose("-o", file)
    said = command("predict", lesions / "nevus" / "NV-0.jpg", "--bundle", other_bundle_path, "--operating-point", file)
    assert "was made for the model" in sentence(said)
