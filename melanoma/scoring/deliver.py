"""The alerts of a run go to people: by webhook and by e-mail, never twice.

    OUT/deliveries/run_id=ID/CHANNEL.json  state "sending" from before the try, "delivered" after the receiver's yes

A program that is killed between the two does not know whether the receiver has said yes. The next call therefore does
not send the alerts: it says so, and a person decides (`resend`). The same holds for a mail server that breaks off while
it has the mail. What the receiver has refused is tried again, patiently at once, and then by the next call; so is a
webhook that was never answered.

A webhook is signed as https://www.standardwebhooks.com specifies, with the secret in ``MELANOMA_WEBHOOK_SECRET``. Its
id is the same at every try, so that a receiver that answered too late can tell. E-mail logs in with
``MELANOMA_SMTP_USER`` and ``MELANOMA_SMTP_PASSWORD`` if they are set, over TLS only.
"""

import base64
import contextlib
import datetime
import email.message
import email.utils
import ipaddress
import json
import smtplib
import ssl
import urllib.request
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any
from urllib.parse import unquote

import tenacity
import urllib3
from standardwebhooks.webhooks import Webhook

from melanoma import config, storage
from melanoma.errors import InputError, MelanomaError
from melanoma.model.triage import MELANOMA
from melanoma.printable import for_terminal
from melanoma.scoring import layout, lease, results
from melanoma.scoring.config import DeliveryConfig
from melanoma.scoring.record import RunRecord

SECRET = "MELANOMA_WEBHOOK_SECRET"  # noqa: S105  (the name of a variable)
_TIMEOUT = 20.0  # seconds of one try
_DATA_TIMEOUT = 600.0  # seconds in which a mail server looks at a mail: RFC 5321, 4.5.3.2.6
_UNCERTAIN = "and may have arrived: ask its receiver, and send it with --again if it did not."
_LEAST_SECRET = 16  # bytes
_FIELDS = (
    *(
        "rank",
        "alert_level",
        "alert_reason",
        "p_melanoma",
        "p_malignant",
        "diagnosis",
        "outlier_score",
        "image_uri",
        "image_id",
    ),
    *("patient_id", "study_uid", "body_site", "acquired_at", "content_sha256", "copies", "model_version"),
)


@dataclass(frozen=True)
class _Message:
    """The new alerts of one run, with the columns `_FIELDS`."""

    run_id: str
    run_date: str
    archive: str | tuple[str, ...]
    alerts: list[dict[str, Any]]


Send = Callable[[_Message], str]
"""Sends a message; returns a complaint where it was delivered to some receivers only. Raises _RefusedError and
_UncertainError."""


class _RefusedError(Exception):
    """The receiver has not taken it; a later try may succeed."""


class _UncertainError(Exception):
    """The receiver may have taken it, and nobody knows."""


def check_settings(settings: DeliveryConfig) -> None:
    """Raise InputError where nothing can be sent as configured."""
    _channels(settings)


def deliver(
    out: str,
    settings: DeliveryConfig,
    date: str | None = None,
    resend: bool = False,
    say: Callable[[str], None] = print,
) -> int:
    """Send the new alerts of each run of a date, one message a run and channel.

    Args:
        out: Folder or s3:// URI of the results.
        settings: Where the alerts go.
        date: ISO date. Without one, what was not delivered of the last 30 days is sent, and of runs that were cut off
            before the newest date and finished since.
        resend: Send as well what may have arrived already.
        say: Takes a line for each message that went out.

    Returns:
        How many messages went out.

    Raises:
        InputError: Nothing can be sent as configured, there is no such run, or another delivery is under way.
        MelanomaError: Something was not delivered.
    """
    channels = _channels(settings)
    root = storage.normalize(out)
    records = _due(out, root, date)
    sent, failed = 0, []
    with contextlib.ExitStack() as stack:
        try:
            # One at a time: two that both find a run unsent would both send it.
            stack.enter_context(lease.hold(layout.delivery_lease(root), say))
        except InputError:
            raise InputError(f"The alerts of {out} are being delivered already: this delivery ends.") from None
        for record in records:
            for channel, send in channels.items():
                state_uri = layout.delivery(root, record.run_id, channel)
                try:
                    if message := _unsent(root, record, state_uri, resend):
                        complaint = _send(message, _patiently(send, settings.patience), state_uri)
                        say(f"{len(message.alerts)} new alerts of the {_run(message)} delivered by {channel}.")
                        if complaint:
                            raise _RefusedError(complaint)
                        sent += 1
                except (_RefusedError, _UncertainError) as error:
                    failed.append(f"The {channel} of the run {record.run_id} {error}")
                except (OSError, storage.UnavailableError) as error:
                    failed.append(f"The {channel} of the run {record.run_id} was not delivered: {error}")
    if failed:
        raise MelanomaError(" ".join(failed))
    return sent


