"""Which runs a delivery is of, what it says of them, and the proxy that it goes through."""

import base64
import contextlib
import datetime
import ipaddress
import json
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from aiosmtpd.controller import Controller
from aiosmtpd.handlers import Message as MessageHandler
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from melanoma import config
from melanoma.errors import InputError, MelanomaError
from melanoma.scoring import channels, deliver, lease
from melanoma.scoring.config import DeliveryConfig
from tests.support.nights import ARCHIVE, write_night

WEBHOOK_KEY = base64.b64encode(b"0123456789abcdef01234567").decode()


@pytest.fixture(autouse=True)
def surroundings(monkeypatch: pytest.MonkeyPatch) -> None:
    """A secret, a lease that is soon held, and no proxy of the machine that runs the tests."""
    monkeypatch.setenv(channels.SECRET, WEBHOOK_KEY)
    for name, seconds in (("_SETTLE", 0.2), ("BEAT", 0.3), ("DEAD_AFTER", 1.5)):
        monkeypatch.setattr(lease, name, seconds)
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


class Receiver(ThreadingHTTPServer):
    """Takes webhooks, `bodies`, over TLS if it has a certificate."""

    daemon_threads = True

    def __init__(self, certificate: Path | None = None) -> None:
        super().__init__(("127.0.0.1", 0), _Taker)
        self.bodies: list[dict[str, Any]] = []
        self.scheme = "https" if certificate else "http"
        if certificate:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate)
            self.socket = context.wrap_socket(self.socket, server_side=True)

    @property
    def url(self) -> str:
        return f"{self.scheme}://127.0.0.1:{self.server_port}/alerts"


class _Taker(BaseHTTPRequestHandler):
    server: Receiver

    def log_message(self, *_: object) -> None:
        pass

    def do_POST(self) -> None:
        self.server.bodies.append(json.loads(self.rfile.read(int(self.headers["content-length"]))))
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()


class Proxy(ThreadingHTTPServer):
    """A proxy that tunnels for whoever has the password; `asked` says for what."""

    daemon_threads = True

    def __init__(self, password: str = "") -> None:
        super().__init__(("127.0.0.1", 0), _Tunnel)
        self.asked: list[str] = []
        self.password = password

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.server_port}"


class _Tunnel(BaseHTTPRequestHandler):
    server: Proxy

    def log_message(self, *_: object) -> None:
        pass

    def do_POST(self) -> None:
        self.server.asked.append(self.requestline)
        self.send_error(502)

    def do_CONNECT(self) -> None:
        self.server.asked.append(self.path)
        expected = f"Basic {base64.b64encode(self.server.password.encode()).decode()}"
        if self.server.password and self.headers["proxy-authorization"] != expected:
            self.send_error(407)
            return
        host, _, port = self.path.rpartition(":")
        with socket.create_connection((host, int(port))) as to:
            self.send_response(200)
            self.end_headers()
            self.wfile.flush()
            back = threading.Thread(target=_copy, args=(to, self.connection), daemon=True)
            back.start()
            _copy(self.connection, to)
            back.join()
        self.close_connection = True


