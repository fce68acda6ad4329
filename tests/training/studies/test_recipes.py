"""What a recipe is worth on a source that was left out."""

import json
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
import yaml

from melanoma import taxonomy
from melanoma.catalog import schema
from melanoma.catalog.build import build
from melanoma.catalog.split import split
from melanoma.errors import InputError
from melanoma.model.manifest import Estimate
from melanoma.training.measure import Figures
from melanoma.training.studies import recipes
from melanoma.training.studies.config import RecipesConfig


@pytest.fixture
def catalog(tmp_path: Path, lesion: Callable[..., bytes]) -> str:
    """Two sources of generated lesions; the first four of each diagnosis are the same photographs in both."""
    for source, first in (("here", 0), ("elsewhere", 12)):
        for code in ("MEL", "NV", "BCC"):
            folder = tmp_path / source / taxonomy.NAMES[code]
            folder.mkdir(parents=True)
            for seed in [*range(4), *range(first + 4, first + 16)]:
                (folder / f"{code}-{seed}.jpg").write_bytes(lesion(code, seed))
    path = str(tmp_path / "catalog.parquet")
    frame = build([str(tmp_path / source) for source in ("here", "elsewhere")])
    schema.write(path, split(frame, validation=0.4, test=0.0, seed=0))
    return path


def _settings(catalog: str, **values: object) -> RecipesConfig:
    folder = Path(catalog).parent
    training = {
        "image_size": 32,
        "network": {"name": "student", "width": 4},
        "batch_size": 8,
        "epochs": 1,
        "warmup_epochs": 0,
        "cpus_per_worker": 0.5,
    }
    (folder / "train.yaml").write_text(yaml.safe_dump({**training, "catalog": "none", "out": "none"}))
    tree: dict[str, object] = {
        "config": str(folder / "train.yaml"),
        "catalog": catalog,
        "out": str(folder / "out"),
        "leave_out": [["elsewhere"]],
        "recipes": {"plain": {}},
        **values,
    }
    return RecipesConfig.model_validate(tree)


@pytest.mark.slow
def test_what_is_left_out_is_tested_on_but_for_what_is_trained_on_too(ray_cluster: None, catalog: str) -> None:
    settings = _settings(catalog, recipes={"plain": {"seed": 3}})
    found = recipes.run(settings, lambda line: None)
    frame = schema.read(catalog)
    here = set(frame.loc[frame["source"] == "here", "group_id"])
    unseen = frame[(frame["source"] == "elsewhere") & ~frame["group_id"].isin(here)]
    assert 0 < len(unseen) < (frame["source"] == "elsewhere").sum()
    figures = found["plain"]["elsewhere"].on["elsewhere"]
    for flips in ("1", "8"):
        assert figures[flips].n == len(unseen)
        assert figures[flips].n_melanoma == (unseen["label"] == "MEL").sum()
    assert found["plain"]["elsewhere"].made_of["config"]["seed"] == 3
    lines = (Path(settings.out) / "recipes.md").read_text().splitlines()
    assert lines[0] == "| recipe | elsewhere | elsewhere, 8 orientations |"
    assert lines[2].startswith(f"| plain | {figures['1'].melanoma_auc.value:.3f} [")

    # What is done is not done again, and what has changed is.
    said: list[str] = []
    assert recipes.run(settings, said.append) == found
    assert said == []
    recipes.run(_settings(catalog, recipes={"plain": {"seed": 4}}), said.append)
    assert said[0] == "--- plain, without elsewhere"
    written = json.loads((Path(settings.out) / "recipes.json").read_text())
    assert written["plain"]["elsewhere"]["made_of"]["config"]["seed"] == 4


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"leave_out": [["nowhere"]]}, "has no source 'nowhere' to leave out"),
        ({"recipes": {"bold": {"learning_rat": 1}}}, "Unknown key 'learning_rat'.* did you mean 'learning_rate'"),
        ({"recipes": {"many": {"members": 3}}}, "The recipe 'many' has copies, a leaked twin or several members"),
    ],
    ids=str,
)
def test_a_recipe_that_cannot_be_tried_is_a_sentence(catalog: str, values: dict[str, object], words: str) -> None:
    with pytest.raises(InputError, match=words):
        recipes.run(_settings(catalog, **values), lambda line: pytest.fail(line))


def test_the_table_has_a_row_a_recipe_and_a_column_a_source() -> None:
    half = Estimate(value=0.5, low=0.25, high=0.75)
    figures = Figures(n=9, n_melanoma=3, accuracy=half, balanced_accuracy=half, melanoma_auc=half)
    outcome = recipes.Outcome(
        made_of={}, epochs=1, best_epoch=1, seconds=1.0, validation={}, on={"a": {"1": figures, "8": figures}}
    )
    text = recipes.table({"x": {"a": outcome}, "y": {"a": outcome}})
    rows = pd.DataFrame([line.strip("| ").split(" | ") for line in text.splitlines()])
    assert rows[0].tolist() == ["recipe", "---", "x", "y"]
    assert rows.iloc[2].tolist() == ["x", "0.500 [0.250, 0.750]", "0.500 [0.250, 0.750]"]
