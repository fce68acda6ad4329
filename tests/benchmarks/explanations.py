"""Whether what an explanation marks matters: python tests/benchmarks/explanations.py BUNDLE CATALOG... [--images N]

N melanomas (60) of no training or validation split: the share of each picture where a map is highest is covered, and as
much where it is lowest, and how far the probability of melanoma falls is seen. The colour of the picture's border as a
cover has sharp edges, the picture blurred has none. Compared are the explanation of `melanoma predict --explain`
(LayerCAM), an occlusion map, the middle of the picture, and chance.
"""

import argparse

import numpy as np
import pandas as pd
from PIL import Image, ImageFilter

from melanoma import storage, taxonomy
from melanoma.catalog import schema
from melanoma.imaging.decode import decode
from melanoma.model import bundle as bundles
from melanoma.model import explain
from melanoma.model.predictor import Predictor

MELANOMA = taxonomy.CODES.index(taxonomy.MELANOMA)
CELLS = 12  # a side of the occlusion map


def occlusion(predictor: Predictor, pixels: np.ndarray) -> np.ndarray:
    """float32 [12, 12]: the fall of p_melanoma when a patch of two cells a side is painted in the picture's mean colour
    (Zeiler and Fergus 2014, arXiv:1311.2901)."""
    size = len(pixels)
    edges = np.linspace(0, size, CELLS + 1).round().astype(int)
    half = size // CELLS // 2
    patched = np.repeat(pixels[None], CELLS**2, axis=0)
    for row in range(CELLS):
        for column in range(CELLS):
            top, left = max(0, edges[row] - half), max(0, edges[column] - half)
            patch = patched[row * CELLS + column, top : edges[row + 1] + half, left : edges[column + 1] + half]
            patch[:] = pixels.reshape(-1, 3).mean(axis=0).astype(np.uint8)
    return -predictor.probabilities(patched)[:, MELANOMA].reshape(CELLS, CELLS)


def maps(predictor: Predictor, explainer: explain.Explainer, pixels: np.ndarray, seed: int) -> dict[str, np.ndarray]:
    place = np.linspace(-1, 1, len(pixels))
    return {
        "LayerCAM": explainer.heat(pixels),
        "occlusion": occlusion(predictor, pixels),
        "middle": -np.hypot(place, place[:, None]),
        "chance": np.random.default_rng(seed).standard_normal((6, 6)),
    }


def covers(pixels: np.ndarray, region: np.ndarray) -> dict[str, np.ndarray]:
    blurred = np.asarray(Image.fromarray(pixels).filter(ImageFilter.GaussianBlur(len(pixels) / 8)))
    return {
        "border colour": explain.covered(pixels, region),
        "blurred": np.where(region[..., None], blurred, pixels),
    }


def melanomas(catalogs: list[str], count: int) -> list[str]:
    frame = pd.concat([schema.read(catalog) for catalog in catalogs])
    usable = frame["error"].isna() & (frame["label"] == taxonomy.MELANOMA)
    held_out = ~frame["split"].isin(["train", "validation"])
    uris = sorted(set(frame[usable & held_out]["uri"]))
    return [uris[place] for place in sorted(np.random.default_rng(0).permutation(len(uris))[:count])]


def log_odds(p: np.ndarray) -> np.ndarray:
    return np.log(p / (1 - p))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle")
    parser.add_argument("catalogs", nargs="+")
    parser.add_argument("--images", type=int, default=60)
    arguments = parser.parse_args()
    bundle = bundles.load(arguments.bundle)
    predictor, explainer = Predictor(bundle), explain.Explainer(bundle)
    uris = melanomas(arguments.catalogs, arguments.images)
    pictures = [decode(storage.read_bytes(uri), bundle.input_size).pixels for uri in uris]
    rows = []
    for number, pixels in enumerate(pictures):
        before = predictor.probabilities(pixels[None])[0, MELANOMA]
        for name, heat in maps(predictor, explainer, pixels, number).items():
            for share in (0.1, 0.15, 0.2):
                for where, sign in (("highest", 1), ("lowest", -1)):
                    for cover, picture in covers(pixels, explain.hottest(sign * heat, len(pixels), share)).items():
                        after = predictor.probabilities(picture[None])[0, MELANOMA]
                        rows.append((name, where, cover, share, before - after, log_odds(before) - log_odds(after)))
    columns = ["map", "where", "cover", "share", "fall of p", "fall of log-odds"]
    groups = pd.DataFrame(rows, columns=columns).groupby(columns[:4], sort=False)
    falls = groups.agg(["mean", "sem"])
    falls["fell", ""] = groups["fall of p"].agg(lambda fall: (fall > 0).mean())
    print(f"Model {bundle.version}, {len(pictures)} melanomas. sem: standard error of the mean; fell: share of images.")
    print(falls.round(3).to_string())


if __name__ == "__main__":
    main()
