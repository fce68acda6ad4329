"""A small API server of Kubernetes on 127.0.0.1: what cluster/kuberay/base/run_night.py asks of a real one."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

NAMESPACE = "melanoma"
_PREFIX = f"/apis/ray.io/v1/namespaces/{NAMESPACE}/"


@dataclass
class KubernetesApi:
    """The server, what it holds and what it was asked."""

    account: Path  # the folder of a service account, as a pod has it
    template: dict[str, Any] | None = None  # the one RayCronJob
    jobs: dict[str, dict[str, Any]] = field(default_factory=dict)
    # The statuses that a RayJob goes through, one a look; the last one stays. None: the RayJob is gone.
    statuses: list[dict[str, Any] | None] = field(default_factory=list)
    # What happens to the next requests, one each, instead of an answer: an HTTP status, or 0 for a broken connection.
    troubles: list[int] = field(default_factory=list)
    lost_answers: int = 0  # requests to create that are carried out, and whose answer is lost
    refusal: tuple[int, str] | None = None  # to create
    token: str = "first"
    renewed_token: str | None = None  # put into the account once the first has been refused
    asked: list[tuple[str, str]] = field(default_factory=list)  # verb and resource
    looked: threading.Event = field(default_factory=threading.Event)  # a RayJob has been looked at
    url: str = ""

    def answer(self, method: str, path: str, body: Any, token: str) -> tuple[int, dict[str, Any]]:
        """The status and the answer; status 0 breaks the connection."""
        if self.troubles:
            return self.troubles.pop(0), {}
        if token != self.token:
            if self.renewed_token:
                (self.account / "token").write_text(self.renewed_token)
                self.token = self.renewed_token
            return 401, {"message": "Unauthorized"}
        kind, _, name = path.removeprefix(_PREFIX).partition("/")
        self.asked.append(("create" if method == "POST" else method.lower(), kind))
        if kind == "raycronjobs":
            found = self.template if self.template and self.template["metadata"]["name"] == name else None
            return (200, found) if found else (404, {"message": f'raycronjobs.ray.io "{name}" not found'})
        return self._create(body) if method == "POST" else self._look(name)

    def _create(self, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        if self.refusal:
            return self.refusal[0], {"message": self.refusal[1]}
        name = body["metadata"]["name"]
        if name in self.jobs:
            return 409, {"message": f'rayjobs.ray.io "{name}" already exists'}
        self.jobs[name] = body
        if self.lost_answers:
            self.lost_answers -= 1
            return 0, {}
        return 201, body

    def _look(self, name: str) -> tuple[int, dict[str, Any]]:
        self.looked.set()
        status = self.statuses.pop(0) if len(self.statuses) > 1 else self.statuses[0]
        if name not in self.jobs or status is None:
            return 404, {"message": f'rayjobs.ray.io "{name}" not found'}
        return 200, {**self.jobs[name], "status": status}


@contextmanager
def serve(folder: Path) -> Iterator[KubernetesApi]:
    """A server on a free port, with an account in `folder`."""
    api = KubernetesApi(folder)
    (folder / "token").write_text(api.token)
    (folder / "namespace").write_text(NAMESPACE)

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, format: str, *arguments: Any) -> None:
            pass

        def _answer(self) -> None:
            data = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            token = self.headers.get("Authorization", "").removeprefix("Bearer ")
            status, answer = api.answer(self.command, self.path, json.loads(data) if data else None, token)
            if not status:
                self.close_connection = True
                return
            body = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_POST = do_DELETE = do_PATCH = _answer  # noqa: N815

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    api.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield api
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
