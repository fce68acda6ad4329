"""The files of an evaluation: metrics.json, predictions.parquet, figures and a report.html that needs nothing else."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from melanoma.evaluation.decision import JOINT
from melanoma.evaluation.figures import (
    class_distribution_figure,
    confusion_figure,
    decision_curve_figure,
    figure_png,
    reliability_figure,
    roc_figure,
    subgroup_figure,
    training_curves_figure,
)
from melanoma.evaluation.intervals import BOOTSTRAP, EXACT, EXACT_CLUSTERED, Estimate
from melanoma.evaluation.predictions import class_probabilities, group_codes, is_melanoma, true_class
from melanoma.evaluation.subgroups import UNKNOWN
from melanoma.pages import page
from melanoma.taxonomy import CODES, MELANOMA, codes_of

PICTURES_A_SECTION = 12
FEW_GROUPS = 30

# What the report and the model card (melanoma.evaluation.card) both say.
INTENDED_USE = (
    (
        "Research and teaching: training, measuring and comparing models of dermoscopy images with figures that can be "
        "trusted."
    ),
    (
        "Ordering an archive of dermoscopy images by the probability of melanoma, for a dermatologist who looks at the "
        "images anyway, within a study that its ethics board knows of."
    ),
)
NOT_INTENDED_USE = (
    (
        "Diagnosing a person, or telling anyone that a lesion is harmless. It is not a medical device: nobody has "
        "cleared it for one."
    ),
    "Leaving an image unread because it raised no alert.",
    "Photographs that are no dermoscopy, such as those of a phone without a dermatoscope, nails, mucosa, or wounds.",
    "People whom the training images do not show: children, and dark skin, may be hardly among them.",
    "Anything commercial, unless the licence of every source of images allows it.",
)
MEASURES: dict[str, tuple[str, str]] = {
    "sensitivity": ("Sensitivity", "melanomas with a melanoma probability at or above the frozen threshold"),
    "specificity": ("Specificity", "other images below the frozen threshold"),
    "melanoma_auc": (
        "Area under the ROC curve",
        "melanoma against the rest: the chance that a melanoma ranks above another image; 0.5 is a random order",
    ),
    "melanoma_pauc": (
        "Partial area above 80% sensitivity",
        "as in the ISIC 2024 challenge: at most 0.2; 0.02 is a random order",
    ),
    "specificity_at_95_sensitivity": (
        "Specificity at 95% sensitivity",
        "read off this set's own ROC curve: optimistic, and not the frozen operating point",
    ),
    "sensitivity_at_95_specificity": ("Sensitivity at 95% specificity", "read off this set's own ROC curve, as well"),
    "accuracy": ("Accuracy", "images whose most probable class is the true one"),
    "balanced_accuracy": ("Balanced accuracy", "mean recall of the classes that have images in this set"),
    "ece": (
        "Calibration error (ECE)",
        (
            "gap between the probability of the most probable class and how often it is right, 15 equal bins; 0 is "
            "best, but chance alone keeps a small set above it, and its interval too"
        ),
    ),
    "brier": ("Brier score of melanoma", "mean squared error of the melanoma probability; 0 is best"),
    "calibration_slope": (
        "Calibration slope of melanoma",
        "1 is right; below 1 the melanoma probabilities are too extreme, above 1 too cautious",
    ),
    "calibration_intercept": (
        "Calibration intercept of melanoma",
        "0 is right; below 0 the melanoma probabilities are too high on the whole, above 0 too low (log odds)",
    ),
}
PERCENTAGES = (
    "sensitivity",
    "specificity",
    "specificity_at_95_sensitivity",
    "sensitivity_at_95_specificity",
    "accuracy",
    "balanced_accuracy",
)
_METHODS = {
    EXACT: "exact binomial interval of Clopper and Pearson: every image is a group of its own",
    EXACT_CLUSTERED: "the exact binomial interval at the effective number of independent images, because images of one "
    "group resemble each other (Korn and Graubard 1998)",
    BOOTSTRAP: "percentile bootstrap that draws whole groups with replacement, {resamples:,} times: approximate; by "
    "simulation it holds the true AUC in 94% of cases, and for the other figures that was not tried",
    JOINT: "the exact binomial intervals of sensitivity and specificity, each at such a level (97.5%) that both hold "
    "together with 95%; by Bayes' rule, and a little wider than they need be",
}


@dataclass(frozen=True)
class _Selection:
    """Row positions of the images that the report shows, and how many there were to choose from."""

    missed: np.ndarray
    n_missed: int
    false_alarms: np.ndarray
    n_false_alarms: int
    sample: np.ndarray


def select_pictures(predictions: pd.DataFrame, seed: int = 0) -> list[str]:
    """The uris of the images that the report shows, each once.

    They are the missed melanomas with the lowest `p_melanoma`, the false alarms with the highest and a random sample,
    at most 12 of each. The order of the rows does not matter.
    """
    chosen = _select(predictions, seed)
    rows = np.concatenate([chosen.missed, chosen.false_alarms, chosen.sample])
    return list(dict.fromkeys(predictions["uri"].iloc[rows]))


def write_report(
    out: Path,
    predictions: pd.DataFrame,
    metrics: Mapping[str, Any],
    pictures: Mapping[str, bytes] | None,
    about: Mapping[str, Any],
) -> None:
    """Writes metrics.json, predictions.parquet, report.html and figures/*.png under `out`, over what is there.

    `predictions` and `metrics` are those of `melanoma.evaluation.metrics.compute_metrics`. `pictures` None:
    neither pictures nor predictions.parquet, for images that may not be given away. Else it maps the uris of
    `select_pictures`, with the seed that the metrics were computed with, to small JPEG or PNG pictures; an image
    may lack one.

    `about` has the strings `title`, `model_version`, `bundle_created`, `catalog`, `sources`, `split`,
    `split_fingerprint`, `code_version` and `date`; `classes`, those that the model was trained on; `leak_warning`, a
    string or None; the mappings of a name to a value `training`, `thresholds`, `versions` and `fingerprints`;
    `class_counts` (images of each label by split of the training) and `source_counts` (images of each label by source,
    or None); `labels_changed`, the number of images that a rule has changed; `members` (see `training_curves_figure`);
    and of the bundle, or None:
    `operating_point` (see `melanoma.evaluation.operating_point`), `class_distribution` (see
    `class_distribution_figure`) and `leaked_twin` (figures of metrics.json by the name of what they were measured on,
    and an `explanation`). Raises jinja2.UndefinedError or KeyError when one is missing, before anything is written.

    Of `metrics`, `counts`, `subgroups`, `stability`, `outliers`, `comparison` and `top_of_patient` may be absent.
    """
    figures = _figures(predictions, metrics, about)
    html = _html(predictions, metrics, pictures, about, figures)
    (out / "figures").mkdir(parents=True, exist_ok=True)
    for name, png in figures.items():
        (out / "figures" / f"{name}.png").write_bytes(png)
    if pictures is not None:
        predictions.to_parquet(out / "predictions.parquet", engine="pyarrow", index=False)
    (out / "metrics.json").write_text(json.dumps(metrics, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    (out / "report.html").write_text(html, encoding="utf-8")


def _select(predictions: pd.DataFrame, seed: int) -> _Selection:
    score = predictions["p_melanoma"].to_numpy(dtype=np.float64)
    raised = score >= predictions["threshold"].to_numpy(dtype=np.float64)
    melanoma = is_melanoma(predictions)
    by_uri = np.argsort(predictions["uri"].to_numpy(dtype=object), kind="stable")
    rising = by_uri[np.argsort(score[by_uri], kind="stable")]
    missed = rising[(melanoma & ~raised)[rising]]
    false_alarms = rising[::-1][(~melanoma & raised)[rising[::-1]]]
    sample = np.random.default_rng(seed).permutation(by_uri)
    return _Selection(
        missed=missed[:PICTURES_A_SECTION],
        n_missed=len(missed),
        false_alarms=false_alarms[:PICTURES_A_SECTION],
        n_false_alarms=len(false_alarms),
        sample=sample[:PICTURES_A_SECTION],
    )


def _figures(predictions: pd.DataFrame, metrics: Mapping[str, Any], about: Mapping[str, Any]) -> dict[str, bytes]:
    """The PNG of each figure by its name."""
    classes = tuple(metrics["classes"])
    probability = class_probabilities(predictions, classes)
    right = probability.argmax(axis=1) == true_class(predictions, classes)
    melanoma = is_melanoma(predictions)
    p_melanoma = predictions["p_melanoma"].to_numpy(dtype=np.float64)
    group, _ = group_codes(predictions)
    figures: dict[str, Figure] = {
        "confusion": confusion_figure(metrics),
        "roc": roc_figure(predictions, metrics),
        "reliability_melanoma": reliability_figure(
            p_melanoma, melanoma, group, "probability of melanoma", "share that is melanoma"
        ),
        "reliability": reliability_figure(
            probability.max(axis=1), right, group, "probability of the answer", "share of right answers"
        ),
    }
    if metrics["decision_curve"]:
        figures["decision_curve"] = decision_curve_figure(metrics["decision_curve"])
    if metrics.get("subgroups"):
        figures["subgroups"] = subgroup_figure(metrics["subgroups"])
    if about["class_distribution"]:
        figures["class_distribution"] = class_distribution_figure(about["class_distribution"])
    if any(member["history"] for member in about["members"]):
        figures["training_curves"] = training_curves_figure(about["members"])
    return {name: figure_png(figure) for name, figure in figures.items()}


def _html(
    predictions: pd.DataFrame,
    metrics: Mapping[str, Any],
    pictures: Mapping[str, bytes] | None,
    about: Mapping[str, Any],
    figures: Mapping[str, bytes],
) -> str:
    environment = page.environment(Path(__file__).parent)
    environment.filters |= {
        "percent": percent,
        "value": _value,
        "words": _words,
        "capitalize_first": lambda text: text[:1].upper() + text[1:],
    }
    sections = _galleries(predictions, metrics, pictures) if pictures is not None else []
    methods = set(_methods(metrics))
    trained = {label for counts in about["class_counts"].values() for label in counts}
    distribution = about["class_distribution"] or []
    return environment.get_template("report.html.j2").render(
        about=about,
        metrics=metrics,
        contents=_contents(metrics, about),
        headlines=_headlines(metrics),
        intended_use=INTENDED_USE,
        not_intended_use=NOT_INTENDED_USE,
        rows=[(title, note, metrics[name], name in PERCENTAGES) for name, (title, note) in MEASURES.items()],
        compared=[
            (title, metrics["comparison"]["figures"][name], name in PERCENTAGES)
            for name, (title, _) in MEASURES.items()
            if "comparison" in metrics
        ],
        methods={
            name: text.format(resamples=metrics["bootstrap"]["resamples"])
            for name, text in _METHODS.items()
            if name in methods
        },
        few_groups=FEW_GROUPS,
        n_melanoma_groups=predictions["group_id"][is_melanoma(predictions)].nunique(),
        counts=[column for column in metrics.get("counts", []) if not _is_unknown(column)],
        unknown_everywhere=[_words(c["column"]) for c in metrics.get("counts", []) if _is_unknown(c)],
        thresholds={name: value for name, value in about["thresholds"].items() if not isinstance(value, Mapping)},
        exhibit=_exhibit(metrics, about),
        trained_labels=sorted(trained, key=lambda label: CODES.index(codes_of(label)[0])),
        training_pace=_training_pace(about["members"]),
        trained_images=sum(row["images"] for row in distribution),
        versions={
            "Model version": about["model_version"],
            "Model made": about["bundle_created"],
            "Versions in training": ", ".join(f"{name} {value}" for name, value in about["versions"].items()),
            "Version of this test": f"melanoma {about['code_version']}",
            **about["fingerprints"],
        },
        figures={name: _data_uri(png) for name, png in figures.items()},
        sections=sections,
        melanoma_class=MELANOMA,
    )


def _is_unknown(column: Mapping[str, Any]) -> bool:
    return [group["value"] for group in column["groups"]] == [UNKNOWN]


def _methods(metrics: Any) -> Iterator[str]:
    """The method of every interval in metrics.json."""
    if isinstance(metrics, Mapping):
        if isinstance(metrics.get("method"), str):
            yield metrics["method"]
        metrics = list(metrics.values())
    if isinstance(metrics, list):
        for value in metrics:
            yield from _methods(value)


def _contents(metrics: Mapping[str, Any], about: Mapping[str, Any]) -> dict[str, str]:
    """The sections that the page has, by their anchors."""
    return {
        "result": "Result",
        "tested": "On whom",
        "measures": "All measures",
        "classes": "Class by class",
        "melanoma": "Melanoma, calibration",
        "alerts": "Alerts",
        **({"subgroups": "Subgroups"} if "subgroups" in metrics else {}),
        **({"stability": "Stability"} if "stability" in metrics else {}),
        **({"outliers": "No dermoscopy"} if metrics.get("outliers") else {}),
        **({"comparison": "Against another model"} if "comparison" in metrics else {}),
        "mistakes": "Worst mistakes",
        **({"exhibit": "How the usual recipe flatters itself"} if about["leaked_twin"] else {}),
        "card": "Model card",
        "limits": "What this is not",
    }


def _exhibit(metrics: Mapping[str, Any], about: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The figures of the leaked twin beside those of this model, in the order in which a project would meet them."""
    twin = about["leaked_twin"]
    if not twin:
        return []
    on_test = [name for name in twin if name.startswith("leaked_model_on_")]
    titles = {
        "leaked_validation": "The usual recipe, on its own leaked validation images",
        **{name: f"The same leaked model on {_words(name[16:])} images that it has not seen" for name in on_test},
        "honest_validation": "The same recipe with an honest split, on validation",
    }
    shown = {title: twin[name] for name, title in titles.items() if name in twin}
    shown["This model, on the images of this report"] = metrics
    return [
        {"title": title, "leaked": value is twin.get("leaked_validation"), **value} for title, value in shown.items()
    ]


def _training_pace(members: Sequence[Mapping[str, Any]]) -> str:
    """How fast the training was and how long it waited for its input, where the bundle knows."""
    epochs = [epoch for member in members for epoch in member["history"] if "input_wait_share" in epoch]
    if not epochs:
        return ""
    waited, pace = (np.mean([epoch[name] for epoch in epochs]) for name in ("input_wait_share", "images_per_second"))
    return f"It took {pace:,.0f} images a second, and {waited:.1%} of that time was spent waiting for images."


# --- sample predictions ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Card:
    image_id: str
    label: str
    picture: str | None
    top: list[tuple[str, float]]
    p_melanoma: float
    alert_level: str


@dataclass(frozen=True)
class _Section:
    title: str
    note: str
    nothing: str
    cards: list[_Card]
    out_of: int


def _galleries(predictions: pd.DataFrame, metrics: Mapping[str, Any], pictures: Mapping[str, bytes]) -> list[_Section]:
    chosen = _select(predictions, metrics["bootstrap"]["seed"])
    classes = tuple(metrics["classes"])
    probability = class_probabilities(predictions, classes)
    return [
        _Section(
            "Missed melanomas",
            "Melanomas below the threshold, the lowest probability first.",
            "No melanoma of this set is below the threshold." if metrics["n_melanoma"] else "This set has no melanoma.",
            _cards(predictions, chosen.missed, classes, probability, pictures),
            chosen.n_missed,
        ),
        _Section(
            "False alarms",
            (
                "Images at or above the threshold that are not melanoma (some may be another cancer), the highest "
                "probability first."
            ),
            "No other image of this set reaches the threshold.",
            _cards(predictions, chosen.false_alarms, classes, probability, pictures),
            chosen.n_false_alarms,
        ),
        _Section(
            "A random sample",
            "Drawn blindly from all images of this set, right and wrong answers alike.",
            "",
            _cards(predictions, chosen.sample, classes, probability, pictures),
            metrics["n"],
        ),
    ]


def _cards(
    predictions: pd.DataFrame,
    rows: np.ndarray,
    classes: tuple[str, ...],
    probability: np.ndarray,
    pictures: Mapping[str, bytes],
) -> list[_Card]:
    cards = []
    for i in rows:
        row = predictions.iloc[i]
        best = np.argsort(-probability[i], kind="stable")[:3]
        cards.append(
            _Card(
                image_id=row["image_id"],
                label=row["label"],
                picture=_data_uri(pictures.get(row["uri"], b"")),
                top=[(classes[j], float(probability[i, j])) for j in best],
                p_melanoma=float(row["p_melanoma"]),
                alert_level=row["alert_level"],
            )
        )
    return cards


def _data_uri(picture: bytes) -> str | None:
    """The picture for an `img` element; None for bytes that are neither JPEG nor PNG."""
    for start, kind in ((b"\xff\xd8\xff", "jpeg"), (b"\x89PNG\r\n\x1a\n", "png")):
        if picture.startswith(start):
            return page.data_uri(picture, kind)
    return None


# --- figures in words ------------------------------------------------------------------------------------------------


def percent(share: float) -> str:
    """``0.875`` gives "88%"; never "0%" or "100%" for what is not quite that."""
    text = f"{share:.0%}"
    if (text == "0%" and share > 0) or (text == "100%" and share < 1):
        text = f"{share:.1%}"
        text = {"0.0%": "under 0.1%", "100.0%": "over 99.9%"}.get(text, text)
    return text


def _words(name: str) -> str:
    return name.replace("_", " ")


def _value(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list | tuple):
        return ", ".join(_value(v) for v in value)
    return str(value)


def _headlines(metrics: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Title, figure and sentence of the most important results."""
    n, n_melanoma = metrics["n"], metrics["n_melanoma"]
    n_other = n - n_melanoma
    sensitivity, specificity, auc = (metrics[key] for key in ("sensitivity", "specificity", "melanoma_auc"))
    balanced, accuracy = metrics["balanced_accuracy"], metrics["accuracy"]
    of_melanomas = "This set has no melanoma: sensitivity cannot be measured."
    if n_melanoma:
        hits = _hits(sensitivity, n_melanoma)
        of_melanomas = f"Of {_several(n_melanoma, 'melanoma')}, {hits} raised ({_with_interval(sensitivity)})."
    of_others = "This set has nothing but melanoma: specificity cannot be measured."
    if n_other:
        hits = _hits(specificity, n_other)
        others = _several(n_other, "image")
        of_others = f"Of {others} without melanoma, {hits} not raised ({_with_interval(specificity)})."
    of_pairs = "Ranking takes melanomas and other images: it cannot be measured on this set."
    if auc["value"] is not None:
        of_pairs = (
            "Of a melanoma and another image, both drawn at random, the melanoma has the higher probability in "
            f"{percent(auc['value'])} of cases ({_interval(auc)}); 50% would be chance."
        )
    of_classes = (
        f"Mean recall of the classes with images ({_with_interval(balanced)}). Of all {_several(n, 'image')}, "
        f"{_hits(accuracy, n)} given the right class ({_with_interval(accuracy)}); naming the commonest class always "
        f"would be right for {percent(metrics['majority_class_accuracy'])}."
    )
    return [
        ("Melanomas raised (sensitivity)", _figure(sensitivity), of_melanomas),
        ("Others left alone (specificity)", _figure(specificity), of_others),
        ("Ranking of melanoma (AUC)", "-" if auc["value"] is None else f"{auc['value']:.2f}", of_pairs),
        ("Right class (balanced accuracy)", _figure(balanced), of_classes),
    ]


def _figure(estimate: Estimate) -> str:
    return "-" if estimate["value"] is None else percent(estimate["value"])


def _with_interval(estimate: Estimate) -> str:
    return f"{_figure(estimate)}, {_interval(estimate)}"


def _interval(estimate: Estimate) -> str:
    if estimate["low"] is None or estimate["high"] is None:
        return "no interval: too few groups"
    return f"95% interval {percent(estimate['low'])} to {percent(estimate['high'])}"


def _hits(estimate: Estimate, n: int) -> str:
    hits = round((estimate["value"] or 0.0) * n)
    return f"{hits:,} {'was' if hits == 1 else 'were'}"


def _several(n: int, noun: str) -> str:
    return f"{n:,} {noun}{'' if n == 1 else 's'}"
