"""melanoma: trains a CNN on ISIC skin images and scores image archives for melanoma, on a Ray cluster."""

import os
from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("melanoma")
except PackageNotFoundError:  # run from a working directory that `ray job submit` uploaded
    __version__ = "0.0.0+source"

# Read when TensorFlow and Keras are first imported, in every process of a cluster, so set before anything of ours is.
os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
