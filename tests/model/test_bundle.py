import hashlib
import io
import json
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from melanoma import storage, taxonomy
from melanoma.errors import InputError
from melanoma.imaging.decode import PREPROCESSING
from melanoma.model import bundle as bundles
from melanoma.model.bundle import Bundle
from melanoma.model.manifest import Draft


@pytest.fixture
def copy(bundle_path: Path, tmp_path: Path) -> Path:
    """A copy of the bundle that may be spoiled."""
    return Path(shutil.copytree(bundle_path, tmp_path / "bundle"))


def refusal(path: Path | str) -> str:
    """The sentence that a bundle is refused with."""
    with pytest.raises(InputError) as caught:
        bundles.load(str(path))
    assert caught.value.exit_code == 2
    assert str(path) in str(caught.value)
    return str(caught.value)


def rewrite(folder: Path, **changes: Any) -> str:
    """Write a manifest with other values whose digest is right; a value of None takes the key away."""
    manifest = json.loads((folder / "bundle.json").read_bytes())
    manifest.pop("model_version")
    manifest |= changes
    manifest = {key: value for key, value in manifest.items() if value is not None}
    version = hashlib.sha256((json.dumps(manifest, indent=2, sort_keys=True) + "\n").encode()).hexdigest()[:16]
    text = json.dumps({"model_version": version, **manifest}, indent=2, sort_keys=True) + "\n"
    (folder / "bundle.json").write_text(text)
    return version


# --- the folder ------------------------------------------------------------------------------------------------------


def test_a_bundle_says_what_it_is(bundle: Bundle, bundle_path: Path) -> None:
    manifest = json.loads((bundle_path / "bundle.json").read_bytes())
    assert manifest == bundle.manifest.to_json()
    assert manifest["schema"] == 1
    assert manifest["preprocessing"] == PREPROCESSING
    assert manifest["classes"] == list(taxonomy.CODES)
    files = {path.relative_to(bundle_path).as_posix() for path in bundle_path.rglob("*") if path.is_file()}
    assert files == {*manifest["files"], "bundle.json"}
    for name, digest in manifest["files"].items():
        assert hashlib.sha256((bundle_path / name).read_bytes()).hexdigest() == digest
    assert bundle.version == manifest["model_version"]
    assert bundle.input_size == 32
    assert 0 < bundle.thresholds.review < bundle.thresholds.urgent < 1
    assert bundle.model == (bundle_path / "model.keras").read_bytes()


def test_the_version_is_that_of_the_contents_and_not_of_the_place(bundle: Bundle, copy: Path) -> None:
    assert bundles.load(str(copy)) == bundle
    assert bundles.load(f"{copy}/") == bundle
    assert bundles.load(f"file://{copy}") == bundle


def test_the_version_changes_with_anything(bundle: Bundle) -> None:
    tree = bundle.manifest.draft().to_json()
    files = {"model.keras": b"model", "training_images.parquet": b"images"}

    def version(files: dict[str, bytes] = files, **changes: Any) -> str:
        return bundles.seal(Draft.model_validate(tree | changes), files).version

    sealed = [
        version(),
        version(input_size=33),
        version(thresholds={"review": 0.25, "urgent": 0.5}),
        version(thresholds={"review": np.nextafter(0.25, 1), "urgent": 0.5}),
        version(metrics={"n": 4}),
        version(more=None),
        version({**files, "model.keras": b"modeL"}),
        version({**files, "training_images.parquet": b""}),
        version({**files, "evaluation/metrics.json": b"{}"}),
    ]
    assert len(set(sealed)) == len(sealed)
    # The order in which things are named is no content.
    reordered = Draft.model_validate(dict(reversed(tree.items())))
    assert bundles.seal(reordered, dict(reversed(files.items()))).version == sealed[0]


