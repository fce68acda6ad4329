"""An evaluation of the generated lesions, from the catalog to its files."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from melanoma.catalog import build, schema
from melanoma.catalog import split as splitting
from melanoma.cli import evaluate as cli_evaluate
from melanoma.errors import InputError
from melanoma.evaluation.config import EvaluateConfig
from melanoma.evaluation.run import evaluate, evaluate_frame
from melanoma.model import bundle as bundles
from melanoma.model.bundle import Bundle

pytestmark = pytest.mark.usefixtures("blank_figures")

TWICE = [f"image-{i}" for i in range(72)]


@pytest.fixture(scope="module")
def catalog(lesions: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of `lesions`, of which the sex of half the patients and the age of one are known. Not to be written to."""
    frame = build.build([str(lesions)])
    frame["sex"] = pd.Series(["male", None] * (len(frame) // 2), dtype=object)
    frame["age"] = pd.Series([41.0] + [None] * (len(frame) - 1), dtype=object)
    path = tmp_path_factory.mktemp("evaluation") / "catalog.parquet"
    schema.write(str(path), splitting.split(frame, validation=0.25, test=0.25, seed=0))
    return path


def evaluated(bundle_path: Path, catalog: Path, out: Path, **values: Any) -> dict[str, Any]:
    settings: dict[str, Any] = {"split": "all", "stability_images": 6} | values
    return evaluate(
        EvaluateConfig(bundle=str(bundle_path), catalog=str(catalog), out=str(out), **settings)
    ).metrics.to_json()


@pytest.fixture(scope="module")
def out(bundle_path: Path, other_bundle_path: Path, catalog: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an evaluation against another bundle. Not to be written to."""
    out = tmp_path_factory.mktemp("evaluation") / "out"
    found = evaluated(bundle_path, catalog, out, against=str(other_bundle_path))
    assert json.loads((out / "metrics.json").read_text()) == found
    return out


@pytest.fixture(scope="module")
def metrics(out: Path) -> Any:
    return json.loads((out / "metrics.json").read_text())


def test_subgroups_are_those_columns_that_tell_images_apart(metrics: dict[str, Any]) -> None:
    assert [column["column"] for column in metrics["subgroups"]] == ["sex", "age"]
    assert [group["value"] for group in metrics["subgroups"][0]["groups"]] == ["male", "unknown"]
    assert [(group["value"], group["n"]) for group in metrics["subgroups"][1]["groups"]] == [
        ("30 to 49", 1),
        ("unknown", 35),
    ]
    assert [column["column"] for column in metrics["counts"]] == ["label", "source", "sex", "age", "anatomic_site"]
    assert all(sum(group["n"] for group in column["groups"]) == 36 for column in metrics["counts"])


def test_at_most_so_many_images_are_changed_and_checked_for_outliers(metrics: dict[str, Any]) -> None:
    assert metrics["stability"]["n"] == 6
    assert (metrics["outliers"][0]["kind"], metrics["outliers"][0]["n"]) == ("dermoscopy", 36)
    assert (metrics["outliers"][1]["kind"], metrics["outliers"][1]["n"]) == ("dermoscopy upside down", 6)


def test_another_bundle_is_taken_at_its_own_threshold(
    metrics: dict[str, Any], bundle: Bundle, other_bundle_path: Path, catalog: Path, tmp_path: Path
) -> None:
    other = evaluated(other_bundle_path, catalog, tmp_path, stability_images=0)
    assert "stability" not in other
    comparison = metrics["comparison"]
    assert comparison["model_version"] == bundles.load(str(other_bundle_path)).version != bundle.version
    for name, figure in comparison["figures"].items():
        assert figure["this"] == pytest.approx(metrics[name]["value"], abs=1e-9)
        assert figure["other"] == pytest.approx(other[name]["value"], abs=1e-9)


def test_columns_and_prevalence_as_asked_for(bundle_path: Path, catalog: Path, tmp_path: Path) -> None:
    found = evaluated(bundle_path, catalog, tmp_path, by=("source", "exposure"), prevalence=0.01, stability_images=0)
    assert [column["column"] for column in found["subgroups"]] == ["source", "exposure"]
    assert len(found["subgroups"][1]["groups"]) == 4
    assert [row["prevalence"] for row in found["at_prevalence"]] == [pytest.approx(1 / 9), 0.01, 0.02, 0.001]
    report = (tmp_path / "report.html").read_text()
    assert "1% as stated" in report


def test_a_column_that_cannot_be_measured_by_is_refused(bundle_path: Path, catalog: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="has no column 'skin_tone' to measure by; it has uri"):
        evaluated(bundle_path, catalog, tmp_path / "out", by=("skin_tone",))
    frame = schema.read(str(catalog))
    schema.write(str(tmp_path / "more.parquet"), pd.concat([frame, frame], ignore_index=True).assign(image_id=TWICE))
    with pytest.raises(InputError, match="'image_id' has 72 values: choose one with at most 50"):
        evaluated(bundle_path, tmp_path / "more.parquet", tmp_path / "out", by=("image_id",))
    assert not (tmp_path / "out").exists()


def test_one_source_is_measured_over_its_own_classes(bundle_path: Path, catalog: Path, tmp_path: Path) -> None:
    """As HAM10000 in a catalog with a set that tells apart what it joins, and with one of its images relabelled."""
    frame = schema.read(str(catalog))
    joined = {"AK": "AK|SCC", "SCC": "AK|SCC", "BKL": "BKL|SK", "SK": "BKL|SK"}
    coarse = frame.groupby("label").cumcount() < 3
    frame.loc[coarse, "source"] = "ham10000"
    frame.loc[coarse, "label"] = frame.loc[coarse, "label"].replace(joined)
    frame.loc[(frame["label"] == "AK|SCC").idxmax(), "label"] = "AK"
    schema.write(str(tmp_path / "both.parquet"), frame)
    fine = next(iter(set(frame["source"]) - {"ham10000"}))

    def classes(*sources: str) -> dict[str, int]:
        found = evaluated(bundle_path, tmp_path / "both.parquet", tmp_path / "out", sources=sources, stability_images=0)
        assert {group["value"] for group in found["counts"][1]["groups"]} == set(sources)
        return dict(found["class_counts"])

    seven = {"AK|SCC": 6, "BCC": 3, "DF": 3, "MEL": 3, "NV": 3, "BKL|SK": 6, "VASC": 3}
    assert classes("ham10000") == seven
    assert set(classes(fine).values()) == {1}
    assert len(classes(fine)) == 9
    assert classes(fine, "ham10000") == {label: n + len(label.split("|")) for label, n in seven.items()}


def test_a_source_that_is_not_there_or_has_no_image_in_the_split_is_one_sentence(
    bundle_path: Path, catalog: Path, tmp_path: Path
) -> None:
    frame = schema.read(str(catalog))
    frame.loc[frame["split"] == "test", "source"] = "clinic"
    schema.write(str(tmp_path / "two.parquet"), frame)
    two = frame["source"].unique().tolist()
    with pytest.raises(InputError, match=f"has no source 'HAM'; it has {', '.join(sorted(two))}."):
        evaluated(bundle_path, tmp_path / "two.parquet", tmp_path / "out", sources=("clinic", "HAM"))
    with pytest.raises(InputError, match="no usable images in the split 'train' that are of clinic"):
        evaluated(bundle_path, tmp_path / "two.parquet", tmp_path / "out", split="train", sources=("clinic",))
    assert not (tmp_path / "out").exists()


def test_what_is_known_of_patients_stays_in_the_catalog(out: Path) -> None:
    columns = set(pd.read_parquet(out / "predictions.parquet").columns)
    assert not columns & {"age", "sex", "anatomic_site", "patient_id"}


def test_the_order_of_the_catalog_does_not_matter(metrics: dict[str, Any], bundle: Bundle, catalog: Path) -> None:
    frame = schema.read(str(catalog))
    shuffled = frame.iloc[np.random.default_rng(0).permutation(len(frame))]
    repeated = evaluate_frame(bundle, shuffled, "all", "catalog.parquet", 0, stability_images=6).metrics.to_json()

    def plain(value: Any) -> Any:
        return json.loads(json.dumps(value), parse_float=lambda x: round(float(x), 5))

    for name in ("stability", "subgroups", "decision_curve", "calibration_slope"):
        assert plain(repeated[name]) == plain(metrics[name])


def test_a_bundle_compared_with_itself_does_not_differ(
    capsys: pytest.CaptureFixture[str], bundle_path: Path, catalog: Path, tmp_path: Path
) -> None:
    names = {"bundle": bundle_path, "catalog": catalog, "out": tmp_path, "against": bundle_path}
    settings = EvaluateConfig.model_validate({k: str(v) for k, v in names.items()} | {"split": "all", "by": ["sex"]})
    cli_evaluate.run_evaluate(settings.model_copy(update={"stability_images": 0}))
    said = capsys.readouterr()
    assert "against the other bundle" in said.out
    assert "Report:" in said.out
    for figure in json.loads((tmp_path / "metrics.json").read_text())["comparison"]["figures"].values():
        difference = figure["difference"]
        if figure["this"] is not None:
            assert (difference["value"], difference["low"], difference["high"]) == (0, 0, 0)


def test_pictures_that_are_not_there_are_refused(
    command: Callable[..., Any], bundle_path: Path, catalog: Path, tmp_path: Path
) -> None:
    refused = command("evaluate", bundle_path, catalog, "--out", tmp_path, "--others", tmp_path / "nowhere")
    assert (refused.code, refused.out) == (2, "")
    assert "no dermoscopy cannot be read" in refused.err


def test_pictures_of_the_users_own_are_checked_and_broken_files_left_out(
    bundle_path: Path, catalog: Path, lesion: Callable[..., bytes], tmp_path: Path
) -> None:
    for folder in ("one/photographs", "two/photographs"):
        (tmp_path / folder).mkdir(parents=True)
        for seed in range(3):
            (tmp_path / folder / f"{seed}.png").write_bytes(lesion("NV", seed, format="PNG"))
        (tmp_path / folder / "broken.png").write_bytes(b"not a picture")
    folders = [str(tmp_path / folder / "photographs") for folder in ("one", "two")]
    found = evaluated(bundle_path, catalog, tmp_path / "out", stability_images=0, others=tuple(folders))
    assert "stability" not in found
    assert [row["n"] for row in found["outliers"] if row["kind"] in folders] == [3, 3]


def test_patient_7_of_two_hospitals_are_two(bundle: Bundle, catalog: Path) -> None:
    rows = schema.read(str(catalog))
    melanomas, nevi = (rows[rows["label"] == label].head(4).reset_index(drop=True) for label in ("MEL", "NV"))
    # ISIC's numbers are one patient wherever they stand.
    given = {"source": ["a", "b", "a", "b"], "patient_id": ["7", "7", "IP_0000007", "IP_0000007"]}
    both = pd.concat([melanomas.assign(**given), nevi.assign(**given)], ignore_index=True)
    metrics = evaluate_frame(bundle, both, split="all", catalog="c", seed=0, stability_images=0).metrics
    assert metrics.top_of_patient is not None
    assert (metrics.top_of_patient["1"].n_melanoma, metrics.top_of_patient["1"].n_patients) == (4, 3)


@pytest.mark.parametrize("column", ["patient_id", "lesion_id", "thumbnail"])
def test_no_patient_is_named_by_a_subgroup(bundle_path: Path, catalog: Path, tmp_path: Path, column: str) -> None:
    with pytest.raises(InputError, match=f"no column '{column}' to measure by"):
        evaluated(bundle_path, catalog, tmp_path / "out", by=(column,))
    assert not (tmp_path / "out" / "report.html").exists()
