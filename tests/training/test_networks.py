from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from melanoma.errors import InputError
from melanoma.model import bundle as bundles
from melanoma.training import loop, networks
from melanoma.training.config import BUILT_IN_NETWORKS, Network, TrainConfig

NAMES = BUILT_IN_NETWORKS
APPLICATIONS = [  # scaled inside, in layers, and by an operation
    "MobileNetV3Small",
    pytest.param("EfficientNetB0", marks=pytest.mark.slow),
    pytest.param("ResNet50V2", marks=pytest.mark.slow),
]


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
    for workers, ghost_batch in ((1, None), (2, None), (2, 2)):
        trained = networks.build(network(name, ghost_batch=ghost_batch), 32, seed=0, workers=workers)
        assert [variable.shape for variable in plain.variables] == [variable.shape for variable in trained.variables]
        np.testing.assert_allclose(np.asarray(plain(pixels)), np.asarray(trained(pixels)), atol=1e-5)


@pytest.mark.parametrize("name", ["residual", "MobileNetV3Small"])
def test_ghost_batches_do_not_see_each_other(name: str, pixels: np.ndarray) -> None:
    """Normalized in two groups, a batch is what its halves are; and the moving statistics are the means of theirs."""
    halves = [np.concatenate([pixels, 255 - pixels])[at : at + 4] for at in (0, 4)]
    outputs, statistics = [], []
    for batch in (np.concatenate(halves), *halves):
        model = networks.build(network(name, ghost_batch=4, dropout=0.0), 32, seed=0, workers=1)
        outputs.append(np.asarray(model(batch, training=True)))
        moving = [variable for variable in model.non_trainable_variables if "moving" in variable.name]
        statistics.append([np.asarray(variable) for variable in moving])
    np.testing.assert_allclose(outputs[0], np.concatenate(outputs[1:]), atol=1e-4)
    assert len(statistics[0]) > 10
    for together, first, second in zip(*statistics, strict=True):
        np.testing.assert_allclose(together, (first + second) / 2, rtol=1e-3, atol=1e-5)
    whole = networks.build(network(name, dropout=0.0), 32, seed=0, workers=1)
    assert not np.allclose(np.asarray(whole(np.concatenate(halves), training=True)), outputs[0], atol=1e-2)


def test_the_fused_batch_statistics_are_those_of_keras(pixels: np.ndarray) -> None:
    plain = networks.build(network("residual", dropout=0.0), 32, seed=0)
    fused = networks.build(network("residual", dropout=0.0, ghost_batch=len(pixels)), 32, seed=0, workers=1)
    np.testing.assert_allclose(
        np.asarray(fused(pixels, training=True)), np.asarray(plain(pixels, training=True)), atol=1e-4
    )
    for a, b in zip(fused.non_trainable_variables, plain.non_trainable_variables, strict=True):
        np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=1e-4, atol=1e-5)


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


@pytest.mark.parametrize(
    "values",
    [
        {"stem": 4},
        {"blocks": (1, 2, 1)},
        {"normalization": "group"},
        {"colour_constancy": 6.0},
    ],
    ids=str,
)
def test_every_residual_network_is_saved_and_loaded_as_it_is(values: dict[str, object], pixels: np.ndarray) -> None:
    model = networks.build(network("residual", **values), 32, seed=0)
    loaded = bundles.load_model(bundles.model_bytes(model))
    np.testing.assert_array_equal(np.asarray(loaded(pixels, training=False)), np.asarray(model(pixels, training=False)))
    plain = networks.build(network("residual"), 32, seed=0)
    assert not np.allclose(np.asarray(model(pixels, training=False)), np.asarray(plain(pixels, training=False)))


def test_a_network_without_batch_statistics_gives_an_image_the_same_in_any_batch(pixels: np.ndarray) -> None:
    model = networks.build(network("residual", normalization="group", dropout=0.0), 32, seed=0)
    together, alone = np.asarray(model(pixels, training=True)), np.asarray(model(pixels[:1], training=True))
    np.testing.assert_allclose(together[:1], alone, atol=1e-4)


