"""Images to probabilities: the one code path of evaluation, batch scoring and serving."""

import contextlib
import threading
from typing import Any

import numpy as np

from melanoma import taxonomy
from melanoma.imaging import load
from melanoma.imaging.errors import ImageError
from melanoma.imaging.isolated import IsolatedDecoder
from melanoma.imaging.limits import DEFAULT_LIMITS, Limits
from melanoma.imaging.measures import quality
from melanoma.model import outliers, triage
from melanoma.model.bundle import Bundle, features_of, load_model, networks_of
from melanoma.model.compiled import QuantizedNetwork
from melanoma.model.outputs import Outputs, finite, orientations

_MELANOMA = taxonomy.CODES.index(taxonomy.MELANOMA)
_MALIGNANT = [taxonomy.CODES.index(code) for code in taxonomy.MALIGNANT]


class CompiledNetwork:
    """A model's networks as one TensorFlow function: pictures to `Outputs`. Usable by several threads, one at a time.

    Args:
        model: The bytes of a .keras file.
        size: The side of its input in pixels.
        flips: How many of `orientations`, 1 to 8.
        batch_size: The most pictures that are computed together.
        name: What an error calls the model.
    """

    def __init__(
        self, model: bytes, size: int, flips: int = 1, batch_size: int = 64, name: str = "The trained model"
    ) -> None:
        import tensorflow as tf
        from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

        self._name = name
        self._batch_size = batch_size
        networks = [features_of(network) for network in networks_of(load_model(model))]
        views = orientations(tf)[:flips]

        def mean_outputs(images: Any) -> Any:
            found = [[network(view(images), training=False) for view in views] for network in networks]
            logits = sum(logits for views in found for logits, _ in views) / (len(networks) * len(views))
            features = tf.concat([sum(features for _, features in views) / len(views) for views in found], axis=1)
            return logits, tf.cast(features, tf.float32)

        # One function with one signature: half the time of `model.predict`, and no retracing that would grow. With its
        # weights made constants, TensorFlow folds the normalizations into the convolutions: 12% less on a CPU.
        function = tf.function(mean_outputs, input_signature=[tf.TensorSpec((None, size, size, 3), tf.uint8)])
        self._outputs = convert_variables_to_constants_v2(function.get_concrete_function())
        self._tensor = tf.constant
        self._lock = threading.Lock()
        self._widths = tuple(output.shape[1] for output in self._outputs.outputs)

    def outputs(self, pixels: np.ndarray) -> Outputs:
        """Of uint8 RGB [n, size, size, 3]. Raises MelanomaError where a logit is no finite number."""
        batches = [pixels[at : at + self._batch_size] for at in range(0, len(pixels), self._batch_size)]
        with self._lock:
            parts = [[output.numpy() for output in self._outputs(self._tensor(batch))] for batch in batches]
        logits, features = (
            np.concatenate([part[number] for part in parts]) if parts else np.zeros((0, width), dtype=np.float32)
            for number, width in enumerate(self._widths)
        )
        return finite(Outputs(logits, features), self._name)

    def logits(self, pixels: np.ndarray) -> np.ndarray:
        """float32 [n, classes] of uint8 RGB [n, size, size, 3]."""
        return self.outputs(pixels).logits


class Predictor:
    """A bundle's model, ready to predict.

    The form of the model is the bundle's, see `Bundle.in_form`: of a compiled one, no TensorFlow is imported.

    `threads`: cores that it may use; None: all that its container may. Of TensorFlow, only the first predictor of a
    process can choose.
    """

    def __init__(self, bundle: Bundle, batch_size: int = 64, threads: int | None = None) -> None:
        import joblib

        self.bundle = bundle
        name = f"The model {bundle.version}"
        cores = threads or joblib.cpu_count()
        self._network: CompiledNetwork | QuantizedNetwork
        if bundle.is_compiled:
            self._network = QuantizedNetwork(bundle.compiled, bundle.test_time_flips, cores, name)
            return
        import tensorflow as tf

        with contextlib.suppress(RuntimeError):  # TensorFlow runs already in this process
            tf.config.threading.set_intra_op_parallelism_threads(cores)
            if threads is not None:
                tf.config.threading.set_inter_op_parallelism_threads(1)
        self._network = CompiledNetwork(bundle.model, bundle.input_size, bundle.test_time_flips, batch_size, name)

    def outputs(self, pixels: np.ndarray) -> Outputs:
        """Of uint8 RGB [n, size, size, 3]."""
        return self._network.outputs(pixels)

    def logits(self, pixels: np.ndarray) -> np.ndarray:
        """float32 [n, classes] of uint8 RGB [n, size, size, 3]."""
        return self.outputs(pixels).logits

    def outlier_scores(self, pixels: np.ndarray) -> np.ndarray:
        """float32 [n] of uint8 RGB [n, size, size, 3], see `melanoma.model.outliers`."""
        return outliers.scores(pixels, self.outputs(pixels).features, self.bundle.manifest.outliers)

    def probabilities(self, pixels: np.ndarray) -> np.ndarray:
        """float32 [n, classes], calibrated, each row of sum 1; the order is that of `taxonomy.CODES`."""
        return calibrated(self.logits(pixels), self.bundle.manifest.calibration.temperature)

    def predict(self, pixels: np.ndarray) -> dict[str, list[Any]]:
        """`columns` of uint8 RGB [n, size, size, 3]."""
        return columns(self.bundle, pixels, self.outputs(pixels))


