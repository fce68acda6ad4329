"""What the scripts in ``jobs/`` share: ``--config YAML [key=value ...]`` in, one call, an exit code out."""

import argparse
import os
import sys
from collections.abc import Callable
from typing import TypeVar

from melanoma import config
from melanoma.cli.app import run

C = TypeVar("C", bound=config.Model)


def main(model: type[C], call: Callable[[C], None], description: str | None, default: str | None = None) -> None:
    """Parse the command line, load the configuration, call, and exit as `melanoma` would.

    A configuration file may be a relative path, for it is only read: a submitted job finds it in the working directory
    that came with it. What the configuration names may not, see `config.refuse_relative_places`.

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
            config.refuse_relative_places(settings)
        call(settings)

    sys.exit(run(job))
