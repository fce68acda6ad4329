"""melanoma demo."""

from pathlib import Path
from typing import Annotated

import typer

from melanoma.cli import console


def demo(
    out: Annotated[
        str, typer.Option(help="Folder for everything that the demo makes; its results stay there.")
    ] = "demo",
) -> None:
    """One night, end to end, on this machine: object storage, training, scoring an archive, alerts in Parquet."""
    from melanoma.api.shared import import_tensorflow

    import_tensorflow()
    from melanoma.demo.run import demo

    demo(Path(out), console.say)