def columns(bundle: Bundle, pixels: np.ndarray, outputs: Outputs) -> dict[str, list[Any]]:
    """The columns `triage.PREDICTION_FIELDS` of n pictures, each a list of n plain values.

    `pixels` uint8 RGB [n, size, size, 3]; `outputs`, what the bundle's networks give for them.
    """
    probabilities = calibrated(outputs.logits, bundle.manifest.calibration.temperature)
    melanoma, malignant = probabilities[:, _MELANOMA], p_malignant(probabilities)
    thresholds = bundle.thresholds
    malignancy = thresholds.malignancy
    qualities = [quality(image) for image in pixels]
    return {
        "model_version": [bundle.version] * len(pixels),
        "diagnosis": [taxonomy.CODES[index] for index in probabilities.argmax(axis=1)],
        **{f"p_{code}": probabilities[:, column].tolist() for column, code in enumerate(taxonomy.CODES)},
        "p_melanoma": melanoma.tolist(),
        "p_malignant": malignant.tolist(),
        **triage.alerts(melanoma, malignant, thresholds),
        "threshold": [thresholds.review] * len(pixels),
        "threshold_urgent": [thresholds.urgent] * len(pixels),
        "threshold_malignancy": [malignancy.review if malignancy else None] * len(pixels),
        "threshold_malignancy_urgent": [malignancy.urgent if malignancy else None] * len(pixels),
        "quality": [{"sharpness": sharpness, "exposure": exposure} for sharpness, exposure in qualities],
        "outlier_score": outliers.scores(pixels, outputs.features, bundle.manifest.outliers).tolist(),
    }


def calibrated(logits: np.ndarray, temperature: float) -> np.ndarray:
    """softmax(logits / temperature), float32 [n, classes] (Guo et al. 2017, arXiv:1706.04599)."""
    scaled = logits.astype(np.float64) / temperature
    scaled = np.exp(scaled - scaled.max(axis=1, keepdims=True))
    return np.asarray(scaled / scaled.sum(axis=1, keepdims=True), dtype=np.float32)


def p_malignant(probabilities: np.ndarray) -> np.ndarray:
    """float32 [n]: the probability of all that is malignant, of float32 [n, classes]."""
    return np.asarray(probabilities[:, _MALIGNANT].sum(axis=1))


def predict_bytes(
    predictor: Predictor,
    data: bytes | ImageError,
    limits: Limits = DEFAULT_LIMITS,
    decoder: IsolatedDecoder | None = None,
) -> dict[str, Any]:
    """Predict one image, whatever its bytes are.

    Args:
        predictor: The model.
        data: What was fetched, or why it could not be.
        limits: What the file may have at most.
        decoder: Decodes it, within its own limits; None: this process does, and may die of it.

    Returns:
        The part of a row of scores that one image decides (`content_sha256` and the prediction), or `error_kind` and
        `error` where it cannot be scored.

    Raises:
        MelanomaError: The decoder cannot start a process. Nothing else is raised.
    """
    size = predictor.bundle.input_size
    loaded = decoder.load(data, size) if decoder else load.load(data, size, limits)
    if loaded.error:
        digest = {} if isinstance(data, ImageError) else {"content_sha256": loaded.sha256}
        return {**digest, "error_kind": loaded.error.kind, "error": loaded.error.reason}
    (frame,) = loaded.frames
    predicted = predictor.predict(frame.pixels[None])
    return {"content_sha256": loaded.sha256, **{name: values[0] for name, values in predicted.items()}}
