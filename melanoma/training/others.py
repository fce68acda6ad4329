"""Pictures that are no dermoscopy, such as close-ups: from four fifths of them the outlier model learns what to refuse,
and the rest says in the report how well it does."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd

from melanoma.evaluation.run import pictures_of
from melanoma.model import outliers
from melanoma.model.compiled import QuantizedNetwork
from melanoma.model.outliers import FeatureModel, OutlierModel
from melanoma.model.outputs import Outputs
from melanoma.model.predictor import CompiledNetwork
from melanoma.training.config import TrainConfig
from melanoma.training.data import DevelopmentSet

_MEASURED = 5  # one picture of so many is kept for the report
_KNOWN = 3000  # training images at most whose features are learned


@dataclass(frozen=True)
class Others:
    """The pictures of the configured folders at the network's input size, uint8 RGB [n, size, size, 3] each."""

    learned: np.ndarray
    measured: dict[str, np.ndarray]  # by folder


def read(config: TrainConfig, say: Callable[[str], None]) -> Others | None:
    """The pictures of `config.others`, each drawn into one part by the seed; None where no folder is named.

    Raises InputError where a folder cannot be read or has fewer than five pictures.
    """
    learned, measured = [], {}
    found = pictures_of(config.others, config.image_size, config.seed, say, least=_MEASURED)
    for number, (folder, pictures) in enumerate(found.items()):
        drawn = np.random.default_rng([config.seed, 6, number]).permutation(len(pictures))
        measured[folder] = pictures[drawn[::_MEASURED]]
        learned.append(np.delete(pictures, drawn[::_MEASURED], axis=0))
    return Others(np.concatenate(learned), measured) if learned else None


def outlier_model(
    config: TrainConfig,
    development: DevelopmentSet,
    network: CompiledNetwork,
    validation: Outputs,
    others: Others | None,
) -> OutlierModel:
    """What the bundle takes for an image of the known kind.

    Args:
        config: The training.
        development: The images of train and validation.
        network: The trained networks.
        validation: What they give for the images of validation.
        others: Pictures that are no dermoscopy, if there are any.
    """
    count = development.train_count
    model = outliers.fit(development.images[:count], development.images[count:])
    if others is None:
        return model
    return model.model_copy(update={"of_features": feature_model(config, development, network, validation, others)})


def feature_model(
    config: TrainConfig,
    development: DevelopmentSet,
    network: CompiledNetwork | QuantizedNetwork,
    validation: Outputs,
    others: Others,
) -> FeatureModel:
    """What tells dermoscopy from other pictures by the features of these networks; arguments as of `outlier_model`."""
    drawn = draw(development.rows[: development.train_count], config.seed, _KNOWN)
    known = network.outputs(development.images[drawn]).features
    foreign = network.outputs(others.learned).features
    sources = development.rows["source"].iloc[drawn].tolist()
    return outliers.fit_features(known, sources, foreign, validation.features)


def draw(rows: pd.DataFrame, seed: int, most: int) -> np.ndarray:
    """int64 [n]: `most` training images at most, as many of each source as of any other while there are as many."""
    shuffled = np.random.default_rng([seed, 7]).permutation(len(rows))
    nth_of_source = rows["source"].iloc[shuffled].groupby(rows["source"].iloc[shuffled].to_numpy()).cumcount()
    return np.sort(shuffled[np.argsort(nth_of_source.to_numpy(), kind="stable")[:most]])
