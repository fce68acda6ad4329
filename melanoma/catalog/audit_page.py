"""An audit as one self-contained page that shows the images side by side: no script, and pictures as small JPEGs."""

import io
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from melanoma import storage
from melanoma.catalog import audit_words, classes, properties
from melanoma.catalog.audit import is_clean
from melanoma.imaging import load
from melanoma.imaging.errors import ImageError
from melanoma.pages import templates

SETS_SHOWN = 200
"""The page shows at most this many sets of images of each kind of finding,"""
IMAGES_SHOWN = 6
"""and at most this many images of each set."""

_PICTURE_SIDE = 160  # pixels, the longer side
_JPEG_QUALITY = 75


def write(out: str, answer: Mapping[str, Any], on_image: Callable[[int, int], None] = lambda done, total: None) -> None:
    """Write ``audit.json`` and ``audit.html`` of an answer of `melanoma.catalog.audit.examine` below the URI `out`.

    An image that cannot be read is "no picture". `on_image` is told how many pictures of how many are there. Raises
    OSError where nothing can be written.
    """
    out = storage.normalize(out)
    storage.write_json(storage.join(out, "audit.json"), answer)
    wanted = {image["uri"]: None for finding in _shown(answer) for image in finding["images"][:IMAGES_SHOWN]}
    wanted.pop(None, None)
    pictures: dict[str, str | None] = {}
    with ThreadPoolExecutor(max_workers=16) as pool:
        for done, (uri, picture) in enumerate(zip(wanted, pool.map(_picture, wanted), strict=True), start=1):
            pictures[uri] = picture
            on_image(done, len(wanted))
    storage.write_bytes(storage.join(out, "audit.html"), _html(answer, pictures).encode())


def _shown(answer: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [finding for kind in audit_words.KINDS if answer[kind] for finding in answer[kind]["findings"][:SETS_SHOWN]]


def _picture(uri: str) -> str | None:
    """A data URI, or None for what cannot be read, or from which a person may be known."""
    try:
        image = load.picture(uri, _PICTURE_SIDE)
    except ImageError:
        return None
    if image is None:
        return None
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=_JPEG_QUALITY)
    return templates.data_uri(buffer.getvalue(), "jpeg")


def _html(answer: Mapping[str, Any], pictures: Mapping[str, str | None]) -> str:
    environment = templates.environment(Path(__file__).parent)
    environment.filters |= {"match": audit_words.match, "percent": "{:.0%}".format}
    return environment.get_template("audit.html.j2").render(
        answer=answer,
        summary=answer["summary"],
        clean=is_clean(answer),
        sentences=audit_words.sentences(answer),
        kinds=audit_words.KINDS,
        reasons=audit_words.REASONS,
        leak_columns=audit_words.leak_columns(answer),
        pictures=pictures,
        sets_shown=SETS_SHOWN,
        images_shown=IMAGES_SHOWN,
        limits=classes,
        fewest_groups=properties.FEWEST_GROUPS,
        warning_above=properties.WARNING_ABOVE,
    )
