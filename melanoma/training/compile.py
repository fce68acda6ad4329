"""The compiled form of a bundle that exists, calibrated and measured on the catalog that the model was trained on."""

from collections.abc import Callable, Sequence

import pandas as pd
from pydantic import ValidationError

from melanoma import ray_session, storage
from melanoma.catalog import schema
from melanoma.errors import InputError
from melanoma.model import bundle as bundles
from melanoma.model.bundle import Bundle
from melanoma.model.predictor import CompiledNetwork
from melanoma.training import others, quantize
from melanoma.training.config import TrainConfig
from melanoma.training.data import DevelopmentSet, development_rows
from melanoma.training.input import cache_images
from melanoma.training.train import calibrate, write_with_card


def compile_bundle(
    uri: str | None, catalog: str, out: str, say: Callable[[str], None], folders: Sequence[str] | None = None
) -> Bundle:
    """Write a bundle again, with a compiled form beside what it has: a training with `compile: int8` writes the same.

    Args:
        uri: The bundle; None: the reference bundle.
        catalog: The catalog that its model was trained on.
        out: Where the new one is written: a folder or an s3:// URI.
        say: Given one line a step.
        folders: Those of pictures that are no dermoscopy; None: those of the training.

    Returns:
        The bundle that was written.

    Raises:
        InputError: The bundle or the catalog cannot be used, or the catalog is another one.
        DisagreementError: The compiled form is another classifier than the network: nothing is written.
    """
    quantize.check_installed()
    manifest, files = bundles.load_files(uri)
    frame = schema.read(catalog)
    _refuse_another_catalog(manifest.training.catalog_fingerprint, frame, catalog)
    given = {"catalog": catalog, "out": out, **({} if folders is None else {"others": tuple(folders)})}
    try:
        config = TrainConfig.model_validate({**manifest.training.config, **given})
    except ValidationError as error:
        raise InputError(
            f"The bundle was trained by another version of this program, whose {error.errors()[0]['loc'][0]} this one "
            "does not know: compile it with that version, or train anew."
        ) from None
    storage.check_writable(out)
    draft = manifest.draft()
    foreign = others.read(config, say) if manifest.outliers.of_features else None
    if manifest.outliers.of_features and foreign is None:
        raise InputError("The bundle's outlier score knows other pictures: name their folders with --others.")
    ray_session.connect()
    rows = development_rows(frame)
    say(f"Decoding {len(rows)} images of train and validation.")
    development = DevelopmentSet(rows, cache_images(rows["uri"].tolist(), draft.input_size))
    network = CompiledNetwork(files["model.keras"], draft.input_size, draft.test_time_flips)
    say("Compiling for CPUs and measuring that form.")
    validation = network.outputs(development.images[development.train_count :])
    draft, files = quantize.with_compiled_form(
        config,
        draft,
        files,
        frame,
        development,
        validation,
        foreign,
        lambda logits: calibrate(config, development, logits),
    )
    return write_with_card(out, draft, files)


def _refuse_another_catalog(fingerprint: str | None, frame: pd.DataFrame, catalog: str) -> None:
    if fingerprint is not None and fingerprint != schema.fingerprint(frame):
        raise InputError(
            f"The catalog {catalog} is not the one that the model was trained on: images that it has not seen are to "
            "set its thresholds, and this one may call others so."
        )
