"""An archive becomes published Parquet. The way of an image, top to bottom: locate, fetch, decode, predict, triage,
write.

    OUT/
      scores/run_date=2026-11-20/run_id=ID/shard-00000.parquet    every image scored
      rejects/run_date=2026-11-20/run_id=ID/shard-00000.parquet   every image that could not be, and why
      alerts/run_date=2026-11-20/run_id=ID/alerts.parquet         one object
      runs/run_id=ID/plan.json, plans/run_id=ID/*.parquet         what the run is to score, frozen before it begins
      explanations/run_date=2026-11-20/run_id=ID/SHA256.png       what raised an alert, in red on its picture
      runs/run_id=ID/run.html                                     the night on one page
      runs/run_id=ID.json                                         the commit record, written last

A run is a plan cut into shards. A shard is scored by one worker and written as two objects of fixed names, its scores
last, so a shard whose scores exist is done, and one that died half-way is simply done again. That makes a run resumable
at any point, and a resumed run equal to an undisturbed one.
"""

import datetime
import functools
import hashlib
import json
import logging
import platform
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray
import ray.data
from ray.util.annotations import RayDeprecationWarning

import melanoma
from melanoma import privacy, ray_session, storage
from melanoma.errors import InputError, MelanomaError
from melanoma.imaging.decode import PREPROCESSING, READS
from melanoma.imaging.errors import TRANSIENT, UNREAD
from melanoma.imaging.limits import Limits
from melanoma.model.bundle import Bundle
from melanoma.model.bundle import load as load_bundle
from melanoma.scoring import alerts as alerting
from melanoma.scoring import drift, lease, run_page, tables
from melanoma.scoring import listing as archives
from melanoma.scoring import plan as plans
from melanoma.scoring.config import ScoreConfig
from melanoma.scoring.plan import Plan
from melanoma.scoring.progress import Watch, exported, logged
from melanoma.scoring.shard import NetworkOnGpu, ShardScorer, fetch

_READ_TOGETHER = 16  # objects
_SHARDS_A_WORKER = 16
_LARGEST_SHARD = 4096  # images
_NIGHTS_COMPARED = 30
LOG = logging.getLogger("melanoma.scoring")  # one line of JSON a minute


@dataclass(frozen=True)
class Outcome:
    """A committed run: its record, and whether this call did anything."""

    record: dict[str, Any]
    changed: bool


def score(
    config: ScoreConfig,
    on_progress: Callable[[Watch], None] = lambda watch: None,
    say: Callable[[str], None] = print,
) -> Outcome:
    """Score an archive and publish the run, on the cluster that `ray_session.connect` finds or starts.

    Raises InputError before anything is written where the bundle, the archive or the output cannot be used, and
    MelanomaError where the run failed under way; the same call then resumes it.
    """
    privacy.from_environment(config.hold_back_annotated)  # what is wrong with it is said before anything is done
    bundle = load_bundle(config.bundle)
    out = storage.normalize(config.out)
    today = config.run_date or _today()  # a run may end on another day than it began
    key = _key(config, bundle)
    while True:
        try:
            if outcome := _finished(config, out, key, run_id := _choose_run(config, out, key, today)):
                return outcome
            if not plans.read(out, run_id):
                _refuse_to_begin(config, out)
            with lease.hold(storage.join(out, "runs", f"key={key}", "lease.json"), say, config.patience) as check_lease:
                # Again: another driver may have had the lease until now.
                if outcome := _finished(config, out, key, run_id := _choose_run(config, out, key, today)):
                    return outcome
                plan = _open_run(config, out, bundle, key, run_id, today, say, check_lease)
                record = _work(config, plan, bundle, on_progress, say, check_lease)
        except storage.UnavailableError as error:
            raise MelanomaError(f"{error} The same command tries again.") from None
        except OSError as error:
            raise InputError(f"The output {config.out} cannot be used: {error}") from None
        if config.all or config.run_id or plan.run_date >= today:
            return Outcome(record, changed=True)
        say(f"The run {plan.run_id} of an earlier night is finished; now today's.")


