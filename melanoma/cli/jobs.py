"""What the scripts in ``jobs/`` share: ``--config YAML [key=value ...]`` in, one call, an exit code out."""

import argparse
import os
import sys
from collections.abc import Callable
from typing import TypeVar

from melanoma import cli, config
from melanoma.errors import InputError

C = TypeVar("C", bound=config.Model)

_PLACES = ("against", "archive", "bundle", "catalog", "checkpoints", "out", "repaired")


def main(model: type[C], call: Callable[[C], None], description: str | None, default: str | None = None) -> None:
    """Parse the command line, check the configuration, call, and exit as `melanoma` would.

    `default`: the YAML of a job that needs none to be named.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--config", required=default is None, default=default, help="YAML, see configs/")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="such as workers=8")
    arguments = parser.parse_intermixed_args()

    def run() -> None:
        settings = config.load(model, arguments.config, arguments.overrides)
        _refuse_relative_places(settings)
        call(settings)

    sys.exit(cli.run(run))


def _refuse_relative_places(settings: C) -> None:
    """A submitted job runs in a copy of the working directory that is thrown away: nothing may be written there."""
    if "RAY_JOB_CONFIG_JSON_ENV_VAR" not in os.environ:  # what `ray job submit` sets
        return
    for key in _PLACES:
        places = getattr(settings, key, None)
        for place in [places] if isinstance(places, str) else places or []:
            if not place.startswith(("/", "s3://", "file://")):
                raise InputError(
                    f"The key {key!r} is {place!r}: a submitted job needs an s3:// URI or an absolute path that every "
                    f"node reaches, such as {key}=s3://bucket/{key}."
                )
