"""Weights in PyTorch's older file format, read without PyTorch, and without running anything that a file names.

Such a file (`torch.save` before version 1.6, torch/serialization.py `_legacy_save`) is five pickles, one after the
other: a magic number, the version of the format, facts about the machine, the tensors by name, and the keys of their
storages. After them stand the storages in the order of the keys, each as its number of elements (int64) and the
elements. In the pickles a storage is a persistent id, and a tensor a call that gives it an offset and a shape.
"""

import collections
import io
import pickle
import struct
from dataclasses import dataclass
from typing import Any

import numpy as np

from melanoma.errors import InputError

_MAGIC = 0x1950A86A20F9469CFC6C
_VERSION = 1001
_KINDS = {
    "DoubleStorage": "<f8",
    "FloatStorage": "<f4",
    "HalfStorage": "<f2",
    "LongStorage": "<i8",
    "IntStorage": "<i4",
}


@dataclass(frozen=True)
class _Storage:
    kind: str
    key: str
    count: int  # elements


@dataclass(frozen=True)
class _Tensor:
    storage: _Storage
    offset: int  # elements
    shape: tuple[int, ...]
    strides: tuple[int, ...]  # elements


def read(data: bytes, name: str) -> dict[str, np.ndarray]:
    """The tensors of a file by name, as arrays of their own.

    Args:
        data: The file.
        name: What an error calls it.

    Returns:
        The arrays, in the order of the file.

    Raises:
        InputError: The file is of another format, is damaged, or names anything that weights do not need.
    """
    try:
        return _read(data)
    # A pickle of whatever content raises nearly anything.
    except Exception as error:
        words = str(error) if isinstance(error, _Refused) else "it is damaged, or of another format"
        raise InputError(f"{name} is no file of PyTorch weights in the older format: {words}.") from None


class _Refused(pickle.UnpicklingError):
    """What a file may not hold; a phrase."""


def _read(data: bytes) -> dict[str, np.ndarray]:
    file = io.BytesIO(data)
    magic, version, _, tensors, keys = (_Unpickler(file).load() for _ in range(5))
    if magic != _MAGIC or version != _VERSION:
        raise _Refused("it has another magic number")
    storages = {tensor.storage.key: tensor.storage for tensor in tensors.values()}
    arrays = {key: _elements(file, storages[key]) for key in keys}
    return {str(name): _placed(tensor, arrays[tensor.storage.key]) for name, tensor in tensors.items()}


class _Unpickler(pickle.Unpickler):
    """Admits what weights are made of, and nothing else: `find_class` is the one way to anything that runs."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return collections.OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _rebuilt
        if module == "torch" and name in _KINDS:
            return name
        raise _Refused(f"it asks for {module}.{name}, which no weights need")

    def persistent_load(self, pid: Any) -> _Storage:
        word, kind, key, _, count, *_ = pid
        if word != "storage" or kind not in _KINDS or not isinstance(count, int):
            raise _Refused("one of its storages is not understood")
        return _Storage(kind, str(key), count)


def _rebuilt(storage: _Storage, offset: int, shape: tuple[int, ...], stride: tuple[int, ...], *_: Any) -> _Tensor:
    if not isinstance(storage, _Storage):
        raise _Refused("one of its tensors has no storage")
    return _Tensor(storage, int(offset), tuple(map(int, shape)), tuple(map(int, stride)))


def _elements(file: io.BytesIO, storage: _Storage) -> np.ndarray:
    (count,) = struct.unpack("<q", file.read(8))
    kind = np.dtype(_KINDS[storage.kind])
    data = file.read(count * kind.itemsize) if count >= 0 else b""
    if count != storage.count or len(data) != count * kind.itemsize:
        raise _Refused("it is cut short")
    return np.frombuffer(data, kind)


def _placed(tensor: _Tensor, elements: np.ndarray) -> np.ndarray:
    places = (tensor.offset, *tensor.shape, *tensor.strides)
    last = tensor.offset + sum((side - 1) * step for side, step in zip(tensor.shape, tensor.strides, strict=True))
    if min(places) < 0 or 0 in tensor.shape or last >= len(elements):
        raise _Refused("one of its tensors is larger than its storage")
    strides = [step * elements.itemsize for step in tensor.strides]
    return np.lib.stride_tricks.as_strided(elements[tensor.offset :], tensor.shape, strides).copy()
