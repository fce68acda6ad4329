"""Evaluate a bundle on a split of a catalog: locate, fetch, decode, predict, measure, report.

Another model's probabilities, which come in a table, are measured and reported likewise.
"""

import dataclasses
import io
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import numpy.typing as npt
import pandas as pd

from melanoma import storage
from melanoma.catalog import groups, schema
from melanoma.catalog.seen import leak_warning
from melanoma.errors import InputError, MelanomaError
from melanoma.evaluation import other_model, stability, subgroups, wording
from melanoma.evaluation.comparison import Comparison, compare
from melanoma.evaluation.config import EvaluateConfig
from melanoma.evaluation.details import details_of_bundle, details_of_table
from melanoma.evaluation.gallery import select_pictures
from melanoma.evaluation.metrics import Metrics, compute_metrics, top_of_patient
from melanoma.evaluation.operating_point import choose_thresholds
from melanoma.evaluation.other_model import OtherModel
from melanoma.evaluation.outlier_rates import outlier_rates
from melanoma.evaluation.predictions import floats, group_codes, melanoma_side, tells_classes, unmeasurable
from melanoma.evaluation.report import Details, write_report
from melanoma.imaging import load
from melanoma.imaging.errors import ImageError
from melanoma.imaging.isolated import IsolatedDecoder
from melanoma.model.bundle import Bundle
from melanoma.model.bundle import load as load_bundle
from melanoma.model.department import at_operating_point
from melanoma.model.manifest import Thresholds
from melanoma.model.predictor import Predictor
from melanoma.model.triage import alert_levels

_READ_AT_ONCE = 8  # images
_BATCH = 64
_OTHERS = 2000  # files at most of each folder of pictures that are no dermoscopy
_PICTURE_SIZE = 320  # pixels, the longer side of a picture in the report

Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Evaluation:
    """What a bundle gives on a split, and the files that say so."""

    metrics: Metrics
    files: dict[str, bytes]  # relative name to content: metrics.json, predictions.parquet, report.html, figures/


def evaluate(config: EvaluateConfig, say: Callable[[str], None] = lambda line: None) -> Evaluation:
    """Evaluate and write the report to `config.out`, a folder or an s3:// prefix. `say` is given one line a step."""
    model: Bundle | OtherModel
    if config.bundle:
        model = at_operating_point(load_bundle(config.bundle).in_form(config.network), config.operating_point)
    else:
        model = other_model.read(str(config.predictions))
    against = load_bundle(config.against).in_form(config.against_network) if config.against else None
    frame = schema.read(config.catalog)
    # What can be refused is refused before anything is predicted.
    rows = rows_to_measure(frame, config.split, config.catalog, config.sources)
    _columns_to_measure_by(rows, config.by, config.catalog)
    if isinstance(model, OtherModel):
        other_model.of_rows(model, frame, rows, config.allow_missing)
    storage.check_writable(config.out)
    if isinstance(model, OtherModel):
        evaluation = evaluate_table(config, model, frame, against, say)
    else:
        evaluation = _evaluate_bundle(config, model, frame, against, say)
    for name, data in evaluation.files.items():
        try:
            storage.write_bytes(storage.join(storage.normalize(config.out), name), data)
        except OSError as error:
            raise InputError(f"The report cannot be written to {config.out}: {error}") from None
    return evaluation


def _evaluate_bundle(
    config: EvaluateConfig, bundle: Bundle, frame: pd.DataFrame, against: Bundle | None, say: Callable[[str], None]
) -> Evaluation:
    """`evaluate_frame`, with the pictures that are no dermoscopy.

    Args:
        config: The evaluation.
        bundle: The model.
        frame: The catalog.
        against: A bundle to compare with.
        say: Is given one line a step.
    """
    return evaluate_frame(
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
        others=pictures_of(config.others, bundle.input_size, config.seed, say),
        say=say,
    )


