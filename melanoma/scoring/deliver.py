"""The alerts of a night go to people: by webhook and by e-mail, never twice.

    OUT/deliveries/run_id=ID/CHANNEL.json  state "sending" from before the try, "delivered" after the receiver's yes

Who is killed between the two does not know whether the receiver has said yes, so the next call does not send again: it
says so, and a person decides (`again`). The same holds for a mail server that breaks off while it has the mail. What
the receiver has refused is tried again: patiently at once, and then by the next call; so is a webhook that was never
answered.

A webhook is signed as https://www.standardwebhooks.com has it, with the secret in ``MELANOMA_WEBHOOK_SECRET``: its id
is the same at every try, so that a receiver that answered too late can tell. E-mail logs in with
``MELANOMA_SMTP_USER`` and ``MELANOMA_SMTP_PASSWORD`` if they are set, over TLS only.
"""

import base64
import contextlib
import datetime
import email.message
import email.utils
import json
import os
import smtplib
import ssl
from collections.abc import Callable, Mapping
from typing import Any

import tenacity
import urllib3
from standardwebhooks.webhooks import Webhook

from melanoma import storage
from melanoma.errors import InputError, MelanomaError
from melanoma.scoring import lease
from melanoma.scoring.config import DeliveryConfig
from melanoma.scoring.run import alerts_of, committed_runs, runs_of

SECRET = "MELANOMA_WEBHOOK_SECRET"  # noqa: S105  (the name of a variable)
_SECONDS = 20.0  # that one try may take
_SECONDS_OF_DATA = 600.0  # that a mail server may take to look at a mail: RFC 5321, 4.5.3.2.6
_UNCERTAIN = "and may have arrived: ask its receiver, and send it with --again if it did not."
_LEAST_BYTES = 16
_DAYS = 30
_FIELDS = (
    *("rank", "alert_level", "p_melanoma", "p_malignant", "diagnosis", "outlier_score", "image_uri", "image_id"),
    *("patient_id", "study_uid", "body_site", "acquired_at", "content_sha256", "copies", "model_version"),
)


class _RefusedError(Exception):
    """The receiver has not taken it; a later try may succeed."""


class _UncertainError(Exception):
    """The receiver may have taken it, and nobody knows."""


def check(settings: DeliveryConfig) -> None:
    """Raises InputError where nothing can be sent as configured."""
    _channels(settings)


def deliver(
    out: str, settings: DeliveryConfig, date: str | None = None, again: bool = False, say: Callable[[str], None] = print
) -> int:
    """Send what is new among the alerts of a night, one message a run; returns how many messages went out.

    Of the runs of a `date`; without one of the newest, and of those of the last 30 days, since something was first
    delivered from `out`, that have not been. `again` sends too what may have arrived already. Raises InputError where
    nothing can be sent as configured or another delivery is under way, and MelanomaError where something was not
    delivered.
    """
    channels = _channels(settings)
    root = storage.normalize(out)
    runs = _runs_of(out, root, date)
    sent, failed = 0, []
    with contextlib.ExitStack() as stack:
        try:
            # One at a time: two that both find a night unsent would both send it.
            stack.enter_context(lease.hold(storage.join(root, "deliveries", "lease.json"), say, 0))
        except InputError:
            raise InputError(f"The alerts of {out} are being delivered already: this delivery ends.") from None
        for record in runs:
            for channel, send in channels.items():
                try:
                    sent += _deliver(root, record, channel, send, settings.patience, again, say)
                except (_RefusedError, _UncertainError) as error:
                    failed.append(f"The {channel} of the run {record['run_id']} {error}")
                except OSError as error:
                    failed.append(f"The {channel} of the run {record['run_id']} was not delivered: {error}")
    if failed:
        raise MelanomaError(" ".join(failed))
    return sent


def _runs_of(out: str, root: str, date: str | None) -> list[dict[str, Any]]:
    newest = runs_of(out, date)
    if date:
        return newest
    try:
        noted = {storage.name(storage.parent(info.uri)) for info in storage.list_objects(f"{root}/deliveries")}
    except FileNotFoundError:
        noted = set()
    records = committed_runs(root)
    since = min((record["finished_at"] for record in records if f"run_id={record['run_id']}" in noted), default=None)
    least = datetime.date.fromisoformat(newest[0]["run_date"]) - datetime.timedelta(days=_DAYS)
    return [
        record
        for record in records
        if record["run_date"] == newest[0]["run_date"]
        or (since and record["finished_at"] >= since and record["run_date"] >= least.isoformat())
    ]


def _deliver(
    root: str,
    record: Mapping[str, Any],
    channel: str,
    send: Callable[[dict[str, Any]], str],
    patience: float,
    again: bool,
    say: Callable[[str], None],
) -> bool:
    """Send the new alerts of a run, unless they were; returns whether they went out."""
    uri = storage.join(root, "deliveries", f"run_id={record['run_id']}", f"{channel}.json")
    state = storage.read_json(uri)["state"] if storage.exists(uri) else None
    if state == "delivered":
        return False
    rows = alerts_of(root, record).to_pylist()
    alerts = [{name: row[name] for name in _FIELDS} for row in rows if not row["first_raised"]]
    if not alerts:
        return False
    if state == "sending" and not again:
        raise _UncertainError(f"was cut off while it was sent, {_UNCERTAIN}")
    _note(uri, "sending", len(alerts))
    try:
        remark = _patiently(patience)(
            send, {"run_id": record["run_id"], "run_date": record["run_date"], "alerts": alerts}
        )
    except _RefusedError as error:
        _note(uri, "refused", len(alerts))
        raise _RefusedError(f"was not delivered: {error}") from None
    _note(uri, "delivered", len(alerts))
    say(f"{len(alerts)} new alerts of the run {record['run_id']} delivered by {channel}.")
    if remark:
        raise _RefusedError(remark)
    return True


