"""An archive becomes published Parquet. The way of an image, top to bottom: locate, fetch, decode, predict, triage,
write.

- locate: `listing` lists the archives, and `plan` freezes what the run is to score, cut into shards;
- fetch, decode, predict, triage, write: a worker does it for one shard after the other, see `fetch` and `shard`;
- publish: `publish` makes alerts, page and commit record of the shards' results.

One driver at a time works on a run, see `lease`. A run that died is resumed by the same call: its plan is there, and
`shard` says which shards are done. `layout` says where the files lie, and `results` reads them back.
"""

import functools
import hashlib
import json
import logging
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import pyarrow as pa
import ray
import ray.data
from ray.util.annotations import RayDeprecationWarning

from melanoma import privacy, ray_session, storage
from melanoma.errors import InputError, MelanomaError
from melanoma.imaging.decode import PREPROCESSING, READS
from melanoma.imaging.errors import TRANSIENT, UNREAD
from melanoma.model.bundle import Bundle
from melanoma.model.bundle import load as load_bundle
from melanoma.scoring import layout, lease, listing, results, shard
from melanoma.scoring import plan as plans
from melanoma.scoring import record as records
from melanoma.scoring.config import ScoreConfig
from melanoma.scoring.plan import Plan
from melanoma.scoring.progress import Progress, exported, logged
from melanoma.scoring.publish import Run, publish, reason
from melanoma.scoring.record import PlanDetails, RunHeader, RunRecord, Stages
from melanoma.storage import Store

_SHARDS_A_WORKER = 16
_LARGEST_SHARD = 4096  # images
LOG = logging.getLogger("melanoma.scoring")  # one line of JSON a minute


@dataclass(frozen=True)
class Outcome:
    """A committed run: its record, and whether this call did anything."""

    record: RunRecord
    changed: bool


@dataclass(frozen=True)
class _Request:
    """What a call asks for."""

    config: ScoreConfig
    bundle: Bundle
    out: str  # normal URI
    archives: list[str]  # normal URIs, in an order that is not the caller's
    today: str  # a run may end on another day than it began
    key: str
    store: Store


def score(
    config: ScoreConfig,
    on_progress: Callable[[Progress], None] = lambda progress: None,
    say: Callable[[str], None] = print,
) -> Outcome:
    """Score an archive and publish the run, on the cluster that `ray_session.connect` finds or starts.

    A run of an earlier night that was cut off is finished first. Raises InputError before anything is written where the
    bundle, the archive or the output cannot be used, and MelanomaError where the run failed under way; the same call
    then resumes it.
    """
    request = _request(config)
    while True:
        try:
            outcome = _next_run(request, on_progress, say)
        except storage.UnavailableError as error:
            raise MelanomaError(f"{error} The same command tries again.") from None
        except OSError as error:
            raise InputError(f"The output {config.out} cannot be used: {error}") from None
        if not outcome.changed or config.all or config.run_id or outcome.record.run_date >= request.today:
            return outcome
        say(f"The run {outcome.record.run_id} of an earlier night is finished; now today's.")


def _request(config: ScoreConfig) -> _Request:
    privacy.from_environment(config.hold_back_annotated)  # refuses a key that is none
    bundle = load_bundle(config.bundle)
    archives = sorted(
        {
            storage.normalize(archive)
            for archive in ([config.archive] if isinstance(config.archive, str) else config.archive)
        }
    )
    # Two calls with the same key are the same run.
    words = json.dumps([archives, bundle.version, PREPROCESSING, config.all])
    key = hashlib.sha256(words.encode()).hexdigest()[:10]
    today = config.run_date or records.now().date().isoformat()
    return _Request(config, bundle, storage.normalize(config.out), archives, today, key, Store(config.patience))


def _next_run(request: _Request, on_progress: Callable[[Progress], None], say: Callable[[str], None]) -> Outcome:
    """Finish one run: the one asked for, one that was cut off, or a new one."""
    run_id = _choose_run(request)
    if outcome := _finished(request, run_id):
        return outcome
    if not plans.read(request.out, run_id):
        _refuse_to_begin(request)
    with lease.hold(layout.run_lease(request.out, request.key), say, request.store) as confirm_held:
        # Another driver may have had the lease until now, and finished the run.
        run_id = _choose_run(request)
        if outcome := _finished(request, run_id):
            return outcome
        plan = _resumed_plan(request, run_id, say) or _new_plan(request, run_id, say, confirm_held)
        run = Run(request.config, request.bundle, plan, request.store, confirm_held, say)
        began = time.monotonic()
        try:
            stages = _score_shards(run, on_progress)
            return Outcome(publish(run, stages, began), changed=True)
        except (ray.exceptions.RayError, OSError) as error:
            raise MelanomaError(
                f"The run {plan.run_id} failed: {reason(error)}. The same command resumes it."
            ) from error


