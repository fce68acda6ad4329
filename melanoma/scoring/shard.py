"""Fetch, decode, predict, triage, write: one shard, in a worker.

How a shard is resumed: a shard is written as two objects of fixed names, its rejects first and its scores last
(`_write`). A shard whose scores exist is therefore done, and a later attempt leaves it alone (`unscored`). A shard
without scores is scored again as a whole, and its objects are written over. Besides the frozen plan (`plan.json`; a run
without one is planned anew) there is no other state, so a run may die at any moment, and a resumed run is equal to an
undisturbed one. A shard whose results cannot be published is undone: its scores are deleted (`undo`).

`melanoma.scoring.run` decides which run a command resumes. There Ray also restarts a worker that dies, and repeats its
shard. A file that kills or hangs its worker ends no run: see `begun`.
"""

import contextlib
import datetime
import resource
import socket
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, get_args

import numpy as np
import pyarrow as pa
import ray
from PIL import Image

from melanoma import privacy, storage
from melanoma.errors import MelanomaError
from melanoma.imaging import load
from melanoma.imaging.errors import ErrorKind, UnreachableError
from melanoma.imaging.hashing import perceptual_hash
from melanoma.imaging.header import NO_HEADER, Header
from melanoma.imaging.isolated import IsolatedDecoder, ends_process_after
from melanoma.imaging.limits import Limits
from melanoma.imaging.load import Loaded
from melanoma.model import device
from melanoma.model.bundle import Bundle
from melanoma.model.predictor import Predictor, columns
from melanoma.privacy import Privacy
from melanoma.scoring import begun, results, tables
from melanoma.scoring.config import ScoreConfig
from melanoma.scoring.fetch import Fetched, fetch_ahead
from melanoma.scoring.gpus import Gpus
from melanoma.scoring.plan import Plan
from melanoma.scoring.record import STAGES
from melanoma.storage import Store
from melanoma.taxonomy import image_id_of

_BATCHES_AHEAD = 2  # that a GPU may have in hand of each worker


# --- Which shards are done --------------------------------------------------------------------------------------------


def unscored(plan: Plan, store: Store = storage.DEFAULT) -> list[int]:
    """The shards that are not done: those without scores. Raises as `store` does."""
    scored = set(results.uris_below(plan.folder("scores"), store))
    return [shard for shard in plan.shards if plan.result_uri("scores", shard) not in scored]


def undo(plan: Plan, shards: Iterable[int], store: Store = storage.DEFAULT) -> None:
    """Let the next attempt score these shards again. Raises as `store` does."""
    for shard in shards:
        store.delete(plan.result_uri("scores", shard))


def _write(plan: Plan, shard: int, scores: pa.Table, rejects: pa.Table, store: Store) -> None:
    store.write_table(plan.result_uri("rejects", shard), tables.in_file(rejects))
    # Last: that they exist says that the shard is done.
    store.write_table(plan.result_uri("scores", shard), tables.in_file(scores))


# --- The worker -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Image:
    uri: str
    sha256: str | None
    pixels: np.ndarray | None  # uint8 RGB [size, size, 3]; None for a reject
    header: Header = NO_HEADER
    frame: int | None = None  # counted from 1, of a file that has several
    error_kind: str | None = None
    error: str | None = None


@dataclass(frozen=True)
class _Batch:
    """Images that the network was asked about."""

    images: list[_Image]
    pixels: np.ndarray  # uint8 RGB [n, size, size, 3]
    outputs: Any  # see melanoma.model.predictor, or the question to a GPU


def images_of(uri: str, loaded: Loaded) -> list[_Image]:
    """The pixels of each frame of an image, or one reject with its reason."""
    if loaded.error:
        return [_Image(uri, loaded.sha256, None, error_kind=loaded.error.kind, error=loaded.error.reason)]
    return [_Image(uri, loaded.sha256, decoded.pixels, decoded.header, decoded.frame) for decoded in loaded.frames]


