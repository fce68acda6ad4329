"""The student's way, as an exhibit: the same recipe trained with copies made before a split over single files.

Copies of one photograph, and photographs of one lesion, then lie on both sides of the split, and the validation figure
says how well the network knows its training images. Published notebooks on the nine-class ISIC set report 0.78 to 0.84
that way, and 0.28 to 0.42 on the set's own Test folder.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from melanoma import taxonomy
from melanoma.evaluation.metrics import compute_metrics
from melanoma.training import plan
from melanoma.training.config import TrainConfig
from melanoma.training.input import augmented_copies
from melanoma.training.loop import Split

EXPLANATION = (
    "The same recipe was trained a second time in the way of many student projects: augmented copies, if any, were "
    "made before the split, and the split was over single files. Photographs of one lesion, and copies of one "
    "photograph, then lie on both sides of it, so its validation figure says how well the network remembers, and not "
    "how well it does on new patients."
)
FIGURES = ("n", "n_melanoma", "accuracy", "balanced_accuracy", "melanoma_auc")


def leaked_splits(
    config: TrainConfig, images: np.ndarray, labels: Sequence[str], validation_share: float
) -> tuple[np.ndarray, dict[str, Split], np.ndarray]:
    """Images with copies of all of them, dealt to train and validation one by one, at random.

    `images` uint8 RGB [n, size, size, 3]. Returns images [n + copies, size, size, 3], the splits, and which of the n
    images each is (a copy of), int64 [n + copies].
    """
    source, seeds = plan.copies(labels, config.balance.copies, config.seed)
    copies = config.balance.copies
    origin = np.concatenate([np.arange(len(labels)), source])
    together = np.concatenate([images, augmented_copies(images, source, seeds, copies.augmentation if copies else ())])
    order = np.random.default_rng([config.seed, 5]).permutation(len(origin))
    held_out = round(validation_share * len(order))

    def split(rows: np.ndarray) -> Split:
        return Split(rows, tuple(labels[origin[row]] for row in rows))

    return together, {"train": split(order[held_out:]), "validation": split(order[:held_out])}, origin


def figures(probabilities: np.ndarray, labels: Sequence[str], groups: Sequence[str], seed: int) -> dict[str, Any]:
    """Accuracy, balanced accuracy and melanoma AUC, with intervals over groups, of float [n, classes]."""
    columns = {f"p_{code}": probabilities[:, place] for place, code in enumerate(taxonomy.CODES)}
    table = pd.DataFrame(columns, dtype=np.float64).assign(
        image_id="", group_id=list(groups), label=list(labels), threshold=0.5
    )
    metrics = compute_metrics(table.assign(p_melanoma=table[f"p_{taxonomy.MELANOMA}"]), seed=seed)
    return {name: metrics[name] for name in FIGURES}
