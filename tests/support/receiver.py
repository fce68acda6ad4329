"""A receiver of webhooks that answers as a test wants, and keeps what it acknowledged."""

import contextlib
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Receiver(ThreadingHTTPServer):
    """Answers as `answers` say, one after the other, then with 200; keeps what it acknowledged."""

    daemon_threads = True

    def __init__(self, answers: list[int | str]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.answers = answers
        self.acknowledged: list[tuple[dict[str, str], bytes]] = []
        self.seen = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/alerts"


class _Handler(BaseHTTPRequestHandler):
    server: Receiver

    def log_message(self, *_: object) -> None:
        pass

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        self.server.seen += 1
        answer = self.server.answers.pop(0) if self.server.answers else 200
        if answer == "stall":
            time.sleep(3)
            return
        if answer == "reset":
            return
        if answer == "slow":
            time.sleep(3)
            answer = 200
        if answer == 200:
            self.server.acknowledged.append(({key.lower(): value for key, value in self.headers.items()}, body))
        self.send_response(int(answer))
        self.send_header("content-length", "0")
        self.end_headers()


@contextlib.contextmanager
def receiving(*answers: int | str) -> Iterator[Receiver]:
    """A receiver on a free port, as long as the block lasts."""
    with Receiver(list(answers)) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
