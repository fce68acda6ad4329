"""melanoma: trains a CNN on ISIC skin images and scores image archives for melanoma, on a Ray cluster.

The functions and classes of `melanoma.api` are here as well, for notebooks: ``import melanoma as m``. They are imported
when they are first used, as are the libraries that they need.
"""

import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from melanoma.api import (
        EvaluationResult,
        Explanation,
        ScoringResult,
        TrainedModel,
        alerts,
        build_catalog,
        evaluate,
        load,
        score,
        split_catalog,
        train,
    )

    __version__: str

__all__ = [
    "EvaluationResult",
    "Explanation",
    "ScoringResult",
    "TrainedModel",
    "__version__",
    "alerts",
    "build_catalog",
    "evaluate",
    "load",
    "score",
    "split_catalog",
    "train",
]

# Read when TensorFlow and Keras are first imported, in every process of a cluster, so set before anything of ours is.
# What else Keras would read of a user's environment is dropped, and keras.json of their home is not read: there is no
# such folder, and melanoma.model.keras_settings gives Keras its own back, for the weights that it keeps there.
if os.environ.get("KERAS_HOME") != "/dev/null/keras":  # else set by a parent of this process
    os.environ["MELANOMA_KERAS_HOME"] = os.environ.get("KERAS_HOME") or "~/.keras"
for _name in [name for name in os.environ if name.startswith("KERAS_")]:
    del os.environ[_name]
os.environ["KERAS_HOME"] = "/dev/null/keras"
os.environ.pop("TF_USE_LEGACY_KERAS", None)
os.environ["KERAS_BACKEND"] = "tensorflow"
os.environ["RAY_TRAIN_V2_ENABLED"] = "1"  # the training is written for Ray Train's second version
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
# By default the first process takes all of a GPU's memory, and the next has none.
os.environ.setdefault("TF_FORCE_GPU_ALLOW_GROWTH", "true")


if not TYPE_CHECKING:  # or a type checker would take any name for one of this package

    def __getattr__(name: str) -> Any:
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        if name == "__version__":
            from melanoma.version import program_version  # takes half as long as all of Python to start

            value = program_version()
        else:
            from melanoma import api

            value = getattr(api, name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return __all__
