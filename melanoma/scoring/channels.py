"""A message goes to people: by webhook and by e-mail.

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
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

import tenacity
import urllib3
from standardwebhooks.webhooks import Webhook

from melanoma import config
from melanoma.errors import InputError
from melanoma.scoring.config import DeliveryConfig

SECRET = "MELANOMA_WEBHOOK_SECRET"  # noqa: S105  (the name of a variable)
_TIMEOUT = 20.0  # seconds of one try
_DATA_TIMEOUT = 600.0  # seconds in which a mail server looks at a mail: RFC 5321, 4.5.3.2.6
UNCERTAIN = "and may have arrived: ask its receiver, and send it with --again if it did not."
_LEAST_SECRET = 16  # bytes


@dataclass(frozen=True)
class Message:
    """What is sent: to a webhook `payload` as JSON, by e-mail `subject` and `text`. Of two messages of one `name` a
    receiver needs one only."""

    name: str
    payload: dict[str, Any]
    subject: str
    text: str


Send = Callable[[Message], str]
"""Sends a message; returns a complaint where it was delivered to some receivers only. Raises RefusedError and
UncertainError."""


class RefusedError(Exception):
    """The receiver has not taken it; a later try may succeed."""


class UncertainError(Exception):
    """The receiver may have taken it, and nobody knows."""


def patiently(send: Send, seconds: float) -> Send:
    """`send`, repeated for at most `seconds` while it is refused."""
    retrying = tenacity.Retrying(
        retry=tenacity.retry_if_exception_type(RefusedError),
        wait=tenacity.wait_random_exponential(multiplier=0.5, max=30),
        stop=tenacity.stop_after_delay(seconds),
        reraise=True,
    )
    return lambda message: retrying(send, message)


def channels(settings: DeliveryConfig) -> dict[str, Send]:
    """How messages are sent, by the name of the channel. Raises InputError where nothing can be sent as configured."""
    found: dict[str, Send] = {}
    if settings.webhook:
        _refuse_in_clear(settings.webhook.startswith("https://"), settings.webhook, "https")
        webhook, pool = _webhook(), _pool(settings.webhook)
        found["webhook"] = lambda message: _post(str(settings.webhook), webhook, pool, message)
    if settings.smtp_host:
        if not settings.mail_from or not settings.mail_to:
            raise InputError("E-mail needs mail_from and mail_to.")
        _refuse_in_clear(settings.smtp_tls, f"smtp://{settings.smtp_host}", "smtp_tls")
        found["e-mail"] = lambda message: _mail(settings, message)
    if not found:
        raise InputError("There is nowhere to deliver to: set webhook, or smtp_host with mail_from and mail_to.")
    return found


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


def _post(url: str, webhook: Webhook, pool: urllib3.PoolManager, message: Message) -> str:
    body = json.dumps(message.payload, allow_nan=False)
    message_id, now = f"melanoma-{message.name}", datetime.datetime.now(datetime.UTC)
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
        raise RefusedError(f"{type(error).__name__}{by}.") from None
    if not 200 <= answer.status < 300:
        raise RefusedError(f"it was answered with {answer.status}.")
    return ""


def _mail(settings: DeliveryConfig, message: Message) -> str:
    mail = _composed(settings, message)
    try:
        server = smtplib.SMTP(str(settings.smtp_host), settings.smtp_port, timeout=_TIMEOUT)
    except (OSError, smtplib.SMTPException) as error:
        raise RefusedError(f"{type(error).__name__}.") from None
    with contextlib.closing(server):  # not QUIT, which may fail after the mail was taken
        try:
            user, password = config.secret("MELANOMA_SMTP_USER"), config.secret("MELANOMA_SMTP_PASSWORD")
            if settings.smtp_tls:
                server.starttls(context=ssl.create_default_context())
                if user and password:
                    server.login(user, password)
            server.ehlo_or_helo_if_needed()
        except (OSError, smtplib.SMTPException, UnicodeError) as error:  # the last of a password beyond ASCII
            raise RefusedError(f"{type(error).__name__}.") from None
        if server.sock:
            server.sock.settimeout(_DATA_TIMEOUT)
        try:
            refused = server.send_message(mail)
        except (smtplib.SMTPResponseException, smtplib.SMTPRecipientsRefused, smtplib.SMTPNotSupportedError) as error:
            raise RefusedError(f"{type(error).__name__}.") from None
        except (OSError, smtplib.SMTPException) as error:
            # No mail server drops what it has had before, so nothing is tried again.
            raise UncertainError(f"was cut off ({type(error).__name__}), {UNCERTAIN}") from None
    return f"was delivered, but the mail server refused {', '.join(refused)}." if refused else ""


def _composed(settings: DeliveryConfig, message: Message) -> email.message.EmailMessage:
    mail = email.message.EmailMessage()
    mail["From"], mail["To"] = settings.mail_from, ", ".join(settings.mail_to)
    mail["Subject"] = message.subject
    mail["Date"] = email.utils.localtime()
    mail["Message-ID"] = f"<melanoma-{message.name}@{str(settings.mail_from).rpartition('@')[2]}>"
    mail.set_content(message.text)
    return mail
