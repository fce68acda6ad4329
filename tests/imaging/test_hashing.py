"""Copies of a picture have close hashes, different pictures do not."""

import io
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from melanoma.imaging.decode import decode_image
from melanoma.imaging.hashing import NEAR_DUPLICATE_DISTANCE, perceptual_hash


def distance(one: str, other: str) -> int:
    return (int(one, 16) ^ int(other, 16)).bit_count()


def picture(seed: int) -> Image.Image:
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(60, 230, (9, 12, 3), dtype=np.uint8))
    return coarse.resize((400, 300), Image.Resampling.BICUBIC)


def test_copies_are_close_and_others_are_not() -> None:
    original = perceptual_hash(picture(0))
    assert len(original) == 64
    assert perceptual_hash(picture(0)) == original
    stream = io.BytesIO()
    picture(0).save(stream, "JPEG", quality=70)
    copies = [Image.open(stream), picture(0).resize((320, 240)), picture(0).resize((180, 180))]
    assert all(distance(perceptual_hash(copy), original) <= NEAR_DUPLICATE_DISTANCE for copy in copies)
    others = [picture(seed) for seed in range(1, 20)] + [picture(0).transpose(Image.Transpose.ROTATE_90)]
    assert all(distance(perceptual_hash(other), original) > 2 * NEAR_DUPLICATE_DISTANCE for other in others)


def test_real_pictures() -> None:
    folder = os.environ.get("MELANOMA_DATA")
    if not folder:
        pytest.skip("MELANOMA_DATA names no folder of real images.")
    hashes = {
        path.stem: perceptual_hash(decode_image(path.read_bytes()))
        for path in sorted(Path(folder, "isic9/Train/melanoma").glob("*.jpg"))[:300]
    }
    near = {
        (a, b) for a in hashes for b in hashes if a < b and distance(hashes[a], hashes[b]) <= NEAR_DUPLICATE_DISTANCE
    }
    # By eye: these are the same photographs under two ids.
    assert near == {
        ("ISIC_0000279", "ISIC_0000280"),
        ("ISIC_0000399", "ISIC_0001124"),
        ("ISIC_0000520", "ISIC_0010302"),
    }
