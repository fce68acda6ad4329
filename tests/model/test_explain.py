import dataclasses
import io
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PIL import Image

from melanoma import taxonomy
from melanoma.imaging.decode import decode
from melanoma.model import bundle as bundles
from melanoma.model.bundle import Bundle
from melanoma.model.explain import Explainer, covered, hottest, overlay
from melanoma.model.predictor import Predictor, orientations
from melanoma.training.config import Network

SIZE = 64
MELANOMA = taxonomy.CODES.index(taxonomy.MELANOMA)
SKIN = (224, 186, 165)


def with_model(bundle: Bundle, model: Any) -> Bundle:
    manifest = bundle.manifest.model_copy(update={"input_size": model.inputs[0].shape[1]})
    return dataclasses.replace(bundle, manifest=manifest, model=bundles.model_bytes(model))


def layers(inputs: Any) -> Any:
    """Maps of half the side: how dark a place is, and how bright."""
    import keras

    x = keras.layers.Rescaling(1 / 255)(inputs)
    x = keras.layers.Conv2D(2, 3, strides=2, padding="same", activation="relu")(x)
    convolution = x._keras_history.operation
    kernel = np.stack([np.full((3, 3, 3), -1 / 27), np.full((3, 3, 3), 1 / 27)], axis=-1)
    convolution.set_weights([kernel, np.array([0.5, -0.5])])
    return x


def on_top(x: Any) -> Any:
    """Logits: melanoma is what is dark, nevus what is bright."""
    import keras

    head = keras.layers.Dense(len(taxonomy.CODES))
    logits = head(x)
    kernel, bias = (np.zeros_like(part) for part in head.get_weights())
    each = len(kernel) // 2
    kernel[0::2, MELANOMA] = 800 / each
    kernel[1::2, taxonomy.CODES.index("NV")] = 8 / each
    bias[MELANOMA] = -8
    head.set_weights([kernel, bias])
    return logits


def pooled(x: Any) -> Any:
    import keras

    return on_top(keras.layers.GlobalAveragePooling2D()(x))


def flattened(x: Any) -> Any:
    import keras

    return on_top(keras.layers.Flatten()(keras.layers.Dropout(0.5)(x)))