# --- Which run --------------------------------------------------------------------------------------------------------


def _choose_run(request: _Request) -> str:
    """The id of the run to work on: the one that is asked for, one that was cut off, or a new one of today."""
    return request.config.run_id or _cut_off(request) or f"{request.today}-{request.key}"


def _cut_off(request: _Request) -> str | None:
    """The newest run of this key with a plan and without a commit record, unless a later one has done its work."""
    uris = results.uris_below(layout.runs(request.out))
    committed = {storage.name(uri) for uri in uris}
    of_key = [record for record in results.committed_runs(request.out) if record.key == request.key]
    finished = max((record.finished_at for record in of_key), default="")
    found = []
    for uri in uris:
        folder = storage.name(storage.parent(uri))
        if storage.name(uri) == "plan.json" and f"{folder}.json" not in committed:
            details = records.read(PlanDetails, uri)
            is_asked_for = details.key == request.key and request.config.run_date in (None, details.run_date)
            if is_asked_for and details.planned_at >= finished:
                found.append((details.planned_at, folder.removeprefix("run_id=")))
    return max(found)[1] if found else None


def _finished(request: _Request, run_id: str) -> Outcome | None:
    uri = layout.record(request.out, run_id)
    if not storage.exists(uri):
        return None
    record = records.read(RunRecord, uri)
    _refuse_other_run(request, run_id, record)
    return Outcome(record, changed=False)


def _refuse_other_run(request: _Request, run_id: str, found: RunHeader) -> None:
    if found.key != request.key or request.config.run_date not in (None, found.run_date):
        archive = found.archive if isinstance(found.archive, str) else ", ".join(found.archive)
        raise InputError(
            f"The run {run_id} exists and is another one (of {found.run_date}, archive {archive}, model "
            f"{found.model_version}): choose another --run-id."
        )


# --- Locate: the plan of the run --------------------------------------------------------------------------------------


def _refuse_to_begin(request: _Request) -> None:
    """Raise InputError where there is nothing to score or no place to write to, before the lease is written."""
    for archive in request.archives:
        if f"{request.out}/".startswith(f"{archive}/"):
            raise _in_the_archive(request.out, archive)
    next(_listed(request))
    storage.check_writable(request.config.out)


def _in_the_archive(out: str, archive: str) -> InputError:
    return InputError(
        f"The output {out} lies in the archive {archive}, and its files would be scored the next night: choose another "
        "place for one of the two."
    )


def _resumed_plan(request: _Request, run_id: str, say: Callable[[str], None]) -> Plan | None:
    """The plan of a run that was cut off; raises InputError where this call may not resume it."""
    plan = plans.read(request.out, run_id)
    if plan is None:
        return None
    _refuse_other_run(request, run_id, plan.details)
    if plan.details.pseudonym_key != _privacy(request).fingerprint():
        raise InputError(
            f"The run {run_id} was begun with another {privacy.KEY}, or with none: set the one that it has, so that a "
            "patient goes by one name in it."
        )
    for record in results.committed_runs(request.out):
        if record.key == request.key and record.finished_at > plan.details.planned_at:
            raise InputError(
                f"The run {run_id} was cut off, and {record.run_id}, which came after it, has done its work: there is "
                "nothing to resume."
            )
    say(f"Resuming the run {run_id}.")
    return plan


def _new_plan(request: _Request, run_id: str, say: Callable[[str], None], confirm_held: Callable[[], None]) -> Plan:
    committed, pseudonym_key = results.committed_runs(request.out), _privacy(request).fingerprint()
    if not pseudonym_key and committed and committed[-1].pseudonym_key:
        raise InputError(
            f"The last run in {request.out} wrote pseudonyms, and {privacy.KEY} is not set now: set it, or choose "
            "another output, so that no patient's identifier gets among them."
        )
    header = RunHeader(
        key=request.key,
        pseudonym_key=pseudonym_key,
        run_date=request.today,
        archive=request.archives[0] if len(request.archives) == 1 else tuple(request.archives),
        model_version=request.bundle.version,
        preprocessing=PREPROCESSING,
        reads=READS,
        planned_at=records.now().isoformat(timespec="seconds"),
    )
    plan = plans.freeze(
        request.out,
        run_id,
        header,
        _listed(request),
        [] if request.config.all else _done_before(request, committed),
        functools.partial(_shard_size, request.config),
        confirm_held,
        request.store,
    )
    say(f"{plan.details.listed} objects listed, {plan.details.done_before} of them done before by this model.")
    return plan


