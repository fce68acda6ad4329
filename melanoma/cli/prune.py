"""melanoma prune."""

from typing import Annotated

import typer

from melanoma.cli import console, options


def prune(
    out: Annotated[str, typer.Argument(metavar="OUT", help="Folder or s3:// URI of the results.")],
    keep: Annotated[str, typer.Option(help="What is younger is kept: days or weeks, such as 90d or 12w.")],
    checkpoints: Annotated[
        str | None, typer.Option(help="Where trainings keep checkpoints. Default: those are not looked at.")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Delete it. Default: say what would be deleted.")] = False,
    as_json: options.Json = False,
) -> None:
    """Delete old pictures, pages, replaced plans and checkpoints; never scores, rejects, alerts or commit records."""
    from melanoma.scoring import prune
    from melanoma.scoring.record import now

    old = prune.find(out, now() - prune.age(keep), checkpoints)
    if yes:
        prune.delete(old)
    if as_json:
        console.print_json(
            {
                "deleted": yes,
                "kinds": {each.kind: {"objects": len(each.uris), "bytes": each.bytes} for each in old},
            }
        )
        return
    for each in old:
        console.answer.print(f"{each.kind}: {len(each.uris):,} objects, {each.bytes / 1e6:,.1f} MB")
    if not old:
        console.answer.print(f"Nothing is older than {keep}.")
    else:
        console.answer.print("Deleted." if yes else "Nothing was deleted: --yes deletes it.")
