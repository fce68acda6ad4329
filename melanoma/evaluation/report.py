"""The files of an evaluation: metrics.json, predictions.parquet, figures and a report.html that needs nothing else."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from melanoma.evaluation import gallery, wording
from melanoma.evaluation.figures import (
    class_distribution_figure,
    confusion_figure,
    decision_curve_figure,
    figure_png,
    leaked_curves_figure,
    reliability_figure,
    roc_figure,
    subgroup_figure,
    training_curves_figure,
)
from melanoma.evaluation.metrics import Metrics
from melanoma.evaluation.predictions import (
    class_probabilities,
    group_codes,
    melanoma_side,
    most_probable,
    true_class,
)
from melanoma.evaluation.published import PUBLISHED
from melanoma.evaluation.subgroups import UNKNOWN, ColumnCounts
from melanoma.pages import templates
from melanoma.taxonomy import CODES, MELANOMA, codes_of

FEW_GROUPS = 30


@dataclass(frozen=True)
class Details:
    """What the report says of the model and of the set, beside the figures."""

    title: str
    date: str
    # The model.
    model_version: str
    bundle_created: str
    code_version: str
    classes: Sequence[str]  # that it was trained on
    thresholds: Mapping[str, Any]  # by level, and how they were chosen
    operating_point: Mapping[str, Any] | None  # see `melanoma.evaluation.operating_point`
    training: Mapping[str, str]  # the network and its training in words, by their names
    members: Sequence[Mapping[str, Any]]  # see `training_curves_figure`
    class_counts: Mapping[str, Mapping[str, int]]  # images of each label, by split of the training
    source_counts: Mapping[str, Mapping[str, int]] | None  # images of each label, by source of the training
    class_distribution: Sequence[Mapping[str, Any]] | None  # see `class_distribution_figure`
    # Parts of metrics.json by the name of what they were measured on, and an `explanation`.
    leaked_twin: Mapping[str, Any] | None
    versions: Mapping[str, str]  # of the libraries in training
    fingerprints: Mapping[str, str]  # by what they are of
    # The set.
    catalog: str
    sources: str
    split: str
    split_fingerprint: str
    labels_changed: int  # images whose label or group a rule of repair has changed
    leak_warning: str | None


def write_report(
    out: Path,
    predictions: pd.DataFrame,
    metrics: Metrics,
    pictures: Mapping[str, bytes] | None,
    details: Details,
) -> None:
    """Write metrics.json, predictions.parquet, report.html and figures/*.png, over what is there.

    Args:
        out: The folder to write to; it is made where it is missing.
        predictions: The table that was measured, see `melanoma.evaluation.predictions`.
        metrics: Its figures.
        pictures: A small JPEG or PNG by each uri of `gallery.select_pictures`, with the seed of the metrics; an image
            may lack one. None: neither pictures nor predictions.parquet, for images that may not be given away.
        details: What the report says of the model and of the set.
    """
    figures = _figures(predictions, metrics, details)
    html = _html(predictions, metrics, pictures, details, figures)
    (out / "figures").mkdir(parents=True, exist_ok=True)
    for name, png in figures.items():
        (out / "figures" / f"{name}.png").write_bytes(png)
    if pictures is not None:
        predictions.to_parquet(out / "predictions.parquet", engine="pyarrow", index=False)
    text = json.dumps(metrics.to_json(), indent=2, allow_nan=False)
    (out / "metrics.json").write_text(text + "\n", encoding="utf-8")
    (out / "report.html").write_text(html, encoding="utf-8")


def _figures(predictions: pd.DataFrame, metrics: Metrics, details: Details) -> dict[str, bytes]:
    """The PNG of each figure by its name."""
    classes = tuple(metrics.classes)
    truth = true_class(predictions, classes)
    classed = truth >= 0
    probability = class_probabilities(predictions, classes)[classed]
    answer, confidence = most_probable(probability)
    right = answer == truth[classed]
    melanoma = melanoma_side(predictions)
    p_melanoma = predictions["p_melanoma"].to_numpy(dtype=np.float64)
    group, _ = group_codes(predictions)
    figures: dict[str, Figure] = {"roc": roc_figure(predictions, metrics)}
    if classed.any():
        figures["confusion"] = confusion_figure(metrics)
        figures["reliability"] = reliability_figure(
            confidence, right, group[classed], "probability of the answer", "share of right answers"
        )
    if melanoma.known.any():
        known = melanoma.known
        figures["reliability_melanoma"] = reliability_figure(
            p_melanoma[known], melanoma.yes[known], group[known], "probability of melanoma", "share that is melanoma"
        )
    if metrics.decision_curve:
        figures["decision_curve"] = decision_curve_figure(metrics.decision_curve)
    if metrics.subgroups:
        figures["subgroups"] = subgroup_figure(metrics.subgroups)
    if details.class_distribution:
        figures["class_distribution"] = class_distribution_figure(details.class_distribution)
    if any(member["history"] for member in details.members):
        figures["training_curves"] = training_curves_figure(details.members)
    if details.leaked_twin and details.leaked_twin.get("leaked_history"):
        honest = details.members[0]["history"]
        validation = [each.validation for each in PUBLISHED]
        figures["leaked_curves"] = leaked_curves_figure(details.leaked_twin["leaked_history"], honest, validation)
    return {name: figure_png(figure) for name, figure in figures.items()}


def _html(
    predictions: pd.DataFrame,
    metrics: Metrics,
    pictures: Mapping[str, bytes] | None,
    details: Details,
    figures: Mapping[str, bytes],
) -> str:
    environment = templates.environment(Path(__file__).parent)
    environment.filters |= {
        "percent": wording.percent,
        "value": wording.value_text,
        "words": wording.words,
        "capitalize_first": lambda text: text[:1].upper() + text[1:],
    }
    return environment.get_template("report.html.j2").render(
        details=details,
        metrics=metrics,
        contents=_contents(metrics, details),
        headlines=wording.headlines(metrics),
        intended_use=wording.INTENDED_USE,
        not_intended_use=wording.NOT_INTENDED_USE,
        figures={name: gallery.image_uri(png) for name, png in figures.items()},
        sections=gallery.sections(predictions, metrics, pictures) if pictures is not None else [],
        melanoma_class=MELANOMA,
        few_groups=FEW_GROUPS,
        n_melanoma_groups=predictions["group_id"][melanoma_side(predictions).yes].nunique(),
        left_out=wording.left_out(metrics.to_json()),
        **_measures(metrics),
        **_set(metrics),
        **_model(metrics, details),
    )


def _measures(metrics: Metrics) -> dict[str, Any]:
    """The rows of the tables of measures, and how their intervals were made."""
    used = set(_methods(metrics.to_json()))
    return {
        "measures": [
            (title, note, getattr(metrics, name), name in wording.PERCENTAGES)
            for name, (title, note) in wording.MEASURES.items()
        ],
        "compared": [
            (title, metrics.comparison.figures[name], name in wording.PERCENTAGES)
            for name, (title, _) in wording.MEASURES.items()
            if metrics.comparison
        ],
        "methods": {
            name: text.format(resamples=metrics.bootstrap.resamples)
            for name, text in wording.METHODS.items()
            if name in used
        },
    }


def _set(metrics: Metrics) -> dict[str, Any]:
    """The columns of the catalog that tell the images apart, and those that are unknown for all of them."""
    counts = metrics.counts or []
    return {
        "counts": [column for column in counts if not _is_unknown(column)],
        "unknown_everywhere": [wording.words(column.column) for column in counts if _is_unknown(column)],
    }


def _model(metrics: Metrics, details: Details) -> dict[str, Any]:
    """What the sections on the model show."""
    trained = {label for counts in details.class_counts.values() for label in counts}
    versions = ", ".join(f"{name} {value}" for name, value in details.versions.items())
    return {
        "thresholds": _plain(details.thresholds),
        "malignancy_thresholds": _plain(details.thresholds.get("malignancy") or {}),
        "by_source": _by_source(metrics, details),
        "exhibit": _exhibit(metrics, details),
        "published": PUBLISHED,
        "trained_labels": sorted(trained, key=lambda label: (CODES.index(codes_of(label)[0]), label)),
        "training_gap": wording.training_gap(details.class_counts),
        "trained_images": sum(row["images"] for row in details.class_distribution or []),
        "training_pace": wording.training_pace([epoch for member in details.members for epoch in member["history"]]),
        "versions": {
            "Model version": details.model_version,
            "Model made": details.bundle_created,
            "Versions in training": versions,
            "Version of this test": f"melanoma {details.code_version}",
            **details.fingerprints,
        },
    }


def _by_source(metrics: Metrics, details: Details) -> list[dict[str, Any]]:
    """How far each source keeps the sensitivity that was stated when the thresholds were chosen, by question."""
    groups = [group for column in metrics.subgroups or [] if column.column == "source" for group in column.groups]
    points = (details.operating_point, (details.thresholds.get("malignancy") or {}).get("operating_point"))
    stated, of_malignancy = ((point or {}).get("stated_sensitivity") for point in points)
    return [
        {
            "figures": group,
            "melanoma": wording.kept(group.sensitivity.value, group.n_melanoma, stated),
            "malignancy": wording.kept(group.malignancy_sensitivity.value, group.n_malignant, of_malignancy)
            if group.malignancy_sensitivity
            else None,
        }
        for group in groups
    ]


def _plain(thresholds: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in thresholds.items() if value is not None and not isinstance(value, Mapping)}


def _is_unknown(column: ColumnCounts) -> bool:
    return [group.value for group in column.groups] == [UNKNOWN]


def _methods(metrics: Any) -> Iterator[str]:
    """The method of every interval in metrics.json."""
    if isinstance(metrics, Mapping):
        if isinstance(metrics.get("method"), str):
            yield metrics["method"]
        metrics = list(metrics.values())
    if isinstance(metrics, list):
        for value in metrics:
            yield from _methods(value)


def _contents(metrics: Metrics, details: Details) -> dict[str, str]:
    """The sections that the page has, by their anchors."""
    return {
        "result": "Result",
        "tested": "On whom",
        "measures": "All measures",
        **({"classes": "Class by class"} if metrics.classes else {}),
        "melanoma": "Melanoma, calibration",
        "alerts": "Alerts",
        **({"subgroups": "Subgroups"} if metrics.subgroups is not None else {}),
        **({"stability": "Stability"} if metrics.stability else {}),
        **({"outliers": "No dermoscopy"} if metrics.outliers else {}),
        **({"comparison": "Against another model"} if metrics.comparison else {}),
        "mistakes": "Worst mistakes",
        **({"exhibit": "How the usual recipe flatters itself"} if details.leaked_twin else {}),
        "card": "Model card",
        "limits": "What this is not",
    }


def _exhibit(metrics: Metrics, details: Details) -> list[dict[str, Any]]:
    """The figures of the leaked twin beside those of this model, in the order in which a project would meet them."""
    twin = details.leaked_twin
    if not twin:
        return []
    on_test = [name for name in twin if name.startswith("leaked_model_on_")]
    titles = {
        "leaked_validation": "The usual recipe, on its own leaked validation images",
        **{
            name: f"The same leaked model on {wording.words(name[16:])} images that it has not seen" for name in on_test
        },
        "honest_validation": "The same recipe with an honest split, on validation",
    }
    shown = [
        {"title": title, "leaked": name == "leaked_validation", **twin[name]}
        for name, title in titles.items()
        if name in twin
    ]
    this = {"n": metrics.n, "accuracy": metrics.accuracy, "melanoma_auc": metrics.melanoma_auc}
    return [*shown, {"title": "This model, on the images of this report", "leaked": False, **this}]
