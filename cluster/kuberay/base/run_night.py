"""Make the RayJob of a night from its template, wait for its end, and exit as the job did.

    python run_night.py --template melanoma-night

Runs in the pods of the CronJob in night.yaml, with the rights of night-rights.yaml. The RayJob is named by the night,
such as melanoma-night-2026-11-27; one that is there already is waited for, whoever made it. Costs its pod only.

Exit codes are those of the job: 0 done, 1 the thing asked about is not so, 2 wrong use or bad input, 3 failed while
running (or not seen to end), 130 stopped by somebody. The last line says in a sentence what happened.
"""

import argparse
import json
import os
import re
import signal
import sys
import time
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import urllib3

ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
DONE, REFUSED, FAILED, STOPPED, ENDED_FROM_OUTSIDE = 0, 2, 3, 130, 143
_CODES_OF_A_JOB = (1, 2, 3, 130)
_LONGEST_NAME = 47  # of a RayJob, see KubeRay's validation.go
_SPARE_SECONDS = 600  # that the operator may take to end a job that is over its time
_LAST_APPLIED = "kubectl.kubernetes.io/last-applied-configuration"


class NightError(Exception):
    """The night cannot be started or watched: its sentence, and the code to exit with."""

    def __init__(self, code: int, sentence: str) -> None:
        super().__init__(sentence)
        self.code = code


@dataclass(frozen=True)
class Outcome:
    """How a RayJob ended: the code to exit with, and a sentence."""

    code: int
    sentence: str


class Api:
    """The API of Kubernetes, as the account of this pod may use it.

    Args:
        server: Such as https://10.0.0.1:443.
        account: The folder with token, namespace and ca.crt.
        patience: Seconds for which a server that does not answer is asked again.
        pause: Seconds in between.

    Raises:
        OSError: There is no such account.
    """

    def __init__(self, server: str, account: Path, patience: float, pause: float) -> None:
        self.namespace = (account / "namespace").read_text().strip()
        self._server = server
        self._account = account
        self._patience = patience
        self._pause = pause
        certificate = account / "ca.crt"
        self._pool = urllib3.PoolManager(
            ca_certs=str(certificate) if certificate.exists() else None,
            timeout=urllib3.Timeout(connect=10, read=30),
            retries=False,
        )

    def path(self, kind: str, name: str = "") -> str:
        whole = f"/apis/ray.io/v1/namespaces/{self.namespace}/{kind}"
        return f"{whole}/{name}" if name else whole

    def ask(self, method: str, path: str, body: dict[str, Any] | None = None) -> tuple[int, dict[str, Any]]:
        """The status and the answer to a request, however long the server is away within our patience.

        Raises NightError where it stays away.
        """
        last = time.monotonic() + self._patience
        while True:
            status, answer, trouble = self._ask_once(method, path, body)
            if not trouble:
                return status, answer
            if time.monotonic() >= last:
                raise NightError(FAILED, f"the API server gave no answer for {self._patience:.0f} seconds ({trouble}).")
            time.sleep(self._pause)

    def _ask_once(self, method: str, path: str, body: dict[str, Any] | None) -> tuple[int, dict[str, Any], str]:
        try:
            # Read each time: Kubernetes renews the file within the hour.
            token = (self._account / "token").read_text().strip()
            headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
            response = self._pool.request(
                method, f"{self._server}{path}", body=json.dumps(body) if body else None, headers=headers
            )
            answer = json.loads(response.data)
        except (urllib3.exceptions.HTTPError, OSError, ValueError) as error:
            return 0, {}, type(error).__name__
        # 401: a token that has just run out. 429 and 5xx: a server that has too much to do, or is being replaced.
        if response.status in (401, 429) or response.status >= 500:
            return 0, {}, f"HTTP {response.status}"
        return response.status, answer, ""


def night_of(job: str, zone: ZoneInfo, now: datetime) -> str:
    """The day of a night, such as 2026-11-27: the one for which it was planned, also where it starts after midnight.

    Kubernetes ends the name of a CronJob's Job with the planned minute. A Job that was made by hand has no such name.
    """
    found = re.search(r"-(\d{8,10})$", job)
    if found:
        planned = datetime.fromtimestamp(int(found[1]) * 60, UTC)
        if abs(now - planned) < timedelta(days=7):
            return planned.astimezone(zone).date().isoformat()
    return now.astimezone(zone).date().isoformat()


def ray_job(template: dict[str, Any], name: str, night: str) -> dict[str, Any]:
    """The RayJob of a night."""
    metadata = template["metadata"]
    annotations = {key: value for key, value in metadata.get("annotations", {}).items() if key != _LAST_APPLIED}
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayJob",
        "metadata": {
            "name": name,
            "namespace": metadata["namespace"],
            "labels": {**metadata.get("labels", {}), "melanoma/night": night},
            "annotations": annotations,
        },
        "spec": template["spec"]["jobTemplate"],
    }


def longest_wait(job: dict[str, Any]) -> float:
    """Seconds after which even the last try of a RayJob must have ended."""
    spec = job["spec"]
    return float((spec.get("backoffLimit", 0) + 1) * spec["activeDeadlineSeconds"] + _SPARE_SECONDS)


