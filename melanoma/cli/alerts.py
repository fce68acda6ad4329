"""melanoma alerts, deliver."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from melanoma import printable
from melanoma.cli import console, options

if TYPE_CHECKING:
    import pyarrow as pa
    from rich.table import Table

    from melanoma.scoring.config import DeliverConfig
    from melanoma.scoring.record import RunRecord
    from melanoma.scoring.results import Nights

_LEFT_OUT = ("quality", "copies")  # of CSV, which has no lists
_MOST_ROWS = 1000  # on a terminal
_ROWS_AT_ONCE = 10_000  # in memory


def alerts(
    out: Annotated[str, typer.Argument(metavar="OUT", help="Folder or s3:// URI of the results.")],
    date: Annotated[str | None, typer.Option(help="ISO date; default: the newest, and what was not shown yet.")] = None,
    archive: Annotated[str | None, typer.Option(help="Only of this archive; default: of all.")] = None,
    new: Annotated[bool, typer.Option("--new", help="Only what no earlier night has raised.")] = False,
    by_patient: Annotated[bool, typer.Option("--by-patient", help="Patients together, the worst first.")] = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV.")] = False,
    as_json: options.Json = False,
) -> None:
    """List the alerts of a night, and of what nobody was shown before: urgent first, then the most probable."""
    # The table under the data frame of `melanoma.alerts`: pandas would take longer than all the rest.
    from melanoma import storage
    from melanoma.scoring import results

    nights = results.nights(out, date, archive)
    found, archives = results.listed_alerts(out, nights)
    if not (as_json or as_csv):
        # For the time zone pyarrow imports pandas, and the table on the terminal has no such column.
        found = found.drop_columns(["scored_at"])
    rows = _rows(found, archives, new, by_patient)
    if as_json:
        console.print_json_rows(rows)
    elif as_csv:
        fields = [name for name in results.LISTED.names if name not in _LEFT_OUT]
        console.print_csv([*fields, "copies"], ({**row, "copies": " ".join(row["copies"] or ())} for row in rows))
    else:
        known = len(found) - found["first_raised"].null_count
        _print_alerts(nights, list(itertools.islice(rows, _MOST_ROWS)), 0 if new else known, len(found) - known)
    if nights.left_out:
        dates = sorted(record.run_date for record in nights.left_out)
        console.say(
            f"Not listed, though never shown here: {len(dates)} earlier run{'s' * (len(dates) > 1)}, of {dates[0]} to "
            f"{dates[-1]}; --date lists those of a day."
        )
    if not date:
        try:
            results.note_shown(out, nights)
        except (OSError, storage.UnavailableError) as error:
            console.say(f"That these runs were shown could not be noted: {error}")


def _rows(found: "pa.Table", archives: Sequence[str], new: bool, by_patient: bool) -> Iterator[dict[str, Any]]:
    """The alerts that are wanted, as `results.LISTED` has them: half a million of them need not be in memory."""
    places: Sequence[int] = range(len(found))
    if by_patient:
        import pyarrow as pa

        from melanoma.scoring import alerts as alerting

        few = found.select(["image_uri", "patient_id", "first_raised"]).to_pylist()
        every = ({**row, "archive": archives[place], "place": place} for place, row in enumerate(few))
        ordered = alerting.by_patient([row for row in every if not new or row["first_raised"] is None])
        places = [row["place"] for row in ordered]
        found = found.take(pa.array(places, pa.int64()))
    for first in range(0, len(found), _ROWS_AT_ONCE):
        for place, row in zip(places[first:], found.slice(first, _ROWS_AT_ONCE).to_pylist(), strict=False):
            if not new or row["first_raised"] is None:
                yield {**row, "rank": place + 1, "archive": archives[place]}


def _print_alerts(nights: "Nights", rows: Sequence[Mapping[str, Any]], known: int, new: int) -> None:
    """Print the first rows of a list that has so many that an earlier night has raised, and so many that none has."""
    for record in nights.runs:
        console.answer.print(_in_words(record))
    archives = {row["archive"] for row in rows}
    table = _table(rows, archives)
    if (
        console.answer.measure(table, options=console.answer.options.update(width=10_000)).maximum
        <= console.answer.width
    ):
        console.answer.print(table)
    else:
        _print_narrow(rows, archives)
    console.answer.print(f"{known + new} alerts, {new} of them new.")
    if len(rows) < known + new:
        console.answer.print(f"These are the first {len(rows):,}: --csv and --json list all.")


def _in_words(record: "RunRecord") -> str:
    from melanoma.scoring import results

    day, time = record.finished_at[:10], record.finished_at[11:16]
    was_cut_off = record.stages.resumed or record.planned_at[:10] < results.last_attempt(record)
    finished = f"{'was cut off and ' if was_cut_off else ''}finished on {day} at {time} UTC"
    archive, counts = ", ".join(results.archives_of(record)), record.counts
    return (
        f"The run of {record.run_date}{f' over {archive}' if archive else ''} {finished}: {counts.scored:,} images "
        f"scored, {counts.rejected:,} rejected, {counts.alerts:,} alerts."
    )


def _table(rows: Sequence[Mapping[str, Any]], archives: set[str]) -> "Table":
    from rich.table import Table

    from melanoma.scoring import results

    names = results.short_names(archives)
    titles = ["rank", "level", "reason", "melanoma", "malignant", "diagnosis", "outlier", "patient", "raised before"]
    table = Table(*titles, *["archive"] * (len(names) > 1), "image", "model")
    for row in rows:
        site = [names[row["archive"]]] * (len(names) > 1)
        table.add_row(str(row["rank"]), *_cells(row), *site, _image(row), row["model_version"])
    return table


def _print_narrow(rows: Sequence[Mapping[str, Any]], archives: set[str]) -> None:
    """Two lines an alert, with the name of the image whole on its own."""
    from melanoma.scoring import results

    names = results.short_names(archives)
    for row in rows:
        level, reason, melanoma, malignant, diagnosis, outlier, patient, raised = _cells(row)
        words = [f"{row['rank']:>5}  {level:<6}  {melanoma:>6}  {diagnosis:<4}  outlier {outlier}"]
        words += [f"as {reason}, malignant {malignant}"] * (reason != "melanoma")
        words += [f"patient {patient}"] * bool(patient) + [f"raised before on {raised}"] * bool(raised)
        words += [f"in {names[row['archive']]}"] * (len(names) > 1)
        console.answer.print("  ".join(words))
        console.answer.print(f"       {_image(row)}")


def _cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    """Level, reason, both probabilities, diagnosis, outlier score, patient, and when it was raised before."""
    return (
        row["alert_level"],
        row["alert_reason"] or "melanoma",  # an earlier version asked for nothing else
        f"{row['p_melanoma']:.1%}",
        f"{row['p_malignant']:.1%}",
        row["diagnosis"],
        f"{row['outlier_score']:.1f}",
        printable.for_terminal(row["patient_id"] or ""),
        row["first_raised"] or "",
    )


def _image(row: Mapping[str, Any]) -> str:
    copies = f" (+{len(row['copies'])})" if row["copies"] else ""
    return f"{printable.for_terminal(row['image_uri'])}{copies}"


def deliver(
    out: Annotated[str, typer.Argument(metavar="OUT", help="Folder or s3:// URI of the results.")],
    config_file: Annotated[str, typer.Option("--config", help="YAML such as configs/deliver.yaml.")],
    date: Annotated[str | None, typer.Option(help="ISO date; default: what was not sent of the last 30 days.")] = None,
    resend: Annotated[bool, typer.Option("--again", help="Send too what may have arrived already.")] = False,
) -> None:
    """Send the new alerts of a night by webhook and e-mail, each once."""
    from melanoma import config
    from melanoma.scoring.config import DeliverConfig

    run_deliver(config.load(DeliverConfig, config_file, out=out, date=date, resend=resend or None))


def run_deliver(settings: "DeliverConfig") -> None:
    from melanoma.scoring.deliver import deliver

    sent = deliver(settings.out, settings, settings.date, settings.resend, console.say)
    if not sent:
        console.say("Nothing was left to deliver.")
