"""A search over the fields of a training configuration, with Ray Tune: many trainings, the bad ones stopped early.

Trials are known by their names: what trial 3 draws depends on the seed alone, and its epochs are noted below `out` as
they come. A search that is resumed tells the scheduler the noted epochs first, and trains the epochs after them, so
that with one trial at a time it ends as an undisturbed one would.
"""

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd
import ray
import yaml
from ray import tune
from ray.tune.schedulers import ASHAScheduler

from melanoma import config, ray_session, storage
from melanoma.catalog import schema
from melanoma.errors import InputError, MelanomaError
from melanoma.model.manifest import JsonModel
from melanoma.training import fit, tracking
from melanoma.training.config import TrainConfig
from melanoma.training.data import DevelopmentSet, development_rows
from melanoma.training.input import cache_images
from melanoma.training.studies.config import Space, TuneConfig
from melanoma.training.train import check_figure, check_inputs

# What has nothing to do with what is learned cannot be searched.
_NOT_SEARCHED = {*fit.MAY_CHANGE, "select_by", "tracking"}


@dataclass(frozen=True)
class Trial:
    """What one trial draws, and the training that this makes."""

    values: dict[str, Any]  # by dotted key of TrainConfig
    training: TrainConfig


@dataclass(frozen=True)
class TrialResult:
    """What one trial came to, as search.json has it."""

    trial: str  # its name
    values: dict[str, Any]
    epochs: int  # done, of `all_epochs`
    all_epochs: int
    best: float | None  # the highest of the scheduler's metric on validation; None where no epoch was done
    best_epoch: int | None  # counted from 1
    stopped_early: bool
    error: str | None  # a sentence


class Record(JsonModel):
    """The file of a trial below `out`: what it is, and what is done of it."""

    config: dict[str, Any]  # without what may change, see `fit.MAY_CHANGE`
    catalog_fingerprint: str
    history: list[dict[str, Any]]  # the figures of each epoch
    ended: bool


def run(settings: TuneConfig, say: Callable[[str], None]) -> list[TrialResult]:
    """Train all trials; write search.json, search.md and best.yaml to `settings.out`. Returns the trials, best first.

    A search that was interrupted is resumed. Raises InputError before anything is trained where a key, a value or the
    catalog cannot be used, or `out` holds another search; MelanomaError when every trial fails.
    """
    base = config.load(TrainConfig, settings.config, settings.overrides)
    out = storage.normalize(settings.out)
    trials = _trials(settings, base, out)
    for trial in trials.values():
        frame = check_inputs(trial.training)  # all have one catalog
    labels = schema.usable(frame, "validation")["label"].tolist()
    check_figure(settings.scheduler.metric, labels, base.catalog)
    fingerprint = schema.fingerprint(frame)
    for name, trial in trials.items():
        _claim(_record(out, name), trial.training, fingerprint)
    ray_session.connect()
    for trial in trials.values():
        fit.check_resources(trial.training, say)
    errors = _tune(settings, _trainable(trials, development_rows(frame), out, say), trials, out, say)
    table = sorted(
        (_result(name, trial, out, settings.scheduler.metric, errors[name]) for name, trial in trials.items()),
        key=lambda result: -1.0 if result.best is None else result.best,
        reverse=True,
    )
    tree = {"metric": settings.scheduler.metric, "trials": [asdict(result) for result in table]}
    storage.write_json(storage.join(out, "search.json"), tree)
    storage.write_bytes(storage.join(out, "search.md"), markdown(table, settings.scheduler.metric).encode())
    if table[0].best is None:
        raise MelanomaError(f"No trial has ended an epoch; the first error: {table[0].error}")
    best = config.changed(base, table[0].values)
    storage.write_bytes(storage.join(out, "best.yaml"), _best_yaml(best, table[0], settings).encode())
    return table


def draw(search: Mapping[str, Space], seed: int, number: int) -> dict[str, Any]:
    """The values of trial `number`, by key. How many trials there are changes none of them."""
    generator = np.random.default_rng([seed, number])
    return {key: _draw(space, generator) for key, space in search.items()}


def _draw(space: Space, generator: np.random.Generator) -> Any:
    if space.choice is not None:
        return space.choice[generator.integers(len(space.choice))]
    if space.integer is not None:
        return int(generator.integers(*space.integer, endpoint=True))
    if space.uniform is not None:
        return float(f"{generator.uniform(*space.uniform):.4g}")
    assert space.log_uniform is not None
    return float(f"{np.exp(generator.uniform(*np.log(space.log_uniform))):.4g}")


