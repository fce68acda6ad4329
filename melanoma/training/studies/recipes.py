"""What a recipe is worth on cameras that it has not seen: train without some sources, and test on them.

Photographs of a left-out source whose group (same photograph, near-duplicate, lesion, patient) lies in a source that
is trained on, too, are not tested on.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from melanoma import config, ray_session, storage
from melanoma.catalog import schema
from melanoma.errors import InputError
from melanoma.model import bundle as bundles
from melanoma.model.manifest import JsonModel
from melanoma.model.predictor import CompiledNetwork, calibrated
from melanoma.training import loop, plan
from melanoma.training.config import TrainConfig
from melanoma.training.data import Split, TrainingData
from melanoma.training.fit import fit, new_run_name
from melanoma.training.input import cache_images
from melanoma.training.measure import Figures, cell, measure
from melanoma.training.studies.config import RecipesConfig

FLIPS = (1, 8)  # test-time flips to compare


class Outcome(JsonModel):
    """What one recipe came to without some sources."""

    made_of: dict[str, Any]  # the recipe's configuration, and the fingerprint of the catalog
    epochs: int
    best_epoch: int  # counted from 1
    seconds: float
    validation: dict[str, float]
    on: dict[str, dict[str, Figures]]  # by the source that was left out, and by the number of orientations


Outcomes = dict[str, dict[str, Outcome]]  # by recipe, and by what was left out


def run(settings: RecipesConfig, say: Callable[[str], None]) -> Outcomes:
    """Train every recipe once for each entry of `leave_out`; write recipes.json and recipes.md to `settings.out`.

    What recipes.json holds already, made of this catalog and configuration, is not trained again. Raises InputError
    before anything is trained where a recipe or a source does not exist.
    """
    recipes = {name: _config(settings, name, changes) for name, changes in settings.recipes.items()}
    frame = schema.read(settings.catalog)
    usable = schema.usable(frame, "all")
    for source in sorted({source for sources in settings.leave_out for source in sources} - set(usable["source"])):
        raise InputError(f"The catalog {settings.catalog} has no source {source!r} to leave out.")
    ray_session.connect()
    out = storage.join(storage.normalize(settings.out), "recipes.json")
    done = _read(out) if storage.exists(out) else {}
    images: dict[int, np.ndarray] = {}
    for name, recipe in recipes.items():
        made_of = {"config": recipe.model_dump(mode="json", exclude={"run_name"}), "catalog": schema.fingerprint(frame)}
        for sources in settings.leave_out:
            without = ", ".join(sources)
            outcomes = done.setdefault(name, {})
            if without in outcomes and outcomes[without].made_of == made_of:
                continue
            say(f"--- {name}, without {without}")
            if recipe.image_size not in images:
                images = {recipe.image_size: cache_images(usable["uri"].tolist(), recipe.image_size)}
            outcomes[without] = _train_and_test(recipe, usable, images[recipe.image_size], sources, made_of, say)
            storage.write_json(out, _tree(done))
    found = {name: done[name] for name in recipes}
    storage.write_bytes(storage.join(storage.normalize(settings.out), "recipes.md"), table(found).encode())
    return found


def _read(uri: str) -> Outcomes:
    return {
        recipe: {without: Outcome.model_validate(outcome) for without, outcome in outcomes.items()}
        for recipe, outcomes in storage.read_json(uri).items()
    }


def _tree(outcomes: Outcomes) -> dict[str, dict[str, Any]]:
    return {name: {without: each.to_json() for without, each in found.items()} for name, found in outcomes.items()}


def _config(settings: RecipesConfig, name: str, changes: Mapping[str, Any]) -> TrainConfig:
    values = {"catalog": settings.catalog, "out": settings.out}
    values["checkpoints"] = storage.join(settings.out, "checkpoints")
    recipe = config.changed(config.load(TrainConfig, settings.config, settings.overrides, **values), changes)
    if recipe.balance.copies or recipe.leaked_twin or recipe.members > 1:
        raise InputError(
            f"The recipe {name!r} has copies, a leaked twin or several members: these are not compared here."
        )
    return recipe


def _train_and_test(
    recipe: TrainConfig,
    usable: pd.DataFrame,
    images: np.ndarray,
    left_out: Sequence[str],
    made_of: dict[str, Any],
    say: Callable[[str], None],
) -> Outcome:
    """Train on the other sources, and test on each that was left out.

    Args:
        recipe: What is trained.
        usable: The usable rows of the catalog, of all splits.
        images: uint8 RGB [n, size, size, 3], one a row of `usable`.
        left_out: Sources.
        made_of: Noted with the outcome, so that it is known when it is out of date.
        say: Given one line a source and number of orientations.
    """
    known = ~usable["source"].isin(left_out).to_numpy()
    groups = usable["group_id"].to_numpy(dtype=object)
    unseen = ~known & ~usable["group_id"].isin(set(groups[known])).to_numpy()
    labels = usable["label"].to_numpy(dtype=object)
    data = TrainingData(images, *(_split(recipe, usable, known, name) for name in ("train", "validation")))
    trained = fit(recipe.model_copy(update={"run_name": new_run_name()}), data)
    model = bundles.model_bytes(trained.model)
    on: dict[str, dict[str, Figures]] = {source: {} for source in left_out}
    for flips in FLIPS:
        network = CompiledNetwork(model, recipe.image_size, flips)
        # Each source by itself: that one has more melanomas than another says nothing of a model.
        for source in left_out:
            test = np.flatnonzero(unseen & (usable["source"] == source).to_numpy())
            probabilities = calibrated(network.logits(images[test]), 1.0)
            figures = measure(probabilities, labels[test].tolist(), groups[test].tolist(), recipe.seed)
            on[source][str(flips)] = figures
            say(f"{source}, {flips} orientation(s): melanoma AUC {cell(figures.melanoma_auc)}")
    return Outcome(
        made_of=made_of,
        epochs=len(trained.history),
        best_epoch=trained.best + 1,
        seconds=sum(epoch["seconds"] for epoch in trained.history),
        validation={name: trained.at_best[name] for name in loop.FIGURES if name in trained.at_best},
        on=on,
    )


def _split(recipe: TrainConfig, usable: pd.DataFrame, known: np.ndarray, name: str) -> Split:
    """The images of a split that are `known`, bool [n]."""
    rows = np.flatnonzero(known & (usable["split"] == name).to_numpy())
    labels = tuple(usable["label"].to_numpy(dtype=object)[rows])
    sources = usable["source"].to_numpy()[rows].tolist()
    return Split(rows, labels, plan.strata(labels, sources, recipe.balance))


def table(found: Outcomes) -> str:
    """The melanoma AUCs of `run` as a Markdown table, with 95% intervals over groups."""
    columns = list(
        dict.fromkeys(
            (without, source, str(flips))
            for outcomes in found.values()
            for without, outcome in outcomes.items()
            for source in outcome.on
            for flips in FLIPS
        )
    )
    head = ["recipe", *(f"{source}{'' if flips == '1' else f', {flips} orientations'}" for _, source, flips in columns)]
    lines = [head, ["---"] * len(head)]
    for recipe, outcomes in found.items():
        lines.append([recipe, *(cell(outcomes[a].on[source][n].melanoma_auc) for a, source, n in columns)])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)
