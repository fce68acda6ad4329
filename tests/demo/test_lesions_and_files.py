import io
from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from melanoma.demo.archive_files import BrokenFile, broken_files, good_files
from melanoma.demo.lesions import draw_lesion, write_class_folders
from melanoma.imaging.decode import decode
from melanoma.imaging.errors import ImageError
from melanoma.taxonomy import CODES, NAMES


@pytest.mark.parametrize("code", CODES)
def test_a_picture_is_the_same_for_the_same_arguments_only(code: str) -> None:
    picture = draw_lesion(code, 7)
    assert picture.shape == (180, 180, 3)
    assert picture.dtype == np.uint8
    assert np.array_equal(picture, draw_lesion(code, 7))
    assert not np.array_equal(picture, draw_lesion(code, 8))
    for other in set(CODES) - {code}:
        assert not np.array_equal(picture, draw_lesion(other, 7))


@pytest.mark.parametrize(("width", "height"), [(64, 64), (640, 480), (90, 200)])
def test_width_and_height_are_as_asked(width: int, height: int) -> None:
    for code in CODES:
        picture = draw_lesion(code, 0, width, height)
        assert picture.shape == (height, width, 3)
        assert picture.std() > 5


def test_an_unknown_code_is_refused() -> None:
    with pytest.raises(ValueError, match="'mole' is not a diagnosis"):
        draw_lesion("mole", 0)


def test_classes_are_learned_from_structure_but_not_from_colour_alone() -> None:
    """From few pictures, tested on others: a network has something to learn, and needs more than an average colour."""
    train = [(code, draw_lesion(code, seed, 96, 96)) for code in CODES for seed in range(36)]
    test = [(code, draw_lesion(code, seed, 96, 96)) for code in CODES for seed in range(100, 115)]

    def colour(picture: np.ndarray) -> np.ndarray:
        return np.concatenate([picture.mean((0, 1)), picture.std((0, 1))])

    def colour_and_structure(picture: np.ndarray) -> np.ndarray:
        scaled = picture.astype(np.float32) / 255
        features = [colour(scaled), *np.percentile(scaled, [2, 10, 50, 90, 98], axis=(0, 1))]
        # Contrast and its skewness at four scales: of brightness, redness and brownness.
        for channel in (scaled.mean(2), scaled[..., 0] - scaled[..., 1], scaled[..., 0] - scaled[..., 2]):
            blurred = [ndimage.gaussian_filter(channel, sigma, truncate=2) for sigma in (0.5, 1, 2, 4, 8)]
            for fine, coarse in pairwise(blurred):
                band = fine - coarse
                spread = band.std()
                features.append(np.array([spread, np.abs(band).mean(), (band * band * band).mean() / spread**3]))
        return np.concatenate(features)

    accuracies = []
    for features in (colour, colour_and_structure):
        model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000))
        model.fit([features(picture) for _, picture in train], [code for code, _ in train])
        accuracies.append(model.score([features(picture) for _, picture in test], [code for code, _ in test]))
    from_colour, from_both = accuracies
    assert from_colour > 2 / 9
    assert from_both > 0.6
    assert from_both > from_colour + 0.15


def test_class_folders_are_laid_out_as_the_isic_set(tmp_path: Path) -> None:
    assert write_class_folders(tmp_path, per_class=3, seed=0, size=96) == 27
    assert sorted(folder.name for folder in tmp_path.iterdir()) == sorted(NAMES.values())
    assert (tmp_path / "actinic keratosis" / "SYN_0000001.jpg").is_file()
    for code, name in NAMES.items():
        files = sorted((tmp_path / name).iterdir())
        assert len(files) == 3
        for file in files:
            with Image.open(file) as picture:
                assert picture.format == "JPEG"
                number = int(file.stem.removeprefix("SYN_"))
                drawn = draw_lesion(code, number, 96, 96)
                assert np.abs(np.asarray(picture, float) - drawn).mean() < 6


