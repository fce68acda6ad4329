import numpy as np
import pytest

from melanoma import bundle as bundles
from melanoma.config import Network
from melanoma.training import networks

NAMES = ["residual", "student"]


def network(name: str, **values: object) -> Network:
    return Network.model_validate({"name": name, "width": 4, **values})


@pytest.fixture(scope="module")
def pixels() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), dtype=np.uint8)


@pytest.mark.parametrize("name", NAMES)
def test_pixels_become_logits(name: str, pixels: np.ndarray) -> None:
    model = networks.build(network(name), 32, seed=0)
    assert model.name == name
    assert model.inputs[0].dtype == "uint8"
    assert model.inputs[0].shape == (None, 32, 32, 3)
    logits = np.asarray(model(pixels, training=False))
    assert logits.shape == (5, 9)
    assert logits.dtype == np.float32
    # Not probabilities, and not blind to the picture.
    assert not np.allclose(logits.sum(axis=1), 1)
    assert np.ptp(logits, axis=0).min() > 1e-6


@pytest.mark.parametrize("name", NAMES)
def test_scaling_is_inside(name: str, pixels: np.ndarray) -> None:
    """Black, white and all between reach the first convolution as about -1 or 0 to 1."""
    import keras

    model = networks.build(network(name), 32, seed=0)
    rescaling = next(layer for layer in model.layers if isinstance(layer, keras.layers.Rescaling))
    pixels = np.repeat([[[[0]], [[255]]]], 16, axis=1).repeat(32, axis=2).repeat(3, axis=3).astype(np.uint8)
    scaled = np.asarray(keras.Model(model.input, rescaling.output)(pixels))
    assert scaled.max() == pytest.approx(1)
    assert scaled.min() in (pytest.approx(-1), pytest.approx(0))


@pytest.mark.parametrize("name", NAMES)
def test_the_weights_come_from_the_seed(name: str) -> None:
    import keras

    keras.utils.set_random_seed(1)
    first = networks.build(network(name), 32, seed=3).get_weights()
    keras.utils.set_random_seed(2)
    same = networks.build(network(name), 32, seed=3).get_weights()
    other = networks.build(network(name), 32, seed=4).get_weights()
    for a, b in zip(first, same, strict=True):
        np.testing.assert_array_equal(a, b)
    kernels = [(a, b) for a, b in zip(first, other, strict=True) if a.ndim > 1]
    assert len(kernels) >= 5
    for a, b in kernels:
        assert not np.array_equal(a, b)
    # No two layers of one shape share their weights.
    assert len({a.tobytes() for a, _ in kernels}) == len(kernels)


@pytest.mark.parametrize("name", NAMES)
def test_the_largest_seed_of_a_configuration_works(name: str, pixels: np.ndarray) -> None:
    model = networks.build(network(name), 32, seed=2**32 - 1)
    assert np.isfinite(np.asarray(model(pixels, training=True))).all()


@pytest.mark.parametrize("name", NAMES)
def test_batch_statistics_over_all_workers_are_the_same_network(name: str, pixels: np.ndarray) -> None:
    """A worker's network and the one that a bundle is made from have their weights in the same order."""
    plain = networks.build(network(name), 32, seed=0)
    synchronized = networks.build(network(name), 32, seed=0, synchronized=True)
    assert [variable.shape for variable in plain.variables] == [variable.shape for variable in synchronized.variables]
    np.testing.assert_allclose(np.asarray(plain(pixels)), np.asarray(synchronized(pixels)), atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_a_network_is_saved_and_loaded_as_it_is(name: str, pixels: np.ndarray) -> None:
    model = networks.build(network(name, dropout=0.5), 32, seed=0)
    generator = np.random.default_rng(0)
    # Moving averages as after training, too.
    model.set_weights([np.abs(generator.normal(0.5, 0.2, w.shape)).astype(w.dtype) for w in model.get_weights()])
    loaded = bundles.load_model(bundles.model_bytes(model))
    for a, b in zip(model.get_weights(), loaded.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(np.asarray(loaded(pixels, training=False)), np.asarray(model(pixels, training=False)))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("size", [33, 50])
def test_any_size_can_be_built(name: str, size: int) -> None:
    model = networks.build(network(name), size, seed=0)
    assert model(np.zeros((1, size, size, 3), dtype=np.uint8)).shape == (1, 9)


def test_width_is_the_channels_of_the_first_stage() -> None:
    small, large = (networks.build(network("residual", width=width), 32, 0).count_params() for width in (4, 8))
    assert 3.5 < large / small < 4.1
