"""Trained models: they are loaded or trained, and then they predict and explain."""

import hashlib
import io
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeAlias

from melanoma.api import shared
from melanoma.api.shared import Place, Say
from melanoma.errors import InputError

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

    from melanoma.imaging.errors import ImageError
    from melanoma.imaging.isolated import IsolatedDecoder
    from melanoma.model.bundle import Bundle
    from melanoma.model.explain import Explainer
    from melanoma.model.form import NetworkForm
    from melanoma.model.manifest import Thresholds
    from melanoma.model.predictor import Predictor
    from melanoma.training.config import TrainConfig
    from melanoma.training.plan import ClassShare

Image: TypeAlias = "Place | bytes | np.ndarray"
"""A file (a path or URI), the content of one, or pixels: uint8 RGB [h, w, 3]."""

_LONGEST_OVERLAY = 800  # pixels


def load(
    bundle: Place | None = None, operating_point: Place | None = None, network: "NetworkForm" = "auto"
) -> "TrainedModel":
    """A trained model; without a `bundle`, the reference model that comes with this package.

    Example: ``m.load().predict("lesion.jpg")``

    With an `operating_point`, a file of `melanoma threshold`, it raises images by those thresholds. `network`: the form
    of the model, "tensorflow" or "compiled"; "auto" is the compiled one where the bundle has it.

    Raises InputError where the bundle is missing, was changed, or is of another version, and where the operating point
    is of another model.
    """
    from melanoma.model import bundle as bundles
    from melanoma.model.department import at_operating_point

    uri = None if bundle is None else os.fspath(bundle)
    point = None if operating_point is None else os.fspath(operating_point)
    model = at_operating_point(bundles.load(uri).in_form(network), point)
    return TrainedModel(model, str(bundles.REFERENCE) if uri is None else uri)


def train(
    config: "TrainConfig | Place | None" = None,
    *,
    on_epoch: Callable[[dict[str, float]], None] = lambda metrics: None,
    on_distribution: "Callable[[list[ClassShare]], None]" = lambda classes: None,
    say: Say = print,
    **values: Any,
) -> "TrainedModel":
    """Train a model, choose its best epoch on validation, calibrate, measure, and write the bundle; on Ray.

    Example: ``m.train("configs/train.yaml", catalog="catalog.parquet", out="out/bundle", epochs=10)``

    Args:
        config: A configuration, or a YAML file of one such as ``configs/train.yaml``.
        on_epoch: Given the figures of each epoch.
        on_distribution: Given the classes of the training split before and after balancing.
        say: Given one line a step.
        **values: Keys of `melanoma.training.config.TrainConfig`, which override those of `config`. One key of a group
            is named with a dot: ``**{"network.width": 8}``.

    Returns:
        The trained model, ready to predict.

    Raises:
        InputError: The configuration, the catalog or the output cannot be used.
        MelanomaError: The training failed. With the same `run_name` it is resumed.
    """
    from melanoma.training.config import TrainConfig

    settings = shared.settings(TrainConfig, config, values)
    shared.import_tensorflow()
    from melanoma.training import train as training

    return TrainedModel(training.train(settings, on_epoch, say, on_distribution), settings.out)


