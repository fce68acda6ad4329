"""The compiled form of a trained model: 8-bit integers for OpenVINO, calibrated and measured as a model of its own.

Static post-training quantization: weights by channel, activations by the ranges that some training images reach, with
the biases corrected (nncf, of the makers of OpenVINO). Nothing is trained again.
"""

import contextlib
import importlib.util
import io
import tempfile
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from melanoma import taxonomy
from melanoma.errors import InputError, MelanomaError
from melanoma.evaluation.run import Evaluation, evaluate_frame
from melanoma.model import bundle as bundles
from melanoma.model import compiled
from melanoma.model.compiled import QuantizedNetwork
from melanoma.model.manifest import Agreement, Calibration, CompiledForm, Draft, Thresholds
from melanoma.model.outputs import Outputs, orientations
from melanoma.model.predictor import calibrated
from melanoma.training import others
from melanoma.training.config import TrainConfig
from melanoma.training.data import DevelopmentSet
from melanoma.training.measure import auc_of, figures_of
from melanoma.training.others import Others

_IMAGES = 300  # of training, at most
_LEAST_CORRELATION = 0.95
_LARGEST_LOSS = 0.01  # of the AUC
_MELANOMA = taxonomy.CODES.index(taxonomy.MELANOMA)


class DisagreementError(MelanomaError):
    """The compiled form is another classifier than the network that it was made of."""

    exit_code = 1


def check_installed() -> None:
    """Raise InputError where what quantizes is not installed: it is known before a training, and fatal after it."""
    if importlib.util.find_spec("nncf") is None:
        raise InputError("A compiled form is made with nncf, which is not installed: install melanoma[compile].")


def with_compiled_form(
    config: TrainConfig,
    draft: Draft,
    files: Mapping[str, bytes],
    frame: pd.DataFrame,
    development: DevelopmentSet,
    validation: Outputs,
    foreign: Others | None,
    calibrate: Callable[[np.ndarray], tuple[Calibration, Thresholds]],
) -> tuple[Draft, dict[str, bytes]]:
    """A bundle with its compiled form.

    Args:
        config: The training.
        draft: What the bundle says of its TensorFlow form.
        files: Those of the bundle.
        frame: The whole catalog.
        development: The images of train and validation.
        validation: What the TensorFlow form gives for the images of validation.
        foreign: Pictures that are no dermoscopy, or None.
        calibrate: Of the logits of validation, makes the calibration and the thresholds.

    Returns:
        What the bundle says, and its files.

    Raises:
        DisagreementError: The compiled form is refused, see `_refuse_another`.
    """
    count = development.train_count
    drawn = others.draw(development.rows[:count], config.seed, _IMAGES)
    network = quantized(files["model.keras"], draft.test_time_flips, development.images[drawn])
    asked = QuantizedNetwork(network, draft.test_time_flips)
    outputs = asked.outputs(development.images[count:])
    calibration, thresholds = calibrate(outputs.logits)
    temperatures = draft.calibration.temperature, calibration.temperature
    agreement = _agreement(config, development, (validation.logits, outputs.logits), temperatures)
    _refuse_another(agreement)
    form = CompiledForm(
        form=compiled.FORM,
        calibration=calibration,
        thresholds=thresholds,
        of_features=others.feature_model(config, development, asked, outputs, foreign) if foreign else None,
        calibration_images=len(drawn),
        agreement=agreement,
        versions={name: version(name) for name in ("openvino", "nncf")},
    )
    files = {**files, compiled.FILE: network}
    split = str(draft.metrics["split"])
    report = _measured(config, draft.model_copy(update={"compiled": form}), files, frame, split, foreign)
    files |= {f"compiled/evaluation/{name}": data for name, data in report.files.items()}
    form = form.model_copy(update={"metrics": {"split": split, **figures_of(report)}})
    return draft.model_copy(update={"compiled": form}), files


def _measured(
    config: TrainConfig,
    draft: Draft,
    files: Mapping[str, bytes],
    frame: pd.DataFrame,
    split: str,
    foreign: Others | None,
) -> Evaluation:
    """The report of the compiled form; it shows no pictures, which stand in that of the TensorFlow form.

    Args:
        config: The training.
        draft: What the bundle says.
        files: Those of the bundle.
        frame: The whole catalog.
        split: The split to measure on.
        foreign: Pictures that are no dermoscopy, or None.
    """
    return evaluate_frame(
        bundles.seal(draft, files).in_form("compiled"),
        frame,
        split,
        config.catalog,
        seed=config.seed,
        others=foreign.measured if foreign else None,
        show_images=False,
    )


