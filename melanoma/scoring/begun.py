"""Which shards a process has begun and not ended: one that died over a file of a shard leaves its mark there.

A worker marks a shard before it decodes, and takes the mark away when it ends the shard, well or with an error. Who
finds a mark knows that its predecessor died, in this attempt or an earlier one, and decodes in processes of their own:
the file that kills is then found, and its neighbours are scored. Most processes die of something else (a node is taken
back, a driver is ended), which costs a little speed and nothing more.
"""

import contextlib
import json
from collections.abc import Iterable

from melanoma import storage
from melanoma.errors import MelanomaError
from melanoma.scoring import results
from melanoma.scoring.plan import Plan
from melanoma.storage import Store

MOST_DEATHS = 10  # of the workers of one shard in one attempt: with fewer, nodes that are taken back would end a run


def begin(plan: Plan, shard: int, store: Store) -> bool:
    """Mark a shard as begun; returns whether a process died over it.

    Raises MelanomaError where too many have, and OSError.
    """
    uri = plan.begun_uri(shard)
    try:
        deaths = int(json.loads(store.read_bytes(uri))["begun"])
    except FileNotFoundError:
        deaths = 0
    if deaths >= MOST_DEATHS:
        raise MelanomaError(
            f"Workers died {deaths} times over shard {shard}, whose images are listed in {plan.uri(shard)}, and not as "
            "they decoded one of them: most likely the memory does not suffice. Choose fewer workers, or a smaller "
            "batch_size or bytes_ahead."
        )
    store.write_json(uri, {"begun": deaths + 1})
    return deaths > 0


def end(plan: Plan, shard: int, store: Store) -> None:
    """Take the mark of a shard away. Never raises: a mark that stays costs a little speed."""
    with contextlib.suppress(OSError, storage.UnavailableError):
        store.delete(plan.begun_uri(shard))


def count_anew(plan: Plan, shards: Iterable[int], store: Store) -> None:
    """Let each marked shard have died once only: deaths of an earlier attempt must not end this one. Raises OSError."""
    marked = set(results.uris_below(storage.parent(plan.begun_uri(0)), store))
    for shard in shards:
        if (uri := plan.begun_uri(shard)) in marked:
            store.write_json(uri, {"begun": 1})
