"""The model card of a bundle, in Markdown (Mitchell et al. 2019, arXiv:1810.03993). Its figures are the manifest's."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from melanoma import taxonomy
from melanoma.evaluation.wording import INTENDED_USE, MEASURES, NOT_INTENDED_USE, PERCENTAGES, left_out, training_gap
from melanoma.pages import templates

UNKNOWN = "unknown"

_HAM10000 = ("CC BY-NC-SA 4.0", "Tschandl et al. 2018, doi:10.1038/sdata.2018.161")
_ARCHIVE = ("CC BY-NC 4.0, CC BY 4.0 or CC0, by image", "the ISIC archive, isic-archive.com")

# By a catalog's name of the source: what it is, its licence, how to cite it.
_SOURCES = {
    "ham10000": ("HAM10000, dermoscopy of two clinics", *_HAM10000),
    "rosendahl": ("HAM10000, a practice for skin cancer in Queensland", *_HAM10000),
    "vidir_modern": ("HAM10000, Vienna, digital dermoscopes", *_HAM10000),
    "vidir_molemax": ("HAM10000, Vienna, MoleMax", *_HAM10000),
    "vienna_dias": ("HAM10000, Vienna, slides that were digitized", *_HAM10000),
    "milk10k": ("MILK10k, many hospitals, its dermoscopy alone", "CC BY-NC 4.0", "ISIC 2025 challenge, MILK10k"),
    "isic_misc": ("images of the ISIC archive from many places", *_ARCHIVE),
    "ISIC2018 task1-2 centre crop": ("middles of images of the ISIC 2018 challenge", *_ARCHIVE),
    "ISIC2020 dicom": (
        "DICOM files of the ISIC 2020 challenge",
        "CC BY-NC 4.0",
        "Rotemberg et al. 2021, doi:10.1038/s41597-021-00815-z",
    ),
    "isic2017": (
        "ISIC 2017 challenge, many cameras",
        "CC0 by the challenge's word, not verified: treat as non-commercial",
        "Codella et al. 2018, arXiv:1710.05006",
    ),
    "isic9": (
        "the nine-class set that circulates, made of images of the ISIC archive",
        "none stated; the images it is made of are for non-commercial use",
        UNKNOWN,
    ),
}

_PLACES = ("catalog", "out", "checkpoints", "run_name")  # where it was trained: not for the reader of a card


def model_card(manifest: Mapping[str, Any], is_compiled: bool = False) -> str:
    """The card of the tree of a `bundle.json`, with or without its `model_version`. What the tree lacks is "unknown".

    `is_compiled`: whether the tree speaks of the compiled form, as that of `Bundle.in_form` may.

    The tree and not a Manifest: the card is a file of the bundle, and is written before its manifest is sealed.
    """
    training = manifest.get("training", {})
    config = training.get("config", {})
    recipe = {key: value for key, value in config.items() if key not in _PLACES}
    thresholds = manifest.get("thresholds", {})
    metrics = manifest.get("metrics", {})
    own = (manifest.get("compiled") or {}).get("metrics") or {}
    environment = templates.environment(Path(__file__).parent, html=False)
    environment.filters |= {"cell": _cell, "known": _known, "figure": _figure, "share": _share}
    return environment.get_template("card.md.j2").render(
        manifest=manifest,
        model=_model(manifest, training, config, is_compiled),
        compiled=None if is_compiled else manifest.get("compiled"),
        intended_use=INTENDED_USE,
        not_intended_use=NOT_INTENDED_USE,
        sources=[
            (source, *_SOURCES.get(source, (UNKNOWN, UNKNOWN, UNKNOWN)), sum(counts.values()), _melanomas(counts))
            for source, counts in (training.get("source_counts") or {}).items()
        ],
        class_counts=training.get("class_counts") or {},
        labels=_labels(training.get("class_counts") or {}),
        training_gap=training_gap(training.get("class_counts") or {}),
        distribution=(training.get("class_distribution") or {}).get("rows", []),
        thresholds=thresholds,
        point=thresholds.get("operating_point"),
        malignancy=thresholds.get("malignancy"),
        metrics=metrics,
        compiled_measures=[
            (title, _figure(own[name], name in PERCENTAGES), _figure(metrics[name], name in PERCENTAGES))
            for name, (title, _) in MEASURES.items()
            if name in own and name in metrics
        ],
        left_out=left_out(metrics),
        measures=[
            (title, note, _figure(metrics[name], name in PERCENTAGES))
            for name, (title, note) in MEASURES.items()
            if name in metrics
        ],
        fingerprint=_known(training.get("catalog_fingerprint")),
        config=yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True) if recipe else None,
        versions=manifest.get("versions") or {},
    )


def _model(
    manifest: Mapping[str, Any], training: Mapping[str, Any], config: Mapping[str, Any], is_compiled: bool
) -> dict[str, str]:
    """The rows of the first table.

    Args:
        manifest: The tree of a `bundle.json`.
        training: What it says of the training.
        config: The configuration of that.
        is_compiled: Whether all is said of the compiled form.
    """
    network = config.get("network") or {}
    parameters = training.get("parameters")
    size = manifest.get("input_size")
    calibration = manifest.get("calibration") or {}
    settings = ", ".join(f"{key} {_value(value)}" for key, value in network.items() if key != "name")
    return {
        "Version": manifest.get("model_version", "the `model_version` of `bundle.json`, beside this card"),
        "Form that this card is of": "compiled (OpenVINO, 8-bit integers)" if is_compiled else "TensorFlow (float32)",
        "Made": _known(manifest.get("created")),
        "Network": _known(network.get("name")) + (f" ({settings})" if settings else ""),
        "Members whose logits are averaged": _known(config.get("members")),
        "Parameters": UNKNOWN if parameters is None else f"{parameters:,}",
        "Input": UNKNOWN if size is None else f"uint8 RGB, {size} x {size} pixels",
        "Orientations averaged over": _known(manifest.get("test_time_flips", 1)),
        "Output": f"probabilities of {len(taxonomy.CODES)} diagnoses",
        "Temperature of the softmax": f"{_known(calibration.get('temperature'))}, fitted on "
        f"{_known(calibration.get('fitted_on'))}",
        "Preprocessing": f"{_known(manifest.get('preprocessing'))}: the whole frame, squashed to a square; scaling is "
        "a part of the network",
        "Epoch": _epochs(training.get("members")),
        **({"Initial weights": training["initial_weights"]} if training.get("initial_weights") else {}),
        "Licence of the weights": manifest.get("licence")
        or "unknown: none was stated, and the licences of the images bind what is made of them",
    }


def _labels(class_counts: Mapping[str, Mapping[str, int]]) -> list[str]:
    found = {label for counts in class_counts.values() for label in counts}
    return sorted(found, key=lambda label: (taxonomy.CODES.index(taxonomy.codes_of(label)[0]), label))


def _melanomas(counts: Mapping[str, int]) -> int:
    return counts.get(taxonomy.MELANOMA, 0)


def _known(value: Any) -> str:
    return UNKNOWN if value is None else _value(value)


def _epochs(members: Sequence[Mapping[str, Any]] | None) -> str:
    """The epoch that was kept of each member."""
    if not members:
        return UNKNOWN
    return ", ".join(f"{member['best_epoch']} of {len(member['history'])}" for member in members)


def _value(value: Any) -> str:
    if isinstance(value, list | tuple):
        return "-".join(_value(part) for part in value)
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _share(value: float) -> str:
    return f"{value:.1%}"


def _figure(estimate: Mapping[str, Any], as_percentage: bool = True) -> str:
    """ "95.0% (88.1% to 98.2%)"; an estimate without a value, such as of no melanomas, is not defined."""
    if estimate["value"] is None:
        return "not defined"
    form = "{:.1%}" if as_percentage else "{:.3f}"
    text = form.format(estimate["value"])
    if estimate["low"] is None or estimate["high"] is None:
        return f"{text} (no interval)"
    return f"{text} ({form.format(estimate['low'])} to {form.format(estimate['high'])})"


def _cell(value: Any) -> str:
    """Text for a cell of a Markdown table: a label such as "AK|SCC" must not end it."""
    return " ".join(str(value).split()).replace("|", "\\|").replace("<", "&lt;")