def _work(
    config: ScoreConfig,
    plan: Plan,
    bundle: Bundle,
    on_progress: Callable[[Watch], None],
    say: Callable[[str], None],
    check_lease: Callable[[], None],
) -> dict[str, Any]:
    began = time.monotonic()

    def follow(watch: Watch) -> None:
        check_lease()
        on_progress(watch)

    try:
        stages = _score_shards(config, plan, bundle, follow, say)
        return _publish(config, plan, bundle, stages, began, check_lease, say)
    except (ray.exceptions.RayError, OSError) as error:
        raise MelanomaError(
            f"The run {plan.run_id} failed: {_reason(error)}. The same command goes on with it."
        ) from error


# --- Locate: the plan of a run -----------------------------------------------------------------------------------


def _choose_run(config: ScoreConfig, out: str, key: str, today: str) -> str:
    """The id of the run to work on: the one that is asked for, one that was cut off, or a new one of today."""
    return config.run_id or _unfinished(out, key, config.run_date) or f"{today}-{key}"


def _finished(config: ScoreConfig, out: str, key: str, run_id: str) -> Outcome | None:
    if not storage.exists(_record_uri(out, run_id)):
        return None
    record = storage.read_json(_record_uri(out, run_id))
    _refuse_other_run(run_id, record, key, config.run_date)
    return Outcome(record, changed=False)


def _refuse_to_begin(config: ScoreConfig, out: str) -> None:
    """Raise InputError where there is nothing to score or no place to write to, before the lease is written."""
    for place in _places(config):
        if f"{out}/".startswith(f"{place}/"):
            raise _in_the_archive(out, place)
    next(_listed(config, out))
    storage.check_writable(config.out)


def _in_the_archive(out: str, place: str) -> InputError:
    return InputError(
        f"The output {out} lies in the archive {place}, and its files would be scored the next night: choose another "
        "place for one of the two."
    )


def _open_run(
    config: ScoreConfig,
    out: str,
    bundle: Bundle,
    key: str,
    run_id: str,
    today: str,
    say: Callable[[str], None],
    check_lease: Callable[[], None],
) -> Plan:
    """The plan to work on, new or resumed."""
    places, records = _places(config), committed_runs(out)
    own = privacy.from_environment(config.hold_back_annotated).fingerprint()
    if plan := plans.read(out, run_id):
        _refuse_other_run(run_id, plan.about, key, config.run_date)
        if plan.about.get("pseudonym_key") != own:
            raise InputError(
                f"The run {run_id} was begun with another {privacy.KEY}, or with none: set the one that it has, so "
                "that a patient goes by one name in it."
            )
        for record in records:
            if record["key"] == key and record["finished_at"] > plan.about["planned_at"]:
                raise InputError(
                    f"The run {run_id} was cut off, and {record['run_id']}, which came after it, has done its work: "
                    "there is nothing to go on with."
                )
        say(f"Going on with the run {run_id}.")
        return plan
    if not own and records and records[-1].get("pseudonym_key"):
        raise InputError(
            f"The last run in {out} wrote pseudonyms, and {privacy.KEY} is not set now: set it, or choose another "
            "output, so that no patient's identifier gets among them."
        )
    about = {
        "key": key,
        "pseudonym_key": own,
        "run_date": today,
        "archive": places[0] if len(places) == 1 else places,
        "model_version": bundle.version,
        "preprocessing": PREPROCESSING,
        "reads": READS,
        "planned_at": _now().isoformat(timespec="seconds"),
    }
    done = [] if config.all else _done_before(out, bundle, records)
    plan = plans.freeze(
        out,
        run_id,
        about,
        _listed(config, out),
        done,
        functools.partial(_shard_size, config),
        check_lease,
        config.patience,
    )
    counts = plan.about
    say(f"{counts['listed']} objects listed, {counts['done_before']} of them done before by this model.")
    return plan


