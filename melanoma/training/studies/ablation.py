"""The student steps and this project's recipe, leaked and honest figures side by side.

Each configuration is trained twice by `melanoma.training.train`: as it stands, on the catalog's frozen split over
groups, and as a leaked twin, see `melanoma.training.twin`.
"""

import re
from collections.abc import Callable, Mapping

import pydantic

from melanoma import config, storage
from melanoma.catalog import groups, schema
from melanoma.catalog.leaks import split_groups
from melanoma.errors import InputError
from melanoma.evaluation.published import PUBLISHED
from melanoma.model.bundle import load
from melanoma.model.manifest import JsonModel, Manifest
from melanoma.training import train, twin
from melanoma.training.config import TrainConfig
from melanoma.training.measure import Figures, cell
from melanoma.training.studies.config import AblationConfig

STEPS = {
    "student: plain": "configs/student-plain.yaml",
    "student: with dropout": "configs/student-dropout.yaml",
    "student: with augmentation in the pipeline": "configs/student-augmentation.yaml",
    "student: with rebalancing by Augmentor": "configs/student.yaml",
    "ours": "configs/train.yaml",
}


class StepFigures(JsonModel):
    """What one step came to."""

    leaked_validation: Figures
    leaked_model_on_test: Figures
    honest_validation: Figures
    honest_test: Figures
    model_version: str


def run(settings: AblationConfig, say: Callable[[str], None]) -> dict[str, StepFigures]:
    """Train all steps and write ablation.json and ablation.md to `settings.out`; returns the figures by step.

    A step whose bundle lies in `settings.out` already, made of this catalog and configuration, is not trained again.
    """
    steps = [(step, file, settings.catalog) for step, file in STEPS.items()]
    if settings.repaired:
        steps.append(("ours, labels repaired", STEPS["ours"], settings.repaired))
    fingerprints = {catalog: _fingerprint(catalog) for _, _, catalog in steps}
    figures = {}
    for step, file, catalog in steps:
        training = _training(settings, step, file, catalog)
        say(f"--- {step} ({file}, {catalog})")
        figures[step] = _figures(_trained(training, fingerprints[catalog]) or _train(training, say))
    out = storage.normalize(settings.out)
    storage.write_json(storage.join(out, "ablation.json"), {step: each.to_json() for step, each in figures.items()})
    storage.write_bytes(storage.join(out, "ablation.md"), table(figures).encode())
    return figures


def _training(settings: AblationConfig, step: str, file: str, catalog: str) -> TrainConfig:
    shorter = settings.student_epochs if step.startswith("student") else None
    shortened = [f"epochs={shorter}"] if shorter else []
    name = re.sub("[^a-z0-9]+", "-", step.lower())
    return config.load(
        TrainConfig,
        file,
        [*shortened, *settings.overrides],
        catalog=catalog,
        out=storage.join(settings.out, name),
        checkpoints=storage.join(settings.out, "checkpoints"),
        run_name=name,
        leaked_twin=True,
    )


def _fingerprint(catalog: str) -> str:
    """The catalog's fingerprint, where its figures can be honest: raises InputError otherwise."""
    frame = schema.read(catalog)
    if schema.usable(frame, "test").empty:
        raise InputError(f"The catalog {catalog} has no test split: split it with `melanoma split`.")
    # Groups may be of an earlier version, which found fewer near-duplicates.
    if leaks := split_groups(frame.assign(group_id=groups.group_ids(frame))):
        raise InputError(f"The catalog {catalog} leaks: {len(leaks)} groups lie in more than one split. Make it anew.")
    return schema.fingerprint(frame)


def _trained(training: TrainConfig, fingerprint: str) -> Manifest | None:
    """The manifest of the bundle that this training has already written; None where it has not."""
    try:
        manifest = load(training.out).manifest
    except InputError:
        return None
    try:
        # Through the model: a bundle of an earlier version lacks the keys that were added since.
        same = TrainConfig.model_validate(manifest.training.config) == training
    except pydantic.ValidationError:  # it has keys that were removed since
        return None
    return manifest if same and manifest.training.catalog_fingerprint == fingerprint else None


def _train(training: TrainConfig, say: Callable[[str], None]) -> Manifest:
    def each_tenth(metrics: Mapping[str, float]) -> None:
        if metrics["epoch"] % 10 == 0:
            say(f"epoch {metrics['epoch']:.0f}/{training.epochs}: validation accuracy {metrics['accuracy']:.3f}")

    return train.train(training, on_epoch=each_tenth, say=say).manifest


def _figures(manifest: Manifest) -> StepFigures:
    exhibit = twin.Exhibit.model_validate(manifest.training.leaked_twin)
    return StepFigures.model_validate(
        {
            "leaked_validation": exhibit.leaked_validation,
            "leaked_model_on_test": exhibit.leaked_model_on_test,
            "honest_validation": exhibit.honest_validation,
            "honest_test": Figures.of(manifest.metrics),
            "model_version": manifest.model_version,
        }
    )


COLUMNS: dict[str, Callable[[StepFigures], Figures]] = {
    "leaked: validation over files": lambda of_step: of_step.leaked_validation,
    "the leaked model on Test": lambda of_step: of_step.leaked_model_on_test,
    "honest: validation over groups": lambda of_step: of_step.honest_validation,
    "honest: Test": lambda of_step: of_step.honest_test,
}


def table(figures: Mapping[str, StepFigures]) -> str:
    """The accuracies of `run` as a Markdown table, with 95% intervals, and below them those that others print."""
    lines = [["step", *COLUMNS], ["---"] * (1 + len(COLUMNS))]
    lines += [[step, *(cell(figure(each).accuracy) for figure in COLUMNS.values())] for step, each in figures.items()]
    lines += [
        [f"published: {each.project}", _printed(each.validation), _printed(each.test), "not printed", "not printed"]
        for each in PUBLISHED
    ]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines) + _NOTES


def _printed(accuracy: float | None) -> str:
    return "not printed" if accuracy is None else f"{accuracy:.3f}"


_NOTES = """
Each with its 95% interval over groups. The student steps keep their last epoch, ours the best of all by its honest
validation, which is therefore optimistic; Test has chosen nothing. With repaired labels Test is not the same set. What
is published is what the projects print, without intervals, of their Augmentor step (`melanoma.evaluation.published`).
"""
