"""Copies of a photograph are found whatever was done to it; other photographs, however alike, are not."""

import hashlib
import io
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image, ImageDraw, ImageEnhance, ImageFilter, ImageOps

from melanoma.catalog.near_duplicates import Pair, find, hash_pairs, seen
from melanoma.demo.lesions import draw_lesion
from melanoma.imaging.decode import decode
from melanoma.imaging.hashing import orientations, perceptual_hash, thumbnail
from melanoma.taxonomy import CODES

Turn = Image.Transpose
Change = Callable[[Image.Image], Image.Image]


def catalog(files: list[bytes]) -> pd.DataFrame:
    """What `build` knows of files."""
    pictures = [Image.fromarray(decode(data, 128).pixels) for data in files]
    return pd.DataFrame(
        {
            "sha256": [hashlib.sha256(data).hexdigest() for data in files],
            "perceptual_hash": [perceptual_hash(picture) for picture in pictures],
            "thumbnail": [thumbnail(picture) for picture in pictures],
        },
        dtype=object,
    )


def saved(image: Image.Image, quality: int = 90) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def lesions() -> list[Image.Image]:
    """Two of each diagnosis, not square."""
    return [Image.fromarray(draw_lesion(code, seed, 240, 180)) for code in CODES for seed in (0, 1)]


def scaled(image: Image.Image, share: float) -> Image.Image:
    return image.resize((round(image.width * share), round(image.height * share)), Image.Resampling.LANCZOS)


def cropped(image: Image.Image, left: float, top: float, right: float, bottom: float) -> Image.Image:
    width, height = image.size
    return image.crop(
        (round(width * left), round(height * top), round(width * (1 - right)), round(height * (1 - bottom)))
    )


def gamma(image: Image.Image, power: float) -> Image.Image:
    return image.point([round(255 * (level / 255) ** power) for level in range(256)] * 3)


def tinted(image: Image.Image) -> Image.Image:
    return Image.fromarray(np.clip(np.asarray(image) * [1.08, 0.97, 0.9], 0, 255).astype(np.uint8))


COPIES: dict[str, tuple[Change, int, str]] = {
    # what is done, the quality of the JPEG, a word that must be said of it
    "saved again": (lambda i: i, 70, "same picture"),
    "saved badly": (lambda i: i, 40, "same picture"),
    "scaled to 80%": (lambda i: scaled(i, 0.8), 90, "same picture"),
    "scaled to 50%": (lambda i: scaled(i, 0.5), 90, "same picture"),
    "squashed": (lambda i: i.resize((180, 180)), 90, "same picture"),
    "mirrored": (lambda i: i.transpose(Turn.FLIP_LEFT_RIGHT), 90, "mirrored"),
    "upside down": (lambda i: i.transpose(Turn.FLIP_TOP_BOTTOM), 90, "mirrored"),
    "rotated by 90": (lambda i: i.transpose(Turn.ROTATE_90), 90, "rotated"),
    "rotated by 180": (lambda i: i.transpose(Turn.ROTATE_180), 90, "rotated"),
    "rotated by 270": (lambda i: i.transpose(Turn.ROTATE_270), 90, "rotated"),
    "transposed": (lambda i: i.transpose(Turn.TRANSPOSE), 90, "mirrored, rotated"),
    "transposed the other way": (lambda i: i.transpose(Turn.TRANSVERSE), 90, "mirrored, rotated"),
    "cropped by 5% of its area": (lambda i: cropped(i, 0.0125, 0.0125, 0.0125, 0.0125), 90, "cropped"),
    "cropped by 5% of its sides": (lambda i: cropped(i, 0.025, 0.025, 0.025, 0.025), 90, "cropped"),
    "cropped by 5% on each side": (lambda i: cropped(i, 0.05, 0.05, 0.05, 0.05), 90, "cropped"),
    "cropped on one side": (lambda i: cropped(i, 0.05, 0, 0, 0), 90, "cropped"),
    "cropped at a corner": (lambda i: cropped(i, 0, 0, 0.05, 0.05), 90, "cropped"),
    "with a border": (lambda i: ImageOps.expand(i, 6, "black"), 90, "cropped"),
    "brighter": (lambda i: ImageEnhance.Brightness(i).enhance(1.2), 90, "another exposure"),
    "darker": (lambda i: ImageEnhance.Brightness(i).enhance(0.75), 90, "another exposure"),
    "of more contrast": (lambda i: ImageEnhance.Contrast(i).enhance(1.3), 90, "another exposure"),
    "of less contrast": (lambda i: ImageEnhance.Contrast(i).enhance(0.7), 90, "another exposure"),
    "of gamma 0.7": (lambda i: gamma(i, 0.7), 90, "another exposure"),
    "of gamma 1.4": (lambda i: gamma(i, 1.4), 90, "another exposure"),
    "of another colour": (tinted, 90, ""),
    "mirrored, 80% and saved again": (lambda i: scaled(i.transpose(Turn.FLIP_LEFT_RIGHT), 0.8), 70, "mirrored"),
    "rotated, cropped and saved again": (
        lambda i: cropped(i.transpose(Turn.ROTATE_90), 0.025, 0.025, 0.025, 0.025),
        70,
        "rotated, cropped",
    ),
    "mirrored, darker and cropped": (
        lambda i: ImageEnhance.Brightness(cropped(i.transpose(Turn.FLIP_LEFT_RIGHT), 0.05, 0, 0, 0.05)).enhance(0.8),
        80,
        "mirrored, cropped, another exposure",
    ),
}


