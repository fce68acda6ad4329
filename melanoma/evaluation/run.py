"""Evaluate a bundle on a split of a catalog: locate, fetch, decode, predict, measure, report."""

import contextlib
import datetime
import hashlib
import io
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow.parquet as pq

import melanoma
from melanoma import storage, taxonomy
from melanoma.catalog import near_duplicates, schema
from melanoma.errors import InputError, MelanomaError
from melanoma.evaluation import outlier_check, stability, subgroups
from melanoma.evaluation.comparison import compare
from melanoma.evaluation.config import EvaluateConfig
from melanoma.evaluation.metrics import compute_metrics, top_of_patient
from melanoma.evaluation.predictions import floats, group_codes, is_melanoma
from melanoma.evaluation.report import select_pictures, write_report
from melanoma.imaging import load
from melanoma.imaging.decode import decode
from melanoma.imaging.errors import ImageError
from melanoma.model.bundle import Bundle
from melanoma.model.bundle import load as load_bundle
from melanoma.model.predictor import Predictor

_BATCH = 64
_OTHERS = 2000  # files at most of each folder of pictures that are no dermoscopy
_PICTURE_SIZE = 320  # pixels, the longer side of a picture in the report


@dataclass(frozen=True)
class Evaluation:
    metrics: dict[str, Any]
    files: dict[str, bytes]  # relative name to content: metrics.json, predictions.parquet, report.html, figures/


def evaluate(config: EvaluateConfig, say: Callable[[str], None] = lambda line: None) -> Evaluation:
    """Evaluate and write the report to `config.out`, a folder or an s3:// prefix."""
    bundle = load_bundle(config.bundle)
    against = load_bundle(config.against) if config.against else None
    frame = schema.read(config.catalog)
    _check(bundle, frame, config)
    folders = [storage.normalize(uri) for uri in config.others]
    names = [storage.name(folder) for folder in folders]
    others = {
        name if names.count(name) == 1 else folder: _pictures_of(folder, bundle.input_size, config.seed, say)
        for name, folder in zip(names, folders, strict=True)
    }
    evaluation = evaluate_frame(
        bundle,
        frame,
        config.split,
        config.catalog,
        config.seed,
        sources=config.sources,
        by=config.by,
        prevalence=config.prevalence,
        against=against,
        stability_images=config.stability_images,
        others=others,
        say=say,
    )
    for name, data in evaluation.files.items():
        try:
            storage.write_bytes(storage.join(storage.normalize(config.out), name), data)
        except OSError as error:
            raise InputError(f"The report cannot be written to {config.out}: {error}") from None
    return evaluation


def _check(bundle: Bundle, frame: pd.DataFrame, config: EvaluateConfig) -> None:
    """What can be known before anything is predicted: raises InputError."""
    rows = _rows(frame, config.split, config.catalog, config.sources)
    _columns_to_measure_by(rows, config.by, config.catalog)
    storage.check_writable(config.out)


def _rows(frame: pd.DataFrame, split: str, catalog: str, sources: Sequence[str] | None) -> pd.DataFrame:
    rows, of_sources = schema.usable(frame, split), ""
    if sources is not None:
        known = sorted(frame["source"].dropna().unique())
        for source in sources:
            if source not in known:
                raise InputError(f"The catalog {catalog} has no source {source!r}; it has {', '.join(known)}.")
        rows, of_sources = rows[rows["source"].isin(sources)], f" that are of {' or '.join(sources)}"
    if rows.empty:
        raise InputError(f"The catalog {catalog} has no usable images in the split {split!r}{of_sources}.")
    for label in sorted(rows["label"].unique()):
        if label != taxonomy.MELANOMA and taxonomy.MELANOMA in taxonomy.codes_of(label):
            raise InputError(
                f"The label {label!r} of {catalog} leaves open whether an image is melanoma: relabel these images."
            )
    return rows


