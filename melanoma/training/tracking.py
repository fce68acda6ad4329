"""The figures of each epoch, in TensorBoard's event files and in MLflow, if the configuration names them."""

import contextlib
import importlib.util
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from tensorboardX import SummaryWriter

from melanoma import storage
from melanoma.errors import InputError
from melanoma.training.config import TrainConfig

OnEpoch = Callable[[dict[str, float]], None]
MODEL_VERSION = "model_version"
_RUN_NAME = "melanoma.run_name"
_LONGEST_VALUE = 500  # characters of a parameter that every version of MLflow takes
_LONGEST_ERROR = 1000  # characters of an error
_DATABASE = re.compile(r"(sqlite|postgresql|mysql|mssql)(\+\w+)?:")


def check_usable(config: TrainConfig) -> None:
    """Raise InputError where what `config.tracking` names cannot be written to."""
    tracking = config.tracking
    if tracking.tensorboard is not None:
        if storage.is_s3(tracking.tensorboard):
            raise InputError("tracking.tensorboard has to be a folder: event files are appended to, which S3 cannot.")
        storage.check_writable(tracking.tensorboard)
    if tracking.mlflow is not None:
        _experiment(config)


@contextlib.contextmanager
def track(config: TrainConfig, say: Callable[[str], None]) -> Iterator[OnEpoch]:
    """Yields a function that is given the figures of each epoch; `config.run_name` is the name of the run.

    A run of the same name is resumed, and an epoch that is trained a second time is not there twice. Should a store
    fail while training, `say` is told so once, and the training continues without it. Raises InputError as
    `check_usable` does.
    """
    with contextlib.ExitStack() as stack:
        loggers: list[OnEpoch] = []
        if config.tracking.tensorboard is not None:
            loggers.append(stack.enter_context(_tensorboard(config)))
        if config.tracking.mlflow is not None:
            loggers.append(stack.enter_context(_mlflow(config)))

        def on_epoch(metrics: dict[str, float]) -> None:
            for logger in list(loggers):
                try:
                    logger(metrics)
                except Exception as error:  # whatever a server or its client raises
                    loggers.remove(logger)
                    say(f"Tracking has failed and has stopped for this run: {_readable(error)}")

        yield on_epoch


def note_model(configs: Sequence[TrainConfig], version: str, say: Callable[[str], None]) -> None:
    """Tag the MLflow runs of these configurations with the version of the model that they have become."""
    for config in configs:
        if config.tracking.mlflow is not None:
            try:
                client, experiment = _experiment(config)
                for run in _runs(client, experiment, config):
                    client.set_tag(run.info.run_id, MODEL_VERSION, version)
            except Exception as error:
                say(f"The model's version could not be noted in MLflow: {_readable(error)}")


@contextlib.contextmanager
def _tensorboard(config: TrainConfig) -> Iterator[OnEpoch]:
    folder = storage.join(storage.normalize(str(config.tracking.tensorboard)), str(config.run_name))
    writer: SummaryWriter | None = None
    last = 0

    def on_epoch(metrics: dict[str, float]) -> None:
        nonlocal writer, last
        epoch = int(metrics["epoch"])
        if writer is None or epoch <= last:
            if writer is not None:
                writer.close()
            # What an interrupted training wrote of this epoch and later is hidden. A file's name has the time to the
            # second alone, and a second file of that name would replace the first.
            writer = SummaryWriter(folder, purge_step=epoch, filename_suffix=f".{time.time_ns()}")
        last = epoch
        for name, value in _figures(metrics).items():
            writer.add_scalar(name, value, epoch)
        writer.flush()

    try:
        yield on_epoch
    finally:
        if writer is not None:
            writer.close()


@contextlib.contextmanager
def _mlflow(config: TrainConfig) -> Iterator[OnEpoch]:
    from mlflow.entities import Metric, Param

    client, experiment = _experiment(config)
    try:
        if found := _runs(client, experiment, config):
            run_id = found[0].info.run_id
            client.update_run(run_id, status="RUNNING")
            there = {int(metric.step) for metric in client.get_metric_history(run_id, "loss")}
        else:
            name = str(config.run_name)
            run_id = client.create_run(experiment, run_name=name, tags={_RUN_NAME: name}).info.run_id
            there = set()
            values = _flat(config.model_dump(mode="json")).items()
            client.log_batch(run_id, params=[Param(key, str(value)[:_LONGEST_VALUE]) for key, value in values])
    except Exception as error:
        raise _unusable(error) from None

    def on_epoch(metrics: dict[str, float]) -> None:
        epoch = int(metrics["epoch"])
        if epoch not in there:  # MLflow would keep both
            there.add(epoch)
            client.log_batch(run_id, [Metric(name, value, 0, epoch) for name, value in _figures(metrics).items()])

    status = "FAILED"
    try:
        yield on_epoch
        status = "FINISHED"
    finally:
        with contextlib.suppress(Exception):
            client.set_terminated(run_id, status)


def _experiment(config: TrainConfig) -> tuple[Any, str]:
    """MLflow's client, and the id of the experiment, which is made where there is none."""
    # Seven attempts, each later than the one before, would hold a training up for minutes.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    # A folder needs neither a server nor more packages; MLflow would have its users move on to databases.
    os.environ["MLFLOW_ALLOW_FILE_STORE"] = "true"
    try:
        from mlflow import MlflowClient
    except ImportError:
        raise InputError(
            "tracking.mlflow is set, and MLflow is not installed: pip install 'melanoma[mlflow]', or leave it out."
        ) from None
    uri, name = str(config.tracking.mlflow), config.tracking.experiment
    if _DATABASE.match(uri) and importlib.util.find_spec("sqlalchemy") is None:
        raise InputError(
            f"tracking.mlflow is {_readable(uri)}, and MLflow opens databases only where all of it is installed: "
            "pip install mlflow, or name a folder or the http:// address of an MLflow server."
        )
    try:
        # The registry is not used, but one of the user's environment that cannot be reached would be refused.
        client = MlflowClient(uri, registry_uri=uri)
        found = client.get_experiment_by_name(name)
        return client, found.experiment_id if found else client.create_experiment(name)
    except Exception as error:
        raise _unusable(error) from None


def _runs(client: Any, experiment: str, config: TrainConfig) -> list[Any]:
    return list(client.search_runs([experiment], f"tags.`{_RUN_NAME}` = '{config.run_name}'", max_results=1))


def _unusable(error: Exception) -> InputError:
    return InputError(f"MLflow cannot be written to as tracking.mlflow says: {_readable(error)}")


def _readable(error: Exception | str) -> str:
    """One line, without the user and password of a URI."""
    line = " ".join(str(error).split()) or type(error).__name__
    if len(line) > _LONGEST_ERROR:
        line = f"{line[:_LONGEST_ERROR].rpartition(' ')[0]} ..."
    return re.sub(r"//[^/\s]*@", "//", line)


def _figures(metrics: Mapping[str, Any]) -> dict[str, float]:
    return {name: float(value) for name, value in metrics.items() if name != "epoch"}


def _flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    """``{"network": {"width": 16}}`` as ``{"network.width": 16}``."""
    children = dict(enumerate(tree)) if isinstance(tree, list) else tree
    if not isinstance(children, dict) or not children:
        return {prefix: tree}
    return {
        key: value
        for name, child in children.items()
        for key, value in _flat(child, f"{prefix}.{name}" if prefix else str(name)).items()
    }
