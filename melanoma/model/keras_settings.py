"""Keras with this project's settings, whatever the user's home says: import ``keras`` from here and nowhere else.

Keras reads ``~/.keras/keras.json`` when it is imported, as TensorFlow does. With
``"image_data_format": "channels_first"`` there, the rows of a picture would be taken for its channels, and nothing
would say so; with what Keras does not know, its import would fail. `melanoma` settles by environment variables, before
anything imports Keras, that it finds no such file, and the backend.
"""

import contextlib
import os

import keras
from keras.src.backend import config as _config

from melanoma.errors import InputError

__all__ = ["apply", "keras"]

# Pretrained weights are kept there. Keras has no public way to name it after the import.
_config._KERAS_DIR = os.path.expanduser(os.environ.get("MELANOMA_KERAS_HOME", "~/.keras"))
with contextlib.suppress(OSError):  # Keras then keeps them in /tmp
    os.makedirs(_config._KERAS_DIR, exist_ok=True)

if keras.config.backend() != "tensorflow":
    raise InputError(
        f"Keras was imported with the backend {keras.config.backend()} before melanoma was: import melanoma first, or "
        "set KERAS_BACKEND=tensorflow where this process, or its Ray, is started."
    )


def apply() -> None:
    """Settle what networks are built by. Called before each is: a notebook may have set something else since."""
    keras.config.set_image_data_format("channels_last")
    keras.config.set_floatx("float32")
    keras.config.set_epsilon(1e-7)


apply()
