"""Evaluations: how well a model does on the images of a catalog."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from melanoma.api import shared
from melanoma.api.shared import Place, Say

if TYPE_CHECKING:
    import pandas as pd

    from melanoma.evaluation.config import EvaluateConfig


def evaluate(config: "EvaluateConfig | Place | None" = None, *, say: Say = print, **values: Any) -> "EvaluationResult":
    """Measure a bundle on a split of a catalog, and write metrics, predictions and a report.

    Example: ``m.evaluate(bundle="out/bundle", catalog="catalog.parquet", out="out/evaluation", split="test")``

    Args:
        config: A configuration, or a YAML file of one such as ``configs/evaluate.yaml``.
        say: Given one line a step.
        **values: Keys of `melanoma.evaluation.config.EvaluateConfig`, which override those of `config`.

    Returns:
        The figures with their 95% intervals, and where the report lies.

    Raises:
        InputError: The bundle, the catalog, the split or the output cannot be used.
        MelanomaError: An image of the catalog cannot be read any more.
    """
    from melanoma.evaluation.config import EvaluateConfig

    settings = shared.settings(EvaluateConfig, config, values)
    shared.import_tensorflow()
    from melanoma.evaluation.run import evaluate

    return EvaluationResult(evaluate(settings, say).metrics.to_json(), settings.split, settings.out)


@dataclass(frozen=True, repr=False, eq=False)
class EvaluationResult:
    """What `evaluate` measured.

    Attributes:
        details: All of it, as in ``metrics.json``.
        split: The split of the catalog.
        out: Where metrics, predictions and report lie.
    """

    details: dict[str, Any]
    split: str
    out: str

    @property
    def metrics(self) -> "pd.DataFrame":
        """The figures by name: columns `value`, `low` and `high` (95%), NaN where a figure is not defined."""
        return shared.figures_frame(self._described())

    @property
    def report(self) -> str:
        """The report for people, a page."""
        return f"{self.out}/report.html"

    def _described(self) -> dict[str, Any]:
        return {"split": self.split, **self.details}

    def __repr__(self) -> str:
        return f"EvaluationResult(split={self.split!r}, n={self.details['n']}, report={self.report!r})"

    def _repr_html_(self) -> str:
        return shared.html_table("Evaluation", {"report": self.report}) + shared.figures_html(self._described())
