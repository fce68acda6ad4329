"""A job on a Ray cluster: submitted, followed, and ended with its own exit code.

`ray job submit` makes 1 of every failure, and `ray job status` 0 of a job that failed; the code of the job itself is
`driver_exit_code` of what the cluster knows of it. A head that does not answer for a while is waited for.
"""

import asyncio
import logging
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from melanoma.errors import InputError, MelanomaError

PATIENCE = 300.0  # seconds for which a head that does not answer is waited for
_LOOK_EVERY = 1.0  # seconds
_TRIES = 100  # names of one job, of which each has failed


@dataclass(frozen=True)
class Job:
    """What a cluster is to run: a shell command in a copy of a folder, under a name that it has once.

    `packages`: a requirements file whose packages Ray installs on each node; None: what the cluster's Python has.
    """

    name: str
    command: str
    folder: str
    packages: str | None = None


def client(address: str) -> Any:
    """A `ray.job_submission.JobSubmissionClient`. Raises InputError where the cluster cannot be reached, does not take
    the token, or this Python lacks what a client needs."""
    try:
        import aiohttp  # noqa: F401
        import requests  # noqa: F401
        from ray.job_submission import JobSubmissionClient
    except ImportError as error:
        raise InputError(
            f"This Python lacks {error.name}, which submitting a job needs: pip install 'ray[default]'."
        ) from None
    # They say what is uploaded, and when a connection is closed.
    for name in ("dashboard.modules.dashboard_sdk", "dashboard.modules.job.sdk", "_private.runtime_env.packaging"):
        logging.getLogger(f"ray.{name}").setLevel(logging.ERROR)
    os.environ.pop("RAY_ADDRESS", None)  # the client would take it before `address`
    try:
        return JobSubmissionClient(address)
    except Exception as error:  # of requests, of Ray's authentication, and RuntimeError
        raise InputError(f"The cluster at {address} cannot be used: {_why_not(error)}.") from None


def _why_not(error: Exception) -> str:
    kind = type(error).__name__
    if kind == "AuthenticationError":
        return "it does not take this token (RAY_AUTH_MODE=token, RAY_AUTH_TOKEN)"
    if isinstance(error, ConnectionError) or kind in ("ConnectionError", "ConnectTimeout", "InvalidURL"):
        return "nothing answers there; start it with `ray start --head`, or give --address http://HOST:8265"
    return " ".join(str(error).split())[:300].rstrip(".") or kind


def submit(jobs: Any, job: Job, say: Callable[[str], None]) -> str:
    """Submit a job, unless it runs or has run under this name.

    Args:
        jobs: See `client`.
        job: What is run. Where a job of its name has failed, the next one is called NAME-2, NAME-3 and so on.
        say: Given one line.

    Returns:
        The name that it has.

    Raises:
        InputError: The cluster does not take it.
    """
    for number in range(1, _TRIES):
        name = job.name if number == 1 else f"{job.name}-{number}"
        try:
            there = _info(jobs, name)
        except RuntimeError as error:
            raise InputError(f"The cluster does not say whether {name} runs: {_why_not(error)}.") from None
        if there is None:
            environment: dict[str, Any] = {"working_dir": job.folder}
            if job.packages:
                environment["pip"] = job.packages
            try:
                jobs.submit_job(entrypoint=job.command, submission_id=name, runtime_env=environment)
            except Exception as error:
                raise InputError(f"The cluster does not take the job {name}: {_why_not(error)}.") from None
            say(f"Submitted as {name}.")
            return name
        if there.status.value not in ("FAILED", "STOPPED"):
            state = "has succeeded already" if there.status.is_terminal() else "runs already"
            say(f"A job {name} {state}: nothing was submitted.")
            return name
    raise InputError(f"{_TRIES} jobs called {job.name} have failed: look at their logs, and choose another name.")


def _info(jobs: Any, name: str) -> Any:
    """What the cluster knows of a job; None where it knows none of this name."""
    try:
        return jobs.get_job_info(name)
    except RuntimeError as error:
        if "404" in str(error) or "does not exist" in str(error):
            return None
        raise


def follow(jobs: Any, name: str, write: Callable[[str], None], patience: float = PATIENCE) -> int:
    """Write what a job prints until it ends.

    Args:
        jobs: See `client`.
        name: Of the job.
        write: Given what the job prints, each part once.
        patience: Seconds for which a head that does not answer is waited for.

    Returns:
        The job's own exit code.

    Raises:
        MelanomaError: The head does not answer, knows the job no more, or the job was stopped or died.
    """
    log = _Log(write)
    answered = time.monotonic()
    while True:
        try:
            asyncio.run(_tail(jobs, name, log))
            info = _info(jobs, name)
        except Exception as error:  # of aiohttp, of requests, and RuntimeError where a connection broke off
            if time.monotonic() - answered > patience:
                raise MelanomaError(
                    f"The cluster has not answered for {patience:.0f} seconds ({_why_not(error)}). The job may go on: "
                    f"the same command with --submission-id {name} follows it."
                ) from None
            time.sleep(_LOOK_EVERY)
            continue
        answered = time.monotonic()
        if info is None:
            raise MelanomaError(f"The cluster knows no job {name} any more: its head was started anew.")
        if info.status.is_terminal():
            break
        time.sleep(_LOOK_EVERY)
    log.whole(jobs.get_job_logs(name))
    return _exit_code(name, info)


class _Log:
    """What a job has printed: each time that it is read again, it is read from its beginning."""

    def __init__(self, write: Callable[[str], None]) -> None:
        self._write, self._written = write, 0

    def part(self, text: str, place: int) -> int:
        """Write what of the text at a place is new; returns the place after it."""
        end = place + len(text)
        if end > self._written:
            self._write(text[max(0, self._written - place) :])
            self._written = end
        return end

    def whole(self, text: str) -> None:
        self.part(text, 0)


async def _tail(jobs: Any, name: str, log: _Log) -> None:
    place = 0
    async for text in jobs.tail_job_logs(name):
        place = log.part(text, place)


def _exit_code(name: str, info: Any) -> int:
    if info.status.value == "SUCCEEDED":
        return 0
    code: int | None = info.driver_exit_code
    if info.status.value == "FAILED" and code is not None and code > 0:
        return code
    why = " ".join(str(info.message or "").split())[:300]
    raise MelanomaError(f"The job {name} {'was stopped' if info.status.value == 'STOPPED' else 'died'}. {why}".strip())
