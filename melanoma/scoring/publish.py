"""Publish: the results of all shards become alerts as one object, a page, and last the commit record.

Before the record is written the run does not count: whatever fails here, the same command resumes it.
"""

import functools
import platform
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from melanoma.errors import MelanomaError
from melanoma.imaging.errors import TRANSIENT
from melanoma.imaging.limits import Limits
from melanoma.model.bundle import Bundle
from melanoma.scoring import alerts as alerting
from melanoma.scoring import drift, layout, results, run_page, shard, tables
from melanoma.scoring import plan as plans
from melanoma.scoring import record as records
from melanoma.scoring.config import ScoreConfig
from melanoma.scoring.fetch import fetch
from melanoma.scoring.plan import Plan, PlannedImage
from melanoma.scoring.record import Counts, Distribution, RunRecord, Stages
from melanoma.scoring.run_page import AlertPictures
from melanoma.storage import Store
from melanoma.version import program_version

_SHARDS_AT_ONCE = 16  # that are read
_RUNS_COMPARED = 30


@dataclass(frozen=True)
class Run:
    """A run that this driver works on, from its plan to its commit record.

    `confirm_held` raises MelanomaError once another driver has the lease.
    """

    config: ScoreConfig
    bundle: Bundle
    plan: Plan
    store: Store
    confirm_held: Callable[[], None]
    say: Callable[[str], None]


def publish(run: Run, stages: Stages, began: float) -> RunRecord:
    """Publish a run whose shards are all scored, and return its commit record.

    `stages` is what scoring took, and `began` the time of `time.monotonic` when this attempt began. Raises
    MelanomaError where the results cannot stand (the shards in question are then undone), and OSError.
    """
    summary = _summary(run)
    run.confirm_held()
    _refuse_mixed_up(run, summary)
    _refuse_unreadable(run, summary)
    earlier = [record for record in results.committed_runs(run.plan.out, run.store) if record.run_id != run.plan.run_id]
    alerts = alerting.ranked(pa.concat_tables(summary.raised), _earlier_alerts(run, earlier))
    alerts, shown, pictures_failed = _explained(run, alerts)
    run.confirm_held()
    run.store.write_table(layout.alerts(run.plan.out, run.plan.run_date, run.plan.run_id), tables.in_file(alerts))
    record = _record(run, summary, alerts, stages, began)
    _write_page(run, record, earlier, alerts, shown, summary.reject_examples, pictures_failed)
    _commit(run, record)
    return record


# --- What the shards hold ---------------------------------------------------------------------------------------------


@dataclass
class _Summary:
    """What publishing needs of the results of all shards, of which not all are in memory at a time."""

    raised: list[pa.Table] = field(default_factory=lambda: [tables.SCORES.empty_table()])
    measured: list[dict[str, np.ndarray]] = field(default_factory=lambda: [_measured(tables.SCORES.empty_table())])
    rejects_by_kind: Counter[str] = field(default_factory=Counter)
    reject_examples: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    mixed_up: list[int] = field(default_factory=list)  # shards whose results are not of the images that were planned
    unreadable: list[int] = field(default_factory=list)  # shards with images that could not be fetched
    unread: int = 0  # these images
    unread_reason: str = ""  # of the first of them

    def add(self, number: int, planned: pa.Table, scores: pa.Table, rejects: pa.Table) -> None:
        found = scores["image_uri"].to_pylist() + rejects["image_uri"].to_pylist()
        if Counter(found) != Counter(planned["image_uri"].to_pylist()):
            self.mixed_up.append(number)
        self.raised.append(scores.filter(pc.not_equal(scores["alert_level"], "none")))
        self.measured.append(_measured(scores))
        self._add_rejects(rejects)
        # Images that no earlier run could fetch either say nothing of this one.
        untried = planned.filter(pc.invert(planned["tried"]))["image_uri"]
        is_transient = pc.is_in(rejects["error_kind"], pa.array(TRANSIENT))
        unread = rejects.filter(pc.and_(is_transient, pc.is_in(rejects["image_uri"], untried)))
        if len(unread):
            self.unreadable.append(number)
            self.unread += len(unread)
            self.unread_reason = self.unread_reason or unread["error"][0].as_py()

    def _add_rejects(self, rejects: pa.Table) -> None:
        kinds = Counter(rejects["error_kind"].to_pylist())
        self.rejects_by_kind.update(kinds)
        for kind in kinds:
            held = self.reject_examples.setdefault(kind, [])
            of_kind = rejects.filter(pc.equal(rejects["error_kind"], kind))
            held += of_kind.slice(0, run_page.EXAMPLES_SHOWN - len(held)).to_pylist()

    def distribution(self) -> Distribution:
        names = self.measured[0]
        return drift.distribution({name: np.concatenate([part[name] for part in self.measured]) for name in names})


