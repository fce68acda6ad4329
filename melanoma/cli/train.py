"""melanoma train."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated

import typer

from melanoma.cli import console, options
from melanoma.cli.evaluate import print_metrics

if TYPE_CHECKING:
    from melanoma.training.config import TrainConfig
    from melanoma.training.plan import ClassShare


def train(
    config_file: Annotated[str, typer.Option("--config", help="YAML of the training, such as configs/train.yaml.")],
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...")] = None,
    out: Annotated[str | None, typer.Option(help="Where the bundle is written: a folder or an s3:// URI.")] = None,
    as_json: options.Json = False,
) -> None:
    """Train as configured, choose the best epoch on validation, calibrate, measure, write a bundle."""
    from melanoma import config
    from melanoma.training.config import TrainConfig

    run_train(config.load(TrainConfig, config_file, overrides, out=out), as_json)


def run_train(settings: "TrainConfig", as_json: bool = False) -> None:
    with console.resumable("Nothing was trained yet: the same command begins anew."):
        from melanoma import api
        from melanoma.api import shared

        shared.import_tensorflow()
        from melanoma.training import fit

        name = settings.run_name or fit.new_run_name()
        settings = settings.model_copy(update={"run_name": name})
    with console.resumable(f"The same command with run_name={name} resumes it."):
        model = api.train(settings, on_epoch=_epoch_line(settings), on_distribution=_say_distribution, say=console.say)
    metrics = model.bundle.manifest.metrics
    if as_json:
        console.print_json({"bundle": settings.out, **model.bundle.manifest.to_json()})
    else:
        print_metrics(metrics, metrics["split"])
        console.answer.print(
            f"Bundle of model {model.version}: {settings.out} (report: {settings.out}/evaluation/report.html)"
        )
    if "learned_nothing" in metrics:  # last, and loud: the bundle is there to be looked at, and not to be used
        console.progress.print(metrics["learned_nothing"], style="bold red")
        raise typer.Exit(1)


def _epoch_line(settings: "TrainConfig") -> Callable[[dict[str, float]], None]:
    from melanoma.training.measure import in_words

    def line(metrics: dict[str, float]) -> None:
        console.say(
            f"epoch {metrics['epoch']:.0f}/{settings.epochs}  loss {metrics['loss']:.3f}  validation: "
            f"loss {metrics['validation_loss']:.3f}, {in_words(metrics)}  "
            f"({metrics['images_per_second']:.0f} images/s, {metrics['input_wait_share']:.0%} of it waiting for input)"
        )

    return line


def _say_distribution(classes: "list[ClassShare]") -> None:
    from rich.table import Table

    table = Table("training split", "images", "copies", "share", "of draws", "of the loss", title="Class balance")
    for row in classes:
        shares = (f"{share:.1%}" for share in (row["share"], row["drawn"], row["effective"]))
        table.add_row(row["label"], str(row["images"]), str(row["copies"]), *shares)
    console.progress.print(table)