@pytest.mark.parametrize("kind", COPIES)
def test_copies_are_found_and_nothing_else(kind: str, lesions: list[Image.Image]) -> None:
    change, quality, word = COPIES[kind]
    pairs = find(catalog([saved(i, 95) for i in lesions] + [saved(change(i), quality) for i in lesions]))
    assert [(pair.first, pair.second) for pair in pairs] == [(n, n + len(lesions)) for n in range(len(lesions))]
    assert all(0.7 <= pair.similarity <= 1 for pair in pairs)
    assert sum(word in pair.how for pair in pairs) >= 0.8 * len(lesions), [pair.how for pair in pairs]


def different(count: int) -> pd.DataFrame:
    return catalog([saved(Image.fromarray(draw_lesion(CODES[n % 9], 1000 + n, 128, 128))) for n in range(count)])


def test_different_lesions_are_no_pairs() -> None:
    assert find(different(200)) == []


@pytest.mark.slow
def test_among_2000_different_lesions_is_no_pair() -> None:
    assert find(different(2000)) == []


def in_round_field(image: Image.Image) -> Image.Image:
    """As some dermatoscopes show it: black around the skin."""
    field = Image.new("L", image.size, 0)
    ImageDraw.Draw(field).ellipse((50, 20, 190, 160), fill=255)
    return Image.composite(image, Image.new("RGB", image.size), field.filter(ImageFilter.GaussianBlur(2)))


def test_equal_round_fields_do_not_make_a_pair_and_copies_in_them_do(lesions: list[Image.Image]) -> None:
    pictures = [in_round_field(image) for image in lesions]
    files = [*map(saved, pictures), *(saved(scaled(picture, 0.8), 70) for picture in pictures)]
    count = len(pictures)
    assert [(a, b) for a, b, _, _ in find(catalog(files))] == [(n, n + count) for n in range(count)]


def test_what_has_no_features_matches_nothing() -> None:
    generator = np.random.default_rng(0)
    # A noisy sensor that sees nothing, and light that falls from one side.
    noisy = [Image.fromarray(generator.integers(0, 12, (90, 120, 3), dtype=np.uint8)) for _ in range(50)]
    slope = np.linspace(0, 40, 120)[None, :, None] + np.zeros((90, 1, 3))
    sloped = [Image.fromarray((slope + offset).astype(np.uint8)) for offset in range(0, 200, 4)]
    assert find(catalog([saved(image) for image in (*noisy, *sloped)])) == []


