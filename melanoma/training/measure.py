"""The few figures that trainings are compared by, measured as an evaluation measures them."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Self

import numpy as np
import pandas as pd

from melanoma import taxonomy
from melanoma.evaluation.metrics import compute_metrics
from melanoma.evaluation.predictions import Side, side
from melanoma.evaluation.run import Evaluation
from melanoma.evaluation.subgroups import auc
from melanoma.evaluation.weighted_figures import groups_of_each_side
from melanoma.model.manifest import Estimate, JsonModel, Thresholds


class Figures(JsonModel):
    """How good a model is on some images, with 95% intervals over groups."""

    n: int  # images
    n_melanoma: int
    accuracy: Estimate
    balanced_accuracy: Estimate
    melanoma_auc: Estimate

    @classmethod
    def of(cls, metrics: Mapping[str, Any]) -> Self:
        """Those of `compute_metrics`, or of a bundle's manifest."""
        return cls.model_validate({name: metrics[name] for name in cls.model_fields})


def measure(probabilities: np.ndarray, labels: Sequence[str], groups: Sequence[str], seed: int) -> Figures:
    """The figures of some predictions.

    Args:
        probabilities: float [n, classes], in the order of `taxonomy.CODES`.
        labels: The label of each image.
        groups: The group of each image: what belongs together is drawn together for the intervals.
        seed: Decides these draws.

    Returns:
        Accuracy, balanced accuracy and melanoma AUC, with intervals.
    """
    columns = {f"p_{code}": probabilities[:, place] for place, code in enumerate(taxonomy.CODES)}
    table = pd.DataFrame(columns, dtype=np.float64).assign(
        image_id="", group_id=list(groups), label=list(labels), threshold=0.5
    )
    return Figures.of(compute_metrics(table.assign(p_melanoma=table[f"p_{taxonomy.MELANOMA}"]), seed=seed).to_json())


def figures_of(report: Evaluation) -> dict[str, object]:
    """What a manifest repeats of metrics.json: figures alone, without the curves and tables."""
    metrics = report.metrics.to_json()
    counts = ("n", *(f"n_{what}" for what in ("melanoma", "melanoma_unknown", "malignant", "malignant_unknown")))
    chosen = (*counts, "n_class_unknown", "leak_warning", "recall", "subgroups", *report.metrics.estimates())
    return {name: metrics[name] for name in (*chosen, *(["malignancy"] if "malignancy" in metrics else []))}


def _aim(labels: Sequence[str], groups: Sequence[str]) -> tuple[Side, list[str], np.ndarray]:
    """What is to be found in images: melanoma or, where no label tells it, what is malignant; the codes of that; and
    the number of each image's group."""
    melanoma = side(labels, taxonomy.melanoma_of)
    _, group = np.unique(np.array(groups, dtype=object), return_inverse=True)
    if melanoma.yes.any():
        return melanoma, [taxonomy.MELANOMA], group
    return side(labels, taxonomy.malignant_of), list(taxonomy.MALIGNANT), group


def auc_of(probabilities: np.ndarray, labels: Sequence[str], groups: Sequence[str], seed: int) -> Estimate:
    """The AUC of melanoma or, where no label tells it, of what is malignant.

    Args:
        probabilities: float [n, classes], in the order of `taxonomy.CODES`.
        labels: The label of each image.
        groups: The group of each image.
        seed: Decides the draws of the interval.
    """
    aim, codes, group = _aim(labels, groups)
    score = probabilities[:, [taxonomy.CODES.index(code) for code in codes]].sum(axis=1).astype(np.float64)
    return Estimate.model_validate(dataclasses.asdict(auc(aim, score, group, seed)))


FEWEST = 10  # groups of melanoma, and of others, that tell whether anything was learned


def learned_nothing(
    probabilities: np.ndarray, labels: Sequence[str], groups: Sequence[str], thresholds: Thresholds, seed: int
) -> str | None:
    """Why a model is no better than chance on validation, in a sentence; None where it is, or too few images tell.

    Args:
        probabilities: float [n, classes] of validation, calibrated, in the order of `taxonomy.CODES`.
        labels: The label of each image.
        groups: The group of each image.
        thresholds: Those that were chosen on these images.
        seed: Decides the draws of the interval.
    """
    aim, codes, group = _aim(labels, groups)
    if groups_of_each_side(aim, group) < FEWEST:
        return None
    found = auc_of(probabilities, labels, groups, seed)
    name = "melanoma" if codes == [taxonomy.MELANOMA] else "what is malignant"
    if found.value is not None and found.low is not None and found.low <= 0.5:
        what = f"the AUC of {name} on validation is {found.value:.2f} [{found.low:.2f}, {found.high:.2f}], as by chance"
    elif (point := thresholds.operating_point) and point.specificity.value == 0:
        what = f"at the stated sensitivity every image of validation is raised (AUC {found.value or 0:.2f})"
    else:
        return None
    return (
        f"The training has learned nothing: {what}: look at the labels (melanoma audit), the learning rate and the "
        "number of epochs."
    )


def in_words(epoch: Mapping[str, float]) -> str:
    """The figures of an epoch on validation, see `melanoma.training.loop.validation_metrics`."""
    names = {
        "accuracy": "accuracy",
        "balanced_accuracy": "balanced",
        "melanoma_auc": "melanoma AUC",
        # Of interest where labels say no more.
        **({} if "melanoma_auc" in epoch else {"malignant_auc": "malignant AUC"}),
    }
    return ", ".join(f"{title} {epoch[name]:.3f}" for name, title in names.items() if name in epoch)


def cell(estimate: Estimate) -> str:
    """An estimate with its interval, for a table."""
    if estimate.value is None:
        return "not defined"
    if estimate.low is None or estimate.high is None:
        return f"{estimate.value:.3f}"
    return f"{estimate.value:.3f} [{estimate.low:.3f}, {estimate.high:.3f}]"
