"""The endpoint, started as a user starts it: what it answers, whom, and what is left when it is stopped."""

import hashlib
import http.client
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from melanoma import taxonomy
from melanoma.demo.archive_files import broken_files, good_files
from melanoma.demo.lesions import draw_lesion
from melanoma.demo.local_s3 import _ended_with_this_process
from melanoma.imaging.limits import Limits
from melanoma.model import triage
from melanoma.model.bundle import Bundle
from melanoma.serving import app, form
from tests.support import deadly_files

Descendants = Callable[[int], dict[int, str]]

KEY = "test-key-4f1d0b7c9a2e"
FIELDS = ["content_sha256", *(field.name for field in triage.PREDICTION_FIELDS)]
MAX_BYTES = Limits().max_bytes


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def alive(pids: Iterable[int]) -> set[int]:
    return {pid for pid in pids if Path(f"/proc/{pid}").exists()}


@dataclass(frozen=True)
class Server:
    port: int
    process: "subprocess.Popen[bytes]"
    log: Path

    def ask(
        self, method: str, path: str, body: bytes | None = None, key: str | None = KEY
    ) -> tuple[int, dict[str, Any]]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.request(method, path, body, {"X-API-Key": key} if key is not None else {})
            response = connection.getresponse()
            content = response.read()
            assert response.getheader("content-type") == "application/json", content
            return response.status, json.loads(content)
        finally:
            connection.close()

    def predict(self, body: bytes | None, key: str | None = KEY) -> tuple[int, dict[str, Any]]:
        return self.ask("POST", "/v1/predict", body, key)


