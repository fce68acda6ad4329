"""Probabilities to alert levels, and the schemas of scores, alerts and rejects."""

import numpy as np
import pyarrow as pa

from melanoma import taxonomy

ALERT_LEVELS = ("none", "review", "urgent")

# What the model says of one image: the same columns in a score, in a prediction of an evaluation and over HTTP.
PREDICTION_FIELDS: list[pa.Field] = [
    pa.field("model_version", pa.string()),
    pa.field("diagnosis", pa.string()),  # the code of the highest probability
    *[pa.field(f"p_{code}", pa.float32()) for code in taxonomy.CODES],  # calibrated, sum 1
    pa.field("p_melanoma", pa.float32()),
    pa.field("p_malignant", pa.float32()),  # BCC, MEL and SCC together
    pa.field("alert_level", pa.string()),
    pa.field("threshold", pa.float32()),  # p_melanoma from which an image is raised for review
    pa.field("quality", pa.struct([("sharpness", pa.float32()), ("exposure", pa.float32())])),
    pa.field("outlier_score", pa.float32()),  # over 1: unlike the images the model knows
]

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
        # Of a file with several frames the one, counted from 1, that this is the score of: of the highest p_melanoma.
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


def alert_levels(p_melanoma: np.ndarray, review: float, urgent: float) -> list[str]:
    """The alert level of each float32 probability; at the threshold itself an image is raised."""
    return [ALERT_LEVELS[int(p >= review) + int(p >= max(review, urgent))] for p in p_melanoma.astype(np.float64)]