def _due(out: str, root: str, date: str | None) -> list[RunRecord]:
    """The runs of which something may have to be sent."""
    if date:
        return results.nights(out, date).runs
    records = results.committed_records(out)
    newest = results.newest_date(records)
    return [
        record for record in records if results.was_resumed_since(record, newest) or not results.is_old(record, newest)
    ]


def _unsent(root: str, record: RunRecord, state_uri: str, resend: bool) -> _Message | None:
    """What is to be sent of a run; None where it was delivered or has no new alert."""
    state = storage.read_json(state_uri)["state"] if storage.exists(state_uri) else None
    if state == "delivered":
        return None
    rows = results.alerts_of_run(root, record).to_pylist()
    alerts = [{name: row[name] for name in _FIELDS} for row in rows if not row["first_raised"]]
    if not alerts:
        return None
    if state == "sending" and not resend:
        raise _UncertainError(f"was cut off while it was sent, {_UNCERTAIN}")
    return _Message(record.run_id, record.run_date, record.archive, alerts)


def _run(message: _Message) -> str:
    archives = [message.archive] if isinstance(message.archive, str) else message.archive
    over = f" over {', '.join(archives)}" if any(archives) else ""
    return f"run {message.run_id}{over}"


def _send(message: _Message, send: Send, state_uri: str) -> str:
    """Send a message and note what became of it; returns the complaint of `send`."""
    _note(state_uri, "sending", len(message.alerts))
    try:
        complaint = send(message)
    except _RefusedError as error:
        _note(state_uri, "refused", len(message.alerts))
        raise _RefusedError(f"was not delivered: {error}") from None
    _note(state_uri, "delivered", len(message.alerts))
    return complaint


def _note(uri: str, state: str, alerts: int) -> None:
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    storage.write_json(uri, {"state": state, "alerts": alerts, "at": now})


def _patiently(send: Send, seconds: float) -> Send:
    """`send`, repeated for at most `seconds` while it is refused."""
    retrying = tenacity.Retrying(
        retry=tenacity.retry_if_exception_type(_RefusedError),
        wait=tenacity.wait_random_exponential(multiplier=0.5, max=30),
        stop=tenacity.stop_after_delay(seconds),
        reraise=True,
    )
    return lambda message: retrying(send, message)


def _channels(settings: DeliveryConfig) -> dict[str, Send]:
    """How alerts are sent, by the name of the channel. Raises InputError."""
    channels: dict[str, Send] = {}
    if settings.webhook:
        _refuse_in_clear(settings.webhook.startswith("https://"), settings.webhook, "https")
        webhook, pool = _webhook(), _pool(settings.webhook)
        channels["webhook"] = lambda message: _post(str(settings.webhook), webhook, pool, message)
    if settings.smtp_host:
        if not settings.mail_from or not settings.mail_to:
            raise InputError("E-mail needs mail_from and mail_to.")
        _refuse_in_clear(settings.smtp_tls, f"smtp://{settings.smtp_host}", "smtp_tls")
        channels["e-mail"] = lambda message: _mail(settings, message)
    if not channels:
        raise InputError("There is nowhere to deliver to: set webhook, or smtp_host with mail_from and mail_to.")
    return channels


def _refuse_in_clear(is_encrypted: bool, url: str, how: str) -> None:
    host = urllib3.util.parse_url(url).host
    if not is_encrypted and host not in ("localhost", "127.0.0.1", "[::1]"):
        raise InputError(f"Alerts are of patients and do not go to {host} in the clear: use {how}.")


def _webhook() -> Webhook:
    secret = config.secret(SECRET).strip()
    try:
        if len(base64.b64decode(secret.removeprefix("whsec_"), validate=True)) < _LEAST_SECRET:
            raise ValueError
    except ValueError:
        raise InputError(
            f"A webhook is signed: set {SECRET} to base64 of at least {_LEAST_SECRET} bytes, such as "
            "`openssl rand -base64 24`."
        ) from None
    return Webhook(secret)


def _pool(url: str) -> urllib3.PoolManager:
    """What reaches a receiver: the proxy that ``HTTPS_PROXY`` names, unless ``NO_PROXY`` has the receiver, or nothing
    in between. A receiver in the clear is on this machine, and no proxy gets what goes there. Raises InputError."""
    to = urllib3.util.parse_url(url)
    proxies = urllib.request.getproxies()
    proxy = proxies.get("https") or proxies.get("all")
    if to.scheme != "https" or not proxy or _is_excluded(str(to.host), to.port, proxies.get("no", "")):
        return urllib3.PoolManager()
    try:
        through = urllib3.util.parse_url(proxy if "://" in proxy else f"http://{proxy}")
        if not through.host:
            raise ValueError
        headers = urllib3.util.make_headers(proxy_basic_auth=unquote(through.auth)) if through.auth else None
        # Without the user and password, which would stand in errors.
        return urllib3.ProxyManager(through._replace(auth=None).url, proxy_headers=headers)
    except (urllib3.exceptions.HTTPError, ValueError):
        raise InputError(
            f"The proxy in HTTPS_PROXY or ALL_PROXY cannot be used for {to.host}: give the http:// or https:// URL of "
            f"one, or set NO_PROXY={to.host}."
        ) from None


