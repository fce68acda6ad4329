"""A changed camera is told from a changed population."""

import numpy as np
import pytest

from melanoma.scoring import drift


def measured(seed: int, images: int = 500, sharper: float = 1.0, more_melanomas: float = 0.0) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(seed)
    p = generator.beta(1 + 4 * more_melanomas, 6, images)
    return {
        "sharpness": generator.lognormal(-7, 0.8, images) * sharper,
        "exposure": generator.normal(0.6, 0.08, images),
        "outlier_score": generator.gamma(4, 0.1, images),
        "p_melanoma": p,
        "p_malignant": np.minimum(1, p * 1.3),
    }


@pytest.mark.parametrize("seed", range(5))
def test_nights_alike_do_not_drift(seed: int) -> None:
    found = drift.compare(measured(seed), measured(100 + seed, 5000))
    assert (found.verdict, found.changed) == ("none", ())
    assert all(0 <= value < 0.15 for value in found.distances.values())


def test_another_camera() -> None:
    found = drift.compare(measured(1, sharper=3.0, more_melanomas=0.5), measured(2, 5000))
    assert found.verdict == "pictures"
    assert "sharpness" in found.changed
    assert "(sharpness): look for another camera" in found.sentence


def test_other_patients() -> None:
    found = drift.compare(measured(1, more_melanomas=0.5), measured(2, 5000))
    assert (found.verdict, found.changed) == ("patients", ("p_melanoma", "p_malignant"))


def test_a_small_change_of_many_images_is_none() -> None:
    found = drift.compare(measured(1, 50_000, sharper=1.1), measured(2, 50_000))
    assert found.verdict == "none"


def test_few_images_say_nothing() -> None:
    assert drift.compare(measured(1, 49), measured(2, 5000)).verdict == "few"
