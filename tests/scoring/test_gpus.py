"""A cluster with GPUs (here: with nodes that say so): images are decoded by CPU workers, the network is asked there."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pandas as pd
import pytest

from melanoma import config, ray_session
from melanoma.errors import InputError
from melanoma.scoring.config import ScoreConfig
from melanoma.scoring.run import Outcome, score
from tests.support.in_this_process import scored_in_this_process
from tests.support.shared_ray import SharedRay

pytestmark = pytest.mark.slow  # a Ray of its own


@pytest.fixture(scope="module")
def with_a_gpu(shared_ray: SharedRay) -> Iterator[None]:
    with shared_ray.set_aside(), pytest.MonkeyPatch.context() as patch:
        started = ray_session.STARTED_HERE
        patch.setattr(ray_session, "STARTED_HERE", {**started, "num_gpus": 1})
        ray_session.connect()
        yield
        ray_session.disconnect()


@pytest.fixture
def score_on(
    with_a_gpu: None, tmp_path: Path, lesion: Callable[..., bytes], bundle_path: Path
) -> Callable[[int | None], Outcome]:
    (tmp_path / "archive").mkdir()
    for seed in range(13):
        (tmp_path / "archive" / f"{seed}.jpg").write_bytes(lesion(seed=seed))
    (tmp_path / "archive" / "broken.jpg").write_bytes(b"no image")

    def run(gpus: int | None) -> Outcome:
        places = {"archive": str(tmp_path / "archive"), "out": f"{tmp_path}/{gpus}", "bundle": str(bundle_path)}
        chosen = config.load(ScoreConfig, None, **places, gpus=gpus, batch_size=2, shard_size=8)
        return score(chosen, say=lambda _: None)

    return run


def test_the_network_is_asked_on_the_gpu_and_says_the_same(
    score_on: Callable[[int | None], Outcome], tmp_path: Path
) -> None:
    found = {}
    for gpus in (0, None):
        with contextlib.nullcontext() if gpus is None else scored_in_this_process():
            assert score_on(gpus).record.counts.scored == 13
        scores = pd.read_parquet(tmp_path / str(gpus) / "scores").sort_values("image_uri", ignore_index=True)
        found[gpus] = scores.drop(columns=["run_id", "run_date", "scored_at"])
    pd.testing.assert_frame_equal(found[0], found[None], atol=1e-5)


def test_more_gpus_than_there_are_are_refused(score_on: Callable[[int | None], Outcome], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="gpus is 2: the cluster has 1"):
        score_on(2)
