import dataclasses
import io
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image

from melanoma import bundle as bundles
from melanoma import taxonomy
from melanoma.bundle import Bundle
from melanoma.explain import occlusion_map, overlay
from melanoma.imaging.decode import decode
from melanoma.predictor import Predictor


@pytest.fixture(scope="module")
def corner_seer(bundle: Bundle) -> Predictor:
    """A network for which melanoma is what is bright in the upper left eighth of the picture."""
    import keras

    inputs = keras.Input((32, 32, 3), dtype="uint8")
    x = keras.layers.Rescaling(1 / 255)(inputs)
    x = keras.layers.AveragePooling2D(4)(x)
    outputs = keras.layers.Dense(len(taxonomy.CODES))(keras.layers.Flatten()(x))
    model = keras.Model(inputs, outputs)
    kernel = np.zeros((8 * 8 * 3, len(taxonomy.CODES)), dtype=np.float32)
    kernel[:3, taxonomy.CODES.index("MEL")] = 2.0
    model.layers[-1].set_weights([kernel, np.zeros(len(taxonomy.CODES), dtype=np.float32)])
    return Predictor(dataclasses.replace(bundle, model=bundles.model_bytes(model)))


def test_the_region_that_raised_the_probability_is_found(corner_seer: Predictor) -> None:
    pixels = np.full((32, 32, 3), 60, dtype=np.uint8)
    pixels[:4, :4] = 255
    heat = occlusion_map(corner_seer, pixels)
    assert heat.shape == (12, 12)
    assert heat.dtype == np.float32
    assert heat[0, 0] == heat.max() > 0.1
    np.testing.assert_allclose(heat[2:, 2:], 0, atol=1e-6)


def test_what_speaks_against_melanoma_is_negative(corner_seer: Predictor) -> None:
    pixels = np.full((32, 32, 3), 200, dtype=np.uint8)
    pixels[:4, :4] = 0
    heat = occlusion_map(corner_seer, pixels)
    assert heat[0, 0] < -0.02
    assert heat.max() < 1e-6


def test_the_overlay_reddens_that_region_and_no_other() -> None:
    heat = np.zeros((12, 12), dtype=np.float32)
    heat[2, 9] = 0.4
    heat[9, 2] = -0.4
    image = Image.new("RGB", (240, 120), (120, 160, 90))
    marked = Image.open(io.BytesIO(overlay(image, heat)))
    assert marked.format == "PNG"
    assert marked.size == (240, 120)
    pixels = np.asarray(marked).astype(int)
    red, green, _ = pixels[25, 190]
    assert red > 160
    assert green < 100
    assert pixels[95, 50].tolist() == pixels[60, 120].tolist() == [120, 160, 90]


@pytest.mark.parametrize("value", [0.0, -1.0])
def test_without_heat_the_picture_stays_as_it_is(value: float) -> None:
    image = Image.new("RGB", (30, 20), (1, 2, 3))
    marked = Image.open(io.BytesIO(overlay(image, np.full((12, 12), value, dtype=np.float32))))
    assert marked.tobytes() == image.tobytes()


def test_a_lesion_can_be_explained(predictor: Predictor, lesion: Callable[..., bytes]) -> None:
    data = lesion("MEL", 3)
    heat = occlusion_map(predictor, decode(data, 32).pixels)
    assert np.isfinite(heat).all()
    assert np.ptp(heat) > 0
    assert Image.open(io.BytesIO(overlay(Image.open(io.BytesIO(data)), heat))).size == (96, 96)
