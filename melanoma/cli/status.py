"""melanoma status."""

import dataclasses
from typing import TYPE_CHECKING, Annotated, Any

import typer

from melanoma.cli import console, options

if TYPE_CHECKING:
    from melanoma.scoring.status import Night, Status


def status(
    out: Annotated[str, typer.Argument(metavar="OUT", help="Folder or s3:// URI of the results.")],
    nights: Annotated[int, typer.Option(min=1, help="How many of the last nights.")] = 7,
    late_after: Annotated[float, typer.Option(min=0, help="Hours without a finished night that are too many.")] = 26.0,
    metrics_port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="Go on, and answer Prometheus on this port instead.")
    ] = None,
    metrics_host: Annotated[str, typer.Option(help="The address to answer on.")] = "127.0.0.1",
    as_json: options.Json = False,
) -> None:
    """The last nights at a glance, and what somebody has to look at; exits with 1 where there is something."""
    if metrics_port is not None:
        from melanoma.scoring import exporter

        exporter.serve(out, late_after, metrics_host, metrics_port, console.say)
        return
    from melanoma.scoring.status import look

    found = look(out, late_after, nights)
    if as_json:
        console.print_json(_in_json(found))
    else:
        _print(found)
    if found.problems:
        raise typer.Exit(1)


def _in_json(found: "Status") -> dict[str, Any]:
    return {
        "nights": [
            {
                **night.record.to_json(),
                "drift": {"verdict": night.drift.verdict, "distances": dict(night.drift.distances)},
                "undelivered": night.undelivered,
            }
            for night in found.nights
        ],
        "problems": [dataclasses.asdict(problem) for problem in found.problems],
    }


def _print(found: "Status") -> None:
    from rich.table import Table

    titles = ("night", "finished (UTC)", "listed", "new", "scored", "rejected", "alerts", "urgent", "minutes", "images")
    table = Table(*titles)
    for night in found.nights:
        table.add_row(*_cells(night))
    if found.nights:
        console.answer.print(table)
    for problem in found.problems:
        console.answer.print(f"{problem.kind}: {problem.sentence}")
    if not found.problems:
        console.answer.print("Nothing has to be looked at.")


def _cells(night: "Night") -> tuple[str, ...]:
    record, counts = night.record, night.record.counts
    unlike = {"few": "", "none": "as before", "pictures": "other pictures", "patients": "other patients"}
    return (
        record.run_date,
        record.finished_at[:16].replace("T", " "),
        f"{counts.listed:,}",
        f"{record.images:,}",
        f"{counts.scored:,}",
        f"{counts.rejected:,}",
        f"{counts.alerts:,}",
        f"{counts.urgent:,}",
        f"{record.seconds / 60:.1f}",
        unlike[night.drift.verdict],
    )