class TrainedModel:
    """A bundle that answers: what `load` and `train` return.

    Attributes:
        bundle: Its content, a `melanoma.model.bundle.Bundle`.
        uri: Where it lies.
    """

    def __init__(self, bundle: "Bundle", uri: str) -> None:
        self.bundle = bundle
        self.uri = uri

    @property
    def version(self) -> str:
        """The model version: the digest of the bundle."""
        return self.bundle.version

    @property
    def thresholds(self) -> "Thresholds":
        """The probabilities of melanoma, `review` and `urgent`, from which an image is raised, and in `malignancy`
        those of all that is malignant, or None where that is not asked."""
        return self.bundle.thresholds

    @property
    def card(self) -> "Markdown":
        """The model card: what the model is for and not for, what it was trained on, how well it does."""
        from melanoma.evaluation.card import model_card

        return Markdown(model_card(self.bundle.manifest.to_json(), self.bundle.is_compiled))

    @property
    def metrics(self) -> "pd.DataFrame":
        """What training measured, on the split `metrics.attrs["split"]`: columns `value`, `low` and `high` (95%)."""
        return shared.figures_frame(self.bundle.manifest.metrics)

    def predict(self, images: "Image | Sequence[Image]", explain: Place | None = None) -> "pd.DataFrame":
        """Predict images, one row an image.

        Example: ``m.load().predict(["a.jpg", "s3://archive/b.dcm"])[["image_uri", "p_melanoma", "alert_level"]]``

        Args:
            images: Files (paths, s3:// URIs), contents of files (bytes), or pixels: uint8 RGB [h, w, 3], [n, h, w, 3].
            explain: A folder or s3:// URI for an overlay PNG of each image, which shows what raised the probability.

        Returns:
            `image_uri` and `content_sha256` where there are any; the columns of `melanoma.model.triage`, such as
            `p_melanoma`, `diagnosis`, `alert_level` and `alert_reason`; and `error_kind` and `error` of an image that
            cannot be read. With `explain`, `explanation_uri` and `p_melanoma_covered`, the probability without the
            marked region.

        Raises:
            InputError: An array is not such pixels, or an explanation cannot be written.
        """
        import pandas as pd

        from melanoma.model.triage import PREDICTION_FIELDS

        words = ["image_uri", "content_sha256", "error_kind", "error"]
        columns = [*words[:2], *(each.name for each in PREDICTION_FIELDS), *words[2:]]
        columns += ["explanation_uri", "p_melanoma_covered"] if explain else []
        # Words even where all of them are missing: pandas would take them for numbers.
        words.append("alert_reason")
        return pd.DataFrame(self.predict_rows(images, explain), columns=columns).astype(dict.fromkeys(words, "str"))

    def predict_rows(self, images: "Image | Sequence[Image]", explain: Place | None = None) -> list[dict[str, Any]]:
        """As `predict`, but a dictionary an image. An image that cannot be read has no prediction, and any other no
        error."""
        from melanoma.model.predictor import predict_bytes

        rows = []
        for image in _one_by_one(images):
            uri, data = _fetched(image)
            row = {"image_uri": uri, **predict_bytes(self._predictor, data, decoder=self._decoder)}
            if not isinstance(image, str | os.PathLike | bytes):
                row["content_sha256"] = None  # pixels have no file
            if explain and isinstance(data, bytes) and "error_kind" not in row:
                row |= _write_explanation(self._explanation(data, row["p_melanoma"]), data, uri, os.fspath(explain))
            rows.append(row)
        return rows

    def explain(self, image: "Image") -> "Explanation":
        """What raised the melanoma probability of one image.

        Example: ``m.load().explain("lesion.jpg")``

        Raises InputError where the image cannot be read.
        """
        from melanoma.model.predictor import predict_bytes

        _, data = _fetched(image)
        row = predict_bytes(self._predictor, data, decoder=self._decoder)
        if not isinstance(data, bytes) or "error_kind" in row:
            raise InputError(f"The image cannot be explained: {row['error']}")
        return self._explanation(data, row["p_melanoma"])

    def _explanation(self, data: bytes, p_melanoma: float) -> "Explanation":
        from melanoma import taxonomy
        from melanoma.imaging.errors import ImageError
        from melanoma.model import explain

        try:
            (frame,) = self._decoder.frames(data, self.bundle.input_size)
            picture = self._decoder.picture(data, longest=_LONGEST_OVERLAY)
        except ImageError as error:
            raise InputError(f"The image cannot be explained: {error}") from None
        pixels = frame.pixels
        heat = self._explainer.heat(pixels)
        without = explain.covered(pixels, explain.hottest(heat, len(pixels)))
        p_covered = self._predictor.probabilities(without[None])[0, taxonomy.CODES.index(taxonomy.MELANOMA)]
        overlay = explain.overlay(picture, heat, p_melanoma)
        return Explanation(overlay, heat, p_melanoma, float(p_covered))

    @cached_property
    def _predictor(self) -> "Predictor":
        if not self.bundle.is_compiled:
            shared.import_tensorflow()
        from melanoma.model.predictor import Predictor

        return Predictor(self.bundle)

    @cached_property
    def _decoder(self) -> "IsolatedDecoder":
        from melanoma.imaging.isolated import IsolatedDecoder

        return IsolatedDecoder()

    @cached_property
    def _explainer(self) -> "Explainer":
        shared.import_tensorflow()
        from melanoma.model.explain import Explainer

        return Explainer(self.bundle)

    def __repr__(self) -> str:
        return f"TrainedModel(version={self.version!r}, uri={self.uri!r})"

    def _repr_html_(self) -> str:
        manifest, metrics = self.bundle.manifest, self.bundle.manifest.metrics
        malignancy = self.thresholds.malignancy
        asked = f"; any malignancy from {malignancy.review:.1%} and {malignancy.urgent:.1%}" if malignancy else ""
        rows = {
            "bundle": self.uri,
            "created": manifest.created or "unknown",
            "input": f"{manifest.input_size} x {manifest.input_size} pixels",
            "alerts": f"review from {self.thresholds.review:.1%}, urgent from {self.thresholds.urgent:.1%}{asked}",
        }
        measured = shared.figures_html(metrics) if metrics else ""
        return shared.html_table(f"Model {self.version}", rows) + measured + "<p>Not a medical device.</p>"


