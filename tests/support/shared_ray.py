"""The one Ray of a test process, which the fixture `ray_cluster` starts and the end of the tests ends."""

import contextlib
import gc
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest


class SharedRay:
    def __init__(self) -> None:
        self.node: str | None = None  # the id of its only node, while it runs

    def start(self) -> None:
        """Start it as the commands do, unless it runs."""
        if self.node is None:
            from melanoma import ray_session

            ray_session.connect()
            self.node = _nodes()[0]

    def stop(self) -> None:
        if self.node is not None:
            _shut_down()
            self.node = None

    @contextlib.contextmanager
    def set_aside(self) -> Iterator[None]:
        """No Ray runs when the block begins, and the block ends what it starts."""
        was_running = self.node is not None
        self.stop()
        try:
            yield
        finally:
            self.assert_nothing_is_left()
            if was_running:
                self.start()

    def assert_nothing_is_left(self) -> None:
        """Fail unless the only Ray is this one, whole and idle, or there is none if this one does not run."""
        running = _ray() is not None and _ray().is_initialized()
        fault = None
        if running and self.node is None:
            fault = "This leaves its Ray running."
        elif self.node is not None and not running:
            fault = "This has ended the Ray that all tests share: see `SharedRay.set_aside`."
        elif self.node is not None and _nodes() != [self.node]:
            fault = "This has put another Ray into the place of the one that all tests share."
        elif self.node is not None and not _becomes_idle():
            fault = f"This leaves actors or tasks running: of {_ray().cluster_resources()} there are {_free()} free."
        if fault:
            _shut_down()
            self.node = None
            pytest.fail(fault)


def _ray() -> Any:
    """Ray, if anything has imported it: most tests do not, and it takes seconds."""
    return sys.modules.get("ray")


def _nodes() -> list[str]:
    return [node["NodeID"] for node in _ray().nodes() if node["Alive"]]


def _free() -> dict[str, float]:
    free: dict[str, float] = _ray().available_resources()
    return free


def _becomes_idle(patience: float = 20.0) -> bool:
    """Ray gives back the cores of what has ended after a moment."""
    gc.collect()  # the traceback of an error that a test has caught may hold actors
    deadline = time.monotonic() + patience
    while _free().get("CPU") != _ray().cluster_resources()["CPU"]:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True


def _shut_down() -> None:
    _ray().shutdown()
