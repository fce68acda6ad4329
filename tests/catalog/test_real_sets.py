"""The audit's counts on the nine-class ISIC set and HAM10000, counted again by nothing but file names and digests."""

import csv
import hashlib
import os
from collections import Counter, defaultdict
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from melanoma import config
from melanoma.catalog import audit, reference, resolve, schema
from melanoma.catalog.build import build

DATA = Path(os.environ.get("MELANOMA_DATA", "/nonexistent"))
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (DATA / "isic9").is_dir(), reason="MELANOMA_DATA names no folder with the nine-class ISIC set"
    ),
]

CODES = {
    "actinic keratosis": "AK",
    "basal cell carcinoma": "BCC",
    "dermatofibroma": "DF",
    "melanoma": "MEL",
    "nevus": "NV",
    "pigmented benign keratosis": "BKL",
    "seborrheic keratosis": "SK",
    "squamous cell carcinoma": "SCC",
    "vascular lesion": "VASC",
}


class File(NamedTuple):
    split: str
    label: str
    image_id: str
    sha256: str


@pytest.fixture(scope="module")
def files() -> list[File]:
    return [
        File(
            Path(folder).parent.name.lower(),
            CODES[Path(folder).name],
            name.removesuffix(".jpg"),
            hashlib.sha256((Path(folder) / name).read_bytes()).hexdigest(),
        )
        for folder, _, names in os.walk(DATA / "isic9")
        for name in names
    ]


@pytest.fixture(scope="module")
def lesions() -> dict[str, str]:
    with (DATA / "ham10000/metadata.csv").open() as table:
        return {row["image_id"]: row["lesion_id"] for row in csv.DictReader(table)}


@pytest.fixture(scope="module")
def catalogs(files: list[File], lesions: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """Catalogs of the nine-class set, and of those images of HAM10000 whose ids it has."""
    folder = tmp_path_factory.mktemp("real")
    nine, ham = str(folder / "isic9.parquet"), str(folder / "ham10000.parquet")
    schema.write(nine, build([str(DATA / "isic9")]))
    shared = {file.image_id for file in files} & set(lesions)
    with (DATA / "ham10000/metadata.csv").open() as table, (folder / "ham10000.csv").open("w") as manifest:
        writer = csv.writer(manifest)
        writer.writerow(["path", "image_id", "lesion_id", "dx"])
        for row in csv.DictReader(table):
            path = DATA / "ham10000/images" / f"{row['image_id']}.jpg"
            if row["image_id"] in shared and path.exists():
                writer.writerow([path, row["image_id"], row["lesion_id"], row["dx"]])
    schema.write(ham, build([str(folder / "ham10000.csv")]))
    return nine, ham


@pytest.fixture(scope="module")
def alone(catalogs: tuple[str, str]) -> dict[str, Any]:
    frame, _ = audit.read(catalogs[:1])
    return audit.examine(frame, reference.read(str(DATA / "isic2019_groundtruth.csv")))


@pytest.fixture(scope="module")
def together(catalogs: tuple[str, str]) -> dict[str, Any]:
    frame, _ = audit.read(catalogs)
    return audit.examine(frame)


def under_two_labels(files: list[File], column: str) -> Counter[tuple[str, str]]:
    labels = defaultdict(set)
    for file in files:
        labels[getattr(file, column)].add(file.label)
    return Counter(pair for found in labels.values() for pair in combinations(sorted(found), 2))


def test_images_under_two_labels(files: list[File], alone: dict[str, Any]) -> None:
    for column, name in (("image_id", "ids"), ("sha256", "contents")):
        wanted = under_two_labels(files, column)
        assert wanted
        found = {tuple(row["labels"]): row[name] for row in alone["contradictions"]["by_pair"] if row[name]}
        assert found == wanted


def test_test_images_that_are_in_train(files: list[File], alone: dict[str, Any]) -> None:
    (row,) = alone["leaks"]["by_splits"]
    assert (row["splits"], row["images"]) == (["train", "test"], sum(file.split == "test" for file in files))
    for column in ("image_id", "sha256"):
        train = {getattr(file, column) for file in files if file.split == "train"}
        wanted = sum(file.split == "test" and getattr(file, column) in train for file in files)
        assert wanted > 0
        assert row["by"][column] == wanted


def test_labels_against_the_reference(files: list[File], alone: dict[str, Any]) -> None:
    with (DATA / "isic2019_groundtruth.csv").open() as table:
        reference = {
            row["image"].removesuffix("_downsampled"): next(code for code in row if row[code] in ("1.0", "1"))
            for row in csv.DictReader(table)
        }
    known = [(file, reference[file.image_id]) for file in files if file.image_id in reference]
    assert alone["reference"]["known"] == len({file.image_id for file, _ in known})
    # The challenge's BKL is both keratoses.
    wanted = Counter(
        (file.label, "BKL|SK" if truth == "BKL" else truth)
        for file, truth in known
        if file.label not in (("BKL", "SK") if truth == "BKL" else (truth,))
    )
    assert wanted
    assert {(row["label"], row["reference"]): row["images"] for row in alone["reference"]["by_pair"]} == wanted


def test_the_repaired_set_passes(catalogs: tuple[str, str]) -> None:
    rules = config.load(resolve.Rules, str(Path(__file__).parents[2] / "configs/isic9.yaml"))
    repaired, _ = resolve.resolve(schema.read(catalogs[0]), rules)
    answer = audit.examine(repaired, reference.read(str(DATA / "isic2019_groundtruth.csv")))
    assert answer["reference"]["known"] > 0
    assert audit.is_clean(answer), answer["summary"]


def test_test_images_whose_lesion_is_in_train(
    files: list[File], lesions: dict[str, str], together: dict[str, Any]
) -> None:
    """The nine-class set knows no lesions: they come with HAM10000, by the id of the photograph."""
    train = {lesions.get(file.image_id) for file in files if file.split == "train"} - {None}
    wanted = sum(file.split == "test" and lesions.get(file.image_id) in train for file in files)
    assert wanted > 0
    (row,) = together["leaks"]["by_splits"]
    assert row["by"]["lesion_id"] == wanted
    assert row["by"]["any"] >= wanted


def test_a_class_that_is_another(files: list[File], alone: dict[str, Any]) -> None:
    by_label = defaultdict(set)
    for file in files:
        by_label[file.label].add(file.sha256)
    contained = {
        label
        for label, contents in by_label.items()
        if any(len(contents & by_label[other]) > len(contents) / 2 for other in by_label if other != label)
    }
    assert contained
    flagged = {row["label"] for row in alone["classes"] if "mostly contained" in (row["warning"] or "")}
    assert flagged == contained
