"""One driver at a time: the second goes away, and a dead one is followed."""

import threading
import time
from pathlib import Path

import pytest

from melanoma import storage
from melanoma.errors import InputError, MelanomaError
from melanoma.scoring import lease

STORE = storage.Store(patience=1.0)


@pytest.fixture(autouse=True)
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "BEAT", 0.1)
    monkeypatch.setattr(lease, "DEAD_AFTER", 3.0)
    monkeypatch.setattr(lease, "_SETTLE", 0.2)


@pytest.fixture(params=["local", "s3"])
def uri(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    place = f"s3://{request.getfixturevalue('bucket')}" if request.param == "s3" else str(tmp_path)
    return f"{place}/runs/lease.json"


def test_a_lease_is_gone_when_its_holder_has_ended(uri: str) -> None:
    for _ in range(2):
        with lease.hold(uri, pytest.fail, STORE) as confirm_held:
            assert storage.exists(uri)
            confirm_held()
        assert not storage.exists(uri)


def test_the_second_driver_says_so_and_ends(uri: str) -> None:
    said: list[str] = []
    with lease.hold(uri, pytest.fail, STORE) as confirm_held:
        with (
            pytest.raises(InputError, match="Another driver is at work on the same archive"),
            lease.hold(uri, said.append, STORE),
        ):
            pytest.fail("two at once")
        confirm_held()
    assert len(said) == 1


def test_of_drivers_that_begin_at_once_one_may_publish(uri: str) -> None:
    published: list[int] = []
    ended: list[int] = []
    begin = threading.Barrier(5)
    patient = storage.Store(patience=30.0)

    def drive(number: int) -> None:
        begin.wait()
        try:
            with lease.hold(uri, lambda line: None, patient) as confirm_held:
                # A write that took longer than a driver settles lets two begin, until one of them asks.
                deadline = time.monotonic() + 60
                while len(ended) < 4 and time.monotonic() < deadline:
                    confirm_held()
                    time.sleep(0.05)
                confirm_held()
                published.append(number)
        except MelanomaError:
            ended.append(number)

    threads = [threading.Thread(target=drive, args=(number,)) for number in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(published), len(ended)) == (1, 4)


def test_a_dead_driver_is_followed(uri: str) -> None:
    storage.write_json(uri, {"owner": "one that was killed", "beat": 7})
    said: list[str] = []
    with lease.hold(uri, said.append, STORE):
        assert said[-1] == "It is not: this driver takes its place."


def test_who_has_lost_the_lease_ends_and_leaves_it(uri: str) -> None:
    with lease.hold(uri, pytest.fail, STORE) as confirm_held:
        # As after a minute in which this process was stopped.
        storage.write_json(uri, {"owner": "another", "beat": 0})
        with pytest.raises(MelanomaError, match="Another driver has taken over"):
            confirm_held()
        time.sleep(0.5)
    assert storage.read_json(uri)["owner"] == "another"


def test_a_lease_that_another_has_taken_and_given_back_is_lost(uri: str) -> None:
    with lease.hold(uri, pytest.fail, STORE) as confirm_held:
        storage.delete(uri)
        time.sleep(0.5)
        with pytest.raises(MelanomaError, match="Another driver has taken over"):
            confirm_held()
    assert not storage.exists(uri)
