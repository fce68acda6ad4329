"""Files that kill or hang the process that decodes them: they are found, and cost a night nothing else."""

import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import textwrap
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pydicom
import pytest
from pydicom import uid
from pydicom.encaps import encapsulate

from melanoma import config, storage
from melanoma.catalog.build import build
from melanoma.demo.archive_files import dicom_file
from melanoma.demo.lesions import draw_lesion
from melanoma.errors import MelanomaError
from melanoma.imaging.limits import Limits
from melanoma.model.bundle import Bundle
from melanoma.scoring import begun, run, run_page, shard
from melanoma.scoring import plan as plans
from melanoma.scoring.config import ScoreConfig
from melanoma.scoring.plan import Plan
from melanoma.scoring.record import RunHeader
from tests.support import deadly_files

LESION_SIZE = 96  # pixels a side, as in conftest.py

YESTERDAY, TODAY = "2026-11-20", "2026-11-21"


@pytest.fixture
def deadly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes that are started from now on die of the pictures that say so; this one does not."""
    deadly_files.on_path(monkeypatch)


def settings(archive: Path, out: Path, bundle_path: Path, **values: Any) -> ScoreConfig:
    places = {"archive": str(archive), "out": str(out), "bundle": str(bundle_path)}
    return config.load(ScoreConfig, None, **{**places, "workers": 1, "decode_seconds": 2, "explained": 0, **values})


def fill(folder: Path, files: dict[str, bytes], members: dict[str, bytes]) -> None:
    """Write files, and a tar and a zip of the members."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        (folder / name).write_bytes(data)
    with zipfile.ZipFile(folder / "ward.zip", "w") as packed, tarfile.open(folder / "ward.tar", "w") as tar:
        for name, data in members.items():
            packed.writestr(name, data)
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def rows(out: Path, kind: str, date: str = "*") -> pd.DataFrame:
    """What the runs have written, whatever their order."""
    paths = sorted(out.glob(f"{kind}/run_date={date}/*/*.parquet"))
    tables = [storage.read_table(str(path)) for path in paths]
    return pa.concat_tables(tables).to_pandas().sort_values("image_uri", ignore_index=True)


def kinds(out: Path, date: str = "*") -> dict[str, str]:
    rejects = rows(out, "rejects", date)
    return {
        uri.rpartition("archive/")[2]: kind
        for uri, kind in zip(rejects["image_uri"], rejects["error_kind"], strict=True)
    }


def dicom_of(jpegs: Sequence[bytes]) -> bytes:
    """A DICOM file whose frames are these JPEGs of generated lesions."""
    plain = dicom_file([draw_lesion("NV", 1, LESION_SIZE, LESION_SIZE)] * len(jpegs), uid.JPEGBaseline8Bit)
    dataset = pydicom.dcmread(io.BytesIO(plain))
    dataset.PixelData = encapsulate(list(jpegs))
    buffer = io.BytesIO()
    dataset.save_as(buffer)
    return buffer.getvalue()


def plan_of(folder: Path, out: Path, size: int = 100) -> Plan:
    infos = list(storage.list_objects(str(folder)))
    return plans.freeze(str(out), "a", RunHeader(run_date=YESTERDAY), infos, [], lambda images: size)


# In a process of its own, which dies of the first deadly file.
ONE_PROCESS = """
    import sys
    from melanoma import config
    from melanoma.scoring import run
    from melanoma.scoring.config import ScoreConfig
    from tests.support.in_this_process import scored_in_this_process

    with scored_in_this_process():
        run.score(config.load(ScoreConfig, sys.argv[1]), say=lambda line: None)
"""


