"""What a command prints: answers to standard output, progress to standard error."""

import contextlib
import csv
import datetime
import io
import itertools
import json
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.text import Text

from melanoma import printable
from melanoma.errors import MelanomaError

_ROWS_AT_ONCE = 10_000  # of a table, in memory

INTERRUPTED = 130
"""The exit code after Ctrl-C, as shells have it."""


class ReaderGoneError(Exception):
    """Nobody reads the answer any more, as after ``| head``. Not an OSError, of which Typer makes an exit code."""


class StoppedError(MelanomaError):
    """The user has interrupted the command."""

    exit_code = INTERRUPTED


class _Console(Console):
    """Paths and labels are others' words: square brackets and colons in them are no markup, and nothing in them moves
    the cursor."""

    def __init__(self, **values: Any) -> None:
        super().__init__(highlight=False, markup=False, emoji=False, soft_wrap=True, **values)

    def print(self, *objects: Any, **values: Any) -> None:
        for printed in objects:
            for column in getattr(printed, "columns", ()):
                column.overflow = "fold"  # on a narrow terminal a table shows names whole all the same
        super().print(*objects, **values)

    def render_str(self, text: str, **values: Any) -> Text:
        return super().render_str("\n".join(map(printable.for_terminal, text.split("\n"))), **values)

    def on_broken_pipe(self) -> None:
        if not self.stderr:
            raise ReaderGoneError
        self.quiet = True  # whoever started the command still wants what it does


# Text is never wrapped in the middle of a path, and neither is a table that goes to a file.
_WIDTH = None if sys.stdout.isatty() else 1000
answer = _Console(width=_WIDTH)
progress = _Console(stderr=True)


def say(message: str) -> None:
    """One line of progress."""
    progress.print(message)


def print_json(value: Any) -> None:
    _write(f"{printable.for_json(_in_json(value))}\n")


def print_json_rows(rows: Iterable[Any]) -> None:
    """What `print_json` prints of a list, which need not be in memory."""
    rows, before = iter(rows), "["
    while some := list(itertools.islice(rows, _ROWS_AT_ONCE)):
        # Without its brackets.
        _write(f"{before}{printable.for_json(_in_json(some)[1:-2])}")
        before = ","
    _write("[]\n" if before == "[" else "\n]\n")


def print_csv(fields: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> None:
    rows, text = iter(rows), io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(fields)
    while True:
        for row in itertools.islice(rows, _ROWS_AT_ONCE):
            cells = [row[name] for name in fields]
            plain = [cell.isoformat() if isinstance(cell, datetime.date) else cell for cell in cells]
            writer.writerow(map(printable.for_csv, plain))
        if not (lines := text.getvalue()):
            return
        _write(lines)
        text.seek(0)
        text.truncate()


def _in_json(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False, default=_plain)


def _plain(value: Any) -> str:
    return value.isoformat() if isinstance(value, datetime.date) else str(value)


def _write(text: str) -> None:
    try:
        # In two parts: with PYTHONUNBUFFERED, Python does not say that the reader left in the middle of one.
        for part in (text[:-1], text[-1:]):
            sys.stdout.write(part)
            sys.stdout.flush()
    except BrokenPipeError:
        raise ReaderGoneError from None


def close_broken() -> None:
    """Let what is left of an answer that nobody reads go nowhere: at its exit Python would say that it cannot be
    written."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())


@contextlib.contextmanager
def resumable(how: str) -> Iterator[None]:
    """Ctrl-C in this block ends the command with a word on how it is resumed."""
    try:
        yield
    except KeyboardInterrupt:
        raise StoppedError(f"Interrupted. {how}") from None


@contextlib.contextmanager
def bar(title: str) -> Iterator[Callable[[int, int], None]]:
    """A progress bar on a terminal; elsewhere a line for each tenth. Yields a function to
    call with the number done and the total."""
    if not progress.is_terminal:
        tenths = Counter[int]()

        def line(done: int, total: int) -> None:
            tenth = 10 * done // max(1, total)
            tenths[tenth] += 1
            if tenths[tenth] == 1 and tenth:
                say(f"{title}: {done} of {total}")

        yield line
        return
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        ProgressColumn,
        Task,
        TextColumn,
        TimeRemainingColumn,
    )

    class Rate(ProgressColumn):
        """How many a second, lately."""

        def render(self, task: Task) -> Text:
            return Text(f"{task.speed:.1f}/s" if task.speed else "")

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), Rate(), TimeRemainingColumn())
    with Progress(*columns, console=progress, transient=True) as shown:
        task = shown.add_task(title, total=None)
        yield lambda done, total: shown.update(task, completed=done, total=total)
