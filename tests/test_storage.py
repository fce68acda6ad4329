import http.server
import os
import random
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from melanoma import storage
from melanoma.demo.local_s3 import LocalS3, serve
from melanoma.errors import InputError
from melanoma.storage import Store, UnavailableError
from tests.support.faulty_proxy import FaultyProxy, Outage, faulty_proxy

AWKWARD_NAMES = [
    "a b.jpg",
    " both ends ",
    "a#b.jpg",
    "a?b=c&d.jpg",
    "100%.jpg",
    "a%20b.jpg",
    "a+b.jpg",
    'it\'s "q".jpg',
    "a[1]{2}(3).jpg",
    "a*b|c<d>\\e;f,g:h@i!$.jpg",
    "Melanom-Übersicht é.jpg",
    "e\u0301 decomposed.jpg",
    "皮膚 🔬.jpg",
    ".hidden",
    "~",
    "sub folder/#1/x.jpg",
]


@pytest.fixture(params=["local", "s3"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty place to write to: a folder and a bucket."""
    return str(tmp_path) if request.param == "local" else f"s3://{request.getfixturevalue('bucket')}"


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Sets environment variables (None unsets one), which the next call of `storage` sees."""

    def change(**variables: str | None) -> None:
        for name, value in variables.items():
            if value is None:
                monkeypatch.delenv(name, raising=False)
            else:
                monkeypatch.setenv(name, value)
        storage.forget_client()

    yield change
    monkeypatch.undo()
    storage.forget_client()


def uris(uri: str) -> list[str]:
    return [info.uri for info in storage.list_objects(uri)]


# --- URIs ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("uri", "normal"),
    [
        ("s3://bucket", "s3://bucket"),
        ("s3://bucket/", "s3://bucket"),
        ("s3://bucket/prefix/", "s3://bucket/prefix"),
        ("s3://bucket/a#b?c%20d+e", "s3://bucket/a#b?c%20d+e"),
        ("/data/", "/data"),
        ("/data//x/../y", "/data/y"),
        ("file:///data/a%20b", "/data/a b"),
        ("file:///data/a#b", "/data/a#b"),
        ("file://localhost/data", "/data"),
        ("/data/a%20b#c?d", "/data/a%20b#c?d"),
    ],
)
def test_one_spelling_of_a_uri(uri: str, normal: str) -> None:
    assert storage.normalize(uri) == normal
    assert storage.normalize(normal) == normal


def test_local_paths_become_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert storage.normalize("data") == f"{tmp_path}/data"
    assert storage.normalize(".") == str(tmp_path)
    assert storage.normalize("~/data") == f"{tmp_path}/home/data"


@pytest.mark.parametrize(
    "uri", ["", "s3://", "s3:///key", "s3:/bucket/key", "S3://bucket", "http://host/x", "file://x"]
)
def test_other_uris_are_refused_with_a_hint(uri: str) -> None:
    with pytest.raises(InputError, match=r"s3://bucket/prefix|s3:// URI") as caught:
        storage.normalize(uri)
    assert repr(uri) in str(caught.value) or not uri


def test_credentials_in_a_uri_are_refused_and_not_repeated() -> None:
    for uri in ("s3://KEY:SECRET@bucket/x", "s3://KEY:SE/CRET@bucket/x", "s3://SECRET@bucket", "s3:/KEY:SECRET@bucket"):
        with pytest.raises(InputError, match=r"\*\*\*@bucket") as caught:
            storage.normalize(uri)
        assert "SE" not in str(caught.value).replace("AWS_SECRET_ACCESS_KEY", "")
    arn = "s3://arn:aws:s3:eu-west-1:1:accesspoint/name"
    assert storage.normalize(arn) == arn


def test_what_is_below_a_folder_is_so_by_any_name(tmp_path: Path) -> None:
    (tmp_path / "archive" / "sub").mkdir(parents=True)
    (tmp_path / "link").symlink_to("archive")
    (tmp_path / "archive" / "away").symlink_to(tmp_path)
    (tmp_path / "archive-2").mkdir()
    names = ["archive", "archive/sub", "archive/none/yet", "link", "link/sub/none", "archive/away/link/x"]
    for name in names:
        for folder in ("archive", "link"):
            assert storage.is_below(str(tmp_path / name), str(tmp_path / folder)), name
    for name in ("archive-2", "archive/away", "archive/away/none", "none"):
        assert not storage.is_below(str(tmp_path / name), str(tmp_path / "link")), name
    assert storage.is_below("s3://bucket/a/b", "s3://bucket/a")
    assert not storage.is_below("s3://bucket/ab", "s3://bucket/a")
    assert not storage.is_below("s3://bucket/a", str(tmp_path))


# --- both kinds of store ---------------------------------------------------------------------------------------------


def test_awkward_names_make_the_round_trip(folder: str) -> None:
    wanted = {storage.join(folder, name): name.encode() * 3 for name in AWKWARD_NAMES}
    for uri, data in wanted.items():
        assert not storage.exists(uri)
        storage.write_bytes(uri, data)
    listed = list(storage.list_objects(folder))
    assert sorted(info.uri for info in listed) == sorted(wanted)
    for info in listed:
        assert storage.exists(info.uri)
        assert storage.read_bytes(info.uri) == wanted[info.uri]
        assert info.size == len(wanted[info.uri])
        # One object can be an archive, too.
        assert list(storage.list_objects(info.uri)) == [info]


def test_a_prefix_is_a_folder_and_not_a_beginning(folder: str) -> None:
    for name in ("archive/1", "archive/sub/2", "archive-2/3", "archive.jpg", "archiv/4"):
        storage.write_bytes(storage.join(folder, name), b"x")
    wanted = [storage.join(folder, "archive", name) for name in ("1", "sub/2")]
    assert uris(storage.join(folder, "archive")) == wanted
    assert uris(storage.join(folder, "archive/")) == wanted
    assert uris(storage.join(folder, "archive.jpg")) == [storage.join(folder, "archive.jpg")]


def test_a_listing_is_the_same_each_time_and_tells_of_changes(folder: str) -> None:
    for name in ("b", "a/2", "a/10", "a-1", "B", "é"):
        storage.write_bytes(storage.join(folder, name), b"x")
    before = list(storage.list_objects(folder))
    assert list(storage.list_objects(folder)) == before
    storage.write_bytes(storage.join(folder, "b"), b"y")  # of the same size
    changed = [new.uri for old, new in zip(before, storage.list_objects(folder), strict=True) if old != new]
    assert changed == [storage.join(folder, "b")]


def test_reading_stops_one_byte_after_the_limit(folder: str) -> None:
    uri = storage.join(folder, "object")
    storage.write_bytes(uri, bytes(range(100)))
    assert storage.read_bytes(uri, limit=40) == bytes(range(41))
    assert storage.read_bytes(uri, limit=0) == b"\0"
    for limit in (100, 1000, None):
        assert storage.read_bytes(uri, limit) == bytes(range(100))


def test_an_object_may_be_empty(folder: str) -> None:
    uri = storage.join(folder, "empty")
    storage.write_bytes(uri, b"")
    assert storage.read_bytes(uri) == storage.read_bytes(uri, limit=5) == b""
    assert [info.size for info in storage.list_objects(folder)] == [0]


def test_a_missing_object_is_named(folder: str) -> None:
    uri = storage.join(folder, "no such#object")
    assert not storage.exists(uri)
    with pytest.raises(FileNotFoundError) as caught:
        storage.read_bytes(uri)
    assert str(caught.value) == f"{uri} does not exist."


@pytest.mark.parametrize("name", ["a\0b", "half a surrogate pair \ud83d", "x" * 2000])
def test_an_impossible_name_is_an_object_that_cannot_be_read(folder: str, name: str) -> None:
    with pytest.raises(OSError, match=r"does not exist|cannot be the name|too long|failed for"):
        storage.read_bytes(storage.join(folder, name))


def test_many_threads_read_at_once(folder: str) -> None:
    storage.forget_client()
    wanted = {storage.join(folder, str(number)): bytes([number]) * 1000 for number in range(40)}
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda item: storage.write_bytes(*item), wanted.items()))
        assert list(pool.map(storage.read_bytes, wanted)) == list(wanted.values())


