"""melanoma score."""

import contextlib
import dataclasses
import logging
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from melanoma.cli import console, options
from melanoma.errors import InputError
from melanoma.model.form import NetworkForm

if TYPE_CHECKING:
    from melanoma.api import ScoringResult
    from melanoma.scoring.config import ScoreConfig

_REASONS_SHOWN = 5


def score(
    archive: Annotated[
        list[str],
        typer.Argument(
            metavar="ARCHIVE...",
            help="Folders and s3:// prefixes; manifests (.csv, .parquet); manifest.json of an S3 Inventory.",
        ),
    ],
    out: Annotated[str, typer.Option(help="Folder or s3:// URI of the results.")],
    bundle: options.Bundle = None,
    operating_point: options.OperatingPoint = None,
    network: Annotated[
        NetworkForm | None,
        typer.Option(help="The form of the model. Default: compiled where the bundle has that and no GPU is used."),
    ] = None,
    run_id: Annotated[str | None, typer.Option(help="Name of the run; default: the date and a digest.")] = None,
    run_date: Annotated[str | None, typer.Option(help="ISO date of the run; default: today, UTC.")] = None,
    everything: Annotated[bool, typer.Option("--all", help="Score again what this model has scored.")] = False,
    limit: Annotated[int | None, typer.Option(min=1, help="New images at most; a later run has the others.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what there is to do, and do nothing.")] = False,
    cost_per_hour: Annotated[
        float | None, typer.Option(min=0, help="Of the cluster, for what --dry-run says of the cost.")
    ] = None,
    config_file: Annotated[str | None, typer.Option("--config", help="YAML such as configs/score.yaml.")] = None,
    as_json: options.Json = False,
) -> None:
    """Score an archive: every image ends in scores or in rejects, melanoma alerts in one ranked Parquet file."""
    from melanoma import config
    from melanoma.scoring.config import ScoreConfig

    settings = config.load(
        ScoreConfig,
        config_file,
        archive=archive[0] if len(archive) == 1 else archive,
        out=out,
        bundle=bundle,
        operating_point=operating_point,
        network=network,
        run_id=run_id,
        run_date=run_date,
        all=everything or None,
        limit=limit,
    )
    if dry_run:
        _preview(settings, cost_per_hour, as_json)
    else:
        run_score(settings, as_json)


def _preview(settings: "ScoreConfig", cost_per_hour: float | None, as_json: bool) -> None:
    from melanoma.scoring.run import preview

    found = preview(settings)
    hours = None if found.seconds is None else found.seconds / 3600
    cost = None if hours is None or cost_per_hour is None else hours * cost_per_hour
    counted = found.counted
    if as_json:
        answer = {
            "listed": counted.listed,
            "known": counted.listed - counted.images,
            "new": counted.images,
            "bytes": counted.bytes,
            "images": found.images,
            "minutes": None if hours is None else 60 * hours,
            "cost": cost,
            "estimated_from_runs": found.runs,
        }
        console.print_json(answer)
        return
    console.answer.print(
        f"{counted.listed:,} objects listed, {counted.listed - counted.images:,} known, {counted.images:,} new "
        f"({counted.bytes / 1e9:,.2f} GB); a run would score {found.images:,}."
    )
    if hours is None:
        console.answer.print("How long that takes is not known before a night of at least 100 images was finished.")
    else:
        price = "" if cost is None else f", {cost:,.2f} at {cost_per_hour:g} an hour"
        console.answer.print(
            f"By the rate of the last {found.runs} nights it takes {60 * hours:,.1f} minutes after the start{price}."
        )


def run_score(settings: "ScoreConfig", as_json: bool = False) -> None:
    with console.resumable("The same command resumes it."), console.bar("Scoring") as bar, log_lines():
        from melanoma import api

        result = api.score(settings, on_image=bar, say=console.say)
    if as_json:
        console.print_json(
            {
                **result.record.to_json(),
                "changed": result.changed,
                "reject_reasons": [dataclasses.asdict(reason) for reason in result.reject_reasons],
                "earlier": [earlier.record.to_json() for earlier in result.earlier],
            }
        )
    else:
        for earlier in result.earlier:
            _print_run(earlier)
        if not result.changed:
            record = result.record
            console.answer.print(f"The run {record.run_id} was finished at {record.finished_at}: nothing was changed.")
        _print_run(result)
    if result.has_scored_nothing:
        why = f"see {result.out}/rejects."
        if first := next(iter(result.reject_reasons), None):
            why = f"{first.count:,} of them because: {first.error}"
        raise InputError(f"None of the {result.counts.listed:,} images could be scored, {why}")


@contextlib.contextmanager
def log_lines() -> Iterator[None]:
    """The run's log lines go to standard error where no terminal shows a bar."""
    from melanoma.scoring.run import LOG

    LOG.propagate = False
    if console.progress.is_terminal:
        yield
        return
    handler = logging.StreamHandler()
    LOG.setLevel(logging.INFO)
    LOG.addHandler(handler)
    try:
        yield
    finally:
        LOG.removeHandler(handler)


def _print_run(result: "ScoringResult") -> None:
    counts, run_id, out = result.counts, result.record.run_id, result.out
    kinds = ", ".join(f"{number} {kind}" for kind, number in counts.rejects_by_kind.items())
    console.answer.print(
        f"Run {run_id}: {counts.listed} objects listed, {counts.done_before} done before, "
        f"{counts.scored} scored, {counts.rejected} rejected{f' ({kinds})' if kinds else ''}, "
        f"{counts.alerts} alerts ({counts.urgent} urgent, {counts.review} review).",
    )
    reasons = result.reject_reasons
    for reason in reasons[:_REASONS_SHOWN]:
        console.answer.print(f"  {reason.count:>7,} rejected as {reason.error_kind}: {reason.error}")
    if others := sum(reason.count for reason in reasons[_REASONS_SHOWN:]):
        console.answer.print(f"  {others:>7,} rejected for other reasons: see rejects/")
    console.answer.print(f"Results in {out}: scores/, rejects/, alerts/ and runs/run_id={run_id}.json")
    console.answer.print(f"The night on one page: {result.page}")
