"""What raised the melanoma probability of an image: the part of it without which the model sees least of a melanoma.

Of all regions of a fixed size, that is sought whose covering lowers the log-odds of melanoma most: an extremal
perturbation (Fong, Patrick and Vedaldi 2019, doi:10.1109/ICCV.2019.00304). Whether a cell is covered is relaxed to a
share of 0 to 1, and the shares are found by the method of Frank and Wolfe (Jaggi 2013, ICML), each step of which goes
towards the cells that the gradient names. tests/benchmarks/explanations.py compares it with LayerCAM, integrated
gradients and occlusion, which mark what lies in the picture rather than what matters.
"""

import io
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from melanoma import taxonomy
from melanoma.model.bundle import Bundle, load_model, with_float_input
from melanoma.model.predictor import orientations

_CELLS = 40  # a side of the map; finer ones find more, and fall apart into specks
_STEPS = 16
_UNDONE_BY = (0, 1, 2, 3, 4, 6, 5, 7)  # of `orientations`: all undo themselves but two, which undo each other
SHARE = 0.15  # of a picture that is covered to see whether it matters
_BORDER = 16  # the outermost sixteenth of each side
_MELANOMA = taxonomy.CODES.index(taxonomy.MELANOMA)

Floats = npt.NDArray[np.float64]


class Explainer:
    """A bundle's model, ready to explain. Not for several threads at once."""

    def __init__(self, bundle: Bundle) -> None:
        import tensorflow as tf

        self._tensor, self._views = tf.constant, orientations(tf)
        network = with_float_input(load_model(bundle.model))

        def log_odds_gradient(images: Any) -> Any:
            with tf.GradientTape() as tape:
                tape.watch(images)
                log_probabilities = tf.nn.log_softmax(network(images, training=False))
                of_others = tf.concat([log_probabilities[:, :_MELANOMA], log_probabilities[:, _MELANOMA + 1 :]], axis=1)
                log_odds = log_probabilities[:, _MELANOMA] - tf.reduce_logsumexp(of_others, axis=1)
            return tape.gradient(log_odds, images)

        signature = tf.TensorSpec((1, bundle.input_size, bundle.input_size, 3), tf.float32)
        self._gradient = tf.function(log_odds_gradient, input_signature=[signature])

    def heat(self, pixels: np.ndarray) -> np.ndarray:
        """float32 [cells, cells], 0 to 1: how surely each cell belongs to the region that raised the log-odds of
        melanoma most, of all regions of `SHARE` of the picture; the most is 1.

        `pixels` uint8 RGB [size, size, 3]. All zeros where no region raised it. The orientations of the picture are
        looked at in turn, all eight of them, whatever number the bundle predicts in.
        """
        cells = min(_CELLS, len(pixels))
        cell_of = np.arange(len(pixels)) * cells // len(pixels)
        change = border_colour(pixels) - pixels.astype(np.float64)
        shares = np.full((cells, cells), SHARE)
        for step in range(_STEPS):
            picture = pixels + shares[cell_of][:, cell_of, None] * change
            gradient = self._gradient_of(picture, step % len(self._views))
            slopes = _summed((gradient * change).sum(axis=-1), cell_of, cells)
            shares += 2 / (step + 2) * (_steepest(slopes) - shares)
        return np.asarray(shares / shares.max() if shares.max() > 0 else shares, dtype=np.float32)

    def _gradient_of(self, picture: Floats, view: int) -> Floats:
        """[size, size, 3]: what the log-odds gain by each value of a picture, as seen in one orientation."""
        seen = self._views[view](self._tensor(picture[None].astype(np.float32)))
        return np.asarray(self._views[_UNDONE_BY[view]](self._gradient(seen))[0], dtype=np.float64)


def _summed(values: Floats, cell_of: npt.NDArray[Any], cells: int) -> Floats:
    """[cells, cells]: the sums of [size, size] over the pixels of each cell."""
    first = np.searchsorted(cell_of, np.arange(cells))
    return np.asarray(np.add.reduceat(np.add.reduceat(values, first, axis=0), first, axis=1))


def _steepest(slopes: Floats) -> Floats:
    """1 for the `SHARE` of cells whose covering lowers the log-odds most, where it lowers them; 0 for the others."""
    chosen = np.zeros(slopes.size)
    order = np.argsort(slopes.ravel(), kind="stable")[: round(SHARE * slopes.size)]
    chosen[order] = slopes.ravel()[order] < 0
    return chosen.reshape(slopes.shape)


def hottest(heat: np.ndarray, size: int, share: float = SHARE) -> np.ndarray:
    """bool [size, size]: the `share` of a picture where `heat`, [cells, cells], is highest."""
    order = np.argsort(-_resized(heat, size).ravel(), kind="stable")
    region = np.zeros(size * size, dtype=bool)
    region[order[: round(share * size * size)]] = True
    return region.reshape(size, size)


def covered(pixels: np.ndarray, region: np.ndarray) -> np.ndarray:
    """The picture with a region painted over in `border_colour`: to see whether the region matters.

    `pixels` uint8 RGB [size, size, 3], as is the result; `region` bool [size, size].
    """
    return np.where(region[..., None], border_colour(pixels), pixels)


def border_colour(pixels: np.ndarray) -> np.ndarray:
    """uint8 [3]: the median of a picture's border, which is skin as a rule; in the mean of the whole is the lesion."""
    width = max(1, len(pixels) // _BORDER)
    border = np.ones(pixels.shape[:2], dtype=bool)
    border[width:-width, width:-width] = False
    return np.asarray(np.median(pixels[border], axis=0).round().astype(np.uint8))


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
