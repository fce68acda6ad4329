"""Ray, connected or started."""

import logging
import os
import secrets
from typing import Any

import ray
import ray.data

from melanoma import quiet

STARTED_HERE: dict[str, Any] = {
    "address": "local",
    # Ray Data needs a core beside the one that a training worker holds.
    "num_cpus": max(2, os.cpu_count() or 1),
    "include_dashboard": False,
}


def connect() -> None:
    """Join the cluster that ``RAY_ADDRESS`` names (`ray job submit` sets it), or start a Ray of this process's own.

    A local Ray has no dashboard, answers only those who have its token (Ray listens on all interfaces, whatever address
    it is given), and ends with the process.
    """
    _quiet_ray_data()
    if ray.is_initialized():
        return
    # Ray prints an error for every pool of actors that Ray Data makes: https://github.com/ray-project/ray/issues/53727
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    address = {} if os.environ.get("RAY_ADDRESS") else STARTED_HERE
    if address:
        # Without one in the environment, Ray writes a token into the home folder, which a container may forbid.
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    with quiet.native_stderr():
        ray.init(log_to_driver=False, logging_level=logging.ERROR, **address)


def disconnect() -> None:
    """Leave the cluster; a Ray that `connect` started ends."""
    ray.shutdown()


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


def gpus() -> int:
    return int(ray.cluster_resources().get("GPU", 0))