def test_json_makes_the_round_trip(folder: str) -> None:
    uri = storage.join(folder, "sub", "x.json")
    storage.write_json(uri, {"naïve": [1, 2.5, None, "皮"]})
    assert storage.read_json(uri) == {"naïve": [1, 2.5, None, "皮"]}
    assert "皮".encode() in storage.read_bytes(uri)
    with pytest.raises(ValueError, match="not JSON compliant"):
        storage.write_json(uri, float("nan"))


def test_tables_make_the_round_trip(folder: str) -> None:
    table = pa.table({"a": [1, 2, None], "b": ["x", None, "é"]})
    uri = storage.join(folder, "x.parquet")
    storage.write_table(uri, table)
    assert storage.read_table(uri).equals(table)
    assert storage.read_table(uri, ["b"]).column_names == ["b"]
    # As Ray reads it.
    filesystem, path = storage.arrow_filesystem(uri)
    assert pq.read_table(path, filesystem=filesystem).equals(table)


def test_a_table_that_is_none_is_bad_input(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    storage.write_table(str(path), pa.table({"a": list(range(1000)), "b": ["text"] * 1000}))
    good = path.read_bytes()
    generator = random.Random(0)
    refused = 0
    for _ in range(300):
        bad = bytearray(good)
        for _ in range(3):
            bad[generator.randrange(len(bad))] = generator.randrange(256)
        path.write_bytes(bad)
        try:
            storage.read_table(str(path))
        except InputError:
            refused += 1
    assert refused > 150
    for content in (b"", b"PAR1", b"a,b\n1,2\n", good[:-5]):
        path.write_bytes(content)
        with pytest.raises(InputError, match="not a Parquet file"):
            storage.read_table(str(path))
    with pytest.raises(FileNotFoundError):
        storage.read_table(str(tmp_path / "none.parquet"))


# --- files -----------------------------------------------------------------------------------------------------------


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=f"^{tmp_path}/none does not exist"):
        uris(str(tmp_path / "none"))