def test_a_thousand_copies_do_not_become_half_a_million_pairs(lesions: list[Image.Image]) -> None:
    one, other = catalog([saved(lesions[0]), saved(lesions[1])]).to_dict("records")
    equal = pd.DataFrame([{**one, "sha256": f"{n:064x}"} for n in range(1000)] + [other], dtype=object)
    assert find(equal) == [Pair(0, n, "same picture", 1.0) for n in range(1, 1000)]
    # Nearly equal ones: not each with each, but all of them by chains.
    pixels = np.frombuffer(one["thumbnail"], dtype=np.uint8)
    noise = np.random.default_rng(0).integers(-2, 3, (300, pixels.size))
    near = equal.iloc[-301:].assign(
        thumbnail=[*(np.clip(pixels + each, 0, 255).astype(np.uint8).tobytes() for each in noise), other["thumbnail"]]
    )
    pairs = find(near)
    assert len(pairs) < 0.5 * 300 * 299 / 2
    reached, new = {0}, {0}
    while new:
        new = {b for a, b, *_ in pairs if a in new} | {a for a, b, *_ in pairs if b in new}
        new -= reached
        reached |= new
    assert reached == set(range(300))


def test_equal_bytes_are_not_listed(lesions: list[Image.Image]) -> None:
    one, recompressed = saved(lesions[0]), saved(lesions[0], 80)
    pairs = find(catalog([one, one, recompressed, one]))
    assert [(pair.first, pair.second) for pair in pairs] == [(0, 2)]


def test_the_order_of_the_rows_does_not_matter(lesions: list[Image.Image]) -> None:
    changes = [change for change, _, _ in COPIES.values()]
    copies = [saved(changes[n % len(changes)](image)) for n, image in enumerate(lesions)]
    frame = catalog([saved(image, 95) for image in lesions] + copies)
    found = {(pair.first, pair.second): pair.similarity for pair in find(frame)}
    assert len(found) == len(lesions)
    order = np.random.default_rng(0).permutation(len(frame))
    shuffled = find(frame.iloc[order].reset_index(drop=True))
    assert {
        tuple(sorted((int(order[p.first]), int(order[p.second])))): p.similarity for p in shuffled
    } == pytest.approx(found)


def test_what_has_no_picture_has_no_pairs(lesions: list[Image.Image]) -> None:
    frame = catalog([saved(lesions[0]), saved(lesions[0], 70)])
    assert len(find(frame)) == 1
    assert find(frame.iloc[:0]) == find(frame.iloc[:1]) == []
    unreadable = pd.DataFrame([dict.fromkeys(frame)] * 2, dtype=object)
    pairs = find(pd.concat([unreadable, frame], ignore_index=True))
    assert [(pair.first, pair.second) for pair in pairs] == [(2, 3)]


def test_without_a_thumbnail_the_hash_decides(lesions: list[Image.Image]) -> None:
    frame = catalog([saved(image, quality) for image in lesions[:3] for quality in (95, 70)])
    frame.loc[[1, 2, 3], "thumbnail"] = None
    frame.loc[4, "thumbnail"] = b"of another size"
    assert [(pair.first, pair.second) for pair in find(frame)] == [(0, 1), (2, 3), (4, 5)]


def test_real_pictures() -> None:
    folder = os.environ.get("MELANOMA_DATA")
    if not folder:
        pytest.skip("MELANOMA_DATA names no folder of real images.")
    paths = sorted(Path(folder, "isic9/Train/melanoma").glob("*.jpg"))[:300]
    # HAM10000 has these under two lesion ids each.
    ham = ["ISIC_0025226", "ISIC_0030074", "ISIC_0027027", "ISIC_0029036"]
    paths += [Path(folder, "ham10000/images", f"{name}.jpg") for name in ham]
    found = {(paths[p.first].stem, paths[p.second].stem) for p in find(catalog([path.read_bytes() for path in paths]))}
    # By eye: these are the same photographs under two ids. ISIC_0000279 and ISIC_0000280 are the same bytes.
    assert found == {
        ("ISIC_0000399", "ISIC_0001124"),
        ("ISIC_0000520", "ISIC_0010302"),
        ("ISIC_0025226", "ISIC_0030074"),
        ("ISIC_0027027", "ISIC_0029036"),
    }


