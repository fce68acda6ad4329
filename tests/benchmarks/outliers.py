"""How well the outlier score tells other pictures from dermoscopy of sources that it has not seen.

    python -m tests.benchmarks.outliers BUNDLE CATALOG FOLDER...

Each source in turn is left out of what the score learns, and its test images are scored. FOLDER... hold pictures that
are no dermoscopy: a fifth of them is scored by what has learned from the others, five times. The network is the
bundle's, whose weights have seen training images of all sources, and no test images.
"""

import argparse

import numpy as np
import pandas as pd

from melanoma.catalog import schema
from melanoma.evaluation.intervals import Estimate, proportion
from melanoma.evaluation.run import pictures_of
from melanoma.model import bundle as bundles
from melanoma.model import outliers
from melanoma.model.predictor import Predictor
from melanoma.training.input import cache_images

_FOLDS = 5
_LEAST = 20  # test images of a source that is left out
_TRAIN = 450  # images of each source, of which the score learns
_TEST = 150


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle")
    parser.add_argument("catalog")
    parser.add_argument("folders", nargs="+")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    bundle = bundles.load(options.bundle)
    predictor = Predictor(bundle)
    rows = _rows(schema.read(options.catalog), options.seed)
    pixels = cache_images(rows["uri"].tolist(), bundle.input_size)
    features = predictor.outputs(pixels).features
    found = pictures_of(options.folders, bundle.input_size, options.seed, print)
    foreign = np.concatenate(list(found.values()))
    foreign_features = predictor.outputs(foreign).features
    fold = np.random.default_rng(options.seed).permutation(len(foreign)) % _FOLDS
    train, validation, test = (rows["split"].to_numpy() == name for name in ("train", "validation", "test"))
    source, group = rows["source"].to_numpy(), rows["group_id"].to_numpy()
    for left in sorted(set(source)):
        known, scored = source != left, test & (source == left)
        if scored.sum() < _LEAST:
            continue
        model = outliers.fit(pixels[train & known], pixels[validation & known])
        refused, caught = [], np.zeros(len(foreign), dtype=bool)
        for number in range(_FOLDS):
            third = outliers.fit_features(
                features[train & known],
                source[train & known].tolist(),
                foreign_features[fold != number],
                features[validation & known],
            )
            whole = model.model_copy(update={"of_features": third})
            refused.append(outliers.scores(pixels[scored], features[scored], whole) > 1)
            apart = fold == number
            caught[apart] = outliers.scores(foreign[apart], foreign_features[apart], whole) > 1
        rejects = proportion(np.mean(refused, axis=0) > 0.5, group[scored])
        others = proportion(caught, np.arange(len(caught)))
        print(f"{left[:40]:40}  false rejects {_words(rejects)}  others found {_words(others)}")


def _rows(frame: pd.DataFrame, seed: int) -> pd.DataFrame:
    """Some images of each source in each split; of validation all."""
    shuffled = frame[frame["error"].isna() & frame["split"].notna()].sample(frac=1, random_state=seed)
    most = shuffled["split"].map({"train": _TRAIN, "validation": len(frame), "test": _TEST})
    return shuffled[shuffled.groupby(["source", "split"]).cumcount() < most].reset_index(drop=True)


def _words(estimate: Estimate) -> str:
    return f"{estimate.value:.1%} [{estimate.low:.1%}, {estimate.high:.1%}]"


if __name__ == "__main__":
    main()
