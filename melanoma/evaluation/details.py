"""What a report says of a model and of the images that it was measured on, see `melanoma.evaluation.report.Details`."""

import datetime
from typing import Any

import pandas as pd

from melanoma import storage, taxonomy
from melanoma.catalog import schema
from melanoma.evaluation.config import EvaluateConfig
from melanoma.evaluation.other_model import OtherModel
from melanoma.evaluation.report import Details
from melanoma.model.bundle import Bundle
from melanoma.model.compiled import FORM
from melanoma.model.manifest import Thresholds
from melanoma.version import program_version


def details_of_bundle(
    bundle: Bundle, frame: pd.DataFrame, rows: pd.DataFrame, split: str, catalog: str, leak: str | None
) -> Details:
    """What the report says of a bundle.

    Args:
        bundle: The model.
        frame: The catalog.
        rows: Those of it that were measured.
        split: The split that they are of.
        catalog: The catalog's address.
        leak: Why the figures are no fair test, or None.
    """
    manifest = bundle.manifest
    training = manifest.training
    point = manifest.thresholds.operating_point
    return Details(
        **_details_of_set(frame, rows, split, catalog),
        # A report inside a bundle cannot name the version that is derived from it.
        model_version=bundle.version if manifest.metrics else "the bundle that holds this report",
        bundle_created=manifest.created or "unknown",
        classes=manifest.classes,
        thresholds=manifest.thresholds.to_json(),
        operating_point=point.to_json() if point else None,
        training=_training_in_words(bundle),
        members=[member.to_json() for member in training.members],
        class_counts=training.class_counts,
        source_counts=training.source_counts,
        class_distribution=(training.class_distribution or {}).get("rows"),
        leaked_twin=training.leaked_twin,
        versions=manifest.versions,
        fingerprints={
            "Fingerprint of the training catalog": training.catalog_fingerprint or "unknown",
            "Fingerprint of this catalog": schema.fingerprint(frame),
            **{f"sha256 of {name}": sha256 for name, sha256 in sorted(manifest.files.items()) if "/" not in name},
        },
        leak_warning=leak,
    )


def details_of_table(
    config: EvaluateConfig, other: OtherModel, frame: pd.DataFrame, rows: pd.DataFrame, thresholds: Thresholds | None
) -> Details:
    """What the report says of a model that is not there.

    Args:
        config: The evaluation.
        other: The model's table.
        frame: The catalog.
        rows: Those of it that were measured.
        thresholds: The alert thresholds that were chosen, or None.
    """
    point = thresholds.operating_point if thresholds else None
    return Details(
        **_details_of_set(frame, rows, config.split, config.catalog),
        model_version=other.version,
        bundle_created="unknown",
        classes=taxonomy.CODES if other.classes is not None else (taxonomy.MELANOMA,),
        thresholds=thresholds.to_json() if thresholds else {},
        operating_point=point.to_json() if point else None,
        training={"network": "unknown: a table of its probabilities was handed over"},
        members=(),
        class_counts={},
        source_counts=None,
        class_distribution=None,
        leaked_twin=None,
        versions={},
        fingerprints={"Fingerprint of this catalog": schema.fingerprint(frame)},
        leak_warning=None,
    )


def _details_of_set(frame: pd.DataFrame, rows: pd.DataFrame, split: str, catalog: str) -> dict[str, Any]:
    """What `Details` says of the images `rows` of a catalog, whichever model is measured on them."""
    return {
        "title": "Evaluation of a melanoma model",
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "code_version": program_version(),
        "catalog": storage.name(storage.normalize(catalog)),
        "sources": ", ".join(sorted(set(rows["source"]))),
        "split": split,
        "split_fingerprint": schema.fingerprint(frame),
        "labels_changed": int(rows["changes"].notna().sum()),
    }


def _training_in_words(bundle: Bundle) -> dict[str, str]:
    training, size = bundle.manifest.training, bundle.input_size
    network = training.config["network"]
    best = ", ".join(f"{member.best_epoch} of {len(member.history)}" for member in training.members)
    return {
        "network": f"{network['name']}, width {network['width']}",
        "form": f"compiled: OpenVINO, {FORM}" if bundle.is_compiled else "TensorFlow, float32",
        "members": str(len(training.members)),
        "image size": f"{size} x {size} pixels, whole frame squashed",
        "images": ", ".join(f"{sum(counts.values())} {name}" for name, counts in training.class_counts.items()),
        "best epoch": best,
        "temperature": f"{bundle.manifest.calibration.temperature:.3f}, fitted on validation",
    }