def test_every_changed_byte_is_noticed(copy: Path) -> None:
    generator = np.random.default_rng(0)
    for path in sorted(path for path in copy.rglob("*") if path.is_file()):
        good = path.read_bytes()
        positions = {0, len(good) - 1, *generator.integers(0, len(good), 60).tolist()}
        for position in sorted(positions):
            spoilt = bytearray(good)
            spoilt[position] ^= int(generator.integers(1, 256))
            path.write_bytes(spoilt)
            assert "is damaged" in refusal(copy)
        for other in (good + b"\n", good[:-1], b""):
            path.write_bytes(other)
            assert "is damaged" in refusal(copy)
        path.write_bytes(good)
    bundles.load(str(copy))


def test_every_missing_file_is_named(copy: Path) -> None:
    for name in ("model.keras", "training_images.parquet", "evaluation/metrics.json"):
        (copy / name).rename(copy / "aside")
        assert f"its file {name} cannot be read" in refusal(copy)
        (copy / "aside").rename(copy / name)
    (copy / "bundle.json").unlink()
    assert "it holds no bundle.json" in refusal(copy)


def test_what_is_no_bundle(tmp_path: Path) -> None:
    assert "is not a bundle" in refusal(tmp_path)
    assert "is not a bundle" in refusal(tmp_path / "none")
    (tmp_path / "file").write_bytes(b"")
    assert "is not a bundle" in refusal(tmp_path / "file")
    for content in (b"", b"{}", b"[]", b"null", b"\xff", b"{" * 9, b"[" * 100_000, b'{"model_version": "x"}'):
        (tmp_path / "bundle.json").write_bytes(content)
        assert "its bundle.json was changed" in refusal(tmp_path)
    (tmp_path / "bundle.json").unlink()
    (tmp_path / "bundle.json").mkdir()
    assert "cannot be read" in refusal(tmp_path)


@pytest.mark.parametrize("change", [{"schema": 2}, {"schema": "1"}, {"preprocessing": "crop-1"}])
def test_a_bundle_of_another_program_is_refused(copy: Path, change: dict[str, Any]) -> None:
    rewrite(copy, **change)
    sentence = refusal(copy)
    assert "another version of this program" in sentence
    assert str(next(iter(change.values()))) in sentence


def test_a_bundle_with_an_outlier_model_of_an_earlier_version_is_refused(copy: Path) -> None:
    rewrite(copy, outliers={"mean": [0.0], "precision": [[1.0]], "scale": 1.0})
    assert "made by an earlier version of this program" in refusal(copy)


def test_other_classes_are_refused(copy: Path) -> None:
    rewrite(copy, classes=["melanoma", "nevus"])
    assert "other classes" in refusal(copy)


@pytest.mark.parametrize(
    "key", ["schema", "preprocessing", "classes", "input_size", "calibration", "thresholds", "outliers"]
)
def test_a_sealed_manifest_that_lacks_something_is_refused(copy: Path, key: str) -> None:
    rewrite(copy, **{key: None})
    assert f"names no {key}" in refusal(copy)


def test_a_sealed_manifest_must_name_the_model(copy: Path) -> None:
    files = json.loads((copy / "bundle.json").read_bytes())["files"]
    for missing in ("model.keras", "training_images.parquet"):
        rewrite(copy, files={name: digest for name, digest in files.items() if name != missing})
        assert f"names no {missing}" in refusal(copy)
    rewrite(copy, files=["model.keras"])
    assert "is damaged" in refusal(copy)


def test_a_bundle_travels_through_object_storage(bundle: Bundle, bundle_path: Path, bucket: str) -> None:
    files = {name: (bundle_path / name).read_bytes() for name in bundle.manifest.files}
    uri = f"s3://{bucket}/models/a b#1"
    assert bundles.write(uri, bundle.manifest.draft(), files) == bundle
    assert bundles.load(f"{uri}/") == bundle
    storage.write_bytes(f"{uri}/evaluation/metrics.json", b"[]")
    assert "evaluation/metrics.json was changed" in refusal(uri)
    assert "is not a bundle" in refusal(f"s3://{bucket}/none")
    assert "is not a bundle" in refusal("s3://no-such-bucket/bundle")