def _summary(run: Run) -> _Summary:
    summary = _Summary()
    with ThreadPoolExecutor(_SHARDS_AT_ONCE) as pool:
        for first in range(0, len(run.plan.shards), _SHARDS_AT_ONCE):
            numbers = run.plan.shards[first : first + _SHARDS_AT_ONCE]
            read = pool.map(functools.partial(_results_of_shard, run), numbers)
            for number, (planned, scores, rejects) in zip(numbers, read, strict=True):
                summary.add(number, planned, scores, rejects)
    return summary


def _results_of_shard(run: Run, number: int) -> tuple[pa.Table, pa.Table, pa.Table]:
    """What was planned, the scores and the rejects."""
    plan, store = run.plan, run.store
    return (
        store.read_table(plan.uri(number), ["image_uri", "tried"]),
        tables.of_run(store.read_table(plan.result_uri("scores", number)), tables.SCORES, plan.run_id, plan.run_date),
        store.read_table(plan.result_uri("rejects", number), ["image_uri", "error_kind", "error"]),
    )


def _measured(scores: pa.Table) -> dict[str, np.ndarray]:
    """The values of each image that `drift` compares."""
    flat = scores.select(["quality", "outlier_score", *drift.PROBABILITY]).flatten()
    columns = {"sharpness": "quality.sharpness", "exposure": "quality.exposure"}
    return {name: flat[columns.get(name, name)].to_numpy() for name in (*drift.PICTURE, *drift.PROBABILITY)}


# --- Refused ----------------------------------------------------------------------------------------------------------


def _refuse_mixed_up(run: Run, summary: _Summary) -> None:
    """Two drivers at work on one run can leave the scores of one beside the rejects of the other."""
    if summary.mixed_up:
        shard.undo(run.plan, summary.mixed_up, run.store)
        raise MelanomaError(
            f"The run {run.plan.run_id} is not committed: in {len(summary.mixed_up)} of its shards the scores and "
            "rejects are not the images that were planned. They are undone: the same command scores them again."
        )


def _refuse_unreadable(run: Run, summary: _Summary) -> None:
    """A night that could not read its archive must not look like one without alerts."""
    untried, share = run.plan.details.untried, run.config.max_access_share
    if summary.unread > 1 and summary.unread > share * untried:
        shard.undo(run.plan, summary.unreadable, run.store)
        raise MelanomaError(
            f"The run {run.plan.run_id} is not committed: {summary.unread} of {untried} images could not be read "
            f"(max_access_share is {share:g}), the first because: {summary.unread_reason} Let every node read the "
            f"archive: the same command then scores their {len(summary.unreadable)} shard(s) again."
        )


# --- Alerts and their explanations ------------------------------------------------------------------------------------


def _earlier_alerts(run: Run, earlier: Sequence[RunRecord]) -> pa.Table:
    """What the other committed runs have raised, `alerting.EARLIER`, whatever their archive and model."""
    schema = alerting.EARLIER

    def of_run(record: RunRecord) -> pa.Table:
        uri = layout.alerts(run.plan.out, record.run_date, record.run_id)
        return tables.of_run(run.store.read_table(uri, schema.names), schema, record.run_id, record.run_date)

    return pa.concat_tables([schema.empty_table(), *results.in_parallel(of_run, earlier)])


