"""The networks, in Keras 3. Each takes uint8 RGB [batch, size, size, 3] and gives float32 logits [batch, classes].

Scaling to 0..1, or whatever a network wants, is a part of the network and stands nowhere else, so that no caller can do
it twice.

How to add a network:

1. If keras.applications has it, there is nothing to add: ``network.name=EfficientNetV2B0``, see `_application`. What
   it lacks and is built in the same way, such as EfficientNet-Lite, has a file like melanoma.training.lite.
2. Otherwise write a function here like `_student`: ``(network, size, seed, workers)`` to a `keras.Model`. It begins
   with ``keras.Input((size, size, 3), dtype="uint8", name="image")`` and ends with `_logits`. It takes initializers
   from `_initializers`, so that a seed gives the same weights anywhere, and batch normalization from
   `_batch_normalization`, so that many workers learn what one learns. All layers are Keras's, and none is a Lambda: a
   bundle with any other is refused (melanoma.model.bundle).
   The model bears the network's name, scales with a `keras.layers.Rescaling` to 0..1 or -1..1, and can be built at 32
   pixels with ``width: 4``.
3. Name it in `_NETWORKS` below, and in `BUILT_IN_NETWORKS` of melanoma.training.config. Its parameters, if it needs
   more, are fields of `Network` there.
4. tests/training/test_networks.py holds every name of `BUILT_IN_NETWORKS` to these rules.

A configuration then trains it (``network: {name: ...}``), and everything after the training takes it as it is.
"""

import contextlib
import difflib
import functools
import inspect
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from melanoma import storage, taxonomy
from melanoma.errors import InputError
from melanoma.model import keras_settings
from melanoma.model.bundle import MEMBER
from melanoma.model.keras_settings import keras
from melanoma.training import lite
from melanoma.training.config import LITE_NETWORKS, Network

BACKBONE = "backbone"  # the layer that holds the pretrained part, where a network has one