def _trials(settings: TuneConfig, base: TrainConfig, out: str) -> dict[str, Trial]:
    """The trials by name."""
    for key in settings.search:
        if key.partition(".")[0] in _NOT_SEARCHED:
            raise InputError(f"The key {key!r} cannot be searched: set it in {settings.config}, or in overrides.")
    trials = {}
    for number in range(settings.samples):
        name = f"trial-{number:03d}"
        values = draw(settings.search, settings.seed, number)
        places = {"out": out, "checkpoints": storage.join(out, "checkpoints"), "run_name": name}
        try:
            training = config.changed(base, {**values, **places})
        except InputError as error:
            raise InputError(f"The search cannot be made. {error}") from None
        # `changed` leaves tracking out.
        trials[name] = Trial(values, training.model_copy(update={"tracking": base.tracking}))
    return trials


def _record(out: str, name: str) -> str:
    return storage.join(out, "trials", f"{name}.json")


def _read_record(uri: str) -> Record:
    return Record.model_validate(storage.read_json(uri))


def _claim(uri: str, training: TrainConfig, fingerprint: str) -> None:
    """Note what a trial is; raises InputError where another one of its name is noted."""
    settings = training.model_dump(mode="json", exclude=fit.MAY_CHANGE)
    if not storage.exists(uri):
        record = Record(config=settings, catalog_fingerprint=fingerprint, history=[], ended=False)
        storage.write_json(uri, record.to_json())
        return
    found = _read_record(uri)
    if found.config != settings or found.catalog_fingerprint != fingerprint:
        raise InputError(
            f"{uri} is of a search with another configuration, seed or catalog: choose another out, or delete that one."
        )


def _trainable(
    trials: Mapping[str, Trial], rows: pd.DataFrame, out: str, say: Callable[[str], None]
) -> Callable[[dict[str, str]], None]:
    """`_train_trial` with the decoded images, for Tune.

    Args:
        trials: By name.
        rows: Rows of the catalog: see `development_rows`.
        out: The folder or prefix of the search.
        say: Given one line.
    """
    sizes = sorted({trial.training.image_size for trial in trials.values()})
    say(f"Decoding {len(rows)} images at {' and '.join(map(str, sizes))} pixels, once for all {len(trials)} trials.")
    images = {size: ray.put(cache_images(rows["uri"].tolist(), size)) for size in sizes}
    trainings = {name: trial.training for name, trial in trials.items()}
    # Through the object store: Tune writes what it runs to its own files, and `tracking` may hold a password.
    made: Callable[[dict[str, str]], None] = tune.with_parameters(
        _train_trial, trainings=trainings, out=out, images=images, rows=rows
    )
    return made


def _tune(
    settings: TuneConfig,
    train: Callable[[dict[str, str]], None],
    trials: Mapping[str, Trial],
    out: str,
    say: Callable[[str], None],
) -> dict[str, str | None]:
    """Train the trials, in order.

    Args:
        settings: The search.
        train: Trains one trial, see `_trainable`.
        trials: By name.
        out: The folder or prefix of the search.
        say: Given one line an epoch.

    Returns:
        The error of each trial by its name, or None.
    """
    # Ctrl-C is to end the program, and what Tune would log is noted in `out`.
    os.environ |= {"TUNE_DISABLE_SIGINT_HANDLER": "1", "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1"}
    os.environ |= {"RAY_AIR_NEW_OUTPUT": "0"}  # the new output prints even where none is asked for
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # what it would say of an error, the table says
    most = max(trial.training.epochs for trial in trials.values())
    filesystem, path = storage.arrow_filesystem(storage.join(out, "tune"))
    results = tune.Tuner(
        # The workers of a trial reserve cores; what waits for them needs none, but Tune reserves nothing for nobody.
        tune.with_resources(train, {"CPU": 0, "memory": 2**20}),
        param_space={"trial": tune.grid_search(list(trials))},
        tune_config=tune.TuneConfig(
            metric=settings.scheduler.metric,
            mode="max",
            scheduler=ASHAScheduler(
                time_attr="epoch",
                max_t=most,
                grace_period=min(settings.scheduler.grace_epochs, most),
                reduction_factor=settings.scheduler.reduction,
                stop_last_trials=False,  # they end by themselves
            ),
            max_concurrent_trials=settings.parallel_trials,
            trial_dirname_creator=lambda trial: str(trial.config["trial"]),
        ),
        run_config=tune.RunConfig(
            name="state",
            storage_path=path,
            storage_filesystem=filesystem,
            verbose=0,
            callbacks=[_Progress(settings, say)],
        ),
    ).fit()
    return {
        str(result.config["trial"]): None if result.error is None else str(result.error).strip().splitlines()[-1]
        for result in results
    }


