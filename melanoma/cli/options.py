"""Options that several commands have."""

from typing import Annotated

import typer

from melanoma.model.form import NetworkForm

Json = Annotated[bool, typer.Option("--json", help="Print the answer as JSON.")]
OperatingPoint = Annotated[
    str | None,
    typer.Option(help="Thresholds of `melanoma threshold`, a file. Default: those of the model."),
]
Bundle = Annotated[
    str | None,
    typer.Option("--bundle", help="The model: a folder or an s3:// URI. Default: the reference that comes with this."),
]
Network = Annotated[
    NetworkForm,
    typer.Option("--network", help="The form of the model; auto: the compiled one where the bundle has it."),
]
