"""A search over the fields of a training configuration, with Ray Tune: many trainings, the bad ones stopped early.

Trials are known by their names: what trial 3 draws depends on the seed alone, and its epochs are noted below `out` as
they come. A search that is started again tells the scheduler the noted epochs first, and trains on from there, so that
with one trial at a time it ends as an undisturbed one would.
"""

import logging
import os
from collections.abc import Callable, Mapping
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
from melanoma.training import tracking
from melanoma.training import train as trainer
from melanoma.training.config import TrainConfig
from melanoma.training.input import cache_images
from melanoma.training.studies.config import Space, TuneConfig

# What has nothing to do with what is learned cannot be searched.
_NOT_SEARCHED = {*trainer.MAY_CHANGE, "select_by", "tracking"}


def run(settings: TuneConfig, say: Callable[[str], None]) -> list[dict[str, Any]]:
    """Train all trials; write search.json, search.md and best.yaml to `settings.out`. Returns the trials, best first.

    A trial is a dict of `trial` (its name), `values` (by key), `epochs` (done) of `all_epochs`, `best` (the highest of
    the scheduler's metric on validation) and `best_epoch` (both None where no epoch was done), `stopped_early` and
    `error` (a sentence or None).

    A search that was interrupted is gone on with. Raises InputError before anything is trained where a key, a value or
    the catalog cannot be used, or `out` holds another search; MelanomaError when every trial fails.
    """
    base = config.load(TrainConfig, settings.config, settings.overrides)
    out = storage.normalize(settings.out)
    chosen, trials = _trials(settings, base, out)
    for trial in trials.values():
        frame = trainer.check(trial)  # of one catalog all
    fingerprint = schema.fingerprint(frame)
    for name, trial in trials.items():
        _claim(_record(out, name), trial, fingerprint)
    ray_session.connect()
    for trial in trials.values():
        trainer.check_resources(trial, say)
    rows = pd.concat([schema.usable(frame, "train"), schema.usable(frame, "validation")])
    train_count = int((rows["split"] == "train").sum())
    sizes = sorted({trial.image_size for trial in trials.values()})
    say(f"Decoding {len(rows)} images at {' and '.join(map(str, sizes))} pixels, once for all {len(trials)} trials.")
    images = {size: ray.put(cache_images(rows["uri"].tolist(), size)) for size in sizes}
    # Through the object store: Tune writes what it runs to its own files, and `tracking` may hold a password.
    train = tune.with_parameters(
        _train_trial, trials=trials, out=out, images=images, rows=rows, train_count=train_count
    )
    errors = _tune(settings, train, trials, out, say)
    table = sorted(
        (
            _summary(name, chosen[name], storage.read_json(_record(out, name)), trial, settings, errors[name])
            for name, trial in trials.items()
        ),
        key=lambda row: -1.0 if row["best"] is None else row["best"],
        reverse=True,
    )
    storage.write_json(storage.join(out, "search.json"), {"metric": settings.scheduler.metric, "trials": table})
    storage.write_bytes(storage.join(out, "search.md"), markdown(table, settings.scheduler.metric).encode())
    if table[0]["best"] is None:
        raise MelanomaError(f"No trial has ended an epoch; the first error: {table[0]['error']}")
    best = config.changed(base, chosen[table[0]["trial"]])
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


def _trials(
    settings: TuneConfig, base: TrainConfig, out: str
) -> tuple[dict[str, dict[str, Any]], dict[str, TrainConfig]]:
    """What each trial draws, and its whole configuration, by its name."""
    for key in settings.search:
        if key.partition(".")[0] in _NOT_SEARCHED:
            raise InputError(f"The key {key!r} cannot be searched: set it in {settings.config}, or in overrides.")
    chosen, trials = {}, {}
    for number in range(settings.samples):
        name = f"trial-{number:03d}"
        chosen[name] = draw(settings.search, settings.seed, number)
        own = {"out": out, "checkpoints": storage.join(out, "checkpoints"), "run_name": name}
        try:
            trial = config.changed(base, {**chosen[name], **own})
        except InputError as error:
            raise InputError(f"The search cannot be made. {error}") from None
        trials[name] = trial.model_copy(update={"tracking": base.tracking})  # which `changed` leaves out
    return chosen, trials


def _record(out: str, name: str) -> str:
    return storage.join(out, "trials", f"{name}.json")


