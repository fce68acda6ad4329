"""Whether what an explanation marks matters: python -m tests.benchmarks.explanations BUNDLE CATALOG... [--images N]

Of N melanomas (100) of no training or validation split that the model raises, the 15% of the picture where a map is
highest are covered in the colour of its border, and how far the log-odds of melanoma fall is seen. A map passes on an
image where they fall at least twice as far as they do when a centred square of that size is covered, and when such a
square at a random place is (the mean of three). Compared are the map of `melanoma predict --explain`, LayerCAM (Jiang
et al. 2021) at three depths, integrated gradients (Sundararajan et al. 2017) and occlusion (Zeiler and Fergus 2014).
"""

import argparse
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from melanoma import storage, taxonomy
from melanoma.catalog import schema
from melanoma.evaluation.intervals import proportion
from melanoma.imaging.decode import decode
from melanoma.model import bundle as bundles
from melanoma.model import explain
from melanoma.model.predictor import Predictor

MELANOMA = taxonomy.CODES.index(taxonomy.MELANOMA)
_SIDES = (5, 10, 20)  # of the activations that LayerCAM looks at, or the nearest to them
_PATCHES = 12  # a side of the occlusion map
_STEPS = 16  # of integrated gradients
_SQUARES = 3  # at random places

Map = Callable[[np.ndarray], np.ndarray]


