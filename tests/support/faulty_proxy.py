"""An HTTP proxy before an object store that does what stores do on a bad day, for tests and benchmarks: 503, resets,
bodies cut short, delays, silence."""

import contextlib
import http.client
import math
import random
import re
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

Fault = str  # "busy", "reset", "truncate", "slow", "hang" (is never answered), "drip" (without end), or "" for none
PHASES = {
    "list": "GET .*list-type=2.*prefix=archive",
    "plan": "PUT .*/plans/",
    "freeze": "PUT .*/plan.json",
    "lease": "(GET|PUT) .*/runs/key=.*/lease.json",
    "score": "PUT .*/scores/",
    "publish": "PUT .*/alerts.parquet",
    "record": "PUT .*/runs/run_id=[^/]*.json",
}
"""What a scoring run of ``s3://BUCKET/archive...`` asks for in each of its phases, as `Outage` takes it."""
_BUSY = b"<?xml version='1.0'?><Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"


class FaultyProxy(ThreadingHTTPServer):
    """Passes requests on to `target`, as `decide` says of each; `faults` counts what it did to them."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, target: str, decide: Callable[[str, str], Fault], delay: float = 0.0) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.target, self.decide, self.delay = urlsplit(target), decide, delay
        self.faults = Counter[str]()
        self.lock = threading.Lock()
        self.down = threading.Event()  # set: every connection is cut
        self.ended = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


def at_random(seed: int, share: float) -> Callable[[str, str], Fault]:
    """Faults for `share` of the requests, drawn one after the other from a seed."""
    generator, lock = random.Random(seed), threading.Lock()

    def decide(method: str, path: str) -> Fault:
        with lock:
            return generator.choice(["busy", "reset", "truncate", "slow"]) if generator.random() < share else ""

    return decide


class Outage:
    """A `decide` of a store that is away for a while, from the first request on that matches.

    Args:
        pattern: Of METHOD and path, such as one of `PHASES`.
        seconds: How long the store is away.
        fault: What it does meanwhile: "reset", "busy", "hang" or "drip".
        otherwise: What it does before and afterwards.
    """

    def __init__(
        self,
        pattern: str,
        seconds: float,
        fault: Fault = "reset",
        otherwise: Callable[[str, str], Fault] = lambda method, path: "",
    ) -> None:
        self._pattern, self._seconds, self._fault, self._otherwise = re.compile(pattern), seconds, fault, otherwise
        self._lock = threading.Lock()
        self.requests = 0  # that it refused
        self.began = self.last = math.inf  # when it refused the first and the last of them, by time.monotonic

    def __call__(self, method: str, path: str) -> Fault:
        with self._lock:
            now = time.monotonic()
            if self.requests == 0 and self._pattern.match(f"{method} {unquote(path)}"):
                self.began = now
            if self.began <= now < self.began + self._seconds:
                self.last, self.requests = now, self.requests + 1
                return self._fault
        return self._otherwise(method, path)


@contextlib.contextmanager
def faulty_proxy(target: str, decide: Callable[[str, str], Fault], delay: float = 0.0) -> Iterator[FaultyProxy]:
    """A proxy on a free port, as long as the block lasts; `delay` seconds are added to every request."""
    with FaultyProxy(target, decide, delay) as proxy:
        thread = threading.Thread(target=proxy.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        try:
            yield proxy
        finally:
            proxy.ended.set()
            proxy.shutdown()
            thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: FaultyProxy

    def do_GET(self) -> None:
        self._pass_on()

    do_HEAD = do_PUT = do_POST = do_DELETE = do_GET  # noqa: N815  (names of http.server)

    def log_message(self, *_: object) -> None:
        pass

    def _pass_on(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.server.down.is_set():
            self._reset()
            return
        time.sleep(self.server.delay)
        fault = self.server.decide(self.command, self.path)
        with self.server.lock:
            self.server.faults[fault] += 1
        if fault == "reset":
            self._reset()
        elif fault == "hang":
            self.server.ended.wait()
            self._reset()
        elif fault == "drip":
            self._drip()
        elif fault == "busy":
            self._answer(503, [("Content-Type", "application/xml")], _BUSY)
        else:
            if fault == "slow":
                time.sleep(0.5)
            target = self.server.target
            connection = http.client.HTTPConnection(str(target.hostname), target.port, timeout=60)
            with contextlib.closing(connection):
                # The signature covers the host that the client knows, which is this one.
                connection.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
                for name, value in self.headers.items():
                    connection.putheader(name, value)
                connection.endheaders(body)
                answer = connection.getresponse()
                data = answer.read()
                self._answer(answer.status, answer.getheaders(), data, cut=fault == "truncate")

    def _answer(self, status: int, headers: list[tuple[str, str]], data: bytes, cut: bool = False) -> None:
        self.send_response_only(status)
        for name, value in headers:
            if name.lower() not in ("connection", "content-length", "transfer-encoding"):
                self.send_header(name, value)
        length = {name.lower(): value for name, value in headers}.get("content-length", str(len(data)))
        self.send_header("Content-Length", length if self.command == "HEAD" else str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data[: len(data) // 2] if cut else data)
        if cut:
            self.wfile.flush()
            self._reset()

    def _drip(self) -> None:
        """Promise much, and send a byte now and then: no timeout between two bytes ends that."""
        self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
        with contextlib.suppress(OSError):
            while not self.server.ended.wait(0.1):
                self.wfile.write(b" ")
        self.close_connection = True

    def _reset(self) -> None:
        """End the connection with a reset, as a dying machine does."""
        self.close_connection = True
        with contextlib.suppress(OSError):
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.shutdown(socket.SHUT_RDWR)
