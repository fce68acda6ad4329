"""An archive becomes published Parquet. The way of an image, top to bottom: locate, fetch, decode, predict, triage,
write.

    OUT/
      scores/run_date=2026-11-20/run_id=ID/shard-00000.parquet    every image scored
      rejects/run_date=2026-11-20/run_id=ID/shard-00000.parquet   every image that could not be, and why
      alerts/run_date=2026-11-20/run_id=ID/alerts.parquet         one object
      runs/run_id=ID/plan.parquet                                 what the run is to score, frozen before it begins
      runs/run_id=ID.json                                         the commit record, written last

A run is a plan cut into shards. A shard is scored by one worker and written as two objects of fixed names, its scores
last, so a shard whose scores exist is done, and one that died half-way is simply done again. That makes a run resumable
at any point, and a resumed run equal to an undisturbed one.
"""

import datetime
import hashlib
import json
import platform
import resource
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray
import ray.data
from ray.util.annotations import RayDeprecationWarning

import melanoma
from melanoma import cluster, storage, triage
from melanoma.bundle import Bundle
from melanoma.bundle import load as load_bundle
from melanoma.config import ScoreConfig
from melanoma.errors import InputError, MelanomaError
from melanoma.imaging.decode import PREPROCESSING, ImageError, Limits, decode
from melanoma.predictor import Predictor
from melanoma.taxonomy import image_id_of

# Rejects of these kinds say nothing of the image: a later run tries again.
_TRANSIENT = ("not_found", "access")
_FETCHING_THREADS = 8
_BYTES_AHEAD = 8 * 2**20
_STAGES = ("seconds_waiting_for_bytes", "seconds_decoding", "seconds_predicting", "seconds_writing")

PLAN = pa.schema(
    [
        ("shard", pa.int32()),
        ("image_uri", pa.string()),
        ("size", pa.int64()),
        ("etag", pa.string()),
        ("tried", pa.bool_()),  # an earlier run could not fetch it
    ]
)


@dataclass(frozen=True)
class Plan:
    """What a run is to score, frozen in ``runs/run_id=ID/plan.parquet`` before it begins."""

    run_id: str
    run_date: str
    table: pa.Table  # of PLAN, in order of shard
    about: dict[str, Any]  # key, archive, model_version, listed, done_before

    def shards(self) -> list[int]:
        return [int(shard) for shard in pc.unique(self.table["shard"]).to_pylist()]


@dataclass(frozen=True)
class Progress:
    """Told after each shard: images done of images to do (those of earlier, resumed attempts count as done)."""

    done: int
    total: int
    scored: int
    rejected: int


@dataclass(frozen=True)
class Outcome:
    """A committed run: its record, and whether this call did anything."""

    record: dict[str, Any]
    changed: bool


def score(
    config: ScoreConfig,
    on_progress: Callable[[Progress], None] = lambda progress: None,
    say: Callable[[str], None] = print,
) -> Outcome:
    """Score an archive and publish the run, on the cluster that `cluster.connect` finds or starts.

    Raises InputError before anything is written where the bundle, the archive or the output cannot be used, and
    MelanomaError where the run failed under way; the same call then resumes it.
    """
    bundle = load_bundle(config.bundle)
    out = storage.normalize(config.out)
    while True:
        plan = _open_run(config, out, bundle, say)
        if isinstance(plan, Outcome):
            return plan
        began = time.monotonic()
        try:
            stages = _score_shards(config, out, plan, bundle, on_progress, say)
            record = _publish(out, plan, bundle, stages, time.monotonic() - began)
        except (ray.exceptions.RayError, OSError) as error:
            raise MelanomaError(
                f"The run {plan.run_id} failed: {_reason(error)}. The same command goes on with it."
            ) from error
        if config.run_id or config.run_date or plan.run_date >= _today():
            return Outcome(record, changed=True)
        say(f"The run {plan.run_id} of an earlier night is finished; now today's.")


