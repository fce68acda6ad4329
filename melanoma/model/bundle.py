"""A trained model as a directory: write it, verify it, load it.

    bundle/
      model.keras               uint8 RGB [batch, size, size, 3] to logits
      training_images.parquet   what it was trained and tuned on, as digests: to notice a leak in a later evaluation
      evaluation/               the report that training ends with
      compiled/                 the form for CPUs, see melanoma.model.compiled, and its own report; where it was made
      bundle.json               all else, and the sha256 of every other file; written last

The model version is the digest of ``bundle.json``, so one changed byte anywhere is another version or a refused bundle.
Nothing in a bundle is ever run as code.
"""

import dataclasses
import hashlib
import io
import json
import tempfile
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError

from melanoma import storage, taxonomy
from melanoma.errors import InputError
from melanoma.imaging.decode import PREPROCESSING
from melanoma.model import compiled as compiled_form
from melanoma.model.form import NetworkForm
from melanoma.model.manifest import Draft, Manifest, Thresholds
from melanoma.model.outliers import OutlierModel
from melanoma.storage import Store

REFERENCE = Path(__file__).parents[1] / "reference"
"""The bundle that comes with the program, and is used where none is named. A checkout may lack it."""

MEMBER = "member_"
"""What the networks of an ensemble are called, with their number."""

SCHEMA = 1
_MANIFEST = "bundle.json"
_MODEL = "model.keras"
_TRAINING_IMAGES = "training_images.parquet"
_FILES = (_MODEL, _TRAINING_IMAGES)
_COMPRESSED = 4096  # bytes of weights from which on their compression saves more than its index takes
_REQUIRED = ("schema", "preprocessing", "classes", "input_size", "calibration", "thresholds", "outliers")


@dataclass(frozen=True)
class Bundle:
    """A verified bundle in memory: it travels to Ray's workers as it is."""

    manifest: Manifest
    model: bytes
    training_images: bytes
    compiled: bytes = b""  # see melanoma.model.compiled; empty: the bundle has no such form
    is_compiled: bool = False  # whether that is the form that is used, which the manifest then speaks of

    @property
    def version(self) -> str:
        """Of the form that is used: probabilities of another form are another model's."""
        version = self.manifest.model_version
        return f"{version}-{compiled_form.FORM}" if self.is_compiled else version

    def in_form(self, network: NetworkForm, on_gpus: bool = False) -> "Bundle":
        """The same model in the form that is wanted; raises InputError where it cannot be had.

        `network`: "auto" is the compiled form where the bundle has one and no GPU is used; `on_gpus`: whether any is.
        """
        if network == "compiled" and on_gpus:
            raise InputError("The compiled form of a model is for CPUs: set gpus to 0, or network to tensorflow.")
        form = self.manifest.compiled
        if network == "compiled" and form is None:
            raise InputError(
                f"The bundle of the model {self.version} has no compiled form: make it with `melanoma compile`, or set "
                "network to auto."
            )
        if form is None or network == "tensorflow" or on_gpus:
            return self
        own = {
            "calibration": form.calibration,
            "thresholds": form.thresholds,
            "outliers": self.manifest.outliers.model_copy(update={"of_features": form.of_features}),
            "metrics": form.metrics,
        }
        return dataclasses.replace(self, manifest=self.manifest.model_copy(update=own), is_compiled=True)

    @property
    def input_size(self) -> int:
        return self.manifest.input_size

    @property
    def test_time_flips(self) -> int:
        """In how many orientations an image is predicted, see melanoma.model.predictor; 1 is as it stands."""
        return self.manifest.test_time_flips

    @property
    def thresholds(self) -> Thresholds:
        """The alert thresholds on p_melanoma, `review` and `urgent`, and those on p_malignant, `malignancy`."""
        return self.manifest.thresholds


def seal(draft: Draft, files: Mapping[str, bytes]) -> Bundle:
    """The bundle in memory: with the digest of every file, and the model version derived from all of it."""
    tree = {
        "schema": SCHEMA,
        "preprocessing": PREPROCESSING,
        "classes": list(taxonomy.CODES),
        **draft.to_json(),
        "files": {name: hashlib.sha256(files[name]).hexdigest() for name in sorted(files)},
    }
    manifest = Manifest.model_validate({"model_version": _version(tree), **tree})
    return _in_memory(manifest, files)


def _in_memory(manifest: Manifest, files: Mapping[str, bytes]) -> Bundle:
    return Bundle(manifest, files[_MODEL], files[_TRAINING_IMAGES], files.get(compiled_form.FILE, b""))