def evaluate_frame(
    bundle: Bundle,
    frame: pd.DataFrame,
    split: str,
    catalog: str,
    seed: int,
    *,
    sources: Sequence[str] | None = None,
    by: Sequence[str] | None = None,
    prevalence: float | None = None,
    against: Bundle | None = None,
    stability_images: int = 500,
    others: Mapping[str, np.ndarray] | None = None,
    show_images: bool = True,
    say: Callable[[str], None] = lambda line: None,
) -> Evaluation:
    """Predict the images of a split and measure.

    `sources`: those of the catalog whose images are measured; None for all. Their labels alone decide which diagnoses
    count as one class: HAM10000's as its seven, whatever narrower labels another source has. An image of a source that
    is relabelled more narrowly, such as AK among AK|SCC, still counts for the class that joins them.
    `by`: columns of the catalog to measure subgroups by; None: those of source, sex, age and anatomic site that have
    more than one value. `prevalence`: see `compute_metrics`. `against`: a bundle to compare with on the same images.
    `stability_images`: at most so many are changed a little and predicted again, and checked for outliers; 0 for none.
    `others`: further pictures that are no dermoscopy by their kind, uint8 RGB [n, size, size, 3] at the input size.
    `show_images`: whether the files may name and show images. `say` is given one line a step.

    Raises InputError where the split is empty, a source is not there or a column is not one to measure by.
    """
    rows = _rows(frame, split, catalog, sources)
    values = {column: rows[column].tolist() for column in _columns_to_measure_by(rows, by, catalog)}
    predictor = Predictor(bundle)
    drawn = stability.draw(rows, stability_images, seed)
    say(f"Predicting {len(rows)} images of the split {split!r}.")
    predictions, pixels = _predictions(predictor, rows, drawn)
    melanoma, (group, _) = is_melanoma(predictions), group_codes(predictions)
    metrics = compute_metrics(predictions, seed=seed, prevalence=prevalence)
    metrics["top_of_patient"] = top_of_patient(melanoma, floats(predictions, "p_melanoma"), rows["patient_id"], group)
    metrics["counts"] = [
        subgroups.counts(predictions, column, rows[column].tolist())
        for column in ("label", *subgroups.DEFAULT_COLUMNS)
        if _number_of_values(rows, column) <= subgroups.MOST_VALUES
    ]
    metrics["subgroups"] = [subgroups.subgroups(predictions, column, own, seed) for column, own in values.items()]
    if len(drawn):
        say(f"Changing {len(drawn)} images a little, in {len(stability.CHANGES)} ways.")
        metrics["stability"] = stability.stability(predictor, predictions.iloc[drawn], pixels, seed)
    if len(drawn) or others:
        say("Scoring pictures that are no dermoscopy.")
        dermoscopy = floats(predictions, "outlier_score"), group
        metrics["outliers"] = outlier_check.check(predictor, dermoscopy, pixels, group[drawn], seed, others or {})
    if against is not None:
        say(f"Predicting them with the model {against.version}.")
        other, _ = _predictions(Predictor(against), rows, drawn[:0])
        metrics["comparison"] = {
            "model_version": against.version,
            "threshold": against.thresholds["review"],
            "leak_warning": leak_warning(against, rows),
            "figures": compare(predictions, other, seed),
        }
    leak = leak_warning(bundle, rows)
    metrics["leak_warning"] = leak
    pictures = {uri: _picture(uri) for uri in select_pictures(predictions, seed)} if show_images else None
    about = _about(bundle, frame, rows, split, catalog, leak)
    with tempfile.TemporaryDirectory() as folder:
        write_report(Path(folder), predictions, metrics, pictures, about)
        files = {
            path.relative_to(folder).as_posix(): path.read_bytes()
            for path in sorted(Path(folder).rglob("*"))
            if path.is_file()
        }
    return Evaluation(metrics, files)


def _columns_to_measure_by(rows: pd.DataFrame, by: Sequence[str] | None, catalog: str) -> list[str]:
    """`by`, each once, or without it the default columns that have several values, but not too many."""
    if by is None:
        return [
            column
            for column in subgroups.DEFAULT_COLUMNS
            if 1 < _number_of_values(rows, column) <= subgroups.MOST_VALUES
        ]
    # A group's value stands in the report, which travels with the bundle.
    known = [column for column in rows.columns if column not in ("thumbnail", "lesion_id", "patient_id")]
    for column in by:
        if column not in known:
            raise InputError(
                f"The catalog {catalog} has no column {column!r} to measure by; it has {', '.join(known)}."
            )
        if (n := _number_of_values(rows, column)) > subgroups.MOST_VALUES:
            raise InputError(
                f"Subgroups cannot be measured: the column {column!r} has {n} values: choose one with at most "
                f"{subgroups.MOST_VALUES}."
            )
    return list(dict.fromkeys(by))


def _number_of_values(rows: pd.DataFrame, column: str) -> int:
    return len(subgroups.binned(column, rows[column].tolist())[1])


def _predictions(
    predictor: Predictor, rows: pd.DataFrame, kept: np.ndarray
) -> tuple[pd.DataFrame, npt.NDArray[np.uint8]]:
    """The table of predictions, and the decoded images at the positions `kept`."""
    size = predictor.bundle.input_size
    columns: dict[str, list[Any]] = {}
    wanted, pixels_kept = set(kept.tolist()), []
    with ThreadPoolExecutor(max_workers=8) as pool:
        for batch in _batches(enumerate(rows["uri"])):
            pixels = np.stack(list(pool.map(lambda place: _fetch_and_decode(place[1], size), batch)))
            for name, values in predictor.predict(pixels).items():
                columns.setdefault(name, []).extend(values)
            pixels_kept.append(pixels[[place in wanted for place, _ in batch]])
    # What is known of patients stays in the catalog: a report travels with the bundle.
    known = ["uri", "image_id", "group_id", "source", "label", "split"]
    predictions = pd.concat([rows[known].reset_index(drop=True), pd.DataFrame(columns)], axis=1)
    return predictions, np.concatenate(pixels_kept)


