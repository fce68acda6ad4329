"""What a night leaves about itself beside its run: ``OUT/nights/night=2026-11-20.json``.

A night that fails has no commit record, and so its note is what says why. What somebody was told stands there as well:
nobody is told twice, and what could not be told is told by the next night.
"""

import datetime
from typing import Literal

from pydantic import BaseModel, ConfigDict

from melanoma import storage
from melanoma.scoring import results
from melanoma.scoring.record import now
from melanoma.scoring.status import Problem


class Note(BaseModel):
    """One night. `problems`: what somebody has to look at; `told`: whether somebody was."""

    model_config = ConfigDict(extra="allow", frozen=True)

    night: str  # ISO date
    state: Literal["begun", "finished", "failed"]
    began_at: str  # ISO 8601, UTC
    ended_at: str | None = None
    why: str = ""  # it failed, in one sentence
    run_ids: tuple[str, ...] = ()
    problems: tuple[tuple[str, str], ...] = ()  # kind and sentence
    told: bool = True  # nothing had to be told, or it was


def uri(root: str, night: str) -> str:
    return storage.join(root, "nights", f"night={night}.json")


def write(root: str, note: Note) -> None:
    """Raises OSError and UnavailableError."""
    storage.write_json(uri(root, note.night), note.model_dump(mode="json"))


def read(root: str, night: str) -> Note | None:
    """None where there is none. Raises OSError and UnavailableError."""
    place = uri(root, night)
    return Note.model_validate(storage.read_json(place)) if storage.exists(place) else None


def every(root: str) -> list[Note]:
    """All notes, oldest first. Raises OSError and UnavailableError."""
    uris = results.uris_below(storage.join(root, "nights"))
    found = results.in_parallel(lambda place: Note.model_validate(storage.read_json(place)), sorted(uris))
    return sorted(found, key=lambda note: note.night)


def missed(notes: list[Note], night: str) -> list[Problem]:
    """The nights since the last note of which there is none."""
    before = [note.night for note in notes if note.night < night]
    if not before:
        return []
    last, this = (datetime.date.fromisoformat(day) for day in (before[-1], night))
    days = [(last + datetime.timedelta(days=past)).isoformat() for past in range(1, (this - last).days)]
    if not days:
        return []
    when = days[0] if len(days) == 1 else f"{days[0]} to {days[-1]}"
    sentence = f"{len(days)} night{'s' * (len(days) > 1)} did not begin ({when}): what they missed is scored now."
    return [Problem("late", "", sentence)]


def stamp() -> str:
    return now().isoformat(timespec="seconds")
