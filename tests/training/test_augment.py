import random
from typing import Any

import numpy as np
import pytest

from melanoma import config
from melanoma.demo.lesions import draw_lesion
from melanoma.errors import InputError
from melanoma.training.augment import augment, operations
from melanoma.training.config import Augmentation, TrainConfig

PARAMETERS: dict[str, dict[str, Any]] = {
    "flip_left_right": {},
    "flip_top_bottom": {},
    "rotate_random_90": {},
    "rotate": {"max_left_rotation": 10, "max_right_rotation": 10},
    "zoom": {"min_factor": 1.1, "max_factor": 1.5},
    "shear": {"max_shear_left": 10, "max_shear_right": 10},
    "skew": {"magnitude": 0.5},
    "random_brightness": {"min_factor": 0.5, "max_factor": 0.9},
    "random_contrast": {"min_factor": 0.5, "max_factor": 0.9},
    "random_color": {"min_factor": 0.2, "max_factor": 0.8},
    "random_distortion": {"grid_width": 4, "grid_height": 4, "magnitude": 4},
    "random_erasing": {"rectangle_area": 0.3},
    "histogram_equalisation": {},
    "frame": {"rotation": 180, "min_scale": 0.7, "max_scale": 1.5, "aspect": 1.3, "shift": 0.1},
    "colour": {"brightness": 0.2, "contrast": 0.2, "saturation": 0.3, "hue": 10, "light": 0.1, "gamma": 0.2},
    "resolution": {"min_scale": 0.4, "min_quality": 40},
    "dark_border": {"min_radius": 0.4},
    "marks": {},
}
# What decides by chance how it looks, and not only whether it happens.
VARIED = set(PARAMETERS) - {"flip_left_right", "flip_top_bottom", "histogram_equalisation"}


def chain(*names: str, probability: float = 1.0) -> list[Any]:
    return operations([Augmentation(operation=name, probability=probability, **PARAMETERS[name]) for name in names])  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def picture() -> np.ndarray:
    return draw_lesion("MEL", 0, 48, 48)


def test_there_are_parameters_here_for_every_operation() -> None:
    assert set(Augmentation.model_fields["operation"].annotation.__args__) == set(PARAMETERS)  # type: ignore[union-attr]


@pytest.mark.parametrize("name", PARAMETERS)
def test_every_operation_gives_a_picture_decided_by_its_seed(picture: np.ndarray, name: str) -> None:
    operation, before = chain(name), picture.copy()
    results = [augment(picture, operation, seed) for seed in range(12)]
    for seed in reversed(range(12)):
        result = augment(picture, chain(name), seed)
        assert result.dtype == np.uint8
        assert result.shape == picture.shape
        np.testing.assert_array_equal(result, results[seed])
    np.testing.assert_array_equal(picture, before)
    assert len({result.tobytes() for result in results}) > 1 or name not in VARIED
    assert any(not np.array_equal(result, picture) for result in results)


def test_a_chain_does_not_depend_on_what_was_drawn_before(picture: np.ndarray) -> None:
    operation = chain(*PARAMETERS, probability=0.5)
    results = [augment(picture, operation, seed) for seed in range(20)]
    assert len({result.tobytes() for result in results}) > 15
    random.seed(99)
    np.random.seed(99)
    for seed in (7, 3, 19, 3):
        np.testing.assert_array_equal(augment(picture, operation, seed), results[seed])


@pytest.mark.parametrize("seed", [0, 2**32 - 1])
def test_the_global_generators_are_left_as_they_were(picture: np.ndarray, seed: int) -> None:
    random.seed(5)
    np.random.seed(5)
    expected = random.random(), np.random.random()
    random.seed(5)
    np.random.seed(5)
    augment(picture, chain(*PARAMETERS), seed)
    assert (random.random(), np.random.random()) == expected


