"""The alerts of a run go to people: by webhook and by e-mail, never twice.

    OUT/deliveries/run_id=ID/CHANNEL.json  state "sending" from before the try, "delivered" after the receiver's yes

A program that is killed between the two does not know whether the receiver has said yes. The next call therefore does
not send the alerts: it says so, and a person decides (`resend`). The same holds for a mail server that breaks off while
it has the mail. What the receiver has refused is tried again, patiently at once, and then by the next call; so is a
webhook that was never answered.

`channels` says how they go.
"""

import contextlib
import datetime
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from melanoma import storage
from melanoma.errors import InputError, MelanomaError
from melanoma.model.triage import MELANOMA
from melanoma.printable import for_terminal
from melanoma.scoring import layout, lease, results
from melanoma.scoring.channels import UNCERTAIN, Message, RefusedError, Send, UncertainError, channels, patiently
from melanoma.scoring.config import DeliveryConfig
from melanoma.scoring.record import RunRecord

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
class _Alerts:
    """The new alerts of one run, with the columns `_FIELDS`."""

    run_id: str
    run_date: str
    archive: str | tuple[str, ...]
    alerts: list[dict[str, Any]]


def check_settings(settings: DeliveryConfig) -> None:
    """Raise InputError where nothing can be sent as configured."""
    channels(settings)


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
    ways = channels(settings)
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
            for channel, send in ways.items():
                state_uri = layout.delivery(root, record.run_id, channel)
                try:
                    if message := _unsent(root, record, state_uri, resend):
                        complaint = _send(message, patiently(send, settings.patience), state_uri)
                        say(f"{len(message.alerts)} new alerts of the {_run(message)} delivered by {channel}.")
                        if complaint:
                            raise RefusedError(complaint)
                        sent += 1
                except (RefusedError, UncertainError) as error:
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


def _unsent(root: str, record: RunRecord, state_uri: str, resend: bool) -> _Alerts | None:
    """What is to be sent of a run; None where it was delivered or has no new alert."""
    state = storage.read_json(state_uri)["state"] if storage.exists(state_uri) else None
    if state == "delivered":
        return None
    rows = results.alerts_of_run(root, record).to_pylist()
    alerts = [{name: row[name] for name in _FIELDS} for row in rows if not row["first_raised"]]
    if not alerts:
        return None
    if state == "sending" and not resend:
        raise UncertainError(f"was cut off while it was sent, {UNCERTAIN}")
    return _Alerts(record.run_id, record.run_date, record.archive, alerts)


def _run(message: _Alerts) -> str:
    archives = [message.archive] if isinstance(message.archive, str) else message.archive
    over = f" over {', '.join(archives)}" if any(archives) else ""
    return f"run {message.run_id}{over}"


def _send(message: _Alerts, send: Send, state_uri: str) -> str:
    """Send a message and note what became of it; returns the complaint of `send`."""
    _note(state_uri, "sending", len(message.alerts))
    try:
        complaint = send(_composed(message))
    except RefusedError as error:
        _note(state_uri, "refused", len(message.alerts))
        raise RefusedError(f"was not delivered: {error}") from None
    _note(state_uri, "delivered", len(message.alerts))
    return complaint


def _note(uri: str, state: str, alerts: int) -> None:
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    storage.write_json(uri, {"state": state, "alerts": alerts, "at": now})


def _composed(alerts: _Alerts) -> Message:
    urgent = sum(alert["alert_level"] == "urgent" for alert in alerts.alerts)
    lines = [
        f"{alert['rank']:>4}  {alert['alert_level']:<6}  {alert['alert_reason'] or MELANOMA:<20}  "
        f"{alert['p_melanoma']:6.1%}  {alert['p_malignant']:6.1%}  {alert['diagnosis']:<4}  "
        f"{for_terminal(alert['patient_id'] or '-')}  {for_terminal(alert['image_uri'])}"
        for alert in alerts.alerts
    ]
    titles = f"The {_run(alerts)}. Rank, level, reason, melanoma, malignant, diagnosis, patient, image:"
    return Message(
        alerts.run_id,
        {"type": "melanoma.alerts", **asdict(alerts)},
        f"melanoma {alerts.run_date}: {len(alerts.alerts)} new alerts, {urgent} urgent",
        "\n".join([titles, "", *lines, ""]),
    )
