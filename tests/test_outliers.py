import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from melanoma import outliers
from melanoma.imaging.decode import decode


@pytest.fixture(scope="module")
def known(lesion: Callable[..., bytes]) -> np.ndarray:
    return np.stack([decode(lesion("NV", seed), 32).pixels for seed in range(140)])


@pytest.fixture(scope="module")
def model(known: np.ndarray) -> dict[str, object]:
    return outliers.fit(known[:70], known[70:])


def test_one_is_what_99_percent_of_the_validation_images_stay_below(
    known: np.ndarray, model: dict[str, object]
) -> None:
    scores = outliers.scores(known[70:], model)
    assert scores.dtype == np.float32
    assert (scores > 1).sum() == 1  # of 70
    assert scores.min() >= 0


def test_the_model_travels_as_json(known: np.ndarray, model: dict[str, object]) -> None:
    again = json.loads(json.dumps(model, allow_nan=False))
    np.testing.assert_array_equal(outliers.scores(known, again), outliers.scores(known, model))


def test_what_is_no_lesion_lies_outside(model: dict[str, object]) -> None:
    generator = np.random.default_rng(0)
    strange = np.stack(
        [
            generator.integers(0, 256, (32, 32, 3), dtype=np.uint8),
            np.zeros((32, 32, 3), dtype=np.uint8),
            np.full((32, 32, 3), 255, dtype=np.uint8),
            np.full((32, 32, 3), (0, 200, 0), dtype=np.uint8),
            np.indices((32, 32)).sum(axis=0).astype(np.uint8)[..., None] % 2 * np.full(3, 255, dtype=np.uint8),
        ]
    )
    assert (outliers.scores(strange, model) > 1).all()


def test_a_score_does_not_depend_on_the_others(known: np.ndarray, model: dict[str, object]) -> None:
    together = outliers.scores(known, model)
    alone = np.concatenate([outliers.scores(image[None], model) for image in known[::10]])
    np.testing.assert_allclose(alone, together[::10], rtol=1e-6)
    assert outliers.scores(known[:0], model).shape == (0,)


def test_statistics_are_what_they_are_said_to_be() -> None:
    image = np.zeros((1, 32, 32, 3), dtype=np.uint8)
    image[0, 8:24, 8:24] = (255, 0, 51)  # a quarter of the picture, its middle
    found = outliers.statistics(image)[0]
    assert found.shape == (13,)
    np.testing.assert_allclose(found[:3], [0.25, 0, 0.05])
    np.testing.assert_allclose(found[3:6], np.array([1, 0, 0.2]) * np.sqrt(0.25 * 0.75), atol=1e-12)
    np.testing.assert_allclose(found[6:9], [0, 1, 0], atol=0.03)  # red goes with blue
    np.testing.assert_allclose(found[9:12], [0.75, 0, 0.15])


@pytest.mark.parametrize("size", [16, 33])
def test_any_size_will_do(lesion: Callable[..., bytes], size: int) -> None:
    pixels = np.stack([decode(lesion("MEL", seed), size).pixels for seed in range(20)])
    assert np.isfinite(outliers.scores(pixels, outliers.fit(pixels[:10], pixels[10:]))).all()


@pytest.mark.skipif("MELANOMA_DATA" not in os.environ, reason="MELANOMA_DATA names no real images")
def test_phone_photos_lie_farther_out_than_dermoscopy() -> None:
    data = Path(os.environ["MELANOMA_DATA"])
    dermoscopy = sorted((data / "ham10000" / "images").iterdir())[:400:2]
    pixels = np.stack([decode(path.read_bytes(), 96).pixels for path in dermoscopy])
    phone = np.stack([decode(path.read_bytes(), 96).pixels for path in sorted((data / "clinical").glob("*.png"))])
    model = outliers.fit(pixels[::2], pixels[1::2])
    assert np.median(outliers.scores(phone, model)) > np.quantile(outliers.scores(pixels, model), 0.9)
