"""The schemas of what a scoring run writes: scores, alerts and rejects."""

import pyarrow as pa

from melanoma.model.triage import PREDICTION_FIELDS

# What a DICOM header says of one image, as `melanoma.privacy` lets it out; null where there is none.
PATIENT_FIELDS: list[pa.Field] = [
    pa.field("patient_id", pa.string()),
    pa.field("study_uid", pa.string()),
    pa.field("body_site", pa.string()),
    pa.field("acquired_at", pa.string()),  # ISO 8601, mostly without a time zone
    pa.field("is_held_back", pa.bool_()),  # no page shows the picture
]

# The two columns that stand in the folder names too. pandas and pyarrow read a folder's name=value as a dictionary, and
# refuse a folder whose files hold the column as another type.
_PARTITION = pa.dictionary(pa.int32(), pa.string())

SCORES = pa.schema(
    [
        ("run_id", _PARTITION),
        ("run_date", _PARTITION),  # ISO date
        ("scored_at", pa.timestamp("us", tz="UTC")),
        ("image_uri", pa.string()),
        ("image_id", pa.string()),
        # The frame, counted from 1, with the highest p_melanoma; null where the file has one.
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