def test_odd_files_are_listed_and_end_as_errors(tmp_path: Path) -> None:
    (tmp_path / "good").write_bytes(b"x")
    (tmp_path / "dangling").symlink_to("nowhere")
    (tmp_path / "loop").symlink_to("loop")
    os.mkfifo(tmp_path / "fifo")
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/not \xff utf-8")).write_bytes(b"x")
    listed = [info.uri.removeprefix(f"{tmp_path}/") for info in storage.list_objects(str(tmp_path))]
    assert sorted(listed) == ["dangling", "fifo", "good", "loop", "not \\xff utf-8"]
    for name in sorted(set(listed) - {"good"}):
        name.encode()
        with pytest.raises(OSError, match=r"does not exist|not a regular file|too many levels"):
            storage.read_bytes(str(tmp_path / name))


def test_a_folder_or_device_is_no_object(tmp_path: Path) -> None:
    for path in (tmp_path, "/dev/zero"):
        with pytest.raises(OSError, match="is not a regular file"):
            storage.read_bytes(str(path))


def test_a_failed_write_leaves_what_was_there(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(IsADirectoryError, match=f"^{tmp_path}/folder: is a directory"):
        storage.write_bytes(str(tmp_path / "folder"), b"new")
    (tmp_path / "file").write_bytes(b"old")
    with pytest.raises(TypeError):
        storage.write_bytes(str(tmp_path / "file"), "not bytes")  # type: ignore[arg-type]
    assert (tmp_path / "file").read_bytes() == b"old"
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "folder"]


def test_a_file_where_a_folder_should_be_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    for name in ("file/x", "file/sub/x"):
        with pytest.raises(OSError, match=rf"^{tmp_path}/{name}: (file exists|not a directory)\.$"):
            storage.write_bytes(str(tmp_path / name), b"x")
    with pytest.raises(NotADirectoryError, match="not a directory"):
        storage.read_bytes(str(tmp_path / "file" / "x"))


def test_the_longest_name_can_be_written(tmp_path: Path) -> None:
    storage.write_bytes(str(tmp_path / ("a" * 255)), b"x")
    assert [path.name for path in tmp_path.iterdir()] == ["a" * 255]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_what_may_not_be_read_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "closed").mkdir(mode=0)
    (tmp_path / "secret").touch(mode=0)
    with pytest.raises(PermissionError):
        uris(str(tmp_path))
    with pytest.raises(PermissionError, match="permission denied"):
        storage.read_bytes(str(tmp_path / "secret"))


# --- S3 --------------------------------------------------------------------------------------------------------------


def test_a_listing_goes_on_after_a_thousand_keys(s3: LocalS3, bucket: str) -> None:
    (s3.root / bucket / "archive").mkdir()
    for number in range(1203):
        (s3.root / bucket / "archive" / f"{number:04d} #.jpg").write_bytes(b"")
    assert uris(f"s3://{bucket}/archive") == [f"s3://{bucket}/archive/{number:04d} #.jpg" for number in range(1203)]


def test_an_unknown_prefix_lists_nothing(bucket: str) -> None:
    assert uris(f"s3://{bucket}") == []
    assert uris(f"s3://{bucket}/none") == []


