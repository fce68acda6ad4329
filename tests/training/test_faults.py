"""Machines die during training: what is learned is what an undisturbed run learns."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from melanoma import storage
from melanoma.demo.local_s3 import LocalS3
from melanoma.errors import MelanomaError
from tests.support import disturbed_training as disturbed
from tests.support.shared_ray import SharedRay

# What two workers sum up, one sums up in another order: measured, weights and losses differ by at most 2.4e-5, with and
# without oneDNN. A training of one epoch less differs by 2e-3.
ROUNDING = 1e-4

Learned = tuple[list[np.ndarray], list[dict[str, float]]]


@pytest.fixture(scope="module")
def undisturbed(ray_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Learned:
    training = disturbed.settings(str(tmp_path_factory.mktemp("undisturbed")), 1)
    learned: Learned = disturbed.learn(training, lambda metrics: None)
    return learned


def _descendants(pid: int) -> list[int]:
    """All processes below `pid`: other work on this machine has Ray workers of the same name."""
    parents: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*"):
        try:
            status = (path / "stat").read_text()
        except OSError:
            continue
        parents.setdefault(int(status.rpartition(")")[2].split()[1]), []).append(int(path.name))
    found, queue = [], [pid]
    while queue:
        children = parents.get(queue.pop(), [])
        found += children
        queue += children
    return found


def _training_workers(pid: int) -> list[int]:
    named = []
    for each in _descendants(pid):
        try:
            if b"RayTrainWorker" in (Path("/proc") / str(each) / "cmdline").read_bytes():
                named.append(each)
        except OSError:
            continue
    return named


def _wait_for_checkpoint(folder: Path) -> None:
    """Until Ray Train has noted one down: it does so some time after a worker has reported it."""
    snapshot = folder / "run" / "checkpoint_manager_snapshot.json"
    while not (snapshot.exists() and json.loads(snapshot.read_text() or "{}").get("checkpoint_results")):
        time.sleep(0.1)


def _kill_a_worker_after_an_epoch(folder: Path, epochs: list[float]) -> Callable[[dict[str, float]], None]:
    def on_epoch(metrics: dict[str, float]) -> None:
        epochs.append(metrics["epoch"])
        if len(epochs) == 1:
            _wait_for_checkpoint(folder)
            os.kill(_training_workers(os.getpid())[0], signal.SIGKILL)

    return on_epoch


def _assert_same(found: Learned, expected: Learned, tolerance: float) -> None:
    for mine, theirs in zip(found[0], expected[0], strict=True):
        np.testing.assert_allclose(mine, theirs, atol=tolerance, rtol=0)
    assert [epoch["loss"] for epoch in found[1]] == pytest.approx(
        [epoch["loss"] for epoch in expected[1]], abs=tolerance
    )


@pytest.mark.slow
def test_a_killed_worker_changes_nothing(undisturbed: Learned, tmp_path: Path) -> None:
    epochs: list[float] = []
    found = disturbed.learn(disturbed.settings(str(tmp_path), 1), _kill_a_worker_after_an_epoch(tmp_path, epochs))
    _assert_same(found, undisturbed, 0)
    # It resumed from the checkpoint: the first epoch was trained once.
    assert epochs.count(1) == 1
    assert epochs[-1] == disturbed.EPOCHS


def test_one_worker_resumes_what_two_began(undisturbed: Learned, tmp_path: Path) -> None:
    two = disturbed.settings(str(tmp_path), 2, max_failures=0)
    with pytest.raises(MelanomaError, match="Training failed in a worker"):
        disturbed.learn(two, _kill_a_worker_after_an_epoch(tmp_path, []))
    epochs: list[float] = []
    found = disturbed.learn(disturbed.settings(str(tmp_path), 1), lambda metrics: epochs.append(metrics["epoch"]))
    assert epochs[0] > 1
    assert {epoch["workers"] for epoch in found[1]} == {1, 2}
    _assert_same(found, undisturbed, ROUNDING)


def _run(folder: str, out: Path) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "tests.support.disturbed_training", folder, "1", str(out)]
    root = Path(__file__).parents[2]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True, cwd=root)


@pytest.mark.slow  # the quick tests have test_one_worker_resumes_what_two_began
@pytest.mark.parametrize("place", ["folder", "s3"])
def test_a_killed_driver_is_resumed_by_the_same_command(
    undisturbed: Learned, tmp_path: Path, s3: LocalS3, bucket: str, place: str
) -> None:
    """The driver dies with its whole machine: Ray, the workers, and all that they had in memory."""
    checkpoints = str(tmp_path / "checkpoints") if place == "folder" else f"s3://{bucket}/checkpoints"
    folder = tmp_path / "checkpoints" if place == "folder" else s3.root / bucket / "checkpoints"
    out = tmp_path / "weights.npz"
    with _run(checkpoints, out) as first:
        assert first.stdout is not None
        assert first.stdout.readline() == "epoch 1\n"
        _wait_for_checkpoint(folder)
        for pid in [first.pid, *_descendants(first.pid)]:
            os.kill(pid, signal.SIGKILL)
    assert not out.exists()
    with _run(checkpoints, out) as second:
        epochs = second.communicate()[0].splitlines()
        assert second.returncode == 0
    assert epochs[0] != "epoch 1"
    assert epochs[-1] == f"epoch {disturbed.EPOCHS}"
    with np.load(out) as arrays:
        weights = [arrays[f"arr_{number}"] for number in range(len(arrays.files) - 1)]
        losses = arrays["losses"].tolist()
    _assert_same((weights, [{"loss": loss} for loss in losses]), undisturbed, 0)
    assert storage.exists(storage.join(storage.normalize(checkpoints), "run.json"))


@pytest.mark.slow
def test_the_group_shrinks_when_a_node_dies(undisturbed: Learned, shared_ray: SharedRay, tmp_path: Path) -> None:
    """Elastic: two workers on two machines, of which one dies; one worker continues, and learns the same."""
    import ray
    from ray.cluster_utils import Cluster

    with shared_ray.set_aside():
        # A worker fits on each of the first two; the third has a core for Ray Data.
        nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 2})
        lost = nodes.add_node(num_cpus=2)
        nodes.add_node(num_cpus=1)
        try:
            ray.init(address=nodes.address, log_to_driver=False)
            epochs: list[float] = []

            def on_epoch(metrics: dict[str, float]) -> None:
                epochs.append(metrics["epoch"])
                if len(epochs) == 1:
                    _wait_for_checkpoint(tmp_path)
                    nodes.remove_node(lost, allow_graceful=False)

            training = disturbed.settings(str(tmp_path), (1, 2)).model_copy(update={"cpus_per_worker": 1.5})
            found = disturbed.learn(training, on_epoch)
        finally:
            ray.shutdown()
            nodes.shutdown()
    assert [epoch["workers"] for epoch in found[1]][:1] == [2]
    assert [epoch["workers"] for epoch in found[1]][-1] == 1
    _assert_same(found, undisturbed, ROUNDING)
