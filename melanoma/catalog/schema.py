"""The catalog: a Parquet table, one row an image, with what is known of it. And its fingerprint."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any

import pandas as pd
import pyarrow as pa

from melanoma import storage
from melanoma.errors import InputError
from melanoma.imaging.errors import counted

SPLITS = ("train", "validation", "test")

SCHEMA = pa.schema(
    [
        ("uri", pa.string()),
        ("image_id", pa.string()),
        ("source", pa.string()),
        ("label", pa.string()),  # of melanoma.taxonomy, or null
        ("lesion_id", pa.string()),
        ("patient_id", pa.string()),
        ("width", pa.int32()),  # pixels, upright; null where the image cannot be read
        ("height", pa.int32()),
        ("size_bytes", pa.int64()),
        ("sha256", pa.string()),
        ("perceptual_hash", pa.string()),
        ("group_id", pa.string()),  # joins what may not be split apart
        ("split", pa.string()),  # train, validation, test or null
        ("error", pa.string()),  # why the image cannot be used; null for a good one
        ("changes", pa.string()),  # what rules of repair have changed of this row, and why; null where nothing
        # What is known of the patient, to measure subgroups by.
        ("age", pa.float32()),  # years
        ("sex", pa.string()),
        ("anatomic_site", pa.string()),
        # Properties of the picture that are not the lesion's.
        ("sharpness", pa.float32()),  # of melanoma.imaging.measures.quality
        ("exposure", pa.float32()),
        ("dark_border", pa.float32()),  # share of the picture, 0 to 1, that is the dark frame of a dermatoscope
        ("thumbnail", pa.binary()),  # of melanoma.imaging.hashing: what near-duplicates are verified on
    ]
)

_METADATA_KEY = b"melanoma"


def read(uri: str) -> pd.DataFrame:
    """The catalog at `uri`, with None for what is not known.

    Raises InputError where it does not exist, is not a catalog, or was changed after its split was frozen.
    """
    try:
        table = storage.read_table(storage.normalize(uri))
    except FileNotFoundError:
        raise InputError(f"The catalog {uri} does not exist: make one with `melanoma catalog`.") from None
    except OSError as error:
        raise InputError(f"The catalog {uri} cannot be read: {error}") from None
    if missing := [column for column in SCHEMA.names if column not in table.column_names]:
        raise InputError(f"{uri} is not a catalog: it has no column {missing[0]!r}.")
    try:
        frame = to_frame(table.select(SCHEMA.names).cast(SCHEMA))
        frozen = json.loads((table.schema.metadata or {})[_METADATA_KEY])["fingerprint"]
    except pa.ArrowException as error:
        raise InputError(f"{uri} is not a catalog: {str(error).splitlines()[0]}.") from None
    except (KeyError, TypeError, ValueError):
        frozen = None
    if frozen is None or frozen != fingerprint(frame):
        raise InputError(
            f"The catalog {uri} was changed after it was written (its fingerprint does not fit): make it anew."
        )
    return frame


def to_frame(table: pa.Table) -> pd.DataFrame:
    """Arrow to pandas, with plain Python strings and None (not NaN) for what is missing."""
    return pd.DataFrame({name: table[name].to_pylist() for name in table.column_names}, dtype=object)


def write(uri: str, frame: pd.DataFrame) -> str:
    """Write the catalog with its fingerprint frozen into it; returns the fingerprint."""
    mark = fingerprint(frame)
    table = pa.Table.from_pydict({column: frame[column].tolist() for column in SCHEMA.names}, schema=SCHEMA)
    storage.write_table(
        storage.normalize(uri), table.replace_schema_metadata({_METADATA_KEY: json.dumps({"fingerprint": mark})})
    )
    return mark


def fingerprint(frame: pd.DataFrame) -> str:
    """sha256 over what decides a training run: the bytes, label, group and split of every image, in any order."""
    rows = sorted(
        json.dumps([row.sha256, row.image_id, row.label, row.group_id, row.split])
        for row in frame.itertuples(index=False)
    )
    return hashlib.sha256("\n".join(rows).encode()).hexdigest()


def usable(frame: pd.DataFrame, split: str) -> pd.DataFrame:
    """The images of a split ("all" for every one) that can be read and have a label."""
    rows = frame[frame["error"].isna() & frame["label"].notna()]
    return rows if split == "all" else rows[rows["split"] == split]


def reasons(rows: Iterable[Mapping[Any, Any]]) -> dict[str, int]:
    """Why images cannot be used, and how many for each reason, see `melanoma.imaging.errors.counted`."""
    found = counted(("", row["error"].rstrip("."), row["uri"]) for row in rows if row.get("error"))
    return {reason.error: reason.count for reason in found}


def reasons_in_words(rows: Iterable[Mapping[Any, Any]]) -> str:
    return "; ".join(f"{reason} ({count:,})" for reason, count in reasons(rows).items())


def dropped(frame: pd.DataFrame) -> pd.Series:
    """bool [n]: the images that a rule of repair has dropped; they keep their row for the record."""
    return frame["label"].isna() & frame["changes"].fillna("").str.contains(r"(?:^|; )dropped ", regex=True)
