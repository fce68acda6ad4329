"""Where this folder is on PYTHONPATH, a picture that holds certain words ends every Python process that decodes it, as
defects of C libraries do."""

import collections
import io
import itertools
import os
import resource
import signal
from typing import Any

from PIL import ImageFile


def _crash() -> None:
    os.kill(os.getpid(), signal.SIGSEGV)


def _abort() -> None:
    os.abort()


def _exit() -> None:
    os._exit(3)


def _hang() -> None:
    # The interpreter's lock is never given back, and no signal handler of Python's is ever called.
    collections.deque(itertools.repeat(None), maxlen=0)


def _take_memory() -> None:
    if resource.getrlimit(resource.RLIMIT_AS)[0] == resource.RLIM_INFINITY:
        os.kill(os.getpid(), signal.SIGKILL)  # as the system does
    held = []
    while True:
        held.append(bytearray(2**26))


DEADLY = {b"!crash!": _crash, b"!abort!": _abort, b"!exit!": _exit, b"!hang!": _hang, b"!memory!": _take_memory}
_load = ImageFile.ImageFile.load


def _deadly_load(self: ImageFile.ImageFile) -> Any:
    data = self.fp.getvalue() if isinstance(self.fp, io.BytesIO) else b""
    for words, act in DEADLY.items():
        if words in data:
            act()
    return _load(self)


ImageFile.ImageFile.load = _deadly_load  # type: ignore[method-assign]
