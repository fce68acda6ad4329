"""What an output need not keep for ever is found, and deleted where that is wanted.

Kept is what a later run needs and what an audit asks for: commit records, scores, rejects, alerts, and the plans of
committed runs, by which a run knows what was done. Old enough to go are the pictures of alerts with what raised them
(`explanations/`, and the pages, which hold small ones), the plans of attempts that another one has replaced, and the
checkpoints of trainings.
"""

import datetime
import re
from collections.abc import Iterator
from dataclasses import dataclass

from melanoma import storage
from melanoma.errors import InputError
from melanoma.scoring import layout, results
from melanoma.scoring.record import PlanDetails, moment, read
from melanoma.storage import Store

_AGE = re.compile(r"^(\d+)\s*(d|w)$")
_CHECKPOINT = re.compile(r"/checkpoint_(\d{4}-\d{2}-\d{2})_(\d{2}-\d{2}-\d{2})")


@dataclass(frozen=True)
class Old:
    """Objects that need not be kept, of one kind: explanations, pages, plans or checkpoints."""

    kind: str
    uris: tuple[str, ...]
    bytes: int


def age(text: str) -> datetime.timedelta:
    """Of such as "90d" or "12w". Raises InputError."""
    if not (found := _AGE.match(text.strip())):
        raise InputError(f"{text!r} is no age: give days or weeks, such as 90d or 12w.")
    return datetime.timedelta(days=int(found[1]) * (7 if found[2] == "w" else 1))


def find(
    out: str, before: datetime.datetime, checkpoints: str | None = None, store: Store = storage.DEFAULT
) -> list[Old]:
    """What need not be kept.

    Args:
        out: Folder or s3:// URI of the results.
        before: What was finished after this moment is kept.
        checkpoints: Where trainings keep theirs; None: those are not looked at.
        store: Reads them.

    Returns:
        One entry a kind, those with nothing left out.

    Raises:
        InputError: The output cannot be read, or holds no run.
        UnavailableError: The store does not answer.
    """
    root = storage.normalize(out)
    try:
        records = results.committed_runs(root, store)
        if not records:
            raise InputError(f"{out} holds no finished run: nothing was deleted.")
        old = [record for record in records if moment(record.finished_at) < before]
        found: dict[str, list[storage.ObjectInfo]] = {"explanations": [], "pages": [], "plans": [], "checkpoints": []}
        for record in old:
            folder = layout.folder(root, "explanations", record.run_date, record.run_id)
            found["explanations"] += _below(folder, store)
            page = layout.page(root, record.run_id)
            found["pages"] += [store.info(page)] if store.exists(page) else []
        found["plans"] = list(_replaced_plans(root, before, store))
        if checkpoints:
            found["checkpoints"] = list(_checkpoints(storage.normalize(checkpoints), before, store))
    except OSError as error:
        raise InputError(f"The output {out} cannot be read: {error}") from None
    return [
        Old(kind, tuple(info.uri for info in infos), sum(info.size for info in infos))
        for kind, infos in found.items()
        if infos
    ]


def delete(old: list[Old], store: Store = storage.DEFAULT) -> None:
    """Raises OSError and UnavailableError; the same call goes on."""
    for each in old:
        list(results.in_parallel(store.delete, each.uris))


def _below(uri: str, store: Store) -> list[storage.ObjectInfo]:
    try:
        return list(store.list_objects(uri))
    except FileNotFoundError:
        return []


def _replaced_plans(root: str, before: datetime.datetime, store: Store) -> Iterator[storage.ObjectInfo]:
    """The shards of attempts that are not those of their run's plan. A run without a plan may be about to get one."""
    attempts: dict[str, str] = {}
    for uri in results.uris_below(layout.runs(root), store):
        if storage.name(uri) == "plan.json":
            details = read(PlanDetails, uri, store)
            if moment(details.planned_at) < before:
                attempts[storage.name(storage.parent(uri))] = details.attempt
    for info in _below(storage.join(root, "plans"), store):
        run, attempt = info.uri.removeprefix(f"{root}/plans/").split("/")[:2]
        if run in attempts and attempt != attempts[run]:
            yield info


def _checkpoints(root: str, before: datetime.datetime, store: Store) -> Iterator[storage.ObjectInfo]:
    """All that trainings have left whose newest checkpoint is old."""
    of_training: dict[str, list[storage.ObjectInfo]] = {}
    newest: dict[str, datetime.datetime] = {}
    for info in _below(root, store):
        name = info.uri.removeprefix(f"{root}/").split("/")[0].removesuffix(".json")
        of_training.setdefault(name, []).append(info)
        if found := _CHECKPOINT.search(info.uri):
            at = datetime.datetime.strptime("_".join(found.groups()), "%Y-%m-%d_%H-%M-%S").replace(tzinfo=datetime.UTC)
            newest[name] = max(at, newest.get(name, at))
    for name, infos in of_training.items():
        if name in newest and newest[name] < before:
            yield from infos
