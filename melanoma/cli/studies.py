"""What jobs/ablation.py, jobs/tune.py and jobs/recipes.py call."""

from typing import TYPE_CHECKING

from melanoma.cli.console import answer, say

if TYPE_CHECKING:
    from melanoma.training.studies.config import AblationConfig, RecipesConfig, TuneConfig


def run_ablation(settings: "AblationConfig") -> None:
    from melanoma.api.shared import import_tensorflow

    import_tensorflow()
    from melanoma.training.studies import ablation

    answer.print(ablation.table(ablation.run(settings, say)))
    answer.print(f"Figures: {settings.out}/ablation.json, table: {settings.out}/ablation.md")


def run_tune(settings: "TuneConfig") -> None:
    from melanoma.api.shared import import_tensorflow

    import_tensorflow()
    from melanoma.training.studies import search

    answer.print(search.markdown(search.run(settings, say), settings.scheduler.metric))
    answer.print(
        f"Figures: {settings.out}/search.json, table: {settings.out}/search.md, best configuration: "
        f"{settings.out}/best.yaml"
    )


def run_recipes(settings: "RecipesConfig") -> None:
    from melanoma.api.shared import import_tensorflow

    import_tensorflow()
    from melanoma.training.studies import recipes

    answer.print(recipes.tables(recipes.run(settings, say)))
    answer.print(f"Figures: {settings.out}/recipes.json, table: {settings.out}/recipes.md")