def write(uri: str, draft: Draft, files: Mapping[str, bytes]) -> Bundle:
    """Write a bundle to a folder or an s3:// prefix; ``bundle.json`` last, so that half a bundle is none."""
    bundle = seal(draft, files)
    for name, data in files.items():
        storage.write_bytes(storage.join(uri, name), data)
    storage.write_bytes(storage.join(uri, _MANIFEST), _serialized(bundle.manifest.to_json()))
    return bundle


def load(uri: str | None, store: Store = storage.DEFAULT) -> Bundle:
    """Read and verify a bundle; None is the reference bundle.

    Raises InputError with what is wrong: missing, changed, or not for this code; and UnavailableError.
    """
    return _in_memory(*load_files(uri, store))


def load_files(uri: str | None, store: Store = storage.DEFAULT) -> tuple[Manifest, dict[str, bytes]]:
    """What a bundle says, and all its other files by name, as `write` takes them; raises as `load` does."""
    if uri is None:
        if not REFERENCE.exists():
            raise InputError("No bundle was named: give one with --bundle, or train one with `melanoma train`.")
        uri = str(REFERENCE)
    root = storage.normalize(uri)
    try:
        raw = store.read_bytes(storage.join(root, _MANIFEST))
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(f"{uri} is not a bundle: it holds no {_MANIFEST}. Train one with `melanoma train`.") from None
    except OSError as error:
        raise InputError(f"The bundle {uri} cannot be read: {error}") from None
    manifest = _understood(_verified(raw, uri), uri)
    files = {}
    for name, digest in manifest.files.items():
        try:
            data = store.read_bytes(storage.join(root, name))
        except OSError as error:
            raise InputError(f"The bundle {uri} is damaged: its file {name} cannot be read ({error}).") from None
        if hashlib.sha256(data).hexdigest() != digest:
            raise InputError(f"The bundle {uri} is damaged: its file {name} was changed after it was written.")
        files[name] = data
    return manifest, files


def _verified(raw: bytes, uri: str) -> dict[str, Any]:
    """The tree of a `bundle.json` whose every byte is as it was written."""
    try:
        tree = json.loads(raw)
        version = tree.pop("model_version")
        intact = version == _version(tree) and raw == _serialized({"model_version": version, **tree})
        dict(tree["files"])
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        intact = False
    if not intact:
        raise InputError(f"The bundle {uri} is damaged: its {_MANIFEST} was changed after it was written.")
    return {"model_version": version, **tree}


def _understood(tree: dict[str, Any], uri: str) -> Manifest:
    """The manifest of a tree that was made for this code."""
    needed_files = (*_FILES, *([compiled_form.FILE] if tree.get("compiled") else []))
    if missing := [k for k in _REQUIRED if k not in tree] + [
        name for name in needed_files if name not in tree["files"]
    ]:
        raise InputError(f"The bundle {uri} is not complete: its {_MANIFEST} names no {missing[0]}.")
    if tree["schema"] != SCHEMA or tree["preprocessing"] != PREPROCESSING:
        raise InputError(
            f"The bundle {uri} was made by another version of this program (schema {tree['schema']}, preprocessing "
            f"{tree['preprocessing']!r}; here {SCHEMA} and {PREPROCESSING!r}): use that version, or train anew."
        )
    needed = {name for name, field in OutlierModel.model_fields.items() if field.is_required()}
    if missing := sorted(needed - set(tree["outliers"])):
        raise InputError(
            f"The bundle {uri} was made by an earlier version of this program (its outlier model has no {missing[0]}): "
            "use that version, or train anew."
        )
    if tree["classes"] != list(taxonomy.CODES):
        raise InputError(f"The bundle {uri} has other classes than this program: {tree['classes']}.")
    try:
        return Manifest.model_validate(tree)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise InputError(
            f"The bundle {uri} cannot be used: {place} in its {_MANIFEST} is wrong ({first['msg']})."
        ) from None


