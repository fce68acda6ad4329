"""Scoring runs: an archive is scored, and its alerts are read."""

import contextlib
import functools
import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from melanoma.api import shared
from melanoma.api.shared import OnImage, Place, Say
from melanoma.errors import InputError

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

    from melanoma.imaging.errors import Reason
    from melanoma.scoring.config import ScoreConfig
    from melanoma.scoring.record import Counts, RunRecord


def score(
    config: "ScoreConfig | Place | None" = None,
    *,
    on_image: OnImage = lambda done, total: None,
    say: Say = print,
    **values: Any,
) -> "ScoringResult":
    """Score an archive, on Ray: every image ends in scores or in rejects, melanoma alerts in one ranked list.

    Example: ``m.score(archive="s3://archive/2026", out="s3://results").alerts``

    Args:
        config: A configuration, or a YAML file of one such as ``configs/score.yaml``.
        on_image: Called with the number of images done and the total.
        say: Given one line a step.
        **values: Keys of `melanoma.scoring.config.ScoreConfig`, which override those of `config`.

    Returns:
        The run, with its counts, alerts and rejects. Its alerts are delivered where the configuration says so.

    Raises:
        InputError: The bundle, the archive or the output cannot be used.
        MelanomaError: The run failed. The same call resumes it.
    """
    from melanoma.scoring.config import ScoreConfig

    settings = shared.settings(ScoreConfig, config, values)
    from melanoma.scoring import deliver
    from melanoma.scoring.run import score

    if settings.deliver:
        deliver.check_settings(settings.deliver)  # rather now than after hours
    with _logged_to(settings.log):
        outcome = score(settings, lambda progress: on_image(progress.done, progress.total), say)
    if settings.deliver:
        deliver.deliver(settings.out, settings.deliver, say=say)
    earlier = tuple(ScoringResult(settings.out, record, changed=True) for record in outcome.earlier)
    return ScoringResult(settings.out, outcome.record, outcome.changed, earlier)


def alerts(out: Place, date: str | None = None, archive: Place | None = None) -> "pd.DataFrame":
    """The alerts of a night and of what nobody was shown before, urgent first, then the most probable.

    Example: ``m.alerts("s3://results").query("first_raised.isna()")``

    Args:
        out: A folder or s3:// URI that `score` has written to.
        date: An ISO date: the runs of that date alone. None is the newest, with the runs that were cut off before it
            and finished since, and those that neither `melanoma alerts` has shown nor a delivery brought. Nothing is
            noted here.
        archive: One of the archives, as `score` was given it; None is all.

    Returns:
        One row an alert, with the columns of `melanoma.scoring.results.LISTED`.

    Raises:
        InputError: There is no finished run, or none of this date or archive.
    """
    from melanoma.scoring.results import read_alerts

    return shared.frame(read_alerts(os.fspath(out), date, None if archive is None else os.fspath(archive)))


@dataclass(frozen=True, repr=False, eq=False)
class ScoringResult:
    """A committed run.

    Attributes:
        out: Where the results lie.
        record: The commit record: counts, versions, thresholds, timings.
        changed: Whether this call did anything; a finished run that is run again changes nothing unless there are new
            files.
        earlier: The runs of earlier nights that were cut off, and that this call finished first.
    """

    out: str
    record: "RunRecord"
    changed: bool
    earlier: "tuple[ScoringResult, ...]" = ()

    @property
    def counts(self) -> "Counts":
        """How many objects were listed, scored, rejected (by kind) and raised."""
        return self.record.counts

    @property
    def page(self) -> str:
        """The run on one page."""
        from melanoma.scoring import layout

        return layout.page(self.out, self.record.run_id)

    @property
    def alerts(self) -> "pd.DataFrame":
        """The alerts of this run, urgent first, then the most probable."""
        from melanoma import storage
        from melanoma.scoring.results import alerts_of_run

        return shared.frame(alerts_of_run(storage.normalize(self.out), self.record))

    @property
    def rejects(self) -> "pd.DataFrame":
        """The files that could not be scored, each with its `error_kind` and `error`."""
        from melanoma.scoring import tables

        return self._read("rejects", tables.REJECTS)

    @functools.cached_property
    def reject_reasons(self) -> "list[Reason]":
        """Why files could not be scored: `error_kind`, `error` of the first and `count`, the most frequent first."""
        from melanoma.scoring import results

        return results.reject_reasons(self.out, self.record)

    @property
    def has_scored_nothing(self) -> bool:
        """Whether no image of these archives has been scored by this model, in this run or before."""
        from melanoma.scoring import results

        return results.has_scored_nothing(self.out, self.record)

    @property
    def scores(self) -> "pd.DataFrame":
        """Every image that was scored."""
        from melanoma.scoring import tables

        return self._read("scores", tables.SCORES)

    def _read(self, kind: str, schema: "pa.Schema") -> "pd.DataFrame":
        import pyarrow as pa

        from melanoma import storage
        from melanoma.scoring import layout, tables

        run = self.record.run_id, self.record.run_date
        folder = layout.folder(storage.normalize(self.out), kind, self.record.run_date, self.record.run_id)
        uris = [info.uri for info in storage.list_objects(folder)] if self.record.images else []
        shards = [tables.of_run(storage.read_table(uri), schema, *run) for uri in uris]
        return shared.frame(pa.concat_tables([schema.empty_table(), *shards]))

    def __repr__(self) -> str:
        counts = self.counts
        return (
            f"ScoringResult(run_id={self.record.run_id!r}, scored={counts.scored}, rejected={counts.rejected}, "
            f"alerts={counts.alerts})"
        )

    def _repr_html_(self) -> str:
        counts = self.counts
        kinds = ", ".join(f"{number} {kind}" for kind, number in counts.rejects_by_kind.items())
        rows = {
            "listed": f"{counts.listed} objects, {counts.done_before} of them done before",
            "scored": str(counts.scored),
            "rejected": f"{counts.rejected}{f' ({kinds})' if kinds else ''}",
            "alerts": f"{counts.alerts} ({counts.urgent} urgent, {counts.review} review)",
            "model": self.record.model_version,
            "page": self.page,
        }
        return shared.html_table(f"Run {self.record.run_id}", rows)


@contextlib.contextmanager
def _logged_to(path: str | None) -> Iterator[None]:
    """The log lines of a run go to a file, too, if one is named."""
    if path is None:
        yield
        return
    from melanoma import storage
    from melanoma.scoring.run import LOG

    try:
        handler = logging.FileHandler(path if storage.is_s3(path) else storage.normalize(path))
    except OSError as error:
        raise InputError(f"The log {path} cannot be written: {error.strerror}.") from None
    level = LOG.level
    LOG.setLevel(logging.INFO)
    LOG.addHandler(handler)
    try:
        yield
    finally:
        LOG.removeHandler(handler)
        LOG.setLevel(level)
        handler.close()
