"""What jobs/nightly.py calls."""

from typing import TYPE_CHECKING

from melanoma.cli import console
from melanoma.cli.score import log_lines

if TYPE_CHECKING:
    from melanoma.nightly.config import NightlyConfig


def run_night(settings: "NightlyConfig") -> None:
    from melanoma.nightly import night
    from melanoma.scoring.run import score

    with console.resumable("The same command goes on."), console.bar("Scoring") as bar, log_lines():
        note = night.run(
            settings,
            lambda: score(settings.score, lambda progress: bar(progress.done, progress.total), console.say),
            console.say,
        )
    console.answer.print(
        f"The night of {note.night} is finished: {', '.join(note.run_ids)} in {settings.score.out}, "
        f"{len(note.problems) or 'nothing'} to look at."
    )
