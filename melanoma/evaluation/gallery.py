"""The pictures of the report: the worst mistakes, and a random sample."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from melanoma.evaluation.intervals import Ints
from melanoma.evaluation.metrics import Metrics
from melanoma.evaluation.predictions import class_probabilities, frozen_threshold, melanoma_side
from melanoma.pages import templates

PICTURES_A_SECTION = 12


@dataclass(frozen=True)
class Card:
    """One picture with its prediction."""

    image_id: str
    label: str
    picture: str | None  # a data: address
    top: list[tuple[str, float]]  # the three most probable classes; empty where the model tells none
    p_melanoma: float
    alert_level: str | None  # None where no threshold of the model is known


@dataclass(frozen=True)
class Section:
    """Cards under one title, `out_of` how many that could have been shown."""

    title: str
    note: str
    nothing: str  # what to say where there are no cards
    cards: list[Card]
    out_of: int


@dataclass(frozen=True)
class _Selection:
    """Row positions of the images that the report shows, and how many there were to choose from."""

    missed: Ints
    n_missed: int
    false_alarms: Ints
    n_false_alarms: int
    sample: Ints


def select_pictures(predictions: pd.DataFrame, seed: int = 0) -> list[str]:
    """The uris of the images that the report shows, each once.

    They are the missed melanomas with the lowest `p_melanoma`, the false alarms with the highest and a random sample,
    at most 12 of each; without a threshold all melanomas count as missed and all others as false alarms. The order of
    the rows does not matter.
    """
    chosen = _select(predictions, seed)
    rows = np.concatenate([chosen.missed, chosen.false_alarms, chosen.sample])
    return list(dict.fromkeys(predictions["uri"].iloc[rows]))


def sections(predictions: pd.DataFrame, metrics: Metrics, pictures: Mapping[str, bytes]) -> list[Section]:
    """The sections of the report. `pictures`: a JPEG or PNG by the uri of `select_pictures`, which may lack some."""
    chosen = _select(predictions, metrics.bootstrap.seed)
    classes = tuple(metrics.classes)

    def cards(rows: Ints) -> list[Card]:
        shown = predictions.iloc[rows]
        probability = class_probabilities(shown, classes) if len(shown) else np.empty((0, len(classes)))
        return [_card(row, p, classes, pictures) for (_, row), p in zip(shown.iterrows(), probability, strict=True)]

    if metrics.threshold is None:
        return [
            Section(
                "Melanomas that rank lowest",
                "Melanomas, the lowest probability first: no threshold of this model is known.",
                "This set has no known melanoma.",
                cards(chosen.missed),
                chosen.n_missed,
            ),
            Section(
                "Other images that rank highest",
                "Images that are known not to be melanoma, the highest probability first.",
                "This set has no image that is known not to be melanoma.",
                cards(chosen.false_alarms),
                chosen.n_false_alarms,
            ),
            _sample(cards(chosen.sample), metrics.n),
        ]
    return [
        Section(
            "Missed melanomas",
            "Melanomas below the threshold, the lowest probability first.",
            "No melanoma of this set is below the threshold."
            if metrics.n_melanoma
            else "This set has no known melanoma.",
            cards(chosen.missed),
            chosen.n_missed,
        ),
        Section(
            "False alarms",
            (
                "Images at or above the threshold that are known not to be melanoma (some may be another cancer), the "
                "highest probability first."
            ),
            "No other image of this set reaches the threshold.",
            cards(chosen.false_alarms),
            chosen.n_false_alarms,
        ),
        _sample(cards(chosen.sample), metrics.n),
    ]


def _sample(cards: list[Card], out_of: int) -> Section:
    note = "Drawn blindly from all images of this set, right and wrong answers."
    return Section("A random sample", note, "", cards, out_of)


def _select(predictions: pd.DataFrame, seed: int) -> _Selection:
    score = predictions["p_melanoma"].to_numpy(dtype=np.float64)
    melanoma = melanoma_side(predictions)
    raised = melanoma.no if (threshold := frozen_threshold(predictions)) is None else score >= threshold
    by_uri = np.argsort(predictions["uri"].to_numpy(dtype=object), kind="stable")
    rising = by_uri[np.argsort(score[by_uri], kind="stable")]
    missed = rising[(melanoma.yes & ~raised)[rising]]
    false_alarms = rising[::-1][(melanoma.no & raised)[rising[::-1]]]
    sample = np.random.default_rng(seed).permutation(by_uri)
    return _Selection(
        missed=missed[:PICTURES_A_SECTION],
        n_missed=len(missed),
        false_alarms=false_alarms[:PICTURES_A_SECTION],
        n_false_alarms=len(false_alarms),
        sample=sample[:PICTURES_A_SECTION],
    )


def _card(row: pd.Series, probability: np.ndarray, classes: tuple[str, ...], pictures: Mapping[str, bytes]) -> Card:
    best = np.argsort(-probability, kind="stable")[:3]
    return Card(
        image_id=row["image_id"],
        label=row["label"],
        picture=image_uri(pictures.get(row["uri"], b"")),
        top=[(classes[place], float(probability[place])) for place in best],
        p_melanoma=float(row["p_melanoma"]),
        alert_level=row.get("alert_level"),
    )


def image_uri(picture: bytes) -> str | None:
    """The picture for an `img` element; None for bytes that are neither JPEG nor PNG."""
    for start, kind in ((b"\xff\xd8\xff", "jpeg"), (b"\x89PNG\r\n\x1a\n", "png")):
        if picture.startswith(start):
            return templates.data_uri(picture, kind)
    return None
