"""What a run is to score: frozen, each object once, less what earlier runs have done."""

import dataclasses
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pytest

from melanoma import storage
from melanoma.errors import MelanomaError
from melanoma.imaging.errors import TRANSIENT, UNREAD
from melanoma.scoring import plan, tar_and_zip
from melanoma.scoring.record import RunHeader
from melanoma.storage import ObjectInfo


def infos(*names: str, etag: str = "1", size: int = 10) -> list[ObjectInfo]:
    return [ObjectInfo(name, size, etag) for name in names]


def rows(made: plan.Plan) -> list[dict[str, object]]:
    return [row for shard in made.shards for row in storage.read_table(made.uri(shard)).to_pylist()]


def uris(made: plan.Plan) -> list[object]:
    return [row["image_uri"] for row in rows(made)]


def freeze(
    out: Path | str, listed: Sequence[ObjectInfo], done: Sequence[plan.Done] = (), run_id: str = "a", size: int = 2
) -> plan.Plan:
    return plan.freeze(str(out), run_id, RunHeader(run_date="2026-11-20"), listed, done, lambda images: size)


def done(made: plan.Plan, rejects: Sequence[str] = ()) -> plan.Done:
    return plan.Done(made.run_id, [made.uri(shard) for shard in made.shards], TRANSIENT, rejects)


def test_a_plan_is_cut_into_shards_and_read_again(tmp_path: Path) -> None:
    made = freeze(tmp_path, infos("e", "a", "d", "b", "c"))
    assert uris(made) == ["a", "b", "c", "d", "e"]
    assert [storage.read_table(made.uri(shard)).num_rows for shard in made.shards] == [2, 2, 1]
    assert [made.images_of(shard) for shard in made.shards] == [2, 2, 1]
    assert all(storage.read_table(made.uri(shard)).schema == plan.SHARD for shard in made.shards)
    assert plan.read(str(tmp_path), "a") == made
    assert plan.read(str(tmp_path), "b") is None
    assert (made.images, made.run_date) == (5, "2026-11-20")
    counts = {name: getattr(made.details, name) for name in ("listed", "done_before", "untried", "shards")}
    assert counts == {"listed": 5, "done_before": 0, "untried": 5, "shards": 3}


def test_a_plan_in_a_bucket(bucket: str) -> None:
    made = freeze(f"s3://{bucket}", infos(*(f"{number:03}" for number in range(100))), size=3)
    assert len(made.shards) == 34
    assert uris(made) == [f"{number:03}" for number in range(100)]


def test_what_is_listed_twice_is_scored_once(tmp_path: Path) -> None:
    made = freeze(tmp_path, infos("a", "b", "a"))
    assert (uris(made), made.details.listed) == (["a", "b"], 2)


def test_odd_names_are_kept_as_they_are(tmp_path: Path) -> None:
    names = sorted(['it\'s "q".jpg', "a;b--c", "皮膚/病変", "x\ny", "100%25", "La\u0308sion", "", "a b"])
    assert sorted(map(str, uris(freeze(tmp_path, infos(*names))))) == names


def test_only_what_is_new_or_changed_is_planned(tmp_path: Path) -> None:
    first = freeze(tmp_path, infos("same", "other etag", "other size", "gone"))
    listed = [*infos("same", "new"), *infos("other etag", etag="2"), *infos("other size", size=11)]
    second = freeze(tmp_path, listed, [done(first)], "b")
    assert uris(second) == ["new", "other etag", "other size"]
    assert (second.details.listed, second.details.done_before) == (4, 1)
    third = freeze(tmp_path, listed, [done(first), done(second)], "c")
    assert (third.images, list(third.shards)) == (0, [])


def test_an_outdated_manifest_does_not_hide_what_has_changed(tmp_path: Path) -> None:
    first = freeze(tmp_path, infos("a"))
    second = freeze(tmp_path, [*infos("a"), *infos("a", etag="2", size=11)], [done(first)], "b")
    assert [(row["image_uri"], row["etag"], row["size"]) for row in rows(second)] == [("a", "2", 11)]
    assert (second.details.listed, second.details.done_before) == (1, 0)


def test_members_of_tars_and_zips_are_planned_and_their_directories_read_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, suffix in (("one", "zip"), ("two", "tar")):
        (tmp_path / name).mkdir()
        for number in range(3):
            (tmp_path / name / f"{number}.jpg").write_bytes(bytes(number + 1))
        shutil.make_archive(str(tmp_path / name), suffix, tmp_path / name)
    archives = [str(tmp_path / "one.zip"), str(tmp_path / "two.tar")]

    def listed() -> list[ObjectInfo]:
        return [*infos("plain"), *map(storage.info, archives)]

    first = freeze(tmp_path, listed())
    names = [f"{archive}!/{number}.jpg" for archive in archives for number in range(3)]
    assert sorted(map(str, uris(first))) == sorted(["plain", *names])
    assert {row["image_uri"]: row["size"] for row in rows(first)}[names[2]] == 3
    assert (first.details.listed, first.details.done_before) == (7, 0)

    looked: list[str] = []
    whole = tar_and_zip.members

    def counted(info: ObjectInfo, store: storage.Store) -> Iterator[tar_and_zip.Member]:
        looked.append(info.uri)
        return whole(info, store)

    monkeypatch.setattr(tar_and_zip, "members", counted)
    second = freeze(tmp_path, listed(), [done(first)], "b")
    assert (second.images, second.details.listed, second.details.done_before, looked) == (0, 7, 7, [])
    (tmp_path / "one" / "new.jpg").write_bytes(b"new")
    shutil.make_archive(str(tmp_path / "one"), "zip", tmp_path / "one")
    third = freeze(tmp_path, listed(), [done(first), done(second)], "c")
    # Another ETag: what is in it may have changed.
    assert (third.images, third.details.done_before, looked) == (4, 4, [archives[0]])


