"""melanoma compile."""

from typing import TYPE_CHECKING, Annotated

import typer

from melanoma.cli import console, options

if TYPE_CHECKING:
    from melanoma.model.manifest import Agreement


def compile(
    bundle: Annotated[str, typer.Argument(help="The model: a folder or an s3:// URI.")],
    catalog: Annotated[str, typer.Argument(help="The catalog that it was trained on.")],
    out: Annotated[str, typer.Option("--out", "-o", help="Where the bundle with both forms is written.")],
    others: Annotated[
        list[str] | None,
        typer.Option(help="Folder of pictures that are no dermoscopy; may be given again. Default: the training's."),
    ] = None,
    as_json: options.Json = False,
) -> None:
    """Give a bundle a second form for CPUs, in 8-bit integers, with its own calibration, thresholds and report.

    Ends with 1, and writes nothing, where that form tells melanomas worse than the network does.
    """
    with console.resumable("Nothing was written: the same command begins anew."):
        from melanoma.api import shared

        shared.import_tensorflow()
        from melanoma.training.compile import compile_bundle

        compiled = compile_bundle(bundle, catalog, out, console.say, others).in_form("compiled")
    form = compiled.manifest.compiled
    assert form
    if as_json:
        console.print_json({"bundle": out, "model_version": compiled.version, **form.to_json()})
        return
    console.answer.print(_in_words(form.agreement))
    console.answer.print(
        f"Bundle of model {compiled.manifest.model_version}, on CPUs {compiled.version}: {out} (report: "
        f"{out}/compiled/evaluation/report.html)"
    )


def _in_words(agreement: "Agreement") -> str:
    known = agreement.auc_compiled is not None and agreement.auc_tensorflow is not None
    aucs = f" (AUC {agreement.auc_compiled:.3f}, and {agreement.auc_tensorflow:.3f})" if known else ""
    return (
        f"On {agreement.n:,} images of validation its log odds of melanoma correlate by {agreement.correlation:.3f} "
        f"with those of the network{aucs}; a melanoma probability differs by {agreement.largest_change:.1%} at most."
    )
