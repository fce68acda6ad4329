"""The command `melanoma`, one file a noun: words in, a function of `melanoma.api` or the library, words out."""

from melanoma.cli.app import app, main, run

__all__ = ["app", "main", "run"]
