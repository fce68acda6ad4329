import io
from typing import Any

import keras
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from melanoma.evaluation import stability as stabilities
from melanoma.evaluation.metrics import to_json
from melanoma.evaluation.stability import CHANGES, draw
from melanoma.model import bundle as bundles
from melanoma.model.bundle import Bundle
from melanoma.model.manifest import Calibration, Manifest
from melanoma.model.predictor import Predictor
from melanoma.taxonomy import CODES

SIZE = 32


def predictor_of(layers: list[Any]) -> Predictor:
    """A bundle of a network made of these layers, which are given values of 0 to 1."""
    scaled = [keras.Input((SIZE, SIZE, 3), dtype="uint8"), keras.layers.Rescaling(1 / 255), *layers]
    network = keras.Sequential(scaled)
    manifest = Manifest.model_construct(model_version="", input_size=SIZE, calibration=Calibration(temperature=1.0))
    return Predictor(Bundle(manifest, bundles.model_bytes(network), b""))


def dense(weights: np.ndarray, bias: np.ndarray | float = 0.0) -> keras.layers.Layer:
    """To the logits of nine classes; `weights` [inputs, 9]."""

    def initial(value: np.ndarray) -> keras.initializers.Initializer:
        # Keras's own constant takes numbers only where it is to be stored.
        return keras.initializers.Constant(value.tolist())

    return keras.layers.Dense(
        len(CODES),
        kernel_initializer=initial(weights),
        bias_initializer=initial(np.broadcast_to(np.asarray(bias, dtype=float), len(CODES))),
    )


def images(n: int, seed: int = 0) -> np.ndarray:
    """Smooth pictures of different colours that are darker on the left."""
    rng = np.random.default_rng(seed)
    colour = rng.uniform(90, 190, size=(n, 1, 1, 3))
    ramp = np.linspace(0.6, 1.0, SIZE)[None, None, :, None]
    return np.broadcast_to(colour * ramp, (n, SIZE, SIZE, 3)).round().astype(np.uint8)


def table(predictor: Predictor, pixels: np.ndarray, threshold: float, melanoma: np.ndarray) -> pd.DataFrame:
    frame = pd.DataFrame(predictor.probabilities(pixels), columns=[f"p_{code}" for code in CODES])
    frame["p_melanoma"], frame["threshold"] = frame["p_MEL"], threshold
    frame["label"] = np.where(melanoma, "MEL", "NV")
    frame["group_id"] = frame["image_id"] = frame["uri"] = [f"image-{i}" for i in range(len(pixels))]
    return frame


def stability(predictor: Predictor, frame: pd.DataFrame, pixels: np.ndarray, resamples: int) -> dict[str, Any]:
    """What metrics.json says of these images."""
    return dict(to_json(stabilities.stability(predictor, frame, pixels, resamples=resamples)))


def by_kind(found: dict[str, Any]) -> dict[str, Any]:
    return {change["kind"]: change for change in found["changes"]}


TURNS = (
    *("mirrored left to right", "mirrored top to bottom", "turned by 90 degrees", "turned by 180 degrees"),
    "JPEG of quality 70",
)


def of_mean_colour() -> Predictor:
    """Melanoma the redder, vascular the greener a picture is on the whole: turning it changes nothing."""
    weights = np.zeros((3, len(CODES)))
    weights[0, CODES.index("MEL")], weights[1, CODES.index("VASC")] = 30, 30
    return predictor_of([keras.layers.GlobalAveragePooling2D(), dense(weights)])


def of_the_left_edge() -> Predictor:
    """Melanoma when the left edge is dark."""
    weights = np.zeros((SIZE, SIZE, 3, len(CODES)))
    weights[:, :2, :, CODES.index("MEL")] = -1.0
    bias = np.zeros(len(CODES))
    bias[CODES.index("MEL")] = 65
    return predictor_of([keras.layers.Flatten(), dense(weights.reshape(-1, len(CODES)), bias)])


def test_a_network_that_sees_the_mean_colour_only_is_stable_when_a_picture_is_turned() -> None:
    predictor, pixels = of_mean_colour(), images(40)
    melanoma = np.arange(40) % 2 == 0
    frame = table(predictor, pixels, 0.5, melanoma)
    found = stability(predictor, frame, pixels, resamples=50)
    kinds = by_kind(found)
    for kind in TURNS[:4]:
        assert kinds[kind]["raised_flips"]["value"] == 0
        assert kinds[kind]["class_flips"]["value"] == 0
        assert kinds[kind]["melanomas_lost"]["value"] == 0
        assert kinds[kind]["mean_change"]["value"] < 1e-5
        # None of 40 does not say none at all.
        assert kinds[kind]["raised_flips"]["high"] == pytest.approx(1 - 0.025 ** (1 / 40), abs=1e-9)
    assert found["n"] == 40
    assert found["n_raised_melanoma"] == int((melanoma & (frame["p_melanoma"] >= 0.5)).sum())
    assert found["size"] == SIZE
    assert list(kinds) == list(CHANGES)


