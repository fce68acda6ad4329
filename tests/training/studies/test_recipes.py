"""What a recipe is worth on a source that was left out."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from sklearn.metrics import roc_auc_score

from melanoma import taxonomy
from melanoma.catalog import schema
from melanoma.catalog.build import build
from melanoma.catalog.split import split
from melanoma.errors import InputError
from melanoma.training.studies import recipes
from melanoma.training.studies.config import RecipesConfig
from melanoma.training.studies.recipes_table import OfMalignancy, OnSource, table


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
def test_what_is_left_out_is_tested_on_but_for_what_is_trained_on_too(
    ray_cluster: None, catalog: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recipes, "FEWEST", 5)
    frame = schema.read(catalog)
    elsewhere = frame["source"] == "elsewhere"
    frame.loc[elsewhere & (frame.index % 5 == 0), "split"] = "test"
    schema.write(catalog, frame)
    settings = _settings(catalog, recipes={"plain": {"epochs": 2}}, seeds=[3, 4], images_per_source=9)
    found = recipes.run(settings, lambda line: None)
    here = set(frame.loc[frame["source"] == "here", "group_id"])
    unseen = frame[elsewhere & ~frame["group_id"].isin(here) & (frame["split"] != "test")]
    assert 0 < len(unseen) < elsewhere.sum()
    outcomes = found["plain"]["elsewhere"]
    assert [outcome.made_of["config"]["seed"] for outcome in outcomes.values()] == [3, 4]
    for outcome in outcomes.values():
        tested = outcome.on["elsewhere"]
        assert sum(tested.melanoma) == (unseen["label"] == "MEL").sum()
        assert len(tested.melanoma) == len(unseen)
        assert tested.malignancy is not None
        assert tested.malignancy.n_malignant == unseen["label"].isin(["MEL", "BCC"]).sum()
        assert 0 <= (tested.malignancy.sensitivity.value or 0) <= 1
    assert (Path(settings.out) / "recipes.md").read_text().splitlines()[2].startswith("| plain | ")

    # What is done is not done again, and what has changed is.
    said: list[str] = []
    assert recipes.run(settings, said.append) == found
    assert said == []
    recipes.run(_settings(catalog, recipes={"plain": {"epochs": 2}}, seeds=[3, 5], images_per_source=9), said.append)
    assert [line for line in said if line.startswith("---")] == ["--- plain, without elsewhere, seed 5"]
    written = json.loads((Path(settings.out) / "recipes.json").read_text())
    assert list(written["plain"]["elsewhere"]) == ["3", "4", "5"]


def test_a_source_with_few_melanomas_is_trained_on_and_not_reported(catalog: str) -> None:
    usable = schema.usable(schema.read(catalog), "all").reset_index(drop=True)
    few = usable["source"] == "here"
    usable = usable[~(few & (usable["label"] == "MEL"))].reset_index(drop=True)
    usable = pd.concat([usable, usable[usable["source"] == "elsewhere"].assign(group_id=lambda t: "b" + t["group_id"])])
    settings = _settings(catalog, leave_out="each")
    entries, notes = recipes._left_out(settings, usable.reset_index(drop=True))
    assert entries == [("elsewhere",)]
    assert [note.partition(" ")[0] for note in notes] == ["here"]
    assert notes[0].endswith("not reported alone, and always trained on.")


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"leave_out": [["nowhere"]]}, "has no source 'nowhere' to leave out"),
        ({}, "No source of .* that is to be left out has 20 melanomas"),
        ({"recipes": {"bold": {"learning_rat": 1}}}, "Unknown key 'learning_rat'.* did you mean 'learning_rate'"),
        ({"recipes": {"many": {"members": 3}}}, "The recipe 'many' has copies, a leaked twin or several members"),
    ],
    ids=str,
)
def test_a_recipe_that_cannot_be_tried_is_a_sentence(catalog: str, values: dict[str, object], words: str) -> None:
    with pytest.raises(InputError, match=words):
        recipes.run(_settings(catalog, **values), lambda line: pytest.fail(line))


def _tested(seed: int, good: float) -> OnSource:
    rng = np.random.default_rng(seed)
    melanoma = np.arange(60) % 3 == 0
    score = np.clip(0.5 + good * (melanoma - 0.5) + 0.2 * rng.normal(size=60), 0, 1)
    return OnSource(
        threshold=0.5, group=tuple(range(60)), melanoma=tuple(melanoma.tolist()), p_melanoma=tuple(score.tolist())
    )


def test_the_table_has_means_over_sources_and_each_source_by_itself() -> None:
    found = {
        "good": {"a": [_tested(1, 0.6), _tested(2, 0.6)], "b": [_tested(3, 0.6), _tested(4, 0.6)]},
        "poor": {"a": [_tested(5, 0.0), _tested(6, 0.0)], "b": [_tested(7, 0.0), _tested(8, 0.0)]},
    }
    text = table(found, ["c is not reported alone."])
    means, sources = ([line.strip("| ").split(" | ") for line in part.splitlines()] for part in text.split("\n\n")[:2])
    assert [row[0] for row in means] == ["recipe", "---", "good", "poor"]
    areas = [roc_auc_score(each.melanoma, each.p_melanoma) for of in found["poor"].values() for each in of]
    assert means[3][1].startswith(f"{np.mean(areas):.3f} [")
    assert means[2][2].startswith("0.000 [0.000, 0.000]")
    low, high = (float(each) for each in means[3][2].partition("[")[2].strip("]").split(", "))
    assert low < float(means[3][2].partition(" ")[0]) < high < 0
    assert len(sources) == 2 + 8
    first = found["good"]["a"][0]
    raised = np.array(first.p_melanoma)[list(first.melanoma)] >= 0.5
    assert sources[2][:5] == ["a", "60", "20", "good", "1"]
    assert sources[2][6].startswith(f"{raised.mean():.3f} [")
    assert "c is not reported alone." in text


def test_the_table_of_sources_has_any_malignancy_where_a_recipe_asks_it() -> None:
    known = {"value": 0.5, "low": 0.25, "high": 0.75}
    of_malignancy = OfMalignancy.model_validate({"n_malignant": 31, "sensitivity": known, "specificity": known})
    asks = _tested(1, 0.6).model_copy(update={"malignancy": of_malignancy})
    lines = table({"asks": {"a": [asks]}, "asks not": {"a": [_tested(1, 0.6)]}}).splitlines()
    sources = [line.strip("| ").split(" | ") for line in lines if line.startswith(("| left out", "| a |"))]
    assert [row[8:] for row in sources] == [
        ["malignant", "their sensitivity", "their specificity"],
        ["31", "0.500 [0.250, 0.750]", "0.500 [0.250, 0.750]"],
        ["not asked"] * 3,
    ]
    assert "not asked" not in table({"asks not": {"a": [_tested(1, 0.6)]}})