def test_a_driver_that_died_of_a_file_is_resumed_and_rejects_it(
    deadly: None,
    scored_in_this_process: None,
    lesion: Callable[..., bytes],
    bundle_path: Path,
    tmp_path: Path,
) -> None:
    """All in one process, as where memory ends for all. The next night does not meet the file again."""
    archive, out = tmp_path / "archive", tmp_path / "out"
    good = {f"{seed}.jpg": lesion(("MEL", "NV")[seed % 2], seed) for seed in range(8)}
    bad = {
        "1a.jpg": lesion() + b"!crash!",
        "2a.jpg": lesion(seed=1) + b"!hang!",
        "3a.dcm": dicom_of([lesion(), lesion(seed=1) + b"!exit!", lesion(seed=2)]),
        "4a.png": lesion("NV", 2, "PNG") + b"!abort!",
    }
    fill(archive, good | bad | {"text.jpg": b"no picture"}, {"a.jpg": lesion("MEL", 30), "b.jpg": bad["1a.jpg"]})
    calm = settings(archive, tmp_path / "calm", bundle_path, run_date=YESTERDAY)
    run.score(calm, say=lambda line: None)  # nothing is deadly to this process

    chosen = settings(archive, out, bundle_path, run_date=YESTERDAY)
    (tmp_path / "score.yaml").write_text(json.dumps(chosen.model_dump(mode="json")))
    words = [sys.executable, "-c", textwrap.dedent(ONE_PROCESS), str(tmp_path / "score.yaml")]
    died = subprocess.run(words, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False)
    assert died.returncode == -signal.SIGSEGV, died.stderr
    record = run.score(chosen, say=lambda line: None).record

    assert kinds(out) == {
        "1a.jpg": "crashed",
        "2a.jpg": "timeout",
        "3a.dcm": "crashed",
        "4a.png": "crashed",
        "text.jpg": "not_an_image",
        "ward.tar!/b.jpg": "crashed",
        "ward.zip!/b.jpg": "crashed",
    }
    rejects = rows(out, "rejects")
    assert rejects["content_sha256"].notna().all()
    assert rejects["error"].str.fullmatch(r"[^\n]+\.").all()
    assert record.counts.rejects_by_kind == {"crashed": 5, "not_an_image": 1, "timeout": 1}
    changing = ["scored_at"]
    expected = rows(tmp_path / "calm", "scores")
    expected = expected[~expected["image_uri"].isin(rejects["image_uri"])].reset_index(drop=True)
    pd.testing.assert_frame_equal(rows(out, "scores").drop(columns=changing), expected.drop(columns=changing))
    assert not list(out.glob("plans/**/begun/*"))

    (archive / "new.jpg").write_bytes(lesion("MEL", 50))
    tonight = run.score(settings(archive, out, bundle_path, run_date=TODAY), say=lambda line: None).record
    assert (tonight.counts.scored, tonight.counts.rejected, tonight.counts.done_before) == (1, 0, 17)


