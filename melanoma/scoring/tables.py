"""The tables that a scoring run writes, scores, alerts and rejects, and how they stand in files.

Two columns, `run_id` and `run_date`, are the names of the folders, and the files do not have them, as in every
partitioned data set: what reads the folder adds them. Arrow refuses files that have them as well, pandas unless they
are dictionaries, a data set of pyarrow if they are.
"""

import struct

import pyarrow as pa
import pyarrow.compute as pc

from melanoma import storage
from melanoma.model.triage import MALIGNANCY, PREDICTION_FIELDS

# What a DICOM header says of one image, as `melanoma.privacy` lets it out; null where there is none.
PATIENT_FIELDS: list[pa.Field] = [
    pa.field("patient_id", pa.string()),
    pa.field("study_uid", pa.string()),
    pa.field("body_site", pa.string()),
    pa.field("acquired_at", pa.string()),  # ISO 8601, mostly without a time zone
    pa.field("is_held_back", pa.bool_()),  # no page shows the picture
]

# One value in all rows of a run.
_PARTITION = pa.dictionary(pa.int32(), pa.string())

SCORES = pa.schema(
    [
        ("run_id", _PARTITION),
        ("run_date", _PARTITION),  # ISO date
        ("scored_at", pa.timestamp("us", tz="UTC")),
        ("image_uri", pa.string()),
        ("image_id", pa.string()),
        # The frame, counted from 1, that comes first `by_rank`; null where the file has one.
        ("frame", pa.int32()),
        *PATIENT_FIELDS,
        ("content_sha256", pa.string()),
        *PREDICTION_FIELDS,
        ("perceptual_hash", pa.string()),  # of a raised image, as `melanoma.imaging.hashing` makes it
    ]
)

ALERTS = pa.schema(
    [
        *SCORES,
        pa.field("rank", pa.int32()),
        pa.field("explanation_uri", pa.string()),
        pa.field("copies", pa.list_(pa.string())),  # URIs of other raised images of the same photograph
        pa.field("first_raised", pa.string()),  # ISO date of the first run that raised it before; null: it is new
    ]
)

REJECTS = pa.schema(
    [
        ("run_id", _PARTITION),
        ("run_date", _PARTITION),
        ("image_uri", pa.string()),
        ("error_kind", pa.string()),
        ("error", pa.string()),
        ("content_sha256", pa.string()),  # null where no content was read
    ]
)


def by_rank(scores: pa.Table) -> pa.Array:
    """The rows of scores, `SCORES`, in the order of a list of alerts: uint64 [n].

    Urgent images come before those to review. Within a level, what the question of melanoma has raised comes before
    what any malignancy alone has. Then the more probable comes first, by the probability of the question: p_melanoma,
    or p_malignant of what that alone has raised; then the URI, so that a run has one order. Without an
    `alert_reason`, which earlier versions did not write, an image was raised as melanoma.
    """
    # No values of Python among these: pyarrow would import pandas for them, and `melanoma alerts` does without.
    alone = pc.starts_with(scores["alert_reason"], MALIGNANCY)
    alone = pc.and_kleene(alone, pc.is_valid(alone))  # false for null
    keys = {
        "is_urgent": pc.starts_with(scores["alert_level"], "urgent").cast(pa.int8()),
        "is_raised": pc.invert(pc.starts_with(scores["alert_level"], "none")).cast(pa.int8()),
        "is_alone": alone.cast(pa.int8()),
        "probability": pc.if_else(alone, scores["p_malignant"], scores["p_melanoma"]),
        "image_uri": scores["image_uri"],
    }
    falling = ["is_urgent", "is_raised", "probability"]
    order = [(name, "descending" if name in falling else "ascending") for name in keys]
    return pc.sort_indices(pa.table(keys), order)


def in_file(table: pa.Table) -> pa.Table:
    """What a file holds of a table of a run."""
    return table.drop_columns(["run_id", "run_date"])


def of_run(file: pa.Table, schema: pa.Schema, run_id: str, run_date: str) -> pa.Table:
    """The columns `schema` of a file of a run, which an earlier version of this program may have written."""
    table = storage.completed(file, schema)
    for name, value in (("run_id", run_id), ("run_date", run_date)):
        place = schema.get_field_index(name)
        if place >= 0:
            values = _repeated(value, len(file)).cast(schema.field(place).type)
            table = table.set_column(place, schema.field(place), values)
    return table


def _repeated(value: str, rows: int) -> pa.DictionaryArray:
    """The value in so many rows. Not with `pa.array`, which imports pandas: `melanoma alerts` does without."""
    data = value.encode()
    ends = pa.py_buffer(struct.pack("=2i", 0, len(data)))
    words = pa.Array.from_buffers(pa.string(), 1, [None, ends, pa.py_buffer(data)])
    places = pa.Array.from_buffers(pa.int32(), rows, [None, pa.py_buffer(bytes(4 * rows))])
    return pa.DictionaryArray.from_arrays(places, words)
