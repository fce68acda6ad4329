"""The night on one page, ``OUT/runs/run_id=ID/run.html``, which needs nothing else: no script, no network.

    OUT/explanations/run_date=2026-11-20/run_id=ID/SHA256.png    the picture of an alert, what raised it in red

What of a patient may be shown is decided by `melanoma.privacy`: pictures that are held back are neither shown nor
explained.
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
from PIL import Image

from melanoma import quiet, storage, taxonomy
from melanoma.imaging.decode import decode_frames, decode_image
from melanoma.imaging.errors import ImageError
from melanoma.imaging.limits import Limits
from melanoma.model.bundle import Bundle
from melanoma.pages import page
from melanoma.scoring import drift
from melanoma.scoring.alerts import by_patient
from melanoma.storage import Store

EXAMPLES_SHOWN = 5
"""Of each kind of reject the page shows at most this many images,"""
ROWS_SHOWN = 500
"""and of the alerts without a picture at most this many lines."""

_EXPLANATION_SIDE = 480  # pixels, the longer side
_PICTURE_SIDE = 280
_JPEG_QUALITY = 80
_TOGETHER = 16  # pictures in memory
_QUANTILES = 201
_COMPARED = 2000  # images that stand for a night where it is compared

# What a person can do about a reject of each kind.
_ADVICE = {
    "empty": "Export it again.",
    "truncated": "Export it again: the file is cut short or damaged.",
    "not_an_image": "Keep it out of the archive, or restore the picture.",
    "unsupported": "Save it as a JPEG, PNG or DICOM that is read.",
    "too_large": "Make it smaller, or raise the limit in the configuration.",
    "dicom": "Look at the export: the header or the frame is damaged or of a kind that is not read.",
    "not_found": "It was listed and then gone: the next night looks again.",
    "access": "Let the workers read it: the next night tries again.",
}


@dataclass(frozen=True)
class Shown:
    """The pictures of one alert as data URIs: None where there are none, for the reason `why_not`."""

    picture: str | None = None
    heat: str | None = None
    explanation: bytes | None = None  # PNG
    why_not: str | None = None


def pictures(
    alerts: Sequence[Mapping[str, Any]], fetch: Callable[[str], bytes | Exception], bundle: Bundle, limits: Limits
) -> list[Shown]:
    """What the page shows of each alert, in their order. `fetch` gives the bytes of a URI, or why there are none."""
    if not alerts:
        return []
    shown = []
    with quiet.native_stderr(), ThreadPoolExecutor(_TOGETHER) as pool:
        from melanoma.model.explain import Explainer

        explainer = Explainer(bundle)
        for first in range(0, len(alerts), _TOGETHER):
            some = alerts[first : first + _TOGETHER]
            fetched = pool.map(lambda alert: None if alert["is_held_back"] else fetch(alert["image_uri"]), some)
            shown += [
                _shown(alert, data, explainer.heat, bundle.input_size, limits)
                for alert, data in zip(some, fetched, strict=True)
            ]
    return shown


def _shown(
    alert: Mapping[str, Any],
    data: bytes | Exception | None,
    heat: Callable[[np.ndarray], np.ndarray],
    size: int,
    limits: Limits,
) -> Shown:
    from melanoma.model.explain import overlay

    if data is None:
        return Shown(why_not="held back: a person may be known from it")
    if isinstance(data, Exception):
        return Shown(why_not="the picture could not be fetched again")
    if hashlib.sha256(data).hexdigest() != alert["content_sha256"]:
        return Shown(why_not="the picture has changed since it was scored")
    try:
        image = decode_image(data, limits, _EXPLANATION_SIDE, alert["frame"])
        pixels = decode_frames(data, size, limits)[(alert["frame"] or 1) - 1].pixels
    except ImageError:
        return Shown(why_not="the picture cannot be shown")
    explanation = overlay(image, heat(pixels), alert["p_melanoma"])
    return Shown(_jpeg(image), _jpeg(Image.open(io.BytesIO(explanation))), explanation)


def _jpeg(image: Image.Image) -> str:
    small = image.convert("RGB")
    small.thumbnail((_PICTURE_SIDE, _PICTURE_SIDE))
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=_JPEG_QUALITY)
    return page.data_uri(buffer.getvalue(), "jpeg")


def write_explanations(folder: str, alerts: pa.Table, shown: Sequence[Shown], store: Store) -> pa.Table:
    """Write them below the URI `folder`; returns the alerts with their `explanation_uri`. Raises OSError."""
    uris: list[str | None] = [None] * len(alerts)
    for row, (each, digest) in enumerate(zip(shown, alerts["content_sha256"].to_pylist(), strict=False)):
        if each.explanation is not None:
            uris[row] = storage.join(folder, f"{digest}.png")
            store.write_bytes(str(uris[row]), each.explanation)
    column = alerts.schema.get_field_index("explanation_uri")
    return alerts.set_column(column, alerts.schema.field(column), pa.array(uris, pa.string()))


# --- how a night's images are distributed ----------------------------------------------------------------------------


def distribution(values: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Quantiles of what is measured of every image, for the commit record; all values where they are few.

    `values`: float [images] for each name of `drift.PICTURE` and `drift.PROBABILITY`.
    """
    images = min(len(value) for value in values.values())
    shares = np.linspace(0, 1, min(_QUANTILES, images)) if images else np.empty(0)
    return {
        "images": images,
        "quantiles": {
            name: [float(f"{value:.5g}") for value in np.quantile(found, shares)] if images else []
            for name, found in values.items()
        },
    }


