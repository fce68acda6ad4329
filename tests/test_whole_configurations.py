"""A configuration that is called whole has every key: one that is added to the model has to stand in the file, too."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel

from melanoma import config
from melanoma.evaluation.config import EvaluateConfig
from melanoma.scoring.config import DeliveryConfig, ScoreConfig
from melanoma.training.config import TrainConfig
from melanoma.training.studies.config import AblationConfig, RecipesConfig, TuneConfig

CONFIGS = Path(__file__).parents[1] / "configs"
WHOLE: dict[str, type[config.Model]] = {
    "train.yaml": TrainConfig,
    "score.yaml": ScoreConfig,
    "deliver.yaml": DeliveryConfig,
    "evaluate.yaml": EvaluateConfig,
    "tune.yaml": TuneConfig,
    "ablation.yaml": AblationConfig,
    "recipes.yaml": RecipesConfig,
}


def keys(model: type[BaseModel]) -> set[str]:
    """The dotted keys of a model; of a group that is there by default, those of the group."""
    found = set()
    for name, field in model.model_fields.items():
        group = field.annotation
        if isinstance(group, type) and issubclass(group, BaseModel):
            found |= {f"{name}.{key}" for key in keys(group)}
        else:
            found.add(name)
    return found


def written(tree: dict[str, Any], among: set[str], prefix: str = "") -> set[str]:
    """The dotted keys of a file, down to those that are `among` the keys of its model."""
    found = set()
    for name, value in tree.items():
        key = f"{prefix}{name}"
        found |= {key} if key in among or not isinstance(value, dict) else written(value, among, f"{key}.")
    return found


@pytest.mark.parametrize("name", WHOLE)
def test_every_key_stands_in_the_file(name: str) -> None:
    known = keys(WHOLE[name])
    assert written(yaml.safe_load((CONFIGS / name).read_text()), known) == known
    config.load(WHOLE[name], str(CONFIGS / name))
