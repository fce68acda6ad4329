"""The networks, in Keras 3. Each takes uint8 RGB [batch, size, size, 3] and gives float32 logits [batch, classes].

Scaling to 0..1 is a layer of the network and stands nowhere else, so that no caller can do it twice.
"""

from collections.abc import Callable

import keras

from melanoma import taxonomy
from melanoma.config import Network


def build(network: Network, size: int, seed: int, synchronized: bool = False) -> keras.Model:
    """The network of a configuration, with weights drawn from `seed`.

    `synchronized`: batch statistics are taken over all workers. Without it, the moving averages of
    BatchNormalization differ from worker to worker.
    """
    return {"residual": residual, "student": student}[network.name](network, size, seed, synchronized)


def residual(network: Network, size: int, seed: int, synchronized: bool) -> keras.Model:
    """A small pre-activation residual network (He et al. 2016, arXiv:1603.05027): four stages, two blocks each."""
    initializer = _initializers(seed)

    def convolution(filters: int, kernel: int, stride: int = 1) -> keras.layers.Layer:
        return keras.layers.Conv2D(
            filters, kernel, strides=stride, padding="same", use_bias=False, kernel_initializer=initializer()
        )

    def activate(x: keras.KerasTensor) -> keras.KerasTensor:
        x = keras.layers.BatchNormalization(momentum=0.9, synchronized=synchronized)(x)
        return keras.layers.Activation("relu")(x)

    inputs = keras.Input((size, size, 3), dtype="uint8", name="image")
    x = keras.layers.Rescaling(1 / 127.5, offset=-1.0)(inputs)
    x = convolution(network.width, 3, stride=2)(x)
    for stage in range(4):
        filters = network.width * 2**stage
        for block in range(2):
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


def student(network: Network, size: int, seed: int, synchronized: bool) -> keras.Model:
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


def _logits(x: keras.KerasTensor, initializer: Callable[[], keras.Initializer]) -> keras.KerasTensor:
    return keras.layers.Dense(len(taxonomy.CODES), kernel_initializer=initializer(), name="logits")(x)


def _initializers(seed: int) -> Callable[[], keras.Initializer]:
    """A source of initializers, each with a seed of its own, so that the same seed gives the same weights anywhere."""
    count = 0

    def next_initializer() -> keras.Initializer:
        nonlocal count
        count += 1
        return keras.initializers.HeNormal(seed=seed * 1000 + count)

    return next_initializer
