"""What is drawn when: every image of every step of every epoch, with its augmentation seed, decided by one seed.

The plan is a pure function of the catalog's rows and the configuration. It does not know how many workers there are:
each takes its part of every global batch, so that one worker and many see the same batches.
"""

from collections.abc import Sequence

import numpy as np

from melanoma import taxonomy
from melanoma.config import Balance


def targets(labels: Sequence[str]) -> np.ndarray:
    """float32 [n, classes], 1 for each code that a label covers: "AK|SCC" has two ones."""
    result = np.zeros((len(labels), len(taxonomy.CODES)), dtype=np.float32)
    for row, label in enumerate(labels):
        for code in taxonomy.codes_of(label):
            result[row, taxonomy.CODES.index(code)] = 1.0
    return result


def class_counts(labels: Sequence[str]) -> dict[str, int]:
    names, counts = np.unique(np.asarray(labels, dtype=str), return_counts=True)
    return dict(zip(names.tolist(), counts.tolist(), strict=True))


def draw_probabilities(labels: Sequence[str], power: float) -> np.ndarray:
    """float64 [n], sum 1: how likely each image is to be drawn, see `Balance`."""
    counts = class_counts(labels)
    weights = np.array([counts[label] ** -power for label in labels], dtype=np.float64)
    return np.asarray(weights / weights.sum())


def loss_weights(labels: Sequence[str], balance: Balance) -> np.ndarray:
    """float32 [n]: how much each image weighs in the loss, such that the expected weight of a drawn image is 1."""
    counts = class_counts(labels)
    weights = np.array([counts[label] ** -balance.loss_weights for label in labels], dtype=np.float64)
    return (weights / np.dot(weights, draw_probabilities(labels, balance.sampling))).astype(np.float32)


def steps_per_epoch(images: int, batch_size: int) -> int:
    """An epoch draws about as many images as there are, in whole batches."""
    return max(1, round(images / batch_size))


def epoch_indices(labels: Sequence[str], balance: Balance, batch_size: int, seed: int, epoch: int) -> np.ndarray:
    """int64 [steps, batch_size]: which images are drawn in an epoch.

    Sampling is systematic rather than independent (one uniform offset, equal strides over the cumulated probabilities):
    each image is drawn floor or ceil of its expected number of times. The images of a label lie side by side there, so
    a class has its share in every epoch, to within one image, and not just on average. The order is shuffled.
    """
    generator = np.random.default_rng([seed, 1, epoch])
    count = steps_per_epoch(len(labels), batch_size) * batch_size
    order = generator.permutation(len(labels))
    order = order[np.argsort(np.asarray(labels, dtype=str)[order], kind="stable")]
    edges = np.cumsum(draw_probabilities(labels, balance.sampling)[order])
    points = (generator.random() + np.arange(count)) / count
    drawn = order[np.minimum(np.searchsorted(edges, points, side="right"), len(labels) - 1)]
    return np.asarray(generator.permutation(drawn).reshape(-1, batch_size))


def augmentation_seeds(shape: tuple[int, int], seed: int, epoch: int) -> np.ndarray:
    """uint32 of `shape` [steps, batch_size]: one seed for each drawn image."""
    return np.random.default_rng([seed, 2, epoch]).integers(0, 2**32, size=shape, dtype=np.uint32)


def worker_part(batches: np.ndarray, rank: int, workers: int) -> np.ndarray:
    """The columns of [steps, batch_size] that one of `workers` takes: equal, and together the whole batch."""
    size = batches.shape[1] // workers
    return batches[:, rank * size : (rank + 1) * size]
