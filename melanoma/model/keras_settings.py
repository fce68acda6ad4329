"""Keras with this project's settings, whatever the user's home says: import ``keras`` from here and nowhere else.

Keras reads ``~/.keras/keras.json`` when it is imported. With ``"image_data_format": "channels_first"`` there, the rows
of a picture would be taken for its channels, and nothing would say so. The backend is settled in `melanoma`, by
environment variables, as it has to be before anything imports Keras.
"""

import os

from melanoma.errors import InputError

__all__ = ["apply", "keras"]

try:
    import keras
except Exception as error:  # keras.json holds what Keras does not know, and asserts
    raise InputError(
        f"Keras cannot be imported: {str(error) or type(error).__name__} Check keras.json in "
        f"{os.environ.get('KERAS_HOME') or '~/.keras'}; it may "
        "be deleted."
    ) from None

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