def evaluate_table(
    config: EvaluateConfig,
    other: OtherModel,
    frame: pd.DataFrame,
    against: Bundle | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> Evaluation:
    """Measure another model's probabilities as a bundle's are measured.

    Nothing changes the images, and nothing scores them as outliers: the model is not there to be asked.

    Args:
        config: Which images are measured by what, and how thresholds are chosen.
        other: The model's table.
        frame: The catalog, see `melanoma.catalog.schema`.
        against: A bundle to compare with on the same images.
        say: Is given one line a step.

    Returns:
        The metrics, and the files of the report.

    Raises:
        InputError: The table and the catalog do not go together.
    """
    rows = rows_to_measure(frame, config.split, config.catalog, config.sources)
    rows, predictions, notes = other_model.of_rows(other, frame, rows, config.allow_missing)
    thresholds = _thresholds(config, other, frame) if config.thresholds_from else None
    if thresholds:
        levels = alert_levels(floats(predictions, "p_melanoma"), thresholds.review, thresholds.urgent)
        chosen = {"threshold": thresholds.review, "threshold_urgent": thresholds.urgent}
        predictions = predictions.assign(**chosen, alert_level=levels)
    say(f"Measuring the predictions of {len(rows)} images of the split {config.split!r}.")
    columns = _columns_to_measure_by(rows, config.by, config.catalog)
    metrics = _measure(predictions, rows, columns, config.seed, config.prevalence)
    notes = [*other.notes, *notes, *wording.unknown_of_other(tells_classes(predictions), thresholds is not None)]
    metrics = dataclasses.replace(metrics, notes=notes)
    if against is not None:
        say(f"Predicting them with the model {against.version}.")
        its, _ = predict_rows(Predictor(against), rows, np.empty(0, dtype=np.intp))
        its = its.assign(label=predictions["label"])
        comparison = _comparison(against, predictions, its, rows, config.seed)
        metrics = dataclasses.replace(metrics, comparison=comparison)
    pictures = {uri: _picture(uri) for uri in select_pictures(predictions, config.seed)}
    details = details_of_table(config, other, frame, rows, thresholds)
    return Evaluation(metrics, _report_files(predictions, metrics, pictures, details))


def _thresholds(config: EvaluateConfig, other: OtherModel, frame: pd.DataFrame) -> Thresholds:
    """Those of another model, chosen on a split as a training chooses a bundle's by default."""
    rows = rows_to_measure(frame, str(config.thresholds_from), config.catalog, None)
    _, predictions, _ = other_model.of_rows(other, frame, rows, config.allow_missing)
    try:
        chosen = choose_thresholds(
            predictions["label"].tolist(),
            floats(predictions, "p_melanoma"),
            predictions["group_id"].to_numpy(dtype=object),
            sensitivity=0.95,
            bound="observed",
            urgent_specificity=0.95,
        )
    except ValueError as error:
        raise InputError(f"No threshold can be chosen on the split {config.thresholds_from!r}: {error}.") from None
    where = f"on the {config.thresholds_from} split"
    return chosen.model_copy(update={"chosen": (chosen.chosen or "").replace("on the validation split", where)})


def rows_to_measure(frame: pd.DataFrame, split: str, catalog: str, sources: Sequence[str] | None) -> pd.DataFrame:
    """The images of a catalog that are measured.

    Args:
        frame: The catalog.
        split: One, or "all".
        catalog: Its address, for messages.
        sources: Those whose images are wanted; None: all.

    Returns:
        Their rows of the catalog.

    Raises:
        InputError: There are none, there is no such source, or their labels answer no question.
    """
    there, of_sources = schema.usable(frame, "all"), ""
    if sources is not None:
        known = sorted(frame["source"].dropna().unique())
        for source in sources:
            if source not in known:
                raise InputError(f"The catalog {catalog} has no source {source!r}; it has {', '.join(known)}.")
        there, of_sources = there[there["source"].isin(sources)], f" that are of {' or '.join(sources)}"
    rows = there if split == "all" else there[there["split"] == split]
    if rows.empty:
        raise InputError(
            f"The catalog {catalog} has no usable images in the split {split!r}{of_sources}: {_splits_of(there)}."
        )
    if unclear := unmeasurable(rows["label"]):
        raise InputError(f"The catalog {catalog} cannot be measured on: {unclear}.")
    return rows


def _splits_of(there: pd.DataFrame) -> str:
    """How many usable images are in which split, and what to ask for."""
    if there.empty:
        return "there is none that has a label and can be read in any split"
    counts = there["split"].fillna("no split").value_counts()
    in_words = ", ".join(f"{n:,} in {split}" for split, n in counts.items())
    return f"there are {in_words}; --split all measures all of them"


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
    others: Mapping[str, Pixels] | None = None,
    show_images: bool = True,
    say: Callable[[str], None] = lambda line: None,
) -> Evaluation:
    """Predict the images of a split and measure.

    Args:
        bundle: The model.
        frame: The catalog, see `melanoma.catalog.schema`.
        split: "train", "validation", "test" or "all".
        catalog: The catalog's address, for messages and the report.
        seed: Seed of the bootstrap, and of the images that are drawn.
        sources: Those of the catalog whose images are measured; None for all. Their labels alone decide which diagnoses
            count as one class: HAM10000's as its seven, whatever narrower labels another source has. An image of a
            source that is relabelled more narrowly, such as AK among AK|SCC, still counts for the class that joins
            them.
        by: Columns of the catalog to measure subgroups by; None: those of source, sex, age and anatomic site that have
            more than one value.
        prevalence: See `compute_metrics`.
        against: A bundle to compare with on the same images.
        stability_images: At most this many images are changed a little and predicted again, and copied for the outlier
            rates.
        others: Further pictures that are no dermoscopy by their kind, uint8 RGB [n, size, size, 3] at the input size.
        show_images: Whether the files may name and show images.
        say: Is given one line a step.

    Returns:
        The metrics, and the files of the report.

    Raises:
        InputError: The split is empty, a source is not in the catalog, or a column cannot be measured by.
    """
    rows = rows_to_measure(frame, split, catalog, sources)
    columns = _columns_to_measure_by(rows, by, catalog)
    predictor = Predictor(bundle)
    drawn = stability.draw(rows, stability_images, seed)
    say(f"Predicting {len(rows)} images of the split {split!r}.")
    predictions, pixels = predict_rows(predictor, rows, drawn)
    metrics = _measure(predictions, rows, columns, seed, prevalence)
    metrics = _disturb(metrics, predictor, predictions, drawn, pixels, seed, others or {}, say)
    if against is not None:
        say(f"Predicting them with the model {against.version}.")
        other, _ = predict_rows(Predictor(against), rows, drawn[:0])
        metrics = dataclasses.replace(metrics, comparison=_comparison(against, predictions, other, rows, seed))
    metrics = dataclasses.replace(metrics, leak_warning=leak_warning(bundle.training_images, rows))
    pictures = {uri: _picture(uri) for uri in select_pictures(predictions, seed)} if show_images else None
    details = details_of_bundle(bundle, frame, rows, split, catalog, metrics.leak_warning)
    return Evaluation(metrics, _report_files(predictions, metrics, pictures, details))


