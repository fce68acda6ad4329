"""Class folders: one sub-folder a diagnosis, as the nine-class ISIC set is laid out."""

from typing import Any

from melanoma import storage
from melanoma.catalog.images_by_id import is_companion
from melanoma.catalog.labels import Said, read_words
from melanoma.catalog.mapping import NO_MAP, Map
from melanoma.taxonomy import image_id_of

SPLIT_WORDS = {
    "train": "train",
    "training": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "test": "test",
    "testing": "test",
}
"""What a folder or a manifest calls a split."""


def source_name(folder: str) -> str:
    """The set that a folder belongs to: isic9 for ``isic9/Train``."""
    names = [name for name in folder.removeprefix("s3://").split("/") if name]
    while len(names) > 1 and names[-1].lower() in SPLIT_WORDS:
        names.pop()
    return names[-1] if names else folder


def rows(source: str, words_of: Map = NO_MAP) -> tuple[list[dict[str, Any]], int]:
    """A row of the catalog for each file below a folder, as far as its path tells; and how many files were left out.

    Left out is what is of another picture: masks, thumbnails. Raises OSError.
    """
    found: list[dict[str, Any]] = []
    companions = 0
    # isic9/Train may be a source of its own. No folder above it counts: it may be the home of a project "melanoma".
    _, _, name = source.removeprefix("s3://").rpartition("/")
    for info in storage.list_objects(source):
        if info.uri.endswith("/"):  # S3's folder marker
            continue
        *folders, file = _below(source, info.uri)
        if is_companion(folders, file):
            companions += 1
            continue
        words = [word.lower() for word in (name, *folders)]
        split = next((SPLIT_WORDS[word] for word in reversed(words) if word in SPLIT_WORDS), None)
        found.append(
            {
                "uri": info.uri,
                "image_id": image_id_of(info.uri),
                "source": source_name(source),
                "split": split,
                **_said(nearest(source, info.uri), words_of)._asdict(),
            }
        )
    return found, companions


def nearest(source: str, uri: str) -> list[str]:
    """The folders that may be a diagnosis, the nearest to a file first."""
    return [folder for folder in reversed(_below(source, uri)[:-1]) if folder.lower() not in SPLIT_WORDS]


def _below(source: str, uri: str) -> list[str]:
    return [""] if uri == source else uri.removeprefix(source.rstrip("/") + "/").split("/")


def _said(words: list[str], words_of: Map) -> Said:
    """The nearest folder that is known decides: isic9/Train/nevus/clinic A/x.jpg is a nevus."""
    said = [read_words([(word, False)], words_of) for word in words]
    telling = [each for each in said if each.label or each.other]
    silent = [each for each in said if not each.unknown]
    return next(iter([*telling, *silent, *said]), Said())
