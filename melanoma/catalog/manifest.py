"""Tables that name images: manifests, and the metadata files of HAM10000 and the ISIC challenges as they are."""

import io
import posixpath
from collections.abc import Hashable
from typing import Any

import pandas as pd

from melanoma import storage, taxonomy
from melanoma.catalog import folders, schema
from melanoma.errors import InputError

# What the tables of the field call a column. HAM10000: image_id, dx. ISIC 2019: image and one column a class.
# ISIC 2020: image_name, patient_id, diagnosis, target. ISIC archive: isic_id, diagnosis.
COLUMNS = {
    "path": ("path", "uri", "file", "filename", "file_name"),
    "image_id": ("image_id", "image", "image_name", "isic_id"),
    "label": ("label", "dx", "isic2019_label", "diagnosis"),
    "lesion_id": ("lesion_id",),
    "patient_id": ("patient_id",),
    "split": ("split",),
    "age": ("age", "age_approx"),
    "sex": ("sex",),
    "anatomic_site": ("anatomic_site", "localization", "anatom_site_general", "anatom_site_general_challenge"),
}
_KNOWN_OF_AN_IMAGE = ("lesion_id", "patient_id", "age", "sex", "anatomic_site")
ONE_HOT = ("MEL", "NV", "BCC", "AK", "AKIEC", "BKL", "DF", "VASC", "SCC")


def read(source: str) -> pd.DataFrame:
    """The table at `source`, all words and None. Raises InputError where it is none, OSError where it is not there."""
    if source.lower().endswith(".parquet"):
        return schema.to_frame(storage.read_table(source))
    data = storage.read_bytes(source)
    try:
        # index_col: a comma at the end of every line must not shift the columns.
        return pd.read_csv(io.BytesIO(data), dtype=str, index_col=False).astype(object)
    except (ValueError, OSError):
        raise InputError(f"The manifest {source} is not a readable CSV table.") from None


def rows(source: str) -> list[dict[str, Any]]:
    """A row of the catalog for each row of a manifest. Raises InputError and OSError."""
    table = read(source)
    folder = storage.parent(source)
    columns = columns_of(table)
    one_hot = [name for name in ONE_HOT if name in table.columns]
    if columns["path"] is None and columns["image_id"] is None:
        raise InputError(
            f"The manifest {source} has neither a column 'path' nor 'image_id': its columns are "
            f"{', '.join(map(str, table.columns))}."
        )
    if columns["label"] is None and not one_hot:
        raise InputError(f"The manifest {source} has no column 'label' (nor dx, diagnosis, or one column a class).")
    by_id = _images_by_id(folder) if columns["path"] is None else {}
    found = []
    for record in table.to_dict("records"):
        row: dict[str, Any] = {"source": folders.source_name(folder), "error": None}
        path = _text(record, columns["path"])
        image_id = _text(record, columns["image_id"])
        if columns["path"] is not None:
            row["uri"] = _resolve(folder, path) if path else None
            row["error"] = None if path else f"A row of {source} has no path."
        else:
            row["uri"] = by_id.get(image_id or "") or by_id.get(taxonomy.image_id_of(image_id or ""))
            row["error"] = None if row["uri"] else f"No image of this id lies below {folder}."
        row["image_id"] = taxonomy.image_id_of(image_id or path or "")
        row["label"] = label_of_record(record, columns["label"], one_hot, source)
        row |= _known_of_an_image(record, columns)
        split = _text(record, columns["split"])
        if split is not None and split.lower() not in folders.SPLIT_WORDS:
            raise InputError(f"The manifest {source} has the split {split!r}: use train, validation or test.")
        row["split"] = folders.SPLIT_WORDS[split.lower()] if split else None
        found.append(row)
    return found


def _images_by_id(folder: str) -> dict[str, str]:
    """The files below a folder that may be images, by the image id of their names."""
    return {
        taxonomy.image_id_of(info.uri): info.uri
        for info in storage.list_objects(folder)
        if not info.uri.endswith(("/", ".csv", ".parquet", ".txt", ".md", ".json"))
    }


