"""Fetch, decode, predict, triage, write: one shard, in a worker."""

import datetime
import resource
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, get_args

import numpy as np
import pyarrow as pa
import ray
from PIL import Image

from melanoma import storage
from melanoma.errors import MelanomaError
from melanoma.imaging import load
from melanoma.imaging.errors import ErrorKind, ImageError, UnreachableError, of_storage
from melanoma.imaging.hashing import perceptual_hash
from melanoma.imaging.header import NO_HEADER, Header
from melanoma.imaging.limits import Limits
from melanoma.model.bundle import Bundle
from melanoma.model.predictor import Predictor, columns
from melanoma.privacy import Privacy
from melanoma.scoring import tables, tar_and_zip
from melanoma.scoring.config import ScoreConfig
from melanoma.scoring.plan import SHARD, Plan
from melanoma.storage import Store
from melanoma.taxonomy import image_id_of

STAGES = ("seconds_waiting_for_bytes", "seconds_decoding", "seconds_predicting", "seconds_writing")


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
class _Asked:
    images: list[_Image]
    pixels: np.ndarray  # uint8 RGB [n, size, size, 3]
    logits: Any  # float32 [n, classes], or Ray's reference to them


_ASKED_AHEAD = 2  # batches that a GPU may have in hand of each worker
_TOGETHER = 8 * 2**20  # bytes of an archive that one request fetches at most, if they are of several members

Fetched = bytes | ImageError


def fetch(planned: Mapping[str, Any], limits: Limits, store: Store) -> Fetched:
    """The bytes of one image of a plan, or the reason why they cannot be had. Never raises."""
    if planned["refused"]:
        return ImageError(planned["error_kind"], planned["refused"])
    if planned["size"] > limits.max_bytes:
        reason = f"The object has {planned['size']} bytes, more than the {limits.max_bytes} that are read."
        return ImageError("too_large", reason)
    try:
        if planned["archive"]:
            names = ("archive", "etag", "size", "offset", "length", "is_zip", "checksum")
            return tar_and_zip.fetch(store, *(planned[name] for name in names))
        return load.fetch(planned["image_uri"], limits, store)
    except OSError as error:
        return of_storage(error)
    except ImageError as error:
        return error


def fetch_together(planned: Sequence[Mapping[str, Any]], limits: Limits, store: Store) -> list[Fetched]:
    """As `fetch`, of each of the images, which are neighbours in one archive if they are several: one request."""
    if len(planned) == 1:
        return [fetch(planned[0], limits, store)]
    archive, etag, begin = (planned[0][name] for name in ("archive", "etag", "offset"))
    length = planned[-1]["offset"] + planned[-1]["length"] - begin + tar_and_zip.HEADERS
    try:
        data = store.read_range(archive, begin, length, etag)
    except OSError as error:
        return [of_storage(error)] * len(planned)
    found: list[Fetched] = []
    for row in planned:
        own = data[row["offset"] - begin :][: row["length"] + tar_and_zip.HEADERS]
        try:
            content = tar_and_zip.content(own, row["size"], row["length"], row["is_zip"], row["checksum"])
            found.append(fetch(row, limits, store) if content is None else content)
        except ImageError as error:
            found.append(error)
    return found


def _neighbours(shard: pa.Table, limits: Limits) -> Iterator[list[dict[str, Any]]]:
    """The images of a shard in their order, those together that one request can fetch."""
    some: list[dict[str, Any]] = []
    for row in shard.to_pylist():
        if some and not _are_neighbours(some[0], some[-1], row, limits):
            yield some
            some = []
        some.append(row)
    if some:
        yield some


def _are_neighbours(first: dict[str, Any], last: dict[str, Any], row: dict[str, Any], limits: Limits) -> bool:
    if not row["archive"] or row["archive"] != last["archive"] or row["refused"] or last["refused"]:
        return False
    gap = row["offset"] - last["offset"] - last["length"]
    reach = row["offset"] + row["length"] - first["offset"]
    is_small = max(last["size"], row["size"]) <= limits.max_bytes
    return is_small and 0 <= gap <= tar_and_zip.HEADERS and reach <= _TOGETHER


def fetch_ahead(
    shard: pa.Table, pool: ThreadPoolExecutor, config: ScoreConfig, limits: Limits, store: Store
) -> Iterator[tuple[str, Fetched]]:
    """The shard's images in their order, each with what `fetch` gives; the next are fetched meanwhile.

    As many requests are in flight as `config.requests`, but of no more than `config.bytes_ahead` listed bytes (or one
    request).
    """
    requests = _neighbours(shard, limits)
    ahead: deque[tuple[list[str], int, Future[list[Fetched]]]] = deque()
    held, upcoming = 0, next(requests, None)
    while upcoming or ahead:
        while upcoming and len(ahead) < config.requests:
            # What is too large is not read, and held by nobody.
            cost = sum(row["size"] for row in upcoming if row["size"] <= limits.max_bytes)
            if ahead and held + cost > config.bytes_ahead:
                break
            uris = [row["image_uri"] for row in upcoming]
            ahead.append((uris, cost, pool.submit(fetch_together, upcoming, limits, store)))
            held, upcoming = held + cost, next(requests, None)
        uris, cost, future = ahead.popleft()
        yield from zip(uris, future.result(), strict=True)
        held -= cost


