"""Searching with Ray Tune: what is drawn, what is stopped, what is left after an interruption."""

import dataclasses
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from melanoma import config, ray_session, taxonomy
from melanoma.catalog import schema
from melanoma.catalog.build import build
from melanoma.catalog.split import split
from melanoma.errors import InputError
from melanoma.training.config import TrainConfig
from melanoma.training.studies import search
from melanoma.training.studies.config import Space, TuneConfig
from tests.support.shared_ray import SharedRay

BAD, GOOD = 1e-9, 0.01
TRIALS = 2


@pytest.fixture
def training(tmp_path: Path, lesion: Callable[..., bytes]) -> str:
    """A training configuration of few generated lesions."""
    for code in ("MEL", "NV", "BCC"):
        (tmp_path / "set" / taxonomy.NAMES[code]).mkdir(parents=True)
        for seed in range(16):
            (tmp_path / "set" / taxonomy.NAMES[code] / f"{code}-{seed}.jpg").write_bytes(lesion(code, seed))
    catalog = str(tmp_path / "catalog.parquet")
    schema.write(catalog, split(build([str(tmp_path / "set")]), validation=0.5, test=0.0, seed=0))
    values = {
        "catalog": catalog,
        "out": str(tmp_path / "bundle"),
        "image_size": 32,
        "network": {"name": "student", "width": 8, "dropout": 0.0},
        "batch_size": 4,
        "epochs": 2,
        "warmup_epochs": 0,
        "cpus_per_worker": 0.5,
    }
    (tmp_path / "train.yaml").write_text(yaml.safe_dump(values))
    return str(tmp_path / "train.yaml")


def _settings(training: str, space: dict[str, Any], **values: Any) -> TuneConfig:
    out = str(Path(training).parent / "search")
    scheduler = {"grace_epochs": 1, "reduction": 3}
    return config.load(
        TuneConfig, None, config=training, out=out, search=space, scheduler=scheduler, samples=TRIALS, **values
    )


@pytest.mark.parametrize(
    ("space", "sentence"),
    [
        ({"choice": [1], "uniform": [0, 1]}, "give one of choice, uniform, log_uniform and integer"),
        ({}, "give one of"),
        ({"uniform": [1, 1]}, "the first end of uniform has to be below the second"),
        ({"log_uniform": [0, 1]}, "greater than 0"),
        ({"normal": [0, 1]}, "Unknown key 'search.learning_rate.normal'"),
    ],
)
def test_a_space_is_given_in_one_way(space: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        config.load(TuneConfig, None, config="train.yaml", out="out", search={"learning_rate": space})


@pytest.mark.parametrize(
    ("space", "sentence"),
    [
        ({"network.widht": {"choice": [4, 8]}}, "network.widht.*did you mean 'width'"),
        ({"network.width": {"uniform": [4, 8]}}, "network.width"),
        ({"learning_rate": {"choice": [-1.0]}}, "learning_rate.*greater than 0"),
        ({"run_name": {"choice": ["a"]}}, "'run_name' cannot be searched"),
        ({"batch_size.of": {"choice": [8]}}, "is a value, not a group"),
    ],
)
def test_a_wrong_key_is_known_before_anything_starts(training: str, space: dict[str, Any], sentence: str) -> None:
    settings = _settings(training, space)
    with pytest.raises(InputError, match=sentence):
        search.run(settings, print)
    assert not Path(settings.out).exists()


def test_what_a_trial_draws_depends_on_the_seed_and_its_number_alone() -> None:
    spaces = {
        "a": Space(choice=("x", "y")),
        "b": Space(uniform=(-1.0, 1.0)),
        "c": Space(log_uniform=(1e-4, 1e-1)),
        "d": Space(integer=(1, 3)),
    }
    drawn = [search.draw(spaces, 0, number) for number in range(200)]
    assert drawn == [search.draw(spaces, 0, number) for number in range(200)]
    assert drawn != [search.draw(spaces, 1, number) for number in range(200)]
    assert {each["a"] for each in drawn} == {"x", "y"}
    assert {each["d"] for each in drawn} == {1, 2, 3}
    assert all(-1 <= each["b"] <= 1 and 1e-4 <= each["c"] <= 1e-1 for each in drawn)
    # Half of a log-uniform sample lies below the geometric mean, and next to none of a uniform one would.
    assert 60 < sum(each["c"] < 10**-2.5 for each in drawn) < 140


@pytest.fixture
def separate_ray(shared_ray: SharedRay) -> Iterator[None]:
    """A Ray for this test alone: without a dashboard, Ray Train keeps the cores of a trial that Tune has ended."""
    with shared_ray.set_aside():
        ray_session.connect()
        yield
        ray_session.disconnect()


@pytest.mark.slow
def test_a_bad_trial_is_stopped_and_the_best_one_is_a_configuration(
    separate_ray: None, training: str, contents: Callable[[Path], dict[str, tuple[int, bytes]]]
) -> None:
    space = {"learning_rate": {"choice": [GOOD, BAD]}}
    # The first to come is never stopped: a seed whose first trial is the good one.
    seed = next(
        seed
        for seed in range(100)
        if [search.draw(_settings(training, space).search, seed, trial)["learning_rate"] for trial in range(TRIALS)]
        == [GOOD, BAD]
    )
    settings = _settings(training, space, seed=seed)
    said: list[str] = []
    table = search.run(settings, said.append)

    good, bad = table
    assert (good.trial, good.values, good.epochs) == ("trial-000", {"learning_rate": GOOD}, 2)
    assert (good.stopped_early, good.error) == (False, None)
    assert (bad.trial, bad.values, bad.epochs) == ("trial-001", {"learning_rate": BAD}, 1)
    assert (bad.stopped_early, bad.error) == (True, None)
    out = Path(settings.out)
    assert json.loads((out / "search.json").read_text())["trials"] == [dataclasses.asdict(result) for result in table]
    lines = (out / "search.md").read_text().splitlines()
    assert lines[2].startswith(f"| trial-000 | {GOOD} | 2 of 2 |")
    assert lines[3].endswith("| stopped early |")
    best = config.load(TrainConfig, str(out / "best.yaml"))
    assert best == config.load(TrainConfig, training, [f"learning_rate={GOOD}"])

    # Started again, it trains nothing and says the same.
    said.clear()
    before = contents(out / "checkpoints")
    assert search.run(settings, said.append) == table
    assert contents(out / "checkpoints") == before
    assert not [line for line in said if "epoch" in line]
    with pytest.raises(InputError, match="another out"):
        search.run(settings.model_copy(update={"overrides": ("weight_decay=0.5",)}), said.append)
