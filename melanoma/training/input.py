"""Images for training, with Ray Data: fetched and decoded once into memory, then drawn and augmented for every step."""

import functools
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import ray.data
from ray.data._internal.execution.execution_callback import ExecutionCallback

from melanoma.errors import MelanomaError
from melanoma.imaging import load
from melanoma.imaging.errors import ImageError
from melanoma.training import plan
from melanoma.training.augment import augment, operations
from melanoma.training.config import Augmentation, TrainConfig
from melanoma.training.data import Split

_FETCHED_TOGETHER = 64
_AUGMENTED_TOGETHER = 256


def cache_images(uris: list[str], size: int) -> np.ndarray:
    """uint8 RGB [n, size, size, 3]: each image fetched and decoded once, by as many tasks as the cluster has cores.

    Raises MelanomaError naming the first image that cannot be read: the catalog said that all of them could.
    """
    tables = [
        pa.table(
            {"row": np.arange(at, min(at + _FETCHED_TOGETHER, len(uris))), "uri": uris[at : at + _FETCHED_TOGETHER]}
        )
        for at in range(0, len(uris), _FETCHED_TOGETHER)
    ]
    dataset = ray.data.from_arrow(tables).map_batches(
        _fetch_and_decode, batch_size=None, batch_format="numpy", fn_kwargs={"size": size}
    )
    images = np.empty((len(uris), size, size, 3), dtype=np.uint8)
    for batch in dataset.iter_batches(batch_size=None, batch_format="numpy"):
        if (errors := [error for error in batch["error"] if error]) != []:
            raise MelanomaError(f"{errors[0]} Make the catalog anew, which sets such images aside.")
        images[batch["row"]] = batch["pixels"]
    return images


def _fetch_and_decode(batch: dict[str, np.ndarray], size: int) -> dict[str, Any]:
    pixels = np.zeros((len(batch["uri"]), size, size, 3), dtype=np.uint8)
    errors = [""] * len(pixels)
    for place, uri in enumerate(batch["uri"].tolist()):
        try:
            pixels[place] = load.pixels(uri, size)
        except ImageError as error:
            errors[place] = f"The training image {uri} cannot be read: {error}"
    return {"row": batch["row"], "pixels": pixels, "error": np.array(errors, dtype=object)}


def augmented_copies(
    images: np.ndarray, sources: np.ndarray, seeds: np.ndarray, augmentations: Sequence[Augmentation]
) -> np.ndarray:
    """Augmented copies of single images.

    Args:
        images: uint8 RGB [n, size, size, 3].
        sources: int64 [m], the row of `images` that each copy is of.
        seeds: uint32 [m], each decides its copy.
        augmentations: What is done to each.

    Returns:
        uint8 RGB [m, size, size, 3].
    """
    copies = np.empty((len(sources), *images.shape[1:]), dtype=np.uint8)
    if not len(sources):
        return copies
    dataset = _augmented(ray.put(images), np.arange(len(sources)), sources, seeds, augmentations)
    for batch in dataset.iter_batches(batch_size=None, batch_format="numpy"):
        copies[batch["position"]] = batch["pixels"]
    return copies


def _augmented(
    images: ray.ObjectRef,
    position: np.ndarray,
    row: np.ndarray,
    seed: np.ndarray,
    augmentations: Sequence[Augmentation],
) -> ray.data.Dataset:
    columns = {"position": position, "row": row, "seed": seed}
    tables = [
        pa.table({name: values[at : at + _AUGMENTED_TOGETHER] for name, values in columns.items()})
        for at in range(0, len(position), _AUGMENTED_TOGETHER)
    ]
    return ray.data.from_arrow(tables).map_batches(
        _augment_batch,
        batch_size=None,
        batch_format="numpy",
        fn_kwargs={"images": images, "augmentations": tuple(augmentations)},
    )


class _Unhurried(ExecutionCallback):
    """Makes Ray Data's scheduler wait a moment in each round.

    It polls without a pause where tasks have results that nobody wants yet, as always when it is ahead of a training,
    and keeps 40% of a core busy in every training worker (measured with py-spy, Ray 2.60).
    """

    def on_execution_step(self, executor: Any) -> None:
        time.sleep(0.02)


def training_batches(
    images: ray.ObjectRef, train: Split, config: TrainConfig, epochs: Iterable[int], rank: int, workers: int
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]]:
    """This worker's part of every global batch of the epochs, in order.

    What a batch holds depends on the seed alone, and not on how many workers or tasks there are. Where there is
    something for Ray Data to augment, it does so ahead of the training, in the plan's order.

    Args:
        images: A reference to uint8 RGB [n, size, size, 3].
        train: The rows of `images` that are trained on.
        config: Batch size, balance, augmentation, mixup and seed.
        epochs: The numbers of the epochs, from 0.
        rank: This worker's number, from 0.
        workers: How many there are.

    Yields:
        pixels, uint8 RGB [b, size, size, 3]; the positions in `train` that they are, int64 [b]; the shares of mixup,
        float32 [b]; and the seeds of augmentation, uint32 [b], which Ray Data has used up.
    """
    parts = []
    for epoch in epochs:
        drawn = plan.epoch_indices(train.strata or train.labels, config.balance, config.batch_size, config.seed, epoch)
        seeds = plan.augmentation_seeds(drawn.shape, config.seed, epoch)
        shares = plan.mixup_shares(drawn.shape, config.mixup, config.seed, epoch)
        parts.append([plan.worker_part(part, rank, workers) for part in (drawn, seeds, shares)])
    if not parts:
        return
    position, seed, share = (np.concatenate(kind) for kind in zip(*parts, strict=True))  # [steps, b]
    if config.augmentation and config.augment_in == "ray":
        pixels = _augmented_batches(images, train.rows, position, seed, config.augmentation)
    else:
        cache = ray.get(images)  # no copy: workers of one node share it
        pixels = (cache[train.rows[step]] for step in position)
    yield from zip(pixels, position, share, seed, strict=True)


def _augmented_batches(
    images: ray.ObjectRef,
    rows: np.ndarray,
    position: np.ndarray,
    seed: np.ndarray,
    augmentations: Sequence[Augmentation],
) -> Iterator[np.ndarray]:
    """uint8 RGB [b, size, size, 3] for each row of `seed` and `position` [steps, b], which are places in `rows`."""
    context = ray.data.DataContext.get_current()
    context.execution_options.preserve_order = True
    context.enable_progress_bars = False
    context.custom_execution_callback_classes = [_Unhurried]
    dataset = _augmented(images, position.ravel(), rows[position.ravel()], seed.ravel(), augmentations)
    batches = dataset.iter_batches(
        batch_size=position.shape[1], batch_format="numpy", prefetch_batches=4, drop_last=True
    )
    return (batch["pixels"] for batch in batches)


@functools.cache
def _let_training_go_first() -> None:
    """Lower this process's priority, once: one training worker that has to share its core holds up all the others."""
    os.nice(3)


def _augment_batch(
    batch: dict[str, np.ndarray], images: ray.ObjectRef, augmentations: tuple[Any, ...]
) -> dict[str, np.ndarray]:
    _let_training_go_first()
    cache = ray.get(images)
    chain = operations(augmentations)
    pixels = np.stack(
        [augment(cache[row], chain, int(seed)) for row, seed in zip(batch["row"], batch["seed"], strict=True)]
    )
    return {"position": batch["position"], "pixels": pixels}
