"""Silence for the C++ parts of libraries, whose first log lines no setting can stop."""

import contextlib
import os
from collections.abc import Iterator


@contextlib.contextmanager
def native_stderr() -> Iterator[None]:
    """Whatever is written to file descriptor 2 inside is dropped. Exceptions are not: they carry their own message."""
    stderr, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
        os.close(nowhere)
