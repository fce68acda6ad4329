"""Epochs in TensorBoard's event files and in MLflow's store, read back with their own readers."""

import contextlib
import importlib.abc
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import tensorflow as tf
from mlflow import MlflowClient

from melanoma import config
from melanoma.errors import InputError
from melanoma.training import tracking
from melanoma.training.config import TrainConfig

PASSWORD = "hunter2"


def _config(**where: Any) -> TrainConfig:
    return config.load(
        TrainConfig, None, catalog="c", out="o", run_name="night-1", network={"width": 8}, tracking=where
    )


def _epoch(number: int, loss: float) -> dict[str, float]:
    return {"epoch": number, "loss": loss, "melanoma_auc": 0.9}


def _refuse(line: str) -> None:
    raise AssertionError(line)


def _scalars(folder: Path) -> dict[str, dict[int, float]]:
    """What TensorBoard shows: a restart at a step hides what was written of it, and of later ones, before."""
    shown: dict[str, dict[int, float]] = {}
    for file in sorted(folder.glob("events.out.tfevents.*")):
        for record in tf.data.TFRecordDataset(str(file)).as_numpy_iterator():
            event = tf.compat.v1.Event.FromString(record)
            if event.HasField("session_log"):
                shown = {tag: {s: v for s, v in of.items() if s < event.step} for tag, of in shown.items()}
            for value in event.summary.value:
                assert event.step not in shown.setdefault(value.tag, {})
                shown[value.tag][event.step] = value.simple_value
    return shown


def test_tensorboard_has_each_epoch_once(tmp_path: Path) -> None:
    settings = _config(tensorboard=str(tmp_path))
    with tracking.track(settings, _refuse) as on_epoch:
        for number in (1, 2, 3):
            on_epoch(_epoch(number, 1 / number))
    # The run is resumed at its last checkpoint, and then a worker dies.
    with tracking.track(settings, _refuse) as on_epoch:
        for number, loss in ((3, 0.25), (4, 0.2), (4, 0.125)):
            on_epoch(_epoch(number, loss))
    shown = _scalars(tmp_path / "night-1")
    assert shown["loss"] == {1: 1.0, 2: 0.5, 3: 0.25, 4: 0.125}
    assert set(shown) == {"loss", "melanoma_auc"}


@pytest.mark.parametrize("place", ["{}", "file://{}", "{}/not-yet"])
def test_mlflow_has_each_epoch_once(tmp_path: Path, place: str) -> None:
    store = place.format(tmp_path)
    settings = _config(mlflow=store, experiment="lesions")
    tracking.check_usable(settings)
    with contextlib.suppress(KeyboardInterrupt), tracking.track(settings, _refuse) as on_epoch:
        on_epoch(_epoch(1, 1.0))
        on_epoch(_epoch(2, 0.5))
        raise KeyboardInterrupt
    client = MlflowClient(store)
    experiment = client.get_experiment_by_name("lesions").experiment_id
    (run,) = client.search_runs([experiment])
    assert run.info.status == "FAILED"
    with tracking.track(settings, _refuse) as on_epoch:
        on_epoch(_epoch(2, 0.5))
        on_epoch(_epoch(3, 0.25))
    tracking.note_model([settings], "m-1", _refuse)

    (run,) = client.search_runs([experiment])
    assert run.info.run_name == "night-1"
    assert run.info.status == "FINISHED"
    assert run.data.tags[tracking.MODEL_VERSION] == "m-1"
    assert run.data.params["network.width"] == "8"
    assert not [key for key in run.data.params if key.startswith("tracking")]
    losses = client.get_metric_history(run.info.run_id, "loss")
    assert [(metric.step, metric.value) for metric in losses] == [(1, 1.0), (2, 0.5), (3, 0.25)]


def test_a_password_is_neither_stored_nor_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    settings = _config(mlflow=f"http://me:{PASSWORD}@127.0.0.1:9/")
    assert PASSWORD not in json.dumps(settings.model_dump(mode="json")) + settings.model_dump_json() + repr(settings)
    with pytest.raises(InputError, match="MLflow cannot be written to") as raised:
        tracking.check_usable(settings)
    assert PASSWORD not in str(raised.value)


@pytest.mark.parametrize("uri", ["sqlite:///mlflow.db", "postgresql+psycopg2://me:hunter2@127.0.0.1/mlflow"])
def test_a_database_that_cannot_be_opened_is_one_whole_sentence(uri: str) -> None:
    with pytest.raises(InputError) as raised:
        tracking.check_usable(_config(mlflow=uri))
    assert PASSWORD not in str(raised.value)
    assert str(raised.value).endswith(
        "pip install mlflow, or name a folder or the http:// address of an MLflow server."
    )


def test_what_mlflow_says_is_not_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        InputError, match=r"Supported URI schemes are: .* one of the supported backend storage"
    ) as raised:
        tracking.check_usable(_config(mlflow="gopher://127.0.0.1"))
    assert "\n" not in str(raised.value)


def test_a_registry_of_the_users_environment_does_not_matter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_REGISTRY_URI", "gopher://127.0.0.1")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    tracking.check_usable(_config(mlflow=str(tmp_path)))


def test_a_store_that_fails_does_not_end_the_training(tmp_path: Path) -> None:
    said: list[str] = []
    with tracking.track(_config(mlflow=tmp_path.as_uri()), said.append) as on_epoch:
        on_epoch(_epoch(1, 1.0))
        for folder in tmp_path.iterdir():
            folder.rename(tmp_path.parent / f"{folder.name}-gone")
        on_epoch(_epoch(2, 0.5))
        on_epoch(_epoch(3, 0.5))
    assert len(said) == 1
    assert said[0].startswith("Tracking has failed")


def test_without_mlflow_a_sentence_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "mlflow"]:
        monkeypatch.delitem(sys.modules, name)

    class NotInstalled(importlib.abc.MetaPathFinder):
        def find_spec(self, name: str, path: Any, target: Any = None) -> None:
            if name.partition(".")[0] == "mlflow":
                raise ModuleNotFoundError(name)

    monkeypatch.setattr(sys, "meta_path", [NotInstalled(), *sys.meta_path])
    with pytest.raises(InputError, match=r"pip install 'melanoma\[mlflow\]'"):
        tracking.check_usable(_config(mlflow="http://127.0.0.1:9"))


def test_event_files_go_to_a_folder() -> None:
    with pytest.raises(InputError, match="has to be a folder"):
        tracking.check_usable(_config(tensorboard="s3://bucket/events"))