def test_half_a_bundle_is_none(bundle: Bundle, bundle_path: Path, tmp_path: Path) -> None:
    """The manifest is written last: a writer that dies leaves something that is not read."""
    (tmp_path / "b" / "training_images.parquet").mkdir(parents=True)  # where a file should go
    with pytest.raises(IsADirectoryError):
        bundles.write(
            str(tmp_path / "b"), bundle.manifest.draft(), {"model.keras": b"", "training_images.parquet": b""}
        )
    assert (tmp_path / "b" / "model.keras").exists()
    assert "is not a bundle" in refusal(tmp_path / "b")


# --- the model -------------------------------------------------------------------------------------------------------


def test_a_model_makes_the_round_trip(bundle: Bundle) -> None:
    model = bundles.load_model(bundle.model)
    reloaded = bundles.load_model(bundles.model_bytes(model))
    for before, after in zip(model.get_weights(), reloaded.get_weights(), strict=True):
        np.testing.assert_array_equal(before, after)


@pytest.mark.parametrize("half_kernels", [False, True])
def test_the_same_network_is_the_same_file_whenever_it_is_saved(bundle: Bundle, half_kernels: bool) -> None:
    data = bundles.model_bytes(bundles.load_model(bundle.model), half_kernels)
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        assert {entry.date_time for entry in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}
        assert json.loads(archive.read("metadata.json"))["date_saved"] is None


def test_kernels_of_half_precision_make_half_the_file_and_the_same_network(bundle: Bundle) -> None:
    model = bundles.load_model(bundle.model)
    data = bundles.model_bytes(model, half_kernels=True)
    assert len(data) < 0.75 * len(bundles.model_bytes(model))  # of this small one, much is no weight
    for before, after in zip(model.get_weights(), bundles.load_model(data).get_weights(), strict=True):
        assert after.dtype == np.float32
        exact = before if before.ndim < 2 else before.astype(np.float16).astype(np.float32)
        np.testing.assert_array_equal(after, exact)


def test_a_kernel_too_large_for_half_precision_stays_as_it_is(bundle: Bundle) -> None:
    model = bundles.load_model(bundle.model)
    kernel = next(each for each in model.weights if len(each.shape) > 1)
    kernel.assign(np.full(kernel.shape, 1e5, np.float32))
    reloaded = bundles.load_model(bundles.model_bytes(model, half_kernels=True))
    for before, after in zip(model.get_weights(), reloaded.get_weights(), strict=True):
        np.testing.assert_allclose(after, before, rtol=1e-3, atol=1e-6)


