"""One night, end to end, on one machine: every part is the real one, only small.

Object storage (an S3 server on loopback), Ray Train with two workers, a bundle, Ray Data over an archive of good and
broken files, alerts in Parquet. The images are real ones where the environment variable MELANOMA_DATA names a folder
with the nine-class ISIC set, else generated lesions.
"""

import contextlib
import os
import shutil
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from melanoma import config, ray_session, storage, taxonomy
from melanoma.catalog import build, resolve, schema
from melanoma.catalog import split as splitting
from melanoma.demo import local_s3
from melanoma.demo.archive_files import broken_files, good_files
from melanoma.demo.lesions import write_class_folders
from melanoma.errors import InputError
from melanoma.imaging import load
from melanoma.scoring.config import ScoreConfig
from melanoma.scoring.record import RunRecord
from melanoma.scoring.run import score
from melanoma.training import train
from melanoma.training.config import TrainConfig

_MARK = ".melanoma-demo"
_BUCKETS = ("training", "models", "archive", "results")
_PER_CLASS = 70
_SEED = 0
_RULES = "isic9.yaml"  # beside this file, where a wheel has it, too: a link to that of configs/

TRAINING: dict[str, Any] = {
    "catalog": "s3://models/catalog.parquet",
    "out": "s3://models/demo",
    "checkpoints": "s3://models/checkpoints",
    "seed": _SEED,
    "image_size": 64,
    "network": {"width": 8, "dropout": 0.1},
    "epochs": 10,
    "batch_size": 32,
    "learning_rate": 0.004,
    "balance": {"sampling": 0.5, "loss_weights": 0.5},
    "augmentation": [
        {"operation": "flip_left_right", "probability": 0.5},
        {"operation": "rotate_random_90", "probability": 0.75},
        {"operation": "random_brightness", "probability": 0.5, "min_factor": 0.8, "max_factor": 1.2},
    ],
    "select_by": "melanoma_auc",
    "workers": 2,
    "cpus_per_worker": 0.5,
}


def demo(out: Path, say: Callable[[str], None]) -> RunRecord:
    """Run the demo in the folder `out` and return the commit record of its scoring run.

    Raises InputError where `out` holds something that is not an earlier demo's, or there is no rclone.
    """
    began = time.monotonic()
    local_s3.find_rclone()  # before anything is written
    objects = _fresh(out)
    with local_s3.serve(objects, log=out / "s3.log") as server, _environment(server.environment()):
        say(f"Object storage: an S3 server at {server.endpoint}, its buckets are the folders of {objects}.")
        training, archive, what = _images(out / "generated", say)
        _upload("s3://training", training)
        _upload("s3://archive", archive)
        say(f"{len(training)} {what} in s3://training; an archive of {len(archive)} files in s3://archive.")

        frame = splitting.split(build.build(["s3://training"]), validation=0.2, test=0.15, seed=_SEED)
        schema.write(TRAINING["catalog"], frame)
        settings = config.load(TrainConfig, None, **TRAINING)
        bundle = train.train(settings, _epoch_line(settings.epochs, say), say)

        outcome = score(
            config.load(
                ScoreConfig,
                None,
                archive="s3://archive",
                out="s3://results",
                bundle=TRAINING["out"],
                shard_size=32,
            ),
            say=say,
        )
    record, counts = outcome.record, outcome.record.counts
    metrics = bundle.manifest.metrics
    folder = f"run_date={record.run_date}/run_id={record.run_id}"
    kinds = ", ".join(f"{number} {kind}" for kind, number in counts.rejects_by_kind.items())
    say(
        f"""
What was done, in {time.monotonic() - began:.0f} seconds
  A small neural network was trained on {sum(bundle.manifest.training.class_counts["train"].values())} {what}, by
  two Ray Train workers reading from object storage. On {metrics["n"]} other images its melanoma AUC is
  {_figure(metrics["melanoma_auc"])}. That is the size of a demo, not of a model to rely on.
  Then every file of an archive was looked at, as it would be at night in a hospital:
    {counts.listed} files listed
    {counts.scored} images scored
    {counts.rejected} files rejected ({kinds})
    {counts.alerts} melanoma alerts: {counts.urgent} urgent, {counts.review} for review
Where it lies
  page     {objects / "results" / "runs" / f"run_id={record.run_id}" / "run.html"}
  alerts   {objects / "results" / "alerts" / folder / "alerts.parquet"}
  scores   {objects / "results" / "scores" / folder}
  rejects  {objects / "results" / "rejects" / folder}
  report   {objects / "models" / "demo" / "evaluation" / "report.html"}
See the list that a dermatologist would get: .venv/bin/melanoma alerts {objects / "results"}"""
    )
    return record


