"""An archive becomes published Parquet. The way of an image, top to bottom: locate, fetch, decode, predict, triage,
write.

- locate: `listing` lists the archives, and `plan` freezes what the run is to score, cut into shards;
- fetch, decode, predict, triage, write: a worker does it for one shard after the other, see `fetch` and `shard`;
- publish: `publish` makes alerts, page and commit record of the shards' results.

One driver at a time works on a run, see `lease`. A run that died is resumed by the same call: its plan is there, and
`shard` says which shards are done. `layout` says where the files lie, and `results` reads them back.
"""

import contextlib
import dataclasses
import functools
import hashlib
import itertools
import json
import logging
import os
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import ray

from melanoma import privacy, ray_session, storage
from melanoma.errors import InputError, MelanomaError
from melanoma.imaging.decode import PREPROCESSING, READS
from melanoma.imaging.errors import TRANSIENT, UNREAD
from melanoma.model.bundle import Bundle
from melanoma.model.bundle import load as load_bundle
from melanoma.model.department import at_operating_point
from melanoma.scoring import begun, layout, lease, listing, pool, results, shard
from melanoma.scoring import plan as plans
from melanoma.scoring import record as records
from melanoma.scoring.config import ScoreConfig
from melanoma.scoring.plan import Plan
from melanoma.scoring.progress import Progress, exported, logged
from melanoma.scoring.publish import Run, publish, reason
from melanoma.scoring.record import PlanDetails, RunHeader, RunRecord, Stages
from melanoma.storage import Store

_RATED = 14  # runs that the duration of the next one is estimated from
_LEAST_RATED = 100  # images: with fewer the start counts for more than the rate
LOG = logging.getLogger("melanoma.scoring")  # one line of JSON a minute


