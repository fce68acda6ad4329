"""One driver at a time scores an archive with a model: it holds a lease, and renews it every few seconds.

No clock is compared with another machine's: a lease is alive if it changes while a driver looks at it. Not every store
knows conditional writes, so none is used. Should two drivers overlap for a moment all the same, the one that has lost
the lease ends before it publishes anything.
"""

import contextlib
import json
import threading
import time
import uuid
from collections.abc import Callable, Iterator

from melanoma import storage
from melanoma.errors import InputError, MelanomaError
from melanoma.storage import Store, UnavailableError

BEAT = 3.0  # seconds between two renewals
DEAD_AFTER = 5 * BEAT  # seconds without one
_SETTLE = 1.0  # seconds in which a write of another driver that began at the same moment becomes visible
_AT_WORK = "Another driver is at work on the same archive with the same model: this one has nothing to do."


@contextlib.contextmanager
def hold(uri: str, say: Callable[[str], None], store: Store = storage.DEFAULT) -> Iterator[Callable[[], None]]:
    """Hold the lease at `uri` while the block lasts.

    Yields a function that confirms that the lease is still held, and raises MelanomaError once another driver has it.
    Raises InputError where another driver is at work, after at most `DEAD_AFTER` seconds of looking at its lease, and
    as `store` does.
    """
    _wait_for_the_dead(uri, say, store)
    owner = uuid.uuid4().hex
    ended = threading.Event()
    impatient = Store(min(DEAD_AFTER, store.patience))  # later it is lost, and the next beat tries again

    def renew() -> None:
        beat = 0
        while not ended.wait(BEAT):
            # While the store is away, nobody else can take the lease, either.
            with contextlib.suppress(OSError, UnavailableError):
                if _owner(uri, impatient) != owner:
                    return
                beat += 1
                impatient.write_json(uri, {"owner": owner, "beat": beat})

    def confirm_held() -> None:
        # A lease that is gone is lost, too: another driver took it and has ended since.
        if _owner(uri, store) != owner:
            raise MelanomaError("Another driver has taken over: this one ends.")

    renewer = threading.Thread(target=renew, daemon=True)
    try:
        store.write_json(uri, {"owner": owner, "beat": 0})
        time.sleep(_SETTLE)
        if _owner(uri, store) != owner:
            raise InputError(_AT_WORK)
        renewer.start()
        yield confirm_held
    finally:
        ended.set()
        # A store that has been waited for is not waited for once more: the next driver sees that this one is dead.
        if not (storage.is_s3(uri) and storage.is_away()):
            if renewer.is_alive():
                renewer.join()
            with contextlib.suppress(OSError, UnavailableError):
                if _owner(uri, impatient) == owner:
                    impatient.delete(uri)


def _wait_for_the_dead(uri: str, say: Callable[[str], None], store: Store) -> None:
    first = _read(uri, store)
    if first is None:
        return
    say(f"Another driver has been at work here: looking for {DEAD_AFTER:g} s whether it is alive.")
    until = time.monotonic() + DEAD_AFTER
    while time.monotonic() < until:
        time.sleep(_SETTLE)
        now = _read(uri, store)
        if now is None:
            return
        if now != first:
            raise InputError(_AT_WORK)
    say("It is not: this driver takes its place.")


def _read(uri: str, store: Store) -> bytes | None:
    try:
        return store.read_bytes(uri)
    except FileNotFoundError:
        return None


def _owner(uri: str, store: Store) -> str | None:
    data = _read(uri, store)
    return None if data is None else str(json.loads(data)["owner"])
