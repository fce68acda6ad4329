"""melanoma threshold."""

from typing import TYPE_CHECKING, Annotated

import typer

from melanoma.cli import console, options

if TYPE_CHECKING:
    from melanoma.model.department import DepartmentPoint
    from melanoma.model.manifest import Estimate

_NOUNS = {"melanoma": "melanomas", "malignancy": "malignant images"}
_OF = {
    "melanoma": "as melanoma",
    "malignancy": "as any malignancy",
    "together": "by either question",
    "urgent": "of these, as urgent",
}


def threshold(
    bundle: Annotated[str, typer.Argument(metavar="BUNDLE", help="The model: a folder or an s3:// URI.")],
    catalog: Annotated[
        str, typer.Argument(metavar="CATALOG", help="Images with labels, best of the department's own.")
    ],
    network: options.Network = "auto",
    question: Annotated[str, typer.Option(help="melanoma or malignancy: what the threshold is of.")] = "melanoma",
    sensitivity: Annotated[float | None, typer.Option(help="That is to be reached. Default: 0.95.")] = None,
    alerts_per_1000: Annotated[
        float | None, typer.Option("--alerts-per-1000", help="Instead: how many of 1,000 images may be raised.")
    ] = None,
    split: Annotated[str, typer.Option(help="train, validation, test or all.")] = "test",
    operating_point: Annotated[
        str | None, typer.Option(help="A file to begin from, whose other question stays. Default: the model's.")
    ] = None,
    out: Annotated[str | None, typer.Option("--out", "-o", help="The file to write. Default: figures alone.")] = None,
    as_json: options.Json = False,
) -> None:
    """Choose from which probability on images are raised, and say how many alerts that gives and what it finds."""
    from melanoma import config
    from melanoma.api import shared
    from melanoma.evaluation.config import ThresholdConfig

    settings = config.load(
        ThresholdConfig,
        None,
        None,
        bundle=bundle,
        network=network,
        catalog=catalog,
        question=question,
        sensitivity=sensitivity,
        alerts_per_1000=alerts_per_1000,
        split=split,
        operating_point=operating_point,
        out=out,
    )
    shared.import_tensorflow()
    from melanoma.evaluation import department

    point = department.choose(settings, (lambda line: None) if as_json else console.say)
    if as_json:
        console.print_json(point.to_json())
        return
    _print(point)
    if out:
        console.answer.print(
            f"Operating point: {out}. Give it to score, predict, serve or evaluate: --operating-point."
        )


def _print(point: "DepartmentPoint") -> None:
    from rich.table import Table

    from melanoma.evaluation import wording

    levels = point.thresholds if point.question == "melanoma" else point.thresholds.malignancy
    assert levels
    assert levels.operating_point
    console.answer.print(
        f"Model {point.model_version}, {point.question}: review from {levels.review:.2%}, urgent from "
        f"{levels.urgent:.2%}."
    )
    console.answer.print(f"Chosen {levels.chosen}.")
    figures = levels.operating_point
    console.answer.print(
        f"There it raises {_percent(figures.sensitivity)} of the {_NOUNS[point.question]}, and leaves "
        f"{_percent(figures.specificity)} of the others."
    )
    table = Table(
        "raised", "of 1,000 images", "95% interval", title="expected load, at these images' share of melanoma"
    )
    for name, words in _OF.items():
        if load := point.alerts_per_1000.get(name):
            interval = "" if load.low is None else f"{load.low:.0f} to {load.high:.0f}"
            table.add_row(words, f"{load.value:.0f}", interval)
    console.answer.print(table)
    stated = point.stated_sensitivity
    table = Table("source", "images", _NOUNS[point.question], "sensitivity", "specificity", "kept", title="by source")
    for source in point.by_source:
        kept = wording.kept(source.sensitivity.value, source.n_positive, stated)
        cells = _percent(source.sensitivity), _percent(source.specificity), kept
        table.add_row(source.source, f"{source.n:,}", f"{source.n_positive:,}", *cells)
    console.answer.print(table)
    if point.leak_warning:
        console.answer.print(point.leak_warning, style="bold red")


def _percent(estimate: "Estimate") -> str:
    if estimate.value is None:
        return "not defined"
    interval = "" if estimate.low is None else f" ({estimate.low:.1%} to {estimate.high:.1%})"
    return f"{estimate.value:.1%}{interval}"
