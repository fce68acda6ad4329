"""melanoma alerts, deliver."""

import sys
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import typer

from melanoma.cli import console, options


def alerts(
    out: Annotated[str, typer.Argument(metavar="OUT", help="Folder or s3:// URI of the results.")],
    date: Annotated[str | None, typer.Option(help="ISO date; default: the newest.")] = None,
    new: Annotated[bool, typer.Option("--new", help="Only what no earlier night has raised.")] = False,
    by_patient: Annotated[bool, typer.Option("--by-patient", help="Patients together, the worst first.")] = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV.")] = False,
    as_json: options.Json = False,
) -> None:
    """List the alerts of a night, the most probable melanoma first."""
    # The table under the data frame of `melanoma.alerts`: pandas would take longer than all the rest.
    from melanoma.scoring.results import read_alerts

    found = read_alerts(out, date)
    if not (as_json or as_csv):
        # For the time zone pyarrow imports pandas, and the table on the terminal has no such column.
        found = found.drop_columns(["scored_at"])
    rows = [row for row in found.to_pylist() if not new or row["first_raised"] is None]
    if by_patient:
        from melanoma.scoring import alerts as alerting

        rows = alerting.by_patient(rows)
    if as_json:
        console.print_json(rows)
    elif as_csv:
        _print_csv(rows)
    else:
        _print_alerts(rows)


def _print_csv(rows: Sequence[Mapping[str, Any]]) -> None:
    import csv

    from melanoma.scoring import tables

    fields = [name for name in tables.ALERTS.names if name not in ("quality", "copies")]
    writer = csv.DictWriter(sys.stdout, [*fields, "copies"], extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows({**row, "copies": " ".join(row["copies"] or ())} for row in rows)


def _print_alerts(rows: Sequence[Mapping[str, Any]]) -> None:
    from rich.table import Table

    table = Table("rank", "level", "melanoma", "diagnosis", "outlier", "patient", "raised before", "image", "model")
    for row in rows:
        copies = f" (+{len(row['copies'])})" if row["copies"] else ""
        table.add_row(
            str(row["rank"]),
            row["alert_level"],
            f"{row['p_melanoma']:.1%}",
            row["diagnosis"],
            f"{row['outlier_score']:.1f}",
            row["patient_id"] or "",
            row["first_raised"] or "",
            f"{row['image_uri']}{copies}",
            row["model_version"],
        )
    console.answer.print(table)
    known = sum(row["first_raised"] is not None for row in rows)
    console.answer.print(f"{len(rows)} alerts, {len(rows) - known} of them new.")


def deliver(
    out: Annotated[str, typer.Argument(metavar="OUT", help="Folder or s3:// URI of the results.")],
    config_file: Annotated[str, typer.Option("--config", help="YAML such as configs/deliver.yaml.")],
    date: Annotated[str | None, typer.Option(help="ISO date; default: the newest.")] = None,
    resend: Annotated[bool, typer.Option("--again", help="Send too what may have arrived already.")] = False,
) -> None:
    """Send the new alerts of a night by webhook and e-mail, each once."""
    from melanoma import config
    from melanoma.scoring.config import DeliveryConfig
    from melanoma.scoring.deliver import deliver

    sent = deliver(out, config.load(DeliveryConfig, config_file), date, resend, console.say)
    if not sent:
        console.say("Nothing was left to deliver.")
