"""The Python interface, for notebooks and for the command `melanoma`, which prints what these functions return.

    import melanoma as m

    m.build_catalog("data/isic9", out="catalog.parquet")
    m.split_catalog("catalog.parquet", out="catalog.parquet")
    m.train("configs/train.yaml", epochs=10)
    m.evaluate(bundle="out/bundle", catalog="catalog.parquet", out="out/evaluation")
    m.load("out/bundle").predict(["lesion.jpg"])
    m.score(archive="archive", out="results")
    m.alerts("results")

A place is a local path or an s3:// URI. Wrong use and bad input raise an InputError of one sentence, mostly before
anything is done; what fails while running raises a MelanomaError. Heavy libraries are imported by the functions that
need them, so that ``import melanoma`` and ``melanoma --help`` are quick.
"""

from melanoma.api.catalogs import build_catalog, split_catalog
from melanoma.api.evaluations import EvaluationResult, evaluate
from melanoma.api.models import Explanation, TrainedModel, load, train
from melanoma.api.runs import ScoringResult, alerts, score

__all__ = [
    "EvaluationResult",
    "Explanation",
    "ScoringResult",
    "TrainedModel",
    "alerts",
    "build_catalog",
    "evaluate",
    "load",
    "score",
    "split_catalog",
    "train",
]
