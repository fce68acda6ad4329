"""Fetch, decode, predict, triage, write: one shard, in a worker."""

import datetime
import hashlib
import resource
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, get_args

import numpy as np
import pyarrow as pa
import ray
import tenacity

from melanoma import storage, triage
from melanoma.bundle import Bundle
from melanoma.config import ScoreConfig
from melanoma.errors import MelanomaError
from melanoma.imaging.decode import ErrorKind, ImageError, Limits, decode
from melanoma.predictor import Predictor, columns
from melanoma.scoring.plan import Plan
from melanoma.taxonomy import image_id_of

STAGES = ("seconds_waiting_for_bytes", "seconds_decoding", "seconds_predicting", "seconds_writing")


@dataclass(frozen=True)
class _Image:
    uri: str
    sha256: str | None
    pixels: np.ndarray | None  # uint8 RGB [size, size, 3]; None for a reject
    error_kind: str | None = None
    error: str | None = None


@dataclass(frozen=True)
class _Asked:
    images: list[_Image]
    pixels: np.ndarray  # uint8 RGB [n, size, size, 3]
    logits: Any  # float32 [n, classes], or Ray's reference to them


_ASKED_AHEAD = 2  # batches that a GPU may have in hand of each worker

Fetched = bytes | ImageError | storage.UnavailableError


def fetch(uri: str, listed_size: int, limits: Limits, retrying: tenacity.Retrying) -> Fetched:
    """The bytes of one object of an archive, or the reason why they cannot be had. Never raises."""
    if listed_size > limits.max_bytes:
        reason = f"The object has {listed_size} bytes, more than the {limits.max_bytes} that are read."
        return ImageError("too_large", reason)
    try:
        return retrying(storage.read_bytes, uri, limits.max_bytes)
    except (FileNotFoundError, NotADirectoryError):
        return ImageError("not_found", "The object was listed but is not there any more.")
    except storage.UnavailableError as error:
        return error
    except OSError as error:
        return ImageError("access", str(error))


def fetch_ahead(
    shard: pa.Table, pool: ThreadPoolExecutor, config: ScoreConfig, limits: Limits, retrying: tenacity.Retrying
) -> Iterator[tuple[str, Fetched]]:
    """The shard's objects in their order, each with what `fetch` gives; the next are fetched meanwhile.

    As many requests are in flight as `config.requests`, but of no more than `config.bytes_ahead` listed bytes (or one
    object).
    """
    objects = iter(zip(shard["image_uri"].to_pylist(), shard["size"].to_pylist(), strict=True))
    ahead: deque[tuple[str, int, Future[Fetched]]] = deque()
    held, upcoming = 0, next(objects, None)
    while upcoming or ahead:
        while upcoming and len(ahead) < config.requests:
            uri, size = upcoming
            # What is too large is not read, and held by nobody.
            cost = size if size <= limits.max_bytes else 0
            if ahead and held + cost > config.bytes_ahead:
                break
            ahead.append((uri, cost, pool.submit(fetch, uri, size, limits, retrying)))
            held, upcoming = held + cost, next(objects, None)
        uri, cost, future = ahead.popleft()
        yield uri, future.result()
        held -= cost


def decode_one(uri: str, data: Fetched, size: int, limits: Limits) -> _Image:
    """The pixels of one image, or the reason why there are none. Never raises."""
    if isinstance(data, storage.UnavailableError):
        return _Image(uri, None, None, "access", str(data))
    if isinstance(data, ImageError):
        return _Image(uri, None, None, data.kind, data.reason)
    # What grew over the limit since it was listed was read only up to it.
    digest = hashlib.sha256(data).hexdigest() if len(data) <= limits.max_bytes else None
    try:
        return _Image(uri, digest, decode(data, size, limits).pixels)
    except ImageError as error:
        return _Image(uri, digest, None, error.kind, error.reason)


class NetworkOnGpu:
    """An actor that holds the network on a GPU and is asked by workers on any node: they fetch and decode."""

    def __init__(self, bundle: Bundle, batch_size: int) -> None:
        self._predictor = Predictor(bundle, batch_size)

    def logits(self, pixels: np.ndarray) -> np.ndarray:
        """float32 [n, classes] of uint8 RGB [n, size, size, 3]."""
        return self._predictor.logits(pixels)


