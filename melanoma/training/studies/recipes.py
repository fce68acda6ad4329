"""What a recipe is worth on cameras that it has not seen: train without some sources, and test on them.

Photographs of a left-out source whose group (same photograph, near-duplicate, lesion, patient) lies in a source that
is trained on, too, are not tested on; nor is the test split of any source, because recipes are chosen by these figures.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pydantic

from melanoma import config, ray_session, storage, taxonomy
from melanoma.catalog import schema
from melanoma.errors import InputError
from melanoma.evaluation.intervals import proportion
from melanoma.evaluation.predictions import Side, side
from melanoma.model import bundle as bundles
from melanoma.model.manifest import Estimate, JsonModel, Thresholds
from melanoma.model.predictor import CompiledNetwork, calibrated, p_malignant
from melanoma.training import loop, plan
from melanoma.training.config import TrainConfig
from melanoma.training.data import Split, TrainingData
from melanoma.training.fit import fit
from melanoma.training.input import cache_images
from melanoma.training.studies.config import RecipesConfig
from melanoma.training.studies.recipes_table import OfMalignancy, OnSource, table
from melanoma.training.train import thresholds_of

FEWEST = 20  # melanomas of a source whose figures are reported
_MELANOMA = taxonomy.CODES.index(taxonomy.MELANOMA)


class Outcome(JsonModel):
    """What one recipe came to without some sources, with one seed."""

    made_of: dict[str, Any]  # the recipe's configuration, and the fingerprint of the catalog
    epochs: int
    best_epoch: int  # counted from 1
    seconds: float
    validation: dict[str, float]
    on: dict[str, OnSource]  # by the source that was left out


Outcomes = dict[str, dict[str, dict[str, Outcome]]]  # by recipe, by what was left out, by seed


def run(settings: RecipesConfig, say: Callable[[str], None]) -> Outcomes:
    """Train every recipe once for each entry of `leave_out` and each seed; write recipes.json and recipes.md.

    What recipes.json holds already, made of this catalog and configuration, is not trained again, and a training that
    was cut off is resumed. Raises InputError before anything is trained where a recipe or a source does not exist.
    """
    recipes = {name: _config(settings, name, changes) for name, changes in settings.recipes.items()}
    frame = schema.read(settings.catalog)
    usable = schema.usable(frame, "all").reset_index(drop=True)
    left_out, notes = _left_out(settings, usable)
    for note in notes:
        say(note)
    ray_session.connect()
    out = storage.normalize(settings.out)
    done = _read(storage.join(out, "recipes.json"), say)
    images: dict[int, np.ndarray] = {}
    for name, recipe in recipes.items():
        for sources in left_out:
            for seed in settings.seeds:
                seeded = recipe.model_copy(update={"seed": seed})
                made_of = _made_of(settings, seeded, frame)
                outcomes = done.setdefault(name, {}).setdefault(", ".join(sources), {})
                if str(seed) in outcomes and outcomes[str(seed)].made_of == made_of:
                    continue
                say(f"--- {name}, without {', '.join(sources)}, seed {seed}")
                if recipe.image_size not in images:
                    images = {recipe.image_size: cache_images(usable["uri"].tolist(), recipe.image_size)}
                trial = _Trial(settings, seeded, usable, images[recipe.image_size], sources, made_of)
                outcomes[str(seed)] = trial.outcome(say)
                storage.write_json(storage.join(out, "recipes.json"), _tree(done))
    wanted = [", ".join(sources) for sources in left_out]
    found = {
        name: {without: {str(seed): done[name][without][str(seed)] for seed in settings.seeds} for without in wanted}
        for name in recipes
    }
    storage.write_bytes(storage.join(out, "recipes.md"), table(_tested(found), notes).encode())
    return found


def tables(found: Outcomes) -> str:
    """The figures of `run` as Markdown tables."""
    return table(_tested(found))


def _tested(found: Outcomes) -> dict[str, dict[str, list[OnSource]]]:
    """By recipe and source: what each seed came to."""
    return {
        recipe: {
            source: [outcome.on[source] for outcome in outcomes.values()]
            for outcomes in of_recipe.values()
            for source in next(iter(outcomes.values())).on
        }
        for recipe, of_recipe in found.items()
    }


def _left_out(settings: RecipesConfig, usable: pd.DataFrame) -> tuple[list[tuple[str, ...]], list[str]]:
    """What is left out in turn, and sentences on the sources that are not tested alone."""
    sources = sorted(set(usable["source"]))
    each = settings.leave_out == "each"
    wanted = [(source,) for source in sources] if each else [tuple(entry) for entry in settings.leave_out]
    for source in sorted({source for entry in wanted for source in entry} - set(sources)):
        raise InputError(f"The catalog {settings.catalog} has no source {source!r} to leave out.")
    found, notes = [], []
    for entry in wanted:
        if any(_is_tested(usable, entry, source) for source in entry):
            found.append(entry)
        notes += [
            f"{source} has fewer than {FEWEST} melanomas, or nothing else, of its own outside its test split: it is "
            "not reported alone" + (", and always trained on." if each else ".")
            for source in entry
            if not _is_tested(usable, entry, source)
        ]
    if not found:
        raise InputError(
            f"No source of {settings.catalog} that is to be left out has {FEWEST} melanomas and other images to be "
            "tested on."
        )
    if len(sources) == len(set(found[0])):
        raise InputError(f"Without {', '.join(found[0])} the catalog {settings.catalog} has no source to train on.")
    return found, notes


def _unseen(usable: pd.DataFrame, left_out: Sequence[str]) -> npt.NDArray[np.bool_]:
    """bool [n]: what may be tested on where these sources are left out."""
    known = ~usable["source"].isin(left_out).to_numpy(dtype=bool)
    groups = set(usable["group_id"].to_numpy(dtype=object)[known])
    elsewhere = usable["group_id"].isin(groups).to_numpy(dtype=bool)
    return ~known & ~elsewhere & (usable["split"] != "test").fillna(True).to_numpy(dtype=bool)


def _is_tested(usable: pd.DataFrame, left_out: Sequence[str], source: str) -> bool:
    rows = usable[_unseen(usable, left_out) & (usable["source"] == source).to_numpy(dtype=bool)]
    melanoma = side(rows["label"].tolist(), taxonomy.melanoma_of)
    return bool(melanoma.yes.sum() >= FEWEST and melanoma.no.any())


def _made_of(settings: RecipesConfig, recipe: TrainConfig, frame: pd.DataFrame) -> dict[str, Any]:
    return {
        "config": recipe.model_dump(mode="json", exclude={"run_name"}),
        "catalog": schema.fingerprint(frame),
        "images_per_source": settings.images_per_source,
    }


def _read(uri: str, say: Callable[[str], None]) -> Outcomes:
    if not storage.exists(uri):
        return {}
    adapter: pydantic.TypeAdapter[Outcomes] = pydantic.TypeAdapter(Outcomes)
    try:
        return adapter.validate_python(storage.read_json(uri))
    except pydantic.ValidationError:
        say(f"{uri} is of another version of this program: all recipes are trained again.")
        return {}


def _tree(outcomes: Outcomes) -> dict[str, Any]:
    return {
        name: {without: {seed: each.to_json() for seed, each in seeds.items()} for without, seeds in found.items()}
        for name, found in outcomes.items()
    }


def _config(settings: RecipesConfig, name: str, changes: Mapping[str, Any]) -> TrainConfig:
    values = {"catalog": settings.catalog, "out": settings.out}
    values["checkpoints"] = storage.join(settings.out, "checkpoints")
    recipe = config.changed(config.load(TrainConfig, settings.config, settings.overrides, **values), changes)
    if recipe.balance.copies or recipe.leaked_twin or recipe.members > 1:
        raise InputError(
            f"The recipe {name!r} has copies, a leaked twin or several members: these are not compared here."
        )
    return recipe


def _of_malignancy(malignant: Side, raised: npt.NDArray[np.bool_], group: npt.NDArray[np.intp]) -> OfMalignancy:
    yes, no = malignant.yes, malignant.no
    shares = proportion(raised[yes], group[yes]), proportion(~raised[no], group[no])
    sensitivity, specificity = (Estimate.model_validate(asdict(share)) for share in shares)
    return OfMalignancy(n_malignant=int(yes.sum()), sensitivity=sensitivity, specificity=specificity)


class _Trial:
    """One recipe, with one seed, without some sources.

    Args:
        settings: The study.
        recipe: What is trained, with its seed.
        usable: The usable rows of the catalog, of all splits.
        images: uint8 RGB [n, size, size, 3], one a row of `usable`.
        left_out: Sources.
        made_of: Noted with the outcome, so that it is known when it is out of date.
    """

    def __init__(
        self,
        settings: RecipesConfig,
        recipe: TrainConfig,
        usable: pd.DataFrame,
        images: np.ndarray,
        left_out: Sequence[str],
        made_of: dict[str, Any],
    ) -> None:
        self.settings, self.recipe, self.usable, self.images = settings, recipe, usable, images
        self.left_out, self.made_of = left_out, made_of

    def outcome(self, say: Callable[[str], None]) -> Outcome:
        """Train on the other sources, and test on each that was left out."""
        train, validation = self._split("train"), self._split("validation")
        told = json.dumps([self.made_of, list(self.left_out)], sort_keys=True)
        name = f"recipe-{hashlib.sha256(told.encode()).hexdigest()[:16]}"  # of the same name it is resumed
        trained = fit(self.recipe.model_copy(update={"run_name": name}), TrainingData(self.images, train, validation))
        model = bundles.model_bytes(trained.model)
        network = CompiledNetwork(model, self.recipe.image_size, self.recipe.test_time_flips)

        def probabilities(rows: npt.NDArray[np.intp]) -> np.ndarray:
            return calibrated(network.logits(self.images[rows]), 1.0)

        thresholds = self._thresholds(validation, probabilities(validation.rows))
        on = {}
        for source in self.left_out:
            if _is_tested(self.usable, self.left_out, source):
                on[source] = self._tested(source, probabilities, thresholds)
                say(f"{source}: {on[source].in_words()}")
        return Outcome(
            made_of=self.made_of,
            epochs=len(trained.history),
            best_epoch=trained.best + 1,
            seconds=sum(epoch["seconds"] for epoch in trained.history),
            validation={name: trained.at_best[name] for name in loop.FIGURES if name in trained.at_best},
            on=on,
        )

    def _thresholds(self, validation: Split, probabilities: np.ndarray) -> Thresholds:
        """Chosen as the training of the recipe chooses its bundle's."""
        without = f"Without {', '.join(self.left_out)} the validation split"
        if not side(validation.labels, taxonomy.melanoma_of).yes.any():
            raise InputError(f"{without} has no melanoma: split it anew.")
        rows = self.usable.iloc[validation.rows]
        groups, sources = rows["group_id"].to_numpy(dtype=object), rows["source"].tolist()
        of_melanoma, of_malignancy = probabilities[:, _MELANOMA], p_malignant(probabilities)
        try:
            return thresholds_of(self.recipe, validation.labels, of_melanoma, of_malignancy, groups, sources)
        except ValueError as error:
            raise InputError(f"{without} allows no operating point: {error}.") from None

    def _tested(self, source: str, of_rows: Callable[[Any], np.ndarray], thresholds: Thresholds) -> OnSource:
        # Each source by itself: that one has more melanomas than another says nothing of a model.
        of_source = (self.usable["source"] == source).to_numpy(dtype=bool)
        rows = np.flatnonzero(_unseen(self.usable, self.left_out) & of_source)
        labels, probabilities = self.usable["label"].iloc[rows].tolist(), of_rows(rows)
        _, group = np.unique(self.usable["group_id"].to_numpy(dtype=object)[rows], return_inverse=True)
        melanoma = side(labels, taxonomy.melanoma_of)
        of_malignancy = None
        if asked := thresholds.malignancy:
            raised = p_malignant(probabilities) >= asked.review
            of_malignancy = _of_malignancy(side(labels, taxonomy.malignant_of), raised, group)
        return OnSource(
            threshold=thresholds.review,
            group=tuple(group[melanoma.known].tolist()),
            melanoma=tuple(melanoma.yes[melanoma.known].tolist()),
            p_melanoma=tuple(round(float(p), 6) for p in probabilities[melanoma.known, _MELANOMA]),
            malignancy=of_malignancy,
        )

    def _split(self, name: str) -> Split:
        """The images of a split whose source is not left out; of training at most so many of each source."""
        usable, most = self.usable, self.settings.images_per_source
        rows = np.flatnonzero(~usable["source"].isin(self.left_out).to_numpy() & (usable["split"] == name).to_numpy())
        sources = usable["source"].to_numpy(dtype=object)
        if name == "train" and most is not None:
            drawn = np.random.default_rng(0).permutation(rows)  # the same for every recipe and seed
            rank = pd.Series(sources[drawn]).groupby(sources[drawn]).cumcount().to_numpy()
            rows = np.sort(drawn[rank < most])
        labels = tuple(usable["label"].to_numpy(dtype=object)[rows])
        return Split(rows, labels, plan.strata(labels, sources[rows].tolist(), self.recipe.balance))
