"""The command `melanoma`: its commands, each with an example, and how it ends.

Exit codes: 0 done, 1 the thing asked about is not so (a leak, a training that learned nothing, a compiled form that is
another classifier), 2 wrong use or bad input, 3 failed while running, 130 interrupted by Ctrl-C.
"""

import contextlib
import os
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import typer

from melanoma import errors, printable
from melanoma.cli import (
    alerts,
    catalog,
    compile,
    console,
    demo,
    evaluate,
    predict,
    prune,
    score,
    serve,
    status,
    submit,
    threshold,
    train,
)
from melanoma.errors import MelanomaError, redacted

app = typer.Typer(
    help="Train a CNN on skin images and score image archives for melanoma. Not a medical device.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)


@app.callback(invoke_without_command=True)
def _root(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        from melanoma import __version__

        console.answer.print(__version__)
        raise typer.Exit


# In the order of the help.
for _command, _example in (
    (catalog.catalog, "melanoma catalog data/isic9 s3://images/ham10000/metadata.csv -o catalog.parquet"),
    (catalog.split, "melanoma split catalog.parquet -o catalog.parquet --validation 0.2 --test 0"),
    (catalog.audit, "melanoma audit isic9.parquet ham10000.parquet --reference isic2019.csv --out out/audit"),
    (train.train, "melanoma train --config configs/train.yaml --out out/bundle epochs=10 seed=1"),
    (compile.compile, "melanoma compile out/bundle catalog.parquet -o out/compiled"),
    (evaluate.evaluate, "melanoma evaluate out/bundle catalog.parquet --out out/evaluation --split test"),
    (threshold.threshold, "melanoma threshold out/bundle catalog.parquet --alerts-per-1000 50 -o point.json"),
    (predict.predict, "melanoma predict lesion.jpg --bundle out/bundle --explain out/explained"),
    (score.score, "melanoma score s3://archive/2026 --out s3://results --bundle s3://models/current"),
    (alerts.alerts, "melanoma alerts s3://results --date 2026-11-20"),
    (alerts.deliver, "melanoma deliver s3://results --config configs/deliver.yaml"),
    (status.status, "melanoma status s3://results --json"),
    (prune.prune, "melanoma prune s3://results --keep 90d"),
    (submit.submit, "melanoma submit nightly --config configs/nightly.yaml --wait"),
    (serve.serve, "MELANOMA_API_KEY=... melanoma serve --bundle out/bundle --port 8000"),
    (demo.demo, "melanoma demo --out demo"),
):
    app.command(epilog=f"Example: {_example}")(_command)


def main(arguments: Sequence[str] | None = None) -> None:
    """The entry point of the command and of the jobs: runs, and exits with the code of the outcome."""
    sys.exit(run(lambda: app(args=list(arguments) if arguments is not None else None, standalone_mode=False)))


def run(call: Callable[[], Any]) -> int:
    """Call, and turn what happens into an exit code, and an error into one sentence."""
    errors.is_command = True
    try:
        result = call()
    except MelanomaError as error:
        return _fail(str(error), error.exit_code)
    except typer.TyperException as error:  # wrong use; without a message, the help was printed
        message = " ".join(error.format_message().split())
        return _fail(f"{message} See `melanoma --help`.", 2) if message else 2
    except typer.Exit as error:
        return error.exit_code
    except (KeyboardInterrupt, typer.Abort):
        return _fail("Interrupted.", console.INTERRUPTED)
    except console.ReaderGoneError:
        console.close_broken()
        return 0
    except SystemExit as error:  # what Ray makes of SIGTERM, and Rich of help that nobody reads
        if traceback.extract_tb(error.__traceback__)[-1].name == "on_broken_pipe":
            return 0
        return _fail("Terminated.", 3)
    except Exception as error:
        if os.environ.get("MELANOMA_DEBUG"):
            raise
        message = str(error).splitlines()[0] if str(error) else ""
        return _fail(f"Unexpected {type(error).__name__}: {message} (set MELANOMA_DEBUG=1 to see where)", 3)
    if result == console.INTERRUPTED:  # what Typer makes of Ctrl-C
        return _fail("Interrupted.", console.INTERRUPTED)
    return result if isinstance(result, int) else 0


def _fail(message: str, code: int) -> int:
    if code == console.INTERRUPTED:
        # Ray takes a moment to end: whoever presses Ctrl-C again meanwhile would leave a part of it running.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    with contextlib.suppress(BrokenPipeError):  # nobody reads the error, and the code says it, too
        print(f"melanoma: {printable.for_terminal(redacted(message))}", file=sys.stderr, flush=True)
    return code