def _note(uri: str, state: str, alerts: int) -> None:
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    storage.write_json(uri, {"state": state, "alerts": alerts, "at": now})


def _patiently(seconds: float) -> tenacity.Retrying:
    return tenacity.Retrying(
        retry=tenacity.retry_if_exception_type(_RefusedError),
        wait=tenacity.wait_random_exponential(multiplier=0.5, max=30),
        stop=tenacity.stop_after_delay(seconds),
        reraise=True,
    )


def _channels(settings: DeliveryConfig) -> dict[str, Callable[[dict[str, Any]], str]]:
    """By name what sends the alerts of a run, and returns what is to be said of it all the same."""
    channels: dict[str, Callable[[dict[str, Any]], str]] = {}
    if settings.webhook:
        _refuse_in_clear(settings.webhook.startswith("https://"), settings.webhook, "https")
        webhook = _webhook()
        channels["webhook"] = lambda about: _post(str(settings.webhook), webhook, about)
    if settings.smtp_host:
        if not settings.mail_from or not settings.mail_to:
            raise InputError("E-mail needs mail_from and mail_to.")
        _refuse_in_clear(settings.smtp_tls, f"smtp://{settings.smtp_host}", "smtp_tls")
        channels["e-mail"] = lambda about: _mail(settings, about)
    if not channels:
        raise InputError("There is nowhere to deliver to: set webhook, or smtp_host with mail_from and mail_to.")
    return channels


def _refuse_in_clear(is_encrypted: bool, url: str, how: str) -> None:
    host = urllib3.util.parse_url(url).host
    if not is_encrypted and host not in ("localhost", "127.0.0.1", "[::1]"):
        raise InputError(f"Alerts are of patients and do not go to {host} in the clear: use {how}.")


def _webhook() -> Webhook:
    secret = os.environ.get(SECRET, "")
    try:
        if len(base64.b64decode(secret.removeprefix("whsec_"), validate=True)) < _LEAST_BYTES:
            raise ValueError
    except ValueError:
        raise InputError(
            f"A webhook is signed: set {SECRET} to base64 of at least {_LEAST_BYTES} bytes, such as "
            "`openssl rand -base64 24`."
        ) from None
    return Webhook(secret)


def _post(url: str, webhook: Webhook, about: dict[str, Any]) -> str:
    body = json.dumps({"type": "melanoma.alerts", **about}, allow_nan=False)
    message_id, now = f"melanoma-{about['run_id']}", datetime.datetime.now(datetime.UTC)
    headers = {
        "content-type": "application/json",
        "webhook-id": message_id,
        "webhook-timestamp": str(int(now.timestamp())),
        "webhook-signature": webhook.sign(message_id, now, body),
    }
    try:
        answer = urllib3.request("POST", url, body=body.encode(), headers=headers, timeout=_SECONDS, retries=False)
    except urllib3.exceptions.HTTPError as error:
        raise _RefusedError(f"{type(error).__name__}.") from None
    if not 200 <= answer.status < 300:
        raise _RefusedError(f"it was answered with {answer.status}.")
    return ""


def _mail(settings: DeliveryConfig, about: dict[str, Any]) -> str:
    alerts = about["alerts"]
    urgent = sum(alert["alert_level"] == "urgent" for alert in alerts)
    message = email.message.EmailMessage()
    message["From"], message["To"] = settings.mail_from, ", ".join(settings.mail_to)
    message["Subject"] = f"melanoma {about['run_date']}: {len(alerts)} new alerts, {urgent} urgent"
    message["Date"] = email.utils.localtime()
    message["Message-ID"] = f"<melanoma-{about['run_id']}@{str(settings.mail_from).rpartition('@')[2]}>"
    lines = [
        f"{alert['rank']:>4}  {alert['alert_level']:<6}  {alert['p_melanoma']:6.1%}  {alert['diagnosis']:<4}  "
        f"{alert['patient_id'] or '-'}  {alert['image_uri']}"
        for alert in alerts
    ]
    message.set_content(
        "\n".join([f"Run {about['run_id']}. Rank, level, melanoma, diagnosis, patient, image:", "", *lines, ""])
    )
    try:
        server = smtplib.SMTP(str(settings.smtp_host), settings.smtp_port, timeout=_SECONDS)
    except (OSError, smtplib.SMTPException) as error:
        raise _RefusedError(f"{type(error).__name__}.") from None
    with contextlib.closing(server):  # not QUIT, which may fail after the mail was taken
        try:
            user, password = os.environ.get("MELANOMA_SMTP_USER"), os.environ.get("MELANOMA_SMTP_PASSWORD")
            if settings.smtp_tls:
                server.starttls(context=ssl.create_default_context())
                if user and password:
                    server.login(user, password)
            server.ehlo_or_helo_if_needed()
        except (OSError, smtplib.SMTPException) as error:
            raise _RefusedError(f"{type(error).__name__}.") from None
        if server.sock:
            server.sock.settimeout(_SECONDS_OF_DATA)
        try:
            refused = server.send_message(message)
        except (smtplib.SMTPResponseException, smtplib.SMTPRecipientsRefused, smtplib.SMTPNotSupportedError) as error:
            raise _RefusedError(f"{type(error).__name__}.") from None
        except (OSError, smtplib.SMTPException) as error:
            # No mail server drops what it has had before, so nothing is tried again.
            raise _UncertainError(f"was cut off ({type(error).__name__}), {_UNCERTAIN}") from None
    return f"was delivered, but the mail server refused {', '.join(refused)}." if refused else ""
