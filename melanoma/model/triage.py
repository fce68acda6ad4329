"""Probabilities to alert levels, and the columns that a prediction has wherever it stands."""

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


def alert_levels(p_melanoma: np.ndarray, review: float, urgent: float) -> list[str]:
    """The alert level of each float32 probability; at the threshold itself an image is raised."""
    return [ALERT_LEVELS[int(p >= review) + int(p >= max(review, urgent))] for p in p_melanoma.astype(np.float64)]
