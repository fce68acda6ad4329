"""A run on one page, ``run.html``, which needs nothing else: no script, no network; and the explanations of its alerts.

`melanoma.privacy` decides what may be shown of a patient: pictures that are held back are neither shown nor explained.
"""

import hashlib
import io
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image

from melanoma import quiet, storage, taxonomy
from melanoma.imaging import isolated
from melanoma.imaging.errors import ImageError
from melanoma.imaging.isolated import IsolatedDecoder
from melanoma.imaging.limits import Limits
from melanoma.model.bundle import Bundle
from melanoma.model.manifest import Thresholds
from melanoma.model.triage import BOTH, MALIGNANCY, MELANOMA
from melanoma.pages import templates
from melanoma.scoring import drift, results
from melanoma.scoring.alerts import by_patient, patient_of
from melanoma.scoring.record import RunRecord
from melanoma.storage import Store

EXAMPLES_SHOWN = 5  # images of each kind of reject at most
ROWS_SHOWN = 500  # alerts without a picture at most

_EXPLANATION_SIDE = 480  # pixels, the longer side
_PICTURE_SIDE = 280
_JPEG_QUALITY = 80
_FETCHED_AT_ONCE = 16  # pictures, and so the most that are in memory

# What a person can do about a reject of each kind.
_ADVICE = {
    "empty": "Export it again.",
    "truncated": "Export it again: the file is cut short or damaged.",
    "not_an_image": "Keep it out of the archive, or restore the picture.",
    "unsupported": "Save it as a JPEG, PNG or DICOM that is read.",
    "too_large": "Make it smaller, or raise the limit in the configuration.",
    "dicom": "Look at the export: the header or the frame is damaged or of a kind that is not read.",
    "blank": "Look at the export: the picture is one flat colour, and nothing is seen on it.",
    "crashed": "Export it again, as a plain JPEG or PNG: decoding it ends the program.",
    "timeout": "Export it again, as a plain JPEG or PNG, or raise decode_seconds in the configuration.",
    "not_found": "It was listed and then gone: the next night looks again.",
    "access": "Let the workers read it: the next night tries again.",
}


# The questions in words, by the reason of an alert.
_REASONS = {
    MELANOMA: "melanoma",
    MALIGNANCY: "any malignancy, and not melanoma",
    BOTH: "melanoma and any malignancy",
}


@dataclass(frozen=True)
class AlertPictures:
    """The pictures of one alert: None where there are none, for the reason `why_not`."""

    picture: str | None = None  # a data URI
    heat: str | None = None  # a data URI: what raised the alert, in red on the picture
    explanation: bytes | None = None  # a PNG of the same, larger
    why_not: str | None = None


def pictures(
    alerts: Sequence[Mapping[str, Any]],
    fetch: Callable[[str], bytes | Exception],
    bundle: Bundle,
    limits: Limits,
    seconds: float = isolated.SECONDS,
) -> list[AlertPictures]:
    """The pictures that the page shows of each alert.

    Args:
        alerts: Rows of `tables.ALERTS`.
        fetch: Gives the bytes of a URI, or why there are none. It is not called for an alert that is held back.
        bundle: The model that raised them.
        limits: What an image may have at most.
        seconds: What decoding one may take.

    Returns:
        The pictures, in the order of the alerts.
    """
    if not alerts:
        return []
    found = []
    # A file may crash here that did not in a worker: it is read in another size.
    decoder = IsolatedDecoder(limits, seconds)
    with quiet.native_stderr(), decoder, ThreadPoolExecutor(_FETCHED_AT_ONCE) as pool:
        from melanoma.model import device
        from melanoma.model.explain import Explainer

        device.use_no_gpu()  # the driver may be on a node with GPUs
        explainer = Explainer(bundle)
        for first in range(0, len(alerts), _FETCHED_AT_ONCE):
            group = alerts[first : first + _FETCHED_AT_ONCE]
            fetched = pool.map(lambda alert: None if alert["is_held_back"] else fetch(alert["image_uri"]), group)
            found += [
                _pictures_of_alert(alert, data, explainer.heat, bundle.input_size, decoder)
                for alert, data in zip(group, fetched, strict=True)
            ]
    return found


def _pictures_of_alert(
    alert: Mapping[str, Any],
    data: bytes | Exception | None,
    heat: Callable[[np.ndarray], np.ndarray],
    size: int,
    decoder: IsolatedDecoder,
) -> AlertPictures:
    from melanoma.model.explain import overlay

    if data is None:
        return AlertPictures(why_not="held back: a person may be known from it")
    if isinstance(data, Exception):
        return AlertPictures(why_not="the picture could not be fetched again")
    if hashlib.sha256(data).hexdigest() != alert["content_sha256"]:
        return AlertPictures(why_not="the picture has changed since it was scored")
    try:
        image = decoder.picture(data, _EXPLANATION_SIDE, alert["frame"])
        frames = {frame.frame: frame for frame in decoder.frames(data, size, several_frames=True)}
    except ImageError:
        frames = {}
    if alert["frame"] not in frames:  # an earlier version may have scored it
        return AlertPictures(why_not="the picture cannot be shown")
    explanation = overlay(image, heat(frames[alert["frame"]].pixels), alert["p_melanoma"])
    return AlertPictures(_jpeg(image), _jpeg(Image.open(io.BytesIO(explanation))), explanation)


