"""One night, top to bottom: score what is new with the promoted model, deliver its alerts, look at what came of it,
train anew where that is due, and tell somebody of what is not as it should be.

Each step is its own command, too, and a night that fails is finished by the same call. What a bad night is,
`melanoma.scoring.status` decides. A night that was finished is no failure, however strange: it is told, and the job
ends with 0, so that no scheduler tries it again. It ends otherwise where images were not scored or alerts not sent.
"""

import hashlib
from collections.abc import Callable
from typing import TYPE_CHECKING

from melanoma import storage
from melanoma.errors import MelanomaError
from melanoma.nightly import notes
from melanoma.nightly.config import NightlyConfig
from melanoma.nightly.notes import Note
from melanoma.scoring import channels, deliver, status
from melanoma.scoring.channels import Message
from melanoma.scoring.record import now
from melanoma.scoring.status import Problem

if TYPE_CHECKING:
    from melanoma.scoring.run import Outcome

Say = Callable[[str], None]


def run(config: NightlyConfig, score: Callable[[], "Outcome"], say: Say = print) -> Note:
    """One night.

    Args:
        config: What it does.
        score: Scores what is new, see `melanoma.scoring.run.score`.
        say: Given one line a step.

    Returns:
        Its note, as it was written.

    Raises:
        InputError: It cannot begin as configured; or an image, a bundle or a receiver is at fault.
        MelanomaError: Images were not scored, or alerts not delivered. The same call goes on.
    """
    for settings in (config.deliver, config.tell):
        if settings:
            deliver.check_settings(settings)  # rather now than after hours
    night = config.score.run_date or now().date().isoformat()
    root = storage.normalize(config.score.out)
    before = [note for note in notes.every(root) if note.night != night]
    problems = notes.missed(before, night)
    note = Note(night=night, state="begun", began_at=notes.stamp())
    notes.write(root, note)
    failure: MelanomaError | None = None
    try:
        outcome = score()
    except MelanomaError as error:
        failure = error
    else:
        note, found = _looked_at(config, note, outcome)
        problems += found
        failure = _delivered(config, say)
        problems += _retrained(config, before, say)
    if failure:
        problems.append(Problem("failed", "", f"The night of {night} failed: {failure}"))
        note = note.model_copy(update={"state": "failed", "why": str(failure)})
    else:
        note = note.model_copy(update={"state": "finished"})
    note = note.model_copy(
        update={
            "ended_at": notes.stamp(),
            "problems": tuple((problem.kind, problem.sentence) for problem in problems),
            "told": not problems,
        }
    )
    notes.write(root, note)
    note = _tell(config, root, [each for each in before if not each.told], note, say)
    if failure:
        raise failure
    return note


def _looked_at(config: NightlyConfig, note: Note, outcome: "Outcome") -> tuple[Note, list[Problem]]:
    """The note with its runs, and what somebody has to look at of them."""
    records = [*outcome.earlier, outcome.record]
    found = [problem for record in records for problem in status.of_run(config.score.out, record)]
    if outcome.changed and not outcome.record.images and not config.may_be_empty:
        listed = outcome.record.counts.listed
        found.append(
            Problem(
                "few images",
                outcome.record.run_id,
                f"The night of {note.night} had no new image among {listed:,} that are listed: look whether the "
                "archive still gets its images (may_be_empty: true, where that is usual).",
            )
        )
    return note.model_copy(update={"run_ids": tuple(record.run_id for record in records)}), found


def _delivered(config: NightlyConfig, say: Say) -> MelanomaError | None:
    """Deliver; returns why something was not."""
    if not config.deliver:
        return None
    try:
        deliver.deliver(config.score.out, config.deliver, say=say)
    except MelanomaError as error:
        return error
    return None


def _retrained(config: NightlyConfig, before: list[Note], say: Say) -> list[Problem]:
    """Train anew where that is due; what comes of it somebody hears of, and nothing else uses it."""
    if not config.retrain:
        return []
    from melanoma.nightly import retrain

    try:
        proposal = retrain.where_due(config.retrain, config.score.bundle, now().date(), say)
    except (MelanomaError, OSError) as error:
        return [Problem("retraining", "", f"The training anew failed, and the night has not: {error}")]
    return [Problem("retraining", "", proposal)] if proposal else []


def _tell(config: NightlyConfig, root: str, untold: list[Note], note: Note, say: Say) -> Note:
    """Tell of this night and of those that could not be told of; returns the note as it is then."""
    told = [*untold, note] if not note.told else untold
    for each in told:
        for _, sentence in each.problems:
            say(sentence)
    if not told or not config.tell:
        return note
    message = _message(config.score.out, told)
    failed = []
    for name, send in channels.channels(config.tell).items():
        try:
            if complaint := channels.patiently(send, config.tell.patience)(message):
                failed.append(f"The {name} {complaint}")
        except (channels.RefusedError, channels.UncertainError) as error:
            failed.append(f"The {name} was not told: {error}")
    if failed:
        say(f"Nobody could be told of it, and the next night tries again: {' '.join(failed)}")
        return note
    for each in told:
        notes.write(root, each.model_copy(update={"told": True}))
    return note.model_copy(update={"told": True})


def _message(out: str, told: list[Note]) -> Message:
    problems = [(note.night, kind, sentence) for note in told for kind, sentence in note.problems]
    digest = hashlib.sha256("\n".join(sentence for _, _, sentence in problems).encode()).hexdigest()[:10]
    failed = any(note.state == "failed" for note in told)
    night = told[-1].night
    return Message(
        f"night-{night}-{digest}",
        {
            "type": "melanoma.night",
            "night": night,
            "failed": failed,
            "problems": [{"night": day, "kind": kind, "sentence": sentence} for day, kind, sentence in problems],
        },
        f"melanoma {night}: {'the night failed' if failed else 'a night to look at'}",
        "\n".join([*(sentence for _, _, sentence in problems), "", f"More: melanoma status {out}", ""]),
    )
