"""What raised the melanoma probability of an image: LayerCAM (Jiang et al. 2021, doi:10.1109/TIP.2021.3089943)."""

import io
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from melanoma import taxonomy
from melanoma.model.bundle import Bundle, load_model
from melanoma.model.predictor import orientations

# The side of the activations that are used, or the nearest to it: of the sides that were tried, this one found best
# what matters, see tests/benchmarks/explanations.py.
_CELLS = 24
_UNDONE_BY = (0, 1, 2, 3, 4, 6, 5, 7)  # of `orientations`: all undo themselves but two, which undo each other
SHARE = 0.15  # of a picture that is covered to see whether it matters
_BORDER = 16  # the outermost sixteenth of each side
_MELANOMA = taxonomy.CODES.index(taxonomy.MELANOMA)


class Explainer:
    """A bundle's model, ready to explain. Not for several threads at once."""

    def __init__(self, bundle: Bundle) -> None:
        from melanoma.model.keras_settings import keras

        self._model = load_model(bundle.model)
        self._tape: Any = None
        # The networks of an ensemble and the backbone of a network are models inside the model: what the layers of each
        # give is kept apart, in the order of their calls.
        self._given: dict[str, list[Any]] = {}
        for layer in self._model.layers:
            name = layer.name if isinstance(layer, keras.Model) else ""
            self._record(layer, self._given.setdefault(name, []))

    def heat(self, pixels: np.ndarray) -> np.ndarray:
        """float32 [cells, cells], 0 to 1: how much each region raised the log-odds of melanoma; the most is 1.

        `pixels` uint8 RGB [size, size, 3]. All zeros where no region raised it. The map is the mean over all eight
        orientations of the picture, whatever number the bundle predicts in: one alone gives a noisier map. An
        ensemble's map is the sum over its networks. The value of a cell with activations a and gradients g is
        max(0, sum over channels of max(0, g) a).
        """
        import tensorflow as tf

        for given in self._given.values():
            given.clear()
        views = orientations(tf)
        images = tf.concat([view(tf.constant(pixels[None])) for view in views], axis=0)
        with tf.GradientTape() as self._tape:
            log_probabilities = tf.nn.log_softmax(self._model(images, training=False))
            of_others = tf.concat([log_probabilities[:, :_MELANOMA], log_probabilities[:, _MELANOMA + 1 :]], axis=1)
            log_odds = log_probabilities[:, _MELANOMA] - tf.reduce_logsumexp(of_others, axis=1)
        activations = [found for given in self._given.values() if (found := _chosen(given, len(pixels))) is not None]
        heat = np.zeros((1, 1), dtype=np.float32)
        for activation, gradient in zip(activations, self._tape.gradient(log_odds, activations), strict=True):
            maps = tf.nn.relu(tf.reduce_sum(tf.nn.relu(gradient) * activation, axis=-1, keepdims=True))
            undone = [views[place](maps[i : i + 1]) for i, place in enumerate(_UNDONE_BY)]
            mean = tf.reduce_mean(tf.concat(undone, axis=0), axis=0)[..., 0].numpy()
            heat = mean + _resized(heat, len(mean))
        return np.asarray(heat / heat.max() if heat.max() > 0 else heat, dtype=np.float32)

    def _record(self, layer: Any, given: list[Any]) -> None:
        """Have `layer`, or the layers inside it, append the maps that they give to `given` at each call."""
        if hasattr(layer, "layers"):
            for part in layer.layers:
                self._record(part, given)
            return
        call = layer.call

        def recorded(*arguments: Any, **options: Any) -> Any:
            result = call(*arguments, **options)
            if len(getattr(result, "shape", ())) == 4 and result.dtype.is_floating:
                # An image of integers has no gradient, and where all weights are frozen nothing else would be watched.
                self._tape.watch(result)
                given.append(result)
            return result

        layer.call = recorded


def _chosen(given: Sequence[Any], size: int) -> Any:
    """The last activations, [n, cells, cells, channels], of those whose side is nearest to `_CELLS`; None if none are.

    The last of a side are what the network reduces next.
    """
    maps = [tensor for tensor in given if 1 < tensor.shape[1] < size]
    return min(reversed(maps), key=lambda tensor: abs(math.log(tensor.shape[1] / _CELLS)), default=None)


def hottest(heat: np.ndarray, size: int, share: float = SHARE) -> np.ndarray:
    """bool [size, size]: the `share` of a picture where `heat`, [cells, cells], is highest."""
    order = np.argsort(-_resized(heat, size).ravel(), kind="stable")
    region = np.zeros(size * size, dtype=bool)
    region[order[: round(share * size * size)]] = True
    return region.reshape(size, size)


def covered(pixels: np.ndarray, region: np.ndarray) -> np.ndarray:
    """The picture with a region painted over: to see whether the region matters.

    `pixels` uint8 RGB [size, size, 3], as is the result; `region` bool [size, size]. The colour is the median of the
    picture's border, which is skin as a rule: the mean of the whole has the lesion in it.
    """
    width = max(1, len(pixels) // _BORDER)
    border = np.ones(region.shape, dtype=bool)
    border[width:-width, width:-width] = False
    colour = np.median(pixels[border], axis=0).round().astype(np.uint8)
    return np.where(region[..., None], colour, pixels)


def overlay(image: Image.Image, heat: np.ndarray, p_melanoma: float) -> bytes:
    """A PNG of `image` with the regions that raised the probability in red, the stronger the redder.

    `heat` is that of `Explainer.heat`. The strongest cell is fully red where `p_melanoma` is at least 0.1, and paler
    below it: what hardly matters stays pale.
    """
    strength = np.clip(_resized(heat, max(heat.shape)), 0, 1) * min(1.0, p_melanoma / 0.1)
    mask = Image.fromarray((strength * 160).astype(np.uint8)).resize(image.size, Image.Resampling.BICUBIC)
    marked = Image.composite(Image.new("RGB", image.size, (230, 30, 30)), image.convert("RGB"), mask)
    buffer = io.BytesIO()
    marked.save(buffer, "PNG")
    return buffer.getvalue()


def _resized(heat: np.ndarray, size: int) -> np.ndarray:
    """float32 [size, size]"""
    picture = Image.fromarray(heat.astype(np.float32))
    return np.asarray(picture.resize((size, size), Image.Resampling.BICUBIC))
