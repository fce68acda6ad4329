"""What a recipe is worth on cameras that it has not seen: train without some sources, test on them, turn about.

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
from melanoma.model.predictor import Predictor
from melanoma.training import loop, plan, train
from melanoma.training.config import TrainConfig
from melanoma.training.input import cache_images
from melanoma.training.studies import twin
from melanoma.training.studies.ablation import cell
from melanoma.training.studies.config import RecipesConfig

FLIPS = (1, 8)  # test-time flips to compare


def run(settings: RecipesConfig, say: Callable[[str], None]) -> dict[str, dict[str, Any]]:
    """Train every recipe once for each entry of `leave_out`; write recipes.json and recipes.md to `settings.out`.

    Returns the figures by recipe and by what was left out. What recipes.json holds already, made of this catalog and
    configuration, is not trained again. Raises InputError before anything is trained where a recipe or a source does
    not exist.
    """
    recipes = {name: _config(settings, name, changes) for name, changes in settings.recipes.items()}
    frame = schema.read(settings.catalog)
    usable = schema.usable(frame, "all")
    for source in sorted({source for sources in settings.leave_out for source in sources} - set(usable["source"])):
        raise InputError(f"The catalog {settings.catalog} has no source {source!r} to leave out.")
    ray_session.connect()
    out = storage.join(storage.normalize(settings.out), "recipes.json")
    done: dict[str, dict[str, Any]] = storage.read_json(out) if storage.exists(out) else {}
    images: dict[int, np.ndarray] = {}
    for name, own in recipes.items():
        made_of = {"config": own.model_dump(mode="json", exclude={"run_name"}), "catalog": schema.fingerprint(frame)}
        for sources in settings.leave_out:
            without = ", ".join(sources)
            if done.get(name, {}).get(without, {}).get("made_of") == made_of:
                continue
            say(f"--- {name}, without {without}")
            if own.image_size not in images:
                images = {own.image_size: cache_images(usable["uri"].tolist(), own.image_size)}
            figures = _figures(own, usable, images[own.image_size], sources, say)
            done.setdefault(name, {})[without] = {"made_of": made_of, **figures}
            storage.write_json(out, done)
    found = {name: done[name] for name in recipes}
    storage.write_bytes(storage.join(storage.normalize(settings.out), "recipes.md"), table(found).encode())
    return found


def _config(settings: RecipesConfig, name: str, changes: Mapping[str, Any]) -> TrainConfig:
    values = {"catalog": settings.catalog, "out": settings.out}
    values["checkpoints"] = storage.join(settings.out, "checkpoints")
    own = config.changed(config.load(TrainConfig, settings.config, settings.overrides, **values), changes)
    if own.balance.copies or own.leaked_twin or own.members > 1:
        raise InputError(
            f"The recipe {name!r} has copies, a leaked twin or several members: these are not compared here."
        )
    return own


def _figures(
    own: TrainConfig,
    usable: pd.DataFrame,
    images: np.ndarray,
    sources: Sequence[str],
    say: Callable[[str], None],
) -> dict[str, Any]:
    known = ~usable["source"].isin(sources).to_numpy()
    groups = usable["group_id"].to_numpy(dtype=object)
    unseen = ~known & ~usable["group_id"].isin(set(groups[known])).to_numpy()
    parts = {name: np.flatnonzero(known & (usable["split"] == name).to_numpy()) for name in ("train", "validation")}
    labels = usable["label"].to_numpy(dtype=object)
    splits = {
        name: loop.Split(
            rows,
            tuple(labels[rows]),
            plan.strata(labels[rows].tolist(), usable["source"].to_numpy()[rows].tolist(), own.balance),
        )
        for name, rows in parts.items()
    }
    own = own.model_copy(update={"run_name": train.new_run_name()})
    model, history, best = train.fit(own, images, splits, lambda metrics: None)
    result: dict[str, Any] = {
        "epochs": len(history),
        "best_epoch": best + 1,
        "seconds": sum(epoch["seconds"] for epoch in history),
        "validation": {name: history[best][name] for name in ("accuracy", "balanced_accuracy", "melanoma_auc")},
        "on": {source: {} for source in sources},
    }
    for flips in FLIPS:
        predictor = Predictor(train.unmeasured(own.model_copy(update={"test_time_flips": flips}), model))
        # Each source by itself: that one has more melanomas than another says nothing of a model.
        for source in sources:
            test = np.flatnonzero(unseen & (usable["source"] == source).to_numpy())
            figures = twin.figures(
                predictor.probabilities(images[test]), labels[test].tolist(), groups[test].tolist(), own.seed
            )
            result["on"][source][str(flips)] = figures
            say(f"{source}, {flips} orientation(s): melanoma AUC {cell(figures['melanoma_auc'])}")
    return result


def table(found: Mapping[str, Mapping[str, Any]]) -> str:
    """The figures of `run` as a Markdown table: melanoma AUC on what was left out, with 95% intervals over groups."""
    columns = list(
        dict.fromkeys(
            (without, source, str(flips))
            for figures in found.values()
            for without, of in figures.items()
            for source in of["on"]
            for flips in FLIPS
        )
    )
    head = ["recipe", *(f"{source}{'' if flips == '1' else f', {flips} orientations'}" for _, source, flips in columns)]
    lines = [head, ["---"] * len(head)]
    for recipe, figures in found.items():
        lines.append([recipe, *(cell(figures[a]["on"][source][n]["melanoma_auc"]) for a, source, n in columns)])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)
