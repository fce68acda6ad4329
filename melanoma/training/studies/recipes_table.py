"""The figures of the recipes on the sources that were left out, with intervals, as Markdown."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from melanoma.evaluation.intervals import Estimate as Interval
from melanoma.evaluation.intervals import Floats, bootstrap, percentile_interval, proportion
from melanoma.evaluation.predictions import Side
from melanoma.evaluation.roc import area_under_roc, roc_of_sorted, tie_ends
from melanoma.evaluation.subgroups import auc
from melanoma.evaluation.weighted_figures import groups_of_each_side
from melanoma.model.manifest import Estimate, JsonModel
from melanoma.training.measure import cell

RESAMPLES = 500


class OfMalignancy(JsonModel):
    """What the question of any malignancy raises of a source, at the threshold that other sources chose."""

    n_malignant: int
    sensitivity: Estimate
    specificity: Estimate


class OnSource(JsonModel):
    """What one training says of a source that it has not seen: of the images that are known as melanoma or not."""

    threshold: float  # chosen on the validation images of the other sources
    group: tuple[int, ...]  # [n], which images belong together
    melanoma: tuple[bool, ...]  # [n]
    p_melanoma: tuple[float, ...]  # [n]
    malignancy: OfMalignancy | None = None  # None: the recipe does not ask this question

    def auc(self) -> Interval:
        yes = np.array(self.melanoma)
        return auc(Side(yes, np.ones_like(yes)), np.array(self.p_melanoma), np.array(self.group), 0, RESAMPLES)

    def sensitivity(self) -> Interval:
        """Of the frozen threshold, as is `specificity`."""
        yes = np.array(self.melanoma)
        return proportion(self._raised()[yes], np.array(self.group)[yes])

    def specificity(self) -> Interval:
        no = ~np.array(self.melanoma)
        return proportion(~self._raised()[no], np.array(self.group)[no])

    def _raised(self) -> np.ndarray:
        return np.array(self.p_melanoma) >= self.threshold

    def weighted(self) -> Callable[[Floats], Floats]:
        """AUC, sensitivity and specificity as a function of image weights [n]."""
        score, yes, raised = np.array(self.p_melanoma), np.array(self.melanoma), self._raised()
        falling = np.argsort(-score, kind="stable")
        positive, ends = yes[falling], tie_ends(score[falling])

        def figures(weight: Floats) -> Floats:
            return np.array(
                [
                    area_under_roc(*roc_of_sorted(positive, ends, weight[falling])),
                    _share(weight[yes], raised[yes]),
                    _share(weight[~yes], ~raised[~yes]),
                ]
            )

        return figures

    def in_words(self) -> str:
        found = {"AUC": self.auc(), "sensitivity": self.sensitivity(), "specificity": self.specificity()}
        return ", ".join(f"{name} {_cell(figure)}" for name, figure in found.items())


def _share(weight: Floats, of: np.ndarray) -> float:
    return float((weight * of).sum() / weight.sum()) if weight.sum() > 0 else np.nan


def _cell(figure: Interval) -> str:
    return cell(Estimate(value=figure.value, low=figure.low, high=figure.high))


def _over_sources(of_recipe: Mapping[str, Sequence[OnSource]]) -> tuple[Floats, Floats, int]:
    """The mean of the three figures over sources and seeds: values [3], draws [resamples, 3], and the fewest groups.

    A resample draws the groups of each source by themselves; all seeds, and all recipes, are tested on the same draws.
    """
    values, draws, fewest = [], [], []
    for number, tested in enumerate(of_recipe.values()):
        functions = [each.weighted() for each in tested]

        def mean(weight: Floats, functions: Sequence[Callable[[Floats], Floats]] = functions) -> Floats:
            return np.asarray(np.mean([figures(weight) for figures in functions], axis=0))

        yes, group = np.array(tested[0].melanoma), np.array(tested[0].group)
        values.append(mean(np.ones(len(yes))))
        draws.append(bootstrap(mean, group, number, RESAMPLES))
        fewest.append(groups_of_each_side(Side(yes, np.ones_like(yes)), group))
    return np.mean(values, axis=0), np.mean(draws, axis=0), min(fewest)


def table(found: Mapping[str, Mapping[str, Sequence[OnSource]]], notes: Sequence[str] = ()) -> str:
    """Markdown of `found`, by recipe, source and seed: the means over sources, and each source by itself.

    Args:
        found: What was tested, of the same images for every recipe.
        notes: Sentences below.

    Returns:
        Two tables, with 95% intervals over groups, and the notes.
    """
    head = ["recipe", "mean AUC", "less that of the first", "spread over seeds", "lowest sensitivity"]
    lines = [[*head, "mean sensitivity", "mean specificity"]]
    first: tuple[Floats, Floats, int] | None = None
    for recipe, of_recipe in found.items():
        values, draws, groups = _over_sources(of_recipe)
        first = first or (values, draws, groups)
        estimates = [percentile_interval(float(values[i]), draws[:, i], groups) for i in range(3)]
        difference = percentile_interval(float(values[0] - first[0][0]), draws[:, 0] - first[1][:, 0], groups)
        by_seed = [
            float(np.mean([each.auc().value for each in seed])) for seed in zip(*of_recipe.values(), strict=True)
        ]
        lowest = min(
            (float(np.mean([each.sensitivity().value for each in tested])), source)
            for source, tested in of_recipe.items()
        )
        spread = f"{min(by_seed):.3f} to {max(by_seed):.3f}" if len(by_seed) > 1 else "one seed"
        lines.append(
            [
                recipe,
                _cell(estimates[0]),
                _cell(difference),
                spread,
                f"{lowest[0]:.3f} ({lowest[1]})",
                *map(_cell, estimates[1:]),
            ]
        )
    return "\n".join([_markdown(lines), _of_sources(found), _NOTES, *(f"{note}\n" for note in notes)])


def _of_sources(found: Mapping[str, Mapping[str, Sequence[OnSource]]]) -> str:
    head = ["left out", "images", "melanomas", "recipe", "seed", "AUC", "sensitivity", "specificity"]
    asked = any(each.malignancy for of_recipe in found.values() for tested in of_recipe.values() for each in tested)
    lines = [[*head, *(["malignant", "their sensitivity", "their specificity"] if asked else [])]]
    for source in dict.fromkeys(source for of_recipe in found.values() for source in of_recipe):
        for recipe, of_recipe in found.items():
            for number, each in enumerate(of_recipe[source]):
                counts = [f"{len(each.melanoma):,}", f"{sum(each.melanoma):,}"]
                figures = (each.auc(), each.sensitivity(), each.specificity())
                malignancy = _cells_of_malignancy(each.malignancy) if asked else []
                lines.append([source, *counts, recipe, str(number + 1), *map(_cell, figures), *malignancy])
    return _markdown(lines)


def _cells_of_malignancy(found: OfMalignancy | None) -> list[str]:
    if found is None:
        return ["not asked"] * 3
    return [f"{found.n_malignant:,}", cell(found.sensitivity), cell(found.specificity)]


def _markdown(lines: Sequence[Sequence[str]]) -> str:
    head, *rows = lines
    return "".join(f"| {' | '.join(line)} |\n" for line in (head, ["---"] * len(head), *rows))


_NOTES = """
Each with its 95% interval over groups, which holds the choice of images and not that of the seed. Sensitivity and
specificity are at the threshold that validation images of the other sources chose, those of malignant images at that of
the question of any malignancy. No test split is in these figures.
"""
