"""What raised the melanoma probability of an image: the part of it without which the model sees least of a melanoma.

Of all regions of a fixed size, that is sought whose covering lowers the log-odds of melanoma most: an extremal
perturbation (Fong, Patrick and Vedaldi 2019, doi:10.1109/ICCV.2019.00304). Whether a cell is covered is at first
relaxed to a share of 0 to 1, and the shares are found by the method of Frank and Wolfe (Jaggi 2013, ICML), each step of
which goes towards the cells that the gradient names. Then the cells of the largest shares are covered wholly, and some
of them exchanged for others as long as the network that scores says less of a melanoma.
tests/benchmarks/explanations.py compares it with LayerCAM, integrated gradients and occlusion, which mark what lies in
the picture rather than what matters.
"""

import io
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from melanoma import taxonomy
from melanoma.model.bundle import Bundle, load_model, with_float_input
from melanoma.model.predictor import Predictor, orientations

_CELLS = 40  # a side of the map; finer ones find more, and fall apart into specks
_STEPS = 8
_EXCHANGES = 10
_EXCHANGED = 0.2  # of the covered cells at once, and half as many after each exchange that did not help
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
        self._predictor = Predictor(bundle, threads=1)
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
        """float32 [cells, cells], 0 to 1: the region that raised the log-odds of melanoma most, of all regions of
        `SHARE` of the picture, with 0 outside of it and, inside, how surely each cell belongs to it; the most is 1.

        `pixels` uint8 RGB [size, size, 3]. All zeros where no region raised it. The gradients are of the orientations
        of the picture in turn, all eight of them, whatever number the bundle predicts in.
        """
        cells = min(_CELLS, len(pixels))
        cell_of = _cell_of(cells, len(pixels))
        change = border_colour(pixels) - pixels.astype(np.float64)

        def slopes(shares: Floats, step: int) -> Floats:
            picture = pixels + shares[cell_of][:, cell_of, None] * change
            gradient = self._gradient_of(picture, step % len(self._views))
            return _summed((gradient * change).sum(axis=-1), cell_of, cells)

        shares = np.full((cells, cells), SHARE)
        for step in range(_STEPS):
            shares += 2 / (step + 2) * (_steepest(slopes(shares, step)) - shares)
        region = _steepest(-shares)
        least, exchanged = self._log_odds(pixels, region), round(_EXCHANGED * region.sum())
        for step in range(_STEPS, _STEPS + _EXCHANGES):
            other = _exchanged(region, slopes(region, step), exchanged)
            found = self._log_odds(pixels, other)
            if found < least:
                region, least = other, found
            else:
                exchanged = max(1, exchanged // 2)
        heat = region * (1 + shares) / 2
        return np.asarray(heat / heat.max() if heat.any() else heat, dtype=np.float32)

    def _log_odds(self, pixels: np.ndarray, region: Floats) -> float:
        """Those of melanoma, with the cells of a region covered."""
        logits = self._predictor.logits(covered(pixels, _enlarged(region, len(pixels)) > 0)[None])[0].astype(np.float64)
        return float(logits[_MELANOMA] - np.logaddexp.reduce(np.delete(logits, _MELANOMA)))

    def _gradient_of(self, picture: Floats, view: int) -> Floats:
        """[size, size, 3]: what the log-odds gain by each value of a picture, as seen in one orientation."""
        seen = self._views[view](self._tensor(picture[None].astype(np.float32)))
        return np.asarray(self._views[_UNDONE_BY[view]](self._gradient(seen))[0], dtype=np.float64)


def _summed(values: Floats, cell_of: npt.NDArray[Any], cells: int) -> Floats:
    """[cells, cells]: the sums of [size, size] over the pixels of each cell."""
    first = np.searchsorted(cell_of, np.arange(cells))
    return np.asarray(np.add.reduceat(np.add.reduceat(values, first, axis=0), first, axis=1))


def _exchanged(region: Floats, slopes: Floats, most: int) -> Floats:
    """The region with at most `most` of its cells exchanged for others, as its slopes say."""
    target = _steepest(slopes)
    of_cells = slopes.ravel()
    leaving, joining = (np.flatnonzero(cells) for cells in ((region > target), (target > region)))
    leaving = leaving[np.argsort(-of_cells[leaving], kind="stable")][:most]
    room = round(SHARE * slopes.size) - round(region.sum()) + len(leaving)
    joining = joining[np.argsort(of_cells[joining], kind="stable")][: min(most, room)]
    other = region.copy().ravel()
    other[leaving], other[joining] = 0, 1
    return other.reshape(region.shape)


def _steepest(slopes: Floats) -> Floats:
    """1 for the `SHARE` of cells whose covering lowers the log-odds most, where it lowers them; 0 for the others."""
    chosen = np.zeros(slopes.size)
    order = np.argsort(slopes.ravel(), kind="stable")[: round(SHARE * slopes.size)]
    chosen[order] = slopes.ravel()[order] < 0
    return chosen.reshape(slopes.shape)


def hottest(heat: np.ndarray, size: int, share: float = SHARE) -> np.ndarray:
    """bool [size, size]: the `share` of a picture where `heat`, [cells, cells], is highest."""
    order = np.argsort(-_enlarged(heat, size).ravel(), kind="stable")
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
    strength = np.clip(heat, 0, 1) * min(1.0, p_melanoma / 0.1)
    mask = Image.fromarray((strength * 160).astype(np.uint8)).resize(image.size, Image.Resampling.BICUBIC)
    marked = Image.composite(Image.new("RGB", image.size, (230, 30, 30)), image.convert("RGB"), mask)
    buffer = io.BytesIO()
    marked.save(buffer, "PNG")
    return buffer.getvalue()


def _cell_of(cells: int, size: int) -> npt.NDArray[Any]:
    """int [size]: the cell that each row of pixels lies in."""
    return np.arange(size) * cells // size


def _enlarged(heat: np.ndarray, size: int) -> np.ndarray:
    """[size, size] of [cells, cells]"""
    cell_of = _cell_of(len(heat), size)
    return heat[np.ix_(cell_of, cell_of)]
