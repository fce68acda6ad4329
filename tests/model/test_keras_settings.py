"""What a user's home and environment say of Keras changes nothing, in any process that imports melanoma."""

import ast
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import melanoma
from melanoma.training import networks
from melanoma.training.config import Network

HOSTILE = {"image_data_format": "channels_first", "floatx": "float64", "epsilon": 0.01, "backend": "jax"}
PIXELS = (np.arange(2 * 32 * 48 * 3) % 256).astype(np.uint8).reshape(2, 48, 32, 3)[:, :32]

# What a worker does that is given melanoma.training.fit and loop.
SCRIPT = """
import json
import melanoma
from melanoma.training import fit, networks
from melanoma.training.config import Network
from melanoma.model.bundle import load_model, model_bytes
from melanoma.model.keras_settings import keras
import numpy as np
pixels = (np.arange(2 * 32 * 48 * 3) % 256).astype(np.uint8).reshape(2, 48, 32, 3)[:, :32]
model = networks.build(Network(width=4), 32, seed=0)
said = [keras.config.backend(), keras.config.image_data_format(), keras.config.floatx(), keras.config.epsilon()]
logits = [np.asarray(each(pixels, training=False)).tolist() for each in (model, load_model(model_bytes(model)))]
keras.config.set_image_data_format("channels_first")  # as a notebook may
again = np.asarray(networks.build(Network(width=4), 32, seed=0)(pixels, training=False)).tolist()
print(json.dumps({"said": said, "logits": [*logits, again]}))
"""


def home(folder: Path, settings: Any, **environment: str) -> dict[str, str]:
    (folder / ".keras").mkdir()
    (folder / ".keras" / "keras.json").write_text(json.dumps(settings))
    return {"HOME": str(folder), "PATH": "/usr/bin:/bin", **environment}


@pytest.mark.parametrize(
    "environment",
    [
        {"KERAS_BACKEND": "jax", "TF_USE_LEGACY_KERAS": "1", "KERAS_MAX_EPOCHS": "few"},
        pytest.param({}, marks=pytest.mark.slow),
    ],
    ids=["home and environment", "home"],
)
def test_networks_are_built_by_the_projects_own_settings(tmp_path: Path, environment: dict[str, str]) -> None:
    told = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        env=home(tmp_path, HOSTILE, **environment),
        cwd=Path(melanoma.__file__).parents[1],
        capture_output=True,
        text=True,
        check=False,
    )
    assert told.returncode == 0, told.stderr
    found = json.loads(told.stdout)
    assert found["said"] == ["tensorflow", "channels_last", "float32", 1e-7]
    expected = np.asarray(networks.build(Network(width=4), 32, seed=0)(PIXELS, training=False))
    for logits in found["logits"]:
        np.testing.assert_allclose(logits, expected, atol=1e-5)


IMPORT = """
import os
import melanoma
from melanoma.api.shared import import_tensorflow
import_tensorflow()
from keras.src.backend import config
print(config.keras_home(), os.listdir(config.keras_home()))
"""


@pytest.mark.parametrize(
    "settings",
    [
        [1],
        *(
            pytest.param(each, marks=pytest.mark.slow)
            for each in ({"floatx": "bfloat17"}, {"image_data_format": "NCHW"}, {"nnx_enabled": True})
        ),
    ],
    ids=str,
)
def test_settings_that_keras_does_not_know_are_not_read_and_weights_stay_in_their_folder(
    tmp_path: Path, settings: Any
) -> None:
    told = subprocess.run(
        [sys.executable, "-c", IMPORT],
        env=home(tmp_path, settings),
        cwd=Path(melanoma.__file__).parents[1],
        capture_output=True,
        text=True,
        check=False,
    )
    assert told.returncode == 0, told.stderr
    assert told.stdout == f"{tmp_path}/.keras ['keras.json']\n"


def test_a_folder_of_weights_that_is_named_is_named_to_workers_as_well(tmp_path: Path) -> None:
    """A child inherits what its parent has changed."""
    child = "import os, melanoma; print(os.environ['MELANOMA_KERAS_HOME'], os.environ['KERAS_HOME'])"
    script = f"import melanoma, subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}], check=True)"
    told = subprocess.run(
        [sys.executable, "-c", script],
        env={"KERAS_HOME": str(tmp_path), "PATH": "/usr/bin:/bin"},
        cwd=Path(melanoma.__file__).parents[1],
        capture_output=True,
        text=True,
        check=True,
    )
    assert told.stdout == f"{tmp_path} /dev/null/keras\n"


def test_keras_is_imported_with_its_settings_everywhere() -> None:
    """The one place is of use only where it is the only one."""
    importing = {
        path.name
        for path in Path(str(melanoma.__file__)).parent.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        for name in (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [node.module or ""]
            if isinstance(node, ast.ImportFrom)
            else []
        )
        if name.partition(".")[0] == "keras"
    }
    assert importing == {"keras_settings.py"}
