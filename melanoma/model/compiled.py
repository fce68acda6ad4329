"""The compiled form of a model: its networks in integers of 8 bits, which OpenVINO computes on CPUs.

It needs no TensorFlow. `melanoma.training.quantize` makes it. Its probabilities are not those of the TensorFlow form:
it has a version, a calibration and thresholds of its own.
"""

import io
import sys
import threading
import zipfile
from typing import Any

import numpy as np

from melanoma.errors import InputError
from melanoma.model.outputs import Outputs, finite, orientations

FORM = "int8"
FILE = "compiled/network.zip"
"""Where a bundle has it: the two files of OpenVINO's intermediate representation, compressed."""

_GRAPH, _WEIGHTS = "network.xml", "network.bin"
_LARGEST = 2**28  # bytes of each, unpacked


class QuantizedNetwork:
    """A model's networks in OpenVINO: pictures to `Outputs`. Usable by several threads, one at a time.

    An image is computed by itself, its orientations together: what it gives does not depend on its neighbours.

    Args:
        compiled: The content of `FILE`.
        flips: How many of `orientations`, as it was compiled for.
        threads: Cores that it may use; None: all that this process may.
        name: What an error calls the model.
    """

    def __init__(
        self, compiled: bytes, flips: int = 1, threads: int | None = None, name: str = "The compiled model"
    ) -> None:
        graph, weights = unpacked(compiled)
        core = openvino().Core()
        try:
            model = core.read_model(graph, weights)
            # Float32 where it is not int8, as not every CPU has bfloat16; and not on one core fixed beforehand, which
            # the workers of a node would all choose.
            settings: dict[str, Any] = {
                "INFERENCE_PRECISION_HINT": "f32",
                "NUM_STREAMS": 1,
                "ENABLE_CPU_PINNING": False,
                **({} if threads is None else {"INFERENCE_NUM_THREADS": threads}),
            }
            self._request = core.compile_model(model, "CPU", settings).create_infer_request()
        except RuntimeError as error:
            raise InputError(
                f"{name} cannot be used in its compiled form ({type(error).__name__} of OpenVINO)."
            ) from error
        self._name = name
        self._views = orientations(np)[:flips]
        # Logits and features of each network in turn.
        widths = [int(output.shape[1]) for output in model.outputs]
        self._widths = widths[0], sum(widths[1::2])
        self._lock = threading.Lock()

    def outputs(self, pixels: np.ndarray) -> Outputs:
        """Of uint8 RGB [n, size, size, 3]. Raises MelanomaError where a logit is no finite number."""
        logits, features = (np.empty((len(pixels), width), dtype=np.float32) for width in self._widths)
        with self._lock:
            for place in range(len(pixels)):
                image = pixels[place : place + 1]
                self._request.infer([np.concatenate([view(image) for view in self._views])])
                found = [tensor.data.mean(axis=0) for tensor in self._request.output_tensors]
                logits[place] = np.mean(found[::2], axis=0)
                features[place] = np.concatenate(found[1::2])
        return finite(Outputs(logits, features), self._name)

    def logits(self, pixels: np.ndarray) -> np.ndarray:
        """float32 [n, classes] of uint8 RGB [n, size, size, 3]."""
        return self.outputs(pixels).logits


def packed(graph: bytes, weights: bytes) -> bytes:
    """The content of `FILE`, of the two files of an intermediate representation; the same for the same two."""
    container = io.BytesIO()
    with zipfile.ZipFile(container, "w") as archive:
        for name, data in ((_GRAPH, graph), (_WEIGHTS, weights)):
            archive.writestr(zipfile.ZipInfo(name), data, zipfile.ZIP_LZMA)
    return container.getvalue()


def unpacked(compiled: bytes) -> tuple[bytes, bytes]:
    """Graph and weights of what `packed` made. Raises InputError for anything else, or too much of it."""
    try:
        with zipfile.ZipFile(io.BytesIO(compiled)) as archive:
            graph, weights = (_read(archive, name) for name in (_GRAPH, _WEIGHTS))
    except InputError:
        raise
    except Exception:  # zipfile alone raises six kinds, and lzma its own
        raise InputError(f"The bundle's {FILE} is no compiled network.") from None
    return graph, weights


def _read(archive: zipfile.ZipFile, name: str) -> bytes:
    with archive.open(name) as file:
        data = file.read(_LARGEST + 1)
    if len(data) > _LARGEST:
        raise InputError(f"The bundle's {FILE} is too large: its {name} has more than {_LARGEST // 2**20} MB.")
    return data


def openvino() -> Any:
    """The library without its telemetry, which would tell its makers of every import: it then finds no such package."""
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    import openvino

    return openvino