def _figure(figure: dict[str, Any]) -> str:
    return f"{figure['value']:.2f} (95% interval {figure['low']:.2f} to {figure['high']:.2f})"


def _epoch_line(epochs: int, say: Callable[[str], None]) -> Callable[[dict[str, float]], None]:
    def line(metrics: dict[str, float]) -> None:
        say(
            f"  epoch {metrics['epoch']:.0f} of {epochs}: loss {metrics['loss']:.2f}, on validation: accuracy "
            f"{metrics['accuracy']:.2f}, melanoma AUC {metrics['melanoma_auc']:.2f}"
        )

    return line


def _fresh(out: Path) -> Path:
    """An empty folder for the buckets. Only what an earlier demo made is removed."""
    out = out.absolute()
    if out.exists() and any(out.iterdir()) and not (out / _MARK).exists():
        raise InputError(f"The folder {out} is not empty and not of an earlier demo: choose another with --out.")
    if out.exists():
        shutil.rmtree(out)
    for bucket in _BUCKETS:
        (out / "objects" / bucket).mkdir(parents=True)
    (out / _MARK).touch()
    return out / "objects"


@contextlib.contextmanager
def _environment(variables: dict[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        ray_session.disconnect()
        for name, value in before.items():
            if value is None:
                os.environ.pop(name)
            else:
                os.environ[name] = value


def _images(generated: Path, say: Callable[[str], None]) -> tuple[dict[str, bytes], dict[str, bytes], str]:
    """Training images by key (one folder a class), the files of the archive by key, and what they are in words."""
    data = Path(os.environ.get("MELANOMA_DATA") or generated)
    if (data / "isic9" / "Train").is_dir():
        of_class = _repaired(data / "isic9", say)
        what = f"real dermoscopy images of {len(of_class)} diagnoses"
    else:
        data, what = generated, "generated lesions of nine kinds"
        write_class_folders(data / "isic9" / "Train", _PER_CLASS, seed=_SEED)
        write_class_folders(data / "isic9" / "Test", 14, seed=_SEED + 1)
        of_class = {folder.name: sorted(folder.iterdir()) for folder in sorted((data / "isic9" / "Train").iterdir())}
    generator = np.random.default_rng(_SEED)
    training = {}
    for name, files in of_class.items():
        for place in generator.permutation(len(files))[:_PER_CLASS]:
            training[f"{name}/{files[place].name}"] = files[place].read_bytes()
    pictures = sorted((data / "isic9" / "Test").rglob("*.jpg"))
    archive = {f"2026/{path.name}": path.read_bytes() for path in pictures[::2]}
    archive |= {f"camera/{path.name}": path.read_bytes() for path in sorted((data / "uda1").rglob("*.jpg"))[:12]}
    others = [np.asarray(load.picture(str(path))) for path in pictures[1::5]]
    archive |= {f"formats/{name}": data for name, data in good_files(others)}
    archive |= {f"broken/{file.name}": file.data for file in broken_files(_SEED)}
    return training, archive, what


def _repaired(folder: Path, say: Callable[[str], None]) -> dict[str, list[Path]]:
    """The training images of the nine-class set by the name of their class, as the rules of repair leave them."""
    rules = config.load(resolve.Rules, str(Path(__file__).with_name(_RULES)))
    frame, counts = resolve.resolve(build.build([str(folder)]), rules)
    say(f"The nine-class set contradicts itself: {sum(counts):,} changes by configs/{_RULES} have repaired its labels.")
    of_label = schema.usable(frame, "train").groupby("label")
    return {taxonomy.name_of(str(label)): [Path(uri) for uri in sorted(rows["uri"])] for label, rows in of_label}


def _upload(bucket: str, files: dict[str, bytes]) -> None:
    with ThreadPoolExecutor(max_workers=8) as pool:
        list(pool.map(lambda item: storage.write_bytes(f"{bucket}/{item[0]}", item[1]), files.items()))
