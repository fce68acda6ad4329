"""melanoma evaluate: what it answers."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd

from melanoma import taxonomy
from melanoma.catalog import schema
from tests.support.refusal import sentence

Run = Callable[..., Any]


def test_evaluate_answers_with_metrics_and_writes_the_report(
    command: Run, bundle_path: Path, catalogs: Path, tmp_path: Path
) -> None:
    arguments = ["evaluate", bundle_path, catalogs / "catalog.parquet", "--split", "all", "--out", tmp_path / "out"]
    said = command(*arguments, "--json")
    assert (said.code, said.err) == (0, "")
    metrics = json.loads(said.out)
    assert (metrics["n"], metrics["n_melanoma"]) == (36, 4)
    names = ["accuracy", "balanced_accuracy", "melanoma_auc", "melanoma_pauc", "sensitivity", "specificity"]
    for name in [*names, "specificity_at_95_sensitivity", "ece", "brier"]:
        assert {"value", "low", "high"} <= metrics[name].keys()
        assert metrics[name]["low"] <= metrics[name]["value"] <= metrics[name]["high"]
    assert set(metrics["recall"]) == set(taxonomy.CODES)
    assert json.loads((tmp_path / "out" / "metrics.json").read_text()) == metrics
    assert len(pd.read_parquet(tmp_path / "out" / "predictions.parquet")) == 36
    assert "<html" in (tmp_path / "out" / "report.html").read_text()


def test_a_split_that_is_not_there_is_answered_with_those_that_are(
    command: Run, bundle_path: Path, catalogs: Path, tmp_path: Path
) -> None:
    def refusal(catalog: Path, *arguments: object) -> str:
        return sentence(command("evaluate", bundle_path, catalog, "--out", tmp_path / "out", *arguments))

    said = refusal(catalogs / "unsplit.parquet")
    assert said.endswith("in the split 'test': there are 36 in no split; --split all measures all of them.")
    frame = schema.read(str(catalogs / "catalog.parquet"))
    frame.loc[frame["split"] == "test", "split"] = "validation"
    counts = frame["split"].value_counts()
    schema.write(str(tmp_path / "two.parquet"), frame)
    said = refusal(tmp_path / "two.parquet")
    assert said.endswith(
        f"there are {counts['train']} in train, {counts['validation']} in validation; --split all measures all of them."
    )
    schema.write(str(tmp_path / "none.parquet"), frame.assign(label=None))
    assert "none that has a label and can be read" in refusal(tmp_path / "none.parquet", "--split", "all")
    assert not (tmp_path / "out").exists()
