"""No night scores what an earlier one has written, by whatever name it finds it."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from melanoma import config, storage
from melanoma.demo.local_s3 import LocalS3
from melanoma.errors import InputError
from melanoma.scoring import layout, run
from melanoma.scoring.config import ScoreConfig
from melanoma.scoring.run import Outcome

IN_THE_ARCHIVE = r"lies in the archive .*, and its files would be scored the next night"


@pytest.fixture
def score(
    scored_in_this_process: None, s3: LocalS3, bucket: str, bundle_path: Path, lesion: Callable[..., bytes]
) -> Any:
    """Score; `root`/archive has two images, and `root` is a bucket, too."""
    (s3.root / bucket / "archive").mkdir()
    for seed in range(2):
        (s3.root / bucket / "archive" / f"{seed}.jpg").write_bytes(lesion("MEL", seed=seed))

    def call(archive: object, out: object, **values: Any) -> Outcome:
        values |= {"archive": str(archive), "out": str(out), "bundle": str(bundle_path), "workers": 1}
        return run.score(config.load(ScoreConfig, None, **values), say=lambda _: None)

    return call


@pytest.fixture
def root(s3: LocalS3, bucket: str) -> Path:
    return s3.root / bucket


def test_an_output_in_its_archive_is_refused_by_whatever_name(
    score: Callable[..., Outcome], root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "link").symlink_to(root / "archive")
    (tmp_path / "results").symlink_to(root / "archive" / "results")
    (tmp_path / "parent").symlink_to(root)
    (root / "archive" / "here").mkdir()
    monkeypatch.chdir(root / "archive")
    real = root / "archive"
    for archive, out in [
        (real, real),
        (real, real / "results"),
        (tmp_path / "link", real / "results" / "of" / "today"),
        (real, tmp_path / "link" / "results"),
        (f"file://{tmp_path}/link/", real / "results"),
        (f"{tmp_path}//parent/./archive/", f"{real}/../archive//results"),
        (tmp_path / "parent", real / "results"),
        (real, tmp_path / "results"),
        (real, "results"),
        (".", tmp_path / "link" / "results"),
        (tmp_path / "link", real / "here"),
    ]:
        with pytest.raises(InputError, match=IN_THE_ARCHIVE):
            score(archive, out)
    assert sorted(path.name for path in real.rglob("*")) == ["0.jpg", "1.jpg", "here"]


def test_an_archive_in_its_output_is_refused_by_whatever_name(
    score: Callable[..., Outcome], root: Path, tmp_path: Path
) -> None:
    (tmp_path / "link").symlink_to(root / "archive")
    with pytest.raises(InputError, match=IN_THE_ARCHIVE):
        score(tmp_path / "link", root)


def test_results_are_known_by_their_names(
    score: Callable[..., Outcome], root: Path, bucket: str, tmp_path: Path
) -> None:
    """The same folder as a bucket and as a folder: no name of one tells that of the other."""
    assert score(f"s3://{bucket}/archive", root / "archive" / "results").record.counts.scored == 2
    explained = next((root / "archive").rglob("*.png"), None)
    with pytest.raises(InputError, match=r"holds results of this program, such as s3://.*, which would be scored"):
        score(f"s3://{bucket}/archive", root / "archive" / "results", run_date="2026-11-20")
    shutil.copytree(root / "archive" / "results", tmp_path / "archive" / "old results")
    with pytest.raises(InputError, match="holds results of this program"):
        score(tmp_path / "archive", tmp_path / "out")
    if explained:
        (tmp_path / "list.csv").write_text(f"path\n{explained}\n")
        with pytest.raises(InputError, match="holds results of this program"):
            score(tmp_path / "list.csv", tmp_path / "out")


def test_what_a_run_writes_is_known_and_images_are_not_taken_for_it() -> None:
    names = ("out", "2026-11-20", "2026-11-20-abc")
    results = [
        layout.alerts(*names),
        *(layout.result_shard("out", kind, *names[1:], 3) for kind in ("scores", "rejects")),
        storage.join(layout.folder("out", "explanations", *names[1:]), "f" * 64 + ".png"),
        layout.planned_shard("out", names[2], "attempt", 0),
        layout.begun_shard("out", names[2], "attempt", 0),
        *(name("out", names[2]) for name in (layout.plan, layout.page, layout.record, layout.shown)),
        layout.delivery("out", names[2], "webhook"),
    ]
    for uri in results:
        assert layout.is_result(f"s3://bucket/{uri}"), uri
    for uri in ("s3://b/scores/1.jpg", "/a/runs/run_id=1.jpg", "/a/alerts/run_date=2026-11-20/x.jpg", "/a/plans/x.png"):
        assert not layout.is_result(uri), uri
