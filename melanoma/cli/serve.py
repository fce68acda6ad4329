"""melanoma serve."""

from typing import Annotated

import typer

from melanoma.cli import console, options


def serve(
    bundle: options.Bundle = None,
    operating_point: options.OperatingPoint = None,
    port: Annotated[int, typer.Option(min=1, max=65535, help="TCP port.")] = 8000,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    network: options.Network = "auto",
) -> None:
    """Answer single images over HTTP; the key that clients must send is in MELANOMA_API_KEY."""
    from melanoma.serving.app import serve_forever

    serve_forever(bundle, operating_point, host, port, console.say, network)