def _explained(run: Run, alerts: pa.Table) -> tuple[pa.Table, list[AlertPictures], str | None]:
    """The alerts with their explanations, the pictures of the first of them, and why there are none if that failed: an
    alert is worth more than its picture."""
    rows = alerts.slice(0, run.config.explained).to_pylist()
    if not rows:
        return alerts, [], None
    limits = Limits(run.config.max_bytes, run.config.max_pixels)
    try:
        planned = _planned_images(run, {row["image_uri"] for row in rows})
        shown = run_page.pictures(
            rows,
            lambda uri: fetch(planned[uri], limits, run.store),
            run.bundle,
            limits,
            run.config.decode_seconds,
        )
        return run_page.write_explanations(run.plan.folder("explanations"), alerts, shown, run.store), shown, None
    except Exception as error:
        failed = f"The alerts could not be explained: {reason(error)}."
        run.say(failed)
        return alerts, [AlertPictures() for _ in rows], failed


def _planned_images(run: Run, uris: set[str]) -> dict[str, PlannedImage]:
    """Some images as they were planned, by URI."""
    wanted = pa.array(sorted(uris))

    def of_shard(number: int) -> list[PlannedImage]:
        table = run.store.read_table(run.plan.uri(number))
        return plans.planned_images(table.filter(pc.is_in(table["image_uri"], wanted)))

    found = results.in_parallel(of_shard, run.plan.shards)
    return {image.image_uri: image for images in found for image in images}


# --- The record and the page ------------------------------------------------------------------------------------------


def _record(run: Run, summary: _Summary, alerts: pa.Table, stages: Stages, began: float) -> RunRecord:
    levels = {level: pc.sum(pc.equal(alerts["alert_level"], level)).as_py() or 0 for level in ("urgent", "review")}
    rejected = summary.rejects_by_kind.total()
    return RunRecord(
        **run.plan.details.to_json(),
        run_id=run.plan.run_id,
        finished_at=records.now().isoformat(timespec="seconds"),
        counts=Counts(
            listed=run.plan.details.listed,
            done_before=run.plan.details.done_before,
            scored=run.plan.images - rejected,
            rejected=rejected,
            rejects_by_kind=dict(sorted(summary.rejects_by_kind.items())),
            alerts=len(alerts),
            urgent=levels["urgent"],
            review=levels["review"],
        ),
        thresholds=run.bundle.thresholds,
        distribution=summary.distribution(),
        seconds=round(time.monotonic() - began, 3),
        stages=stages,
        versions={
            "melanoma": program_version(),
            "python": platform.python_version(),
            **{name: version(name) for name in ("keras", "tensorflow", "ray", "pillow", "pyarrow")},
        },
    )


def _write_page(
    run: Run,
    record: RunRecord,
    earlier: Sequence[RunRecord],
    alerts: pa.Table,
    shown: Sequence[AlertPictures],
    reject_examples: Mapping[str, Sequence[Mapping[str, Any]]],
    pictures_failed: str | None,
) -> None:
    same_key = [other for other in earlier if other.key == record.key][-_RUNS_COMPARED:]
    try:
        html = run_page.render(record, same_key, alerts, shown, dict(sorted(reject_examples.items())), pictures_failed)
    except Exception as error:  # an alert is worth more than the page, too
        run.say(f"The page of the run could not be made: {reason(error)}.")
    else:
        run.store.write_bytes(layout.page(run.plan.out, run.plan.run_id), html.encode())


def _commit(run: Run, record: RunRecord) -> None:
    if plans.read(run.plan.out, run.plan.run_id, run.store) != run.plan:
        raise MelanomaError(f"Another driver has planned the run {run.plan.run_id} anew: this one ends.")
    run.confirm_held()
    run.store.write_json(layout.record(run.plan.out, run.plan.run_id), record.to_json())


def reason(error: BaseException) -> str:
    """Why something failed, in one line: for an error of a worker without Ray's account of how it came here."""
    words = str(error).split("The above exception was the direct cause")[0]
    lines = [line.strip() for line in words.splitlines() if line.strip()]
    return lines[-1].rstrip(".") if lines else type(error).__name__