def model_bytes(model: Any, half_kernels: bool = False) -> bytes:
    """A Keras model as the bytes of a .keras file.

    With `half_kernels` its weights of two and more dimensions are stored in half precision and compressed, which makes
    the file of an EfficientNet-Lite0 6.1 MB of 14. Keras computes with them in float32 again: what was rounded is at
    most one part in 2,000.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / _MODEL
        model.save(path)
        return _undated(path, half_kernels)


def _undated(path: Path, half_kernels: bool) -> bytes:
    """The same network is the same file, whenever it is saved: Keras writes the time into its metadata and its zip."""
    undated = io.BytesIO()
    with zipfile.ZipFile(path) as archive, zipfile.ZipFile(undated, "w") as written:
        for name in archive.namelist():
            content = archive.read(name)
            if name == "metadata.json":
                content = json.dumps(json.loads(content) | {"date_saved": None}).encode()
            elif half_kernels and name.endswith(".h5"):
                content = _with_half_kernels(content)
            how = zipfile.ZIP_DEFLATED if half_kernels else zipfile.ZIP_STORED
            written.writestr(zipfile.ZipInfo(name), content, how)
    return undated.getvalue()


def _with_half_kernels(weights: bytes) -> bytes:
    import h5py  # Keras needs it, and only whoever trains writes one

    made = io.BytesIO()
    with h5py.File(io.BytesIO(weights)) as full, h5py.File(made, "w") as half:
        full.visititems(lambda place, item: _copy_halved(h5py, place, item, half))
    return made.getvalue()


def _copy_halved(h5py: Any, place: str, item: Any, half: Any) -> None:
    if isinstance(item, h5py.Dataset):
        values = item[()]
        fits = values.ndim > 1 and values.dtype == np.float32 and np.abs(values).max() < np.finfo(np.float16).max
        # The high bytes of all its numbers before the low ones: these hardly compress, and those do.
        how = {"chunks": values.shape, "shuffle": True, "compression": "gzip"} if values.nbytes >= _COMPRESSED else {}
        copy = half.create_dataset(place, data=values.astype(np.float16) if fits else values, **how)
    else:
        copy = half.require_group(place)
    for name, value in item.attrs.items():
        copy.attrs[name] = value


def load_model(data: bytes) -> Any:
    """The Keras model of a .keras file, built of keras.layers only. Raises InputError for any other content."""
    from melanoma.model import keras_settings  # heavy; reading a manifest needs no TensorFlow

    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            config = json.loads(archive.read("config.json"))
        _refuse_foreign_classes(config)
    except InputError:
        raise
    except Exception:  # zipfile alone raises six kinds
        raise InputError("The bundle's model.keras is not a Keras 3 model.") from None
    keras_settings.apply()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / _MODEL
        path.write_bytes(data)
        try:
            return keras_settings.keras.saving.load_model(path, compile=False, safe_mode=True)
        except Exception as error:  # whatever Keras says of a configuration or of weights that do not fit it
            raise InputError(f"The bundle's model.keras cannot be built ({type(error).__name__}).") from error


def networks_of(model: Any) -> list[Any]:
    """The Keras networks whose mean a model is: the members of an ensemble, or itself alone."""
    return [layer for layer in model.layers if layer.name.startswith(MEMBER)] or [model]


def features_of(network: Any) -> Any:
    """A Keras network that gives its logits and its features: what its last layer of weights decides by."""
    from melanoma.model import keras_settings

    keras = keras_settings.keras
    last = next(layer for layer in reversed(network.layers) if layer.weights)
    return keras.Model(network.inputs, [network.outputs[0], keras.layers.Flatten(name="all_features")(last.input)])


def with_float_input(model: Any) -> Any:
    """The same Keras network, of float32 RGB from 0 to 255: an image of integers has no gradient."""
    network = type(model).from_config(_with_float_input(model.get_config()))
    network.set_weights(model.get_weights())
    return network


def _with_float_input(node: Any) -> Any:
    if isinstance(node, dict):
        changed = {key: _with_float_input(value) for key, value in node.items()}
        if node.get("class_name") == "InputLayer":
            changed["config"] = {**changed["config"], "dtype": "float32"}
        return changed
    return [_with_float_input(part) for part in node] if isinstance(node, list | tuple) else node


def _refuse_foreign_classes(node: Any) -> None:
    # Keras builds whatever class a configuration names; safe_mode stops only some of them (CVE-2024-3660,
    # CVE-2025-1550). A network needs Keras's own layers, initializers and policies, and no Lambda.
    if isinstance(node, dict):
        if "class_name" in node:
            module = str(node.get("module") or "keras")
            name = str(node["class_name"])
            if module.split(".")[0] not in {"keras", "builtins"} or "Lambda" in name or name == "function":
                raise InputError(f"The bundle's model.keras holds {module}.{name}, which is not a layer of Keras.")
        for value in node.values():
            _refuse_foreign_classes(value)
    elif isinstance(node, list):
        for value in node:
            _refuse_foreign_classes(value)


def _version(manifest: dict[str, Any]) -> str:
    return hashlib.sha256(_serialized(manifest)).hexdigest()[:16]


def _serialized(manifest: dict[str, Any]) -> bytes:
    return (json.dumps(manifest, indent=2, sort_keys=True, allow_nan=False) + "\n").encode()