def test_colour_constancy_takes_the_light_out(pixels: np.ndarray) -> None:
    """The same picture under reddish light: what is lost to rounding is little beside the tint."""
    dim = (pixels * 0.6).astype(np.uint8)
    tinted = (dim * np.array([1.3, 0.95, 0.75])).astype(np.uint8)
    differences = []
    for power in (None, 6.0):
        model = networks.build(network("residual", colour_constancy=power), 32, seed=0)
        differences.append(np.abs(np.asarray(model(dim)) - np.asarray(model(tinted))).max())
    assert differences[1] < differences[0] / 5


def test_half_precision_computes_in_half_and_keeps_weights_and_logits(pixels: np.ndarray) -> None:
    import keras

    half = networks.build(network("residual"), 32, seed=0, precision="mixed_bfloat16")
    assert keras.config.dtype_policy().name == "float32"
    assert {str(variable.dtype) for variable in half.variables if "seed" not in variable.path} == {"float32"}
    assert {layer.compute_dtype for layer in half.layers if "conv" in layer.name} == {"bfloat16"}
    logits = np.asarray(half(pixels))
    assert logits.dtype == np.float32
    whole = networks.build(network("residual"), 32, seed=0)
    assert [variable.shape for variable in whole.variables] == [variable.shape for variable in half.variables]
    difference = np.abs(logits - np.asarray(whole(pixels))).max()
    assert 0 < difference < 0.2


def test_an_ensemble_is_the_mean_of_its_members(pixels: np.ndarray) -> None:
    members = [networks.build(network("residual"), 32, seed=seed) for seed in range(3)]
    together = networks.ensemble(members, 32)
    expected = np.mean([np.asarray(member(pixels, training=False)) for member in members], axis=0)
    np.testing.assert_allclose(np.asarray(together(pixels, training=False)), expected, atol=1e-5)
    loaded = bundles.load_model(bundles.model_bytes(together))
    np.testing.assert_allclose(np.asarray(loaded(pixels, training=False)), expected, atol=1e-5)


@pytest.fixture(scope="module", params=APPLICATIONS)
def application(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_a_network_of_keras_applications_is_saved_and_loaded_as_it_is(application: str, pixels: np.ndarray) -> None:
    model = networks.build(Network(name=application), 32, seed=0)
    logits = np.asarray(model(pixels, training=False))
    assert logits.shape == (5, 9)
    assert np.isfinite(logits).all()
    loaded = bundles.load_model(bundles.model_bytes(model))
    np.testing.assert_allclose(np.asarray(loaded(pixels, training=False)), logits, atol=1e-5)
    rebuilt = networks.build(Network(name=application), 32, seed=0)
    np.testing.assert_array_equal(np.asarray(rebuilt(pixels, training=False)), logits)


def test_what_a_network_wants_its_pixels_to_be_is_inside(pixels: np.ndarray) -> None:
    import keras

    for name, prepare in {
        "MobileNetV2": keras.applications.mobilenet_v2.preprocess_input,  # -1 to 1
        "ResNet50": keras.applications.resnet.preprocess_input,  # BGR, less the mean of ImageNet
    }.items():
        model = networks.build(Network(name=name), 32, seed=0)
        features = np.asarray(model.get_layer(networks.BACKBONE)(prepare(pixels.astype(np.float32))))
        expected = np.asarray(model.get_layer("logits")(features.mean(axis=(1, 2))))
        raw = np.asarray(model.get_layer(networks.BACKBONE)(pixels.astype(np.float32)))
        unprepared = np.asarray(model.get_layer("logits")(raw.mean(axis=(1, 2))))
        # Untrained, they may be tiny.
        scale = np.abs(expected).max()
        assert np.abs(np.asarray(model(pixels)) - expected).max() < 1e-3 * scale
        assert np.abs(unprepared - expected).max() > 0.1 * scale


@pytest.mark.slow  # the quick tests refuse the weights of another network
def test_weights_of_a_file_are_loaded(tmp_path: Path, pixels: np.ndarray) -> None:
    """The stand-in for what Keras downloads with weights: imagenet, which cannot be had in a test."""
    first = networks.build(Network(name="MobileNetV3Small"), 32, seed=1).get_layer(networks.BACKBONE)
    for name in ("file.weights.h5", "file.keras"):
        path = tmp_path / name
        first.save_weights(path) if name.endswith(".h5") else first.save(path)
        for workers in (0, 1, 2):
            wanted = Network(name="MobileNetV3Small", weights=str(path))
            weights = networks.pretrained_weights(wanted, 32)
            second = networks.build(wanted, 32, 2, workers, backbone=weights)
            for a, b in zip(first.weights, second.get_layer(networks.BACKBONE).weights, strict=True):
                np.testing.assert_array_equal(np.asarray(a), np.asarray(b))
    bare = networks.build(Network(name="MobileNetV3Small", weights=str(tmp_path / "gone.h5")), 32, 2)
    assert bare(pixels).shape == (5, 9)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"name": "MobileNetV4"}, "no network 'MobileNetV4': did you mean 'MobileNet"),
        ({"name": "transformer-of-a-kind"}, "there are residual, student, .*EfficientNetV2B0"),
        ({"name": "MobileNetV3Small", "weights": "nowhere/file.weights.h5"}, "weights nowhere/file.weights.h5 cannot"),
        ({"name": "InceptionV3"}, "InceptionV3 cannot be built for images of 32 pixels: .*75"),
    ],
    ids=str,
)
def test_a_network_that_cannot_be_had_is_a_sentence(values: dict[str, object], words: str) -> None:
    wanted = Network.model_validate(values)
    with pytest.raises(InputError, match=words):
        networks.build(wanted, 32, seed=0, backbone=networks.pretrained_weights(wanted, 32))