def _jpeg(image: Image.Image) -> str:
    small = image.convert("RGB")
    small.thumbnail((_PICTURE_SIDE, _PICTURE_SIDE))
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=_JPEG_QUALITY)
    return templates.data_uri(buffer.getvalue(), "jpeg")


def write_explanations(folder: str, alerts: pa.Table, shown: Sequence[AlertPictures], store: Store) -> pa.Table:
    """Write the explanations of the first alerts as PNG files.

    Args:
        folder: URI that the files lie below.
        alerts: `tables.ALERTS`.
        shown: The pictures of the first of these alerts, in their order.
        store: Writes the files.

    Returns:
        The alerts with their `explanation_uri`.

    Raises:
        OSError: A file cannot be written.
    """
    uris: list[str | None] = [None] * len(shown)
    for row, (alert_pictures, digest) in enumerate(zip(shown, alerts["content_sha256"], strict=False)):
        if alert_pictures.explanation is not None:
            uris[row] = storage.join(folder, f"{digest}.png")
            store.write_bytes(str(uris[row]), alert_pictures.explanation)
    column = alerts.schema.get_field_index("explanation_uri")
    every = pa.chunked_array([pa.array(uris, pa.string()), pa.nulls(len(alerts) - len(uris), pa.string())])
    return alerts.set_column(column, alerts.schema.field(column), every)


# --- The page ---------------------------------------------------------------------------------------------------------


def render(
    record: RunRecord,
    earlier: Sequence[RunRecord],
    alerts: pa.Table,
    shown: Sequence[AlertPictures],
    rejects: Mapping[str, Sequence[Mapping[str, Any]]],
    pictures_failed: str | None = None,
) -> str:
    """The page as HTML.

    Args:
        record: The commit record of the run.
        earlier: The commit records of earlier runs of the same archive and model.
        alerts: `tables.ALERTS`, by rank.
        shown: The pictures of the first of these alerts, in their order.
        rejects: Rows of `tables.REJECTS` as examples, by error kind.
        pictures_failed: Why there are no pictures at all.

    Returns:
        HTML that needs nothing else.
    """
    # Few rows of what may be half a million.
    archives = results.archives_of(record)
    rows = [
        {**row, "archive": results.archive_of(row["image_uri"], archives)}
        for row in alerts.slice(0, len(shown) + ROWS_SHOWN).to_pylist()
    ]
    distributions = [other.distribution for other in earlier if other.distribution]
    now = drift.values([record.distribution] if record.distribution else [])
    before = drift.values(distributions)
    environment = templates.environment(Path(__file__).parent)
    environment.filters |= {"percent": "{:.1%}".format, "size": _size, "duration": _duration}
    return environment.get_template("run_page.html.j2").render(
        record=record,
        counts=record.counts,
        stages=record.stages,
        new=alerts["first_raised"].null_count,
        for_malignancy_alone=pc.sum(pc.equal(alerts["alert_reason"], MALIGNANCY)).as_py() or 0,
        groups=_groups(rows[: len(shown)]),
        sites=results.short_names(archives),
        shown=dict(zip((alert["image_uri"] for alert in rows), shown, strict=False)),
        rest=rows[len(shown) :],
        left_out=len(alerts) - len(rows),
        rejects=rejects,
        advice=_ADVICE,
        drift=drift.compare(now, before),
        nights=len(distributions),
        images_before=sum(distribution.images for distribution in distributions),
        figure=_figure(now, before, record.thresholds) if len(now["p_melanoma"]) and record.thresholds else None,
        names=taxonomy.NAMES,
        reasons=_REASONS,
        pictures_failed=pictures_failed,
    )


def _groups(alerts: Sequence[Mapping[str, Any]]) -> list[list[Mapping[str, Any]]]:
    """The alerts of each patient, and each alert without a patient."""
    groups: list[list[Mapping[str, Any]]] = []
    for alert in by_patient(alerts):
        is_of_last = groups and alert["patient_id"] and patient_of(groups[-1][0]) == patient_of(alert)
        groups[-1].append(alert) if is_of_last else groups.append([alert])
    return groups


def _figure(now: Mapping[str, np.ndarray], before: Mapping[str, np.ndarray], thresholds: Thresholds) -> str:
    """The share of images by probability of melanoma, now beside earlier nights, as a data URI."""
    from melanoma.evaluation import figures

    figure = figures.score_distribution_figure(
        now["p_melanoma"], before["p_melanoma"], thresholds.review, thresholds.urgent
    )
    return templates.data_uri(figures.figure_png(figure), "png")


def _size(number: float) -> str:
    for unit in ("B", "KB", "MB", "GB"):
        if number < 1000:
            return f"{number:.3g} {unit}"
        number /= 1000
    return f"{number:,.1f} TB"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{seconds:.1f} s"
