"""Tables that name images: manifests, and the tables that the sets of the field bring along, as they are."""

import re
from collections.abc import Iterable
from typing import Any

from melanoma import storage, table_files
from melanoma.catalog import columns, folders, words
from melanoma.catalog.images_by_id import ImagesById, plain_id
from melanoma.catalog.labels import LabelColumns, Record
from melanoma.catalog.mapping import NO_MAP, Map
from melanoma.errors import InputError
from melanoma.table_files import Rows
from melanoma.taxonomy import image_id_of, is_global, placeholders

_NUMBERS = ("lesion_id", "patient_id")
_KNOWN_OF_AN_IMAGE = (*_NUMBERS, "age", "sex", "anatomic_site")


def read(source: str) -> Rows:
    """The table at `source`, all words and None. Raises InputError where it is none, OSError where it is not there.

    The truth of ISIC 2016 has no header: its first line names an image.
    """
    table = table_files.read(source)
    if _has_no_header(table):
        return {ours: [first, *more] for ours, (first, more) in zip(("image_id", "target"), table.items(), strict=True)}
    return table


def _has_no_header(table: Rows) -> bool:
    return len(table) == 2 and re.fullmatch(r"ISIC_\d{7}(\.\w+)?", next(iter(table))) is not None


def records(table: Rows) -> list[dict[str, str | None]]:
    """The table row by row."""
    return [dict(zip(table, values, strict=True)) for values in zip(*table.values(), strict=True)]


def is_usable(source: str, words_of: Map) -> bool:
    """Whether a table names images and what they are. Raises as `read` does."""
    table = next(table_files.batches(source))
    names = columns_of(table, words_of)
    return _has_no_header(table) or bool(
        (names["path"] or names["image_id"]) and LabelColumns.of(source, table, words_of)
    )


def rows(source: str, table: Rows, words_of: Map = NO_MAP) -> list[dict[str, Any]]:
    """A row of the catalog for each row of the manifest at `source`. Raises InputError and OSError."""
    folder = storage.parent(source)
    names = columns_of(table, words_of)
    labels = LabelColumns.of(source, table, words_of)
    _check_columns(source, table, names, labels, words_of)
    by_id = None if names["path"] else ImagesById(folder)
    found = []
    for record in records(table):
        of_source = placeholders.known(_text(record, names["source"]))
        row: dict[str, Any] = {"source": of_source or folders.source_name(folder), "error": None}
        path, image_id = _text(record, names["path"]), _text(record, names["image_id"])
        if by_id is None:
            row["uri"] = table_files.place(source, path) if path else None
            row["error"] = None if path else f"A row of {source} has no path."
        else:
            row["uri"] = by_id.find(image_id) if image_id else None
            row["error"] = None if row["uri"] else f"No image of this id lies below {folder}."
        row["image_id"] = plain_id(image_id) if image_id else image_id_of(path or "")
        row |= labels.read(record)._asdict()
        row |= _known_of_an_image(record, names)
        split = _text(record, names["split"])
        if split is not None and split.lower() not in folders.SPLIT_WORDS:
            raise InputError(f"The manifest {source} has the split {split!r}: use train, validation or test.")
        row["split"] = folders.SPLIT_WORDS[split.lower()] if split else None
        found.append(row)
    if by_id is not None:
        by_id.check()
    return found


def _check_columns(source: str, table: Rows, names: dict[str, str | None], labels: LabelColumns, words_of: Map) -> None:
    known = ", ".join(table)
    if (names["path"] is None and names["image_id"] is None) or not labels:
        words.check_columns(words_of, list(table))
    if names["path"] is None and names["image_id"] is None:
        raise InputError(
            f"The manifest {source} has neither a column 'path' nor 'image_id': its columns are {known}. A map says "
            "what they are (--map; --propose map.yaml writes a draft)."
        )
    if not labels:
        raise InputError(
            f"The manifest {source} has no column 'label' (nor dx, diagnosis, target, or one column a class): its "
            f"columns are {known}. A map says which one it is (--map; --propose map.yaml writes a draft)."
        )


def columns_of(table: Rows, words_of: Map = NO_MAP) -> dict[str, str | None]:
    """What the table calls each of our columns; None where it has no such column. What a map says comes first."""
    return {
        ours: words_of.column(ours, table) or table_files.find(table, theirs)
        for ours, theirs in columns.COLUMNS.items()
    }


def _text(record: Record, column: str | None) -> str | None:
    return (record.get(column or "") or "").strip() or None


def _known_of_an_image(record: Record, names: dict[str, str | None]) -> dict[str, Any]:
    known: dict[str, Any] = {name: _text(record, names[name]) for name in _KNOWN_OF_AN_IMAGE}
    for name, word in known.items():
        if name in _NUMBERS:
            known[name] = placeholders.known(word)
        elif word is not None and word.casefold() in ("unknown", "unk"):
            known[name] = None
    return {**known, "age": _age(known["age"])}


def _age(word: str | None) -> float | None:
    try:
        age = float((word or "nan").rstrip("+"))  # the ISIC archive's oldest are 85+
    except ValueError:
        return None
    return age if 0 <= age < 130 else None


def add_metadata(rows: Iterable[dict[str, Any]], source: str) -> None:
    """Fill in what a metadata table knows of the images with its ids, and the rows do not.

    Raises InputError where the table is of no use, or says two things of one image.
    """
    known = _by_id(source)
    for row in rows:
        for name, value in known.get(row["image_id"], {}).items():
            if row.get(name) is None:
                row[name] = value


def _by_id(source: str) -> dict[str, dict[str, Any]]:
    try:
        table = read(source)
    except OSError as error:
        raise InputError(f"The metadata {source} cannot be read: {error}") from None
    names = columns_of(table)
    if names["image_id"] is None or not any(names[name] for name in _KNOWN_OF_AN_IMAGE):
        raise InputError(
            f"The metadata {source} needs a column image_id and one of {', '.join(_KNOWN_OF_AN_IMAGE)}: its columns "
            f"are {', '.join(table)}."
        )
    known: dict[str, dict[str, Any]] = {}
    for record in records(table):
        image_id = plain_id(_text(record, names["image_id"]) or "")
        if not is_global(image_id):
            continue
        of_image = known.setdefault(image_id, {})
        for name, value in _known_of_an_image(record, names).items():
            if value is not None and of_image.setdefault(name, value) != value:
                raise InputError(
                    f"The metadata {source} says two things of {image_id}: its {name} is {of_image[name]} and {value}."
                )
    return known
