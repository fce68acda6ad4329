"""Fetching: many requests at a time, bounded in bytes, patient with a store that has a bad day."""

import io
import os
import tarfile
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from melanoma import config, storage
from melanoma.demo.local_s3 import LocalS3
from melanoma.errors import MelanomaError
from melanoma.imaging import load
from melanoma.imaging.errors import ImageError
from melanoma.imaging.limits import Limits
from melanoma.model.bundle import Bundle
from melanoma.scoring import fetch, shard, tables
from melanoma.scoring import plan as plans
from melanoma.scoring.config import ScoreConfig
from melanoma.scoring.record import RunHeader
from tests.support.faulty_proxy import FaultyProxy, at_random, faulty_proxy

LIMITS = Limits(max_bytes=10_000, max_pixels=10_000)


def settings(**values: Any) -> ScoreConfig:
    return config.load(ScoreConfig, None, archive="unused", out="unused", **values)


def rows(sizes: list[int]) -> pa.Table:
    return planned({f"{number:03}": size for number, size in enumerate(sizes)})


def planned(sizes: dict[str, int]) -> pa.Table:
    rows = [{"image_uri": uri, "size": size} for uri, size in sizes.items()]
    return pa.Table.from_pylist(rows, schema=plans.SHARD)


class Store:
    """Stands in for the object store: notes what is asked for, and answers when it is let."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.open = threading.Event()

    def read_bytes(self, uri: str, limit: int) -> bytes:
        self.asked.append(uri)
        assert self.open.wait(20)
        return uri.encode()


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Store:
    made = Store()
    monkeypatch.setattr(storage.Store, "read_bytes", lambda _, uri, limit=None: made.read_bytes(uri, limit))
    return made


def fetching(table: pa.Table, chosen: ScoreConfig) -> Iterator[tuple[str, Any]]:
    with ThreadPoolExecutor(chosen.requests) as pool:
        yield from fetch.fetch_ahead(table, pool, chosen, LIMITS, storage.Store(chosen.patience))


@pytest.mark.parametrize(
    ("sizes", "values", "asked"),
    [
        ([10] * 50, {"requests": 8}, 8),
        ([10] * 5, {"requests": 8}, 5),
        ([1000] * 50, {"requests": 8, "bytes_ahead": 3500}, 3),
        ([9000] * 50, {"requests": 8, "bytes_ahead": 3500}, 1),
        ([10**9] * 20 + [10], {"requests": 30, "bytes_ahead": 3500}, 1),  # too large, and so never asked for
    ],
    ids=str,
)
def test_as_much_is_in_flight_as_is_allowed(store: Store, sizes: list[int], values: dict[str, int], asked: int) -> None:
    found: list[tuple[str, Any]] = []
    chosen = settings(**values)
    thread = threading.Thread(target=lambda: found.extend(fetching(rows(sizes), chosen)))
    thread.start()
    deadline = time.monotonic() + 10
    while len(store.asked) < asked and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.2)
    assert len(store.asked) == asked
    store.open.set()
    thread.join()
    assert [uri for uri, _ in found] == [f"{number:03}" for number in range(len(sizes))]
    kinds = [data.kind if isinstance(data, ImageError) else None for _, data in found]
    assert kinds == ["too_large" if size > LIMITS.max_bytes else None for size in sizes]


@pytest.fixture
def through(s3: LocalS3, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Any]]:
    """Put a proxy between this process and the store."""

    def put(proxy: FaultyProxy) -> None:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        storage.forget_client()

    yield put
    monkeypatch.undo()
    storage.forget_client()


def test_a_store_on_a_bad_day_loses_nothing(
    s3: LocalS3, bucket: str, through: Callable[..., Any], quick_retries: None
) -> None:
    contents = {f"s3://{bucket}/{number:03}.jpg": bytes([number]) * 5000 for number in range(100)}
    for uri, data in contents.items():
        storage.write_bytes(uri, data)
    table = planned(dict.fromkeys(contents, 5000))
    with faulty_proxy(s3.endpoint, at_random(0, share=0.4)) as proxy:
        through(proxy)
        found = dict(fetching(table, settings(patience=60)))
    assert found == contents
    assert sum(count for fault, count in proxy.faults.items() if fault) > 30
    assert set(proxy.faults) == {"", "busy", "reset", "truncate", "slow"}


def test_a_store_that_is_away_for_a_while_is_waited_for(
    s3: LocalS3, bucket: str, through: Callable[..., Any], quick_retries: None
) -> None:
    storage.write_bytes(f"s3://{bucket}/a.jpg", b"data")
    table = planned({f"s3://{bucket}/a.jpg": 4})
    with faulty_proxy(s3.endpoint, lambda method, path: "") as proxy:
        through(proxy)
        proxy.down.set()
        threading.Timer(2, proxy.down.clear).start()
        assert dict(fetching(table, settings(patience=60))) == {f"s3://{bucket}/a.jpg": b"data"}


def test_a_store_that_is_gone_ends_the_run_however_small_its_shards_are(
    bundle: Bundle, lesions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    infos = list(storage.list_objects(str(lesions)))[:9]
    plan = plans.freeze(str(tmp_path), "a", RunHeader(run_date="2026-11-20"), infos, [], lambda images: 3)
    scorer = shard.ShardScorer(bundle, plan, settings(requests=5, patience=0))

    read = storage.Store.read_bytes

    def away(store: storage.Store, uri: str, limit: int | None = None) -> bytes:
        if limit:
            raise storage.UnavailableError("away")
        return read(store, uri)

    monkeypatch.setattr(storage.Store, "read_bytes", away)
    assert scorer(pa.table({"shard": [0]}))["rejects_access"][0].as_py() == 3
    with pytest.raises(MelanomaError, match="5 images in a row could not be fetched"):
        scorer(pa.table({"shard": [1]}))


def test_patience_ends(s3: LocalS3, bucket: str, through: Callable[..., Any], quick_retries: None) -> None:
    storage.write_bytes(f"s3://{bucket}/a.jpg", b"data")
    table = planned({f"s3://{bucket}/a.jpg": 4})
    with faulty_proxy(s3.endpoint, lambda method, path: "busy") as proxy:
        through(proxy)
        [(uri, data)] = fetching(table, settings(patience=0))
    (image,) = shard.images_of(uri, load.load(data, 32, LIMITS))
    assert image.error_kind == "access"
    assert image.error is not None
    assert "SlowDown" in image.error


def test_what_is_refused_is_not_asked_for_again(s3: LocalS3, bucket: str, through: Callable[..., Any]) -> None:
    table = planned({f"s3://{bucket}/nowhere.jpg": 4})
    with faulty_proxy(s3.endpoint, lambda method, path: "") as proxy:
        through(proxy)
        [(_, data)] = fetching(table, settings(patience=60))
    assert isinstance(data, ImageError)
    assert data.kind == "not_found"
    assert proxy.faults == {"": 1}


# --- members of archives ---------------------------------------------------------------------------------------------


def archived(path: Path, files: dict[str, bytes]) -> pa.Table:
    """The plan of the members of an archive that is written here."""
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as made:
            for name, data in files.items():
                made.writestr(name, data)
    else:
        with tarfile.open(path, "w") as tar:
            for name, data in files.items():
                entry = tarfile.TarInfo(name)
                entry.size = len(data)
                tar.addfile(entry, io.BytesIO(data))
    info = storage.info(str(path))
    frozen = plans.freeze(
        str(path.parent / "out"), "a", RunHeader(run_date=""), [info], [], lambda images: max(1, images)
    )
    return storage.read_table(frozen.uri(0))


FILES = {f"{number:02}.jpg": bytes([number]) * (100 * number) for number in range(40, 0, -1)}


@pytest.mark.parametrize("suffix", ["tar", "zip"])
def test_members_that_lie_side_by_side_are_fetched_together(tmp_path: Path, suffix: str, reads: list[int]) -> None:
    table = archived(tmp_path / f"a.{suffix}", {**FILES, "large.jpg": bytes(20_000)})
    reads.clear()
    found = dict(fetching(table, settings()))
    uri = f"{tmp_path}/a.{suffix}!/"
    assert isinstance(found.pop(f"{uri}large.jpg"), ImageError)  # more than the limit
    assert found == {f"{uri}{name}": data for name, data in FILES.items()}
    assert len(reads) == 1


def test_no_request_is_larger_than_that(tmp_path: Path, reads: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch, "_MAX_RANGE", 10_000)
    table = archived(tmp_path / "a.tar", FILES)
    reads.clear()
    assert list(dict(fetching(table, settings())).values()) == list(FILES.values())
    assert 8 < len(reads) < 20
    assert max(reads) < 12_000


def test_one_damaged_member_does_not_spoil_its_neighbours(tmp_path: Path) -> None:
    table = archived(tmp_path / "a.zip", FILES)
    place = table["offset"].to_pylist()[7]
    data = bytearray((tmp_path / "a.zip").read_bytes())
    data[place] ^= 255
    status = os.stat(tmp_path / "a.zip")
    (tmp_path / "a.zip").write_bytes(data)
    os.utime(tmp_path / "a.zip", ns=(status.st_atime_ns, status.st_mtime_ns))
    found = dict(fetching(table, settings()))
    broken = [uri for uri, content in found.items() if isinstance(content, ImageError)]
    assert broken == [table["image_uri"].to_pylist()[7]]


@pytest.mark.parametrize("suffix", ["tar", "zip"])
def test_of_an_archive_that_was_written_again_nothing_is_taken(tmp_path: Path, suffix: str) -> None:
    table = archived(tmp_path / f"a.{suffix}", FILES)
    os.utime(tmp_path / f"a.{suffix}", ns=(1, 1))
    for found in dict(fetching(table, settings())).values():
        assert isinstance(found, ImageError)
        assert (found.kind, "has changed since it was listed" in found.reason) == ("not_found", True)


def test_what_is_refused_in_a_directory_is_not_fetched(tmp_path: Path, reads: list[int]) -> None:
    (tmp_path / "a.tar").write_bytes(b"no tar at all")
    info = storage.info(str(tmp_path / "a.tar"))
    frozen = plans.freeze(str(tmp_path / "out"), "a", RunHeader(run_date=""), [info], [], lambda images: images)
    reads.clear()
    ((uri, found),) = fetching(storage.read_table(frozen.uri(0)), settings())
    assert (uri, found.kind, reads) == (str(tmp_path / "a.tar"), "truncated", [])


def test_of_several_frames_that_is_scored_which_would_rank_first() -> None:
    def row(uri: str, frame: int | None, level: str, reason: str | None, p: float, malignant: float) -> dict[str, Any]:
        found = {"image_uri": uri, "frame": frame, "alert_level": level, "alert_reason": reason}
        return {**found, "p_melanoma": p, "p_malignant": malignant}

    rows = [
        row("quiet.dcm", 1, "none", None, 0.1, 0.4),
        row("quiet.dcm", 2, "none", None, 0.2, 0.3),
        row("one.jpg", None, "none", None, 0.1, 0.1),
        row("carcinoma.dcm", 1, "none", None, 0.3, 0.3),
        row("carcinoma.dcm", 2, "urgent", "malignancy", 0.01, 0.99),
        row("carcinoma.dcm", 3, "review", "melanoma", 0.4, 0.4),
    ]
    found = shard.most_suspicious_frames(pa.Table.from_pylist(rows, schema=tables.SCORES))
    assert found.select(["image_uri", "frame"]).to_pylist() == [
        {"image_uri": "quiet.dcm", "frame": 2},
        {"image_uri": "one.jpg", "frame": None},
        {"image_uri": "carcinoma.dcm", "frame": 2},
    ]
