"""The augmentation of a whole batch inside the TensorFlow graph: the operations of melanoma.training.augment, as cheap
as a batch of them can be.

What moves the picture (flips, quarter turns, `frame`) is composed to one affine transform an image, so that it is
interpolated once. Pixels are float32 between the operations, and rounded at the end.

Chance is drawn outside the graph, for each image from its own seed: a row of uniform numbers, of which each operation
takes as many as it takes of `random`, in the same order. So a picture does not depend on the batch that it is in, nor
on how many workers share it; and with the same numbers the operations here and there give nearly the same picture.
Matrices are computed in float64 and then rounded, for the last bit of a float32 sine or exponential depends on its
place in the batch: full vectors of a processor are computed by another code than what is left over.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
from Augmentor.Operations import Flip, Operation, Rotate

from melanoma.errors import InputError
from melanoma.training.augment import LUMA, TO_YIQ, Colour, DarkBorder, Frame, Resolution, operations
from melanoma.training.config import Augmentation

GRAPH_OPERATIONS = (
    *("flip_left_right", "flip_top_bottom", "rotate_random_90"),
    *("frame", "colour", "resolution", "dark_border"),
)


class GraphAugmentation:
    """A chain of operations on batches. Raises InputError where one is not of the graph, or its parameters are wrong.

    Args:
        augmentations: What is done to each image, in this order.
    """

    def __init__(self, augmentations: Sequence[Augmentation]) -> None:
        for augmentation in augmentations:
            if augmentation.operation not in GRAPH_OPERATIONS:
                raise InputError(
                    f"The augmentation {augmentation.operation!r} is not one of the graph, which has "
                    f"{', '.join(GRAPH_OPERATIONS)}: leave it out, or set augment_in to ray."
                )
        self._operations = operations(augmentations)
        counts = [1 + (_MOVES | _PAINTS)[type(operation)][0] for operation in self._operations]
        self._columns = [slice(end - count, end) for count, end in zip(counts, np.cumsum(counts), strict=True)]
        self.draw_count = sum(counts)

    def draw(self, seeds: np.ndarray) -> np.ndarray:
        """float32 [n, draw_count], 0 to 1 without 1: what decides the copies of images of the seeds, uint32 [n]."""
        rows = [np.random.default_rng(int(seed)).random(self.draw_count, dtype=np.float32) for seed in seeds]
        return np.stack(rows) if rows else np.zeros((0, self.draw_count), np.float32)

    def __call__(self, images: Any, draws: Any) -> Any:
        """uint8 RGB [n, size, size, 3] to the same, as `draws` of `draw` say, float32 [n, draw_count]."""
        if not self._operations:
            return images
        images = tf.cast(images, tf.float32)
        parts = [
            (operation, draws[:, columns.start] < operation.probability, draws[:, columns.start + 1 : columns.stop])
            for operation, columns in zip(self._operations, self._columns, strict=True)
        ]
        for moves, together in itertools.groupby(parts, key=lambda part: type(part[0]) in _MOVES):
            if moves:
                images = _moved(images, list(together))
            else:
                for operation, done, own in together:
                    images = _painted(images, operation, done, own)
        return tf.cast(tf.round(tf.clip_by_value(images, 0.0, 255.0)), tf.uint8)


def _moved(images: Any, parts: Sequence[tuple[Operation, Any, Any]]) -> Any:
    """All moves in one interpolation; outside the picture is the picture mirrored."""
    unchanged = tf.eye(3, batch_shape=[tf.shape(images)[0]], dtype=tf.float64)
    matrix = unchanged
    for operation, done, draws in parts:
        matrix = matrix @ tf.where(done[:, None, None], _MOVES[type(operation)][1](operation, _exact(draws)), unchanged)
    size = images.shape[1]
    # From shares of the side about the centre to numbers of pixels.
    middle = (size - 1) / 2
    linear, shift = matrix[:, :2, :2], matrix[:, :2, 2:] * size
    offset = shift + middle - middle * tf.reduce_sum(linear, axis=2, keepdims=True)
    rows = tf.cast(tf.reshape(tf.concat([linear, offset], axis=2), [-1, 6]), tf.float32)
    return tf.raw_ops.ImageProjectiveTransformV3(
        images=images,
        transforms=tf.pad(rows, [[0, 0], [0, 2]]),
        output_shape=[size, size],
        fill_value=0.0,
        interpolation="BILINEAR",
        fill_mode="REFLECT",
    )


def _painted(images: Any, operation: Operation, done: Any, draws: Any) -> Any:
    """The images with those that it is `done` to replaced: the others cost nothing."""
    places = tf.where(done)
    rows = places[:, 0]
    changed = _PAINTS[type(operation)][1](operation, tf.gather(images, rows), tf.gather(draws, rows))
    return tf.tensor_scatter_nd_update(images, places, changed)


def _exact(draws: Any) -> Any:
    return tf.cast(draws, tf.float64)


def _between(low: float, high: float, draw: Any) -> Any:
    return low + (high - low) * draw


def _whole(low: int, high: int, draw: Any) -> Any:
    """Whole numbers, the highest included, as floats."""
    return tf.floor(low + (high - low + 1) * draw)


def _factor(strength: float, draw: Any) -> Any:
    return tf.exp(_between(-strength, strength, draw))


def _matrices(*rows: Sequence[Any]) -> Any:
    """Entries float64 [n], or a number for all, to float64 [n, rows, columns]."""
    count = next(tf.shape(entry) for row in rows for entry in row if tf.is_tensor(entry))
    full = [[tf.broadcast_to(tf.cast(entry, tf.float64), count) for entry in row] for row in rows]
    return tf.stack([tf.stack(row, axis=1) for row in full], axis=1)


# Moves: from places of the new picture to those of the old, in shares of the side about the centre, float64 [n, 3, 3].


def _flip(flip: Flip, draws: Any) -> Any:
    along = -1.0 if flip.top_bottom_left_right == "LEFT_RIGHT" else 1.0
    return tf.linalg.diag(tf.constant([along, -along, 1.0], tf.float64))[None]


def _quarter_turn(turn: Rotate, draws: Any) -> Any:
    angle = _whole(1, 3, draws[:, 0]) * (math.pi / 2)
    cosine, sine = tf.cos(angle), tf.sin(angle)
    return _matrices([cosine, -sine, 0.0], [sine, cosine, 0.0], [0.0, 0.0, 1.0])


def _frame(frame: Frame, draws: Any) -> Any:
    angle = math.radians(frame.rotation) * _between(-1.0, 1.0, draws[:, 0])
    scale = tf.exp(_between(math.log(frame.scales[0]), math.log(frame.scales[1]), draws[:, 1]))
    aspect = tf.exp(_between(-0.5, 0.5, draws[:, 2]) * math.log(frame.aspect))
    along, down = (_between(-frame.shift, frame.shift, draws[:, place]) for place in (3, 4))
    across, upright = 1.0 / (scale * aspect), aspect / scale
    cosine, sine = tf.cos(angle), tf.sin(angle)
    return _matrices(
        [cosine * across, -sine * upright, along], [sine * across, cosine * upright, down], [0.0, 0.0, 1.0]
    )


# Paints: float32 [n, size, size, 3] of 0 to 255 to the same.


def _colour(colour: Colour, images: Any, draws: Any) -> Any:
    brightness, contrast, saturation, light, gamma = colour.strengths
    draws = _exact(draws)
    turn = math.radians(colour.hue) * _between(-1.0, 1.0, draws[:, 0])
    cosine, sine = tf.cos(turn), tf.sin(turn)
    rotation = _matrices([1.0, 0.0, 0.0], [0.0, cosine, -sine], [0.0, sine, cosine])
    share = _factor(saturation, draws[:, 1])[:, None, None]
    saturated = share * tf.eye(3, dtype=tf.float64) + (1.0 - share) * tf.constant(np.tile(LUMA, (3, 1)), tf.float64)
    lights = _factor(light, draws[:, 2:5])[:, :, None]
    contrasted = _factor(contrast, draws[:, 5])[:, None, None]
    to_yiq = TO_YIQ.astype(np.float64)
    matrix = lights * (saturated @ np.linalg.inv(to_yiq) @ rotation @ to_yiq)
    matrix *= _factor(brightness, draws[:, 7])[:, None, None] * contrasted
    size = images.shape[1]
    pixels = tf.reshape(images, [-1, size * size, 3]) @ tf.cast(tf.transpose(matrix, [0, 2, 1]), tf.float32)
    pixels += tf.cast(128.0 * (1.0 - contrasted), tf.float32)
    if gamma:
        shares = tf.clip_by_value(pixels / 255.0, 1e-6, 1.0)
        # A power by way of the logarithm is four times as fast as tf.pow.
        power = tf.cast(_factor(gamma, draws[:, 6]), tf.float32)[:, None, None]
        pixels = 255.0 * tf.exp(power * tf.math.log(shares))
    return tf.reshape(tf.clip_by_value(pixels, 0.0, 255.0), [-1, size, size, 3])


def _resolution(resolution: Resolution, images: Any, draws: Any) -> Any:
    """Scaled down and up by two products of matrices, which hold the weights of Pillow's bilinear resize."""
    size = images.shape[1]
    small = tf.maximum(8.0, tf.round(size * _between(resolution.min_scale, 1.0, draws[:, 0])))[:, None, None]
    places = tf.range(size, dtype=tf.float32)
    rows, columns = places[None, :, None] + 0.5, places[None, None, :] + 0.5
    reach = size / small
    down = tf.maximum(0.0, 1.0 - tf.abs(columns - rows * reach) / reach)
    up = tf.maximum(0.0, 1.0 - tf.abs(columns - rows / reach)) * tf.cast(columns < small, tf.float32)
    both = _to_one(up) @ _to_one(down)
    for _ in range(2):  # along the columns and, exchanged, along the rows
        images = tf.reshape(both @ tf.reshape(images, [-1, size, size * 3]), [-1, size, size, 3])
        images = tf.transpose(images, [0, 2, 1, 3])
    if resolution.min_quality == 100:
        return images
    qualities = tf.cast(_whole(min(resolution.min_quality, 95), 95, draws[:, 1]), tf.int32)
    pixels = tf.cast(tf.round(tf.clip_by_value(images, 0.0, 255.0)), tf.uint8)
    return tf.cast(tf.map_fn(_compressed, (pixels, qualities), fn_output_signature=tf.uint8), tf.float32)