class _GhostBatchNormalization(keras.layers.BatchNormalization):
    """Batch statistics of every `together` images by themselves (Hoffer et al. 2017, arXiv:1705.08741).

    A worker that holds whole groups of them needs nothing of the others, so that it is the same training with any
    number of workers. The kernel is TensorFlow's fused one, which stays in the precision of its input: Keras 3's own
    layer makes several operations in float32 of it, in which a small network spends a third of its time on a CPU.

    The moving statistics of each worker are those of its own images: their mean over workers, which
    `melanoma.training.loop` takes once an epoch, is what a single worker would have.
    """

    def __init__(self, together: int, **values: Any) -> None:
        super().__init__(**values)
        self.together = together

    def call(self, inputs: Any, training: bool | None = None, mask: Any = None) -> Any:
        gamma = self.gamma.value if self.scale else tf.ones(inputs.shape[-1])
        beta = self.beta.value if self.center else tf.zeros(inputs.shape[-1])
        if not (training and self.trainable):
            statistics = (self.moving_mean.value, self.moving_variance.value)
            return tf.compat.v1.nn.fused_batch_norm(
                inputs, gamma, beta, *statistics, epsilon=self.epsilon, is_training=False
            )[0]
        parts = tf.split(inputs, inputs.shape[0] // self.together)
        normalized, means, variances = zip(
            *(tf.compat.v1.nn.fused_batch_norm(part, gamma, beta, epsilon=self.epsilon) for part in parts), strict=True
        )
        count = tf.size(parts[0]) / inputs.shape[-1]
        biased = tf.cast(
            (count - 1) / count, tf.float32
        )  # the kernel gives the unbiased variance, and Keras keeps this
        for moving, now in ((self.moving_mean, tf.add_n(means)), (self.moving_variance, tf.add_n(variances) * biased)):
            moving.assign(self.momentum * moving + (1.0 - self.momentum) * now / len(parts))
        return tf.concat(normalized, axis=0)


def build(
    network: Network,
    size: int,
    seed: int,
    workers: int = 0,
    precision: str = "float32",
    backbone: Sequence[np.ndarray] | None = None,
) -> keras.Model:
    """The network of a configuration, with weights drawn from `seed`.

    Args:
        network: Which one, and its parameters.
        size: The side of its pictures in pixels.
        seed: Decides the weights that it begins with.
        workers: How many train it, each on an equal part of every batch; 0 gives the same network, with its weights in
            the same order, to predict with and to save.
        precision: A policy of Keras, such as "mixed_bfloat16": the variables and the logits stay float32.
        backbone: The weights of the pretrained part, see `pretrained_weights`; None draws them from the seed, too.

    Returns:
        A model of uint8 RGB [batch, size, size, 3] to float32 logits [batch, classes].

    Raises:
        InputError: Where there is no network of that name, or it takes no such pictures.
    """
    keras_settings.apply()
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(precision)
    try:
        if network.name in _NETWORKS:
            return _NETWORKS[network.name](network, size, seed, workers)
        return _application(network, size, seed, workers, backbone)
    finally:
        keras.config.set_dtype_policy(before)


def _batch_normalization(network: Network, workers: int, **values: Any) -> keras.layers.Layer:
    if workers and network.ghost_batch:
        return _GhostBatchNormalization(network.ghost_batch, **values)
    # One worker and many have to do the same arithmetic: training multiplies what they round differently.
    return keras.layers.BatchNormalization(**{**values, "synchronized": workers > 1})


def ensemble(members: Sequence[keras.Model], size: int) -> keras.Model:
    """One network of several: the mean of their logits, which is the geometric mean of their probabilities."""
    inputs = keras.Input((size, size, 3), dtype="uint8", name="image")
    logits = []
    for number, member in enumerate(members):
        member.name = f"{MEMBER}{number}"
        logits.append(member(inputs))
    return keras.Model(inputs, keras.layers.Average(name="logits")(logits), name="ensemble")


def _residual(network: Network, size: int, seed: int, workers: int) -> keras.Model:
    """A pre-activation residual network (He et al. 2016, arXiv:1603.05027) of one stage an entry of `blocks`.

    Each stage halves the picture and has twice the channels of the one before. `stem` is by how much the first layer
    reduces; at 4 its kernel is 7, as in a large ResNet.
    """
    initializer = _initializers(seed)

    def convolution(filters: int, kernel: int, stride: int = 1) -> keras.layers.Layer:
        return keras.layers.Conv2D(
            filters, kernel, strides=stride, padding="same", use_bias=False, kernel_initializer=initializer()
        )

    def activate(x: keras.KerasTensor) -> keras.KerasTensor:
        if network.normalization == "group":
            x = keras.layers.GroupNormalization(groups=min(8, x.shape[-1]))(x)
        else:
            x = _batch_normalization(network, workers, momentum=0.9)(x)
        return keras.layers.Activation("relu")(x)

    inputs = keras.Input((size, size, 3), dtype="uint8", name="image")
    x = keras.layers.Rescaling(1 / 255, dtype="float32")(inputs)
    if network.colour_constancy:
        x = _colour_constancy(x, network.colour_constancy)
    x = keras.layers.Rescaling(2.0, offset=-1.0)(x)
    x = convolution(network.width, 3 if network.stem == 2 else 7, stride=network.stem)(x)
    for stage, blocks in enumerate(network.blocks):
        filters = network.width * 2**stage
        for block in range(blocks):
            stride = 2 if stage > 0 and block == 0 else 1
            active = activate(x)
            shortcut = x
            if stride > 1 or x.shape[-1] != filters:
                shortcut = active if stride == 1 else keras.layers.AveragePooling2D(stride, padding="same")(active)
                shortcut = convolution(filters, 1)(shortcut)
            residual = activate(convolution(filters, 3, stride)(active))
            x = keras.layers.Add()([shortcut, convolution(filters, 3)(residual)])
    x = keras.layers.GlobalAveragePooling2D()(activate(x))
    x = keras.layers.Dropout(network.dropout, seed=seed)(x)
    return keras.Model(inputs, _logits(x, initializer), name="residual")


def _student(network: Network, size: int, seed: int, workers: int) -> keras.Model:
    """The students' network: three convolutions with max pooling, one dense layer of 128, as most notebooks have it."""
    initializer = _initializers(seed)
    inputs = keras.Input((size, size, 3), dtype="uint8", name="image")
    x = keras.layers.Rescaling(1 / 255)(inputs)
    for stage in range(3):
        x = keras.layers.Conv2D(
            network.width * 2**stage, 3, padding="same", activation="relu", kernel_initializer=initializer()
        )(x)
        x = keras.layers.MaxPooling2D()(x)
    x = keras.layers.Dropout(network.dropout, seed=seed)(x)
    x = keras.layers.Flatten()(x)
    x = keras.layers.Dense(128, activation="relu", kernel_initializer=initializer())(x)
    return keras.Model(inputs, _logits(x, initializer), name="student")


_NETWORKS: dict[str, Callable[[Network, int, int, int], keras.Model]] = {"residual": _residual, "student": _student}


def _application(
    network: Network, size: int, seed: int, workers: int, weights: Sequence[np.ndarray] | None
) -> keras.Model:
    """A network of keras.applications or `lite` without its top, with its own preprocessing inside the graph."""
    _, preprocess = _application_of(network.name)
    keras.utils.set_random_seed(seed)  # its initializers draw from the global generator
    backbone = _backbone(network.name, size)
    if weights is not None:
        backbone.set_weights(weights)
    if workers:
        backbone = _for_workers(backbone, network, workers)
    _let_learn(backbone, network, True)
    backbone.name = BACKBONE
    inputs = keras.Input((size, size, 3), dtype="uint8", name="image")
    x = keras.layers.Rescaling(1 / 255, dtype="float32")(inputs)
    if network.colour_constancy:
        x = _colour_constancy(x, network.colour_constancy)
    x = preprocess(keras.layers.Rescaling(255.0, dtype="float32")(x))
    x = keras.layers.GlobalAveragePooling2D()(backbone(x))
    x = keras.layers.Dropout(network.dropout, seed=seed)(x)
    return keras.Model(inputs, _logits(x, _initializers(seed)), name="application")


def let_backbone_learn(model: keras.Model, network: Network, learns: bool) -> None:
    """Let the pretrained part of a model learn, but for the blocks that the configuration freezes, or nothing of it."""
    _let_learn(model.get_layer(BACKBONE), network, learns)


def _let_learn(backbone: keras.Model, network: Network, learns: bool) -> None:
    backbone.trainable = learns
    if not network.frozen_blocks:
        return
    there = lite.block_count(network.name)
    if network.frozen_blocks > there:
        raise InputError(f"network.frozen_blocks is {network.frozen_blocks}: {network.name} has {there} blocks.")
    for layer in backbone.layers:
        layer.trainable = learns and lite.depth(layer.name, there) > network.frozen_blocks


def learning_rate_shares(model: keras.Model, network: Network) -> list[float] | None:
    """What share of the learning rate each trainable variable of a model has by its depth, or None where all have it
    whole."""
    if network.depth_decay == 1:
        return None
    blocks = lite.block_count(network.name)
    backbone = model.get_layer(BACKBONE)
    steps = {
        id(variable): blocks + 1 - lite.depth(layer.name, blocks)
        for layer in backbone.layers
        for variable in layer.trainable_variables
    }
    return [
        network.depth_decay ** (steps[id(variable)] + 1 if id(variable) in steps else 0)
        for variable in model.trainable_variables
    ]


def _backbone(name: str, size: int) -> keras.Model:
    make, _ = _application_of(name)
    try:
        return make(weights=None, include_top=False, input_shape=(size, size, 3))
    except Exception as error:  # what Keras says of the size
        raise InputError(
            f"The network {name} cannot be built for images of {size} pixels: {_first_line(error)}"
        ) from None


@functools.lru_cache(maxsize=1)
def pretrained_weights(network: Network, size: int) -> list[np.ndarray] | None:
    """The weights that a configuration names for the pretrained part, or None where it names none.

    They are loaded once, by the driver, which hands them on: its workers need neither the internet nor a cache.

    Args:
        network: Which one.
        size: The side of its pictures in pixels.

    Returns:
        The weights, in Keras's order.

    Raises:
        InputError: Where they cannot be had, are not those of this network, or are no numbers.
    """
    if network.weights is None:
        return None
    backbone = _backbone(network.name, size)
    if network.weights == "imagenet":
        backbone = _of_imagenet(network.name, size)
    else:
        _load_weights(backbone, network.weights)
    weights: list[np.ndarray] = backbone.get_weights()
    if not all(np.isfinite(each).all() for each in weights):
        raise InputError(f"The weights {network.weights} of {network.name} are not all finite numbers.")
    return weights


def initial_weights(network: Network) -> str | None:
    """Whose weights the training begins with, and their licence, for the model card; None: they are drawn."""
    if network.weights is None:
        return None
    if network.weights != "imagenet":
        return f"{network.weights}, whose licence is not known here"
    if network.name in LITE_NETWORKS:
        return f"{network.name} of ImageNet, of the package {lite.package(network.name)}, {lite.LICENCE}"
    return f"{network.name} of ImageNet, as keras.applications has them, whose licence is not known here"


def _of_imagenet(name: str, size: int) -> keras.Model:
    make, _ = _application_of(name)
    try:
        with contextlib.redirect_stdout(sys.stderr):  # where Keras shows the progress of a download
            return make(weights="imagenet", include_top=False, input_shape=(size, size, 3))
    except InputError:  # already a sentence
        raise
    except Exception as error:  # what the download ran into, or a file that is not what Keras's digest says
        raise InputError(
            f"The weights 'imagenet' of {name} cannot be had: {_first_line(error)} Set network.weights to a file or "
            "URI of them, or to null."
        ) from None


def _application_of(name: str) -> tuple[Callable[..., keras.Model], Callable[[Any], Any]]:
    """The function that makes a network, as keras.applications has them, and the one that prepares RGB of 0..255 for
    it."""
    if name in LITE_NETWORKS:
        return functools.partial(lite.make, name), lite.preprocess
    makers = {key: value for key, value in vars(keras.applications).items() if inspect.isfunction(value)}
    if name not in makers:
        known = [*_NETWORKS, *LITE_NETWORKS, *sorted(makers)]
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(known)}."
        raise InputError(f"There is no network {name!r}: {hint}")
    return makers[name], sys.modules[makers[name].__module__].preprocess_input


