"""Evaluate a bundle on a split of a catalog: locate, fetch, decode, predict, measure, report."""

import datetime
import hashlib
import io
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq

import melanoma
from melanoma import storage, taxonomy
from melanoma.bundle import Bundle
from melanoma.bundle import load as load_bundle
from melanoma.catalog import groups, schema
from melanoma.config import EvaluateConfig
from melanoma.errors import InputError, MelanomaError
from melanoma.evaluation.metrics import compute_metrics
from melanoma.evaluation.report import select_pictures, write_report
from melanoma.imaging.decode import ImageError, Limits, decode, decode_image
from melanoma.imaging.hashing import NEAR_DUPLICATE_DISTANCE
from melanoma.predictor import Predictor

_BATCH = 64
_PICTURE_SIZE = 320  # pixels, the longer side of a picture in the report


@dataclass(frozen=True)
class Evaluation:
    metrics: dict[str, Any]
    files: dict[str, bytes]  # relative name to content: metrics.json, predictions.parquet, report.html, figures/


def evaluate(config: EvaluateConfig) -> Evaluation:
    """Evaluate and write the report to `config.out`, a folder or an s3:// prefix."""
    bundle = load_bundle(config.bundle)
    evaluation = evaluate_frame(bundle, schema.read(config.catalog), config.split, config.catalog, config.seed)
    for name, data in evaluation.files.items():
        try:
            storage.write_bytes(storage.join(storage.normalize(config.out), name), data)
        except OSError as error:
            raise InputError(f"The report cannot be written to {config.out}: {error}") from None
    return evaluation


def evaluate_frame(bundle: Bundle, frame: pd.DataFrame, split: str, catalog: str, seed: int) -> Evaluation:
    """Predict the images of a split and measure. Raises InputError where the split is empty."""
    rows = schema.usable(frame, split)
    if rows.empty:
        raise InputError(f"The catalog {catalog} has no usable images in the split {split!r}.")
    predictions = _predictions(Predictor(bundle), rows)
    metrics = compute_metrics(predictions, seed=seed)
    leak = leak_warning(bundle, rows)
    metrics["leak_warning"] = leak
    pictures = {uri: _picture(uri) for uri in select_pictures(predictions, seed)}
    about = _about(bundle, frame, rows, split, catalog, leak)
    with tempfile.TemporaryDirectory() as folder:
        write_report(Path(folder), predictions, metrics, pictures, about)
        files = {
            path.relative_to(folder).as_posix(): path.read_bytes()
            for path in sorted(Path(folder).rglob("*"))
            if path.is_file()
        }
    return Evaluation(metrics, files)


def _predictions(predictor: Predictor, rows: pd.DataFrame) -> pd.DataFrame:
    size, limits = predictor.bundle.input_size, Limits()

    def fetch_and_decode(uri: str) -> np.ndarray:
        try:
            return decode(storage.read_bytes(uri, limits.max_bytes), size, limits).pixels
        except (OSError, ImageError) as error:
            raise MelanomaError(
                f"The image {uri} of the catalog cannot be read: {error} Make the catalog anew."
            ) from None

    columns: dict[str, list[Any]] = {}
    with ThreadPoolExecutor(max_workers=8) as pool:
        for uris in _batches(iter(rows["uri"])):
            pixels = np.stack(list(pool.map(fetch_and_decode, uris)))
            for name, values in predictor.predict(pixels).items():
                columns.setdefault(name, []).extend(values)
    known = ["uri", "image_id", "group_id", "source", "label", "split"]
    return pd.concat([rows[known].reset_index(drop=True), pd.DataFrame(columns)], axis=1)


def _batches(values: Iterator[str]) -> Iterator[list[str]]:
    while batch := list(islice(values, _BATCH)):
        yield batch


def _picture(uri: str) -> bytes:
    buffer = io.BytesIO()
    decode_image(storage.read_bytes(uri), longest=_PICTURE_SIZE).save(buffer, "JPEG", quality=85)
    return buffer.getvalue()


def digest(image_id: str) -> str:
    """How a bundle names an image id: it may be a hospital's own number, which must not travel with the weights."""
    return hashlib.sha256(image_id.encode()).hexdigest()[:16]


def leak_warning(bundle: Bundle, rows: pd.DataFrame) -> str | None:
    """One sentence where images to be evaluated are images, or near-duplicates of images, that the model has seen."""
    seen = pq.read_table(io.BytesIO(bundle.training_images)).to_pandas()
    own = set(rows["sha256"])
    # The validation split may be evaluated; what it shares with itself is no leak but is said to be optimistic.
    tuned = seen[(seen["split"] == "validation") & seen["sha256"].isin(own)]
    learned = seen[seen["split"] == "train"]
    by_bytes = rows["sha256"].isin(set(learned["sha256"]))
    ids = [taxonomy.identity(i, uri) for i, uri in zip(rows["image_id"], rows["uri"], strict=True)]
    by_id = pd.Series(ids, index=rows.index).map(digest).isin(set(learned["image_id_sha256"]))
    hashes = [*learned["perceptual_hash"], *rows["perceptual_hash"]]
    near = {
        b - len(learned) for a, b in groups.near_duplicates(hashes, NEAR_DUPLICATE_DISTANCE) if a < len(learned) <= b
    }
    leaked = by_bytes | by_id | pd.Series([place in near for place in range(len(rows))], index=rows.index)
    if leaked.any():
        return (
            f"Leaked: {int(leaked.sum())} of these {len(rows)} images, or near-duplicates of them, were in the "
            "training split of this model. The figures are too good and must not be reported as its performance."
        )
    if len(tuned):
        return (
            f"Optimistic: {len(tuned)} of these {len(rows)} images were used to choose the epoch, the temperature and "
            "the thresholds of this model."
        )
    return None


def _about(
    bundle: Bundle, frame: pd.DataFrame, rows: pd.DataFrame, split: str, catalog: str, leak: str | None
) -> dict[str, Any]:
    manifest = bundle.manifest
    training = manifest["training"]
    settings = training["config"]
    return {
        "title": "Evaluation of a melanoma model",
        # A report inside a bundle cannot name the version that is derived from it.
        "model_version": bundle.version if manifest["metrics"] else "the bundle that holds this report",
        "bundle_created": manifest["created"],
        "classes": manifest["classes"],
        "catalog": storage.name(storage.normalize(catalog)),
        "sources": ", ".join(sorted(set(rows["source"]))),
        "split": split,
        "split_fingerprint": schema.fingerprint(frame),
        "leak_warning": leak,
        "code_version": melanoma.__version__,
        "training": {
            "network": f"{settings['network']['name']}, width {settings['network']['width']}",
            "image size": f"{manifest['input_size']} x {manifest['input_size']} pixels, whole frame squashed",
            "images": ", ".join(f"{sum(counts.values())} {name}" for name, counts in training["class_counts"].items()),
            "best epoch": f"{training['best_epoch']} of {settings['epochs']}",
            "temperature": f"{manifest['calibration']['temperature']:.3f}, fitted on validation",
        },
        "thresholds": manifest["thresholds"],
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
    }
