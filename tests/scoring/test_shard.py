"""Fetching: many requests at a time, bounded in bytes, patient with a store that has a bad day."""

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from melanoma import config, storage
from melanoma.bundle import Bundle
from melanoma.errors import MelanomaError
from melanoma.faulty_proxy import FaultyProxy, at_random, faulty_proxy
from melanoma.imaging.decode import ImageError, Limits
from melanoma.local_s3 import LocalS3
from melanoma.scoring import plan as plans
from melanoma.scoring import shard as scoring

LIMITS = Limits(max_bytes=10_000, max_pixels=10_000)


def settings(**values: Any) -> config.ScoreConfig:
    return config.load(config.ScoreConfig, None, archive="unused", out="unused", **values)


def rows(sizes: list[int]) -> pa.Table:
    return pa.table({"image_uri": [f"{number:03}" for number in range(len(sizes))], "size": sizes})


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
    monkeypatch.setattr(storage, "read_bytes", made.read_bytes)
    return made


def fetching(table: pa.Table, own: config.ScoreConfig) -> Iterator[tuple[str, Any]]:
    with ThreadPoolExecutor(own.requests) as pool:
        yield from scoring.fetch_ahead(table, pool, own, LIMITS, storage.retrying(own.patience))


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
    own = settings(**values)
    thread = threading.Thread(target=lambda: found.extend(fetching(rows(sizes), own)))
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


def test_a_store_on_a_bad_day_loses_nothing(s3: LocalS3, bucket: str, through: Callable[..., Any]) -> None:
    contents = {f"s3://{bucket}/{number:03}.jpg": bytes([number]) * 5000 for number in range(100)}
    for uri, data in contents.items():
        storage.write_bytes(uri, data)
    table = pa.table({"image_uri": list(contents), "size": [5000] * len(contents)})
    with faulty_proxy(s3.endpoint, at_random(0, share=0.4)) as proxy:
        through(proxy)
        found = dict(fetching(table, settings(patience=60)))
    assert found == contents
    assert sum(count for fault, count in proxy.faults.items() if fault) > 30
    assert set(proxy.faults) == {"", "busy", "reset", "truncate", "slow"}


def test_a_store_that_is_away_for_a_while_is_waited_for(s3: LocalS3, bucket: str, through: Callable[..., Any]) -> None:
    storage.write_bytes(f"s3://{bucket}/a.jpg", b"data")
    table = pa.table({"image_uri": [f"s3://{bucket}/a.jpg"], "size": [4]})
    with faulty_proxy(s3.endpoint, lambda method, path: "") as proxy:
        through(proxy)
        proxy.down.set()
        threading.Timer(8, proxy.down.clear).start()
        assert dict(fetching(table, settings(patience=60))) == {f"s3://{bucket}/a.jpg": b"data"}


def test_a_store_that_is_gone_ends_the_run_however_small_its_shards_are(
    bundle: Bundle, lesions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    infos = list(storage.list_objects(str(lesions)))[:9]
    about = {"run_date": "2026-11-20"}
    plan = plans.freeze(str(tmp_path), "a", about, infos, [], lambda images: 3)
    scorer = scoring.ShardScorer(bundle, plan, settings(requests=5, patience=0))

    def away(uri: str, limit: int) -> bytes:
        raise storage.UnavailableError("away")

    read = storage.read_bytes
    monkeypatch.setattr(storage, "read_bytes", lambda uri, limit=None: away(uri, limit) if limit else read(uri))
    assert scorer(pa.table({"shard": [0]}))["rejects_access"][0].as_py() == 3
    with pytest.raises(MelanomaError, match="5 images one after the other could not be fetched"):
        scorer(pa.table({"shard": [1]}))


def test_patience_ends(s3: LocalS3, bucket: str, through: Callable[..., Any]) -> None:
    storage.write_bytes(f"s3://{bucket}/a.jpg", b"data")
    table = pa.table({"image_uri": [f"s3://{bucket}/a.jpg"], "size": [4]})
    with faulty_proxy(s3.endpoint, lambda method, path: "busy") as proxy:
        through(proxy)
        [(uri, data)] = fetching(table, settings(patience=0))
    image = scoring.decode_one(uri, data, 32, LIMITS)
    assert image.error_kind == "access"
    assert image.error is not None
    assert "SlowDown" in image.error


def test_what_is_refused_is_not_asked_for_again(s3: LocalS3, bucket: str, through: Callable[..., Any]) -> None:
    table = pa.table({"image_uri": [f"s3://{bucket}/nowhere.jpg"], "size": [4]})
    with faulty_proxy(s3.endpoint, lambda method, path: "") as proxy:
        through(proxy)
        [(_, data)] = fetching(table, settings(patience=60))
    assert isinstance(data, ImageError)
    assert data.kind == "not_found"
    assert proxy.faults == {"": 1}
