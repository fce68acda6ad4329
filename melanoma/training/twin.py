"""The leaked twin, as an exhibit: the same recipe trained as many student projects do it, with a split over files.

Copies are made before the split, and the split is over single files. Copies of one photograph, and photographs of one
lesion, then lie on both sides of the split, and the validation figure says how well the network knows its training
images. Published notebooks on the nine-class ISIC set report 0.78 to 0.84 that way, and 0.28 to 0.42 on the set's own
Test folder.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd

from melanoma.catalog import schema
from melanoma.model import bundle as bundles
from melanoma.model.manifest import JsonModel
from melanoma.model.predictor import CompiledNetwork, calibrated
from melanoma.training import plan
from melanoma.training.config import TrainConfig
from melanoma.training.data import DevelopmentSet, Split, TrainingData
from melanoma.training.fit import fit
from melanoma.training.input import augmented_copies, cache_images
from melanoma.training.measure import Figures, cell, measure
from melanoma.training.tracking import OnEpoch

EXPLANATION = (
    "The same recipe was trained a second time in the way of many student projects: augmented copies, if any, were "
    "made before the split, and the split was over single files. Photographs of one lesion, and copies of one "
    "photograph, then lie on both sides of it, so its validation figure says how well the network remembers, and not "
    "how well it does on new patients."
)


class Exhibit(JsonModel):
    """What a bundle says of its leaked twin, beside its honest figures."""

    explanation: str = EXPLANATION
    leaked_validation: Figures  # of the leaked model, on the validation split that leaks
    leaked_model_on_test: Figures | None = None  # of the leaked model, on the test split; None: the catalog has none
    honest_validation: Figures | None = None  # of the bundle's model
    leaked_history: tuple[dict[str, float], ...] = ()  # of the leaked model, the figures of each epoch


def train_twin(
    config: TrainConfig,
    frame: pd.DataFrame,
    development: DevelopmentSet,
    on_epoch: OnEpoch,
    say: Callable[[str], None],
) -> Exhibit:
    """Train the twin of a configuration and measure it.

    Args:
        config: The honest training; the twin's run has its name and "-leaked".
        frame: The whole catalog, whose test split the twin is measured on.
        development: The images that are split anew.
        on_epoch: Given the figures of each epoch.
        say: Given one line a step.

    Returns:
        The figures of the twin, for the report.
    """
    say("Training the leaked twin first, for the report's warning: its split is over single files.")
    share = float((development.rows["split"] == "validation").mean())
    data, origin = leaked_splits(config, development.images, development.labels, share)
    trained = fit(config.model_copy(update={"run_name": f"{config.run_name}-leaked"}), data, on_epoch)
    network = CompiledNetwork(bundles.model_bytes(trained.model), config.image_size, config.test_time_flips)

    def measured(pixels: np.ndarray, labels: Sequence[str], groups: Sequence[str]) -> Figures:
        return measure(calibrated(network.logits(pixels), 1.0), labels, groups, config.seed)

    held_out = data.validation
    groups = development.groups[origin[held_out.rows]].tolist()
    leaked = measured(data.images[held_out.rows], held_out.labels, groups)
    say(f"The leaked twin's validation accuracy, which is not to be believed: {cell(leaked.accuracy)}.")
    exhibit: dict[str, Any] = {"explanation": EXPLANATION, "leaked_validation": leaked}
    exhibit["leaked_history"] = trained.history
    test = schema.usable(frame, "test")
    if not test.empty:
        images = cache_images(test["uri"].tolist(), config.image_size)
        exhibit["leaked_model_on_test"] = measured(images, test["label"].tolist(), test["group_id"].tolist())
    return Exhibit.model_validate(exhibit)


def leaked_splits(
    config: TrainConfig, images: np.ndarray, labels: Sequence[str], validation_share: float
) -> tuple[TrainingData, np.ndarray]:
    """Images with copies of all of them, dealt to train and validation one by one, at random.

    Args:
        config: Says which copies are made; its seed decides the deal.
        images: uint8 RGB [n, size, size, 3].
        labels: One an image.
        validation_share: 0 to 1, of images and copies together.

    Returns:
        What to train on, and which of the n images each of its images is (a copy of), int64 [n + copies].
    """
    source, seeds = plan.copies(labels, config.balance.copies, config.seed)
    copies = config.balance.copies
    origin = np.concatenate([np.arange(len(labels)), source])
    together = np.concatenate([images, augmented_copies(images, source, seeds, copies.augmentation if copies else ())])
    order = np.random.default_rng([config.seed, 5]).permutation(len(origin))
    held_out = round(validation_share * len(order))

    def split(rows: np.ndarray) -> Split:
        return Split(rows, tuple(labels[origin[row]] for row in rows))

    return TrainingData(together, train=split(order[held_out:]), validation=split(order[:held_out])), origin
