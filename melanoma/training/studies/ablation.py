"""The student steps and this project's recipe, leaked and honest figures side by side.

Each configuration is trained twice by `melanoma.training.train`: as it stands, on the catalog's frozen split over
groups, and as a leaked twin, see `melanoma.training.studies.twin`.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pydantic

from melanoma import config, storage
from melanoma.catalog import groups, schema
from melanoma.catalog.audit import split_groups
from melanoma.errors import InputError
from melanoma.model.bundle import load
from melanoma.training import train
from melanoma.training.config import TrainConfig
from melanoma.training.studies import twin
from melanoma.training.studies.config import AblationConfig

STEPS = {
    "student: plain": "configs/student-plain.yaml",
    "student: with dropout": "configs/student-dropout.yaml",
    "student: with augmentation in the pipeline": "configs/student-augmentation.yaml",
    "student: with rebalancing by Augmentor": "configs/student.yaml",
    "ours": "configs/train.yaml",
}


def run(settings: AblationConfig, say: Callable[[str], None]) -> dict[str, dict[str, Any]]:
    """Train all steps and write ablation.json and ablation.md to `settings.out`; returns the figures by step.

    A step whose bundle lies in `settings.out` already, made of this catalog and configuration, is not trained again.
    """
    steps = [(step, file, settings.catalog) for step, file in STEPS.items()]
    if settings.repaired:
        steps.append(("ours, labels repaired", STEPS["ours"], settings.repaired))
    fingerprints = {catalog: _fingerprint(catalog) for _, _, catalog in steps}
    figures = {}
    for step, file, catalog in steps:
        shorter = settings.student_epochs if step.startswith("student") else None
        shortened = [f"epochs={shorter}"] if shorter else []
        name = re.sub("[^a-z0-9]+", "-", step.lower())
        own = config.load(
            TrainConfig,
            file,
            [*shortened, *settings.overrides],
            catalog=catalog,
            out=storage.join(settings.out, name),
            checkpoints=storage.join(settings.out, "checkpoints"),
            run_name=name,
            leaked_twin=True,
        )
        say(f"--- {step} ({file}, {catalog})")
        figures[step] = _figures(_trained(own, fingerprints[catalog]) or _train(own, say))
    out = storage.normalize(settings.out)
    storage.write_json(storage.join(out, "ablation.json"), figures)
    storage.write_bytes(storage.join(out, "ablation.md"), table(figures).encode())
    return figures


def _fingerprint(catalog: str) -> str:
    """The catalog's fingerprint, where its figures can be honest: raises InputError otherwise."""
    frame = schema.read(catalog)
    if schema.usable(frame, "test").empty:
        raise InputError(f"The catalog {catalog} has no test split: split it with `melanoma split`.")
    # Groups may be of an earlier version, which found fewer near-duplicates.
    if leaks := split_groups(frame.assign(group_id=groups.group_ids(frame))):
        raise InputError(f"The catalog {catalog} leaks: {len(leaks)} groups lie in more than one split. Make it anew.")
    return schema.fingerprint(frame)


def _trained(own: TrainConfig, fingerprint: str) -> dict[str, Any] | None:
    try:
        manifest = load(own.out).manifest
    except InputError:
        return None
    training = manifest["training"]
    try:
        # Through the model: a bundle of an earlier version lacks the keys that were added since.
        same = TrainConfig.model_validate(training["config"]) == own
    except pydantic.ValidationError:  # it has keys that were removed since
        return None
    return manifest if same and training["catalog_fingerprint"] == fingerprint else None


def _train(own: TrainConfig, say: Callable[[str], None]) -> dict[str, Any]:
    def each_tenth(metrics: Mapping[str, float]) -> None:
        if metrics["epoch"] % 10 == 0:
            say(f"epoch {metrics['epoch']:.0f}/{own.epochs}: validation accuracy {metrics['accuracy']:.3f}")

    return train.train(own, on_epoch=each_tenth, say=say).manifest


def _figures(manifest: Mapping[str, Any]) -> dict[str, Any]:
    exhibit = manifest["training"]["leaked_twin"]
    return {
        "leaked_validation": exhibit["leaked_validation"],
        "leaked_model_on_test": exhibit["leaked_model_on_test"],
        "honest_validation": exhibit["honest_validation"],
        "honest_test": {name: manifest["metrics"][name] for name in twin.FIGURES},
        "model_version": manifest["model_version"],
    }


COLUMNS = {
    "leaked_validation": "leaked: validation over files",
    "leaked_model_on_test": "the leaked model on Test",
    "honest_validation": "honest: validation over groups",
    "honest_test": "honest: Test",
}


def table(figures: Mapping[str, Mapping[str, Any]], figure: str = "accuracy") -> str:
    """The figures of `run` as a Markdown table, with 95% intervals."""
    head = ["step", *COLUMNS.values()]
    rows = [[step, *(cell(of_step[name][figure]) for name in COLUMNS)] for step, of_step in figures.items()]
    lines: Sequence[Sequence[str]] = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines) + _NOTES


_NOTES = """
Each with its 95% interval over groups. The student steps keep their last epoch, ours the best of all by its honest
validation, which is therefore optimistic; Test has chosen nothing. With repaired labels Test is not the same set.
"""


def cell(estimate: Mapping[str, float]) -> str:
    """An estimate with its interval, for a table."""
    return f"{estimate['value']:.3f} [{estimate['low']:.3f}, {estimate['high']:.3f}]"
