"""The probabilities that another model gives, in a table: what an evaluation needs of them.

A row is an image, named by an id (``image``, ``image_id``, ``image_name``, ``isic_id``, ...) or by a place (``uri``,
``path``, ...). Its probabilities are of classes, in columns of this project's codes (``MEL``, ``p_MEL``) or of the ISIC
challenges' (``AKIEC``; ``BKL`` without ``SK`` beside it covers both; ``UNK``), or of melanoma alone (``p_melanoma``,
``melanoma``, and SIIM's ``target``).
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from melanoma import storage, table_files, taxonomy
from melanoma.catalog.columns import COLUMNS
from melanoma.catalog.images_by_id import plain_id
from melanoma.errors import InputError
from melanoma.evaluation.intervals import Bools, Floats
from melanoma.taxonomy import CODES, MELANOMA

_OF_MELANOMA = ("p_melanoma", "melanoma", "target")  # the first that is there, where no column is of a class
_UNKNOWN = "unk"
_ROUNDED = 0.001  # a sum of probabilities this far from 1 is one of rounded figures
_NEARLY = 0.05  # nine figures of two digits each
_NAMED_IN_ERROR = 3


@dataclass(frozen=True)
class OtherModel:
    """What a table says of another model, one row an image.

    Attributes:
        table: Where it lies.
        version: Its name and the start of the sha256 of what it says.
        image_ids: [n], the id of each image; empty where the table names places alone.
        uris: [n], the place of each image; empty where it names ids alone.
        p_melanoma: float64 [n], 0 to 1.
        classes: float64 [n, 9], in the order of `taxonomy.CODES`, or None where it tells of melanoma alone.
        joined: Labels that it does not tell apart, such as "BKL|SK", whose probability stands in equal parts at each
            of their codes.
        notes: What is to be said of it, in sentences.
    """

    table: str
    version: str
    image_ids: list[str]
    uris: list[str]
    p_melanoma: Floats
    classes: Floats | None
    joined: tuple[str, ...]
    notes: tuple[str, ...]


def read(table: str) -> OtherModel:
    """The probabilities of a table, CSV or Parquet; raises InputError for one that is not as this module says."""
    if not table_files.is_table(table):
        raise InputError(f"The predictions {table} are no table: name a CSV or Parquet file.")
    try:
        rows = table_files.read(storage.normalize(table))
    except OSError as error:
        raise InputError(f"The predictions {table} cannot be read: {error}") from None
    ids = table_files.find(rows, COLUMNS["image_id"])
    places = table_files.find(rows, COLUMNS["path"])
    if not (ids or places):
        raise InputError(
            f"The predictions {table} name no images: they need a column such as image_id or uri, and have "
            f"{', '.join(rows)}."
        )
    names = rows[ids or str(places)]
    if not names:
        raise InputError(f"The predictions {table} have no rows.")
    if None in names:
        raise InputError(f"The predictions {table} have a row {names.index(None) + 1} without {ids or places}.")
    of_label = _class_columns(table, rows)
    columns = of_label or _melanoma_column(table, rows)
    values = {label: _probabilities(table, column, rows[column], names) for label, column in columns.items()}
    told = f"{sorted(values)}{names}{[each.tolist() for each in values.values()]}"
    version = f"{storage.name(storage.normalize(table))}, sha256 {hashlib.sha256(told.encode()).hexdigest()[:12]}"
    notes: list[str] = []
    classes = _classes(table, values, names, notes) if of_label else None
    return OtherModel(
        table,
        version,
        [plain_id(str(name)) for name in rows[ids]] if ids else [],
        [table_files.place(storage.normalize(table), str(name)) for name in rows[places]] if places else [],
        values[MELANOMA],
        classes,
        tuple(label for label in values if "|" in label),
        tuple(notes),
    )


def _class_columns(table: str, rows: table_files.Rows) -> dict[str, str]:
    """The column of each label, such as MEL, ``BKL|SK`` and "unk"; none where there is no class beside melanoma."""
    found: dict[str, str] = {}
    for label in (*CODES, "AKIEC", _UNKNOWN):
        if column := table_files.find(rows, (f"p_{label.lower()}", label.lower())):
            found[label] = column
    if not set(found) - {MELANOMA}:
        return {}
    if MELANOMA not in found:
        raise InputError(f"The predictions {table} have no column of melanoma (MEL), but {', '.join(found.values())}.")
    if "AKIEC" in found:
        if "AK" in found or "SCC" in found:
            raise InputError(f"The predictions {table} have both AKIEC, which covers AK and SCC, and one of the two.")
        found["AK|SCC"] = found.pop("AKIEC")
    if "BKL" in found and "SK" not in found:
        found["BKL|SK"] = found.pop("BKL")
    return found


def _melanoma_column(table: str, rows: table_files.Rows) -> dict[str, str]:
    column = table_files.find(rows, ("p_mel", "mel", *_OF_MELANOMA))
    if column is None:
        raise InputError(
            f"The predictions {table} have no probability: they need a column for each class ({', '.join(CODES)}) or "
            f"one of {', '.join(_OF_MELANOMA)}, and have {', '.join(rows)}."
        )
    return {MELANOMA: column}


def _probabilities(table: str, column: str, words: Sequence[str | None], names: Sequence[str | None]) -> Floats:
    """float64 [n] of a column, each from 0 to 1."""
    values = np.empty(len(words))
    for row, word in enumerate(words):
        try:
            values[row] = float("nan" if word is None else word)
        except ValueError:
            raise InputError(f"The predictions {table}: {column} of {names[row]} is {word!r}, no number.") from None
    if not np.isfinite(values).all():
        row = int(np.flatnonzero(~np.isfinite(values))[0])
        raise InputError(f"The predictions {table}: {column} of {names[row]} is missing or not finite.")
    if (wrong := np.flatnonzero((values < 0) | (values > 1))).size:
        raise InputError(
            f"The predictions {table}: {column} of {names[int(wrong[0])]} is {values[wrong[0]]:g}, and of "
            f"{wrong.size:,} image(s) it is no probability from 0 to 1: take the softmax of logits (the sigmoid of a "
            "single one), and a hundredth of percentages."
        )
    return values


def _classes(table: str, values: dict[str, Floats], names: Sequence[str | None], notes: list[str]) -> Floats:
    """float64 [n, 9]: the probability of each code. `notes` is given what was done to them."""
    total = np.sum(list(values.values()), axis=0)
    off = np.abs(total - 1)
    if off.max() > _NEARLY:
        row = int(off.argmax())
        raise InputError(
            f"The predictions {table}: the probabilities of {int((off > _NEARLY).sum()):,} image(s) do not add up to "
            f"1; those of {names[row]} add up to {total[row]:.3g}: divide each row by its sum, or hand over the column "
            "of melanoma alone."
        )
    if off.max() > _ROUNDED:
        notes.append("The probabilities of an image were divided by their sum, which was up to 5% away from 1.")
        values.update({label: value / total for label, value in values.items()})
    classes = np.zeros((len(names), len(CODES)))
    for label, value in values.items():
        if label != _UNKNOWN:
            codes = taxonomy.codes_of(label)
            classes[:, [CODES.index(code) for code in codes]] = value[:, None] / len(codes)
    notes += [
        f"The table does not tell {' from '.join(taxonomy.codes_of(label))}: they count as one class"
        + (", half of whose probability counts as malignant." if label == "AK|SCC" else ".")
        for label in values
        if "|" in label
    ]
    covered = {code for label in values if label != _UNKNOWN for code in taxonomy.codes_of(label)}
    if lacking := [code for code in CODES if code not in covered]:
        notes.append(f"The table has no column for {', '.join(lacking)}: their probability counts as 0.")
    known = [value for label, value in values.items() if label != _UNKNOWN]
    if _UNKNOWN in values and (n := int((values[_UNKNOWN] > np.max(known, axis=0)).sum())):
        notes.append(f"UNK is the most probable of {n:,} images of the table: the next one counts as the answer there.")
    return classes


def of_rows(
    other: OtherModel, catalog: pd.DataFrame, rows: pd.DataFrame, allow_missing: bool
) -> tuple[pd.DataFrame, pd.DataFrame, list[str]]:
    """What a model says of images of a catalog.

    Args:
        other: The model's table.
        catalog: All of the catalog, whose images are known.
        rows: Those rows of it that are measured.
        allow_missing: Whether images that the table lacks are left out.

    Returns:
        The rows that the table has; its predictions of them, see `melanoma.evaluation.predictions`, with no threshold;
        and what is to be said of images that are on one side alone.

    Raises:
        InputError: The table lacks images and may not, or says two things of one.
    """
    by_uri = bool(set(other.uris) & set(catalog["uri"]))
    keys = other.uris if by_uri else (other.image_ids or [taxonomy.image_id_of(uri) for uri in other.uris])
    of_row = rows["uri"].tolist() if by_uri else [plain_id(each) for each in rows["image_id"]]
    place_of_key = _place_of_key(other, keys)
    if not by_uri:
        _check_ids(other, rows, of_row, set(keys))
    notes = []
    missing = np.array([key not in place_of_key for key in of_row], dtype=bool)
    if missing.any():
        some = _some([key for key, is_missing in zip(of_row, missing, strict=True) if is_missing])
        if not allow_missing or missing.all():
            also = "" if missing.all() else ", or leave them out with --allow-missing"
            raise InputError(
                f"The predictions {other.table} lack {int(missing.sum()):,} of {len(rows):,} images: {some}: add "
                f"them{also}."
            )
        notes.append(f"{int(missing.sum()):,} of {len(rows):,} images are not in the table and left out: {some}.")
    known = set(catalog["uri"]) if by_uri else {plain_id(each) for each in catalog["image_id"]}
    if unknown := sorted(set(keys) - known):
        notes.append(f"{len(unknown):,} images of the table are not in the catalog: {_some(unknown)}.")
    found = rows[~missing]
    places = [place_of_key[key] for key, is_missing in zip(of_row, missing, strict=True) if not is_missing]
    return found, _table(other, found, places), notes


def _place_of_key(other: OtherModel, keys: Sequence[str]) -> dict[str, int]:
    """Where each image stands in the table; raises InputError for one that stands there twice, with other figures."""
    place_of_key: dict[str, int] = {}
    for place, key in enumerate(keys):
        first = place_of_key.setdefault(key, place)
        same = other.p_melanoma[first] == other.p_melanoma[place]
        if same and other.classes is not None:
            same = bool((other.classes[first] == other.classes[place]).all())
        if not same:
            raise InputError(f"The predictions {other.table} have two rows of {key} that differ: leave one of them.")
    return place_of_key


def _check_ids(other: OtherModel, rows: pd.DataFrame, ids: Sequence[str], named: set[str]) -> None:
    """Raise InputError where an id that the table names is of two photographs."""
    photograph: dict[str, str] = {}
    for image_id, uri in zip(ids, rows["uri"], strict=True):
        identity = taxonomy.identity(image_id, uri)
        if image_id in named and photograph.setdefault(image_id, identity) != identity:
            raise InputError(
                f"The predictions {other.table} name {image_id}, an id that two images of the catalog bear: name the "
                "images in a column uri, as the catalog does."
            )


def _some(names: Sequence[str]) -> str:
    more = len(names) - _NAMED_IN_ERROR
    return ", ".join(names[:_NAMED_IN_ERROR]) + (f" and {more:,} more" if more > 0 else "")


def _table(other: OtherModel, rows: pd.DataFrame, places: Sequence[int]) -> pd.DataFrame:
    predictions = rows[["uri", "image_id", "group_id", "source", "label", "split"]].reset_index(drop=True)
    label = np.array(predictions["label"], dtype=object)
    for joined in other.joined:
        narrower: Bools = np.array([set(taxonomy.codes_of(each)) < set(taxonomy.codes_of(joined)) for each in label])
        label[narrower] = joined
    predictions = predictions.assign(label=label, p_melanoma=other.p_melanoma[places], threshold=np.nan)
    if other.classes is None:
        return predictions
    return predictions.assign(**{f"p_{code}": other.classes[places, at] for at, code in enumerate(CODES)})
