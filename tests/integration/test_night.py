"""Nights as they are run: the command in a process of its own, killed and run again; and one image's probability on
every way that there is to get it."""

import json
import os
import re
import shutil
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from melanoma import config, taxonomy
from melanoma.demo import synthetic
from melanoma.demo.local_s3 import LocalS3
from melanoma.scoring.config import ScoreConfig
from melanoma.scoring.run import score

P = [f"p_{code}" for code in taxonomy.CODES]


def kill(process: "subprocess.Popen[bytes]", started: Iterable[int]) -> None:
    """SIGKILL the process group of a command, and see that what it has `started` ends with it."""
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    deadline = time.monotonic() + 30
    # Ray's processes end when the one that started them does; its workers, a moment later.
    while (left := {pid for pid in started if Path(f"/proc/{pid}").exists()}) and time.monotonic() < deadline:
        time.sleep(0.05)
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert not left, f"the killed command left {left} running"


def test_a_night_that_is_killed_goes_on_where_it_was(
    s3: LocalS3,
    bucket: str,
    bundle_path: Path,
    lesion: Callable[..., bytes],
    program: str,
    program_environment: dict[str, str],
    contents: Callable[[Path], dict[str, tuple[int, bytes]]],
    descendants: Callable[[int], dict[int, str]],
    tmp_path: Path,
) -> None:
    archive, out = s3.root / bucket / "archive", s3.root / bucket / "results"
    archive.mkdir()
    # Large enough that the night takes a while.
    pictures = [lesion(code, 1, size=1500) for code in ("MEL", "NV")]
    for number in range(120):
        (archive / f"{number:03}.jpg").write_bytes(pictures[number % 2])
    (archive / "text.jpg").write_bytes(b"no picture")
    settings = tmp_path / "score.yaml"
    settings.write_text("shard_size: 3\nworkers: 1\n")
    words = [program, "score", f"s3://{bucket}/archive", "--out", f"s3://{bucket}/results"]
    words += ["--bundle", str(bundle_path), "--config", str(settings)]

    first = subprocess.Popen(
        words, env=program_environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    try:
        deadline = time.monotonic() + 180
        while not any(out.glob("scores/*/*/*.parquet")):
            assert first.poll() is None, "the night ended before it could be killed"
            assert time.monotonic() < deadline, "the night did not begin"
            time.sleep(0.002)
    finally:
        if first.poll() is None:
            kill(first, descendants(first.pid))
    before = contents(out)
    done = {name for name in before if name.startswith("scores/")}
    assert 0 < len(done) < 41, "the night was not killed in its middle"
    assert not [name for name in before if re.fullmatch(r"runs/[^/]*\.json", name) or name.startswith("alerts/")]

    second = subprocess.run(words, env=program_environment, capture_output=True, text=True, check=False)
    assert second.returncode == 0, second.stderr
    lines = second.stderr.splitlines()
    (run,) = (found[1] for line in lines if (found := re.fullmatch(r"Going on with the run (\S+)\.", line)))
    assert any(re.fullmatch(r"\d+ of 121 images were done before the interruption\.", line) for line in lines)
    dead = [
        "Another driver has been at work here: looking for 15 s whether it is alive.",
        "It is not: going on in its place.",
    ]
    assert [line for line in lines if line in dead] == dead
    logged = [json.loads(line) for line in lines if line.startswith("{")]
    assert (logged[-1]["done"], logged[-1]["images"], logged[-1]["rejects_by_kind"]) == (121, 121, {"not_an_image": 1})
    told = [line for line in lines if line not in dead and not line.startswith("{")]
    assert all(re.match(r"Going on|Scoring: \d+ of 121$|\d+ of 121", line) for line in told), told
    after = contents(out)
    assert {name: after[name] for name in done} == {name: before[name] for name in done}
    assert len([name for name in after if name.startswith("scores/")]) == 41
    tables = {kind: pd.read_parquet(f"s3://{bucket}/results/{kind}") for kind in ("scores", "rejects", "alerts")}
    uris = Counter([*tables["scores"]["image_uri"], *tables["rejects"]["image_uri"]])
    assert uris == Counter(f"s3://{bucket}/archive/{path.name}" for path in archive.iterdir())
    assert tables["rejects"]["image_uri"].tolist() == [f"s3://{bucket}/archive/text.jpg"]
    assert set(tables["scores"]["run_id"]) == {run}
    record = json.loads((out / "runs" / f"run_id={run}.json").read_text())
    assert (record["counts"]["scored"], record["counts"]["rejected"], record["stages"]["resumed"]) == (120, 1, True)
    assert len(tables["alerts"]) == record["counts"]["alerts"]

    third = subprocess.run(words, env=program_environment, capture_output=True, text=True, check=False)
    assert (third.returncode, third.stderr) == (0, "")
    assert f"The run {run} was finished at {record['finished_at']}: nothing was changed." in third.stdout
    assert contents(out) == after


@pytest.mark.slow
@pytest.mark.parametrize(("number", "word"), [(signal.SIGINT, "Interrupted"), (signal.SIGTERM, "Terminated")])
def test_a_night_that_is_stopped_says_so_and_leaves_nothing_running(
    number: signal.Signals,
    word: str,
    bundle_path: Path,
    lesion: Callable[..., bytes],
    program: str,
    program_environment: dict[str, str],
    descendants: Callable[[int], dict[int, str]],
    tmp_path: Path,
) -> None:
    archive, out = tmp_path / "archive", tmp_path / "out"
    archive.mkdir()
    picture = lesion("MEL", 1, size=1500)
    for count in range(400):
        (archive / f"{count:03}.jpg").write_bytes(picture)
    words = [program, "score", str(archive), "--out", str(out), "--bundle", str(bundle_path)]
    with subprocess.Popen(words, env=program_environment, stderr=subprocess.PIPE, text=True) as night:
        while not any(out.glob("scores/*/*/*.parquet")):
            assert night.poll() is None, "the night ended before it could be stopped"
            time.sleep(0.01)
        started = descendants(night.pid)
        night.send_signal(number)
        said = night.communicate(timeout=60)[1]
    assert night.returncode == 3
    assert said.splitlines()[-1] == f"melanoma: {word}."
    assert "Traceback" not in said
    deadline = time.monotonic() + 30
    while (left := [pid for pid in started if Path(f"/proc/{pid}").exists()]) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not left, [started[pid] for pid in left]
    assert not list((out / "runs").glob("*.json"))


# --- one image, one probability --------------------------------------------------------------------------------------


def same_probabilities(
    command: Callable[..., Any],
    s3: LocalS3,
    bucket: str,
    bundle_path: Path,
    images: Path,
    folder: Path,
    nights: list[tuple[str, dict[str, Any]]],
) -> None:
    """Hold `melanoma predict`, `melanoma evaluate` and `melanoma score` to one answer for each file below `images`, a
    folder of class folders.

    `nights`: an archive (in which {images} and {bucket} are filled in) and the settings of its scoring run.
    """
    paths = sorted(path for path in images.rglob("*") if path.is_file())
    shutil.copytree(images, s3.root / bucket / "images")
    said = command("predict", *paths, "--bundle", bundle_path, "--json")
    assert said.code == 0
    predicted = pd.DataFrame(json.loads(said.out))
    predicted.index = [Path(uri).relative_to(images).as_posix() for uri in predicted["image_uri"]]
    assert np.ptp(predicted["p_melanoma"]) > 0.01, "the images must not all look alike to the model"
    assert len(predicted) == len(paths)

    assert command("catalog", images, "-o", folder / "catalog.parquet").code == 0
    words = ["evaluate", bundle_path, folder / "catalog.parquet", "--split", "all", "--out", folder / "evaluation"]
    assert command(*words).code == 0
    evaluated = pd.read_parquet(folder / "evaluation" / "predictions.parquet")
    evaluated.index = [Path(uri).relative_to(images).as_posix() for uri in evaluated["uri"]]
    answers = {"evaluate": evaluated}

    for number, (archive, settings) in enumerate(nights):
        archive, out = archive.format(images=images, bucket=bucket), folder / f"out-{number}"
        chosen = config.load(
            ScoreConfig, None, archive=archive, out=str(out), bundle=str(bundle_path), shard_size=17, **settings
        )
        score(chosen, say=lambda _: None)
        scored = pd.read_parquet(out / "scores")
        root = archive.removeprefix("file://").rstrip("/")
        scored.index = [uri.removeprefix(f"{root}/") for uri in scored["image_uri"]]
        answers[f"{archive} {settings}"] = scored

    for way, answer in answers.items():
        assert sorted(answer.index) == sorted(predicted.index), way
        answer = answer.loc[predicted.index]
        columns = [*P, "p_melanoma", "p_malignant", "threshold", "outlier_score"]
        difference = np.abs(answer[columns].to_numpy(float) - predicted[columns].to_numpy(float))
        assert difference.max() <= 1e-5, way
        for name in ("model_version", "diagnosis", "alert_level"):
            assert answer[name].tolist() == predicted[name].tolist(), (way, name)


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """48 files of all formats that are read, in a folder for each diagnosis."""
    folder = tmp_path / "pictures"
    codes = [taxonomy.CODES[number % 9] for number in range(48)]
    drawn = [synthetic.draw_lesion(code, number, 120, 100) for number, code in enumerate(codes)]
    for code, (name, data) in zip(codes, synthetic.good_files(drawn), strict=True):
        path = folder / taxonomy.NAMES[code] / Path(name).name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return folder


def test_every_way_gives_one_probability(
    command: Callable[..., Any],
    s3: LocalS3,
    bucket: str,
    ray_cluster: None,
    bundle_path: Path,
    pictures: Path,
    tmp_path: Path,
) -> None:
    nights = [
        ("{images}", {"batch_size": 32, "workers": 1}),
        ("s3://{bucket}/images/", {"batch_size": 1, "workers": 2}),
    ]
    same_probabilities(command, s3, bucket, bundle_path, pictures, tmp_path, nights)


ALL_NIGHTS: list[tuple[str, dict[str, Any]]] = [
    (archive, {"batch_size": batch_size, "workers": workers})
    for archive in ("{images}", "file://{images}", "s3://{bucket}/images", "s3://{bucket}/images/")
    for batch_size in (1, 32)
    for workers in (1, 2)
]


@pytest.mark.slow
def test_every_way_gives_one_probability_of_real_images(
    command: Callable[..., Any], s3: LocalS3, bucket: str, ray_cluster: None, bundle_path: Path, tmp_path: Path
) -> None:
    data = Path(os.environ.get("MELANOMA_DATA") or "/nonexistent")
    if not (data / "isic9").is_dir():
        pytest.skip("MELANOMA_DATA names no folder with the nine-class ISIC set")
    images = tmp_path / "images"
    chosen = [*sorted((data / "isic9" / "Test").rglob("*.jpg")), *sorted((data / "uda1").rglob("*.jpg"))]
    for number, path in enumerate(chosen):
        label = path.parent.name if "isic9" in path.parts else "nevus"
        (images / label).mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, images / label / f"{number:03}-{path.name}")
    assert len(chosen) >= 200
    same_probabilities(command, s3, bucket, bundle_path, images, tmp_path, ALL_NIGHTS)
