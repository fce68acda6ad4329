"""Probabilities to alert levels and reasons, and the columns that a prediction has wherever it stands.

Two questions are asked of an image, each with thresholds of its own: is it melanoma (p_melanoma), and is it any
malignancy (p_malignant). Bundles of earlier versions ask the first alone.
"""

import numpy as np
import pyarrow as pa

from melanoma import taxonomy
from melanoma.model.manifest import Thresholds

ALERT_LEVELS = ("none", "review", "urgent")
MELANOMA, MALIGNANCY, BOTH = REASONS = ("melanoma", "malignancy", "melanoma, malignancy")
"""Which questions have raised an image: that of melanoma, that of any malignancy, or both."""

# What the model says of one image: the same columns in a score, in a prediction of an evaluation and over HTTP.
PREDICTION_FIELDS: list[pa.Field] = [
    pa.field("model_version", pa.string()),
    pa.field("diagnosis", pa.string()),  # the code of the highest probability
    *[pa.field(f"p_{code}", pa.float32()) for code in taxonomy.CODES],  # calibrated, sum 1
    pa.field("p_melanoma", pa.float32()),
    pa.field("p_malignant", pa.float32()),  # BCC, MEL and SCC together
    pa.field("alert_level", pa.string()),  # the higher one of the two questions
    pa.field("alert_reason", pa.string()),  # one of REASONS; null: the image is not raised
    pa.field("threshold", pa.float32()),  # p_melanoma from which an image is raised for review
    pa.field("threshold_urgent", pa.float32()),  # and as urgent
    pa.field("threshold_malignancy", pa.float32()),  # p_malignant from which it is raised for review; null: not asked
    pa.field("threshold_malignancy_urgent", pa.float32()),
    pa.field("quality", pa.struct([("sharpness", pa.float32()), ("exposure", pa.float32())])),
    pa.field("outlier_score", pa.float32()),  # over 1: unlike the images the model knows
]


def alert_levels(p_melanoma: np.ndarray, review: float, urgent: float) -> list[str]:
    """The alert level of each float32 probability; at the threshold itself an image is raised."""
    return [ALERT_LEVELS[int(p >= review) + int(p >= max(review, urgent))] for p in p_melanoma.astype(np.float64)]


def alerts(p_melanoma: np.ndarray, p_malignant: np.ndarray, thresholds: Thresholds) -> dict[str, list[str | None]]:
    """The columns `alert_level` and `alert_reason` of n images; the probabilities are float32 [n]."""
    melanoma = alert_levels(p_melanoma, thresholds.review, thresholds.urgent)
    malignancy = ["none"] * len(melanoma)
    if asked := thresholds.malignancy:
        malignancy = alert_levels(p_malignant, asked.review, asked.urgent)
    questions = list(zip(melanoma, malignancy, strict=True))
    return {
        "alert_level": [max(levels, key=ALERT_LEVELS.index) for levels in questions],
        "alert_reason": [_reason(*levels) for levels in questions],
    }


def _reason(melanoma: str, malignancy: str) -> str | None:
    raised = [name for name, level in ((MELANOMA, melanoma), (MALIGNANCY, malignancy)) if level != "none"]
    return ", ".join(raised) or None
