"""How long the search for near-duplicates takes, and how many it finds.

python tests/benchmarks/near_duplicates.py [N] [FOLDER]

N thumbnails (100,000) are cut from the JPEGs of FOLDER, or from generated lesions. Each is turned by its own angle,
magnified and lit differently, so that no two show one photograph. 2% are planted copies of others, with another
orientation, crop and exposure, and noise.
"""

import argparse
import hashlib
import io
import time
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from melanoma.catalog import near_duplicates
from melanoma.demo.lesions import draw_lesion
from melanoma.imaging.decode import decode
from melanoma.imaging.hashing import THUMBNAIL_SIDE, perceptual_hash
from melanoma.taxonomy import CODES


def jpegs(folder: str | None) -> list[bytes]:
    if folder:
        return [path.read_bytes() for path in sorted(Path(folder).rglob("*.jpg"))[:4000]]
    files = []
    for number in range(900):
        buffer = io.BytesIO()
        Image.fromarray(draw_lesion(CODES[number % 9], number, 200, 150)).save(buffer, "JPEG", quality=90)
        files.append(buffer.getvalue())
    return files


def variant(picture: Image.Image, rng: np.random.Generator) -> np.ndarray:
    """A part of the picture, uint8 [64, 64], turned by any angle that is not near to a quarter turn."""
    angle = np.pi / 2 * (rng.integers(4) + rng.uniform(0.1, 0.9))
    step = picture.width / THUMBNAIL_SIDE / rng.uniform(1.3, 2.2)
    turn = step * np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    middle = picture.width / 2 + rng.uniform(-0.1, 0.1, 2) * picture.width
    offset = middle - turn @ np.full(2, THUMBNAIL_SIDE / 2)
    matrix = (*turn[0], offset[0], *turn[1], offset[1])
    size = (THUMBNAIL_SIDE, THUMBNAIL_SIDE)
    cut = picture.transform(size, Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR, fillcolor=0)
    return clipped(np.asarray(cut) * rng.uniform(0.7, 1.1))


def copy(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    left, top, right, bottom = rng.uniform(0, 0.04, 4) * THUMBNAIL_SIDE * rng.integers(2)
    box = (left, top, THUMBNAIL_SIDE - right, THUMBNAIL_SIDE - bottom)
    cropped = Image.fromarray(pixels).resize(pixels.shape, Image.Resampling.BICUBIC, box)
    turned = np.rot90(np.asarray(cropped), int(rng.integers(4)))
    turned = turned[:, ::-1] if rng.integers(2) else turned
    return clipped(turned * rng.uniform(0.8, 1.15) + rng.normal(0, 1.0, pixels.shape))


def clipped(pixels: np.ndarray) -> np.ndarray:
    return np.clip(pixels, 0, 255).round().astype(np.uint8)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("count", type=int, nargs="?", default=100_000, metavar="N")
    parser.add_argument("folder", nargs="?", metavar="FOLDER")
    arguments = parser.parse_args()
    count, rng = arguments.count, np.random.default_rng(0)

    files = jpegs(arguments.folder)
    start = time.perf_counter()
    greens = [Image.fromarray(decode(data, 128).pixels).getchannel("G") for data in files]
    decode_each = (time.perf_counter() - start) / len(files)

    planted = count // 50
    pixels = [variant(greens[number % len(greens)], rng) for number in range(count - planted)]
    sources = rng.choice(len(pixels), planted, replace=False)
    pixels += [copy(pixels[source], rng) for source in sources]
    frame = pd.DataFrame({"thumbnail": [p.tobytes() for p in pixels], "perceptual_hash": None}, dtype=object)
    frame["sha256"] = [hashlib.sha256(data).hexdigest() for data in frame["thumbnail"]]
    print(f"{count:,} thumbnails, of {len(files):,} pictures; {planted:,} of them copies")

    start, used = time.perf_counter(), time.process_time()
    pairs = near_duplicates.find(frame)
    seconds, used = time.perf_counter() - start, time.process_time() - used
    wanted = {(int(source), count - planted + place) for place, source in enumerate(sources)}
    found = {(pair.first, pair.second) for pair in pairs}
    print(f"find: {seconds:.0f} s, {used:.0f} s of processor time; {len(wanted & found):,} of the copies found")
    origin = [number % len(files) for number in range(count - planted)]
    origin += [origin[source] for source in sources]
    others = [pair for pair in pairs if pair[:2] not in wanted]
    apart = sorted(round(pair.similarity, 2) for pair in others if origin[pair.first] != origin[pair.second])
    print(f"      {len(others) - len(apart):,} pairs that chance cut alike from one picture")
    print(f"      {len(apart):,} pairs of different pictures, similarity up to {apart[-1:]}")
    print(f"      {seconds / (decode_each * count):.2f} of the time that decoding as many takes on one core")

    hits = near_duplicates._Hits(*(np.zeros(512, dtype=np.int64) for _ in range(5)))
    start = time.perf_counter()
    near_duplicates._verify(np.stack(pixels[:1]), hits)
    every = (time.perf_counter() - start) / 512 * 8 * count * (count - 1) / 2
    print(f"      {seconds / every:.1e} of the time that all pairs in all orientations take on one core")

    hashes: list[str | None] = [perceptual_hash(Image.fromarray(p)) for p in pixels]
    start = time.perf_counter()
    seen = near_duplicates.seen(hashes[-planted:], hashes[:-planted])
    print(f"seen: {time.perf_counter() - start:.1f} s for {planted:,} hashes among the rest, {len(seen):,} seen")


if __name__ == "__main__":
    main()