def test_ids_are_unique_over_classes_and_seeds(tmp_path: Path) -> None:
    for seed in range(3):
        write_class_folders(tmp_path / str(seed), per_class=2, seed=seed, size=32)
    files = list(tmp_path.rglob("*.jpg"))
    assert len(files) == len({file.name for file in files}) == len({file.read_bytes() for file in files}) == 54


def test_class_folders_come_out_the_same_again(tmp_path: Path) -> None:
    for run in ("first", "second"):
        write_class_folders(tmp_path / run, per_class=1, seed=5, size=64)
    for file in (tmp_path / "first").rglob("*.jpg"):
        assert file.read_bytes() == (tmp_path / "second" / file.relative_to(tmp_path / "first")).read_bytes()


def test_more_pictures_than_there_are_numbers_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="between 0 and 10,000"):
        write_class_folders(tmp_path, per_class=10_001, seed=0)
    assert list(tmp_path.iterdir()) == []


def test_there_are_broken_files_of_every_kind_and_with_awkward_names() -> None:
    files = broken_files()
    kinds = Counter(file.error_kind for file in files)
    assert set(kinds) == {"empty", "truncated", "not_an_image", "unsupported", "too_large", "dicom", "blank"}
    assert kinds["truncated"] >= 8
    assert len(files) == len({file.name for file in files}) >= 25
    for character in " '\"#%+?&[]ü皮":
        assert any(character in file.name for file in files), character
    assert max(len(file.data) for file in files) < 1_000_000
    assert broken_files() == files
    assert broken_files(seed=1) != files


def test_the_bomb_is_small_and_says_that_it_is_huge() -> None:
    bomb = next(file.data for file in broken_files() if file.error_kind == "too_large")
    assert len(bomb) < 10_000
    assert [int.from_bytes(bomb[at : at + 4], "big") for at in (16, 20)] == [60_000, 60_000]


@pytest.mark.parametrize("file", broken_files(), ids=lambda file: file.name)
def test_each_broken_file_is_rejected_as_its_kind(file: BrokenFile) -> None:
    with pytest.raises(ImageError) as caught:
        decode(file.data, 64)
    assert caught.value.kind == file.error_kind


def test_good_files_decode_to_nearly_their_pictures() -> None:
    pictures = [draw_lesion(CODES[number % 9], number) for number in range(24)]
    files = good_files(pictures)
    assert len({name for name, _ in files}) == 24
    sizes, formats = set(), set()
    for picture, (name, data) in zip(pictures, files, strict=True):
        decoded = decode(data, 180)
        sizes.add((decoded.width, decoded.height))
        formats.add(decoded.format)
        expected = np.asarray(Image.fromarray(picture).convert("L").convert("RGB")) if "grey" in name else picture
        assert np.abs(decoded.pixels.astype(float) - expected).mean() < 4, name
    assert sizes == {(180, 180), (640, 480), (1022, 767), (1504, 1129)}
    assert formats == {"JPEG", "PNG", "TIFF", "WEBP", "BMP", "DICOM"}


def test_good_files_are_of_the_kinds_that_their_names_say() -> None:
    files = dict(good_files([draw_lesion("DF", 3, 40, 30)] * 13))
    opened = {
        name.split(" ", 1)[1].split(" ", 1)[-1]: Image.open(io.BytesIO(data))
        for name, data in files.items()
        if not name.endswith(".dcm")
    }
    modes = {name: picture.mode for name, picture in opened.items()}
    assert modes["cmyk.jpg"] == "CMYK"
    assert modes["grey.JPG"] == "L"
    assert modes["palette.png"] == "P"
    assert modes["opaque.png"] == "RGBA"
    assert "progressive" in opened["progressive.jpeg"].info
    assert "progressive" not in opened["baseline.jpg"].info
    assert opened["phone.jpg"].getexif()[0x0112] == 6
    sixteen = next(data for name, data in files.items() if "16 bit" in name)
    assert sixteen[24] == 16  # bit depth in IHDR