@dataclass(frozen=True)
class Outcome:
    """A committed run: its record, whether this call did anything, and the runs of earlier nights that it finished
    first."""

    record: RunRecord
    changed: bool
    earlier: tuple[RunRecord, ...] = ()


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

    A run of an earlier night that was cut off is finished first, and what is new since a run of today is scored in a
    further one. Raises InputError before anything is written where the bundle, the archive or the output cannot be
    used, and MelanomaError where the run failed under way; the same call then resumes it.
    """
    request = _request(config)
    earlier: list[RunRecord] = []
    while True:
        try:
            outcome = _next_run(request, on_progress, say)
        except storage.UnavailableError as error:
            raise MelanomaError(f"{error} The same command tries again.") from None
        except OSError as error:
            raise InputError(f"The output {config.out} cannot be used: {error}") from None
        if not outcome.changed or config.all or config.run_id or outcome.record.run_date >= request.today:
            return dataclasses.replace(outcome, earlier=tuple(earlier))
        earlier.append(outcome.record)
        say(f"The run {outcome.record.run_id} of an earlier night is finished; now today's.")


def _request(config: ScoreConfig) -> _Request:
    privacy.from_environment(config.hold_back_annotated)  # refuses a key that is none
    store = Store(config.patience)
    config, bundle = _in_form(config, load_bundle(config.bundle, store))
    bundle = at_operating_point(bundle, config.operating_point, store)
    archives = sorted(
        {
            storage.normalize(archive)
            for archive in ([config.archive] if isinstance(config.archive, str) else config.archive)
        }
    )
    # Two calls with the same key are the same run.
    words = [archives, bundle.version, PREPROCESSING, config.all]
    if config.operating_point:  # a run that was cut off is not finished with other thresholds
        words.append(bundle.thresholds.to_json())
    key = hashlib.sha256(json.dumps(words).encode()).hexdigest()[:10]
    today = config.run_date or records.now().date().isoformat()
    return _Request(config, bundle, storage.normalize(config.out), archives, today, key, store)


def _in_form(config: ScoreConfig, bundle: Bundle) -> tuple[ScoreConfig, Bundle]:
    """The bundle in the form that the run uses, and the configuration: a compiled form takes no GPU."""
    on_gpus = bool(config.gpus)
    if bundle.manifest.compiled and config.network == "auto" and config.gpus is None:
        ray_session.connect()
        on_gpus = ray_session.gpus(config.gpu_labels) > 0
    bundle = bundle.in_form(config.network, on_gpus)
    return (config.model_copy(update={"gpus": 0}) if bundle.is_compiled else config), bundle


def _next_run(request: _Request, on_progress: Callable[[Progress], None], say: Callable[[str], None]) -> Outcome:
    """Finish one run: the one asked for, one that was cut off, or a new one."""
    run_id = _choose_run(request)
    if outcome := _finished(request, run_id):
        return outcome
    if not plans.read(request.out, run_id, request.store):
        _refuse_to_begin(request)
    with lease.hold(layout.run_lease(request.out, request.key), say, request.store) as confirm_held:
        # Another driver may have had the lease until now, and finished the run.
        run_id = _choose_run(request)
        if outcome := _finished(request, run_id):
            return outcome
        try:
            plan = _resumed_plan(request, run_id, say) or _new_plan(request, run_id, say, confirm_held)
        except plans.NothingToScoreError:
            committed = results.committed_runs(request.out, request.store)
            return Outcome(_of_today(request, committed)[-1], changed=False)
        run = Run(request.config, request.bundle, plan, request.store, confirm_held, say)
        began = time.monotonic()
        try:
            stages = _score_shards(run, on_progress)
            return Outcome(publish(run, stages, began), changed=True)
        except (ray.exceptions.RayError, OSError) as error:
            raise MelanomaError(
                f"The run {plan.run_id} failed: {reason(error)}. The same command resumes it."
            ) from error


@dataclass(frozen=True)
class Preview:
    """What a run would do. `seconds`: by the rates of so many earlier `runs`; None without any."""

    counted: plans.Counted
    images: int  # that the run would score: all that are new, or those within the limit
    seconds: float | None
    runs: int


def preview(config: ScoreConfig) -> Preview:
    """What `score` would do now; nothing is written, and no image is read. Raises InputError and UnavailableError as
    `score` does."""
    request = _request(config)
    try:
        committed = results.committed_runs(request.out, request.store)
        done = _done_before(request, [] if config.all else committed)
        counted = plans.count(_listed(request), done, request.store)
    except storage.UnavailableError:
        raise
    except OSError as error:
        raise InputError(f"The output {config.out} cannot be used: {error}") from None
    images = min(counted.images, config.limit or counted.images)
    rates = [
        record.stages.images_per_second
        for record in committed[-_RATED:]
        if record.stages.scored + record.stages.rejected >= _LEAST_RATED
    ]
    seconds = images / statistics.median(rates) if rates else None
    return Preview(counted, images, seconds, len(rates))


# --- Which run --------------------------------------------------------------------------------------------------------


def _choose_run(request: _Request) -> str:
    """The id of the run to work on: the one that is asked for, one that was cut off, or the next one of today."""
    return request.config.run_id or _cut_off(request) or _next_of_today(request)


def _next_of_today(request: _Request) -> str:
    """DATE-KEY, and for further runs of the day DATE-KEY-2, DATE-KEY-3 and so on."""
    first = f"{request.today}-{request.key}"
    if not request.store.exists(layout.record(request.out, first)):
        return first
    further = (f"{first}-{number}" for number in itertools.count(2))
    # The plan of a run whose work a later one has done stays behind.
    places = (layout.record, layout.plan)
    return next(name for name in further if not any(request.store.exists(at(request.out, name)) for at in places))


def _of_today(request: _Request, committed: Sequence[RunRecord]) -> list[RunRecord]:
    """The runs of today with this key."""
    return [record for record in committed if (record.key, record.run_date) == (request.key, request.today)]


def _cut_off(request: _Request) -> str | None:
    """The newest run of this key with a plan and without a commit record, unless a later one has done its work."""
    uris = results.uris_below(layout.runs(request.out), request.store)
    committed = {storage.name(uri) for uri in uris}
    of_key = [record for record in results.committed_runs(request.out, request.store) if record.key == request.key]
    finished = max((record.finished_at for record in of_key), default="")
    found = []
    for uri in uris:
        folder = storage.name(storage.parent(uri))
        if storage.name(uri) == "plan.json" and f"{folder}.json" not in committed:
            details = records.read(PlanDetails, uri, request.store)
            is_asked_for = details.key == request.key and request.config.run_date in (None, details.run_date)
            if is_asked_for and details.planned_at >= finished:
                found.append((details.planned_at, folder.removeprefix("run_id=")))
    return max(found)[1] if found else None


def _finished(request: _Request, run_id: str) -> Outcome | None:
    uri = layout.record(request.out, run_id)
    if not request.store.exists(uri):
        return None
    record = records.read(RunRecord, uri, request.store)
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
        if storage.is_below(request.out, archive) or (
            os.path.isdir(archive) and storage.is_below(archive, request.out)
        ):
            raise _in_the_archive(request.out, archive)
    next(_listed(request))
    request.store.check_writable(request.config.out)


def _in_the_archive(out: str, archive: str) -> InputError:
    return InputError(
        f"The output {out} lies in the archive {archive}, and its files would be scored the next night: choose another "
        "place for one of the two."
    )


def _resumed_plan(request: _Request, run_id: str, say: Callable[[str], None]) -> Plan | None:
    """The plan of a run that was cut off; raises InputError where this call may not resume it."""
    plan = plans.read(request.out, run_id, request.store)
    if plan is None:
        return None
    _refuse_other_run(request, run_id, plan.details)
    if plan.details.pseudonym_key != _privacy(request).fingerprint():
        raise InputError(
            f"The run {run_id} was begun with another {privacy.KEY}, or with none: set the one that it has, so that a "
            "patient goes by one name in it."
        )
    for record in results.committed_runs(request.out, request.store):
        if record.key == request.key and record.finished_at > plan.details.planned_at:
            raise InputError(
                f"The run {run_id} was cut off, and {record.run_id}, which came after it, has done its work: there is "
                "nothing to resume."
            )
    say(f"Resuming the run {run_id}.")
    return plan


def _new_plan(request: _Request, run_id: str, say: Callable[[str], None], confirm_held: Callable[[], None]) -> Plan:
    """The plan of a new run. Raises NothingToScoreError where it would be a further one of today without any image."""
    committed = results.committed_runs(request.out, request.store)
    of_today = [] if request.config.run_id else _of_today(request, committed)
    pseudonym_key = _privacy(request).fingerprint()
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
        _done_before(request, of_today if request.config.all else committed),
        functools.partial(pool.shard_size, request.config),
        confirm_held,
        request.store,
        may_be_empty=not of_today,
        limit=request.config.limit,
    )
    say(f"{plan.details.listed} objects listed, {plan.details.done_before} of them done before by this model.")
    if plan.details.left_out:
        say(f"{plan.details.left_out} new images are left to a later run: the limit is {request.config.limit}.")
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
            if layout.is_result(info.uri):  # the output may be reached by another name, as a bucket and as a folder
                raise InputError(
                    f"The archive {names} holds results of this program, such as {info.uri}, which would be scored: "
                    "choose another place for one of the two."
                )
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
        if plan := plans.read(request.out, record.run_id, request.store):
            retried_kinds = (*TRANSIENT, *(UNREAD if plan.details.reads < READS else ()))
            has_retried = any(record.counts.rejects_by_kind.get(kind) for kind in retried_kinds)
            reject_uris = [plan.result_uri("rejects", number) for number in plan.shards] if has_retried else []
            plan_uris = [plan.uri(number) for number in plan.shards]
            done.append(plans.Done(plan.run_id, plan_uris, retried_kinds, reject_uris))
    return done


# --- Fetch, decode, predict, triage, write: shards, in workers --------------------------------------------------------


def _score_shards(run: Run, on_progress: Callable[[Progress], None]) -> Stages:
    """Score the shards that are not done yet, on the cluster; returns what it took."""
    config, plan = run.config, run.plan
    unscored = shard.unscored(plan, run.store)
    before = plan.images - sum(plan.images_of(number) for number in unscored)
    if before:
        run.say(f"{before} of {plan.images} images were done before the interruption.")
    if not unscored:
        return Progress(plan.images, before, shards=0, workers=0).stages()
    begun.count_anew(plan, unscored, run.store)
    progress = Progress(plan.images, before, len(unscored), workers=0)
    with (
        exported(progress, plan.run_id, config.metrics_host, config.metrics_port),
        logged(progress, plan.run_id, LOG.info),
        contextlib.closing(pool.reports(run, unscored, progress)) as reports,
    ):
        for report in reports:
            progress.add(report)
            run.confirm_held()
            on_progress(progress)
        progress.end()
    return progress.stages()
