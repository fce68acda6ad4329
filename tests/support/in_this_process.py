"""A scoring run without Ray: what the workers do is done in this process, by the same code, one shard after the other.

For tests of what the driver decides: which run it resumes, what it plans, refuses and publishes. That Ray's workers do
the same is shown by tests/scoring/test_run.py and tests/integration/.
"""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa
import pytest

from melanoma import ray_session


class Dataset:
    """As much of Ray Data as a scoring run uses."""

    def __init__(self, tasks: Sequence[pa.Table]) -> None:
        self._tasks = tasks

    def map_batches(self, worker: type, *, fn_constructor_args: tuple[Any, ...], **_: Any) -> "Dataset":
        self._worker = worker(*fn_constructor_args)
        return self

    def iter_rows(self) -> Iterator[dict[str, Any]]:
        for task in self._tasks:
            yield from self._worker(task).to_pylist()


@contextlib.contextmanager
def scored_in_this_process() -> Iterator[None]:
    import ray.data

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ray_session, "connect", lambda: None)
        patch.setattr(ray_session, "cores", lambda: 1)
        patch.setattr(ray_session, "gpus", lambda: 0)
        patch.setattr(ray.data, "from_arrow", Dataset)
        yield