class Gradients:
    """LayerCAM and integrated gradients, of the picture as it stands."""

    def __init__(self, bundle: bundles.Bundle) -> None:
        from melanoma.model.keras_settings import keras

        networks = [
            _flat(network)
            for network in bundles.networks_of(bundles.with_float_input(bundles.load_model(bundle.model)))
        ]
        self._networks = [
            keras.Model(network.inputs, [*(_layer(network, side).output for side in _SIDES), network.outputs[0]])
            for network in networks
        ]
        self.sides = [_layer(networks[0], side).output.shape[1] for side in _SIDES]

    def layer_cam(self, depth: int) -> Map:
        import tensorflow as tf

        def heat(pixels: np.ndarray) -> np.ndarray:
            maps = []
            for network in self._networks:
                with tf.GradientTape() as tape:
                    images = tf.constant(pixels[None], tf.float32)
                    tape.watch(images)
                    *activations, logits = network(images, training=False)
                    target = logits[:, MELANOMA]
                gradient = tape.gradient(target, activations[depth])
                maps.append(tf.nn.relu(tf.reduce_sum(tf.nn.relu(gradient) * activations[depth], axis=-1))[0].numpy())
            return np.asarray(sum(maps))

        return heat

    def integrated(self, pixels: np.ndarray) -> np.ndarray:
        import tensorflow as tf

        colour = explain.border_colour(pixels).astype(np.float32)
        change = pixels - np.broadcast_to(colour, pixels.shape)
        total = np.zeros(pixels.shape, dtype=np.float32)
        for network in self._networks:
            for step in range(_STEPS):
                images = tf.constant((colour + (step + 0.5) / _STEPS * change)[None], tf.float32)
                with tf.GradientTape() as tape:
                    tape.watch(images)
                    target = network(images, training=False)[-1][:, MELANOMA]
                total += tape.gradient(target, images)[0].numpy()
        cells = len(pixels) // 20
        side = len(pixels) // cells * cells
        found = (total * change).sum(axis=-1)[:side, :side]
        return np.asarray(found.reshape(side // cells, cells, side // cells, cells).sum(axis=(1, 3)))


def _flat(network: Any) -> Any:
    """The network with the layers of a network within it, such as a pretrained backbone, as its own: their activations
    can be asked for, too."""
    from melanoma.model.keras_settings import keras

    def called(layer: Any, *values: Any, **options: Any) -> Any:
        return layer.call(*values, **options) if isinstance(layer, keras.Model) else layer(*values, **options)

    inputs = keras.Input(network.inputs[0].shape[1:], dtype=network.inputs[0].dtype)
    flat = keras.models.clone_model(network, inputs, clone_function=lambda layer: layer, call_function=called)
    # Made anew, since a layer that was called twice has no single output.
    alone = keras.Model.from_config(flat.get_config())
    alone.set_weights(flat.get_weights())
    return alone


def _layer(network: Any, side: int) -> Any:
    """The last layer of those whose maps have a side nearest to `side`."""
    layers = [layer for layer in network.layers if len(layer.output.shape) == 4 and layer.output.shape[1] > 1]
    return min(reversed(layers), key=lambda layer: abs(layer.output.shape[1] - side))


def _smooth(heat: Map) -> Map:
    """The map as large as the picture: those of few cells are meant to be drawn so."""

    def smoothed(pixels: np.ndarray) -> np.ndarray:
        size = (len(pixels), len(pixels))
        return np.asarray(Image.fromarray(heat(pixels).astype(np.float32)).resize(size, Image.Resampling.BICUBIC))

    return smoothed


def occlusion(predictor: Predictor) -> Map:
    """How far the log-odds fall when a patch of two cells a side is painted over."""

    def heat(pixels: np.ndarray) -> np.ndarray:
        size = len(pixels)
        edges = np.linspace(0, size, _PATCHES + 1).round().astype(int)
        half = size // _PATCHES // 2
        patched = np.repeat(pixels[None], _PATCHES**2, axis=0)
        for place in range(_PATCHES**2):
            row, column = divmod(place, _PATCHES)
            top, left = max(0, edges[row] - half), max(0, edges[column] - half)
            patched[place, top : edges[row + 1] + half, left : edges[column + 1] + half] = explain.border_colour(pixels)
        return -log_odds(predictor, patched).reshape(_PATCHES, _PATCHES)

    return heat


def log_odds(predictor: Predictor, pixels: np.ndarray) -> np.ndarray:
    """[n], of melanoma."""
    logits = predictor.logits(pixels).astype(np.float64)
    return np.asarray(logits[:, MELANOMA] - np.logaddexp.reduce(np.delete(logits, MELANOMA, axis=1), axis=1))


def square(size: int, top: int, left: int) -> np.ndarray:
    """bool [size, size]: a square of the share of the picture that is covered."""
    side = round(size * explain.SHARE**0.5)
    region = np.zeros((size, size), dtype=bool)
    region[top : top + side, left : left + side] = True
    return region


def raised_melanomas(predictor: Predictor, catalogs: list[str], count: int) -> list[np.ndarray]:
    """Pictures, drawn by a fixed seed."""
    frame = pd.concat([schema.read(catalog) for catalog in catalogs])
    usable = frame["error"].isna() & (frame["label"] == taxonomy.MELANOMA)
    held_out = frame["split"] == "test"
    uris = sorted(set(frame[usable & held_out]["uri"]))
    found: list[np.ndarray] = []
    for place in np.random.default_rng(0).permutation(len(uris)):
        pixels = decode(storage.read_bytes(uris[place]), predictor.bundle.input_size).pixels
        if predictor.predict(pixels[None])["p_melanoma"][0] >= predictor.bundle.thresholds.review:
            found.append(pixels)
        if len(found) == count:
            break
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle")
    parser.add_argument("catalogs", nargs="+")
    parser.add_argument("--images", type=int, default=100)
    arguments = parser.parse_args()
    bundle = bundles.load(arguments.bundle)
    predictor, gradients = Predictor(bundle, threads=1), Gradients(bundle)
    pictures = raised_melanomas(predictor, arguments.catalogs, arguments.images)
    before = log_odds(predictor, np.stack(pictures))
    size = bundle.input_size
    space = size - round(size * explain.SHARE**0.5)
    generator = np.random.default_rng(0)

    def falls(regions: list[np.ndarray]) -> np.ndarray:
        pairs = zip(pictures, regions, strict=True)
        return before - log_odds(predictor, np.stack([explain.covered(pixels, region) for pixels, region in pairs]))

    centred = falls([square(size, space // 2, space // 2)] * len(pictures))
    places = generator.integers(0, space + 1, (_SQUARES, len(pictures), 2))
    chance = np.mean([falls([square(size, *place) for place in some]) for some in places], axis=0)
    print(f"Model {bundle.version}, {len(pictures)} raised melanomas. Mean fall of the log-odds by a centred square")
    print(f"{centred.mean():.2f}, by one at a random place {chance.mean():.2f}.")
    maps: dict[str, Map] = {
        "shipped": explain.Explainer(bundle).heat,
        **{
            f"LayerCAM, {side} cells": _smooth(gradients.layer_cam(depth)) for depth, side in enumerate(gradients.sides)
        },
        "integrated gradients": _smooth(gradients.integrated),
        "occlusion": _smooth(occlusion(predictor)),
    }
    for name, heat in maps.items():
        heat(pictures[0])  # builds its functions
        began = time.process_time()
        regions = [explain.hottest(heat(pixels), size) for pixels in pictures]
        seconds = (time.process_time() - began) / len(pictures)
        fall = falls(regions)
        passed = (fall > 0) & (fall >= 2 * centred) & (fall >= 2 * chance)
        rate = proportion(passed, np.arange(len(passed)))
        print(
            f"{name:22} passes on {rate.value:.0%} [{rate.low:.0%}, {rate.high:.0%}]  falls by {fall.mean():.2f}, on "
            f"{np.mean(fall > 0):.0%}  {seconds:.2f} s of processor time an image"
        )


if __name__ == "__main__":
    main()
