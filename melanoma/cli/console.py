"""What a command prints: answers to standard output, progress to standard error."""

import contextlib
import json
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

from rich.console import Console

# Text is never wrapped in the middle of a path, and neither is a table that goes to a file.
_WIDTH = None if sys.stdout.isatty() else 1000
# Paths and labels are the users' own words: square brackets in them are not markup.
answer = Console(highlight=False, markup=False, soft_wrap=True, width=_WIDTH)
progress = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)


def say(message: str) -> None:
    """One line of progress."""
    progress.print(message)


def print_json(value: Any) -> None:
    print(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False, default=str))


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
    from rich.text import Text

    class Rate(ProgressColumn):
        """How many a second, lately."""

        def render(self, task: Task) -> Text:
            return Text(f"{task.speed:.1f}/s" if task.speed else "")

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), Rate(), TimeRemainingColumn())
    with Progress(*columns, console=progress, transient=True) as shown:
        task = shown.add_task(title, total=None)
        yield lambda done, total: shown.update(task, completed=done, total=total)
