"""Which images exist and what is known of them: from class folders, manifests and the metadata files of ISIC sets."""

import io
import posixpath
from collections.abc import Callable, Hashable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pandas as pd
from PIL import Image

from melanoma import privacy, storage, taxonomy
from melanoma.catalog import groups, schema
from melanoma.errors import InputError
from melanoma.imaging import load
from melanoma.imaging.errors import ImageError
from melanoma.imaging.hashing import perceptual_hash, thumbnail
from melanoma.imaging.measures import dark_border, quality

_SPLIT_WORDS = {
    "train": "train",
    "training": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "test": "test",
    "testing": "test",
}
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
_HASHED_SIZE = 128  # pixels a side of the squashed picture that the perceptual hash is taken from


def build(
    sources: Iterable[str],
    on_image: Callable[[int, int], None] = lambda done, total: None,
    metadata: Sequence[str] = (),
) -> pd.DataFrame:
    """The catalog of all `sources`, each a folder with one sub-folder a class, or a CSV or Parquet manifest.

    Every image is read once. One that cannot be read stays in the catalog with its reason in `error`. `on_image` is
    told how many images of how many are done. `metadata` are tables that know more of images by their ISIC id: lesion,
    patient, age, sex, site. Patients go by pseudonyms where `melanoma.privacy` has a key. Raises InputError for a
    source or table that is not there or is of no use.
    """
    rows = [row for source in sources for row in _rows_of(storage.normalize(source))]
    for table in metadata:
        _add_metadata(rows, storage.normalize(table))
    own = privacy.from_environment(hold_back_annotated=False)
    with ThreadPoolExecutor(max_workers=16) as pool:
        for done, (row, facts) in enumerate(zip(rows, pool.map(_inspect, rows), strict=True), start=1):
            row.update(facts)
            row["patient_id"] = own.pseudonym(row.get("patient_id"))
            on_image(done, len(rows))
    frame = pd.DataFrame(rows, columns=schema.SCHEMA.names, dtype=object)
    # One spelling of "not known" for all sources.
    frame = frame.where(frame.notna(), None)
    frame["group_id"] = groups.group_ids(frame)
    return frame


def _inspect(row: dict[str, Any]) -> dict[str, Any]:
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
        if source.lower().endswith((".csv", ".parquet")):
            rows = _rows_of_manifest(source)
        else:
            rows = _rows_of_class_folders(source)
    except OSError as error:
        raise InputError(f"The source {source} cannot be read: {error}") from None
    if not rows:
        raise InputError(f"The source {source} holds no images.")
    return rows


def _source_name(folder: str) -> str:
    """The set that a folder belongs to: isic9 for ``isic9/Train``."""
    names = [name for name in folder.removeprefix("s3://").split("/") if name]
    while len(names) > 1 and names[-1].lower() in _SPLIT_WORDS:
        names.pop()
    return names[-1] if names else folder


def _rows_of_class_folders(source: str) -> list[dict[str, Any]]:
    rows = []
    # isic9/Train may be a source of its own. No folder above it counts: it may be the home of a project "melanoma".
    _, _, own_name = source.removeprefix("s3://").rpartition("/")
    for info in storage.list_objects(source):
        if info.uri.endswith("/"):  # S3's folder marker
            continue
        folders = info.uri.removeprefix(source).split("/")[:-1]
        # The nearest folder decides: isic9/Train/nevus/x.jpg is a nevus of the training folder.
        label = next((found for word in reversed(folders) if (found := taxonomy.label_of(word))), None)
        words = [word.lower() for word in (own_name, *folders)]
        split = next((_SPLIT_WORDS[word] for word in reversed(words) if word in _SPLIT_WORDS), None)
        rows.append(
            {
                "uri": info.uri,
                "image_id": taxonomy.image_id_of(info.uri),
                "source": _source_name(source),
                "label": label,
                "split": split,
            }
        )
    if rows and all(row["label"] is None for row in rows):
        raise InputError(
            f"No folder in {source} is named after a diagnosis: expected sub-folders such as 'melanoma' or 'nevus', "
            "or give a manifest with the columns path and label."
        )
    return rows


def read_manifest(source: str) -> pd.DataFrame:
    """The table at `source`, all words and None. Raises InputError where it is none, OSError where it is not there."""
    if source.lower().endswith(".parquet"):
        return schema.to_frame(storage.read_table(source))
    data = storage.read_bytes(source)
    try:
        # index_col: a comma at the end of every line must not shift the columns.
        return pd.read_csv(io.BytesIO(data), dtype=str, index_col=False).astype(object)
    except (ValueError, OSError):
        raise InputError(f"The manifest {source} is not a readable CSV table.") from None


def _rows_of_manifest(source: str) -> list[dict[str, Any]]:
    table = read_manifest(source)
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
    by_id: dict[str, str] = {}
    if columns["path"] is None:
        by_id = {
            taxonomy.image_id_of(info.uri): info.uri
            for info in storage.list_objects(folder)
            if not info.uri.endswith(("/", ".csv", ".parquet", ".txt", ".md", ".json"))
        }

    rows = []
    for record in table.to_dict("records"):
        row: dict[str, Any] = {"source": _source_name(folder), "error": None}
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
        if split is not None and split.lower() not in _SPLIT_WORDS:
            raise InputError(f"The manifest {source} has the split {split!r}: use train, validation or test.")
        row["split"] = _SPLIT_WORDS[split.lower()] if split else None
        rows.append(row)
    return rows


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
    """The label of a row of a table, by its label `column` or its `one_hot` columns; None where it says none.

    Raises InputError, naming the table `source`, for a word that is no diagnosis.
    """
    if column is None:
        hot = [name for name in one_hot if _is_one(record[name], name, source)]
        return taxonomy.challenge_label_of(hot[0]) if len(hot) == 1 else None
    word = record[column]
    if word is None or word != word or not str(word).strip() or str(word).strip().lower() in {"unknown", "unk"}:
        return None
    label = (taxonomy.challenge_label_of if column == "isic2019_label" else taxonomy.label_of)(str(word))
    # `diagnosis` is ISIC's own column, of many more words than are classes here: those are images without a label.
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


def _add_metadata(rows: list[dict[str, Any]], source: str) -> None:
    """Fill in what a metadata table knows of the images with its ids, and the rows do not."""
    try:
        table = read_manifest(source)
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