def quantized(model: bytes, flips: int, images: np.ndarray) -> bytes:
    """The networks of a model in 8-bit integers, as `QuantizedNetwork` takes them.

    Args:
        model: The bytes of a .keras file.
        flips: In how many orientations an image is predicted.
        images: uint8 RGB [n, size, size, 3], training images whose activations set the ranges.
    """
    openvino = compiled.openvino()
    import nncf

    nncf.set_log_level(40)  # errors
    views = orientations(np)[:flips]
    laid = [np.concatenate([view(image[None]) for view in views]) for image in images]
    network = _converted(openvino, model, flips, images.shape[1])
    with contextlib.redirect_stdout(io.StringIO()):  # bars of progress
        network = nncf.quantize(network, nncf.Dataset(laid), subset_size=len(laid))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "network.xml"
        openvino.save_model(network, path, compress_to_fp16=False)
        return compiled.packed(path.read_bytes(), path.with_suffix(".bin").read_bytes())


def _converted(openvino: Any, model: bytes, flips: int, size: int) -> Any:
    """The networks as one model of OpenVINO: `flips` orientations of one picture to the logits and features of each.

    Their means are none of its outputs: as steps of the graph, the logits would be rounded to 8 bits before them.
    """
    import tensorflow as tf

    networks = [bundles.features_of(network) for network in bundles.networks_of(bundles.load_model(model))]

    def of_each(views: Any) -> Any:
        return [tf.cast(each, tf.float32) for network in networks for each in network(views, training=False)]

    signature = [tf.TensorSpec((flips, size, size, 3), tf.uint8)]
    # Of one picture in a fixed number of orientations: OpenVINO then plans its memory once. Its default is to share the
    # memory of the weights, which TensorFlow frees when this function returns: they were garbage then.
    function = tf.function(of_each, input_signature=signature).get_concrete_function()
    return openvino.convert_model(function, share_weights=False)


def _agreement(
    config: TrainConfig,
    development: DevelopmentSet,
    logits: tuple[np.ndarray, np.ndarray],
    temperatures: tuple[float, float],
) -> Agreement:
    """How near the compiled form is to the network that it was made of.

    Args:
        config: The training.
        development: Its images.
        logits: float32 [n, classes] each, of the images of validation: of TensorFlow, and compiled.
        temperatures: Of the calibrations of the two.
    """
    count = development.train_count
    labels, groups = development.labels[count:], development.groups[count:].tolist()
    p = [calibrated(each, temperature) for each, temperature in zip(logits, temperatures, strict=True)]
    log_odds = np.stack([_log_odds(calibrated(each, 1.0)[:, _MELANOMA]) for each in logits])
    aucs = [auc_of(each, labels, groups, config.seed).value for each in p]
    with np.errstate(invalid="ignore"):  # not a number where one of the two says the same of every image
        correlation = float(np.corrcoef(log_odds)[0, 1])
    return Agreement(
        n=len(labels),
        correlation=correlation,
        auc_tensorflow=aucs[0],
        auc_compiled=aucs[1],
        largest_change=float(np.abs(p[0] - p[1])[:, _MELANOMA].max()),
    )


def _log_odds(p: np.ndarray) -> np.ndarray:
    p = np.clip(p.astype(np.float64), 1e-7, 1 - 1e-7)
    return np.asarray(np.log(p / (1 - p)))


def _refuse_another(agreement: Agreement) -> None:
    """Raise DisagreementError for a form that orders images otherwise, or worse, than the network it was made of."""
    if not agreement.correlation >= _LEAST_CORRELATION:  # NaN, too: a network that says the same of every image
        raise DisagreementError(
            f"The compiled form is refused: its log odds of melanoma on validation correlate by "
            f"{agreement.correlation:.3f} with those of the network, and not by {_LEAST_CORRELATION}."
        )
    before, after = agreement.auc_tensorflow, agreement.auc_compiled
    if before is not None and after is not None and before - after > _LARGEST_LOSS:
        raise DisagreementError(
            f"The compiled form is refused: its AUC on validation is {after:.3f}, and that of the network is more than "
            f"{_LARGEST_LOSS} higher, {before:.3f}."
        )