def dark_seer(kind: str) -> Any:
    """A network for which melanoma is what is dark in the picture, built as one of the kinds that bundles hold."""
    import keras

    from melanoma.training import networks

    inputs = keras.Input((SIZE, SIZE, 3), dtype="uint8", name="image")
    if kind == "flattened":
        return keras.Model(inputs, flattened(layers(inputs)))
    if kind == "backbone":
        inner = keras.Input((SIZE, SIZE, 3))
        backbone = keras.Model(inner, layers(inner), name="backbone", trainable=False)
        return keras.Model(inputs, pooled(backbone(keras.layers.Rescaling(1.0, dtype="float32")(inputs))))
    if kind == "ensemble":
        # One of the two sees nothing but the upper half.
        members = []
        for upper_half in (False, True):
            image = keras.Input((SIZE, SIZE, 3), dtype="uint8", name="image")
            x = layers(image)
            if upper_half:
                x = keras.layers.ZeroPadding2D(((0, SIZE // 4), (0, 0)))(
                    keras.layers.Cropping2D(((0, SIZE // 4), (0, 0)))(x)
                )
            members.append(keras.Model(image, pooled(x)))
        return networks.ensemble(members, SIZE)
    return keras.Model(inputs, pooled(layers(inputs)))


KINDS = ("pooled", "flattened", "backbone", "ensemble")


@pytest.fixture(scope="module", params=KINDS)
def seer(request: pytest.FixtureRequest, bundle: Bundle) -> Bundle:
    return with_model(bundle, dark_seer(request.param))


def lesion_at(row: int, column: int, radius: int = 9) -> np.ndarray:
    """uint8 [64, 64, 3]: a dark disc on bright skin."""
    rows, columns = np.mgrid[:SIZE, :SIZE]
    disc = (rows - row) ** 2 + (columns - column) ** 2 < radius**2
    return np.where(disc[..., None], (60, 30, 25), SKIN).astype(np.uint8)


def bright(pixels: np.ndarray) -> np.ndarray:
    """bool [64, 64]"""
    return np.asarray(pixels.mean(axis=-1) > 128)


def centre(heat: np.ndarray) -> np.ndarray:
    """Row and column of the middle of the heat, in pixels of the picture."""
    scale = SIZE / len(heat)
    return np.array([np.average(place, weights=heat) + 0.5 for place in np.mgrid[: len(heat), : len(heat)]]) * scale


def p_melanoma(predictor: Predictor, pixels: np.ndarray) -> float:
    return float(predictor.probabilities(pixels[None])[0, MELANOMA])


@pytest.mark.parametrize("place", [(14, 46), (46, 14), (40, 40)])
def test_the_map_moves_with_the_lesion(seer: Bundle, place: tuple[int, int]) -> None:
    heat = Explainer(seer).heat(lesion_at(*place))
    assert heat.dtype == np.float32
    assert heat.shape == (40, 40)
    assert (heat.min(), heat.max()) == (0, 1)
    np.testing.assert_allclose(centre(heat), place, atol=3)


def test_the_marked_region_matters(seer: Bundle) -> None:
    """The occlusion check: covering it lowers the probability, more than covering as much anywhere else."""
    predictor, pixels = Predictor(seer), lesion_at(20, 40)
    heat = Explainer(seer).heat(pixels)
    before = p_melanoma(predictor, pixels)
    after = p_melanoma(predictor, covered(pixels, hottest(heat, SIZE)))
    coldest = p_melanoma(predictor, covered(pixels, hottest(-heat, SIZE)))
    rng = np.random.default_rng(3)
    chance = [p_melanoma(predictor, covered(pixels, hottest(rng.normal(size=(6, 6)), SIZE))) for _ in range(20)]
    assert after < 0.1
    assert after < before - 0.8
    assert coldest > before - 0.05
    assert after < np.mean(chance) - 0.5


def test_a_region_that_speaks_against_melanoma_is_not_marked(bundle: Bundle) -> None:
    pixels = 255 - lesion_at(20, 40)  # a bright disc on dark ground
    heat = Explainer(with_model(bundle, dark_seer("pooled"))).heat(pixels)
    found = hottest(heat, SIZE)
    assert not found[20, 40]
    assert found[bright(pixels)].mean() < 0.02


def test_each_member_of_an_ensemble_is_heard(bundle: Bundle) -> None:
    pixels = np.minimum(lesion_at(14, 20), lesion_at(50, 44))
    heat = Explainer(with_model(bundle, dark_seer("ensemble"))).heat(pixels)
    # Turned upside down, the half that one member does not see is another: over the orientations both are seen.
    found = hottest(heat, SIZE)
    assert found[14, 20]
    assert found[50, 44]


def test_the_answer_does_not_depend_on_what_was_explained_before(seer: Bundle) -> None:
    explainer = Explainer(seer)
    first = explainer.heat(lesion_at(20, 40))
    explainer.heat(lesion_at(50, 10))
    np.testing.assert_array_equal(explainer.heat(lesion_at(20, 40)), first)


def test_an_oriented_picture_has_the_oriented_map(bundle: Bundle, lesion: Callable[..., bytes]) -> None:
    import keras
    import tensorflow as tf

    from melanoma.training import networks

    model = networks.build(Network(width=4, blocks=(1, 1)), SIZE, 5)
    keras.utils.set_random_seed(0)
    explainer = Explainer(with_model(bundle, model))
    pixels = decode(lesion("MEL", 3), SIZE).pixels
    heat = explainer.heat(pixels)
    assert np.ptp(heat) > 0.5
    # The orientations are looked at in another order then, and of a network that has learned nothing many regions are
    # nearly as good: the maps are alike and not equal.
    for view in orientations(tf):
        turned = explainer.heat(view(tf.constant(pixels[None]))[0].numpy())
        alike = np.corrcoef(turned.ravel(), np.asarray(view(heat[None, ..., None]))[..., 0].ravel())[0, 1]
        assert alike > 0.25  # of regions that lie elsewhere it is 0


@pytest.mark.parametrize(
    ("network", "size", "cells"),
    [
        (Network(width=4), 96, 40),
        (Network(name="student", width=4), 96, 40),
        (Network(name="EfficientNetLite0"), 64, 40),
        (Network(width=4, blocks=(1, 1), normalization="group", colour_constancy=6), 32, 32),
        pytest.param(Network(name="MobileNetV3Small", colour_constancy=6), 96, 40, marks=pytest.mark.slow),
    ],
)
def test_the_networks_of_this_program_and_ensembles_of_them_are_explained(
    bundle: Bundle, lesion: Callable[..., bytes], network: Network, size: int, cells: int
) -> None:
    from melanoma.training import networks

    pixels = decode(lesion("MEL", 3), size).pixels
    alone = Explainer(with_model(bundle, networks.build(network, size, 1))).heat(pixels)
    assert alone.shape == (cells, cells)
    assert np.isfinite(alone).all()
    assert (alone.min() >= 0, alone.max()) == (True, 1)
    twice = networks.ensemble([networks.build(network, size, seed) for seed in (1, 1)], size)
    np.testing.assert_allclose(Explainer(with_model(bundle, twice)).heat(pixels), alone, atol=1e-3)


def test_where_covering_never_lowers_it_nothing_is_marked(bundle: Bundle) -> None:
    import keras

    inputs = keras.Input((SIZE, SIZE, 3), dtype="uint8")
    x = keras.layers.Flatten()(keras.layers.Rescaling(1 / 255)(inputs))
    head = keras.layers.Dense(len(taxonomy.CODES), kernel_initializer="zeros")
    heat = Explainer(with_model(bundle, keras.Model(inputs, head(x)))).heat(lesion_at(20, 40))
    assert not heat.any()
    image = Image.fromarray(lesion_at(20, 40))
    assert Image.open(io.BytesIO(overlay(image, heat, 0.9))).tobytes() == image.tobytes()


# --- what is shown ---------------------------------------------------------------------------------------------------


def test_the_cover_has_the_colour_of_the_skin_around() -> None:
    pixels = lesion_at(32, 32, radius=24)
    pixels[:3] = 10  # a dark frame on one side
    region = np.zeros((SIZE, SIZE), dtype=bool)
    region[20:40, 25:30] = True
    result = covered(pixels, region)
    assert (result[region] == SKIN).all()
    np.testing.assert_array_equal(result[~region], pixels[~region])


@pytest.mark.parametrize("share", [0.0, 0.15, 0.2, 1.0])
def test_the_hottest_region_is_of_the_asked_size(share: float) -> None:
    heat = np.random.default_rng(0).random((12, 12))
    region = hottest(heat, 60, share)
    assert region.sum() == round(share * 3600)
    if 0 < share < 1:
        large = np.kron(heat, np.ones((5, 5)))
        assert large[region].mean() > large[~region].mean() + 0.3


def test_the_overlay_reddens_that_region_and_no_other() -> None:
    heat = np.zeros((12, 12), dtype=np.float32)
    heat[2, 9] = 1
    image = Image.new("RGB", (240, 120), (120, 160, 90))
    marked = Image.open(io.BytesIO(overlay(image, heat, 0.4)))
    assert marked.format == "PNG"
    assert marked.size == (240, 120)
    pixels = np.asarray(marked).astype(int)
    red, green, _ = pixels[25, 190]
    assert red > 160
    assert green < 100
    assert pixels[95, 50].tolist() == pixels[60, 120].tolist() == [120, 160, 90]
    pale = np.asarray(Image.open(io.BytesIO(overlay(image, heat, 0.02)))).astype(int)
    assert 120 < pale[25, 190][0] < red - 20


def test_without_heat_the_picture_stays_as_it_is() -> None:
    image = Image.new("RGB", (30, 20), (1, 2, 3))
    marked = Image.open(io.BytesIO(overlay(image, np.zeros((12, 12), dtype=np.float32), 0.9)))
    assert marked.tobytes() == image.tobytes()
