"""What the scripts in ``jobs/`` share: ``--config YAML [key=value ...]`` in, one call, an exit code out."""

import argparse
import sys
from collections.abc import Callable
from typing import TypeVar

from melanoma import cli, config

C = TypeVar("C", config.TrainConfig, config.EvaluateConfig, config.ScoreConfig)


def main(model: type[C], call: Callable[[C], None], description: str | None) -> None:
    """Parse the command line, check the configuration, call, and exit as `melanoma` would."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--config", required=True, help="YAML, see configs/")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="such as workers=8")
    arguments = parser.parse_intermixed_args()
    sys.exit(cli.run(lambda: call(config.load(model, arguments.config, arguments.overrides))))
