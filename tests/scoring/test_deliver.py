"""Alerts go to real receivers that fail, stall and die: each arrives, and none arrives twice."""

import asyncio
import base64
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from email.message import Message
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from aiosmtpd.controller import Controller
from aiosmtpd.handlers import Message as MessageHandler
from aiosmtpd.smtp import SMTP, Envelope, Session
from standardwebhooks.webhooks import Webhook, WebhookVerificationError

from melanoma import config, storage
from melanoma.errors import InputError, MelanomaError
from melanoma.scoring import channels, deliver, lease, tables
from melanoma.scoring.config import DeliveryConfig
from tests.support.receiver import Receiver, receiving

WEBHOOK_KEY = "whsec_" + base64.b64encode(b"0123456789abcdef01234567").decode()


@pytest.fixture(autouse=True)
def secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(channels.SECRET, WEBHOOK_KEY)
    for name, seconds in (("_SETTLE", 0.2), ("BEAT", 0.3), ("DEAD_AFTER", 1.5)):
        monkeypatch.setattr(lease, name, seconds)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """Results of two nights: three alerts, one of which an earlier night has raised; then a night without any new."""
    nights: dict[str, list[tuple[str, float, str | None]]] = {
        "2026-11-20": [("a", 0.9, None), ("b", 0.8, "2026-11-19"), ("c", 0.7, None)],
        "2026-11-21": [("a", 0.9, "2026-11-20")],
    }
    for date, rows in nights.items():
        record = {"run_id": f"run-{date}", "run_date": date, "finished_at": f"{date}T03:00:00"}
        storage.write_json(str(tmp_path / "runs" / f"run_id=run-{date}.json"), record)
        alerts: list[dict[str, object]] = [
            {
                "image_uri": f"s3://archive/{name}.jpg",
                "p_melanoma": p,
                "p_malignant": p,
                "alert_reason": "melanoma, malignancy",
                "rank": rank,
                "alert_level": "urgent" if p > 0.85 else "review",
                "diagnosis": "MEL",
                "patient_id": f"patient {name}",
                "copies": [],
                "first_raised": first,
            }
            for rank, (name, p, first) in enumerate(rows, 1)
        ]
        place = tmp_path / "alerts" / f"run_date={date}" / f"run_id=run-{date}" / "alerts.parquet"
        storage.write_table(str(place), pa.Table.from_pylist(alerts, schema=tables.ALERTS))
    return tmp_path


@pytest.fixture
def receiver() -> Iterator[Callable[..., Receiver]]:
    with contextlib.ExitStack() as stack:
        yield lambda *answers: stack.enter_context(receiving(*answers))


def settings(**values: Any) -> DeliveryConfig:
    return config.load(DeliveryConfig, None, **{"patience": 20, **values})


def quiet(line: str) -> None:
    pass


def test_what_is_new_is_posted_once_and_signed(out: Path, receiver: Callable[..., Receiver]) -> None:
    hook = receiver()
    assert deliver.deliver(str(out), settings(webhook=hook.url), "2026-11-20", say=quiet) == 1
    assert deliver.deliver(str(out), settings(webhook=hook.url), "2026-11-20", say=quiet) == 0
    ((headers, body),) = hook.acknowledged
    found = json.loads(body)
    assert [alert["image_uri"] for alert in found["alerts"]] == ["s3://archive/a.jpg", "s3://archive/c.jpg"]
    assert found["run_id"] == "run-2026-11-20"
    Webhook(WEBHOOK_KEY).verify(body, headers)
    with pytest.raises(WebhookVerificationError):
        Webhook(WEBHOOK_KEY).verify(body.replace(b"a.jpg", b"b.jpg"), headers)


def test_a_night_without_anything_new_sends_nothing(out: Path, receiver: Callable[..., Receiver]) -> None:
    hook = receiver()
    assert deliver.deliver(str(out), settings(webhook=hook.url), "2026-11-21", say=quiet) == 0
    assert hook.seen == 0