def test_the_global_generators_are_left_after_a_failure(picture: np.ndarray) -> None:
    class Failing:
        probability = 1.0

        def perform_operation(self, images: list[Any]) -> list[Any]:
            random.random()
            raise RuntimeError

    random.seed(5)
    expected = random.random()
    random.seed(5)
    with pytest.raises(RuntimeError):
        augment(picture, [Failing()], 1)
    assert random.random() == expected


def test_probabilities_are_kept(picture: np.ndarray) -> None:
    flip = chain("flip_left_right", probability=0.25)
    flipped = [not np.array_equal(augment(picture, flip, seed), picture) for seed in range(400)]
    assert 0.17 < np.mean(flipped) < 0.33
    np.testing.assert_array_equal(augment(picture, chain("flip_left_right"), 0), picture[:, ::-1])


def test_no_operations_change_nothing(picture: np.ndarray) -> None:
    assert augment(picture, operations([]), 0) is picture


@pytest.mark.parametrize(
    ("augmentation", "words"),
    [
        ({"operation": "flip_left_right", "angle": 3}, "unexpected keyword argument 'angle'"),
        ({"operation": "zoom", "min_factor": 1.0}, "missing 1 required positional argument: 'max_factor'"),
        ({"operation": "rotate", "max_left_rotation": 90, "max_right_rotation": 5}, "must be between 0 and 25"),
        ({"operation": "zoom", "min_factor": "a", "max_factor": "b"}, "not supported"),
        ({"operation": "random_brightness", "min_factor": 2, "max_factor": 1}, "must be between"),
        ({"operation": "flip_top_bottom", "probabilty": 0.1}, "unexpected keyword argument 'probabilty'"),
        ({"operation": "frame", "min_scale": 1.2}, "scales have to be over 0 and in order"),
        ({"operation": "frame", "angle": 3}, "unexpected keyword argument 'angle'"),
        ({"operation": "colour", "light": -1}, "strengths have to be 0 or more"),
        ({"operation": "resolution", "min_quality": 0}, "min_quality from 1 to 100"),
        ({"operation": "dark_border", "min_radius": 2}, "min_radius has to be from 0.3 to 0.75"),
    ],
)
def test_wrong_parameters_are_named(augmentation: dict[str, Any], words: str) -> None:
    loaded = config.load(TrainConfig, None, catalog="c", out="o", augmentation=[augmentation])
    with pytest.raises(InputError, match=rf"^The augmentation '{augmentation['operation']}': .*{words}") as caught:
        operations(loaded.augmentation)
    assert not str(caught.value).endswith("..")


def test_a_frame_without_a_change_is_the_picture(picture: np.ndarray) -> None:
    same = augment(picture, operations([Augmentation(operation="frame", probability=1.0)]), 0)
    assert np.abs(same.astype(int) - picture).max() <= 1


def test_a_frame_turned_by_half_is_the_picture_turned(picture: np.ndarray) -> None:
    """Of a full turn to either side the half one is drawn by hand: nothing is lost at the borders."""
    (frame,) = chain("frame")
    frame.rotation, frame.scales, frame.aspect, frame.shift = 0.0, (0.5, 0.5), 1.0, 0.0
    halved = augment(picture, [frame], 0)
    # At half the size, the picture is in the middle, with its mirror images around it.
    middle, side = halved[12:36, 12:36].astype(int), halved[12:36, :12].astype(int)
    assert np.abs(middle - picture.reshape(24, 2, 24, 2, 3).mean(axis=(1, 3))).mean() < 8
    assert np.abs(side - middle[:, 11::-1]).mean() < 8


def test_colours_without_strength_stay(picture: np.ndarray) -> None:
    same = augment(picture, operations([Augmentation(operation="colour", probability=1.0)]), 0)
    assert np.abs(same.astype(int) - picture).max() <= 1


def test_a_dark_border_darkens_the_corners_alone(picture: np.ndarray) -> None:
    for seed in range(10):
        bordered = augment(picture, chain("dark_border"), seed)
        np.testing.assert_array_equal(bordered[20:28, 20:28], picture[20:28, 20:28])
    assert any(augment(picture, chain("dark_border"), seed)[0, 0].max() < 40 for seed in range(10))
