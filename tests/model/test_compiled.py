"""The compiled form: a model of its own, which needs no TensorFlow and no network."""

import dataclasses
import io
import json
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from melanoma import taxonomy
from melanoma.errors import InputError
from melanoma.imaging.decode import decode
from melanoma.model import bundle as bundles
from melanoma.model import compiled
from melanoma.model.bundle import Bundle
from melanoma.model.compiled import QuantizedNetwork
from melanoma.model.form import NetworkForm
from melanoma.model.predictor import CompiledNetwork, Predictor, calibrated
from melanoma.training.quantize import quantized

_MELANOMA = taxonomy.CODES.index(taxonomy.MELANOMA)


@pytest.fixture(scope="module")
def both(compiled_bundle_path: Path) -> Bundle:
    return bundles.load(str(compiled_bundle_path))


@pytest.fixture(scope="module")
def pixels(lesions: Path) -> np.ndarray:
    return np.stack([decode(path.read_bytes(), 32).pixels for path in sorted(lesions.rglob("*.jpg"))])


@pytest.mark.parametrize(
    ("network", "on_gpus", "is_compiled"),
    [("auto", False, True), ("auto", True, False), ("tensorflow", False, False), ("compiled", False, True)],
)
def test_the_form_is_the_one_that_is_wanted(
    both: Bundle, network: NetworkForm, on_gpus: bool, is_compiled: bool
) -> None:
    used = both.in_form(network, on_gpus)
    assert used.is_compiled == is_compiled
    assert used.version == both.version + ("-int8" if is_compiled else "")
    assert used.manifest.calibration.temperature == (0.4 if is_compiled else 0.5)
    assert used.manifest.outliers == both.manifest.outliers  # the other pictures were not known to either form


def test_a_form_that_cannot_be_had_is_refused(bundle: Bundle, both: Bundle) -> None:
    assert bundle.in_form("auto") == bundle
    with pytest.raises(InputError, match=r"no compiled form: make it with `melanoma compile`"):
        bundle.in_form("compiled")
    with pytest.raises(InputError, match="for CPUs: set gpus to 0"):
        both.in_form("compiled", on_gpus=True)


def test_it_is_another_model_that_sees_the_same(both: Bundle, pixels: np.ndarray) -> None:
    ours, theirs = Predictor(both.in_form("compiled")), Predictor(both)
    found, wanted = ours.outputs(pixels), theirs.outputs(pixels)
    assert found.features.shape == wanted.features.shape
    assert found.logits.dtype == found.features.dtype == np.float32
    assert np.corrcoef(found.logits.ravel(), wanted.logits.ravel())[0, 1] > 0.99
    assert np.corrcoef(found.features.ravel(), wanted.features.ravel())[0, 1] > 0.99
    assert not np.array_equal(found.logits, wanted.logits)
    np.testing.assert_array_equal(ours.probabilities(pixels), calibrated(found.logits, 0.4))
    assert set(ours.predict(pixels)["model_version"]) == {f"{both.version}-int8"}


@pytest.mark.parametrize("threads", [1, 2])
def test_neighbours_and_threads_change_no_bit(both: Bundle, pixels: np.ndarray, threads: int) -> None:
    form = both.in_form("compiled")
    alone = [Predictor(form, batch_size=1, threads=1).logits(image[None])[0] for image in pixels[:6]]
    order = np.random.default_rng(0).permutation(len(pixels))
    together = Predictor(form, threads=threads).logits(pixels[order])
    np.testing.assert_array_equal(together[np.argsort(order)][:6], alone)
    assert np.ptp(together[:, _MELANOMA]) > 0.01


def test_orientations_are_averaged(bundle: Bundle, pixels: np.ndarray) -> None:
    network = quantized(bundle.model, 8, pixels[::8])
    found = QuantizedNetwork(network, 8).outputs(pixels)
    turned = QuantizedNetwork(network, 8).outputs(np.ascontiguousarray(np.rot90(pixels, axes=(1, 2))))
    np.testing.assert_allclose(turned.logits, found.logits, atol=1e-4)
    wanted = CompiledNetwork(bundle.model, 32, 8).outputs(pixels)
    assert np.corrcoef(found.logits.ravel(), wanted.logits.ravel())[0, 1] > 0.99


def test_no_images_give_no_rows(both: Bundle) -> None:
    outputs = Predictor(both.in_form("compiled")).outputs(np.zeros((0, 32, 32, 3), np.uint8))
    assert outputs.logits.shape == (0, 9)


def test_a_worker_needs_no_tensorflow_and_no_network(
    compiled_bundle_path: Path, program_environment: dict[str, str]
) -> None:
    code = """
import socket, sys
def refuse(*_): raise AssertionError("the network was asked for something")
socket.socket.connect = socket.getaddrinfo = refuse
import numpy as np
from melanoma.model import bundle
from melanoma.model.predictor import Predictor
from melanoma.scoring.shard import ShardScorer
form = bundle.load(sys.argv[1]).in_form("auto")
print(Predictor(form, threads=1).predict(np.zeros((2, 32, 32, 3), np.uint8))["model_version"][0])
print(*sorted(name for name in ("tensorflow", "keras", "openvino_telemetry", "nncf") if sys.modules.get(name)))
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(compiled_bundle_path)],
        env=program_environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.splitlines() == [bundles.load(str(compiled_bundle_path)).version + "-int8", ""]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no compiled network"),
        (b"PK\x05\x06" + bytes(18), "no compiled network"),
        (compiled.packed(b"<net/>", b""), "cannot be used in its compiled form"),
        (compiled.packed(b"no graph", b"weights"), "cannot be used in its compiled form"),
    ],
)
def test_what_is_no_network_is_refused(both: Bundle, content: bytes, message: str) -> None:
    broken = dataclasses.replace(both.in_form("compiled"), compiled=content)
    with pytest.raises(InputError, match=message):
        Predictor(broken)


def test_a_small_file_does_not_fill_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled, "_LARGEST", 2**20)
    bomb = io.BytesIO()
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_LZMA) as archive:
        archive.writestr("network.xml", bytes(2**20 + 1))
        archive.writestr("network.bin", b"")
    assert len(bomb.getvalue()) < 2**12
    with pytest.raises(InputError, match=r"network.xml has more than 1 MB"):
        compiled.unpacked(bomb.getvalue())


def test_a_bundle_without_the_file_of_its_form_is_not_complete(compiled_bundle_path: Path, tmp_path: Path) -> None:
    folder = tmp_path / "bundle"
    shutil.copytree(compiled_bundle_path, folder)
    (folder / compiled.FILE).write_bytes(b"other")
    with pytest.raises(InputError, match=r"its file compiled/network.zip was changed"):
        bundles.load(str(folder))
    (folder / compiled.FILE).unlink()
    with pytest.raises(InputError, match=r"its file compiled/network.zip cannot be read"):
        bundles.load(str(folder))
    tree = json.loads((folder / "bundle.json").read_text())
    assert tree["compiled"]["form"] == "int8"
    assert compiled.FILE in tree["files"]