def with_config(model: bytes, change: Callable[[dict[str, Any]], Any]) -> bytes:
    """The .keras file with another config.json: what `change` makes of the parsed one."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(model)) as source, zipfile.ZipFile(buffer, "w") as target:
        for name in source.namelist():
            data = source.read(name)
            if name == "config.json":
                data = json.dumps(change(json.loads(data))).encode()
            target.writestr(name, data)
    return buffer.getvalue()


def replacing_layer(node: dict[str, Any]) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """Puts `node` in the place of the layer after the input."""

    def change(config: dict[str, Any]) -> dict[str, Any]:
        layer = config["config"]["layers"][1]
        config["config"]["layers"][1] = {"name": layer["name"], "inbound_nodes": layer["inbound_nodes"], **node}
        return config

    return change


def as_activation(node: dict[str, Any]) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """Puts `node` where the last layer names its activation."""

    def change(config: dict[str, Any]) -> dict[str, Any]:
        config["config"]["layers"][-1]["config"]["activation"] = node
        return config

    return change


def hostile_nodes(folder: Path) -> dict[str, dict[str, Any]]:
    call = {"args": [f"touch {folder}/ran"], "kwargs": {}}
    return {
        "os.system": {"module": "os", "class_name": "system", "config": call, "registered_name": None},
        "posix.system": {"module": "posix", "class_name": "function", "config": "system", "registered_name": "system"},
        "subprocess.Popen": {"module": "subprocess", "class_name": "Popen", "config": call},
        "builtins.eval": {"module": "builtins", "class_name": "function", "config": "eval", "registered_name": "eval"},
        "module beside Keras": {"module": "kerasx.layers", "class_name": "Dense", "config": {"units": 3}},
        "Lambda": {
            "module": "keras.layers",
            "class_name": "Lambda",
            "config": {"name": "x", "function": {"class_name": "__lambda__", "config": {"code": "4wAA"}}},
        },
        "__lambda__": {"class_name": "__lambda__", "config": {"code": "4wAA", "defaults": None, "closure": None}},
        "get_file": {"module": "keras.utils", "class_name": "function", "config": "get_file"},
        "unsafe mode": {"module": "keras.config", "class_name": "enable_unsafe_deserialization", "config": {}},
        "SavedModel": {
            "module": "keras.layers",
            "class_name": "TFSMLayer",
            "config": {"name": "x", "filepath": str(folder), "call_endpoint": "serve"},
        },
        "vocabulary file": {
            "module": "keras.layers",
            "class_name": "StringLookup",
            "config": {"name": "x", "vocabulary": "/etc/passwd"},
        },
        "torch": {"module": "keras.layers", "class_name": "TorchModuleWrapper", "config": {"module": "gASVAA=="}},
        "dotted": {"module": "keras.src.saving.serialization_lib.os", "class_name": "system", "config": call},
    }


@pytest.mark.parametrize("place", [replacing_layer, as_activation])
@pytest.mark.parametrize("name", hostile_nodes(Path("/")))
def test_no_code_comes_with_a_model(
    bundle: Bundle, tmp_path: Path, name: str, place: Callable[..., Callable[[dict[str, Any]], dict[str, Any]]]
) -> None:
    hostile = with_config(bundle.model, place(hostile_nodes(tmp_path)[name]))
    with pytest.raises(InputError, match=r"which is not a layer of Keras|cannot be built"):
        bundles.load_model(hostile)
    assert list(tmp_path.iterdir()) == []


def test_a_lambda_layer_as_keras_writes_it_is_refused() -> None:
    import keras

    inputs = keras.Input((32, 32, 3), dtype="uint8")
    outputs = keras.layers.Lambda(lambda x: x + 1, output_shape=(32, 32, 3))(inputs)
    model = bundles.model_bytes(keras.Model(inputs, outputs))
    with pytest.raises(InputError, match=r"keras\.layers\.Lambda, which is not a layer of Keras"):
        bundles.load_model(model)


def test_a_file_that_is_no_model_is_refused(bundle: Bundle) -> None:
    cut = bundle.model[: len(bundle.model) // 2]
    for data in (b"", b"PK\5\6" + bytes(18), cut, b"\x89HDF\r\n\x1a\n" + bytes(100)):
        with pytest.raises(InputError, match="is not a Keras 3 model"):
            bundles.load_model(data)
    configs: list[Any] = [{}, [], None, "text", {"class_name": "Nothing"}, {"config": {}}]
    for config in configs:
        other = with_config(bundle.model, lambda _: config)  # noqa: B023
        with pytest.raises(InputError, match=r"cannot be built"):
            bundles.load_model(other)


def test_weights_that_do_not_fit_are_refused(bundle: Bundle) -> None:
    def wider(config: dict[str, Any]) -> dict[str, Any]:
        config["config"]["layers"][-1]["config"]["units"] += 1
        return config

    with pytest.raises(InputError, match="cannot be built"):
        bundles.load_model(with_config(bundle.model, wider))