def test_an_archive_that_is_damaged_is_planned_as_what_it_is(tmp_path: Path) -> None:
    (tmp_path / "a.zip").write_bytes(b"PK no zip")
    (row,) = rows(freeze(tmp_path, [storage.info(str(tmp_path / "a.zip"))]))
    assert (row["image_uri"], row["error_kind"]) == (str(tmp_path / "a.zip"), "truncated")


def test_what_has_no_etag_is_planned_again(tmp_path: Path) -> None:
    first = freeze(tmp_path, infos("a", etag=""))
    assert uris(freeze(tmp_path, infos("a", etag=""), [done(first)], "b")) == ["a"]


def test_a_driver_that_has_lost_its_lease_freezes_nothing(tmp_path: Path) -> None:
    first = freeze(tmp_path, infos("a"))

    def lost() -> None:
        raise MelanomaError("lost")

    with pytest.raises(MelanomaError, match="lost"):
        plan.freeze(str(tmp_path), "a", RunHeader(run_date="2026-11-20"), infos("a", "b"), [], lambda images: 1, lost)
    assert plan.read(str(tmp_path), "a") == first
    assert uris(first) == ["a"]


def test_what_could_not_be_fetched_is_planned_again(tmp_path: Path) -> None:
    first = freeze(tmp_path, infos("a", "b", "c", "d"))
    rejects = pa.table({"image_uri": ["b", "c", "d"], "error_kind": ["access", "truncated", "not_found"]})
    storage.write_table(str(tmp_path / "rejects.parquet"), rejects)
    second = freeze(tmp_path, infos("a", "b", "c", "d", "e"), [done(first, [str(tmp_path / "rejects.parquet")])], "b")
    assert [(row["image_uri"], row["tried"]) for row in rows(second)] == [("b", True), ("d", True), ("e", False)]
    assert second.details.untried == 1
    # Fetched in the second run, they are done; that the first run could not stays a mark on them.
    third = freeze(
        tmp_path,
        [*infos("a", "b"), *infos("d", etag="2")],
        [done(first, [str(tmp_path / "rejects.parquet")]), done(second)],
        "c",
    )
    assert [(row["image_uri"], row["tried"]) for row in rows(third)] == [("d", True)]


def test_a_plan_that_was_cut_off_is_none(tmp_path: Path) -> None:
    made = freeze(tmp_path, infos("a", "b", "c"))
    (tmp_path / "runs" / "run_id=a" / "plan.json").unlink()
    assert plan.read(str(tmp_path), "a") is None
    # The archive has shrunk since: what the first attempt wrote beyond the second's end is no part of it.
    second = freeze(tmp_path, infos("x"))
    assert uris(second) == ["x"]
    assert Path(made.uri(1)).exists()


def test_plans_of_an_earlier_version_have_fewer_columns(tmp_path: Path) -> None:
    first = freeze(tmp_path, infos("a", "b"))
    for shard in first.shards:
        old = storage.read_table(first.uri(shard)).select(["image_uri", "size", "etag", "tried"])
        storage.write_table(first.uri(shard), old)
    second = freeze(tmp_path, infos("a", "b", "c"), [done(first)], "b")
    assert uris(second) == ["c"]
    third = freeze(tmp_path, infos("a", "b", "c", "d"), [done(first), done(second)], "c")
    assert uris(third) == ["d"]


def test_a_version_that_reads_more_looks_again_at_what_was_refused(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "a.jpg").write_bytes(b"data")
    shutil.make_archive(str(tmp_path / "one"), "zip", tmp_path / "folder")
    archive = storage.info(str(tmp_path / "one.zip"))
    first = freeze(tmp_path, [*infos("old.dcm", "good.jpg"), archive])
    table = pa.table({"image_uri": ["old.dcm"], "error_kind": ["dicom"]})
    storage.write_table(first.result_uri("rejects", 0), table)
    earlier = dataclasses.replace(
        done(first), retried_kinds=(*TRANSIENT, *UNREAD), reject_uris=[first.result_uri("rejects", 0)]
    )
    second = freeze(tmp_path, [*infos("old.dcm", "good.jpg"), archive], [earlier], "b")
    assert uris(second) == ["old.dcm"]
    assert (second.details.listed, second.details.done_before) == (3, 2)


_MANY = """
import resource, sys
from melanoma.scoring import plan
from melanoma.scoring.record import RunHeader
from melanoma.storage import ObjectInfo

def listed(count):
    for number in range(count):
        yield ObjectInfo(f"s3://archive/clinic-{number % 97}/2026/{number:012}.jpg", number, f"{number:032x}")

number, header = int(sys.argv[2]), RunHeader(run_date="")
made = plan.freeze(sys.argv[1], "a", header, listed(number), [], lambda images: 4096)
done = [plan.Done("a", [made.uri(shard) for shard in made.shards], [], [])]
second = plan.freeze(sys.argv[1], "b", header, listed(number + 10), done, lambda images: 4096)
assert (second.images, second.details.done_before) == (10, number), second.details
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.slow
def test_millions_of_objects_do_not_grow_the_driver(tmp_path: Path) -> None:
    peaks = []
    for number in (200_000, 2_000_000):
        out = tmp_path / str(number)
        ended = subprocess.run(
            [sys.executable, "-c", _MANY, str(out), str(number)], capture_output=True, text=True, check=True
        )
        peaks.append(int(ended.stdout) * 1024)
    # The database may take its own limit, whatever the number.
    assert peaks[1] < peaks[0] + 600 * 2**20