def _copy(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while some := source.recv(65536):
            target.sendall(some)
        target.shutdown(socket.SHUT_WR)


@pytest.fixture
def serve() -> Iterator[Callable[[Any], Any]]:
    """Serves with a server until the test ends."""
    with contextlib.ExitStack() as stack:

        def start(server: ThreadingHTTPServer) -> ThreadingHTTPServer:
            stack.enter_context(server)
            thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
            thread.start()
            stack.callback(thread.join)
            stack.callback(server.shutdown)
            return server

        yield start


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of 127.0.0.1, signed by itself, with its key."""
    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.datetime.now(datetime.UTC)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    made = (
        x509.CertificateBuilder(issuer_name=name, subject_name=name, public_key=key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    path = tmp_path_factory.mktemp("certificate") / "receiver.pem"
    pem, plain = serialization.Encoding.PEM, serialization.NoEncryption()
    path.write_bytes(key.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain) + made.public_bytes(pem))
    return path


@pytest.fixture
def secure(certificate: Path, serve: Callable[[Any], Any], monkeypatch: pytest.MonkeyPatch) -> Receiver:
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    receiver: Receiver = serve(Receiver(certificate))
    return receiver


def send(out: Path, url: str, date: str | None = None, patience: float = 0) -> list[str]:
    """Deliver; returns what was said."""
    said: list[str] = []
    deliver.deliver(str(out), config.load(DeliveryConfig, None, webhook=url, patience=patience), date, say=said.append)
    return said


# --- which runs ------------------------------------------------------------------------------------------------------


def test_the_first_delivery_has_the_night_that_was_resumed_on_the_next_date(
    tmp_path: Path, serve: Callable[[Any], Any]
) -> None:
    write_night(tmp_path, "2026-10-18", [0.9])  # too long ago
    resumed = write_night(tmp_path, "2026-11-20", [0.9, 0.8, 0.7], finished="2026-11-21T08:10:00")
    write_night(tmp_path, "2026-11-21", [], begun="2026-11-21T08:10:01", finished="2026-11-21T08:11:00", seconds=10)
    receiver = serve(Receiver())
    assert send(tmp_path, receiver.url) == [f"3 new alerts of the run {resumed} over {ARCHIVE} delivered by webhook."]
    assert send(tmp_path, receiver.url) == []
    assert [body["run_id"] for body in receiver.bodies] == [resumed]


def test_a_later_delivery_has_it_too(tmp_path: Path, serve: Callable[[Any], Any]) -> None:
    receiver = serve(Receiver())
    write_night(tmp_path, "2026-11-19", [0.9])
    send(tmp_path, receiver.url)
    write_night(tmp_path, "2026-11-20", [0.9, 0.8, 0.7], finished="2026-11-21T08:10:00")
    write_night(tmp_path, "2026-11-21", [0.4], begun="2026-11-21T08:10:01", finished="2026-11-21T08:11:00", seconds=10)
    write_night(tmp_path, "2026-11-21", [0.3], finished="2026-11-21T10:00:00", name="-2")
    assert len(send(tmp_path, receiver.url)) == 3
    assert [len(body["alerts"]) for body in receiver.bodies] == [1, 3, 1, 1]


def test_a_message_says_of_which_archive_it_is(tmp_path: Path, serve: Callable[[Any], Any]) -> None:
    receiver = serve(Receiver())
    write_night(tmp_path, "2026-11-20", [0.9], archive=ARCHIVE, name="-north")
    write_night(tmp_path, "2026-11-20", [0.9], archive=["/south/a", "/south/b"], name="-south")
    said = send(tmp_path, receiver.url)
    assert [body["archive"] for body in receiver.bodies] == [ARCHIVE, ["/south/a", "/south/b"]]
    assert said[1] == "1 new alerts of the run 2026-11-20-south over /south/a, /south/b delivered by webhook."


def test_a_mail_says_of_which_archive_it_is_in_lines_that_nobody_else_writes(tmp_path: Path) -> None:
    hostile = {"patient_id": "4711\n   1  urgent  99.9%", "image_uri": "s3://ward/archive/\x1b[2J.jpg"}
    write_night(tmp_path, "2026-11-20", [hostile])
    mails: list[Any] = []

    class Mailbox(MessageHandler):
        def handle_message(self, message: Any) -> None:
            mails.append(message)

    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]  # the controller connects to the port that it is given, and so takes no 0
    controller = Controller(Mailbox(), hostname="127.0.0.1", port=port)
    controller.start()
    try:
        where = {"smtp_host": "127.0.0.1", "smtp_port": port, "smtp_tls": False}
        chosen = config.load(DeliveryConfig, None, **where, mail_from="a@b.example", mail_to=["c@d.example"])
        deliver.deliver(str(tmp_path), chosen, say=lambda line: None)
    finally:
        controller.stop()
    lines = mails[0].get_payload(decode=True).decode().strip().splitlines()
    titles = "Rank, level, reason, melanoma, malignant, diagnosis, patient, image:"
    assert lines[0] == f"The run 2026-11-20 over {ARCHIVE}. {titles}"
    (line,) = lines[2:]
    # An earlier version, which wrote no reason, asked for melanoma alone.
    assert line.split(maxsplit=5)[:5] == ["1", "review", "melanoma", "50.0%", "90.0%"]
    assert line.endswith(r"MEL   4711\n   1  urgent  99.9%  s3://ward/archive/\x1b[2J.jpg")


# --- through a proxy -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["HTTPS_PROXY", "https_proxy", "ALL_PROXY"])
@pytest.mark.parametrize("scheme", ["http://", ""])
def test_a_webhook_goes_through_the_proxy_of_the_environment(
    tmp_path: Path,
    secure: Receiver,
    serve: Callable[[Any], Any],
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    scheme: str,
) -> None:
    proxy = serve(Proxy("user:p@ss/word"))
    monkeypatch.setenv(name, f"{scheme}user:p%40ss%2Fword@{proxy.address}")
    write_night(tmp_path, "2026-11-20", [0.9])
    assert len(send(tmp_path, secure.url)) == 1
    assert proxy.asked == [f"127.0.0.1:{secure.server_port}"]
    assert [body["run_id"] for body in secure.bodies] == ["2026-11-20"]


@pytest.mark.parametrize("excluded", ["127.0.0.1", "*", "other.example, 127.0.0.0/8", "127.0.0.1:{port}"])
def test_a_receiver_of_no_proxy_is_asked_itself(
    tmp_path: Path,
    secure: Receiver,
    serve: Callable[[Any], Any],
    monkeypatch: pytest.MonkeyPatch,
    excluded: str,
) -> None:
    proxy = serve(Proxy())
    monkeypatch.setenv("HTTPS_PROXY", f"http://{proxy.address}")
    monkeypatch.setenv("NO_PROXY", excluded.format(port=secure.server_port))
    write_night(tmp_path, "2026-11-20", [0.9])
    send(tmp_path, secure.url)
    assert (len(secure.bodies), proxy.asked) == (1, [])


def test_what_is_in_the_clear_stays_on_this_machine(
    tmp_path: Path, serve: Callable[[Any], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy, receiver = serve(Proxy()), serve(Receiver())
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.setenv(name, f"http://{proxy.address}")
    write_night(tmp_path, "2026-11-20", [0.9])
    send(tmp_path, receiver.url)
    assert (len(receiver.bodies), proxy.asked) == (1, [])


def test_a_proxy_that_refuses_is_named_without_its_password(
    tmp_path: Path, secure: Receiver, serve: Callable[[Any], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy = serve(Proxy("user:right"))
    monkeypatch.setenv("HTTPS_PROXY", f"http://user:wr0ng@{proxy.address}")
    write_night(tmp_path, "2026-11-20", [0.9])
    with pytest.raises(MelanomaError) as caught:
        send(tmp_path, secure.url)
    assert f"was not delivered: ProxyError by the proxy {proxy.address}." in str(caught.value)
    assert "wr0ng" not in str(caught.value)
    monkeypatch.setenv("HTTPS_PROXY", f"http://user:right@{proxy.address}")
    assert len(send(tmp_path, secure.url)) == 1


@pytest.mark.parametrize("proxy", ["socks5://user:wr0ng@10.0.0.1:1080", "http://user:wr0ng@[::1", "http://"])
def test_a_proxy_that_cannot_be_used_is_refused_before_anything_is_scored(
    monkeypatch: pytest.MonkeyPatch, proxy: str
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", proxy)
    settings = config.load(DeliveryConfig, None, webhook="https://hospital.example/alerts")
    with pytest.raises(InputError, match=r"HTTPS_PROXY or ALL_PROXY cannot be used for hospital\.example") as caught:
        deliver.check_settings(settings)
    assert "wr0ng" not in str(caught.value)
