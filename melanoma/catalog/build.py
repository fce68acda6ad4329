"""Which images exist and what is known of them: from class folders, manifests and the metadata files of ISIC sets."""

import functools
import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import joblib
import pandas as pd
from PIL import Image

from melanoma import privacy, storage, table_files
from melanoma.catalog import folders, groups, manifest, schema, words
from melanoma.catalog.images_by_id import ENDINGS
from melanoma.catalog.mapping import NO_MAP, Map
from melanoma.errors import InputError
from melanoma.imaging import load
from melanoma.imaging.errors import ImageError
from melanoma.imaging.hashing import perceptual_hash, thumbnail
from melanoma.imaging.isolated import IsolatedDecoder
from melanoma.imaging.measures import dark_border, quality

_READ_AT_ONCE = 16  # images
_HASHED_SIZE = 128  # pixels a side of the squashed picture that the perceptual hash is taken from


def build(
    sources: Iterable[str],
    on_image: Callable[[int, int], None] = lambda done, total: None,
    metadata: Sequence[str] = (),
    words_of: Map = NO_MAP,
    unlabelled: bool = False,
    say: Callable[[str], None] = lambda message: None,
) -> pd.DataFrame:
    """The catalog of some sets of images.

    Every image is read once. One that cannot be read stays in the catalog with its reason in `error`. Patients go by
    pseudonyms where `melanoma.privacy` has a key.

    Args:
        sources: Each a folder with one sub-folder a class, a folder with a table of its images, or such a table.
        on_image: Called with the number of images done and the total.
        metadata: Tables that know more of images by their ISIC id: lesion, patient, age, sex, site.
        words_of: What columns and words of the sources mean.
        unlabelled: Whether images whose word for a diagnosis is not known are taken, without a label.
        say: Told which table of a folder is used, what is left out, and which words gave no label.

    Returns:
        See `melanoma.catalog.schema`.

    Raises:
        InputError: A source or table is not there or is of no use, a word is not known, or no image can be used.
    """
    listed = [_listed(storage.normalize(source), words_of, unlabelled, say) for source in sources]
    rows = [row for source in listed for row in source.rows]
    words.check_columns(words_of, [name for source in listed for name in source.columns])
    words.check(rows, unlabelled, say)
    for table in metadata:
        manifest.add_metadata(rows, storage.normalize(table))
    protection = privacy.from_environment(hold_back_annotated=False)
    with (
        IsolatedDecoder(processes=min(_READ_AT_ONCE, joblib.cpu_count())) as decoder,
        ThreadPoolExecutor(_READ_AT_ONCE) as pool,
    ):
        inspected = pool.map(functools.partial(_inspect, decoder), rows)
        for done, (row, facts) in enumerate(zip(rows, inspected, strict=True), start=1):
            row.update(facts)
            row["patient_id"] = protection.pseudonym(row.get("patient_id"))
            on_image(done, len(rows))
    if all(row.get("error") for row in rows):
        raise InputError(f"None of the {len(rows):,} images can be used: {schema.reasons_in_words(rows)}.")
    frame = pd.DataFrame(rows, columns=schema.SCHEMA.names, dtype=object)
    # One spelling of "not known" for all sources.
    frame = frame.where(frame.notna(), None)
    frame["group_id"] = groups.group_ids(frame)
    return frame


def _inspect(decoder: IsolatedDecoder, row: dict[str, Any]) -> dict[str, Any]:
    """What the file of a row says, in the columns of the catalog."""
    if row.get("error"):
        return {}
    try:
        data = load.fetch(row["uri"])
    except ImageError as error:
        return {"error": error.reason}
    loaded = decoder.load(data, _HASHED_SIZE)
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


class _Listed(NamedTuple):
    """The images of a source."""

    rows: list[dict[str, Any]]
    columns: tuple[str, ...] = ()  # of its table, where it has one


def _listed(source: str, words_of: Map, unlabelled: bool, say: Callable[[str], None]) -> _Listed:
    try:
        found = _of_table(source, words_of) if is_table(source) else _of_folder(source, words_of, unlabelled, say)
    except OSError as error:
        raise InputError(f"The source {source} cannot be read: {error}") from None
    if not found.rows:
        raise InputError(f"The source {source} holds no images.")
    return found


def is_table(source: str) -> bool:
    """Whether a source is a table: by its name, or a file without an ending, as HAM10000's may come."""
    if table_files.is_table(source) or "." in storage.name(source):
        return table_files.is_table(source)
    return any(info.uri == source for info in itertools.islice(storage.list_objects(source), 1))


def _of_table(source: str, words_of: Map) -> _Listed:
    table = manifest.read(source)
    return _Listed(manifest.rows(source, table, words_of), tuple(table))


def _of_folder(source: str, words_of: Map, unlabelled: bool, say: Callable[[str], None]) -> _Listed:
    rows, companions = folders.rows(source, words_of)
    check_is_folder(source, rows)
    if companions:
        say(f"{companions:,} files in {source} are left out: masks, thumbnails and the like.")
    if rows and not any(row["label"] or row["other"] for row in rows):
        if table := _table_in(source, rows, words_of):
            say(f"No folder in {source} is named after a diagnosis: the table {table} says what its images are.")
            return _of_table(table, words_of)
        if not unlabelled:
            named = words.listed(Counter(row["unknown"] for row in rows if row["unknown"]))
            raise InputError(
                f"No folder in {source} is named after a diagnosis{f': there are {named}' if named else ''}. Expected "
                "are sub-folders such as 'melanoma' or 'nevus', a table of the images beside them, or a manifest with "
                "the columns path and label; a map says what other words mean (--map; --propose map.yaml writes a "
                "draft)."
            )
    return _Listed(rows)


def check_is_folder(source: str, rows: list[dict[str, Any]]) -> None:
    """Raises InputError where a source is a file that is neither an image nor a table: a list.xlsx, say."""
    if [row["uri"] for row in rows] == [source] and not source.casefold().endswith(ENDINGS):
        raise InputError(
            f"The source {source} is no folder, and no table that is read here: save it as one of "
            f"{', '.join(table_files.ENDINGS)}."
        )


def _table_in(folder: str, rows: list[dict[str, Any]], words_of: Map) -> str | None:
    """The table in a folder that says what its images are. Raises InputError where there are several."""
    tables = tables_in(folder, rows)
    if len(tables) > 1:
        tables = [table for table in tables if manifest.is_usable(table, words_of)]
    if len(tables) > 1:
        raise InputError(f"The folder {folder} has several tables of images: name one of {', '.join(tables)}.")
    return tables[0] if tables else None


def tables_in(folder: str, rows: list[dict[str, Any]]) -> list[str]:
    """The tables among the files of a folder itself, where no folder below it is named after a diagnosis."""
    if any(row["label"] or row["other"] for row in rows):
        return []
    return [row["uri"] for row in rows if storage.parent(row["uri"]) == folder and table_files.is_table(row["uri"])]