# --- Locate: the plan of a run -----------------------------------------------------------------------------------


def _open_run(config: ScoreConfig, out: str, bundle: Bundle, say: Callable[[str], None]) -> "Plan | Outcome":
    """The plan to work on, new or resumed, or the outcome of the run that is already committed."""
    archive = storage.normalize(config.archive)
    if f"{out}/".startswith(f"{archive}/"):
        raise InputError(
            f"The output {config.out} lies in the archive {config.archive}, and its files would be scored the next "
            "night: choose another place for one of the two."
        )
    key = _key(archive, bundle, config.all)
    run_id, run_date = config.run_id, config.run_date
    try:
        if run_id is None and (unfinished := _unfinished(out, key, run_date)):
            run_id = unfinished
        run_id = run_id or f"{run_date or _today()}-{key}"
        if storage.exists(_record_uri(out, run_id)):
            record = storage.read_json(_record_uri(out, run_id))
            _refuse_other_run(run_id, record, key, run_date)
            return Outcome(record, changed=False)
        if storage.exists(_plan_uri(out, run_id)):
            plan = _read_plan(out, run_id)
            _refuse_other_run(run_id, plan.about, key, run_date)
            say(f"Going on with the run {run_id}.")
            return plan
    except OSError as error:
        raise InputError(f"The output {config.out} cannot be used: {error}") from None
    try:
        listed = list(storage.list_objects(archive))
    except OSError as error:
        raise InputError(f"The archive {config.archive} cannot be listed: {error}") from None
    if not listed:
        raise InputError(f"The archive {config.archive} holds no objects: nothing was written.")
    run_date = run_date or _today()
    try:
        known, tried = (set(), set()) if config.all else _done_before(out, bundle)
        todo = [info for info in listed if (info.uri, info.etag) not in known]
        size = config.shard_size or min(4096, max(16, -(-len(todo) // 64)))
        table = pa.Table.from_pydict(
            {
                "shard": [place // size for place in range(len(todo))],
                "image_uri": [info.uri for info in todo],
                "size": [info.size for info in todo],
                "etag": [info.etag for info in todo],
                "tried": [info.uri in tried for info in todo],
            },
            schema=PLAN,
        )
        about = {
            "key": key,
            "run_date": run_date,
            "archive": archive,
            "model_version": bundle.version,
            "preprocessing": PREPROCESSING,
            "listed": len(listed),
            "done_before": len(listed) - len(todo),
            "planned_at": _now().isoformat(timespec="seconds"),
        }
        storage.write_table(
            _plan_uri(out, run_id), table.replace_schema_metadata({b"melanoma": json.dumps(about).encode()})
        )
    except OSError as error:
        raise InputError(f"The output {config.out} cannot be written: {error}") from None
    say(f"{len(listed)} objects listed, {len(listed) - len(todo)} of them done before by this model.")
    return Plan(run_id, run_date, table, about)


def _key(archive: str, bundle: Bundle, everything: bool) -> str:
    """What makes two calls the same run: the archive, the model, and whether all is to be scored again."""
    words = json.dumps([archive, bundle.version, PREPROCESSING, everything])
    return hashlib.sha256(words.encode()).hexdigest()[:10]


def _refuse_other_run(run_id: str, about: dict[str, Any], key: str, run_date: str | None) -> None:
    if about["key"] != key or run_date not in (None, about["run_date"]):
        raise InputError(
            f"The run {run_id} exists and is another one (of {about['run_date']}, archive {about['archive']}, model "
            f"{about['model_version']}): choose another --run-id."
        )


def _plan_uri(out: str, run_id: str) -> str:
    return storage.join(out, "runs", f"run_id={run_id}", "plan.parquet")


def _record_uri(out: str, run_id: str) -> str:
    return storage.join(out, "runs", f"run_id={run_id}.json")


def _folder(out: str, kind: str, run_date: str, run_id: str) -> str:
    return storage.join(out, kind, f"run_date={run_date}", f"run_id={run_id}")


def _shard_uri(out: str, kind: str, plan: Plan, shard: int) -> str:
    return storage.join(_folder(out, kind, plan.run_date, plan.run_id), f"shard-{shard:05d}.parquet")


def _names_below(uri: str) -> list[str]:
    """The URIs of the objects below `uri`; none where it does not exist."""
    try:
        return [info.uri for info in storage.list_objects(uri)]
    except FileNotFoundError:
        return []


def _read_plan(out: str, run_id: str) -> Plan:
    table = storage.read_table(_plan_uri(out, run_id))
    about = json.loads(table.schema.metadata[b"melanoma"])
    return Plan(run_id, about["run_date"], table, about)


def _unfinished(out: str, key: str, run_date: str | None) -> str | None:
    """The newest run of this key with a plan and without a commit record, unless a later one has done its work."""
    names = _names_below(storage.join(out, "runs"))
    committed = {storage.name(uri) for uri in names}
    finished = max((record["finished_at"] for record in committed_runs(out) if record["key"] == key), default="")
    plans = [uri for uri in names if uri.endswith("/plan.parquet")]
    found = []
    for uri in plans:
        folder = storage.name(storage.parent(uri))
        if f"{folder}.json" not in committed:
            plan = _read_plan(out, folder.removeprefix("run_id="))
            if plan.about["key"] == key and run_date in (None, plan.run_date) and plan.about["planned_at"] >= finished:
                found.append((plan.about["planned_at"], plan.run_id))
    return max(found)[1] if found else None


def committed_runs(out: str) -> list[dict[str, Any]]:
    """The commit records below `out`, oldest first."""
    names = [uri for uri in _names_below(storage.join(out, "runs")) if uri.endswith(".json")]
    return sorted((storage.read_json(uri) for uri in names), key=lambda record: str(record["finished_at"]))


def _done_before(out: str, bundle: Bundle) -> tuple[set[tuple[str, str]], set[str]]:
    """What committed runs of this model and preprocessing have scored or rejected for good, as (URI, ETag), and the
    URIs that one of them could not fetch."""
    known: set[tuple[str, str]] = set()
    tried: set[str] = set()
    for record in committed_runs(out):
        if (record["model_version"], record["preprocessing"]) != (bundle.version, PREPROCESSING):
            continue
        plan = _read_plan(out, record["run_id"])
        retried: set[str] = set()
        if any(record["counts"]["rejects_by_kind"].get(kind) for kind in _TRANSIENT):
            for shard in plan.shards():
                rejects = storage.read_table(_shard_uri(out, "rejects", plan, shard), ["image_uri", "error_kind"])
                rejects = rejects.filter(pc.is_in(rejects["error_kind"], pa.array(_TRANSIENT)))
                retried.update(rejects["image_uri"].to_pylist())
        pairs = zip(plan.table["image_uri"].to_pylist(), plan.table["etag"].to_pylist(), strict=True)
        known.update(pair for pair in pairs if pair[0] not in retried)
        tried |= retried
    return known, tried


# --- Fetch, decode, predict, triage, write: one shard, in a worker -------------------------------------------------


@dataclass(frozen=True)
class _Image:
    uri: str
    sha256: str | None
    pixels: np.ndarray | None  # uint8 RGB [size, size, 3]; None for a reject
    error_kind: str | None = None
    error: str | None = None


def fetch(uri: str, listed_size: int, limits: Limits) -> bytes | ImageError:
    """The bytes of one object of an archive, or the reason why they cannot be had. Never raises."""
    if listed_size > limits.max_bytes:
        reason = f"The object has {listed_size} bytes, more than the {limits.max_bytes} that are read."
        return ImageError("too_large", reason)
    try:
        return storage.read_bytes(uri, limits.max_bytes)
    except (FileNotFoundError, NotADirectoryError):
        return ImageError("not_found", "The object was listed but is not there any more.")
    except OSError as error:
        return ImageError("access", str(error))


def decode_one(uri: str, data: bytes | ImageError, size: int, limits: Limits) -> _Image:
    """The pixels of one image, or the reason why there are none. Never raises."""
    if isinstance(data, ImageError):
        return _Image(uri, None, None, data.kind, data.reason)
    # What grew over the limit since it was listed was read only up to it.
    digest = hashlib.sha256(data).hexdigest() if len(data) <= limits.max_bytes else None
    try:
        return _Image(uri, digest, decode(data, size, limits).pixels)
    except ImageError as error:
        return _Image(uri, digest, None, error.kind, error.reason)


class ShardScorer:
    """The worker: holds the model, is given one shard at a time, returns what it did."""

    def __init__(self, bundle: Bundle, out: str, run_id: str, run_date: str, config: ScoreConfig) -> None:
        self._predictor = Predictor(bundle, config.batch_size, threads=1)
        self._out, self._plan = out, Plan(run_id, run_date, PLAN.empty_table(), {})
        self._batch_size = config.batch_size
        self._limits = Limits(config.max_bytes, config.max_pixels)
        self._pool = ThreadPoolExecutor(max_workers=_FETCHING_THREADS)

    def __call__(self, shard: pa.Table) -> pa.Table:
        number = int(shard["shard"][0].as_py())
        size = self._predictor.bundle.input_size
        scores, rejects = [], []
        clock = _Clock()
        for fetched in self._fetch_ahead(shard):
            clock.lap("seconds_waiting_for_bytes")
            # One image at a time: many big pictures decoded at once would need many times the memory.
            images = [decode_one(uri, data, size, self._limits) for uri, data in fetched]
            clock.lap("seconds_decoding")
            scores.append(self._scores([image for image in images if image.pixels is not None]))
            rejects.append(self._rejects([image for image in images if image.pixels is None]))
            clock.lap("seconds_predicting")
        scored, rejected = pa.concat_tables(scores), pa.concat_tables(rejects)
        # The scores come last: that they exist says that the shard is done.
        storage.write_table(_shard_uri(self._out, "rejects", self._plan, number), rejected)
        storage.write_table(_shard_uri(self._out, "scores", self._plan, number), scored)
        clock.lap("seconds_writing")
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        done = {"shard": number, "scored": len(scored), "rejected": len(rejected), "peak_memory_bytes": peak}
        return pa.Table.from_pylist([{**done, **clock.seconds}])

    def _fetch_ahead(self, shard: pa.Table) -> Iterator[list[tuple[str, bytes | ImageError]]]:
        """The shard's objects in batches for the model; while one is worked on, the next is fetched."""
        batches = _batches(shard, self._batch_size)

        def submit(batch: list[tuple[str, int]]) -> list[tuple[str, Future[bytes | ImageError]]]:
            return [(uri, self._pool.submit(fetch, uri, size, self._limits)) for uri, size in batch]

        ahead = submit(batches[0])
        for place in range(len(batches)):
            current, ahead = ahead, submit(batches[place + 1]) if place + 1 < len(batches) else []
            yield [(uri, future.result()) for uri, future in current]

    def _scores(self, images: list[_Image]) -> pa.Table:
        size = self._predictor.bundle.input_size
        pixels = np.array([image.pixels for image in images], dtype=np.uint8).reshape(-1, size, size, 3)
        return pa.Table.from_pydict(
            {
                **self._run(len(images)),
                "scored_at": [_now()] * len(images),
                "image_uri": [image.uri for image in images],
                "image_id": [image_id_of(image.uri) for image in images],
                "patient_id": [None] * len(images),
                "content_sha256": [image.sha256 for image in images],
                **self._predictor.predict(pixels),
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


def _batches(shard: pa.Table, batch_size: int) -> list[list[tuple[str, int]]]:
    """(URI, listed size) in batches of at most `batch_size` objects and, but for single ones, of few enough bytes."""
    batches: list[list[tuple[str, int]]] = [[]]
    held = 0
    for uri, size in zip(shard["image_uri"].to_pylist(), shard["size"].to_pylist(), strict=True):
        if batches[-1] and (len(batches[-1]) == batch_size or held + size > _BYTES_AHEAD):
            batches.append([])
            held = 0
        batches[-1].append((uri, size))
        held += size
    return batches


class _Clock:
    """Where the time of a shard goes."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = dict.fromkeys(_STAGES, 0.0)
        self._last = time.monotonic()

    def lap(self, stage: str) -> None:
        now = time.monotonic()
        self.seconds[stage] += now - self._last
        self._last = now


def _score_shards(
    config: ScoreConfig,
    out: str,
    plan: Plan,
    bundle: Bundle,
    on_progress: Callable[[Progress], None],
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Score the shards that are not done yet, on the cluster; returns the sums of the workers' stage times."""
    done = set(_names_below(_folder(out, "scores", plan.run_date, plan.run_id)))
    pending = [shard for shard in plan.shards() if _shard_uri(out, "scores", plan, shard) not in done]
    todo = plan.table.filter(pc.is_in(plan.table["shard"], pa.array(pending, pa.int32())))
    before = plan.table.num_rows - todo.num_rows
    if before:
        say(f"{before} of {plan.table.num_rows} images were done before the interruption.")
    stages: dict[str, Any] = {"resumed": before > 0}
    if not pending:
        return stages
    cluster.connect()
    workers = min(config.workers or cluster.cores(), len(pending))
    tables = [todo.filter(pc.equal(todo["shard"], shard)) for shard in pending]
    with warnings.catch_warnings():
        # Deprecated as of 2.60, which has no other way to bound the restarts: they are endless by default, and a file
        # that kills the process must end the run with a word.
        warnings.simplefilter("ignore", RayDeprecationWarning)
        dataset = ray.data.from_arrow(tables).map_batches(
            ShardScorer,
            batch_size=None,
            batch_format="pyarrow",
            num_cpus=1,
            compute=ray.data.ActorPoolStrategy(min_size=1, max_size=workers, initial_size=workers),
            fn_constructor_args=(bundle, out, plan.run_id, plan.run_date, config),
            max_restarts=3,
            max_task_retries=3,
        )
    scored = rejected = 0
    for row in dataset.iter_rows():
        scored, rejected = scored + row["scored"], rejected + row["rejected"]
        for name in _STAGES:
            stages[name] = stages.get(name, 0.0) + row[name]
        stages["peak_memory_bytes"] = max(stages.get("peak_memory_bytes", 0), row["peak_memory_bytes"])
        on_progress(Progress(before + scored + rejected, plan.table.num_rows, scored, rejected))
    return {**stages, "workers": workers}


# --- Publish: alerts as one object, then the commit record -----------------------------------------------------------


def _publish(out: str, plan: Plan, bundle: Bundle, stages: dict[str, Any], seconds: float) -> dict[str, Any]:
    raised, kinds, wrong, reason = [triage.SCORES.empty_table()], Counter[str](), [], ""
    for shard in plan.shards():
        scores = storage.read_table(_shard_uri(out, "scores", plan, shard))
        rejects = storage.read_table(_shard_uri(out, "rejects", plan, shard), ["image_uri", "error_kind", "error"])
        planned = plan.table.filter(pc.equal(plan.table["shard"], shard))["image_uri"].to_pylist()
        if Counter(scores["image_uri"].to_pylist() + rejects["image_uri"].to_pylist()) != Counter(planned):
            wrong.append(shard)
        kinds.update(rejects["error_kind"].to_pylist())
        reason = reason or next(iter(rejects["error"].to_pylist()), "")
        raised.append(scores.filter(pc.not_equal(scores["alert_level"], "none")))
    if wrong:
        # Two drivers at work on one run can leave the scores of one beside the rejects of the other.
        _undo(out, plan, wrong)
        raise MelanomaError(
            f"The run {plan.run_id} is not committed: in {len(wrong)} of its shards the scores and rejects are not the "
            "images that were planned. They are undone: the same command scores them again."
        )
    untried = plan.table["tried"].to_pylist().count(False)
    if untried > 1 and kinds == {"access": plan.table.num_rows}:
        # Not this or that image, and not the same ones as last night: the workers cannot read the archive.
        _undo(out, plan, plan.shards())
        raise MelanomaError(
            f"The run {plan.run_id} is not committed: no image could be read, the first because: {reason} Let every "
            "node read the archive: the same command tries again."
        )
    alerts = _ranked(pa.concat_tables(raised))
    storage.write_table(storage.join(_folder(out, "alerts", plan.run_date, plan.run_id), "alerts.parquet"), alerts)
    levels = Counter(alerts["alert_level"].to_pylist())
    record = {
        **plan.about,
        "run_id": plan.run_id,
        "finished_at": _now().isoformat(timespec="seconds"),
        "counts": {
            "listed": plan.about["listed"],
            "done_before": plan.about["done_before"],
            "scored": plan.table.num_rows - sum(kinds.values()),
            "rejected": sum(kinds.values()),
            "rejects_by_kind": dict(sorted(kinds.items())),
            "alerts": len(alerts),
            "urgent": levels["urgent"],
            "review": levels["review"],
        },
        "thresholds": bundle.manifest["thresholds"],
        "seconds": round(seconds, 3),
        "stages": {name: round(value, 3) if isinstance(value, float) else value for name, value in stages.items()},
        "versions": {
            "melanoma": melanoma.__version__,
            "python": platform.python_version(),
            **{name: version(name) for name in ("keras", "tensorflow", "ray", "pillow", "pyarrow")},
        },
    }
    storage.write_json(_record_uri(out, plan.run_id), record)
    return record


def _undo(out: str, plan: Plan, shards: list[int]) -> None:
    for shard in shards:
        storage.delete(_shard_uri(out, "scores", plan, shard))


def _ranked(raised: pa.Table) -> pa.Table:
    """The most probable melanoma first; equal ones in order of URI, so that a run has one ranking."""
    raised = raised.sort_by([("p_melanoma", "descending"), ("image_uri", "ascending")])
    return raised.append_column("rank", pa.array(range(1, len(raised) + 1), pa.int32())).append_column(
        "explanation_uri", pa.nulls(len(raised), pa.string())
    )


def read_alerts(out: str, date: str | None = None) -> pa.Table:
    """The alerts of the committed runs of a date (the newest date without one), the most probable melanoma first.

    Raises InputError where there is no committed run.
    """
    root = storage.normalize(out)
    try:
        records = committed_runs(root)
    except OSError as error:
        raise InputError(f"The output {out} cannot be read: {error}") from None
    if not records:
        raise InputError(f"{out} holds no finished run: score an archive with `melanoma score`.")
    date = date or max(record["run_date"] for record in records)
    runs = [record for record in records if record["run_date"] == date]
    if not runs:
        dates = ", ".join(sorted({record["run_date"] for record in records}))
        raise InputError(f"{out} holds no finished run of {date}: there are runs of {dates}.")
    tables = [
        storage.read_table(storage.join(_folder(root, "alerts", date, record["run_id"]), "alerts.parquet"))
        for record in runs
    ]
    return pa.concat_tables(tables).sort_by([("p_melanoma", "descending"), ("image_uri", "ascending")])


def _today() -> str:
    return _now().date().isoformat()


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)


def _reason(error: BaseException) -> str:
    """What went wrong, in one line: of a worker's error its own, without Ray's account of how it came here."""
    own = str(error).split("The above exception was the direct cause")[0]
    lines = [line.strip() for line in own.splitlines() if line.strip()]
    return lines[-1].rstrip(".") if lines else type(error).__name__