def compared(nights: Sequence[Mapping[str, Any]]) -> dict[str, np.ndarray]:
    """Values that stand for nights of which `distribution` is known, each in proportion to its images."""
    total = sum(night["images"] for night in nights)
    together = min(total, _COMPARED)
    return {
        name: np.concatenate(
            [
                np.interp(
                    (np.arange(number) + 0.5) / number,
                    np.linspace(0, 1, len(night["quantiles"][name])),
                    night["quantiles"][name],
                )
                for night in nights
                if (number := round(together * night["images"] / max(1, total)))
            ]
            or [np.empty(0)]
        )
        for name in (*drift.PICTURE, *drift.PROBABILITY)
    }


# --- the page --------------------------------------------------------------------------------------------------------


def render(
    record: Mapping[str, Any],
    earlier: Sequence[Mapping[str, Any]],
    alerts: Sequence[Mapping[str, Any]],
    shown: Sequence[Shown],
    rejects: Mapping[str, Sequence[Mapping[str, Any]]],
    pictures_failed: str | None = None,
) -> str:
    """The page. `record`: the commit record. `earlier`: those of earlier nights of the same archive and model.
    `rejects`: examples of each kind. `pictures_failed`: why there are no pictures at all."""
    nights = [night["distribution"] for night in earlier if night.get("distribution")]
    tonight, before = compared([record["distribution"]]), compared(nights)
    found = drift.compare(tonight, before)
    with_picture = dict(zip((alert["image_uri"] for alert in alerts), shown, strict=False))
    groups: list[list[Mapping[str, Any]]] = []
    for alert in by_patient(alerts[: len(shown)]):
        known = groups and alert["patient_id"] and groups[-1][0]["patient_id"] == alert["patient_id"]
        groups[-1].append(alert) if known else groups.append([alert])
    environment = page.environment(Path(__file__).parent)
    environment.filters |= {"percent": "{:.1%}".format, "size": _size, "duration": _duration}
    return environment.get_template("night.html.j2").render(
        record=record,
        counts=record["counts"],
        stages=record["stages"],
        new=sum(alert["first_raised"] is None for alert in alerts),
        groups=groups,
        shown=with_picture,
        rest=alerts[len(shown) : len(shown) + ROWS_SHOWN],
        left_out=max(0, len(alerts) - len(shown) - ROWS_SHOWN),
        rejects=rejects,
        advice=_ADVICE,
        drift=found,
        nights=len(nights),
        images_before=sum(night["images"] for night in nights),
        figure=_figure(tonight, before, record["thresholds"]) if len(tonight["p_melanoma"]) else None,
        names=taxonomy.NAMES,
        pictures_failed=pictures_failed,
    )


def _figure(tonight: Mapping[str, np.ndarray], before: Mapping[str, np.ndarray], thresholds: Mapping[str, Any]) -> str:
    """The share of images by probability of melanoma, tonight beside earlier nights, as a data URI."""
    from melanoma.evaluation import figures

    figure = figures.night_figure(
        tonight["p_melanoma"], before["p_melanoma"], thresholds["review"], thresholds["urgent"]
    )
    return page.data_uri(figures.figure_png(figure), "png")


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