def test_a_first_delivery_has_the_nights_before_the_newest(out: Path, receiver: Callable[..., Receiver]) -> None:
    hook = receiver()
    assert deliver.deliver(str(out), settings(webhook=hook.url), say=quiet) == 1
    assert [json.loads(body)["run_date"] for _, body in hook.acknowledged] == ["2026-11-20"]


def test_a_receiver_that_fails_stalls_and_breaks_off_gets_it_once(
    out: Path, receiver: Callable[..., Receiver], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(channels, "_TIMEOUT", 1.0)
    hook = receiver(503, "stall", "reset", 429)
    assert deliver.deliver(str(out), settings(webhook=hook.url), "2026-11-20", say=quiet) == 1
    assert (hook.seen, len(hook.acknowledged)) == (5, 1)


def test_what_was_refused_is_delivered_by_the_next_call(out: Path, receiver: Callable[..., Receiver]) -> None:
    hook = receiver(500)
    chosen = settings(webhook=hook.url, patience=0)
    with pytest.raises(MelanomaError, match=r"run-2026-11-20 was not delivered: it was answered with 500"):
        deliver.deliver(str(out), chosen, "2026-11-20", say=quiet)
    assert deliver.deliver(str(out), chosen, "2026-11-20", say=quiet) == 1
    assert len(hook.acknowledged) == 1


_KILLED = """
import os, signal, sys
from melanoma import config
from melanoma.scoring import deliver
from melanoma.scoring.config import DeliveryConfig
note = deliver._note
def killed(uri, state, alerts):
    if state == sys.argv[3]:
        os.kill(os.getpid(), signal.SIGKILL)
    note(uri, state, alerts)
deliver._note = killed
deliver.deliver(sys.argv[1], config.load(DeliveryConfig, None, webhook=sys.argv[2]), "2026-11-20")
"""


@pytest.mark.parametrize(("before", "acknowledged"), [("sending", 0), ("delivered", 1)])
def test_who_is_killed_between_sending_and_noting_it_does_not_send_again(
    out: Path, receiver: Callable[..., Receiver], before: str, acknowledged: int
) -> None:
    hook = receiver()
    words = [sys.executable, "-c", _KILLED, str(out), hook.url, before]
    ended = subprocess.run(words, check=False, env=os.environ, capture_output=True)
    assert ended.returncode == -signal.SIGKILL
    assert len(hook.acknowledged) == acknowledged
    chosen = settings(webhook=hook.url)
    if before == "sending":
        # It had not begun: the next call delivers.
        assert deliver.deliver(str(out), chosen, "2026-11-20", say=quiet) == 1
    else:
        with pytest.raises(MelanomaError, match="may have arrived: ask its receiver"):
            deliver.deliver(str(out), chosen, "2026-11-20", say=quiet)
    assert len(hook.acknowledged) == 1
    if before == "delivered":
        assert deliver.deliver(str(out), chosen, "2026-11-20", resend=True, say=quiet) == 1


class _Mailbox(MessageHandler):
    def __init__(self) -> None:
        super().__init__()
        self.mails: list[Message] = []

    def handle_message(self, message: Message) -> None:
        self.mails.append(message)


@pytest.fixture
def mailbox(request: pytest.FixtureRequest) -> Iterator[tuple[_Mailbox, int]]:
    handler = getattr(request, "param", _Mailbox)()
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]  # the controller connects to the port that it is given, and so takes no 0
    controller = Controller(handler, hostname="127.0.0.1", port=port)
    controller.start()
    try:
        yield handler, port
    finally:
        controller.stop()


