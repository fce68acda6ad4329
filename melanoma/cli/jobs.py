"""What the scripts in ``jobs/`` share: ``--config YAML [key=value ...]`` in, one call, an exit code out."""

import argparse
import os
import sys
from collections.abc import Callable
from typing import TypeVar

from melanoma import config
from melanoma.cli.app import run
from melanoma.errors import InputError

C = TypeVar("C", bound=config.Model)


def main(model: type[C], call: Callable[[C], None], description: str | None, default: str | None = None) -> None:
    """Parse the command line, load the configuration, call, and exit as `melanoma` would.

    A configuration file may be a relative path, for it is only read: a submitted job finds it in the working directory
    that came with it. What the configuration names may not, see `refuse_relative_places`.

    Args:
        model: The type of the configuration.
        call: What the job does.
        description: For ``--help``.
        default: The YAML of a job that needs none to be named.

    Raises:
        SystemExit: Always, with the exit code of the outcome.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--config", required=default is None, default=default, help="YAML, see configs/")
    parser.add_argument("--out", help="where the results are written, as the key out says")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="such as workers=8")
    arguments = parser.parse_intermixed_args()

    def job() -> None:
        settings = config.load(model, arguments.config, arguments.overrides, out=arguments.out)
        if "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ:  # what `ray job submit` sets
            refuse_relative_places(settings)
        call(settings)

    sys.exit(run(job))


def refuse_relative_places(settings: config.Model) -> None:
    """Raise InputError for the first relative place of a submitted job.

    Such a job runs in a copy of the working directory, on one node, which is thrown away when the job ends.
    """
    for key, place, kind in config.relative_places(settings):
        name = key.rpartition(".")[2]
        needed = (
            f"an s3:// URI or an absolute path that every node reaches, such as {key}=s3://bucket/{name}"
            if kind.on_stores
            else f"an absolute path that outlives it, such as {key}=/data/{name}"
        )
        raise InputError(f"The key {key!r} is {place!r}: a submitted job needs {needed}.")
