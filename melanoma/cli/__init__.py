"""The command `melanoma`."""

from melanoma.cli.commands import app, main, run

__all__ = ["app", "main", "run"]