def outcome_of(name: str, status: dict[str, Any]) -> Outcome | None:
    """How a RayJob ended; None while it has not."""
    state, job_status = status.get("jobDeploymentStatus", ""), status.get("jobStatus", "")
    reason = status.get("reason", "")
    # The first line only: behind it come lines of the job's log, which belong to the job's log.
    said = (status.get("message") or "").strip().partition("\n")[0][:300] or "the operator gives no message"
    if state == "ValidationFailed":
        return Outcome(REFUSED, f"{name} was refused by the operator: {said}")
    if state not in ("Complete", "Failed"):
        return None
    if state == "Complete" and job_status == "SUCCEEDED":
        return Outcome(DONE, f"{name} succeeded.")
    if job_status == "STOPPED":
        return Outcome(STOPPED, f"{name} was stopped by somebody.")
    if reason == "DeadlineExceeded":
        return Outcome(FAILED, f"{name} did not end within its activeDeadlineSeconds: {said}")
    found = re.search(r"exit code (-?\d+)", said)
    if found and int(found[1]) in _CODES_OF_A_JOB:
        return Outcome(int(found[1]), f"{name} failed with exit code {found[1]}: see the log of its run.")
    return Outcome(FAILED, f"{name} failed ({reason or 'no reason given'}): {said}")


def start(api: Api, template_name: str, job: str, zone: ZoneInfo) -> tuple[str, float]:
    """Make tonight's RayJob, unless it is there.

    Args:
        api: Where.
        template_name: Of the RayCronJob that it is made of.
        job: The name of the Job that this process belongs to.
        zone: In which days begin.

    Returns:
        Its name, and for how many seconds it is worth waiting for it.

    Raises:
        NightError: It cannot be made.
    """
    status, template = api.ask("GET", api.path("raycronjobs", template_name))
    if status != 200:
        raise NightError(REFUSED, f"the template {template_name} cannot be read: {_why(status, template)}")
    night = night_of(job, zone, datetime.now(UTC))
    name = f"{template_name}-{night}"
    if len(name) > _LONGEST_NAME:
        raise NightError(REFUSED, f"{name} has more than the {_LONGEST_NAME} characters that a RayJob's name may have.")
    made = ray_job(template, name, night)
    status, answer = api.ask("POST", api.path("rayjobs"), made)
    if status == 409:
        print(f"{name} is there already: waiting for its end.", flush=True)
    elif status in (200, 201):
        print(f"{name} was created: waiting for its end.", flush=True)
    else:
        raise NightError(REFUSED, f"{name} cannot be created: {_why(status, answer)}")
    return name, longest_wait(made)


def wait(api: Api, name: str, seconds: float, pause: float) -> Outcome:
    """Wait for the end of a RayJob.

    Args:
        api: Where.
        name: Of the RayJob.
        seconds: For how long, at most.
        pause: Seconds between two looks.

    Returns:
        How it ended, or that it was not seen to end.

    Raises:
        NightError: It cannot be read.
    """
    last, before = time.monotonic() + seconds, None
    while True:
        code, found = api.ask("GET", api.path("rayjobs", name))
        if code == 404:
            return Outcome(FAILED, f"{name} was deleted before its end was seen.")
        if code != 200:
            raise NightError(FAILED, f"{name} cannot be read: {_why(code, found)}")
        status = found.get("status") or {}
        ended = outcome_of(name, status)
        if ended:
            return ended
        state = status.get("jobDeploymentStatus") or "New"
        if state != before:
            print(f"{name} is {state}.", flush=True)
            before = state
        if time.monotonic() >= last:
            return Outcome(FAILED, f"{name} is still {state} after {seconds:.0f} seconds, and is watched no longer.")
        time.sleep(pause)


def _why(status: int, answer: dict[str, Any]) -> str:
    return f"HTTP {status}, {answer.get('message', 'without a message')}"


def _end_from_outside(*_: object) -> None:
    # As the first process of its container Python would ignore SIGTERM. This code lets Kubernetes start another pod.
    print("Ended from outside: the RayJob goes on, and the next pod waits for it.", flush=True)
    sys.exit(ENDED_FROM_OUTSIDE)


def main() -> int:
    host, port = os.environ.get("KUBERNETES_SERVICE_HOST", ""), os.environ.get("KUBERNETES_SERVICE_PORT", "443")
    host = f"[{host}]" if ":" in host else host
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--template", required=True, help="the RayCronJob that the RayJob is made of")
    parser.add_argument("--server", default=f"https://{host}:{port}", help="the API server")
    parser.add_argument("--account", type=Path, default=ACCOUNT, help="the folder of the service account")
    parser.add_argument("--pause", type=float, default=15, help="seconds between two looks")
    parser.add_argument("--patience", type=float, default=1800, help="seconds that the API server may be away")
    parser.add_argument("--longest", type=float, help="seconds to wait; otherwise what the template's tries may take")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, _end_from_outside)
    try:
        zone = ZoneInfo(os.environ.get("NIGHT_TIME_ZONE", "Etc/UTC"))
        api = Api(arguments.server, arguments.account, arguments.patience, arguments.pause)
    except (OSError, KeyError, ValueError) as error:
        print(f"The night cannot begin: the time zone or the service account is not there: {error}", flush=True)
        return REFUSED
    try:
        name, seconds = start(api, arguments.template, os.environ.get("NIGHT_JOB", ""), zone)
        ended = wait(api, name, seconds if arguments.longest is None else arguments.longest, arguments.pause)
    except NightError as error:
        print(f"The night was not seen to its end: {error}", flush=True)
        return error.code
    print(ended.sentence, flush=True)
    return ended.code


if __name__ == "__main__":
    sys.exit(main())
