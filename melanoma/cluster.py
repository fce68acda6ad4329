"""Ray, connected or started."""

import logging
import os
import secrets

import ray
import ray.data


def connect() -> None:
    """Join the cluster that ``RAY_ADDRESS`` names (`ray job submit` sets it), or start a Ray of this process's own.

    A local Ray has no dashboard, listens on loopback only and ends with the process.
    """
    quiet()
    # Ray prints an error for every pool of actors that Ray Data makes: https://github.com/ray-project/ray/issues/53727
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    if ray.is_initialized():
        return
    if os.environ.get("RAY_ADDRESS"):
        ray.init(log_to_driver=False, logging_level=logging.ERROR)
        return
    # Without one in the environment, Ray writes a token into the home folder, which a container may not let it.
    os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    ray.init(
        address="local",
        # Ray Data needs a core beside the one that a training worker holds.
        num_cpus=max(2, os.cpu_count() or 1),
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
        _node_ip_address="127.0.0.1",
    )


def disconnect() -> None:
    """Leave the cluster; a Ray that `connect` started ends."""
    ray.shutdown()


def quiet() -> None:
    """Ray Data's bars and plans are for debugging; the commands say their own progress."""
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # what it would say of an error, the error says
    logging.getLogger("ray.train").setLevel(logging.ERROR)


def cores() -> int:
    return max(1, int(ray.cluster_resources().get("CPU", 1)))