def _claim(uri: str, trial: TrainConfig, fingerprint: str) -> None:
    """Note what a trial is; raises InputError where another one of its name is noted."""
    mine = {
        "config": trial.model_dump(mode="json", exclude=trainer.MAY_CHANGE),
        "catalog_fingerprint": fingerprint,
    }
    if not storage.exists(uri):
        storage.write_json(uri, {**mine, "history": [], "ended": False})
        return
    found = storage.read_json(uri)
    if {key: found[key] for key in mine} != mine:
        raise InputError(
            f"{uri} is of a search with another configuration, seed or catalog: choose another out, or delete that one."
        )


def _tune(
    settings: TuneConfig,
    train: Callable[[dict[str, str]], None],
    trials: Mapping[str, TrainConfig],
    out: str,
    say: Callable[[str], None],
) -> dict[str, str | None]:
    """Train the trials, in order; the error of each by its name, or None."""
    # Ctrl-C is to end the program, and what Tune would log is noted in `out`.
    os.environ |= {"TUNE_DISABLE_SIGINT_HANDLER": "1", "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1"}
    os.environ |= {"RAY_AIR_NEW_OUTPUT": "0"}  # the new output prints even where none is asked for
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # what it would say of an error, the table says
    most = max(trial.epochs for trial in trials.values())
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
    trials: Mapping[str, TrainConfig],
    out: str,
    images: Mapping[int, ray.ObjectRef],
    rows: pd.DataFrame,
    train_count: int,
) -> None:
    """What Tune runs, in a process of its own. The scheduler may end it whenever an epoch is reported."""
    name = parameters["trial"]
    own = trials[name]
    uri = _record(out, name)
    record = storage.read_json(uri)
    history: list[dict[str, float]] = record["history"]
    for metrics in history:
        tune.report({**metrics, "noted": True})
    if record["ended"]:
        return

    def on_epoch(metrics: dict[str, float]) -> None:
        track_epoch(metrics)
        if history and metrics["epoch"] <= history[-1]["epoch"]:
            return  # its checkpoint was not yet written when the search was interrupted
        history.append(metrics)
        storage.write_json(uri, record)
        tune.report({**metrics, "noted": False})

    originals = ray.get(images[own.image_size])  # no copy
    together, splits = trainer.with_copies(own, originals, rows, train_count, lambda line: None)
    with tracking.track(own, print) as track_epoch:
        _, whole, _ = trainer.fit(own, together, splits, on_epoch)
    storage.write_json(uri, {**record, "history": whole, "ended": True})


def _summary(
    name: str,
    values: dict[str, Any],
    record: Mapping[str, Any],
    trial: TrainConfig,
    settings: TuneConfig,
    error: str | None,
) -> dict[str, Any]:
    history = record["history"]
    metric = settings.scheduler.metric
    at_best = max(history, key=lambda metrics: metrics[metric], default=None)
    epochs = int(history[-1]["epoch"]) if history else 0
    return {
        "trial": name,
        "values": values,
        "epochs": epochs,
        "all_epochs": trial.epochs,
        "best": at_best and at_best[metric],
        "best_epoch": at_best and int(at_best["epoch"]),
        "stopped_early": error is None and not record["ended"],
        "error": error,
    }


def markdown(table: list[dict[str, Any]], metric: str) -> str:
    """The trials of `run` as a Markdown table."""
    head = ["trial", *table[0]["values"], "epochs", f"best {metric.replace('_', ' ')}", "at epoch", "ended"]
    lines = [head, ["---"] * len(head)]
    for row in table:
        best = ["-", "-"] if row["best"] is None else [f"{row['best']:.3f}", str(row["best_epoch"])]
        ended = row["error"] or ("stopped early" if row["stopped_early"] else "all epochs")
        values = [
            yaml.safe_dump(value, default_flow_style=True, width=1e9).split("\n")[0] for value in row["values"].values()
        ]
        lines.append([row["trial"], *values, f"{row['epochs']} of {row['all_epochs']}", *best, ended])
    return "".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |\n" for line in lines) + _NOTES


_NOTES = """
All figures are of the validation split, and each is the best of its trial's epochs. The first trial is the best of all
by the same figure: it is chosen, and therefore optimistic. What it is worth, a test split that has chosen nothing says.
"""


def _best_yaml(best: TrainConfig, row: Mapping[str, Any], settings: TuneConfig) -> str:
    head = (
        f"# The best of {settings.samples} trials, {row['trial']}: {settings.scheduler.metric} {row['best']:.3f} on "
        "validation, which has chosen it.\n#\n# melanoma train --config best.yaml --out out/bundle\n"
    )
    return head + yaml.safe_dump(best.model_dump(mode="json"), sort_keys=False)
