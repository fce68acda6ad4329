"""What is drawn when: every image of every step of every epoch, with its augmentation seed, decided by one seed.

The plan is a pure function of the catalog's rows and the configuration. It does not know how many workers there are:
each takes its part of every global batch, so that one worker and many see the same batches.
"""

from collections.abc import Sequence
from typing import TypedDict

import numpy as np

from melanoma import taxonomy
from melanoma.training.config import Balance, Copies

_STATISTICS_BATCHES = 32


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


def copies(labels: Sequence[str], wanted: Copies | None, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Which images are copied, int64 [m] positions in `labels`, and the augmentation seed of each copy, uint32 [m].

    Within a class every image is copied floor or ceil of its share.
    """
    sources = []
    for label, count in class_counts(labels).items():
        generator = np.random.default_rng([seed, 3, *label.encode()])
        of_class = generator.permutation(np.flatnonzero(np.asarray(labels, dtype=str) == label))
        sources.append(np.resize(of_class, _copies_of(count, wanted)))
    source = np.concatenate(sources).astype(np.int64) if sources else np.zeros(0, np.int64)
    return source, np.random.default_rng([seed, 4]).integers(0, 2**32, size=len(source), dtype=np.uint32)


def strata(labels: Sequence[str], sources: Sequence[str], balance: Balance) -> tuple[str, ...]:
    """What counts as a class for sampling and loss weights: a label, or a label of a source, see `Balance`."""
    if not balance.by_source:
        return tuple(labels)
    return tuple(f"{label} of {source}" for label, source in zip(labels, sources, strict=True))


def _copies_of(count: int, wanted: Copies | None) -> int:
    if wanted is None:
        return 0
    return wanted.add if wanted.add is not None else max(0, (wanted.fill_to or 0) - count)


class ClassShare(TypedDict):
    """What balancing does to one class of the training split; the shares of all classes sum to 1."""

    label: str
    images: int
    copies: int
    share: float  # of the images as they are
    drawn: float  # of the images, with copies, that an epoch draws
    effective: float  # of the loss, after loss weights


def class_distribution(
    labels: Sequence[str], balance: Balance, sources: Sequence[str] = (), seed: int = 0
) -> list[ClassShare]:
    """The classes of a training split before and after balancing, the most frequent first.

    Args:
        labels: One an image.
        balance: How it is balanced.
        sources: One an image; needed where the balance goes by source.
        seed: That of the training.

    Returns:
        A row a class.
    """
    images = class_counts(labels)
    copied = {label: _copies_of(count, balance.copies) for label, count in images.items()}
    source, _ = copies(labels, balance.copies, seed)
    all_rows = [*range(len(labels)), *source.tolist()]
    all_labels = [labels[row] for row in all_rows]
    by_image = strata(labels, sources, balance)
    all_strata = [by_image[row] for row in all_rows]
    drawn = draw_probabilities(all_strata, balance.sampling)
    effective = drawn * loss_weights(all_strata, balance)
    label_of = np.asarray(all_labels, dtype=str)
    return [
        ClassShare(
            label=label,
            images=images[label],
            copies=copied[label],
            share=images[label] / len(labels),
            drawn=float(drawn[label_of == label].sum()),
            effective=float(effective[label_of == label].sum()),
        )
        for label in sorted(images, key=lambda label: (-images[label], label))
    ]


def draw_probabilities(strata: Sequence[str], power: float) -> np.ndarray:
    """float64 [n], sum 1: how likely each image is to be drawn, see `Balance`."""
    counts = class_counts(strata)
    weights = np.array([counts[stratum] ** -power for stratum in strata], dtype=np.float64)
    return np.asarray(weights / weights.sum())


def loss_weights(strata: Sequence[str], balance: Balance) -> np.ndarray:
    """float32 [n]: how much each image weighs in the loss, such that the expected weight of a drawn image is 1."""
    counts = class_counts(strata)
    weights = np.array([counts[stratum] ** -balance.loss_weights for stratum in strata], dtype=np.float64)
    return (weights / np.dot(weights, draw_probabilities(strata, balance.sampling))).astype(np.float32)


def steps_per_epoch(images: int, batch_size: int) -> int:
    """An epoch draws about as many images as there are, in whole batches."""
    return max(1, round(images / batch_size))


def epoch_indices(strata: Sequence[str], balance: Balance, batch_size: int, seed: int, epoch: int) -> np.ndarray:
    """Which images are drawn in an epoch.

    Sampling is systematic rather than independent (one uniform offset, equal strides over the cumulated probabilities):
    each image is drawn floor or ceil of its expected number of times. The images of a stratum lie side by side there,
    so it has its share in every epoch, to within one image, and not just on average. The order is shuffled.

    Args:
        strata: What each image counts as, see `strata`.
        balance: How likely each is drawn.
        batch_size: Over all workers.
        seed: That of the training.
        epoch: Its number, from 0.

    Returns:
        int64 [steps, batch_size], positions in `strata`.
    """
    generator = np.random.default_rng([seed, 1, epoch])
    count = steps_per_epoch(len(strata), batch_size) * batch_size
    order = generator.permutation(len(strata))
    order = order[np.argsort(np.asarray(strata, dtype=str)[order], kind="stable")]
    edges = np.cumsum(draw_probabilities(strata, balance.sampling)[order])
    points = (generator.random() + np.arange(count)) / count
    drawn = order[np.minimum(np.searchsorted(edges, points, side="right"), len(strata) - 1)]
    return np.asarray(generator.permutation(drawn).reshape(-1, batch_size))


def augmentation_seeds(shape: tuple[int, int], seed: int, epoch: int) -> np.ndarray:
    """uint32 of `shape` [steps, batch_size]: one seed for each drawn image."""
    return np.random.default_rng([seed, 2, epoch]).integers(0, 2**32, size=shape, dtype=np.uint32)


def mixup_shares(shape: tuple[int, int], mixup: float, seed: int, epoch: int) -> np.ndarray:
    """By how much each drawn image counts in its pair.

    The larger share is that of the image itself: a pair is mixed both ways, so nothing is lost by it.

    Args:
        shape: [steps, batch_size].
        mixup: The parameter of the beta distribution; 0 mixes nothing.
        seed: That of the training.
        epoch: Its number, from 0.

    Returns:
        float32 of `shape`, 0.5 to 1.
    """
    if not mixup:
        return np.ones(shape, dtype=np.float32)
    shares = np.random.default_rng([seed, 6, epoch]).beta(mixup, mixup, size=shape)
    return np.maximum(shares, 1 - shares).astype(np.float32)


def statistics_rows(rows: np.ndarray, batch_size: int, seed: int) -> np.ndarray:
    """Of which of the training images `rows` [n] the averaged weights get their statistics: int64 [batches,
    batch_size], at most 32 batches."""
    batches = min(steps_per_epoch(len(rows), batch_size), _STATISTICS_BATCHES)
    return np.resize(np.random.default_rng([seed, 7]).permutation(rows), (batches, batch_size))


def worker_part(batches: np.ndarray, rank: int, workers: int) -> np.ndarray:
    """The columns of [steps, batch_size] that one of `workers` takes: equal, and together the whole batch."""
    size = batches.shape[1] // workers
    return batches[:, rank * size : (rank + 1) * size]
