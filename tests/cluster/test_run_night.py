"""The waiting pod of a night, against a small API server: what it makes, what it says, and what it exits with."""

import os
import runpy
import signal
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from tests.support import kubernetes_api
from tests.support.kubernetes_api import KubernetesApi
from tests.support.manifests import KUBERAY, build, chosen, faults

SCRIPT = KUBERAY / "base" / "run_night.py"
PLANNED = datetime.now(UTC).replace(hour=21, minute=30, second=0, microsecond=0)
NIGHT = f"melanoma-night-{PLANNED.date().isoformat()}"
RUNNING = {"jobDeploymentStatus": "Running", "jobStatus": "RUNNING"}
SUCCEEDED = {"jobDeploymentStatus": "Complete", "jobStatus": "SUCCEEDED"}


def failed(said: str, reason: str = "AppFailed") -> dict[str, Any]:
    return {"jobDeploymentStatus": "Failed", "jobStatus": "FAILED", "reason": reason, "message": said}


@pytest.fixture(scope="module")
def manifests() -> list[dict[str, Any]]:
    return build(KUBERAY / "overlays" / "cpu")


@pytest.fixture
def api(tmp_path: Path, manifests: list[dict[str, Any]]) -> Iterator[KubernetesApi]:
    with kubernetes_api.serve(tmp_path) as server:
        server.template = chosen(manifests, "RayCronJob")
        server.statuses = [{}, RUNNING, SUCCEEDED]
        yield server


def begin(api: KubernetesApi, *options: str, job: str = "", zone: str = "Etc/UTC") -> subprocess.Popen[str]:
    job = job or f"melanoma-night-{int(PLANNED.timestamp()) // 60}"
    words = ["--template", "melanoma-night", "--server", api.url, "--account", str(api.account), "--pause", "0.01"]
    environment = {**os.environ, "NIGHT_JOB": job, "NIGHT_TIME_ZONE": zone}
    return subprocess.Popen(
        [sys.executable, str(SCRIPT), *words, *options], env=environment, stdout=subprocess.PIPE, text=True
    )


def run(api: KubernetesApi, *options: str, job: str = "", zone: str = "Etc/UTC") -> tuple[int, list[str]]:
    """The exit code and what was said, line by line."""
    with begin(api, *options, job=job, zone=zone) as process:
        said = process.communicate()[0]
    return process.returncode, said.splitlines()


def test_a_night_is_made_from_its_template_and_waited_for(api: KubernetesApi) -> None:
    code, said = run(api)
    assert (code, said) == (
        0,
        [
            f"{NIGHT} was created: waiting for its end.",
            f"{NIGHT} is New.",
            f"{NIGHT} is Running.",
            f"{NIGHT} succeeded.",
        ],
    )
    (job,) = api.jobs.values()
    assert faults(job) == []
    assert job["metadata"]["labels"]["melanoma/night"] == PLANNED.date().isoformat()
    assert api.template is not None
    assert job["spec"] == api.template["spec"]["jobTemplate"]


def test_it_asks_for_nothing_that_its_role_does_not_allow(api: KubernetesApi, manifests: list[dict[str, Any]]) -> None:
    run(api)
    role = chosen(manifests, "Role", "melanoma-run-night")
    allowed = {(verb, kind) for rule in role["rules"] for verb in rule["verbs"] for kind in rule["resources"]}
    assert set(api.asked) == allowed


@pytest.mark.parametrize(
    ("status", "code", "said"),
    [
        (failed("Job entrypoint command failed with exit code 3, last available logs:\nPAT-0815"), 3, "exit code 3"),
        (failed("Job entrypoint command failed with exit code 2, last available logs:"), 2, "exit code 2"),
        (failed("Job entrypoint command failed with exit code 1, last available logs:"), 1, "exit code 1"),
        # No code that the CronJob knows as final, or that would look like success.
        (failed("Job entrypoint command failed with exit code 137, last available logs:"), 3, "exit code 137"),
        (failed("Job entrypoint command failed with exit code 0, last available logs:"), 3, "exit code 0"),
        (failed("", "SubmissionFailed"), 3, "SubmissionFailed"),
        (failed("the driver is gone\nscoring PAT-0815"), 3, "failed (AppFailed): the driver is gone"),
        (failed("over its time", "DeadlineExceeded"), 3, "did not end within its activeDeadlineSeconds"),
        ({"jobDeploymentStatus": "Complete", "jobStatus": "STOPPED"}, 130, "was stopped by somebody"),
        ({"jobDeploymentStatus": "ValidationFailed", "message": "no name"}, 2, "was refused by the operator: no name"),
        (None, 3, "was deleted before its end was seen"),
    ],
)
def test_it_exits_as_the_job_did(status: dict[str, Any] | None, code: int, said: str, api: KubernetesApi) -> None:
    api.statuses = [RUNNING, {"jobDeploymentStatus": "Retrying"}, RUNNING, status]
    found, lines = run(api)
    assert (found, said in lines[-1]) == (code, True), lines
    # The operator's message carries lines of the job's log, which may name patients.
    assert "PAT-0815" not in "\n".join(lines)