def _is_excluded(host: str, port: int | None, no_proxy: str) -> bool:
    """Whether ``NO_PROXY`` has a host, also by a network (10.0.0.0/8), at which Python does not look."""
    bare = host.strip("[]")
    if urllib.request.proxy_bypass(f"{bare}:{port}" if port and ":" not in bare else bare):
        return True
    with contextlib.suppress(ValueError):
        address = ipaddress.ip_address(bare)
        for word in no_proxy.split(","):
            with contextlib.suppress(ValueError):
                if address in ipaddress.ip_network(word.strip(), strict=False):
                    return True
    return False


def _post(url: str, webhook: Webhook, pool: urllib3.PoolManager, message: _Message) -> str:
    body = json.dumps({"type": "melanoma.alerts", **asdict(message)}, allow_nan=False)
    message_id, now = f"melanoma-{message.run_id}", datetime.datetime.now(datetime.UTC)
    headers = {
        "content-type": "application/json",
        "webhook-id": message_id,
        "webhook-timestamp": str(int(now.timestamp())),
        "webhook-signature": webhook.sign(message_id, now, body),
    }
    try:
        answer = pool.request("POST", url, body=body.encode(), headers=headers, timeout=_TIMEOUT, retries=False)
    except urllib3.exceptions.HTTPError as error:
        by = f" by the proxy {pool.proxy.netloc}" if pool.proxy else ""
        raise _RefusedError(f"{type(error).__name__}{by}.") from None
    if not 200 <= answer.status < 300:
        raise _RefusedError(f"it was answered with {answer.status}.")
    return ""


def _mail(settings: DeliveryConfig, message: _Message) -> str:
    mail = _composed(settings, message)
    try:
        server = smtplib.SMTP(str(settings.smtp_host), settings.smtp_port, timeout=_TIMEOUT)
    except (OSError, smtplib.SMTPException) as error:
        raise _RefusedError(f"{type(error).__name__}.") from None
    with contextlib.closing(server):  # not QUIT, which may fail after the mail was taken
        try:
            user, password = config.secret("MELANOMA_SMTP_USER"), config.secret("MELANOMA_SMTP_PASSWORD")
            if settings.smtp_tls:
                server.starttls(context=ssl.create_default_context())
                if user and password:
                    server.login(user, password)
            server.ehlo_or_helo_if_needed()
        except (OSError, smtplib.SMTPException, UnicodeError) as error:  # the last of a password beyond ASCII
            raise _RefusedError(f"{type(error).__name__}.") from None
        if server.sock:
            server.sock.settimeout(_DATA_TIMEOUT)
        try:
            refused = server.send_message(mail)
        except (smtplib.SMTPResponseException, smtplib.SMTPRecipientsRefused, smtplib.SMTPNotSupportedError) as error:
            raise _RefusedError(f"{type(error).__name__}.") from None
        except (OSError, smtplib.SMTPException) as error:
            # No mail server drops what it has had before, so nothing is tried again.
            raise _UncertainError(f"was cut off ({type(error).__name__}), {_UNCERTAIN}") from None
    return f"was delivered, but the mail server refused {', '.join(refused)}." if refused else ""


def _composed(settings: DeliveryConfig, message: _Message) -> email.message.EmailMessage:
    urgent = sum(alert["alert_level"] == "urgent" for alert in message.alerts)
    mail = email.message.EmailMessage()
    mail["From"], mail["To"] = settings.mail_from, ", ".join(settings.mail_to)
    mail["Subject"] = f"melanoma {message.run_date}: {len(message.alerts)} new alerts, {urgent} urgent"
    mail["Date"] = email.utils.localtime()
    mail["Message-ID"] = f"<melanoma-{message.run_id}@{str(settings.mail_from).rpartition('@')[2]}>"
    lines = [
        f"{alert['rank']:>4}  {alert['alert_level']:<6}  {alert['alert_reason'] or MELANOMA:<20}  "
        f"{alert['p_melanoma']:6.1%}  {alert['p_malignant']:6.1%}  {alert['diagnosis']:<4}  "
        f"{for_terminal(alert['patient_id'] or '-')}  {for_terminal(alert['image_uri'])}"
        for alert in message.alerts
    ]
    mail.set_content(
        "\n".join(
            [
                f"The {_run(message)}. Rank, level, reason, melanoma, malignant, diagnosis, patient, image:",
                "",
                *lines,
                "",
            ]
        )
    )
    return mail