def test_a_network_that_looks_at_the_left_edge_loses_every_melanoma_that_is_mirrored() -> None:
    predictor, pixels = of_the_left_edge(), images(30)
    frame = table(predictor, pixels, 0.5, np.ones(30, bool))
    dark = (frame["p_melanoma"] >= 0.5).to_numpy()
    assert 5 < dark.sum() < 25
    found = stability(predictor, frame, pixels, resamples=50)
    kinds = by_kind(found)
    mirrored = predictor.probabilities(np.ascontiguousarray(pixels[:, :, ::-1]))[:, CODES.index("MEL")]
    for kind in ("mirrored left to right", "turned by 180 degrees"):
        assert kinds[kind]["raised_flips"]["value"] == pytest.approx(((mirrored >= 0.5) != dark).mean())
        assert kinds[kind]["melanomas_lost"]["value"] == pytest.approx((mirrored < 0.5)[dark].mean())
        assert kinds[kind]["mean_change"]["value"] == pytest.approx(np.abs(mirrored - frame["p_melanoma"]).mean())
    assert kinds["mirrored top to bottom"]["raised_flips"]["value"] == 0
    assert found["any"]["raised_flips"]["value"] >= max(kind["raised_flips"]["value"] for kind in found["changes"])


def test_melanomas_lost_are_unknown_where_none_was_raised() -> None:
    predictor, pixels = of_mean_colour(), images(4)
    found = stability(predictor, table(predictor, pixels, 1.1, np.ones(4, bool)), pixels, resamples=10)
    assert found["any"]["melanomas_lost"] == {"value": None, "low": None, "high": None, "method": None}
    assert found["n_raised_melanoma"] == 0


def test_twice_is_the_same() -> None:
    predictor, pixels = of_the_left_edge(), images(10)
    frame = table(predictor, pixels, 0.5, np.arange(10) < 5)
    assert stability(predictor, frame, pixels, resamples=20) == stability(predictor, frame, pixels, resamples=20)


def test_changes_are_what_their_names_say() -> None:
    image = np.random.default_rng(0).integers(40, 180, size=(SIZE, SIZE, 3), dtype=np.uint8)
    smooth = images(1)[0]
    changed = {kind: change(image) for kind, change in CHANGES.items()}
    for kind, result in changed.items():
        assert (result.shape, result.dtype) == (image.shape, image.dtype), kind
        assert not np.array_equal(result, image), kind
    picture = Image.fromarray(image)
    for kind, how in {
        "mirrored left to right": Image.Transpose.FLIP_LEFT_RIGHT,
        "mirrored top to bottom": Image.Transpose.FLIP_TOP_BOTTOM,
        "turned by 90 degrees": Image.Transpose.ROTATE_90,
        "turned by 180 degrees": Image.Transpose.ROTATE_180,
    }.items():
        assert np.array_equal(changed[kind], np.asarray(picture.transpose(how))), kind
    assert changed["20% brighter"].mean() == pytest.approx(1.2 * image.mean(), rel=0.01)
    assert changed["20% darker"].mean() == pytest.approx(0.8 * image.mean(), rel=0.01)
    assert changed["20% less contrast"].mean() == pytest.approx(image.mean(), abs=0.5)
    assert changed["20% less contrast"].std() == pytest.approx(0.8 * image.std(), rel=0.01)
    for quality in (70, 50):
        file = io.BytesIO()
        Image.fromarray(image).save(file, "JPEG", quality=quality)
        assert np.array_equal(changed[f"JPEG of quality {quality}"], np.asarray(Image.open(file)))
    # What has no detail loses none; and a picture turned by 10 degrees has no black corners.
    assert np.abs(CHANGES["halved in size and back"](smooth).astype(int) - smooth).max() <= 6
    assert changed["halved in size and back"].std() < 0.7 * image.std()
    turned = CHANGES["turned by 10 degrees"](smooth)
    assert turned.min() >= smooth.min() - 2
    assert np.abs(turned[SIZE // 2].astype(int) - smooth[SIZE // 2]).max() <= 5


def test_images_are_drawn_by_the_seed_and_not_by_their_order() -> None:
    rows = pd.DataFrame({"uri": [f"image-{i:03}" for i in range(100)]})
    drawn = draw(rows, 20, seed=1)
    assert len(set(drawn.tolist())) == 20
    assert (np.diff(drawn) > 0).all()
    shuffled = rows.sample(frac=1, random_state=0)
    assert set(shuffled["uri"].iloc[draw(shuffled, 20, seed=1)]) == set(rows["uri"].iloc[drawn])
    assert set(draw(rows, 20, seed=2)) != set(drawn)
    assert len(draw(rows, 500, seed=1)) == 100
    assert len(draw(rows, 0, seed=1)) == 0
