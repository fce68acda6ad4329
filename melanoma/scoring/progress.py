"""How far a run is: for a terminal, a log line a minute, Prometheus, and in the end its commit record."""

import contextlib
import datetime
import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any, get_args

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from melanoma.errors import InputError
from melanoma.imaging.errors import ErrorKind
from melanoma.scoring.record import STAGES, Stages

LINE_EVERY = 60.0  # seconds


class Progress:
    """The sums of what the workers of one attempt have reported, shard by shard.

    `total`: images of the run; `before`: images that earlier attempts have done; `shards`: shards that are still to do;
    `workers`: the most that were at work at a time.
    """

    def __init__(self, total: int, before: int, shards: int, workers: int) -> None:
        self.total, self.before, self.shards, self.workers = total, before, shards, workers
        self.scored = self.rejected = self.bytes = self.peak_memory_bytes = 0
        # All kinds from the beginning: other threads read the counter while it is added to.
        self.kinds = Counter[str](dict.fromkeys(get_args(ErrorKind), 0))
        self.seconds_by_stage = dict.fromkeys(STAGES, 0.0)
        self._began = time.monotonic()
        self._ended: float | None = None

    def add(self, report: Mapping[str, Any]) -> None:
        """Add what `melanoma.scoring.shard.ShardScorer` reports of a shard."""
        self.scored += report["scored"]
        self.rejected += report["rejected"]
        self.bytes += report["bytes"]
        self.shards -= 1
        self.peak_memory_bytes = max(self.peak_memory_bytes, report["peak_memory_bytes"])
        for kind in get_args(ErrorKind):
            self.kinds[kind] += report[f"rejects_{kind}"]
        for stage in STAGES:
            self.seconds_by_stage[stage] += report[stage]

    def end(self) -> None:
        self._ended = time.monotonic()

    @property
    def done(self) -> int:
        return self.before + self.scored + self.rejected

    @property
    def seconds(self) -> float:
        return (self._ended or time.monotonic()) - self._began

    @property
    def rate(self) -> float:
        """Images a second of this attempt; 0 before the first shard."""
        return (self.scored + self.rejected) / self.seconds

    def stages(self) -> Stages:
        """All of it, for a log line and for the commit record."""
        remaining = (self.total - self.done) / self.rate if self.rate else None
        return Stages(
            images=self.total,
            done=self.done,
            resumed=self.before > 0,
            scored=self.scored,
            rejected=self.rejected,
            rejects_by_kind=dict(sorted((+self.kinds).items())),
            bytes=self.bytes,
            seconds=round(self.seconds, 3),
            images_per_second=round(self.rate, 2),
            seconds_remaining=None if remaining is None else round(remaining, 1),
            workers=self.workers,
            shards_waiting=self.shards,
            peak_memory_bytes=self.peak_memory_bytes,
            **{stage: round(seconds, 3) for stage, seconds in self.seconds_by_stage.items()},
        )


@contextlib.contextmanager
def logged(progress: Progress, run_id: str, log: Callable[[str], None]) -> Iterator[None]:
    """Give `log` one line of JSON a minute, and one at the end."""
    ended = threading.Event()

    def write_line() -> None:
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        log(json.dumps({"time": now, "run_id": run_id, **progress.stages().to_json()}))

    def repeat() -> None:
        while not ended.wait(LINE_EVERY):
            write_line()

    thread = threading.Thread(target=repeat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        write_line()


class _Collector(Collector):
    def __init__(self, progress: Progress, run_id: str) -> None:
        self._progress, self._run_id = progress, run_id

    def collect(self) -> Iterator[Metric]:
        progress = self._progress

        def gauge(name: str, text: str, value: float) -> Metric:
            metric = GaugeMetricFamily(f"melanoma_scoring_{name}", text, labels=["run_id"])
            metric.add_metric([self._run_id], value)
            return metric

        def counter(name: str, text: str, label: str, values: Mapping[str, float]) -> Metric:
            metric = CounterMetricFamily(f"melanoma_scoring_{name}", text, labels=["run_id", label])
            for key, value in values.items():
                metric.add_metric([self._run_id, key], value)
            return metric

        yield gauge("images", "Images that the run is to score.", progress.total)
        yield gauge("images_waiting", "Images that are still to be done.", progress.total - progress.done)
        yield gauge("shards_waiting", "Shards that are still to be done.", progress.shards)
        yield gauge("workers", "Workers of this attempt, the most at a time.", progress.workers)
        yield gauge("peak_memory_bytes", "The most memory that a worker has taken.", progress.peak_memory_bytes)
        images = {"scored": progress.scored, "rejected": progress.rejected}
        yield counter("images_done", "Images done by this attempt.", "result", images)
        yield counter(
            "rejects", "Rejects by kind.", "error_kind", {kind: progress.kinds[kind] for kind in get_args(ErrorKind)}
        )
        yield counter("bytes_read", "Bytes read from the archive.", "from", {"archive": progress.bytes})
        stages = {stage.removeprefix("seconds_"): seconds for stage, seconds in progress.seconds_by_stage.items()}
        yield counter("stage_seconds", "Seconds of all workers together.", "stage", stages)


@contextlib.contextmanager
def exported(progress: Progress, run_id: str, host: str, port: int | None) -> Iterator[int | None]:
    """Answer Prometheus at ``http://host:port/metrics`` while the block lasts.

    Args:
        progress: What is exported.
        run_id: The label of its samples.
        host: Address to listen on.
        port: TCP port; 0 takes a free one, and with None nothing is exported.

    Yields:
        The port.

    Raises:
        InputError: The port cannot be listened on.
    """
    if port is None:
        yield None
        return
    registry = CollectorRegistry()
    registry.register(_Collector(progress, run_id))
    try:
        server, thread = start_http_server(port, host, registry)
    except OSError as error:
        raise InputError(f"metrics_port {port} of {host} cannot be listened on: {error.strerror}.") from None
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