def start(program: str, environment: dict[str, str], bundle: Path, folder: Path) -> Server:
    port, log = free_port(), folder / "serve.log"
    with log.open("wb") as said:
        process = subprocess.Popen(
            [program, "serve", "--bundle", str(bundle), "--port", str(port)],
            env={**environment, "MELANOMA_API_KEY": KEY, "PYTHONPATH": str(deadly_files.FOLDER)},
            stdout=said,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    deadline = time.monotonic() + 180
    while "answers at" not in log.read_text():
        if process.poll() is not None or time.monotonic() > deadline:
            process.terminate()
            raise AssertionError(f"the endpoint did not start: {log.read_text()}")
        time.sleep(0.1)
    return Server(port, process, log)


@pytest.fixture(scope="module")
def server(
    program: str, bundle_path: Path, tmp_path_factory: pytest.TempPathFactory, descendants: Descendants
) -> Iterator[Server]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    running = start(program, environment, bundle_path, tmp_path_factory.mktemp("server"))
    with _ended_with_this_process(running.process.pid):
        yield running
    # The last test has stopped it, if it came so far.
    for pid in [*descendants(running.process.pid), running.process.pid]:
        if running.process.poll() is None:
            os.kill(pid, signal.SIGKILL)
    running.process.wait()


def test_a_picture_is_answered_with_the_columns_of_a_score(
    server: Server, lesion: Callable[..., bytes], bundle: Bundle
) -> None:
    data = lesion("MEL", 1)
    status, answer = server.predict(data)
    assert (status, list(answer)) == (200, FIELDS)
    assert answer["content_sha256"] == hashlib.sha256(data).hexdigest()
    assert answer["model_version"] == bundle.version
    assert sum(answer[f"p_{code}"] for code in taxonomy.CODES) == pytest.approx(1, abs=1e-5)


def test_the_endpoint_answers_as_the_command_does(
    server: Server, command: Callable[..., Any], bundle_path: Path, tmp_path: Path
) -> None:
    pictures = [draw_lesion(taxonomy.CODES[n % 9], n, 120, 100) for n in range(48)]
    files = [data for _, data in good_files(pictures)]
    paths = []
    for number, data in enumerate(files):
        paths.append(tmp_path / f"{number:02}")
        paths[-1].write_bytes(data)
    said = json.loads(command("predict", *paths, "--bundle", bundle_path, "--json").out)
    for row, data in zip(said, files, strict=True):
        status, answer = server.predict(data)
        assert status == 200
        for name in FIELDS:
            assert answer[name] == pytest.approx(row[name], abs=1e-5), name


@pytest.mark.parametrize(
    "key", [None, "", "wrong", KEY[:-1], KEY + "x", KEY.upper(), hashlib.sha256(KEY.encode()).hexdigest()]
)
@pytest.mark.parametrize("size", [None, 1000, MAX_BYTES + 1])
def test_without_the_key_nothing_is_answered(server: Server, key: str | None, size: int | None) -> None:
    status, answer = server.predict(None if size is None else bytes(size), key)
    assert (status, answer["error_kind"]) == (401, "unauthorized")
    assert "X-API-Key" in answer["error"]


def test_health_is_answered_without_a_key(server: Server, bundle: Bundle) -> None:
    assert server.ask("GET", "/healthz", key=None) == (200, {"status": "ok", "model_version": bundle.version})


def test_health_is_answered_to_whoever_asks_for_the_head_alone(server: Server) -> None:
    """As `curl -I` and load balancers do."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    connection.request("HEAD", "/healthz")
    response = connection.getresponse()
    assert (response.status, response.read()) == (200, b"")
    connection.close()


def curl(server: Server, *arguments: str | Path, key: str = KEY) -> tuple[int, dict[str, Any]]:
    url = f"http://127.0.0.1:{server.port}/v1/predict"
    options = ["-s", "-H", f"X-API-Key: {key}", "-w", "\n%{http_code}"]
    done = subprocess.run(["curl", *options, *map(str, arguments), url], capture_output=True, text=True, check=True)
    answer, _, status = done.stdout.rpartition("\n")
    return int(status), json.loads(answer)


@pytest.mark.skipif(shutil.which("curl") is None, reason="There is no curl on this machine.")
def test_every_way_of_curl_to_send_a_file_is_answered(
    server: Server, lesion: Callable[..., bytes], tmp_path: Path
) -> None:
    path = tmp_path / "lésion 1.jpg"
    path.write_bytes(lesion("MEL", 1))
    plain = server.predict(path.read_bytes())
    assert plain[0] == 200
    assert curl(server, "--data-binary", f"@{path}") == plain
    assert curl(server, "-T", path, "-X", "POST") == plain
    for more in ([], ["-F", "patient=4711"], ["-H", "Expect: 100-continue"]):
        assert curl(server, "-F", f"file=@{path}", *more) == plain
    status, answer = curl(server, "-F", f"a=@{path}", "-F", f"b=@{path}")
    assert (status, answer["error_kind"]) == (422, "form")
    assert answer["error"].startswith("The form holds 2 files: send one image a request, as `curl -F file=@lesion.jpg`")
    status, answer = curl(server, "-F", "file=lesion.jpg")
    assert (status, answer["error_kind"]) == (422, "form")
    status, answer = curl(server, "-d", f"@{path}")
    assert (status, answer["error_kind"]) == (422, "truncated")
    assert answer["error"].endswith("send it with `curl --data-binary @FILE`.")
    assert curl(server, "-F", f"file=@{path}", key="wrong")[0] == 401


@pytest.mark.parametrize(("size", "status"), [(MAX_BYTES + 1, 413), (MAX_BYTES + form.OVERHEAD, 413), (MAX_BYTES, 422)])
def test_a_form_has_the_limits_of_its_file(server: Server, size: int, status: int) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    head = b'--x\r\nContent-Disposition: form-data; name="file"; filename="x"\r\n\r\n'
    headers = {"X-API-Key": KEY, "Content-Type": "multipart/form-data; boundary=x"}
    connection.request("POST", "/v1/predict", head + bytes(size) + b"\r\n--x--\r\n", headers)
    response = connection.getresponse()
    answer = json.loads(response.read())
    connection.close()
    assert response.status == status
    assert answer["error_kind"] == ("too_large" if status == 413 else "not_an_image")


def test_what_is_too_large_is_refused(server: Server) -> None:
    status, answer = server.predict(bytes(MAX_BYTES + 1))
    assert (status, answer["error_kind"]) == (413, "too_large")
    bomb = next(file for file in broken_files() if file.error_kind == "too_large")
    status, answer = server.predict(bomb.data)
    assert (status, answer["error_kind"]) == (413, "too_large")
    assert server.predict(bytes(MAX_BYTES))[0] == 422


def test_what_is_no_picture_says_why(server: Server) -> None:
    for file in broken_files():
        if file.error_kind == "too_large":
            continue
        status, answer = server.predict(file.data)
        assert (status, answer["error_kind"]) == (422, file.error_kind), file.name
        assert re.fullmatch(r"[A-Z][^\n]+\.", answer["error"])
        assert answer["content_sha256"] == hashlib.sha256(file.data).hexdigest()


def test_there_is_nothing_else(server: Server) -> None:
    for method, path in [("GET", "/"), ("GET", "/docs"), ("GET", "/openapi.json"), ("GET", "/redoc"), ("GET", "/v1")]:
        assert server.ask(method, path)[0] == 404, path
    assert server.ask("GET", "/v1/predict")[0] == 405


def test_a_file_that_kills_its_process_takes_no_replica_with_it(server: Server, lesion: Callable[..., bytes]) -> None:
    good = lesion("NV", 1)
    comment = b"!crash!"
    deadly = good[:2] + b"\xff\xfe" + (len(comment) + 2).to_bytes(2) + comment + good[2:]
    assert server.predict(deadly)[1]["error_kind"] == "crashed"
    assert server.predict(good)[0] == 200


def test_twenty_at_once_are_all_answered(server: Server, lesion: Callable[..., bytes]) -> None:
    files = [lesion(taxonomy.CODES[n % 9], n) for n in range(20)]
    with ThreadPoolExecutor(max_workers=20) as pool:
        answers = list(pool.map(server.predict, files))
    assert [status for status, _ in answers] == [200] * 20
    assert [answer["content_sha256"] for _, answer in answers] == [hashlib.sha256(data).hexdigest() for data in files]


@pytest.mark.parametrize("key", [None, "", "short", "k" * 15])
def test_it_does_not_start_without_a_key_that_cannot_be_guessed(
    command: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, bundle_path: Path, key: str | None
) -> None:
    monkeypatch.delenv("MELANOMA_API_KEY", raising=False)
    if key is not None:
        monkeypatch.setenv("MELANOMA_API_KEY", key)
    said = command("serve", "--bundle", bundle_path, "--port", free_port())
    assert (said.code, said.out) == (2, "")
    assert re.fullmatch(r"melanoma: Set MELANOMA_API_KEY to a secret of at least 16 characters[^\n]*\n", said.err)


@pytest.mark.parametrize(
    ("address", "hint"),
    [
        ([], r"Nothing can listen on 127\.0\.0\.1:{port}, which is taken"),
        (["--host", "203.0.113.7"], r"Nothing can listen on 203\.0\.113\.7:{port}, "),
        (["--host", "not a host"], r"Nothing can listen on not a host:{port}, "),
        (["--port", "99999"], r"Invalid value for '--port'"),
    ],
)
def test_an_address_that_cannot_be_had_is_one_line(
    server: Server,
    command: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    bundle_path: Path,
    address: list[str],
    hint: str,
) -> None:
    monkeypatch.setenv("MELANOMA_API_KEY", KEY)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    said = command("serve", "--bundle", bundle_path, "--port", server.port, *address)
    assert (said.code, said.out) == (2, "")
    assert re.fullmatch(f"melanoma: {hint.format(port=server.port)}[^\n]*\n", said.err), said.err


@pytest.mark.parametrize("key", [f"{KEY}\u20ac", f"{KEY}\u00e9", f"{KEY[:8]}\n{KEY[8:]}", f"{KEY}\x07"])
def test_it_does_not_start_with_a_key_that_no_client_can_send(
    command: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, bundle_path: Path, key: str
) -> None:
    monkeypatch.setenv("MELANOMA_API_KEY", key)
    said = command("serve", "--bundle", bundle_path, "--port", free_port())
    assert (said.code, said.out) == (2, "")
    assert re.fullmatch(r"melanoma: MELANOMA_API_KEY has characters that no client can send[^\n]*\n", said.err)
    assert KEY not in said.err


@pytest.mark.parametrize("key", [f"{KEY}\n", f"{KEY}\r\n", f" {KEY} ", f"\ufeff{KEY}\n"])
def test_a_line_end_is_no_part_of_the_key(monkeypatch: pytest.MonkeyPatch, key: str) -> None:
    monkeypatch.setenv("MELANOMA_API_KEY", key)
    assert app.api_key_from_environment() == KEY
    assert "MELANOMA_API_KEY" not in os.environ


# The last: it stops what the others ask.
def test_stopped_it_leaves_no_process_and_no_key_in_any_log(server: Server, descendants: Descendants) -> None:
    started = descendants(server.process.pid)
    (session,) = {found[0] for name in started.values() if (found := re.search(r"/tmp/ray/session_[\w-]+", name))}
    assert any("ServeReplica" in name for name in started.values())
    for pid in alive(started):
        assert KEY.encode() not in Path(f"/proc/{pid}/environ").read_bytes(), started[pid]
    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(60) == 0
    deadline = time.monotonic() + 30
    while alive(started) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not alive(started), [started[pid] for pid in alive(started)]
    logs = [path for path in Path(session).rglob("*") if path.is_file()]
    assert any(path.name.startswith("replica_") for path in logs)
    digest = hashlib.sha256(KEY.encode()).hexdigest()
    for path in [server.log, *logs]:
        content = path.read_bytes()
        assert KEY.encode() not in content, path
        assert digest.encode() not in content, path
    assert server.log.read_text().splitlines()[0].startswith("Model ")
