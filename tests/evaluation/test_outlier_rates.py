import dataclasses

import numpy as np
import pytest
from scipy.stats import binomtest

from melanoma.demo.lesions import draw_lesion
from melanoma.evaluation import outlier_rates
from melanoma.evaluation.outlier_rates import OutlierRate
from melanoma.model import outliers
from melanoma.model.bundle import Bundle
from melanoma.model.predictor import Predictor
from melanoma.taxonomy import CODES


@pytest.fixture(scope="module")
def lesion_pixels(bundle: Bundle) -> np.ndarray:
    return np.stack([draw_lesion(CODES[i % 9], i, bundle.input_size, bundle.input_size) for i in range(400)])


@pytest.fixture(scope="module")
def predictor(bundle: Bundle, lesion_pixels: np.ndarray) -> Predictor:
    """Knows 300 of the lesions."""
    model = outliers.fit(lesion_pixels[:200], lesion_pixels[200:300])
    return Predictor(dataclasses.replace(bundle, manifest=bundle.manifest.model_copy(update={"outliers": model})))


@pytest.fixture(scope="module")
def rows(predictor: Predictor, lesion_pixels: np.ndarray) -> dict[str, OutlierRate]:
    size = predictor.bundle.input_size
    others = {
        "chessboards": np.repeat(np.indices((3, size, size)).sum(axis=0)[..., None] % 2 * 255, 3, axis=-1).astype("u1"),
        "nothing": np.zeros((0, size, size, 3), dtype=np.uint8),
    }
    known = predictor.predict(lesion_pixels[300:])["outlier_score"]
    groups = np.arange(100)
    found = outlier_rates.outlier_rates(
        predictor, (np.array(known), groups), lesion_pixels[300:350], groups[:50] // 2, 5, others
    )
    return {row.kind: row for row in found}


def test_dermoscopy_is_accepted_and_all_else_found(rows: dict[str, OutlierRate]) -> None:
    accepted = [kind for kind, row in rows.items() if not row.should_be_rejected]
    assert accepted == ["dermoscopy", "dermoscopy upside down"]
    rejected = {kind: row.rejected.value for kind, row in rows.items() if row.rejected.value is not None}
    assert all(rejected.pop(kind) <= 0.1 for kind in accepted)
    assert rejected.pop("dermoscopy as RBG") >= 0.5  # green and blue of skin are much the same
    assert min(rejected.values()) >= 0.95, rejected
    assert len(rejected) == 16


def test_intervals_are_exact_and_every_picture_counts(
    rows: dict[str, OutlierRate], predictor: Predictor, lesion_pixels: np.ndarray
) -> None:
    assert rows["dermoscopy"].n == 100
    assert rows["dermoscopy upside down"].n == 50
    assert rows["dermoscopy upside down"].rejected.method == "exact binomial over groups"
    scores = predictor.outlier_scores(lesion_pixels[300:])
    found = rows["dermoscopy"].rejected
    exact = binomtest(int((scores > 1).sum()), 100).proportion_ci(method="exact")
    assert found.value == pytest.approx((scores > 1).mean(), abs=1e-12)
    assert (found.low, found.high) == pytest.approx((exact.low, exact.high), abs=1e-9)
    assert found.method == "exact binomial"
    assert rows["chessboards"].n == 3
    assert rows["chessboards"].rejected.value == 1
    assert rows["nothing"].n == 0
    assert rows["nothing"].rejected.value is None


def test_the_seed_makes_the_pictures() -> None:
    for generate in outlier_rates.GENERATED.values():
        first, repeated, other = (generate(3, 40, np.random.default_rng(seed)) for seed in (1, 1, 2))
        assert first.shape == (3, 40, 40, 3)
        assert first.dtype == np.uint8
        np.testing.assert_array_equal(first, repeated)
        assert (first != other).any()
        assert (first[0] != first[1]).any()


def test_a_page_is_dark_on_light_paper_and_full_of_text() -> None:
    pages = outlier_rates.text_pages(20, 96, np.random.default_rng(0)).astype(float).mean(axis=-1)
    assert (np.quantile(pages, 0.95, axis=(1, 2)) > 200).all()
    assert (pages.min(axis=(1, 2)) < np.quantile(pages, 0.95, axis=(1, 2)) - 25).all()
    rows_differ = np.abs(np.diff(pages.mean(axis=2), axis=1)).max(axis=1)
    assert (rows_differ > 2).all()  # lines


def test_altered_copies() -> None:
    pixels = np.array([[[[200, 100, 50], [10, 20, 30]]]], dtype=np.uint8)
    np.testing.assert_array_equal(outlier_rates.turn_hue(pixels, 120), pixels[..., [2, 0, 1]])
    np.testing.assert_array_equal(outlier_rates.turn_hue(pixels, 0), pixels)
    np.testing.assert_array_equal(outlier_rates.greyscale(pixels)[0, 0], [[124] * 3, [18] * 3])
    many = np.arange(2 * 16 * 3, dtype=np.uint8).reshape(2, 4, 4, 3)
    shuffled = outlier_rates.shuffle_pixels(many, np.random.default_rng(0))
    assert (shuffled != many).any()
    for before, after in zip(many, shuffled, strict=True):
        assert sorted(map(tuple, before.reshape(-1, 3).tolist())) == sorted(map(tuple, after.reshape(-1, 3).tolist()))
    nothing = pixels[:0]
    for copies in (
        outlier_rates.turn_hue(nothing, 60),
        outlier_rates.greyscale(nothing),
        outlier_rates.shuffle_pixels(nothing, np.random.default_rng(0)),
    ):
        assert copies.shape == nothing.shape
