"""Ray, connected or started."""

import logging
import os
import secrets
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

import joblib
import ray
import ray.data
import tenacity

from melanoma import errors, quiet
from melanoma.errors import InputError, MelanomaError, redacted

STARTED_HERE: dict[str, Any] = {
    "address": "local",
    # Of the container, where one limits them. Ray Data needs a core beside the one that a training worker holds.
    "num_cpus": max(2, joblib.cpu_count()),
    "include_dashboard": False,
}
# Read when Ray's processes start: a worker that Ray gives no GPU sees none (else all of its node's).
_VARIABLES = {"RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1"}
# How often Ray waits for a head that does not answer, 41 seconds each time: else 20 times.
_TRIES = "RAY_gcs_server_port_wait_time_s"
_HEAD_STARTS = 15.0  # seconds for which a head that answers with an error is tried again
# Ray ends a process, without a word, whose head has been silent for 60 seconds, or whose node has died 12 seconds ago.
_HEAD_SILENT = 45.0
_NODE_DEAD = 1.0


def connect() -> None:
    """Join the cluster that ``RAY_ADDRESS`` names (`ray job submit` sets it), or start a Ray of this process's own.

    A local Ray has no dashboard, answers only those who have its token (Ray listens on all interfaces, whatever address
    it is given), and ends with the process. Raises InputError, within a minute, where Ray can be neither.
    """
    _quiet_ray_data()
    if ray.is_initialized():
        return
    # Ray prints an error for every pool of actors that Ray Data makes: https://github.com/ray-project/ray/issues/53727
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    # What Ray hears of workers that died it prints to standard output, in colour, whatever `log_to_driver` says.
    ray._private.worker.print_to_stdstream = lambda data, ignore_prefix: None
    with quiet.native_stderr():
        if address := cluster_address():
            _join(address)
        else:
            _start()
    if not (address or "").startswith("ray://"):  # such a driver has no part in the cluster
        _watch()


def cluster_address() -> str | None:
    """What `connect` joins; None: it starts a Ray of its own, which gets no further machines."""
    return os.environ.get("RAY_ADDRESS") or None


def disconnect() -> None:
    """Leave the cluster; a Ray that `connect` started ends."""
    ray.shutdown()


def _join(address: str) -> None:
    once = _TRIES not in os.environ
    if once:
        os.environ[_TRIES] = "1"
    tries = tenacity.Retrying(
        retry=tenacity.retry_if_exception_type(ConnectionError),
        stop=tenacity.stop_after_delay(_HEAD_STARTS),
        wait=tenacity.wait_fixed(1),
        before_sleep=lambda state: ray.shutdown(),  # or what is left of it passes for a connection
        reraise=True,
    )
    try:
        tries(ray.init, log_to_driver=False, logging_level=logging.ERROR)
    except Exception as error:
        ray.shutdown()
        raise InputError(
            f"The Ray cluster at RAY_ADDRESS={address} cannot be used: {why_not(address, error)}. Correct it, or "
            "unset it for a Ray on this machine."
        ) from None
    finally:
        if once:  # a Ray that starts takes it for seconds to start in
            del os.environ[_TRIES]


def why_not(address: str, error: Exception) -> str:
    """In one line, why the cluster cannot be joined."""
    if not isinstance(error, ConnectionError):
        return _in_one_line(error)
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit():
        return _in_one_line(error)
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
    except OSError as refused:
        return (refused.strerror or str(refused)).lower()
    return "it does not answer as a Ray of this version with this token does (RAY_AUTH_MODE, RAY_AUTH_TOKEN)"


def _start() -> None:
    for name, value in _VARIABLES.items():
        os.environ.setdefault(name, value)
    # Without one in the environment, Ray writes a token into the home folder, which a container may forbid.
    os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    try:
        ray.init(log_to_driver=False, logging_level=logging.ERROR, **STARTED_HERE)
    except Exception as error:
        ray.shutdown()
        raise InputError(
            f"Ray cannot start on this machine: {_in_one_line(error)}. It needs free space in /tmp and /dev/shm, free "
            "ports, and some thousand open files (ulimit -n)."
        ) from None


def _watch() -> None:
    """In a thread, say that the Ray of this process has gone, just before Ray ends the process without a word."""
    worker = ray._private.worker.global_worker
    head, own = worker.gcs_client, worker.current_node_id.hex()
    (node,) = [node for node in ray.nodes() if node["NodeID"] == own]
    address = (node["NodeManagerAddress"], node["NodeManagerPort"])
    checks: list[tuple[str, float, Callable[[], Any]]] = [
        ("its node here has died", _NODE_DEAD, lambda: socket.create_connection(address, timeout=5).close()),
        (f"its head has not answered for {_HEAD_SILENT:.0f} seconds", _HEAD_SILENT, lambda: head.check_alive([], 5)),
    ]

    def look() -> None:
        failing: dict[str, float] = {}  # since when
        while ray.is_initialized() and worker.gcs_client is head:
            for what, limit, check in checks:
                try:
                    check()
                    failing.pop(what, None)
                except Exception:
                    now = time.monotonic()
                    if now - failing.setdefault(what, now) > limit and ray.is_initialized():
                        _end(what)
                        return
            time.sleep(0.5)

    threading.Thread(target=look, daemon=True).start()


def _end(what: str) -> None:
    """A command ends; to the process of somebody else nothing is done here."""
    where = f" at {cluster_address()}" if cluster_address() else ""
    follows = "The same command tries again" if errors.is_command else "It ends this process in some seconds"
    print(redacted(f"melanoma: Ray{where} is gone: {what}. {follows}."), file=sys.stderr, flush=True)
    if errors.is_command:
        os._exit(MelanomaError.exit_code)


def _in_one_line(error: Exception) -> str:
    words = " ".join(str(error).split()) or type(error).__name__
    return words[:300].rstrip(".:")


def _quiet_ray_data() -> None:
    """Ray Data's bars and plans are for debugging; the commands say their own progress."""
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # what it would say of an error, the error says
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    logging.getLogger("ray.train").setLevel(logging.ERROR)


def cores() -> int:
    return max(1, int(ray.cluster_resources().get("CPU", 1)))


def nodes(labels: Mapping[str, str]) -> list[dict[str, float]]:
    """The resources of each node that runs and has these labels."""
    alive = [node for node in ray.nodes() if node["Alive"]]
    return [node["Resources"] for node in alive if labels.items() <= node["Labels"].items()]


def gpus(labels: Mapping[str, str]) -> int:
    """Those of the nodes with these labels."""
    return int(sum(node.get("GPU", 0) for node in nodes(labels)))
