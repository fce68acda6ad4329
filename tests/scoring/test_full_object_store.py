"""What a night does where Ray's object store is full, and the disk on which it would put what does not fit, too."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import ray

from melanoma import config, ray_session
from melanoma.scoring.config import ScoreConfig
from melanoma.scoring.run import score
from tests.support.shared_ray import SharedRay

STORE = 80 * 2**20  # bytes, about the least that Ray takes

pytestmark = pytest.mark.slow  # a Ray of its own


@pytest.fixture
def full_object_store(tmp_path: Path, shared_ray: SharedRay) -> Iterator[None]:
    full = {"local_fs_capacity_threshold": 0.0, "local_fs_monitor_interval_ms": 50}  # any disk counts as full
    spilled = tmp_path / "spilled"
    with shared_ray.set_aside(), pytest.MonkeyPatch.context() as patch:
        where = {"object_store_memory": STORE, "object_spilling_directory": str(spilled)}
        patch.setattr(ray_session, "STARTED_HERE", {**ray_session.STARTED_HERE, **where, "_system_config": full})
        ray_session.connect()
        try:
            # Ray spills to a disk that counts as full all the same; to a file in the folder's place it cannot.
            spilled.rmdir()
            spilled.write_bytes(b"")
            held = [ray.put(np.zeros(STORE // 10, np.uint8)) for _ in range(9)]
            with pytest.raises(ray.exceptions.OutOfDiskError):
                ray.put(np.zeros(STORE // 4, np.uint8))
            yield
            with pytest.raises(ray.exceptions.OutOfDiskError):
                ray.put(np.zeros(STORE // 4, np.uint8))
            del held
        finally:
            spilled.unlink()
            ray_session.disconnect()


def test_a_run_continues(
    full_object_store: None, tmp_path: Path, lesion: Callable[..., bytes], bundle_path: Path
) -> None:
    (tmp_path / "archive").mkdir()
    for seed in range(12):
        (tmp_path / "archive" / f"{seed}.jpg").write_bytes(lesion(seed=seed))
    places = {"archive": str(tmp_path / "archive"), "out": str(tmp_path / "out"), "bundle": str(bundle_path)}
    chosen = config.load(ScoreConfig, None, **places, shard_size=4)
    assert score(chosen, say=lambda _: None).record.counts.scored == 12
