"""A cluster that Ray's own autoscaler grows and shrinks, on this machine: its nodes are processes."""

import contextlib
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ray.autoscaler._private.fake_multi_node.node_provider import FAKE_HEAD_NODE_ID, FakeMultiNodeProvider

_LISTS = ("initialization", "setup", "head_setup", "worker_setup", "head_start_ray", "worker_start_ray")


class FakeCloud(FakeMultiNodeProvider):
    """Ray's provider of fake nodes as one of `type: external`: its own type needs a file that the wheel lacks.

    It has room for `most` nodes, and brings each `late` seconds after it was asked for.
    """

    def create_node_with_resources_and_labels(
        self, node_config: Any, tags: Any, count: int, resources: Any, labels: Any
    ) -> None:
        time.sleep(self.provider_config["late"])
        for _ in range(count):
            if len(self._nodes) > self.provider_config["most"]:  # the head is one of them
                raise RuntimeError("InsufficientInstanceCapacity")
            super().create_node_with_resources_and_labels(node_config, tags, 1, resources, labels)


@contextlib.contextmanager
def autoscaled(folder: Path, node_types: dict[str, Any], most: int = 8, late: float = 0.0) -> Iterator[str]:
    """A head without cores, and nodes as they are needed, gone after 6 idle seconds.

    Args:
        folder: Where its configuration and what it says are written.
        node_types: As in `available_node_types` of Ray's cluster launcher.
        most: Nodes that the cloud has room for.
        late: Seconds that it takes for a node, besides what the node itself does.

    Yields:
        Its address.
    """
    port, agent, client = _free_ports(3)
    address = f"{socket.gethostbyname(socket.gethostname())}:{port}"
    provider = {
        "type": "external",
        "module": f"{__name__}.{FakeCloud.__name__}",
        "gcs_address": address,
        "head_node_id": FAKE_HEAD_NODE_ID,
        "most": most,
        "late": late,
        **dict.fromkeys(
            ("launch_multiple", "use_node_id_as_ip", "disable_node_updaters", "disable_launch_config_check"), True
        ),
    }
    head = {"ray.head.default": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0}}
    written = {
        "cluster_name": "fake",
        "max_workers": 8,
        "idle_timeout_minutes": 0.1,
        "upscaling_speed": 1.0,
        "provider": provider,
        "available_node_types": {**head, **node_types},
        "head_node_type": "ray.head.default",
        **{f"{name}_commands": [] for name in _LISTS},
        **{key: [] for key in ("cluster_synced_files", "rsync_exclude", "rsync_filter")},
        **{key: {} for key in ("auth", "docker", "file_mounts")},
        "file_mounts_sync_continuously": False,
    }
    (folder / "cluster.json").write_text(json.dumps(written))
    environment = {
        **os.environ,
        "PYTHONPATH": str(Path(__file__).parents[2]),
        # As in this process; else it is on where the home folder has a token, and drivers do not know.
        "RAY_AUTH_MODE": os.environ.get("RAY_AUTH_MODE", "disabled"),
        "AUTOSCALER_UPDATE_INTERVAL_S": "1",
        "RAY_FAKE_CLUSTER": "1",
        "RAY_enable_autoscaler_v2": "1",
        "RAY_CLOUD_INSTANCE_ID": FAKE_HEAD_NODE_ID,
        "RAY_OVERRIDE_NODE_ID_FOR_TESTING": FAKE_HEAD_NODE_ID,
    }
    words = [str(Path(sys.executable).with_name("ray")), "start", "--head", f"--port={port}", "--num-cpus=0", "--block"]
    words += ["--include-dashboard=false", "--disable-usage-stats", f"--autoscaling-config={folder}/cluster.json"]
    words += [f"--dashboard-agent-listen-port={agent}", f"--ray-client-server-port={client}"]
    # Of a short name: Ray makes sockets in it.
    with (
        tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as temporary,
        (folder / "cluster.log").open("w") as log,
        subprocess.Popen([*words, f"--temp-dir={temporary}"], env=environment, stdout=log, stderr=log) as ray,
    ):
        try:
            _wait_for(port, ray)
            yield address
        finally:
            ray.terminate()
            ray.wait(60)


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        free = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in free:
            each.bind(("", 0))
        return [each.getsockname()[1] for each in free]


def _wait_for(port: int, ray: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 60
    while True:
        with contextlib.suppress(OSError):
            return socket.create_connection(("127.0.0.1", port), timeout=1).close()
        assert ray.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.2)