def most_suspicious_frames(scores: pa.Table) -> pa.Table:
    """The scores with one row for each image: of one with several frames, the row that comes first `tables.by_rank`."""
    if scores["frame"].null_count == len(scores):
        return scores
    uris = scores["image_uri"].to_pylist()
    best = dict.fromkeys(uris, -1)  # the images in their order
    for row in tables.by_rank(scores).to_pylist():
        if best[uris[row]] < 0:
            best[uris[row]] = row
    return scores.take(pa.array(list(best.values()), pa.int64()))


class ShardScorer:
    """The worker: scores one shard at a time and reports what it did.

    Args:
        bundle: The model.
        plan: What the run is to score.
        config: How it is done.
        networks: The registry of the networks on GPUs. The worker asks one of them, and decodes the next batch while it
            waits for the answer. Without, it holds the network itself.
    """

    def __init__(self, bundle: Bundle, plan: Plan, config: ScoreConfig, networks: Any = None) -> None:
        self._bundle, self._plan, self._config = bundle, plan, config
        self._gpus = Gpus(networks) if networks else None
        self._privacy = Privacy()
        self._predictor: Predictor | None = None
        self._limits = Limits(config.max_bytes, config.max_pixels)
        self._pool = ThreadPoolExecutor(max_workers=config.requests)
        self._store = Store(config.patience)
        self._unreachable = 0  # images in a row for which the store did not answer, across shards

    def __call__(self, task: pa.Table) -> pa.Table:
        shard = int(task["shard"][0].as_py())
        self._privacy = self._own_privacy()
        begin = self._pool.submit(begun.begin, self._plan, shard, self._store)
        planned = self._store.read_table(self._plan.uri(shard))
        has_died = begin.result()
        try:
            if not self._gpus and self._predictor is None:  # not earlier: who dies of it has now left a mark
                if not self._bundle.is_compiled:
                    device.use_no_gpu()
                self._predictor = Predictor(self._bundle, self._config.batch_size, threads=1)
            with self._decoder(has_died) as decode:
                return self._score(shard, planned, decode)
        finally:
            begun.end(self._plan, shard, self._store)

    @contextlib.contextmanager
    def _decoder(self, has_died: bool) -> Iterator[Callable[[Fetched], Loaded]]:
        """Decodes what was fetched: in this process, or in another where a worker has died over the shard."""
        size, limits, seconds = self._bundle.input_size, self._limits, self._config.decode_seconds
        if has_died:
            with IsolatedDecoder(limits, seconds) as isolated:
                yield lambda data: isolated.load(data, size, several_frames=True)
            return
        # Only a worker of Ray is started again.
        is_worker = ray.is_initialized() and ray.get_runtime_context().get_actor_id() is not None
        limited = ends_process_after if is_worker else contextlib.nullcontext

        def decode(data: Fetched) -> Loaded:
            with limited(seconds):
                return load.load(data, size, limits, several_frames=True)

        yield decode

    def _score(self, shard: int, planned: pa.Table, decode: Callable[[Fetched], Loaded]) -> pa.Table:
        """Score the planned images of a shard, write what came of them, and report it."""
        clock = _Clock()
        waiting: list[_Image] = []
        asked: deque[_Batch] = deque()
        rejects: list[_Image] = []
        scores = [tables.SCORES.empty_table()]
        read = 0
        for uri, data in fetch_ahead(planned, self._pool, self._config, self._limits, self._store):
            clock.lap("seconds_waiting_for_bytes")
            read += len(data) if isinstance(data, bytes) else 0
            self._refuse_a_store_that_is_gone(data)
            images = images_of(uri, decode(data))
            (rejects if images[0].pixels is None else waiting).extend(images)
            clock.lap("seconds_decoding")
            while len(waiting) >= self._config.batch_size:
                asked.append(self._ask(waiting[: self._config.batch_size]))
                waiting = waiting[self._config.batch_size :]
                if len(asked) > _BATCHES_AHEAD:
                    scores.append(self._scores(asked.popleft()))
                clock.lap("seconds_predicting")
        if waiting:
            asked.append(self._ask(waiting))
        scores += map(self._scores, asked)
        scored, rejected = most_suspicious_frames(pa.concat_tables(scores)), self._rejects(rejects)
        clock.lap("seconds_predicting")
        _write(self._plan, shard, scored, rejected, self._store)
        clock.lap("seconds_writing")
        done = {"shard": shard, "scored": len(scored), "rejected": len(rejected), "bytes": read}
        kinds = {f"rejects_{kind}": [image.error_kind for image in rejects].count(kind) for kind in get_args(ErrorKind)}
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        return pa.Table.from_pylist([{**done, **kinds, "peak_memory_bytes": peak, **clock.seconds}])

    def _refuse_a_store_that_is_gone(self, data: Fetched) -> None:
        """Raise MelanomaError where the store did not answer for as many images in a row as are fetched at a time: each
        of the others would wait as long."""
        if not isinstance(data, UnreachableError):
            self._unreachable = 0
            return
        self._unreachable += 1
        if self._unreachable >= self._config.requests:
            raise MelanomaError(
                f"{self._unreachable} images in a row could not be fetched, the last because: {data.reason}"
            )

    def _own_privacy(self) -> Privacy:
        """With the key of this node: it does not travel through Ray. Raises MelanomaError where it is not the driver's,
        as a patient would go by another name here."""
        own, wanted = privacy.from_environment(self._config.hold_back_annotated), self._plan.details.pseudonym_key
        if own.fingerprint() != wanted:
            has = "none" if own.key is None else "one, and the driver none" if wanted is None else "another"
            raise MelanomaError(
                f"{privacy.KEY} is not the driver's on {socket.gethostname()}, which has {has}: give every node the "
                "same, from a secret store, before Ray starts there"
            )
        return own

    def _ask(self, images: list[_Image]) -> _Batch:
        pixels = np.stack([image.pixels for image in images if image.pixels is not None])
        if self._gpus:
            return _Batch(images, pixels, self._gpus.ask(pixels))
        assert self._predictor
        return _Batch(images, pixels, self._predictor.outputs(pixels))

    def _scores(self, batch: _Batch) -> pa.Table:
        outputs = self._gpus.answer(batch.outputs) if self._gpus else batch.outputs
        images = batch.images
        patients = [self._privacy.columns(image.header) for image in images]
        predicted = columns(self._bundle, batch.pixels, outputs)
        hashes = [
            perceptual_hash(Image.fromarray(pixels)) if level != "none" else None
            for pixels, level in zip(batch.pixels, predicted["alert_level"], strict=True)
        ]
        return pa.Table.from_pydict(
            {
                **self._run_columns(len(images)),
                "scored_at": [datetime.datetime.now(datetime.UTC)] * len(images),
                "image_uri": [image.uri for image in images],
                "image_id": [image_id_of(image.uri) for image in images],
                "frame": [image.frame for image in images],
                **{field.name: [each[field.name] for each in patients] for field in tables.PATIENT_FIELDS},
                "content_sha256": [image.sha256 for image in images],
                **predicted,
                "perceptual_hash": hashes,
            },
            schema=tables.SCORES,
        )

    def _rejects(self, images: list[_Image]) -> pa.Table:
        return pa.Table.from_pydict(
            {
                **self._run_columns(len(images)),
                "image_uri": [image.uri for image in images],
                "error_kind": [image.error_kind for image in images],
                "error": [image.error for image in images],
                "content_sha256": [image.sha256 for image in images],
            },
            schema=tables.REJECTS,
        )

    def _run_columns(self, rows: int) -> dict[str, list[Any]]:
        return {"run_id": [self._plan.run_id] * rows, "run_date": [self._plan.run_date] * rows}


class _Clock:
    """Sums up where the time of a shard goes."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = dict.fromkeys(STAGES, 0.0)
        self._last = time.monotonic()

    def lap(self, stage: str) -> None:
        now = time.monotonic()
        self.seconds[stage] += now - self._last
        self._last = now