def columns_of(table: pd.DataFrame) -> dict[str, str | None]:
    """What the table calls each of our columns; None where it has no such column."""
    return {ours: next((name for name in names if name in table.columns), None) for ours, names in COLUMNS.items()}


def _text(record: dict[Hashable, Any], column: str | None) -> str | None:
    value = record.get(column or "")
    return None if value is None or value != value or str(value).strip() == "" else str(value).strip()


def _known_of_an_image(record: dict[Hashable, Any], columns: dict[str, str | None]) -> dict[str, Any]:
    words = {name: _text(record, columns[name]) for name in _KNOWN_OF_AN_IMAGE}
    known: dict[str, Any] = {name: None if word == "unknown" else word for name, word in words.items()}
    return {**known, "age": _age(words["age"])}


def label_of_record(record: dict[Hashable, Any], column: str | None, one_hot: list[str], source: str) -> str | None:
    """The label of a row of a table; None where it says none.

    Args:
        record: The row.
        column: The column of the label; None: there are only columns one a class.
        one_hot: These columns, of `ONE_HOT`.
        source: The table's address, for messages.

    Returns:
        The code of a diagnosis, several joined by "|", or None.

    Raises:
        InputError: A word that is no diagnosis.
    """
    if column is None:
        hot = [name for name in one_hot if _is_one(record[name], name, source)]
        return taxonomy.challenge_label_of(hot[0]) if len(hot) == 1 else None
    word = record[column]
    if word is None or word != word or not str(word).strip() or str(word).strip().lower() in {"unknown", "unk"}:
        return None
    label = (taxonomy.challenge_label_of if column == "isic2019_label" else taxonomy.label_of)(str(word))
    # `diagnosis` is ISIC's column, of many more words than there are classes here: those are images without a label.
    if label is None and column != "diagnosis":
        raise InputError(
            f"The manifest {source} has the label {str(word)!r}, which is no diagnosis known here "
            f"({', '.join(taxonomy.CODES)}): correct it, or leave it empty."
        )
    return label


def _age(word: str | None) -> float | None:
    try:
        age = float(word or "nan")
    except ValueError:
        return None
    return age if 0 <= age < 130 else None


def _is_one(value: Any, column: str, source: str) -> bool:
    try:
        return value is not None and float(value) == 1.0
    except (ValueError, TypeError):
        raise InputError(f"The manifest {source} has {value!r} in the column {column}: use 1 or 0.") from None


def _resolve(folder: str, path: str) -> str:
    if "://" in path or path.startswith("/"):
        return storage.normalize(path)
    if storage.is_s3(folder):
        bucket, _, prefix = folder.removeprefix("s3://").partition("/")
        return f"s3://{bucket}/{posixpath.normpath(storage.join(prefix, path))}"
    return storage.normalize(storage.join(folder, path))


def add_metadata(rows: list[dict[str, Any]], source: str) -> None:
    """Fill in what a metadata table knows of the images with its ids, and the rows do not."""
    try:
        table = read(source)
    except OSError as error:
        raise InputError(f"The metadata {source} cannot be read: {error}") from None
    columns = columns_of(table)
    if columns["image_id"] is None or not any(columns[name] for name in _KNOWN_OF_AN_IMAGE):
        raise InputError(
            f"The metadata {source} needs a column image_id and one of {', '.join(_KNOWN_OF_AN_IMAGE)}: its columns "
            f"are {', '.join(map(str, table.columns))}."
        )
    known = {}
    for record in table.to_dict("records"):
        image_id = taxonomy.image_id_of(_text(record, columns["image_id"]) or "")
        if taxonomy.is_global(image_id):
            known[image_id] = _known_of_an_image(record, columns)
    for row in rows:
        for name, value in known.get(row["image_id"], {}).items():
            if row.get(name) is None:
                row[name] = value
