"""The state of the nights for Prometheus, by a process that outlives them and the cluster: `melanoma status`.

What is exported is read from the commit records once a minute, so a night that never began is seen, too.
"""

import threading
from collections.abc import Callable, Iterator, Mapping

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from melanoma.errors import InputError, MelanomaError
from melanoma.scoring import drift
from melanoma.scoring.record import moment, now
from melanoma.scoring.status import Status, look

LOOK_EVERY = 60.0  # seconds
_FAILED = ("cut off", "failed")


class _Collector(Collector):
    """What was found when it was last looked; before that nothing."""

    def __init__(self) -> None:
        self.found: Status | None = None
        self.store_up = False

    def collect(self) -> Iterator[Metric]:
        yield _gauge("store_up", "Whether the results could be read when they were last looked at.", self.store_up)
        if self.found is None:
            return
        problems = {problem.kind for problem in self.found.problems}
        failed = bool(problems & set(_FAILED))
        yield _gauge("failed", "Whether a night ended badly or was cut off, and none has done its work since.", failed)
        night = self.found.newest
        if night is None:
            return
        record, counts = night.record, night.record.counts
        undelivered = sum(each.undelivered > 0 for each in self.found.nights)
        yield _gauge(
            "finished_timestamp_seconds", "When the newest night was finished.", moment(record.finished_at).timestamp()
        )
        yield _gauge("seconds", "What the newest night took.", record.seconds)
        yield _gauge("undelivered", "Nights with new alerts that nobody was sent.", undelivered)
        images = {"listed": counts.listed, "new": record.images, "scored": counts.scored, "rejected": counts.rejected}
        yield _gauges("images", "Images of the newest night.", "result", images)
        yield _gauges("alerts", "Alerts of it.", "level", {"urgent": counts.urgent, "review": counts.review})
        names = (*drift.PICTURE, *drift.PROBABILITY)
        distances = {name: night.drift.distances.get(name, 0.0) for name in names}
        yield _gauges("drift", "How unlike the nights before its images are, 0 to 1.", "of", distances)


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(f"melanoma_night_{name}", text, value=float(value))


def _gauges(name: str, text: str, label: str, values: Mapping[str, float]) -> Metric:
    metric = GaugeMetricFamily(f"melanoma_night_{name}", text, labels=[label])
    for key, value in values.items():
        metric.add_metric([key], float(value))
    return metric


def serve(
    out: str,
    late_after: float,
    host: str,
    port: int,
    say: Callable[[str], None],
    ended: threading.Event | None = None,
) -> None:
    """Answer Prometheus at ``http://host:port/metrics`` until the process is interrupted.

    Args:
        out: Folder or s3:// URI of the results.
        late_after: See `melanoma.scoring.status.look`.
        host: Address to listen on.
        port: TCP port; 0 takes a free one.
        say: Told where it listens, and each time that the results cannot be read any more, or again.
        ended: Ends it once it is set.

    Raises:
        InputError: The port cannot be listened on.
    """
    ended = ended or threading.Event()
    registry, collector = CollectorRegistry(), _Collector()
    registry.register(collector)
    try:
        server, thread = start_http_server(port, host, registry)
    except OSError as error:
        raise InputError(f"metrics_port {port} of {host} cannot be listened on: {error.strerror}.") from None
    say(f"Answering Prometheus at http://{host}:{server.server_port}/metrics, looking at {out} every minute.")
    told = ""
    try:
        while not ended.is_set():
            try:
                collector.found, collector.store_up = look(out, late_after, at=now()), True
                reason = ""
            except MelanomaError as error:
                collector.store_up, reason = False, str(error)
            if reason != told:
                say(reason or "The results can be read again.")
                told = reason
            ended.wait(LOOK_EVERY)
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