def test_a_missing_bucket_is_named(s3: LocalS3) -> None:
    uri = "s3://no-such-bucket/key"
    calls: list[Callable[[], object]] = [
        lambda: uris(uri),
        lambda: storage.read_bytes(uri),
        lambda: storage.write_bytes(uri, b""),
    ]
    for call in calls:
        with pytest.raises(FileNotFoundError) as caught:
            call()
        assert str(caught.value) == f"The bucket of {uri} does not exist."
    assert not storage.exists(uri)


def test_an_impossible_bucket_is_named(s3: LocalS3) -> None:
    for call in (uris, storage.read_bytes):
        with pytest.raises(FileNotFoundError, match=r"^s3://Not a bucket!/key is not a valid S3 name\.$"):
            call("s3://Not a bucket!/key")


@pytest.mark.parametrize(
    "variables", [{"AWS_ACCESS_KEY_ID": "SOMEBODYELSE"}, {"AWS_SECRET_ACCESS_KEY": "not the secret"}]
)
def test_wrong_credentials_are_refused(
    s3: LocalS3, bucket: str, environment: Callable[..., None], variables: dict[str, str]
) -> None:
    storage.write_bytes(f"s3://{bucket}/key", b"x")
    environment(**variables)
    calls: list[Callable[[], object]] = [
        lambda: uris(f"s3://{bucket}"),
        lambda: storage.read_bytes(f"s3://{bucket}/key"),
        lambda: storage.write_bytes(f"s3://{bucket}/key", b"y"),
        lambda: storage.exists(f"s3://{bucket}/key"),
    ]
    for call in calls:
        with pytest.raises(PermissionError, match=rf"refused access to s3://{bucket}.*check the credentials") as caught:
            call()
        assert s3.secret_key not in str(caught.value)


def test_a_public_bucket_is_read_without_credentials(tmp_path: Path, environment: Callable[..., None]) -> None:
    (tmp_path / "root" / "public").mkdir(parents=True)
    (tmp_path / "root" / "public" / "a.jpg").write_bytes(b"data")
    with serve(tmp_path / "root", is_public=True) as public:
        nothing = dict.fromkeys(("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"))
        environment(AWS_ENDPOINT_URL=public.endpoint, **nothing)
        assert uris("s3://public") == ["s3://public/a.jpg"]
        assert storage.read_bytes("s3://public/a.jpg") == b"data"
        filesystem, path = storage.arrow_filesystem("s3://public/a.jpg")
        with filesystem.open_input_file(path) as file:
            assert file.read() == b"data"


def test_without_credentials_the_message_says_what_to_set(bucket: str, environment: Callable[..., None]) -> None:
    environment(AWS_ACCESS_KEY_ID=None, AWS_SECRET_ACCESS_KEY=None)
    with pytest.raises(PermissionError, match=rf"^No S3 credentials for s3://{bucket}/key: set AWS_ACCESS_KEY_ID"):
        storage.read_bytes(f"s3://{bucket}/key")
    with pytest.raises(PermissionError, match="No S3 credentials"):
        uris(f"s3://{bucket}")


@pytest.mark.parametrize(
    "variables", [{"AWS_ENDPOINT_URL": "no url"}, {"AWS_PROFILE": "nobody"}, {"AWS_REGION": "not a region!"}]
)
def test_a_wrong_setting_is_named(bucket: str, environment: Callable[..., None], variables: dict[str, str]) -> None:
    environment(**variables)
    for call in (storage.read_bytes, uris):
        with pytest.raises(OSError, match=rf"^The object store cannot be reached as .*{next(iter(variables))}.* say: "):
            call(f"s3://{bucket}/key")


def test_changes_of_other_writers_are_seen(s3: LocalS3, bucket: str) -> None:
    uri = f"s3://{bucket}/folder/object"
    storage.write_bytes(uri, b"first")
    (s3.root / bucket / "folder" / "object").write_bytes(b"second")
    assert storage.read_bytes(uri) == b"second"
    (s3.root / bucket / "folder" / "object").unlink()
    assert not storage.exists(uri)


@pytest.fixture
def through(environment: Callable[..., None]) -> Callable[[FaultyProxy], None]:
    """Put a proxy between this process and the store."""
    return lambda proxy: environment(AWS_ENDPOINT_URL=proxy.url)


def asked(proxy: FaultyProxy) -> int:
    return proxy.faults.total()