def test_weights_of_another_network_are_a_sentence(tmp_path: Path) -> None:
    path = tmp_path / "file.weights.h5"
    networks.build(Network(name="MobileNetV2"), 32, seed=1).get_layer(networks.BACKBONE).save_weights(path)
    with pytest.raises(InputError, match=r"do not fit the network MobileNetV3Small without its top"):
        networks.pretrained_weights(Network(name="MobileNetV3Small", weights=str(path)), 32)
    path.write_bytes(b"no weights")
    with pytest.raises(InputError, match=r"do not fit the network MobileNetV3Small without its top"):
        networks.pretrained_weights(Network(name="MobileNetV3Small", weights=str(path)), 32)


def test_workers_take_the_weights_that_the_driver_has_loaded(tmp_path: Path) -> None:
    """A worker needs neither the file nor the internet: it may stand on a machine that has none of both."""
    path = tmp_path / "file.weights.h5"
    wanted = Network(name="MobileNetV3Small", weights=str(path))
    networks.build(wanted, 32, seed=1).get_layer(networks.BACKBONE).save_weights(path)
    weights = networks.pretrained_weights(wanted, 32)
    path.unlink()
    assert networks.pretrained_weights(wanted, 32) is weights
    training = TrainConfig(catalog="c", out="o", image_size=32, network=wanted)
    learner = loop.make_learner(training, 1, 1, tf.distribute.get_strategy(), weights)
    assert weights is not None
    for a, b in zip(weights, learner.model.get_layer(networks.BACKBONE).get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_weights_that_cannot_be_downloaded_are_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("keras.src.backend.config._KERAS_DIR", str(tmp_path))
    for name in ("http_proxy", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    with pytest.raises(InputError, match=r"weights 'imagenet' of MobileNetV3Small cannot be had: .*to a file or URI"):
        networks.pretrained_weights(Network(name="MobileNetV3Small", weights="imagenet"), 32)


def test_weights_that_are_no_numbers_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "file.weights.h5"
    backbone = networks.build(Network(name="MobileNetV3Small"), 32, seed=1).get_layer(networks.BACKBONE)
    backbone.weights[3].assign(np.full(backbone.weights[3].shape, np.nan))
    backbone.save_weights(path)
    with pytest.raises(InputError, match="are not all finite numbers"):
        networks.pretrained_weights(Network(name="MobileNetV3Small", weights=str(path)), 32)
