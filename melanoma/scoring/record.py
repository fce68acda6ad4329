"""What a run writes about itself as JSON: its plan in ``plan.json``, and at its end the commit record.

A commit record holds all that the plan says, and what came of it. Both are also read where an earlier version of this
program wrote them: a key that it did not know has the default below, and a key that this version does not know is kept.
"""

import datetime
from collections.abc import Callable
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError, ValidatorFunctionWrapHandler, WrapValidator

from melanoma import storage
from melanoma.errors import InputError
from melanoma.model.manifest import Thresholds
from melanoma.storage import Store


def _unless_understood(default: Callable[[], Any]) -> WrapValidator:
    """`default` for a block that this version does not understand: no later run may stop at what it does not need."""

    def validate(value: Any, as_declared: ValidatorFunctionWrapHandler) -> Any:
        try:
            return as_declared(value)
        except ValidationError:
            return default()

    return WrapValidator(validate)


class _Written(BaseModel):
    model_config = ConfigDict(extra="allow", frozen=True, protected_namespaces=())

    def to_json(self) -> dict[str, Any]:
        """The tree that is written, or the very one that was read: keys that an earlier version did not know are left
        out."""
        return self.model_dump(mode="json", exclude_unset=True)


class RunHeader(_Written):
    """What is known of a run before its archive is listed."""

    # A digest: calls with the same archives, model, thresholds and `all` are the same run, see melanoma.scoring.run.
    key: str = ""
    pseudonym_key: str | None = None  # fingerprint of the key that pseudonyms are made with
    run_date: str  # ISO date
    archive: str | tuple[str, ...] = ""
    model_version: str = ""
    preprocessing: str = ""
    reads: int = 1  # see melanoma.imaging.decode.READS: a version that reads more tries again what was refused
    planned_at: str = ""  # ISO 8601, UTC


class PlanDetails(RunHeader):
    """What a run is to score, in numbers: ``runs/run_id=ID/plan.json``."""

    listed: int = 0  # objects of the archives, each once
    done_before: int = 0  # objects that an earlier run of the same model has done
    images: int = 0  # of the others, those that the run is to score
    left_out: int = 0  # of the others, those beyond the limit of the run, which a later one scores
    untried: int = 0  # images of which no earlier run has said that it could not fetch them
    shards: int = 0
    shard_size: int = 1  # images a shard; the last has the rest
    attempt: str = ""  # keeps the shards of two drivers apart


class Counts(_Written):
    """What became of the objects of the archives: images, and in `urgent` and `review` the alerts by their level."""

    listed: int = 0
    done_before: int = 0
    scored: int = 0
    rejected: int = 0
    rejects_by_kind: dict[str, int] = {}
    alerts: int = 0
    urgent: int = 0
    review: int = 0


class Distribution(_Written):
    """How what is measured of every image is distributed, see melanoma.scoring.run_page."""

    images: int
    quantiles: dict[str, tuple[float, ...]]


class Stages(_Written):
    """What the last attempt of a run did, and what it took: sums over its workers, see melanoma.scoring.progress."""

    images: int = 0  # of the run
    done: int = 0  # of these, by earlier attempts too
    resumed: bool = False
    scored: int = 0
    rejected: int = 0
    rejects_by_kind: dict[str, int] = {}
    bytes: int = 0
    seconds: float = 0
    images_per_second: float = 0
    seconds_remaining: float | None = None
    workers: int = 0
    shards_waiting: int = 0
    peak_memory_bytes: int = 0  # of one worker
    seconds_waiting_for_bytes: float = 0
    seconds_decoding: float = 0
    seconds_predicting: float = 0
    seconds_writing: float = 0


STAGES = ("seconds_waiting_for_bytes", "seconds_decoding", "seconds_predicting", "seconds_writing")
"""The fields of `Stages` that say where the time of the workers goes."""


class RunRecord(PlanDetails):
    """The commit record of a run: ``runs/run_id=ID.json``, written last."""

    run_id: str
    finished_at: str  # ISO 8601, UTC
    counts: Counts = Counts()
    thresholds: Annotated[Thresholds | None, _unless_understood(lambda: None)] = None
    distribution: Annotated[Distribution | None, _unless_understood(lambda: None)] = None
    seconds: float = 0  # of the last attempt, from the lease to the record
    stages: Annotated[Stages, _unless_understood(Stages)] = Stages()
    versions: dict[str, str] = {}


R = TypeVar("R", bound=_Written)


def read(model: type[R], uri: str, store: Store = storage.DEFAULT) -> R:
    """Read a plan or a commit record. Raises InputError where the file is no such thing, and as `store` does."""
    try:
        return model.model_validate(store.read_json(uri))
    except ValueError:
        raise InputError(f"{uri} is damaged, or not of this program: restore it from a backup.") from None


def now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)


def moment(text: str) -> datetime.datetime:
    """A moment as it is written, UTC where it does not say."""
    found = datetime.datetime.fromisoformat(text)
    return found if found.tzinfo else found.replace(tzinfo=datetime.UTC)
