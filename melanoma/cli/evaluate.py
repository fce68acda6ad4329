"""melanoma evaluate."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from melanoma.cli import console, options
from melanoma.model.form import NetworkForm

if TYPE_CHECKING:
    from melanoma.evaluation.config import EvaluateConfig


def evaluate(
    models: Annotated[list[str], typer.Argument(metavar="[BUNDLE] CATALOG")],
    out: Annotated[str, typer.Option(help="Folder or s3:// URI of the report.")],
    predictions: Annotated[
        str | None,
        typer.Option(help="Instead of a BUNDLE: a CSV or Parquet of another model's probabilities, a row an image."),
    ] = None,
    split: Annotated[str, typer.Option(help="train, validation, test or all.")] = "test",
    source: Annotated[
        list[str] | None, typer.Option(help="Measure only images of this source; may be given again. Default: all.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the bootstrap.")] = 0,
    by: Annotated[
        list[str] | None,
        typer.Option(help="Column of the catalog to measure subgroups by; may be given again. Default: what is known."),
    ] = None,
    operating_point: options.OperatingPoint = None,
    against: Annotated[str | None, typer.Option(help="Another bundle, to compare with on the same images.")] = None,
    network: options.Network = "auto",
    against_network: Annotated[
        NetworkForm, typer.Option(help="The form of the other model: both forms of one bundle can be compared.")
    ] = "auto",
    prevalence: Annotated[
        float | None, typer.Option(help="Share of melanoma to show alerts and predictive values at.")
    ] = None,
    others: Annotated[
        list[str] | None, typer.Option(help="Folder of pictures that are no dermoscopy; may be given again.")
    ] = None,
    allow_missing: Annotated[bool, typer.Option(help="Leave out images that --predictions lacks.")] = False,
    thresholds_from: Annotated[
        str | None, typer.Option(help="Choose thresholds of --predictions on this other split. Default: it has none.")
    ] = None,
    as_json: options.Json = False,
) -> None:
    """Measure a bundle, or another model's probabilities, on a split of a catalog: metrics.json and report.html."""
    from melanoma import config
    from melanoma.errors import InputError
    from melanoma.evaluation.config import EvaluateConfig

    if len(models) != (1 if predictions else 2):
        wanted = "a catalog alone beside --predictions" if predictions else "a bundle and a catalog"
        raise InputError(f"melanoma evaluate takes {wanted}, not {len(models)} names: {' '.join(models)}.")

    settings = config.load(
        EvaluateConfig,
        None,
        None,
        bundle=None if predictions else models[0],
        predictions=predictions,
        operating_point=operating_point,
        catalog=models[-1],
        out=out,
        split=split,
        sources=source or None,
        seed=seed,
        by=by or None,
        against=against,
        network=network,
        against_network=against_network,
        prevalence=prevalence,
        others=others or None,
        allow_missing=allow_missing or None,
        thresholds_from=thresholds_from,
    )
    run_evaluate(settings, as_json)


def run_evaluate(settings: "EvaluateConfig", as_json: bool = False) -> None:
    from melanoma import api

    result = api.evaluate(settings, say=(lambda line: None) if as_json else console.say)
    if as_json:
        console.print_json(result.details)
        return
    print_metrics(result.details, settings.split)
    console.answer.print(f"Report: {result.report}")


def print_metrics(metrics: dict[str, Any], split: str) -> None:
    """The figures of a ``metrics.json`` as a table, with what forbids to believe them."""
    from rich.table import Table

    from melanoma.api.shared import figures
    from melanoma.evaluation.wording import left_out

    table = Table(
        "figure", "value", "95% interval", title=f"{split}: {metrics['n']} images, {metrics['n_melanoma']} melanomas"
    )
    for name, figure in figures(metrics).items():
        if figure["value"] is None:
            table.add_row(name.replace("_", " "), "not defined", "")
        else:
            interval = f"{figure['low']:.3f} to {figure['high']:.3f}" if figure["low"] is not None else ""
            table.add_row(name.replace("_", " "), f"{figure['value']:.3f}", interval)
    console.answer.print(table)
    for column in metrics.get("subgroups") or []:
        if column["column"] == "source":
            _print_sources(column["groups"])
    for sentence in left_out(metrics):
        console.answer.print(sentence)
    if comparison := metrics.get("comparison"):
        _print_comparison(comparison)
    if metrics.get("leak_warning"):
        console.answer.print(metrics["leak_warning"], style="bold red")


def _print_sources(sources: list[dict[str, Any]]) -> None:
    from rich.table import Table

    names = ["melanoma_auc", "sensitivity", "specificity"]
    names += [name for name in ("malignancy_sensitivity", "malignancy_specificity") if name in sources[0]]
    table = Table("source", "images", "melanomas", *(name.replace("_", " ") for name in names), title="by source")
    for source in sources:
        cells = (_with_interval(source[name]) for name in names)
        table.add_row(source["value"], f"{source['n']:,}", f"{source['n_melanoma']:,}", *cells)
    console.answer.print(table)


def _with_interval(figure: dict[str, Any]) -> str:
    if figure["value"] is None:
        return "not defined"
    interval = f" ({figure['low']:.3f} to {figure['high']:.3f})" if figure["low"] is not None else ""
    return f"{figure['value']:.3f}{interval}"


def _print_comparison(comparison: dict[str, Any]) -> None:
    from rich.table import Table

    table = Table("figure", "this", "other", "difference", "95% interval", title="against the other bundle")
    for name, figure in comparison["figures"].items():
        difference = figure["difference"]
        if difference["value"] is not None:
            interval = f"{difference['low']:+.3f} to {difference['high']:+.3f}" if difference["method"] else ""
            numbers = f"{figure['this']:.3f}", f"{figure['other']:.3f}", f"{difference['value']:+.3f}"
            table.add_row(name.replace("_", " "), *numbers, interval)
    console.answer.print(table)
    if comparison["leak_warning"]:
        console.answer.print(f"The other bundle: {comparison['leak_warning']}", style="bold red")