def test_a_mail_lists_what_is_new(out: Path, mailbox: tuple[_Mailbox, int]) -> None:
    handler, port = mailbox
    chosen = settings(
        smtp_host="127.0.0.1", smtp_port=port, smtp_tls=False, mail_from="a@b.example", mail_to=["c@d.example"]
    )
    assert deliver.deliver(str(out), chosen, "2026-11-20", say=quiet) == 1
    assert deliver.deliver(str(out), chosen, "2026-11-20", say=quiet) == 0
    (mail,) = handler.mails
    assert mail["Subject"] == "melanoma 2026-11-20: 2 new alerts, 1 urgent"
    assert mail["Message-ID"] == "<melanoma-run-2026-11-20@b.example>"
    text = bytes(mail.get_payload(decode=True)).decode()
    assert "patient a" in text
    assert "melanoma, malignancy" in text
    assert "s3://archive/c.jpg" in text
    assert "s3://archive/b.jpg" not in text


def test_a_mail_server_that_is_not_there_is_said(out: Path) -> None:
    chosen = settings(smtp_host="127.0.0.1", smtp_port=9, patience=0, mail_from="a@b.example", mail_to=["c@d.example"])
    with pytest.raises(MelanomaError, match=r"The e-mail of the run .* was not delivered: ConnectionRefusedError"):
        deliver.deliver(str(out), chosen, "2026-11-20", say=quiet)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({}, "There is nowhere to deliver to"),
        ({"smtp_host": "x"}, "E-mail needs mail_from and mail_to"),
    ],
)
def test_what_is_missing_is_said(out: Path, values: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        deliver.deliver(str(out), settings(**values), say=quiet)


def test_a_webhook_without_a_secret_is_refused(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(channels.SECRET)
    with pytest.raises(InputError, match="set MELANOMA_WEBHOOK_SECRET"):
        deliver.deliver(str(out), settings(webhook="http://127.0.0.1:9/"), say=quiet)


@pytest.mark.parametrize("secret", ["short", "not base64!" * 4, base64.b64encode(b"15 bytes at mos").decode()])
def test_a_secret_that_is_none_is_refused(monkeypatch: pytest.MonkeyPatch, secret: str) -> None:
    monkeypatch.setenv(channels.SECRET, secret)
    with pytest.raises(InputError, match="base64 of at least 16 bytes"):
        deliver.check_settings(settings(webhook="https://hospital.example/"))


@pytest.mark.parametrize(
    "values",
    [
        {"webhook": "http://hospital.example/alerts"},
        {"smtp_host": "mail.example", "smtp_tls": False, "mail_from": "a@b.example", "mail_to": ["c@d.example"]},
    ],
)
def test_alerts_do_not_leave_this_machine_in_the_clear(values: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=r"do not go to (hospital|mail)\.example in the clear"):
        deliver.check_settings(settings(**values))


def test_a_night_that_was_not_delivered_is_delivered_with_a_later_one(
    out: Path, receiver: Callable[..., Receiver]
) -> None:
    away = settings(webhook="http://127.0.0.1:9/", patience=0)
    with pytest.raises(MelanomaError, match="was not delivered"):
        deliver.deliver(str(out), away, "2026-11-20", say=quiet)
    hook = receiver()
    assert deliver.deliver(str(out), settings(webhook=hook.url), say=quiet) == 1  # the newest has nothing new
    assert json.loads(hook.acknowledged[0][1])["run_id"] == "run-2026-11-20"
    assert deliver.deliver(str(out), settings(webhook=hook.url), say=quiet) == 0


def test_two_deliveries_at_once_are_one(out: Path, receiver: Callable[..., Receiver]) -> None:
    hook = receiver("slow")
    ended: list[object] = []

    def call() -> None:
        try:
            ended.append(deliver.deliver(str(out), settings(webhook=hook.url), "2026-11-20", say=quiet))
        except InputError as error:
            ended.append(error)

    threads = [threading.Thread(target=call) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(map(str, ended)) == ["1", f"The alerts of {out} are being delivered already: this delivery ends."]
    assert len(hook.acknowledged) == 1


def mail_settings(port: int, **values: Any) -> DeliveryConfig:
    where = {"smtp_host": "127.0.0.1", "smtp_port": port, "smtp_tls": False, "mail_from": "a@b.example"}
    return settings(**{**where, "mail_to": ["c@d.example"], **values})


class _BreaksOff(_Mailbox):
    """Takes the mail, and breaks off before it says so."""

    async def handle_DATA(  # noqa: N802  (aiosmtpd's name)
        self, server: SMTP, session: Session, envelope: Envelope
    ) -> str:
        await super().handle_DATA(server, session, envelope)
        assert isinstance(server.transport, asyncio.Transport)
        server.transport.abort()
        return "250 OK"


@pytest.mark.parametrize("mailbox", [_BreaksOff], indirect=True)
def test_a_mail_that_may_have_arrived_is_not_sent_again(out: Path, mailbox: tuple[_Mailbox, int]) -> None:
    handler, port = mailbox
    for words in (r"was cut off \(\w+\), and may have arrived", "was cut off while it was sent"):
        with pytest.raises(MelanomaError, match=words):
            deliver.deliver(str(out), mail_settings(port), "2026-11-20", say=quiet)
    assert len(handler.mails) == 1


class _RefusesOne(_Mailbox):
    async def handle_RCPT(  # noqa: N802
        self, server: SMTP, session: Session, envelope: Envelope, address: str, options: list[str]
    ) -> str:
        if address.startswith("gone@"):
            return "550 no such mailbox"
        envelope.rcpt_tos.append(address)
        return "250 OK"


@pytest.mark.parametrize("mailbox", [_RefusesOne], indirect=True)
def test_a_recipient_that_is_refused_is_said_and_the_others_have_it_once(
    out: Path, mailbox: tuple[_Mailbox, int]
) -> None:
    handler, port = mailbox
    chosen = mail_settings(port, mail_to=["gone@d.example", "c@d.example"])
    with pytest.raises(MelanomaError, match=r"was delivered, but the mail server refused gone@d\.example"):
        deliver.deliver(str(out), chosen, "2026-11-20", say=quiet)
    assert deliver.deliver(str(out), chosen, "2026-11-20", say=quiet) == 0
    assert len(handler.mails) == 1


# --- the commands ----------------------------------------------------------------------------------------------------


def test_the_command_delivers_what_is_left(
    out: Path, tmp_path: Path, receiver: Callable[..., Receiver], command: Callable[..., Any]
) -> None:
    hook, where = receiver(), tmp_path / "deliver.yaml"
    where.write_text(f"webhook: {hook.url}\n")
    words = ("deliver", out, "--config", where, "--date", "2026-11-20")
    said = command(*words)
    assert (said.code, said.err) == (0, "2 new alerts of the run run-2026-11-20 delivered by webhook.\n")
    assert (command(*words).err, hook.seen) == ("Nothing was left to deliver.\n", 1)
    assert command(*words[:4], "--date", "2026-01-01").code == 2


def test_a_night_delivers_its_alerts_once_it_is_committed(
    lesions: Path,
    bundle_path: Path,
    tmp_path: Path,
    receiver: Callable[..., Receiver],
    command: Callable[..., Any],
    scored_in_this_process: None,
) -> None:
    hook, where = receiver(), tmp_path / "score.yaml"
    where.write_text(f"workers: 1\nexplained: 0\ndeliver:\n  webhook: {hook.url}\n  patience: 0\n")
    words = ("score", lesions, "--out", tmp_path / "results", "--bundle", bundle_path, "--config", where, "--json")
    hook.answers.append(503)
    failed = command(*words)
    assert failed.code == 3
    assert "was not delivered: it was answered with 503." in failed.err
    record = json.loads(command(*words).out)
    assert record["changed"] is False
    assert command(*words).code == 0
    ((_, body),) = hook.acknowledged
    assert len(json.loads(body)["alerts"]) == record["counts"]["alerts"] > 0