def _to_one(weights: Any) -> Any:
    return tf.math.divide_no_nan(weights, tf.reduce_sum(weights, axis=2, keepdims=True))


def _compressed(image_and_quality: tuple[Any, Any]) -> Any:
    image, quality = image_and_quality
    return tf.ensure_shape(tf.image.adjust_jpeg_quality(image, quality, dct_method="INTEGER_ACCURATE"), image.shape)


def _dark_border(border: DarkBorder, images: Any, draws: Any) -> Any:
    size = images.shape[1]
    radius, x, y, blur, dark = (draws[:, place, None, None] for place in range(5))
    places = (tf.range(size, dtype=tf.float32) + 0.5) / size - 0.5
    x, y = (places[None, None, :] - _between(-0.04, 0.04, x)), (places[None, :, None] - _between(-0.04, 0.04, y))
    inside = _between(border.min_radius, 0.75, radius) - tf.sqrt(x * x + y * y)
    # A box blur of radius r makes of an edge a slope of 2 r + 1 pixels.
    slope = 2.0 * _between(0.0, 0.015, blur) * size + 1.0
    field = tf.clip_by_value(inside * size / slope + 0.5, 0.0, 1.0)[..., None]
    return field * images + (1.0 - field) * _whole(0, 25, dark)[..., None]


# How many numbers each takes of chance, as it does in melanoma.training.augment and in Augmentor.
_MOVES: dict[type[Operation], tuple[int, Callable[[Any, Any], Any]]] = {
    Flip: (1, _flip),
    Rotate: (1, _quarter_turn),
    Frame: (5, _frame),
}
_PAINTS: dict[type[Operation], tuple[int, Callable[[Any, Any, Any], Any]]] = {
    Colour: (8, _colour),
    Resolution: (2, _resolution),
    DarkBorder: (5, _dark_border),
}