def _fetch_and_decode(uri: str, size: int) -> np.ndarray:
    try:
        return load.pixels(uri, size)
    except ImageError as error:
        raise MelanomaError(f"The image {uri} of the catalog cannot be read: {error} Make the catalog anew.") from None


def _pictures_of(folder: str, size: int, seed: int, say: Callable[[str], None]) -> np.ndarray:
    """uint8 RGB [n, size, size, 3]: the pictures of a folder or prefix that can be decoded, of 2,000 drawn at most."""
    pictures = []
    try:
        files = [file.uri for file in storage.list_objects(folder) if not file.uri.endswith("/")]
        drawn = np.sort(np.random.default_rng(seed).permutation(len(files))[:_OTHERS])
        for uri in (files[place] for place in drawn):
            data = load.fetch(uri)
            with contextlib.suppress(ImageError):
                pictures.append(decode(data, size).pixels)
    except (OSError, ImageError) as error:
        raise InputError(f"The pictures that are no dermoscopy cannot be read: {error}") from None
    if not pictures:
        raise InputError(f"{folder} has no picture that can be read.")
    say(f"{folder}: {len(files)} files, {len(drawn)} drawn, {len(pictures)} of them pictures.")
    return np.stack(pictures)


def _batches(values: Iterator[tuple[int, str]]) -> Iterator[list[tuple[int, str]]]:
    while batch := list(islice(values, _BATCH)):
        yield batch


def _picture(uri: str) -> bytes:
    """A JPEG; nothing where a person may be known from the picture."""
    buffer = io.BytesIO()
    if picture := load.picture(uri, _PICTURE_SIZE):
        picture.save(buffer, "JPEG", quality=85)
    return buffer.getvalue()


def digest(image_id: str) -> str:
    """How a bundle names an image id: it may be a hospital's own number, which must not travel with the weights."""
    return hashlib.sha256(image_id.encode()).hexdigest()[:16]


RELATIVES = {"lesion_id": "lesion_id_sha256", "patient_id": "patient_id_sha256"}
"""Columns of a catalog, and those of a bundle's training images that hold their digests."""


def relative_digests(rows: pd.DataFrame, column: str) -> list[str | None]:
    """The digest of the lesion or patient of each image; None where it is not known."""
    return [
        value and digest(taxonomy.number_identity(value, source))
        for value, source in zip(rows[column], rows["source"], strict=True)
    ]


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
    near = near_duplicates.seen(rows["perceptual_hash"], learned["perceptual_hash"])
    relatives = pd.Series(False, index=rows.index)
    for column, hashed in RELATIVES.items():
        if hashed in learned:  # bundles of an earlier version do not say
            relatives |= pd.Series(relative_digests(rows, column), index=rows.index).isin(set(learned[hashed].dropna()))
    leaked = by_bytes | by_id | relatives | pd.Series([place in near for place in range(len(rows))], index=rows.index)
    if leaked.any():
        return (
            f"Leaked: {int(leaked.sum())} of these {len(rows)} images, near-duplicates of them, or other photographs "
            "of their lesions or patients, were in the training split of this model. The figures are too good and must "
            "not be reported as its performance."
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
            "members": str(len(training["members"])),
            "image size": f"{manifest['input_size']} x {manifest['input_size']} pixels, whole frame squashed",
            "images": ", ".join(f"{sum(counts.values())} {name}" for name, counts in training["class_counts"].items()),
            "best epoch": ", ".join(
                f"{member['best_epoch']} of {len(member['history'])}" for member in training["members"]
            ),
            "temperature": f"{manifest['calibration']['temperature']:.3f}, fitted on validation",
        },
        "thresholds": manifest["thresholds"],
        "operating_point": manifest["thresholds"].get("operating_point"),
        "class_counts": training["class_counts"],
        "source_counts": training.get("source_counts"),
        "class_distribution": training.get("class_distribution", {}).get("rows"),
        "leaked_twin": training.get("leaked_twin"),
        "members": training["members"],
        "labels_changed": int(rows["changes"].notna().sum()),
        "versions": manifest["versions"],
        "fingerprints": {
            "Fingerprint of the training catalog": training["catalog_fingerprint"],
            "Fingerprint of this catalog": schema.fingerprint(frame),
            **{f"sha256 of {name}": digest for name, digest in sorted(manifest["files"].items()) if "/" not in name},
        },
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
    }
