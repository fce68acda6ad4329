"""A training that learned nothing is told apart from one that did."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from melanoma import cli, taxonomy
from melanoma.catalog import schema
from melanoma.catalog.build import build
from melanoma.catalog.split import split
from melanoma.evaluation.operating_point import choose_thresholds
from melanoma.training.measure import learned_nothing

LABELS = ["MEL" if number % 3 == 0 else "NV" for number in range(90)]
GROUPS = [f"group-{number}" for number in range(90)]
MELANOMA = np.array([label == "MEL" for label in LABELS])


def said(p_melanoma: np.ndarray, labels: list[str] = LABELS, groups: list[str] = GROUPS) -> str | None:
    probabilities = np.zeros((len(labels), len(taxonomy.CODES)))
    probabilities[:, taxonomy.CODES.index("MEL")] = p_melanoma
    thresholds = choose_thresholds(labels, p_melanoma, np.array(groups, dtype=object), 0.95, "observed", 0.95)
    return learned_nothing(probabilities, labels, groups, thresholds, 0)


def test_chance_is_nothing_and_a_little_better_is_something() -> None:
    rng = np.random.default_rng(0)
    sentence = said(rng.random(90))
    assert sentence
    assert sentence.startswith("The training has learned nothing: the AUC of melanoma on validation is 0.")
    assert "labels (melanoma audit), the learning rate and the number of epochs" in sentence
    assert said(0.3 * MELANOMA + 0.5 * rng.random(90)) is None


def test_raising_every_image_is_nothing() -> None:
    p_melanoma = np.where(MELANOMA, 0.9, 0.5)
    p_melanoma[np.flatnonzero(MELANOMA)[:3]] = 0.1  # without these three the sensitivity is not reached
    sentence = said(p_melanoma)
    assert sentence
    assert "at the stated sensitivity every image of validation is raised" in sentence


def test_few_melanomas_tell_nothing() -> None:
    assert said(np.random.default_rng(0).random(24), LABELS[:24], GROUPS[:24]) is None


@pytest.mark.slow
@pytest.mark.parametrize("random", [True, False])
def test_a_training_on_random_labels_exits_1_with_its_bundle_written(
    ray_cluster: None, capsys: pytest.CaptureFixture[str], lesion: Callable[..., bytes], tmp_path: Path, random: bool
) -> None:
    for code in ("MEL", "NV"):
        (tmp_path / "set" / taxonomy.NAMES[code]).mkdir(parents=True)
        for seed in range(40):
            (tmp_path / "set" / taxonomy.NAMES[code] / f"{code}-{seed}.jpg").write_bytes(lesion(code, seed))
    frame = split(build([str(tmp_path / "set")]), validation=0.4, test=0.0, seed=0)
    if random:
        for name in ("train", "validation"):
            rows = frame["split"] == name
            frame.loc[rows, "label"] = np.random.default_rng(1).permutation(frame.loc[rows, "label"].to_numpy())
    schema.write(str(tmp_path / "catalog.parquet"), frame)
    training: dict[str, Any] = {
        "catalog": str(tmp_path / "catalog.parquet"),
        "checkpoints": str(tmp_path / "checkpoints"),
        "image_size": 32,
        "network": {"name": "residual", "width": 4},
        "epochs": 1 if random else 12,
        "batch_size": 16,
        "warmup_epochs": 0,
        "cpus_per_worker": 0.5,
    }
    (tmp_path / "train.yaml").write_text(yaml.safe_dump(training))
    with pytest.raises(SystemExit) as ended:
        cli.main(["train", "--config", str(tmp_path / "train.yaml"), "--out", str(tmp_path / "bundle")])
    assert (tmp_path / "bundle" / "bundle.json").exists()
    err = " ".join(capsys.readouterr().err.split())
    assert ended.value.code == (1 if random else 0), err
    assert ("The training has learned nothing" in err) == random
    if random:
        assert err.endswith("and the number of epochs.")
