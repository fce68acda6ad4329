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
from melanoma.scoring.progress import Progress


def reports(run: Any, unscored: Sequence[int], progress: Progress) -> Iterator[dict[str, Any]]:
    """In the place of `melanoma.scoring.pool.reports`."""
    from melanoma.scoring.shard import ShardScorer

    progress.workers = 1
    worker = ShardScorer(run.bundle, run.plan, run.config)
    for number in unscored:
        yield from worker(pa.table({"shard": [number]})).to_pylist()


@contextlib.contextmanager
def scored_in_this_process() -> Iterator[None]:
    from melanoma.scoring import pool

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ray_session, "connect", lambda: None)
        patch.setattr(ray_session, "cores", lambda: 1)
        patch.setattr(ray_session, "gpus", lambda labels: 0)
        patch.setattr(pool, "reports", reports)
        yield
