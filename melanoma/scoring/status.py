"""How the nights of an output went, and what somebody has to look at.

A night is judged beside the nights before it of the same archives and model: a median of the last 14, so that one bad
night does not hide the next. What is compared are counts of commit records; no result is read but the alerts that were
not delivered. `melanoma status` prints it, its exporter gives it to Prometheus, and the nightly job tells people of it.
"""

import datetime
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from melanoma import storage
from melanoma.errors import InputError
from melanoma.scoring import drift, layout, results
from melanoma.scoring.drift import Drift
from melanoma.scoring.record import PlanDetails, RunRecord, moment, now, read
from melanoma.storage import Store

Kind = Literal["late", "cut off", "failed", "few images", "alerts", "rejects", "drift", "undelivered", "retraining"]

LATE_AFTER = 26.0  # hours: a night that begins at the same time as the one before, and takes two hours longer
_COMPARED = 14  # nights
_LEAST_COMPARED = 3  # nights: with fewer nothing is usual yet
_FEW = 0.2  # of the images that a night usually has
_USUAL_IMAGES = 20  # with fewer a night without any is nothing unusual
_UNUSUAL_ALERTS = 3.0  # times as many, or a third of them
_SIGNIFICANCE = 0.001
_MANY_REJECTS = 0.2  # of the images, and twice what is usual


@dataclass(frozen=True)
class Problem:
    """What somebody has to look at. `night`: the run that it is of, or "" where it is of none."""

    kind: Kind
    night: str
    sentence: str


@dataclass(frozen=True)
class Night:
    """A committed run, how its images differ from those of the nights before, and whether its alerts went out."""

    record: RunRecord
    drift: Drift
    undelivered: int = 0  # new alerts that nobody was sent, where others of this output were


@dataclass(frozen=True)
class Status:
    """The nights, oldest first, and the problems, those of the newest last."""

    nights: tuple[Night, ...]
    problems: tuple[Problem, ...]

    @property
    def newest(self) -> Night | None:
        return self.nights[-1] if self.nights else None


def look(
    out: str,
    late_after: float = LATE_AFTER,
    nights: int = 7,
    at: datetime.datetime | None = None,
    store: Store = storage.DEFAULT,
) -> Status:
    """How the last nights of an output went.

    Args:
        out: Folder or s3:// URI of the results.
        late_after: Hours after the end of the newest night from which the next one is late.
        nights: How many of them.
        at: The moment that is looked at; None: now.
        store: Reads them.

    Returns:
        The nights and their problems. Of an output that holds nothing yet, no night and the problem that it is late.

    Raises:
        InputError: The output cannot be read.
        UnavailableError: The store does not answer.
    """
    root = storage.normalize(out)
    try:
        records = results.committed_runs(root, store)
        shown = [_night(root, records, place, store) for place in range(len(records))[-nights:]]
        problems = [problem for night in shown for problem in _problems(records, night)]
        problems += _cut_off(root, records, store)
    except OSError as error:
        raise InputError(f"The output {out} cannot be read: {error}") from None
    return Status(tuple(shown), tuple(problems + _late(records, late_after, at or now())))


def of_run(out: str, record: RunRecord, store: Store = storage.DEFAULT) -> list[Problem]:
    """What somebody has to look at of one run. Raises OSError and UnavailableError."""
    root = storage.normalize(out)
    records = results.committed_runs(root, store)
    (place,) = [place for place, other in enumerate(records) if other.run_id == record.run_id]
    return _problems(records, _night(root, records, place, store))


def _night(root: str, records: Sequence[RunRecord], place: int, store: Store) -> Night:
    record = records[place]
    before = [other.distribution for other in _before(records, record) if other.distribution]
    now_, then = (
        drift.values([each for each in side if each]) for side in ([record.distribution], before[-_COMPARED:])
    )
    return Night(record, drift.compare(now_, then), _undelivered(root, record, store))


def _before(records: Sequence[RunRecord], record: RunRecord) -> list[RunRecord]:
    """The nights before a run, oldest first, of the same archives, model and thresholds."""
    return [other for other in records if other.key == record.key and other.finished_at < record.finished_at]


def _undelivered(root: str, record: RunRecord, store: Store) -> int:
    """New alerts of a run that were not delivered; 0 where this output delivers none."""
    notes = results.uris_below(layout.deliveries(root), store)
    own = [uri for uri in notes if f"/run_id={record.run_id}/" in uri]
    if not notes or not record.counts.alerts:
        return 0
    if own and all(store.read_json(uri)["state"] == "delivered" for uri in own):
        return 0
    return int(results.alerts_of_run(root, record, store)["first_raised"].null_count)


