"""The configurations of the studies: ablation, search, recipes."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from melanoma.config import Model, Place, Positive, Seed


class AblationConfig(Model):
    catalog: Place
    repaired: Place | None = None  # the same images with labels repaired, see melanoma.catalog.resolve: one step more
    out: Place
    student_epochs: Positive | None = None  # of the student steps; None: as their configurations say
    overrides: tuple[str, ...] = ()  # of every training, such as "image_size=64"


class Space(Model):
    """The values that a search draws from, in one of four ways."""

    choice: Annotated[tuple[Any, ...], Field(min_length=1)] | None = None
    uniform: tuple[float, float] | None = None
    log_uniform: tuple[Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)]] | None = None
    integer: tuple[int, int] | None = None  # both ends are drawn, too

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        given = [name for name in type(self).model_fields if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError("give one of choice, uniform, log_uniform and integer")
        ends = self.uniform or self.log_uniform or self.integer
        if ends and ends[0] >= ends[1]:
            raise ValueError(f"the first end of {given[0]} has to be below the second")
        return self


class Scheduler(Model):
    """Asynchronous successive halving (ASHA; Li et al. 2020, arXiv:1810.05934).

    After `grace_epochs`, and again whenever the epochs have grown by the factor `reduction`, a trial is stopped that is
    not among the best 1 / `reduction` of the trials that have come so far.
    """

    metric: Literal["accuracy", "balanced_accuracy", "melanoma_auc", "malignant_auc"] = (
        "balanced_accuracy"  # of validation
    )
    grace_epochs: Positive = 5
    reduction: Annotated[float, Field(gt=1)] = 3.0


class TuneConfig(Model):
    # YAML of the training that every trial starts from. No Place: it is only read, on the driver, and a submitted job
    # finds it in the working directory that came with it.
    config: str
    overrides: tuple[str, ...] = ()  # of every trial, such as "epochs=20"
    out: Place  # every node must reach it
    search: Annotated[dict[str, Space], Field(min_length=1)]  # dotted keys of TrainConfig
    samples: Positive = 8  # trials
    scheduler: Scheduler = Scheduler()
    seed: Seed = 0  # of what is drawn
    parallel_trials: Positive = 1


class RecipesConfig(Model):
    config: str = "configs/reference.yaml"  # what every recipe starts from; no Place, as of TuneConfig
    catalog: Place
    out: Place
    # The sources that are left out of training and tested on, each entry a training of its own; "each": one by one, all
    # that have enough melanomas to be tested on.
    leave_out: Literal["each"] | Annotated[tuple[tuple[str, ...], ...], Field(min_length=1)]
    seeds: Annotated[tuple[Seed, ...], Field(min_length=1)] = (0,)  # each recipe is trained once with each
    images_per_source: Positive | None = None  # at most this many are trained on, drawn blindly; None: all of them
    overrides: tuple[str, ...] = ()  # of every recipe, such as "image_size=64"
    recipes: Annotated[dict[str, dict[str, Any]], Field(min_length=1)]  # a name, and keys of the training with values