@pytest.mark.parametrize("fault", ["reset", "busy", "hang", "drip", "truncate"])
def test_every_request_has_one_patience(
    fault: str, s3: LocalS3, bucket: str, through: Callable[[FaultyProxy], None]
) -> None:
    uri, store = f"s3://{bucket}/folder/a.json", Store(0.5)
    storage.write_bytes(uri, b"[]")
    calls: list[Callable[[], object]] = [
        lambda: list(store.list_objects(f"s3://{bucket}/folder")),
        lambda: store.read_bytes(uri),
        lambda: store.read_range(uri, 0, 2),
        lambda: store.read_json(uri),
        lambda: store.info(uri),
        lambda: store.exists(uri),
        lambda: store.write_bytes(uri, b"[]"),
        lambda: store.delete(uri),
        lambda: store.check_writable(f"s3://{bucket}"),
    ]
    if fault in ("busy", "drip", "truncate"):  # only an answer with a body can be cut
        calls = calls[:2]
    with faulty_proxy(s3.endpoint, lambda method, path: "") as proxy:
        through(proxy)
        for call in calls:
            proxy.decide = lambda method, path: ""
            assert storage.read_bytes(uri) == b"[]"
            proxy.decide = outage = Outage("", 1000, fault)
            with pytest.raises(UnavailableError):
                call()
            assert outage.requests > 1 or fault in ("hang", "drip")
            assert outage.last - outage.began < 2 * store.patience


def test_what_begins_during_an_outage_shares_its_patience(
    s3: LocalS3, bucket: str, through: Callable[[FaultyProxy], None]
) -> None:
    """Or the end of a command would wait once more for each thing that it still wants of a store that is away."""
    storage.write_bytes(f"s3://{bucket}/x", b"data")
    with faulty_proxy(s3.endpoint, lambda method, path: "") as proxy:
        through(proxy)
        proxy.decide = lambda method, path: "reset"
        for number in range(5):
            before = asked(proxy)
            with pytest.raises(UnavailableError):
                Store(0.5).read_bytes(f"s3://{bucket}/x")
            assert (asked(proxy) - before == 1) == bool(number)
        assert storage.is_away()
        proxy.decide = lambda method, path: ""
        assert Store(0).read_bytes(f"s3://{bucket}/x") == b"data"
        assert not storage.is_away()
        # The next outage has a patience of its own.
        proxy.decide = lambda method, path: "reset"
        before = asked(proxy)
        with pytest.raises(UnavailableError):
            Store(0.5).read_bytes(f"s3://{bucket}/x")
        assert asked(proxy) - before > 1


def test_a_large_object_is_downloaded_in_pieces_each_with_patience(
    s3: LocalS3, bucket: str, through: Callable[[FaultyProxy], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = random.Random(0).randbytes(100_000)
    storage.write_bytes(f"s3://{bucket}/x", data)
    monkeypatch.setattr(storage, "_PIECE", 7_000)
    faults = iter(["", "", "truncate", "", "reset", *[""] * 100])
    with faulty_proxy(s3.endpoint, lambda method, path: next(faults)) as proxy:
        through(proxy)
        storage.Store(20).download(f"s3://{bucket}/x", tmp_path / "x")
    assert (tmp_path / "x").read_bytes() == data


class _BreaksOff(http.server.BaseHTTPRequestHandler):
    """Announces more than it sends, the first `times` times."""

    times = 0
    asked = 0

    def do_GET(self) -> None:
        type(self).asked += 1
        body = b"x" * 1000
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[:10] if self.asked <= self.times else body)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.mark.parametrize("limit", [None, 5000, 999])
@pytest.mark.parametrize("times", [4, 10**9])
def test_a_body_that_breaks_off_is_asked_for_again_and_never_taken_for_whole(
    limit: int | None, times: int, monkeypatch: pytest.MonkeyPatch, quick_retries: None
) -> None:
    handler = type("Handler", (_BreaksOff,), {"times": times, "asked": 0})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
        storage.forget_client()
        try:
            if times == 4:
                assert storage.read_bytes("s3://bucket/x.jpg", limit) == b"x" * 1000
            else:
                with pytest.raises(UnavailableError, match=r"broke off while sending s3://bucket/x\.jpg"):
                    storage.Store(0.2).read_bytes("s3://bucket/x.jpg", limit)
        finally:
            storage.forget_client()
            server.shutdown()


def test_a_table_of_an_earlier_version_gets_the_columns_it_lacks() -> None:
    schema = pa.schema([("a", pa.dictionary(pa.int32(), pa.string())), ("b", pa.list_(pa.int64()))])
    found = storage.completed(pa.table({"a": ["x"], "other": [1]}), schema)
    assert found.schema == schema
    assert found.to_pylist() == [{"a": "x", "b": None}]
