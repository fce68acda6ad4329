"""Which images exist and what is known of them: from class folders, manifests and the metadata files of ISIC sets."""

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pandas as pd
from PIL import Image

from melanoma import privacy, storage
from melanoma.catalog import folders, groups, manifest, schema
from melanoma.errors import InputError
from melanoma.imaging import load
from melanoma.imaging.errors import ImageError
from melanoma.imaging.hashing import perceptual_hash, thumbnail
from melanoma.imaging.measures import dark_border, quality

_HASHED_SIZE = 128  # pixels a side of the squashed picture that the perceptual hash is taken from


def build(
    sources: Iterable[str],
    on_image: Callable[[int, int], None] = lambda done, total: None,
    metadata: Sequence[str] = (),
) -> pd.DataFrame:
    """The catalog of some sets of images.

    Every image is read once. One that cannot be read stays in the catalog with its reason in `error`. Patients go by
    pseudonyms where `melanoma.privacy` has a key.

    Args:
        sources: Each a folder with one sub-folder a class, or a CSV or Parquet manifest.
        on_image: Called with the number of images done and the total.
        metadata: Tables that know more of images by their ISIC id: lesion, patient, age, sex, site.

    Returns:
        See `melanoma.catalog.schema`.

    Raises:
        InputError: A source or table is not there or is of no use.
    """
    rows = [row for source in sources for row in _rows_of(storage.normalize(source))]
    for table in metadata:
        manifest.add_metadata(rows, storage.normalize(table))
    protection = privacy.from_environment(hold_back_annotated=False)
    with ThreadPoolExecutor(max_workers=16) as pool:
        for done, (row, facts) in enumerate(zip(rows, pool.map(_inspect, rows), strict=True), start=1):
            row.update(facts)
            row["patient_id"] = protection.pseudonym(row.get("patient_id"))
            on_image(done, len(rows))
    frame = pd.DataFrame(rows, columns=schema.SCHEMA.names, dtype=object)
    # One spelling of "not known" for all sources.
    frame = frame.where(frame.notna(), None)
    frame["group_id"] = groups.group_ids(frame)
    return frame


def _inspect(row: dict[str, Any]) -> dict[str, Any]:
    """What the file of a row says, in the columns of the catalog."""
    if row.get("error"):
        return {}
    try:
        data = load.fetch(row["uri"])
    except ImageError as error:
        return {"error": error.reason}
    loaded = load.load(data, _HASHED_SIZE)
    if loaded.sha256 is None:  # over the limit, and so read only in part
        return {"error": str(loaded.error)}
    facts: dict[str, Any] = {"size_bytes": len(data), "sha256": loaded.sha256}
    if loaded.error:
        return {**facts, "error": loaded.error.reason}
    (decoded,) = loaded.frames
    # What a DICOM header says, where the source says nothing.
    for name, known in (("patient_id", decoded.header.patient_id), ("anatomic_site", decoded.header.body_site)):
        if known is not None and row.get(name) is None:
            facts[name] = known
    picture = Image.fromarray(decoded.pixels)
    sharpness, exposure = quality(decoded.pixels)
    return {
        **facts,
        "width": decoded.width,
        "height": decoded.height,
        "perceptual_hash": perceptual_hash(picture),
        "thumbnail": thumbnail(picture),
        "sharpness": sharpness,
        "exposure": exposure,
        "dark_border": dark_border(decoded.pixels),
    }


def _rows_of(source: str) -> list[dict[str, Any]]:
    try:
        is_table = source.lower().endswith((".csv", ".parquet"))
        rows = manifest.rows(source) if is_table else folders.rows(source)
    except OSError as error:
        raise InputError(f"The source {source} cannot be read: {error}") from None
    if not rows:
        raise InputError(f"The source {source} holds no images.")
    return rows