def _measure(
    predictions: pd.DataFrame, rows: pd.DataFrame, columns: Sequence[str], seed: int, prevalence: float | None
) -> Metrics:
    """The figures of all images, and of the subgroups by `columns` of the catalog's `rows`."""
    melanoma, (group, _) = melanoma_side(predictions).yes, group_codes(predictions)
    patient = groups.number_keys(rows, "patient_id")
    return dataclasses.replace(
        compute_metrics(predictions, seed=seed, prevalence=prevalence),
        top_of_patient=top_of_patient(melanoma, floats(predictions, "p_melanoma"), patient, group),
        counts=[
            subgroups.counts(predictions, column, rows[column].tolist())
            for column in ("label", *subgroups.DEFAULT_COLUMNS)
            if _number_of_values(rows, column) <= subgroups.MOST_VALUES
        ],
        subgroups=[subgroups.subgroups(predictions, column, rows[column].tolist(), seed) for column in columns],
    )


def _disturb(
    metrics: Metrics,
    predictor: Predictor,
    predictions: pd.DataFrame,
    drawn: npt.NDArray[np.intp],
    pixels: Pixels,
    seed: int,
    others: Mapping[str, Pixels],
    say: Callable[[str], None],
) -> Metrics:
    """The metrics with stability and outlier rates, of the images at the positions `drawn`, which are `pixels`."""
    if len(drawn):
        say(f"Changing {len(drawn)} images a little, in {len(stability.CHANGES)} ways.")
        stable = stability.stability(predictor, predictions.iloc[drawn], pixels, seed)
        metrics = dataclasses.replace(metrics, stability=stable)
    if len(drawn) or others:
        say("Scoring pictures that are no dermoscopy.")
        group, _ = group_codes(predictions)
        dermoscopy = floats(predictions, "outlier_score"), group
        rates = outlier_rates(predictor, dermoscopy, pixels, group[drawn], seed, others)
        metrics = dataclasses.replace(metrics, outliers=rates)
    return metrics