class Markdown(str):
    """Text that Jupyter shows as the Markdown that it is."""

    __slots__ = ()

    def _repr_markdown_(self) -> str:
        return self


@dataclass(frozen=True, repr=False, eq=False)
class Explanation:
    """What raised the melanoma probability of an image; Jupyter shows the overlay.

    Attributes:
        overlay: A PNG of the image, with the regions that raised the probability in red.
        heat: float32 [cells, cells], 0 to 1: how much each region raised it.
        p_melanoma: The melanoma probability.
        p_melanoma_covered: The same with the reddest 15% of the picture covered.
    """

    overlay: bytes
    heat: "np.ndarray"
    p_melanoma: float
    p_melanoma_covered: float

    def __repr__(self) -> str:
        return f"Explanation(p_melanoma={self.p_melanoma:.3f}, p_melanoma_covered={self.p_melanoma_covered:.3f})"

    def _repr_png_(self) -> bytes:
        return self.overlay


def _one_by_one(images: "Image | Sequence[Image]") -> Iterator["Image"]:
    import numpy as np

    if isinstance(images, str | os.PathLike | bytes) or (isinstance(images, np.ndarray) and images.ndim == 3):
        yield images
    else:
        yield from images


def _fetched(image: "Image") -> "tuple[str | None, bytes | ImageError]":
    """The URI of an image, if it has one, and the content of its file, or why there is none."""
    from melanoma import storage
    from melanoma.imaging import load
    from melanoma.imaging.errors import ImageError

    if isinstance(image, bytes):
        return None, image
    if not isinstance(image, str | os.PathLike):
        return None, _png(image)
    uri = storage.normalize(os.fspath(image))
    try:
        return uri, load.fetch(uri)
    except ImageError as error:
        return uri, error


def _png(pixels: "np.ndarray") -> bytes:
    """Pixels as a file, so that they are decoded as any other picture is."""
    import numpy as np
    import PIL.Image

    if not isinstance(pixels, np.ndarray) or pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3:
        what = f"{pixels.dtype} {list(pixels.shape)}" if isinstance(pixels, np.ndarray) else type(pixels).__name__
        raise InputError(f"An image is {what}: give a path, a URI, bytes, or uint8 RGB [h, w, 3] or [n, h, w, 3].")
    buffer = io.BytesIO()
    PIL.Image.fromarray(pixels).save(buffer, "PNG", compress_level=0)
    return buffer.getvalue()


def _write_explanation(explanation: "Explanation", data: bytes, uri: str | None, folder: str) -> dict[str, Any]:
    from melanoma import storage, taxonomy

    name = f"{taxonomy.image_id_of(uri) if uri else 'image'}-{hashlib.sha256(data).hexdigest()[:12]}.png"
    target = storage.join(storage.normalize(folder), name)
    try:
        storage.write_bytes(target, explanation.overlay)
    except OSError as error:
        raise InputError(f"The explanation cannot be written to {folder}: {error}") from None
    return {"explanation_uri": target, "p_melanoma_covered": explanation.p_melanoma_covered}
