"""The configuration of a night: `configs/nightly.yaml` becomes a `NightlyConfig`."""

from typing import Self

from pydantic import model_validator

from melanoma.config import Model, Place, Positive
from melanoma.scoring.config import DeliveryConfig, ScoreConfig
from melanoma.training.config import TrainConfig


class RetrainConfig(Model):
    """A training on its own schedule, whose bundle is proposed to people and never promoted by itself."""

    train: TrainConfig  # its `out` is not used: each candidate has a folder of its own below `candidates`
    candidates: Place
    every_days: Positive = 30


class NightlyConfig(Model):
    score: ScoreConfig
    deliver: DeliveryConfig | None = None  # where new alerts go; None: nowhere
    tell: DeliveryConfig | None = None  # who hears of a bad night; None: the exit code and the log alone say it
    may_be_empty: bool = False  # whether a night without any new image is nothing that somebody has to hear of
    retrain: RetrainConfig | None = None

    @model_validator(mode="after")
    def _one_delivery(self) -> Self:
        if self.score.deliver:
            raise ValueError("give deliver for the night, and not score.deliver")
        return self