def test_a_shard_is_marked_while_it_is_scored_and_no_longer(
    lesion: Callable[..., bytes], bundle: Bundle, bundle_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(tmp_path / "archive", {"a.jpg": lesion()}, {})
    plan = plan_of(tmp_path / "archive", tmp_path / "out")
    scorer = shard.ShardScorer(bundle, plan, settings(tmp_path, tmp_path / "out", bundle_path))
    marked = []
    write = shard._write

    def watched(*arguments: Any) -> None:
        marked.append(storage.exists(plan.begun_uri(0)))
        write(*arguments)

    monkeypatch.setattr(shard, "_write", watched)
    scorer(pa.table({"shard": [0]}))
    assert (marked, storage.exists(plan.begun_uri(0))) == ([True], False)

    def fails(*_: object) -> None:
        raise OSError("The disk is full.")

    # An error is no death.
    monkeypatch.setattr(shard, "_write", fails)
    with pytest.raises(OSError, match="The disk is full"):
        scorer(pa.table({"shard": [0]}))
    assert not storage.exists(plan.begun_uri(0))


def test_workers_that_die_of_something_else_end_the_run_with_a_sentence(bucket: str, tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"")
    info = storage.info(str(tmp_path / "a.jpg"))
    plan = plans.freeze(f"s3://{bucket}", "a", RunHeader(run_date=YESTERDAY), [info], [], lambda images: 1)
    store = storage.Store(5)
    assert [begun.begin(plan, 0, store) for _ in range(begun.MOST_DEATHS)] == [False] + [True] * (begun.MOST_DEATHS - 1)
    with pytest.raises(MelanomaError, match=r"Workers died 10 times over shard 0, whose images are listed in s3://"):
        begun.begin(plan, 0, store)
    # The next attempt counts anew, and knows that somebody died.
    begun.count_anew(plan, plan.shards, store)
    assert begun.begin(plan, 0, store)
    begun.end(plan, 0, store)
    assert not begun.begin(plan, 0, store)


def test_a_picture_for_people_that_crashes_costs_no_alert(
    deadly: None, lesion: Callable[..., bytes], bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {"a": lesion("MEL", 1), "b": lesion("MEL", 2) + b"!crash!", "c": lesion("MEL", 3) + b"!hang!"}
    alerts = [
        {
            "image_uri": uri,
            "content_sha256": hashlib.sha256(data).hexdigest(),
            "is_held_back": False,
            "frame": None,
            "p_melanoma": 0.9,
        }
        for uri, data in files.items()
    ]
    shown = run_page.pictures(alerts, files.__getitem__, bundle, Limits(), seconds=2)
    assert [each.why_not for each in shown] == [None, *["the picture cannot be shown"] * 2]
    assert [each.picture is not None for each in shown] == [True, False, False]


def test_a_catalog_keeps_the_file_with_its_reason(deadly: None, lesion: Callable[..., bytes], tmp_path: Path) -> None:
    for name, data in {"a": lesion(), "b": lesion() + b"!crash!", "c": lesion(seed=2)}.items():
        (tmp_path / "melanoma").mkdir(exist_ok=True)
        (tmp_path / "melanoma" / f"{name}.jpg").write_bytes(data)
    rows = build([str(tmp_path)]).set_index("image_id")
    assert rows["error"].isna().to_dict() == {"a": True, "b": False, "c": True}
    assert "signal 11 (segmentation fault)" in rows["error"]["b"]
    assert rows["sha256"]["b"] == hashlib.sha256((tmp_path / "melanoma" / "b.jpg").read_bytes()).hexdigest()


def test_predict_answers_for_the_other_files(
    deadly: None, command: Callable[..., Any], lesion: Callable[..., bytes], bundle_path: Path, tmp_path: Path
) -> None:
    for name, data in {"a": lesion(), "b": lesion() + b"!crash!"}.items():
        (tmp_path / f"{name}.jpg").write_bytes(data)
    said = command("predict", tmp_path / "b.jpg", tmp_path / "a.jpg", "--bundle", bundle_path, "--json")
    assert said.code == 2
    assert [row.get("error_kind") for row in json.loads(said.out)] == ["crashed", None]


@pytest.mark.slow
def test_two_nights_with_files_that_kill_and_hang(
    lesion: Callable[..., bytes],
    bundle_path: Path,
    program: str,
    program_environment: dict[str, str],
    tmp_path: Path,
) -> None:
    """Two workers of a real Ray: deadly files in every shard, several in some, and the first of both workers."""
    archive, out = tmp_path / "archive", tmp_path / "out"
    good = {f"{seed:03}.jpg": lesion(("MEL", "NV")[seed % 2], seed) for seed in range(200)}
    bad = {
        f"{number:03}-{word}.jpg": lesion() + f"!{word}!".encode()
        for number in range(0, 200, 25)
        for word in ("crash",)
    }
    bad |= {
        f"{number:03}-{word}.jpg": lesion() + f"!{word}!".encode() for number in (3, 130) for word in ("hang", "exit")
    }
    bad["090-memory.jpg"] = lesion() + b"!memory!"
    fill(archive, good | bad, {"a.jpg": lesion("MEL", 300), "b.jpg": lesion() + b"!crash!", "c.jpg": lesion("NV", 301)})
    expected = {name: "timeout" if "hang" in name else "crashed" for name in bad}
    expected |= dict.fromkeys(["ward.tar!/b.jpg", "ward.zip!/b.jpg"], "crashed")
    (tmp_path / "score.yaml").write_text(
        "shard_size: 25\nworkers: 2\ndecode_seconds: 5\nmax_pixels: 4000000\nexplained: 1\n"
    )
    paths = [str(deadly_files.FOLDER), program_environment.get("PYTHONPATH", "")]
    environment = {**program_environment, "PYTHONPATH": os.pathsep.join(paths)}

    def night(date: str) -> None:
        words = [program, "score", str(archive), "--out", str(out), "--bundle", str(bundle_path)]
        words += ["--config", str(tmp_path / "score.yaml"), "--run-date", date]
        ended = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
        assert ended.returncode == 0, ended.stderr
        assert "Traceback" not in ended.stderr

    night(YESTERDAY)
    assert kinds(out) == expected
    assert rows(out, "rejects")["content_sha256"].notna().all()
    assert len(rows(out, "scores")) == len(good) + 4
    (archive / "new.jpg").write_bytes(lesion("MEL", 400))
    night(TODAY)
    assert rows(out, "scores", TODAY)["image_uri"].tolist() == [str(archive / "new.jpg")]
    assert kinds(out, TODAY) == {}