class ShardScorer:
    """The worker: is given one shard at a time, returns what it did. It holds the model itself, or asks one of `gpus`,
    actors of `NetworkOnGpu`, and decodes on while it waits for the answer."""

    def __init__(self, bundle: Bundle, plan: Plan, config: ScoreConfig, gpus: Sequence[Any] = ()) -> None:
        self._bundle, self._plan, self._config, self._gpus = bundle, plan, config, gpus
        self._predictor = None if gpus else Predictor(bundle, config.batch_size, threads=1)
        self._limits = Limits(config.max_bytes, config.max_pixels)
        self._pool = ThreadPoolExecutor(max_workers=config.requests)
        self._retrying = storage.retrying(config.patience)
        self._in_vain = 0  # images one after the other that could not be fetched, whatever their shard

    def __call__(self, task: pa.Table) -> pa.Table:
        number = int(task["shard"][0].as_py())
        shard = self._retrying(storage.read_table, self._plan.uri(number))
        clock = _Clock()
        waiting: list[_Image] = []
        asked: deque[_Asked] = deque()
        rejects: list[_Image] = []
        scores = [triage.SCORES.empty_table()]
        read = 0
        for uri, data in fetch_ahead(shard, self._pool, self._config, self._limits, self._retrying):
            clock.lap("seconds_waiting_for_bytes")
            read += len(data) if isinstance(data, bytes) else 0
            image = decode_one(uri, data, self._bundle.input_size, self._limits)
            (rejects if image.pixels is None else waiting).append(image)
            self._in_vain = self._in_vain + 1 if isinstance(data, storage.UnavailableError) else 0
            if self._in_vain >= self._config.requests:
                # Not this or that image: the store is gone, and each image would wait as long as this one.
                raise MelanomaError(
                    f"{self._in_vain} images one after the other could not be fetched, the last because: {image.error}"
                )
            clock.lap("seconds_decoding")
            if len(waiting) == self._config.batch_size:
                asked.append(self._ask(waiting, number))
                waiting = []
                if len(asked) > _ASKED_AHEAD:
                    scores.append(self._scores(asked.popleft()))
                clock.lap("seconds_predicting")
        if waiting:
            asked.append(self._ask(waiting, number))
        scores += map(self._scores, asked)
        scored, rejected = pa.concat_tables(scores), self._rejects(rejects)
        clock.lap("seconds_predicting")
        # The scores come last: that they exist says that the shard is done.
        self._retrying(storage.write_table, self._plan.result_uri("rejects", number), rejected)
        self._retrying(storage.write_table, self._plan.result_uri("scores", number), scored)
        clock.lap("seconds_writing")
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        done = {"shard": number, "scored": len(scored), "rejected": len(rejected), "bytes": read}
        kinds = {f"rejects_{kind}": [image.error_kind for image in rejects].count(kind) for kind in get_args(ErrorKind)}
        return pa.Table.from_pylist([{**done, **kinds, "peak_memory_bytes": peak, **clock.seconds}])

    def _ask(self, images: list[_Image], shard: int) -> _Asked:
        pixels = np.stack([image.pixels for image in images if image.pixels is not None])
        if self._predictor:
            return _Asked(images, pixels, self._predictor.logits(pixels))
        return _Asked(images, pixels, self._gpus[shard % len(self._gpus)].logits.remote(pixels))

    def _scores(self, asked: _Asked) -> pa.Table:
        logits = asked.logits if self._predictor else ray.get(asked.logits)
        images = asked.images
        return pa.Table.from_pydict(
            {
                **self._run(len(images)),
                "scored_at": [datetime.datetime.now(datetime.UTC)] * len(images),
                "image_uri": [image.uri for image in images],
                "image_id": [image_id_of(image.uri) for image in images],
                "patient_id": [None] * len(images),
                "content_sha256": [image.sha256 for image in images],
                **columns(self._bundle, asked.pixels, logits),
            },
            schema=triage.SCORES,
        )

    def _rejects(self, images: list[_Image]) -> pa.Table:
        return pa.Table.from_pydict(
            {
                **self._run(len(images)),
                "image_uri": [image.uri for image in images],
                "error_kind": [image.error_kind for image in images],
                "error": [image.error for image in images],
                "content_sha256": [image.sha256 for image in images],
            },
            schema=triage.REJECTS,
        )

    def _run(self, rows: int) -> dict[str, list[Any]]:
        return {"run_id": [self._plan.run_id] * rows, "run_date": [self._plan.run_date] * rows}


class _Clock:
    """Where the time of a shard goes."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = dict.fromkeys(STAGES, 0.0)
        self._last = time.monotonic()

    def lap(self, stage: str) -> None:
        now = time.monotonic()
        self.seconds[stage] += now - self._last
        self._last = now