def _comparison(
    against: Bundle, predictions: pd.DataFrame, other: pd.DataFrame, rows: pd.DataFrame, seed: int
) -> Comparison:
    return Comparison(
        model_version=against.version,
        threshold=against.thresholds.review,
        leak_warning=leak_warning(against.training_images, rows),
        figures=compare(predictions, other, seed),
    )


def _report_files(
    predictions: pd.DataFrame, metrics: Metrics, pictures: Mapping[str, bytes] | None, details: Details
) -> dict[str, bytes]:
    with tempfile.TemporaryDirectory() as folder:
        write_report(Path(folder), predictions, metrics, pictures, details)
        return {
            path.relative_to(folder).as_posix(): path.read_bytes()
            for path in sorted(Path(folder).rglob("*"))
            if path.is_file()
        }


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


def predict_rows(predictor: Predictor, rows: pd.DataFrame, kept: npt.NDArray[np.intp]) -> tuple[pd.DataFrame, Pixels]:
    """The table of predictions, and the decoded images at the positions `kept`."""
    size = predictor.bundle.input_size
    columns: dict[str, list[Any]] = {}
    wanted, pixels_kept = set(kept.tolist()), []
    with (
        IsolatedDecoder(processes=min(_READ_AT_ONCE, joblib.cpu_count())) as decoder,
        ThreadPoolExecutor(_READ_AT_ONCE) as pool,
    ):
        for batch in _batches(enumerate(rows["uri"])):
            pixels = np.stack(list(pool.map(lambda place: _fetch_and_decode(decoder, place[1], size), batch)))
            for name, values in predictor.predict(pixels).items():
                columns.setdefault(name, []).extend(values)
            pixels_kept.append(pixels[[place in wanted for place, _ in batch]])
    # What is known of patients stays in the catalog: a report travels with the bundle.
    known = ["uri", "image_id", "group_id", "source", "label", "split"]
    predictions = pd.concat([rows[known].reset_index(drop=True), pd.DataFrame(columns)], axis=1)
    return predictions, np.concatenate(pixels_kept)


def _fetch_and_decode(decoder: IsolatedDecoder, uri: str, size: int) -> Pixels:
    try:
        (frame,) = decoder.frames(load.fetch(uri), size)
        return frame.pixels
    except ImageError as error:
        raise MelanomaError(f"The image {uri} of the catalog cannot be read: {error} Make the catalog anew.") from None


def pictures_of(
    folders: Sequence[str], size: int, seed: int, say: Callable[[str], None], least: int = 1
) -> dict[str, Pixels]:
    """The pictures of folders or prefixes that can be decoded.

    Args:
        folders: Their addresses.
        size: The side of the pictures in pixels.
        seed: Draws 2,000 of a folder that has more.
        say: Given one line a folder.
        least: How many pictures each has to have.

    Returns:
        By the folder's name, or its address where another has the same name: uint8 RGB [n, size, size, 3].

    Raises:
        InputError: A folder cannot be read, or has too few pictures.
    """
    places = [storage.normalize(uri) for uri in folders]
    names = [storage.name(place) for place in places]
    return {
        name if names.count(name) == 1 else place: _pictures_of(place, size, seed, say, least)
        for name, place in zip(names, places, strict=True)
    }


def _pictures_of(folder: str, size: int, seed: int, say: Callable[[str], None], least: int) -> Pixels:
    pictures = []
    try:
        files = [file.uri for file in storage.list_objects(folder) if not file.uri.endswith("/")]
        drawn = np.sort(np.random.default_rng(seed).permutation(len(files))[:_OTHERS])
        with IsolatedDecoder() as decoder:
            for uri in (files[place] for place in drawn):
                pictures += [frame.pixels for frame in decoder.load(load.fetch(uri), size).frames]
    except (OSError, ImageError) as error:
        raise InputError(f"The pictures that are no dermoscopy cannot be read: {error}") from None
    if len(pictures) < least:
        has = f"{len(pictures)} of the {least} pictures that are needed" if pictures else "no picture that can be read"
        raise InputError(f"{folder} has {has}.")
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