class _Progress(tune.Callback):
    def __init__(self, settings: TuneConfig, say: Callable[[str], None]) -> None:
        self.metric, self.say = settings.scheduler.metric, say

    def on_trial_result(self, iteration: int, trials: Any, trial: Any, result: Mapping[str, Any], **info: Any) -> None:
        if "epoch" in result and not result["noted"]:
            self.say(f"{trial.config['trial']} epoch {result['epoch']:.0f}: {self.metric} {result[self.metric]:.3f}")


def _train_trial(
    parameters: Mapping[str, str],
    trainings: Mapping[str, TrainConfig],
    out: str,
    images: Mapping[int, ray.ObjectRef],
    rows: pd.DataFrame,
) -> None:
    """Train one trial: what Tune runs, in a process of its own. The scheduler may end it whenever an epoch is reported.

    Args:
        parameters: The name of the trial, as `trial`.
        trainings: By the name of the trial.
        out: The folder or prefix of the search.
        images: By side, references to uint8 RGB [n, size, size, 3].
        rows: Rows of the catalog, one an image.
    """
    name = parameters["trial"]
    training = trainings[name]
    uri = _record(out, name)
    record = _read_record(uri)
    history = record.history
    for metrics in history:
        tune.report({**metrics, "noted": True})
    if record.ended:
        return

    def on_epoch(metrics: dict[str, float]) -> None:
        track_epoch(metrics)
        if history and metrics["epoch"] <= history[-1]["epoch"]:
            return  # its checkpoint was not yet written when the search was interrupted
        history.append(metrics)
        storage.write_json(uri, record.to_json())
        tune.report({**metrics, "noted": False})

    development = DevelopmentSet(rows, ray.get(images[training.image_size]))  # no copy
    data = fit.with_copies(training, development, lambda line: None)
    with tracking.track(training, print) as track_epoch:
        trained = fit.fit(training, data, on_epoch)
    ended = record.model_copy(update={"history": trained.history, "ended": True})
    storage.write_json(uri, ended.to_json())


def _result(name: str, trial: Trial, out: str, metric: str, error: str | None) -> TrialResult:
    """What a trial came to by its record.

    Args:
        name: The name of the trial.
        trial: What it was.
        out: The folder or prefix of the search.
        metric: The figure whose highest value is the trial's.
        error: What it ended with, or None.
    """
    record = _read_record(_record(out, name))
    at_best = max(record.history, key=lambda metrics: metrics[metric], default=None)
    return TrialResult(
        trial=name,
        values=trial.values,
        epochs=int(record.history[-1]["epoch"]) if record.history else 0,
        all_epochs=trial.training.epochs,
        best=None if at_best is None else at_best[metric],
        best_epoch=None if at_best is None else int(at_best["epoch"]),
        stopped_early=error is None and not record.ended,
        error=error,
    )


def markdown(table: Sequence[TrialResult], metric: str) -> str:
    """The trials of `run` as a Markdown table."""
    head = ["trial", *table[0].values, "epochs", f"best {metric.replace('_', ' ')}", "at epoch", "ended"]
    lines = [head, ["---"] * len(head)]
    for row in table:
        best = ["-", "-"] if row.best is None else [f"{row.best:.3f}", str(row.best_epoch)]
        ended = row.error or ("stopped early" if row.stopped_early else "all epochs")
        values = [
            yaml.safe_dump(value, default_flow_style=True, width=1e9).split("\n")[0] for value in row.values.values()
        ]
        lines.append([row.trial, *values, f"{row.epochs} of {row.all_epochs}", *best, ended])
    return "".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |\n" for line in lines) + _NOTES


_NOTES = """
All figures are of the validation split, and each is the best of its trial's epochs. The first trial is the best of all
by the same figure: it is chosen, and therefore optimistic. What it is worth, a test split that has chosen nothing says.
"""


def _best_yaml(best: TrainConfig, row: TrialResult, settings: TuneConfig) -> str:
    head = (
        f"# The best of {settings.samples} trials, {row.trial}: {settings.scheduler.metric} {row.best:.3f} on "
        "validation, which has chosen it.\n#\n# melanoma train --config best.yaml --out out/bundle\n"
    )
    return head + yaml.safe_dump(best.model_dump(mode="json"), sort_keys=False)