def decode_one(uri: str, data: Fetched, size: int, limits: Limits) -> list[_Image]:
    """The pixels of one image, of each frame if it has several, or the reason why there are none. Never raises."""
    loaded = load.load(data, size, limits, several_frames=True)
    if loaded.error:
        return [_Image(uri, loaded.sha256, None, error_kind=loaded.error.kind, error=loaded.error.reason)]
    return [
        _Image(uri, loaded.sha256, decoded.pixels, decoded.header, number if len(loaded.frames) > 1 else None)
        for number, decoded in enumerate(loaded.frames, start=1)
    ]


def most_suspicious_frames(scores: pa.Table) -> pa.Table:
    """Of the rows of an image that has several frames only that of the highest p_melanoma, in the order of images."""
    if scores["frame"].null_count == len(scores):
        return scores
    best: dict[str, tuple[float, int]] = {}
    for row, (uri, p) in enumerate(zip(scores["image_uri"].to_pylist(), scores["p_melanoma"].to_pylist(), strict=True)):
        best[uri] = max(best.get(uri, (-1.0, row)), (p, row), key=lambda found: found[0])
    return scores.take(pa.array([row for _, row in best.values()], pa.int64()))


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

    def __init__(
        self, bundle: Bundle, plan: Plan, config: ScoreConfig, privacy: Privacy, gpus: Sequence[Any] = ()
    ) -> None:
        self._bundle, self._plan, self._config, self._privacy, self._gpus = bundle, plan, config, privacy, gpus
        self._predictor = None if gpus else Predictor(bundle, config.batch_size, threads=1)
        self._limits = Limits(config.max_bytes, config.max_pixels)
        self._pool = ThreadPoolExecutor(max_workers=config.requests)
        self._store = Store(config.patience)
        self._in_vain = 0  # images one after the other that could not be fetched, whatever their shard

    def __call__(self, task: pa.Table) -> pa.Table:
        number = int(task["shard"][0].as_py())
        shard = storage.completed(self._store.read_table(self._plan.uri(number)), SHARD)
        clock = _Clock()
        waiting: list[_Image] = []
        asked: deque[_Asked] = deque()
        rejects: list[_Image] = []
        scores = [tables.SCORES.empty_table()]
        read = 0
        for uri, data in fetch_ahead(shard, self._pool, self._config, self._limits, self._store):
            clock.lap("seconds_waiting_for_bytes")
            read += len(data) if isinstance(data, bytes) else 0
            images = decode_one(uri, data, self._bundle.input_size, self._limits)
            (rejects if images[0].pixels is None else waiting).extend(images)
            self._in_vain = self._in_vain + 1 if isinstance(data, UnreachableError) else 0
            if self._in_vain >= self._config.requests:
                # Not this or that image: the store is gone, and each image would wait as long as this one.
                raise MelanomaError(
                    f"{self._in_vain} images one after the other could not be fetched, the last because: "
                    f"{images[0].error}"
                )
            clock.lap("seconds_decoding")
            while len(waiting) >= self._config.batch_size:
                asked.append(self._ask(waiting[: self._config.batch_size], number))
                waiting = waiting[self._config.batch_size :]
                if len(asked) > _ASKED_AHEAD:
                    scores.append(self._scores(asked.popleft()))
                clock.lap("seconds_predicting")
        if waiting:
            asked.append(self._ask(waiting, number))
        scores += map(self._scores, asked)
        scored, rejected = most_suspicious_frames(pa.concat_tables(scores)), self._rejects(rejects)
        clock.lap("seconds_predicting")
        # The scores come last: that they exist says that the shard is done.
        self._store.write_table(self._plan.result_uri("rejects", number), rejected)
        self._store.write_table(self._plan.result_uri("scores", number), scored)
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
        patients = [self._privacy.columns(image.header) for image in images]
        predicted = columns(self._bundle, asked.pixels, logits)
        hashes = [
            perceptual_hash(Image.fromarray(pixels)) if level != "none" else None
            for pixels, level in zip(asked.pixels, predicted["alert_level"], strict=True)
        ]
        return pa.Table.from_pydict(
            {
                **self._run(len(images)),
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
                **self._run(len(images)),
                "image_uri": [image.uri for image in images],
                "error_kind": [image.error_kind for image in images],
                "error": [image.error for image in images],
                "content_sha256": [image.sha256 for image in images],
            },
            schema=tables.REJECTS,
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