def _load_weights(backbone: keras.Model, uri: str) -> None:
    """Weights of this very network without its top: a .weights.h5 or a .keras file, at a path or a URI."""
    suffix = ".keras" if uri.endswith(".keras") else ".weights.h5"
    try:
        data = storage.read_bytes(storage.normalize(uri))
    except OSError as error:
        raise InputError(f"The weights {uri} cannot be read: {error}") from None
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"file{suffix}"
        path.write_bytes(data)
        try:
            backbone.load_weights(path)
        except Exception as error:  # h5py's and Keras's own, of many kinds
            raise InputError(
                f"The weights {uri} do not fit the network {backbone.name} without its top: {_first_line(error)}"
            ) from None


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


def _for_workers(model: keras.Model, network: Network, workers: int) -> keras.Model:
    def clone(layer: keras.layers.Layer) -> keras.layers.Layer:
        if isinstance(layer, keras.layers.BatchNormalization):
            return _batch_normalization(network, workers, **layer.get_config())
        return layer.__class__.from_config(layer.get_config())

    copy = keras.models.clone_model(model, clone_function=clone)
    copy.set_weights(model.get_weights())
    return copy


def _colour_constancy(x: keras.KerasTensor, power: float) -> keras.KerasTensor:
    """Shades of Gray (Finlayson and Trezzi 2004): the light's colour, the Minkowski mean of each channel, made grey.

    RGB of 0..1 to the same; with a power of 1 it is the grey world, and with a high one white is the brightest.
    """
    light = keras.ops.power(keras.ops.mean(keras.ops.power(x, power), axis=(1, 2), keepdims=True) + 1e-6, 1 / power)
    return keras.ops.minimum(x * (keras.ops.mean(light, axis=-1, keepdims=True) / light), 1.0)


def _logits(x: keras.KerasTensor, initializer: Callable[[], keras.Initializer]) -> keras.KerasTensor:
    # float32 whatever the precision of the rest: a softmax of rounded logits is no probability.
    return keras.layers.Dense(len(taxonomy.CODES), kernel_initializer=initializer(), dtype="float32", name="logits")(x)


def _initializers(seed: int) -> Callable[[], keras.Initializer]:
    """A source of initializers, each with a seed of its own, so that the same seed gives the same weights anywhere."""
    count = 0

    def next_initializer() -> keras.Initializer:
        nonlocal count
        count += 1
        return keras.initializers.HeNormal(seed=seed * 1000 + count)

    return next_initializer