# --- by hash -------------------------------------------------------------------------------------------------


def brute_force(hashes: list[str | None], distance: int) -> set[tuple[int, int]]:
    values = [None if value is None else int(value, 16) for value in hashes]
    return {
        (i, j)
        for j, b in enumerate(values)
        for i, a in enumerate(values[:j])
        if a is not None and b is not None and (a ^ b).bit_count() <= distance
    }


def clustered(generator: np.random.Generator, count: int, most: int) -> list[str | None]:
    """Hashes in clusters around a few centres, with 0 to `most` flipped bits, some missing."""
    hashes: list[str | None] = []
    for _ in range(count // 20):
        centre = int.from_bytes(generator.bytes(32), "big")
        for _ in range(20):
            flips = generator.choice(256, size=generator.integers(0, most + 1), replace=False)
            value = centre
            for bit in flips.tolist():
                value ^= 1 << bit
            hashes.append(f"{value:064x}")
    hashes[3] = hashes[-1] = None
    generator.shuffle(hashes)
    return hashes


@pytest.mark.parametrize("distance", [0, 1, 28])
@pytest.mark.parametrize("seed", range(3))
def test_all_pairs_are_found_and_no_others(distance: int, seed: int) -> None:
    generator = np.random.default_rng(seed)
    for most in (2, 20, 60, 256):
        hashes = clustered(generator, 160, most)
        found = list(hash_pairs(hashes, distance))
        assert len(found) == len(set(found))
        assert set(found) == brute_force(hashes, distance)
    random_hashes: list[str | None] = [generator.bytes(32).hex() for _ in range(200)]
    assert set(hash_pairs(random_hashes, distance)) == brute_force(random_hashes, distance)


def test_pairs_at_the_very_distance_are_found() -> None:
    """Flipped bits spread so that as few bands as possible stay equal."""
    generator = np.random.default_rng(0)
    for distance in (1, 7, 28):
        bits = generator.permutation(256)[: distance + 1].tolist()
        at = sum(1 << bit for bit in bits[:distance])
        beyond = sum(1 << bit for bit in bits)
        hashes: list[str | None] = [f"{value:064x}" for value in (0, at, beyond)]
        assert set(hash_pairs(hashes, distance)) == {(0, 1), (1, 2)}
        every_band = [int(band[0]) for band in np.array_split(np.arange(256), distance + 1)][:distance]
        spread: list[str | None] = ["0" * 64, f"{sum(1 << bit for bit in every_band):064x}"]
        assert list(hash_pairs(spread, distance)) == [(0, 1)]


def test_no_hashes_have_no_pairs() -> None:
    none: list[str | None] = [None, None]
    assert list(hash_pairs([], 28)) == list(hash_pairs(none, 28)) == []


def test_what_was_seen_is_known_by_its_hash_however_it_is_turned(lesions: list[Image.Image]) -> None:
    def hashes(images: list[Image.Image]) -> list[str | None]:
        return [str(value) for value in catalog([saved(image, 85) for image in images])["perceptual_hash"]]

    half = len(lesions) // 2
    known = [*hashes(lesions[:half]), None]
    for turn in (None, *Turn):
        turned = [image.transpose(turn) if turn is not None else image for image in lesions]
        assert seen([None, *hashes(turned)], known) == set(range(1, half + 1))
    assert seen(hashes(lesions), []) == seen([], known) == seen([None], known) == set()


def test_the_hashes_of_all_orientations_come_from_one(lesions: list[Image.Image]) -> None:
    value = perceptual_hash(lesions[0])
    assert orientations(value)[0] == value
    assert len(set(orientations(value))) == 8
    assert all(set(orientations(each)) == set(orientations(value)) for each in orientations(value))