def _shard_size(config: ScoreConfig, images: int) -> int:
    """Images a shard, in whole batches: large enough that what a shard costs does not count, and so many of them that
    no worker waits long for the last."""
    if config.shard_size:
        return config.shard_size
    ray_session.connect()
    share = (config.workers or ray_session.cores()) * _SHARDS_A_WORKER * config.batch_size
    return min(_LARGEST_SHARD, -(-images // share) * config.batch_size)


def _places(config: ScoreConfig) -> list[str]:
    """The archives, in an order that is not the caller's."""
    return sorted(
        {
            storage.normalize(place)
            for place in ([config.archive] if isinstance(config.archive, str) else config.archive)
        }
    )


def _listed(config: ScoreConfig, out: str) -> Iterator[storage.ObjectInfo]:
    """The objects of the archives; raises InputError where they cannot be listed, or there are none, or they are the
    results of this program, and UnavailableError."""
    number, places = 0, _places(config)
    try:
        for info in archives.objects(places, storage.Store(config.patience)):
            if info.uri.startswith(f"{out}/"):
                raise _in_the_archive(out, " ".join(places))
            number += 1
            yield info
    except storage.UnavailableError:
        raise
    except OSError as error:
        raise InputError(f"The archive {' '.join(places)} cannot be listed: {error}") from None
    if not number:
        raise InputError(f"The archive {' '.join(places)} holds no objects: nothing was written.")


def _key(config: ScoreConfig, bundle: Bundle) -> str:
    """What makes two calls the same run: the archives, the model, and whether all is to be scored again."""
    words = json.dumps([_places(config), bundle.version, PREPROCESSING, config.all])
    return hashlib.sha256(words.encode()).hexdigest()[:10]


def _refuse_other_run(run_id: str, about: dict[str, Any], key: str, run_date: str | None) -> None:
    if about["key"] != key or run_date not in (None, about["run_date"]):
        raise InputError(
            f"The run {run_id} exists and is another one (of {about['run_date']}, archive {about['archive']}, model "
            f"{about['model_version']}): choose another --run-id."
        )


def _record_uri(out: str, run_id: str) -> str:
    return storage.join(out, "runs", f"run_id={run_id}.json")


def _names_below(uri: str) -> list[str]:
    """The URIs of the objects below `uri`; none where it does not exist."""
    try:
        return [info.uri for info in storage.list_objects(uri)]
    except FileNotFoundError:
        return []


def _unfinished(out: str, key: str, run_date: str | None) -> str | None:
    """The newest run of this key with a plan and without a commit record, unless a later one has done its work."""
    names = _names_below(storage.join(out, "runs"))
    committed = {storage.name(uri) for uri in names}
    records = committed_runs(out)
    finished = max((record["finished_at"] for record in records if record["key"] == key), default="")
    found = []
    for uri in names:
        folder = storage.name(storage.parent(uri))
        if storage.name(uri) == "plan.json" and f"{folder}.json" not in committed:
            about, run_id = storage.read_json(uri), folder.removeprefix("run_id=")
            if about["key"] == key and run_date in (None, about["run_date"]) and about["planned_at"] >= finished:
                found.append((about["planned_at"], run_id))
    return max(found)[1] if found else None


def committed_runs(out: str) -> list[dict[str, Any]]:
    """The commit records below `out`, oldest first."""
    root = storage.join(out, "runs")
    names = [uri for uri in _names_below(root) if storage.parent(uri) == root and uri.endswith(".json")]
    with ThreadPoolExecutor(_READ_TOGETHER) as pool:
        return sorted(pool.map(storage.read_json, names), key=lambda record: str(record["finished_at"]))


def _done_before(out: str, bundle: Bundle, records: list[dict[str, Any]]) -> list[plans.Done]:
    """Of the committed runs those of this model and preprocessing."""
    done = []
    for record in records:
        if (record["model_version"], record["preprocessing"]) != (bundle.version, PREPROCESSING):
            continue
        if plan := plans.read(out, record["run_id"]):
            kinds = record["counts"]["rejects_by_kind"]
            again = (*TRANSIENT, *(UNREAD if plan.about.get("reads", 1) < READS else ()))
            rejects = plan.shards if any(kinds.get(kind) for kind in again) else []
            uris = [plan.result_uri("rejects", shard) for shard in rejects]
            done.append(plans.Done(plan.run_id, [plan.uri(shard) for shard in plan.shards], again, uris))
    return done


# --- Fetch, decode, predict, triage, write: shards, in workers --------------------------------------------------------


def _score_shards(
    config: ScoreConfig,
    plan: Plan,
    bundle: Bundle,
    on_progress: Callable[[Watch], None],
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Score the shards that are not done yet, on the cluster; returns what it took."""
    done = set(_names_below(plan.folder("scores")))
    pending = [shard for shard in plan.shards if plan.result_uri("scores", shard) not in done]
    before = plan.images - sum(plan.images_of(shard) for shard in pending)
    if before:
        say(f"{before} of {plan.images} images were done before the interruption.")
    if pending:
        ray_session.connect()
    workers = min(config.workers or ray_session.cores(), len(pending)) if pending else 0
    watch = Watch(plan.images, before, len(pending), workers)
    if not pending:
        return watch.state()
    on_gpu = ray.remote(num_cpus=0, num_gpus=1, max_restarts=3, max_task_retries=3)(NetworkOnGpu)
    number = ray_session.gpus() if config.gpus is None else config.gpus
    if number > ray_session.gpus():
        raise InputError(f"gpus is {number}: the cluster has {ray_session.gpus()}.")
    gpus = [on_gpu.remote(bundle, config.batch_size) for _ in range(number)]
    with warnings.catch_warnings():
        # Deprecated as of 2.60, which has no other way to bound the restarts: they are endless by default, and a file
        # that kills the process must end the run with a word.
        warnings.simplefilter("ignore", RayDeprecationWarning)
        dataset = ray.data.from_arrow([pa.table({"shard": [shard]}) for shard in pending]).map_batches(
            ShardScorer,
            batch_size=None,
            batch_format="pyarrow",
            num_cpus=1,
            compute=ray.data.ActorPoolStrategy(min_size=1, max_size=workers, initial_size=workers),
            fn_constructor_args=(bundle, plan, config, privacy.from_environment(config.hold_back_annotated), gpus),
            max_restarts=3,
            max_task_retries=3,
        )
    with exported(watch, plan.run_id, config.metrics_host, config.metrics_port), logged(watch, plan.run_id, LOG.info):
        for report in dataset.iter_rows():
            watch.add(report)
            on_progress(watch)
        watch.end()
    return watch.state()


# --- Publish: alerts as one object, then the commit record -----------------------------------------------------------


def _publish(
    config: ScoreConfig,
    plan: Plan,
    bundle: Bundle,
    stages: dict[str, Any],
    began: float,
    check_lease: Callable[[], None],
    say: Callable[[str], None],
) -> dict[str, Any]:
    raised, kinds = [tables.SCORES.empty_table()], Counter[str]()
    measured, examples = [_measured(tables.SCORES.empty_table())], dict[str, list[dict[str, Any]]]()
    wrong, unreadable, unread, reason = [], [], 0, ""
    store = storage.Store(config.patience)
    for shard, (planned, scores, rejects) in _results(plan, store):
        uris = scores["image_uri"].to_pylist() + rejects["image_uri"].to_pylist()
        if Counter(uris) != Counter(planned["image_uri"].to_pylist()):
            wrong.append(shard)
        kinds.update(rejects["error_kind"].to_pylist())
        for kind in set(rejects["error_kind"].to_pylist()) if len(rejects) else ():
            held = examples.setdefault(kind, [])
            more = rejects.filter(pc.equal(rejects["error_kind"], kind)).slice(0, run_page.EXAMPLES_SHOWN - len(held))
            held += more.to_pylist()
        # What was not readable in an earlier night, too, says nothing of this one.
        new = planned.filter(pc.invert(planned["tried"]))["image_uri"]
        transient = pc.is_in(rejects["error_kind"], pa.array(TRANSIENT))
        lost = rejects.filter(pc.and_(transient, pc.is_in(rejects["image_uri"], new)))
        if len(lost):
            unreadable.append(shard)
            unread += len(lost)
            reason = reason or lost["error"][0].as_py()
        measured.append(_measured(scores))
        raised.append(scores.filter(pc.not_equal(scores["alert_level"], "none")))
    check_lease()
    if wrong:
        # Two drivers at work on one run can leave the scores of one beside the rejects of the other.
        _undo(plan, wrong)
        raise MelanomaError(
            f"The run {plan.run_id} is not committed: in {len(wrong)} of its shards the scores and rejects are not the "
            "images that were planned. They are undone: the same command scores them again."
        )
    if unread > 1 and unread > config.max_access_share * plan.about["untried"]:
        _undo(plan, unreadable)
        raise MelanomaError(
            f"The run {plan.run_id} is not committed: {unread} of {plan.about['untried']} images could not be read "
            f"(max_access_share is {config.max_access_share:g}), the first because: {reason} Let every node read the "
            f"archive: the same command tries again what lies in their {len(unreadable)} shard(s)."
        )
    earlier = [record for record in committed_runs(plan.out) if record["run_id"] != plan.run_id]
    alerts = alerting.ranked(pa.concat_tables(raised), _alerts_before(plan.out, earlier))
    alerts, shown, failed = _explained(config, plan, bundle, alerts, say)
    check_lease()
    store.write_table(storage.join(plan.folder("alerts"), "alerts.parquet"), alerts)
    levels = Counter(alerts["alert_level"].to_pylist())
    record = {
        **plan.about,
        "run_id": plan.run_id,
        "finished_at": _now().isoformat(timespec="seconds"),
        "counts": {
            "listed": plan.about["listed"],
            "done_before": plan.about["done_before"],
            "scored": plan.images - sum(kinds.values()),
            "rejected": sum(kinds.values()),
            "rejects_by_kind": dict(sorted(kinds.items())),
            "alerts": len(alerts),
            "urgent": levels["urgent"],
            "review": levels["review"],
        },
        "thresholds": bundle.manifest["thresholds"],
        "distribution": run_page.distribution(
            {name: np.concatenate([part[name] for part in measured]) for name in measured[0]}
        ),
        "seconds": round(time.monotonic() - began, 3),
        "stages": stages,
        "versions": {
            "melanoma": melanoma.__version__,
            "python": platform.python_version(),
            **{name: version(name) for name in ("keras", "tensorflow", "ray", "pillow", "pyarrow")},
        },
    }
    alike = [each for each in earlier if each["key"] == plan.about["key"]][-_NIGHTS_COMPARED:]
    try:
        html = run_page.render(record, alike, alerts.to_pylist(), shown, dict(sorted(examples.items())), failed)
    except Exception as error:  # as above
        say(f"The page of the night could not be made: {_reason(error)}.")
    else:
        uri = storage.join(plan.out, "runs", f"run_id={plan.run_id}", "run.html")
        store.write_bytes(uri, html.encode())
    if plans.read(plan.out, plan.run_id) != plan:
        raise MelanomaError(f"The run {plan.run_id} has been planned anew by another driver: this one ends.")
    check_lease()
    store.write_json(_record_uri(plan.out, plan.run_id), record)
    return record


def _results(plan: Plan, store: storage.Store) -> Iterator[tuple[int, tuple[pa.Table, pa.Table, pa.Table]]]:
    """Of each shard what was planned, the scores and the rejects; some shards are read at a time."""

    def read(shard: int) -> tuple[pa.Table, pa.Table, pa.Table]:
        return (
            store.read_table(plan.uri(shard), ["image_uri", "tried"]),
            # A run may have been begun by an earlier version of this program.
            storage.completed(store.read_table(plan.result_uri("scores", shard)), tables.SCORES),
            store.read_table(plan.result_uri("rejects", shard), ["image_uri", "error_kind", "error"]),
        )

    with ThreadPoolExecutor(_READ_TOGETHER) as pool:
        for first in range(0, len(plan.shards), _READ_TOGETHER):
            some = plan.shards[first : first + _READ_TOGETHER]
            yield from zip(some, pool.map(read, some), strict=True)


def _undo(plan: Plan, shards: list[int]) -> None:
    for shard in shards:
        storage.delete(plan.result_uri("scores", shard))


def _measured(scores: pa.Table) -> dict[str, np.ndarray]:
    """Of every image what the distribution of a night is made of."""
    flat = scores.select(["quality", "outlier_score", *drift.PROBABILITY]).flatten()
    names = {"sharpness": "quality.sharpness", "exposure": "quality.exposure"}
    return {name: flat[names.get(name, name)].to_numpy() for name in (*drift.PICTURE, *drift.PROBABILITY)}


def _alerts_before(out: str, records: list[dict[str, Any]]) -> pa.Table:
    """What the other committed runs have raised, whatever their archive and model."""
    with ThreadPoolExecutor(_READ_TOGETHER) as pool:
        tables = pool.map(lambda record: alerts_of(out, record).select(alerting.EARLIER.names), records)
        return pa.concat_tables([alerting.EARLIER.empty_table(), *(table.cast(alerting.EARLIER) for table in tables)])


def _explained(
    config: ScoreConfig, plan: Plan, bundle: Bundle, alerts: pa.Table, say: Callable[[str], None]
) -> tuple[pa.Table, list[run_page.Shown], str | None]:
    """The alerts with their explanations, what the page shows of them, and why it shows nothing, if so: no picture is
    worth an alert."""
    rows = alerts.slice(0, config.explained).to_pylist()
    if not rows:
        return alerts, [], None
    limits, store = Limits(config.max_bytes, config.max_pixels), storage.Store(config.patience)
    try:
        planned = _planned_rows(plan, {row["image_uri"] for row in rows}, store)
        shown = run_page.pictures(rows, lambda uri: fetch(planned[uri], limits, store), bundle, limits)
        folder = plans.folder(plan.out, "explanations", plan.run_date, plan.run_id)
        return run_page.write_explanations(folder, alerts, shown, store), shown, None
    except Exception as error:
        failed = f"The alerts could not be explained: {_reason(error)}."
        say(failed)
        return alerts, [run_page.Shown() for _ in rows], failed


def _planned_rows(plan: Plan, uris: set[str], store: storage.Store) -> dict[str, dict[str, Any]]:
    """What the plan says of some images, by URI."""
    wanted = pa.array(sorted(uris))

    def of_shard(shard: int) -> list[dict[str, Any]]:
        table = storage.completed(store.read_table(plan.uri(shard)), plans.SHARD)
        return list(table.filter(pc.is_in(table["image_uri"], wanted)).to_pylist())

    with ThreadPoolExecutor(_READ_TOGETHER) as pool:
        return {row["image_uri"]: row for rows in pool.map(of_shard, plan.shards) for row in rows}


def read_alerts(out: str, date: str | None = None) -> pa.Table:
    """The alerts of the committed runs of a date (the newest date without one), the most probable melanoma first.

    Raises InputError where there is no committed run.
    """
    tables = [alerts_of(storage.normalize(out), record) for record in runs_of(out, date)]
    return pa.concat_tables(tables).sort_by([("p_melanoma", "descending"), ("image_uri", "ascending")])


def runs_of(out: str, date: str | None = None) -> list[dict[str, Any]]:
    """The commit records of the runs of a date, the newest without one; raises InputError as above."""
    root = storage.normalize(out)
    try:
        records = committed_runs(root)
    except OSError as error:
        raise InputError(f"The output {out} cannot be read: {error}") from None
    if not records:
        raise InputError(f"{out} holds no finished run: score an archive with `melanoma score`.")
    date = date or max(record["run_date"] for record in records)
    runs = [record for record in records if record["run_date"] == date]
    if not runs:
        dates = ", ".join(sorted({record["run_date"] for record in records}))
        raise InputError(f"{out} holds no finished run of {date}: there are runs of {dates}.")
    return runs


def alerts_of(out: str, record: Mapping[str, Any]) -> pa.Table:
    """The alerts of a run, `tables.ALERTS`, by its commit record. Raises InputError and OSError."""
    uri = storage.join(plans.folder(out, "alerts", record["run_date"], record["run_id"]), "alerts.parquet")
    return storage.completed(storage.read_table(uri), tables.ALERTS)


def _today() -> str:
    return _now().date().isoformat()


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)


def _reason(error: BaseException) -> str:
    """What went wrong, in one line: of a worker's error its own, without Ray's account of how it came here."""
    own = str(error).split("The above exception was the direct cause")[0]
    lines = [line.strip() for line in own.splitlines() if line.strip()]
    return lines[-1].rstrip(".") if lines else type(error).__name__