def _problems(records: Sequence[RunRecord], night: Night) -> list[Problem]:
    record = night.record
    before = _before(records, record)[-_COMPARED:]
    found: list[Problem] = []

    def add(kind: Kind, sentence: str) -> None:
        found.append(Problem(kind, record.run_id, sentence))

    checks: dict[Kind, str | None] = {}
    if len(before) >= _LEAST_COMPARED:
        checks = {
            "few images": _few(record, before),
            "alerts": _alerts(record, before),
            "rejects": _rejects(record, before),
        }
    for kind, sentence in checks.items():
        if sentence:
            add(kind, sentence)
    if night.drift.verdict == "pictures":
        add("drift", f"The night of {record.run_date}: {night.drift.sentence}")
    if night.undelivered:
        add(
            "undelivered",
            f"The night of {record.run_date} has {night.undelivered} new alerts that nobody was sent: "
            "`melanoma deliver` sends them, or says why it cannot.",
        )
    return found


def _few(record: RunRecord, before: Sequence[RunRecord]) -> str | None:
    usual = statistics.median(other.images for other in before)
    if usual < _USUAL_IMAGES or record.images >= _FEW * usual:
        return None
    return (
        f"The night of {record.run_date} saw {record.images:,} new images, and {usual:,.0f} are usual: look whether "
        "the archive is complete, and whether all of it is listed."
    )


def _alerts(record: RunRecord, before: Sequence[RunRecord]) -> str | None:
    from scipy.stats import fisher_exact

    scored, alerts = record.counts.scored, record.counts.alerts
    usual_scored, usual_alerts = (sum(getattr(other.counts, name) for other in before) for name in ("scored", "alerts"))
    if not scored or not usual_scored:
        return None
    share, usual = alerts / scored, usual_alerts / usual_scored
    if usual / _UNUSUAL_ALERTS < share < usual * _UNUSUAL_ALERTS or share == usual:
        return None
    table = [[alerts, scored - alerts], [usual_alerts, usual_scored - usual_alerts]]
    if fisher_exact(table).pvalue >= _SIGNIFICANCE:
        return None
    return (
        f"The night of {record.run_date} raised {share:.1%} of its images, and {usual:.1%} are usual: look at some of "
        "them before you believe the list."
    )


def _rejects(record: RunRecord, before: Sequence[RunRecord]) -> str | None:
    def share(of: RunRecord) -> float:
        return of.counts.rejected / of.images if of.images else 0.0

    usual = statistics.median(share(other) for other in before)
    if share(record) <= max(_MANY_REJECTS, 2 * usual) or record.images < _USUAL_IMAGES:
        return None
    kinds = record.counts.rejects_by_kind
    most = max(kinds, key=lambda kind: kinds[kind], default="")
    return (
        f"The night of {record.run_date} could not score {share(record):.1%} of its images, most as {most}, and "
        f"{usual:.1%} are usual: `rejects` has the reason of each."
    )


def _cut_off(root: str, records: Sequence[RunRecord], store: Store) -> list[Problem]:
    """Runs that were begun and not finished, nor done by a later one."""
    uris = results.uris_below(layout.runs(root), store)
    at_work = {storage.name(storage.parent(uri)) for uri in uris if storage.name(uri) == "lease.json"}
    finished = {record.run_id for record in records}
    found = []
    for uri in uris:
        run_id = storage.name(storage.parent(uri)).removeprefix("run_id=")
        if storage.name(uri) != "plan.json" or run_id in finished:
            continue
        details = read(PlanDetails, uri, store)
        done_since = any(other.key == details.key and other.finished_at > details.planned_at for other in records)
        if not done_since and f"key={details.key}" not in at_work:
            sentence = f"The night of {details.run_date} was cut off: the same `melanoma score` finishes it."
            found.append(Problem("cut off", run_id, sentence))
    return found


def _late(records: Sequence[RunRecord], late_after: float, at: datetime.datetime) -> list[Problem]:
    if not records:
        return [Problem("late", "", "No night was ever finished here: score an archive with `melanoma score`.")]
    hours = (at - moment(records[-1].finished_at)).total_seconds() / 3600
    if hours <= late_after:
        return []
    return [
        Problem(
            "late",
            "",
            f"No night was finished for {hours:.0f} hours, since that of {records[-1].run_date}: look at the job that "
            f"begins it, and at its log (late is after {late_after:g} hours).",
        )
    ]