def test_a_night_that_is_there_already_is_waited_for_and_not_made_twice(api: KubernetesApi) -> None:
    mine = {"metadata": {"name": NIGHT}, "spec": {"entrypoint": "mine"}}
    api.jobs[NIGHT] = mine
    code, said = run(api)
    assert (code, said[0]) == (0, f"{NIGHT} is there already: waiting for its end.")
    assert api.jobs == {NIGHT: mine}


def test_an_api_server_that_is_away_for_a_while_ends_no_night(api: KubernetesApi) -> None:
    api.troubles = [0, 503, 0]
    api.statuses = [RUNNING, SUCCEEDED]
    assert run(api)[0] == 0
    api.troubles = [0, 500, 429]  # and now in the middle of the waiting
    api.statuses = [RUNNING, RUNNING, SUCCEEDED]
    assert run(api)[0] == 0
    assert list(api.jobs) == [NIGHT]


def test_a_night_whose_creation_was_not_confirmed_is_not_made_twice(api: KubernetesApi) -> None:
    api.lost_answers = 1
    code, said = run(api)
    assert (code, said[0]) == (0, f"{NIGHT} is there already: waiting for its end.")
    assert [asked for asked in api.asked if asked[0] == "create"] == [("create", "rayjobs")] * 2


def test_an_api_server_that_stays_away_fails_the_night(api: KubernetesApi) -> None:
    api.troubles = [503] * 10_000
    code, said = run(api, "--patience", "0.1")
    assert code == 3
    assert said == ["The night was not seen to its end: the API server gave no answer for 0 seconds (HTTP 503)."]


def test_a_token_that_has_run_out_is_read_anew(api: KubernetesApi) -> None:
    api.token, api.renewed_token = "second", "third"
    assert run(api)[0] == 0
    assert (api.account / "token").read_text() == "third"


def test_a_night_that_does_not_end_is_given_up(api: KubernetesApi) -> None:
    api.statuses = [RUNNING]
    code, said = run(api, "--longest", "0.05")
    assert (code, said[-1]) == (3, f"{NIGHT} is still Running after 0 seconds, and is watched no longer.")


def test_a_pod_that_is_ended_from_outside_leaves_the_night_to_the_next(api: KubernetesApi) -> None:
    api.statuses = [RUNNING]
    with begin(api) as process:
        assert api.looked.wait(60)
        process.send_signal(signal.SIGTERM)
        said = process.communicate()[0].splitlines()
    assert process.returncode == 143
    assert said[-1] == "Ended from outside: the RayJob goes on, and the next pod waits for it."


def test_without_its_template_or_with_one_that_is_refused_nothing_begins(api: KubernetesApi) -> None:
    api.refusal = (422, "spec.entrypoint: Invalid value")
    code, said = run(api)
    assert (code, said) == (
        2,
        [f"The night was not seen to its end: {NIGHT} cannot be created: HTTP 422, spec.entrypoint: Invalid value"],
    )
    api.template = None
    code, said = run(api)
    assert code == 2
    assert "the template melanoma-night cannot be read: HTTP 404" in said[0]
    assert api.jobs == {}


def test_without_an_account_or_a_time_zone_nothing_begins(api: KubernetesApi) -> None:
    assert run(api, zone="Nowhere/Town")[0] == 2
    (api.account / "namespace").unlink()
    code, said = run(api)
    assert (code, len(said)) == (2, 1)
    assert api.asked == []


@pytest.mark.parametrize(
    ("planned", "zone", "night"),
    [
        ("2026-11-27T21:30+00:00", "Etc/UTC", "2026-11-27"),
        ("2026-11-27T21:30+00:00", "Asia/Tokyo", "2026-11-28"),
        ("2026-11-27T01:30+00:00", "America/New_York", "2026-11-26"),
    ],
)
def test_a_night_is_named_by_the_day_for_which_it_was_planned(planned: str, zone: str, night: str) -> None:
    night_of = runpy.run_path(str(SCRIPT))["night_of"]
    minute = int(datetime.fromisoformat(planned).timestamp()) // 60
    # Three hours late, after midnight: a pod that is started anew has to find the RayJob of the one before.
    late = datetime.fromtimestamp(minute * 60 + 3 * 3600, UTC)
    assert night_of(f"melanoma-night-{minute}", ZoneInfo(zone), late) == night
    # Jobs that were made by hand are named by somebody, with numbers that are no minutes.
    today = late.astimezone(ZoneInfo(zone)).date().isoformat()
    assert {night_of(name, ZoneInfo(zone), late) for name in ("by-hand", "by-hand-20261127", "")} == {today}
