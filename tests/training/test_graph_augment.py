"""Augmentation in the graph gives the pictures of the operations on single images, and each by its seed alone."""

import functools
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from melanoma.demo.lesions import draw_lesion
from melanoma.errors import InputError
from melanoma.training.augment import augment, operations
from melanoma.training.config import Augmentation
from melanoma.training.graph_augment import GRAPH_OPERATIONS, GraphAugmentation

SIZE = 64
PARAMETERS: dict[str, dict[str, Any]] = {
    "flip_left_right": {},
    "flip_top_bottom": {},
    "rotate_random_90": {},
    "frame": {"rotation": 180, "min_scale": 0.7, "max_scale": 1.5, "aspect": 1.3, "shift": 0.1},
    "colour": {"brightness": 0.2, "contrast": 0.2, "saturation": 0.3, "hue": 10, "light": 0.1, "gamma": 0.2},
    "resolution": {"min_scale": 0.4, "min_quality": 40},
    "dark_border": {"min_radius": 0.4},
}
SEEDS = np.arange(24, dtype=np.uint32)


def chain(*names: str, probability: float = 1.0) -> list[Augmentation]:
    return [Augmentation(operation=name, probability=probability, **PARAMETERS[name]) for name in names]  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def pictures() -> np.ndarray:
    return np.stack([draw_lesion("MEL", number, SIZE, SIZE) for number in range(len(SEEDS))])


def changed(pictures: np.ndarray, augmentations: list[Augmentation], seeds: np.ndarray = SEEDS) -> np.ndarray:
    graph, function = compiled(tuple(augmentations))
    return np.asarray(function(pictures, graph.draw(seeds)))


@functools.cache
def compiled(augmentations: tuple[Augmentation, ...]) -> tuple[GraphAugmentation, Any]:
    graph = GraphAugmentation(augmentations)
    shapes = tf.TensorSpec((None, SIZE, SIZE, 3), tf.uint8), tf.TensorSpec((None, graph.draw_count))
    return graph, tf.function(graph, input_signature=shapes)


@pytest.fixture
def draws_of(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A function that makes `random`, of which the operations on single images draw, give these numbers in turn."""

    def replace(numbers: np.ndarray) -> None:
        left: Iterator[float] = iter(numbers.tolist())
        monkeypatch.setattr(random, "random", lambda: next(left))
        monkeypatch.setattr(random, "uniform", lambda low, high: low + (high - low) * next(left))
        monkeypatch.setattr(random, "randint", lambda low, high: low + int((high - low + 1) * next(left)))

    return replace


def test_there_are_parameters_here_for_every_operation() -> None:
    assert set(PARAMETERS) == set(GRAPH_OPERATIONS)


# `most` is of 255, and `others` the share that may differ by more: Pillow rounds after every operation, before JPEG,
# too, truncates what it interpolates, and draws circles of whole pixels, so that the border of the field is elsewhere.
@pytest.mark.parametrize(
    ("names", "most", "others"),
    [
        (("flip_left_right",), 0, 0.0),
        (("flip_top_bottom",), 0, 0.0),
        (("rotate_random_90",), 0, 0.0),
        (("frame",), 1, 0.0),
        (("colour",), 1, 0.0),
        (("resolution",), 6, 0.02),
        (("dark_border",), 3, 0.12),
        (("flip_left_right", "rotate_random_90", "frame", "colour", "dark_border"), 3, 0.12),
    ],
)
def test_with_the_same_draws_it_is_the_picture_of_the_single_operations(
    pictures: np.ndarray, draws_of: Any, names: tuple[str, ...], most: int, others: float
) -> None:
    augmentations = chain(*names)
    result = changed(pictures, augmentations).astype(int)
    assert result.shape == pictures.shape
    single = operations(augmentations)
    for picture, numbers, found in zip(pictures, GraphAugmentation(augmentations).draw(SEEDS), result, strict=True):
        draws_of(numbers)
        with pytest.MonkeyPatch.context() as unseeded:
            unseeded.setattr(random, "seed", lambda seed: None)
            wanted = augment(picture, single, 0).astype(int)
        difference = np.abs(found - wanted)
        assert (difference > most).mean() <= others


@pytest.mark.parametrize("seed", range(8))
def test_a_picture_depends_on_its_seed_alone(pictures: np.ndarray, seed: int) -> None:
    """What a worker makes of its part of a batch is what one alone makes of it."""
    augmentations = chain(*PARAMETERS, probability=0.6)
    seeds = np.random.default_rng(seed).integers(0, 2**32, len(pictures), dtype=np.uint32)
    together = changed(pictures, augmentations, seeds)
    for workers in (2, 8, 24):
        size = len(pictures) // workers
        parts = [slice(at, at + size) for at in range(0, len(pictures), size)]
        apart = [changed(pictures[part], augmentations, seeds[part]) for part in parts]
        np.testing.assert_array_equal(np.concatenate(apart), together)
    others = changed(pictures, augmentations, seeds[::-1])
    assert sum((a != b).any() for a, b in zip(others, together, strict=True)) > len(pictures) / 2


def test_probabilities_are_kept(pictures: np.ndarray) -> None:
    """Each operation by itself, 400 times with 0.25: 100 expected, and 26 are three standard deviations."""
    for name in PARAMETERS:
        graph = GraphAugmentation(chain(name, probability=0.25))
        draws = graph.draw(np.arange(400, dtype=np.uint32))
        many = np.repeat(pictures[:1], 400, axis=0)
        done = (np.asarray(graph(tf.constant(many), draws)) != many).any(axis=(1, 2, 3))
        # What is done may leave the picture as it is: a circle around it, the size that it has.
        assert done.sum() <= 126
        assert done.sum() >= (74 if name not in ("dark_border", "resolution") else 30)
        np.testing.assert_array_equal(done & (draws[:, 0] >= 0.25), np.zeros(400, dtype=bool))


def test_operations_are_done_in_their_order(pictures: np.ndarray) -> None:
    """A dark border before a move is moved, and after it is not."""
    smaller = Augmentation(operation="frame", probability=1.0, min_scale=0.5, max_scale=0.5)  # type: ignore[call-arg]
    border = Augmentation(operation="dark_border", probability=1.0, min_radius=0.3)  # type: ignore[call-arg]
    seeds = np.repeat(np.flatnonzero(GraphAugmentation([border]).draw(SEEDS)[:, 1] < 0.2)[:1], len(pictures))
    moved = changed(pictures, [border, smaller], seeds.astype(np.uint32))
    assert moved[:, SIZE // 2, :: SIZE // 2].max() > 100  # a mirrored picture at each side has its light middle there


def test_no_operations_change_nothing(pictures: np.ndarray) -> None:
    graph = GraphAugmentation([])
    assert graph.draw_count == 0
    assert graph.draw(SEEDS).shape == (len(SEEDS), 0)
    np.testing.assert_array_equal(graph(pictures, graph.draw(SEEDS)), pictures)


@pytest.mark.parametrize("name", ["marks", "zoom", "rotate", "random_erasing"])
def test_what_the_graph_does_not_know_is_a_sentence(name: str) -> None:
    with pytest.raises(
        InputError, match=rf"^The augmentation '{name}' is not one of the graph, .* augment_in to ray\.$"
    ):
        GraphAugmentation([Augmentation(operation=name)])  # type: ignore[arg-type]


def test_a_wrong_parameter_is_a_sentence() -> None:
    with pytest.raises(InputError, match=r"^The augmentation 'frame': .*unexpected keyword argument 'angle'"):
        GraphAugmentation([Augmentation(operation="frame", angle=3)])  # type: ignore[call-arg]
