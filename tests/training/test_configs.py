"""Every training configuration that comes with the program trains: one step of it, on few and small pictures."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import ray
import tensorflow as tf
import yaml

from melanoma import config, taxonomy
from melanoma.demo.lesions import draw_lesion
from melanoma.training import loop
from melanoma.training.augment import augment, operations
from melanoma.training.config import Augmentation, TrainConfig
from melanoma.training.data import DevelopmentSet
from melanoma.training.fit import with_copies

CONFIGS = Path(__file__).parents[2] / "configs"
SIZE = 32
BATCH = 36  # as many images as there are, so that an epoch is one step
# What makes it small and quick, and nothing that is learned from.
SMALL = {"image_size": SIZE, "epochs": 1, "warmup_epochs": 0, "network.width": 4}


def trainings() -> list[str]:
    """The files that name a network to train."""
    found = {path.name: yaml.safe_load(path.read_text()).get("network") for path in CONFIGS.glob("*.yaml")}
    return sorted(name for name, network in found.items() if isinstance(network, dict))


def development_set() -> DevelopmentSet:
    """Two images of each diagnosis and source to train on, and one of each diagnosis to validate on."""
    rows = pd.DataFrame(
        [
            {"label": code, "source": source, "split": split}
            for split, source in (("train", "a"), ("train", "b"), ("train", "a"), ("train", "b"), ("validation", "a"))
            for code in taxonomy.CODES
        ]
    )
    return DevelopmentSet(rows, np.stack([draw_lesion(code, n, SIZE, SIZE) for n, code in enumerate(rows["label"])]))


def test_the_configurations_are_found() -> None:
    assert {"train.yaml", "reference.yaml", "student.yaml"} <= set(trainings())


@pytest.mark.parametrize("name", trainings())
def test_a_configuration_trains_for_one_step(ray_cluster: None, name: str) -> None:
    whole = config.load(TrainConfig, str(CONFIGS / name))
    copies = whole.balance.copies
    for chain in (whole.augmentation, copies.augmentation if copies else ()):
        assert_each_changes_a_picture(chain)
    changes = SMALL | {"batch_size": whole.network.ghost_batch or BATCH}
    training = config.changed(whole, changes | ({"balance.copies.add": 2} if copies and copies.add else {}))
    data = with_copies(training, development_set(), lambda line: None)
    assert len(data.train.rows) == 36 + (18 if copies else 0)

    # What a worker of Ray Train does, in this process: a training of its own takes ten times as long.
    strategy = tf.distribute.get_strategy()
    learner = loop.make_learner(training, steps_per_epoch=1, workers=1, strategy=strategy)
    before = [np.array(weights) for weights in learner.model.trainable_variables]
    batches = loop.feed(ray.put(data.images), data.train, training, range(1), rank=0, workers=1)
    (total, accuracy), _ = loop.train_epoch(loop.make_step(learner, strategy, training), batches, steps=1)
    assert 0 < total < 10
    assert 0 <= accuracy <= 1
    after = [np.array(weights) for weights in learner.model.trainable_variables]
    assert all(np.isfinite(weights).all() for weights in after)
    assert all((now != then).any() for now, then in zip(after, before, strict=True))


def assert_each_changes_a_picture(augmentations: Sequence[Augmentation]) -> None:
    """Each operation by itself and for certain: in one step, what is rare would not be drawn."""
    picture = draw_lesion("MEL", 0, SIZE, SIZE)
    for augmentation in augmentations:
        chain = operations([augmentation.model_copy(update={"probability": 1.0})])
        changed = [augment(picture, chain, seed) for seed in range(8)]
        assert {(each.shape, str(each.dtype)) for each in changed} == {(picture.shape, "uint8")}
        assert any((each != picture).any() for each in changed), augmentation