def _privacy(request: _Request) -> privacy.Privacy:
    return privacy.from_environment(request.config.hold_back_annotated)


def _listed(request: _Request) -> Iterator[storage.ObjectInfo]:
    """The objects of the archives. Raises UnavailableError; and InputError where they cannot be listed, there are none,
    or they are the results of this program."""
    is_empty, names = True, " ".join(request.archives)
    try:
        for info in listing.objects(request.archives, request.store):
            if info.uri.startswith(f"{request.out}/"):
                raise _in_the_archive(request.out, names)
            is_empty = False
            yield info
    except storage.UnavailableError:
        raise
    except OSError as error:
        raise InputError(f"The archive {names} cannot be listed: {error}") from None
    if is_empty:
        raise InputError(f"The archive {names} holds no objects: nothing was written.")


def _done_before(request: _Request, committed: Sequence[RunRecord]) -> list[plans.Done]:
    """The committed runs of this model and preprocessing."""
    done = []
    for record in committed:
        if (record.model_version, record.preprocessing) != (request.bundle.version, PREPROCESSING):
            continue
        if plan := plans.read(request.out, record.run_id):
            retried_kinds = (*TRANSIENT, *(UNREAD if plan.details.reads < READS else ()))
            has_retried = any(record.counts.rejects_by_kind.get(kind) for kind in retried_kinds)
            reject_uris = [plan.result_uri("rejects", number) for number in plan.shards] if has_retried else []
            plan_uris = [plan.uri(number) for number in plan.shards]
            done.append(plans.Done(plan.run_id, plan_uris, retried_kinds, reject_uris))
    return done


def _shard_size(config: ScoreConfig, images: int) -> int:
    """Images a shard, in whole batches: large enough that the fixed cost of a shard does not count, and small enough
    that no worker waits long for the last shard."""
    if config.shard_size:
        return config.shard_size
    ray_session.connect()
    share = (config.workers or ray_session.cores()) * _SHARDS_A_WORKER * config.batch_size
    return min(_LARGEST_SHARD, -(-images // share) * config.batch_size)


# --- Fetch, decode, predict, triage, write: shards, in workers --------------------------------------------------------


def _score_shards(run: Run, on_progress: Callable[[Progress], None]) -> Stages:
    """Score the shards that are not done yet, on the cluster; returns what it took."""
    config, plan = run.config, run.plan
    unscored = shard.unscored(plan)
    before = plan.images - sum(plan.images_of(number) for number in unscored)
    if before:
        run.say(f"{before} of {plan.images} images were done before the interruption.")
    if not unscored:
        return Progress(plan.images, before, shards=0, workers=0).stages()
    ray_session.connect()
    workers = min(config.workers or ray_session.cores(), len(unscored))
    progress = Progress(plan.images, before, len(unscored), workers)
    reports = _reports(run, unscored, workers)
    with (
        exported(progress, plan.run_id, config.metrics_host, config.metrics_port),
        logged(progress, plan.run_id, LOG.info),
    ):
        for report in reports.iter_rows():
            progress.add(report)
            run.confirm_held()
            on_progress(progress)
        progress.end()
    return progress.stages()


def _reports(run: Run, unscored: Sequence[int], workers: int) -> ray.data.Dataset:
    """A row for each shard once it is scored: the thin layer of Ray."""
    config = run.config
    gpus = ray_session.gpus() if config.gpus is None else config.gpus
    if gpus > ray_session.gpus():
        raise InputError(f"gpus is {gpus}: the cluster has {ray_session.gpus()}.")
    on_gpu = ray.remote(num_cpus=0, num_gpus=1, max_restarts=3, max_task_retries=3)(shard.NetworkOnGpu)
    networks = [on_gpu.remote(run.bundle, config.batch_size) for _ in range(gpus)]
    protection = privacy.from_environment(config.hold_back_annotated)
    with warnings.catch_warnings():
        # Deprecated as of 2.60, which has no other way to bound the restarts: they are endless by default, and a file
        # that kills the process must end the run with a word.
        warnings.simplefilter("ignore", RayDeprecationWarning)
        return ray.data.from_arrow([pa.table({"shard": [number]}) for number in unscored]).map_batches(
            shard.ShardScorer,
            batch_size=None,
            batch_format="pyarrow",
            num_cpus=1,
            compute=ray.data.ActorPoolStrategy(min_size=1, max_size=workers, initial_size=workers),
            fn_constructor_args=(run.bundle, run.plan, config, protection, networks),
            max_restarts=3,
            max_task_retries=3,
        )
