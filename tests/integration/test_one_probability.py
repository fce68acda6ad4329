"""One image, one probability: `melanoma predict`, `melanoma evaluate` and `melanoma score` give the same for a file."""

import contextlib
import json
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from melanoma import config, taxonomy
from melanoma.demo.archive_files import good_files
from melanoma.demo.lesions import draw_lesion
from melanoma.demo.local_s3 import LocalS3
from melanoma.scoring.config import ScoreConfig
from melanoma.scoring.run import score
from tests.support.in_this_process import scored_in_this_process

P = [f"p_{code}" for code in taxonomy.CODES]


@dataclass(frozen=True)
class Run:
    """A scoring run: {images} and {bucket} in `archive` are filled in."""

    archive: str
    settings: dict[str, Any] = field(default_factory=dict)
    on_ray: bool = True


def same_probabilities(
    command: Callable[..., Any],
    s3: LocalS3,
    bucket: str,
    bundle_path: Path,
    images: Path,
    folder: Path,
    runs: Sequence[Run],
) -> None:
    """Hold `melanoma predict`, `melanoma evaluate` and scoring `runs` to one answer for each file below `images`, a
    folder of class folders."""
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

    for number, run in enumerate(runs):
        archive, out = run.archive.format(images=images, bucket=bucket), folder / f"out-{number}"
        settings = config.load(
            ScoreConfig, None, archive=archive, out=str(out), bundle=str(bundle_path), shard_size=17, **run.settings
        )
        with contextlib.nullcontext() if run.on_ray else scored_in_this_process():
            score(settings, say=lambda _: None)
        scored = pd.read_parquet(out / "scores")
        root = archive.removeprefix("file://").rstrip("/")
        scored.index = [uri.removeprefix(f"{root}/") for uri in scored["image_uri"]]
        answers[f"{archive} {run.settings}"] = scored

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
    drawn = [draw_lesion(code, number, 120, 100) for number, code in enumerate(codes)]
    for code, (name, data) in zip(codes, good_files(drawn), strict=True):
        path = folder / taxonomy.NAMES[code] / Path(name).name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return folder


@pytest.mark.parametrize("form", ["bundle_path", "compiled_bundle_path"])
def test_every_way_gives_one_probability(
    command: Callable[..., Any],
    s3: LocalS3,
    bucket: str,
    ray_cluster: None,
    form: str,
    pictures: Path,
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> None:
    bundle_path = request.getfixturevalue(form)
    runs = [
        Run("{images}", {"batch_size": 32}, on_ray=False),
        Run("s3://{bucket}/images/", {"batch_size": 1, "workers": 2}),
    ]
    same_probabilities(command, s3, bucket, bundle_path, pictures, tmp_path, runs)


ALL_RUNS = [
    Run(archive, {"batch_size": batch_size, "workers": workers})
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
    same_probabilities(command, s3, bucket, bundle_path, images, tmp_path, ALL_RUNS)
