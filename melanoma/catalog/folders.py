"""Class folders: one sub-folder a diagnosis, as the nine-class ISIC set is laid out."""

import os
from typing import Any

from melanoma import storage, taxonomy
from melanoma.catalog.images_by_id import below, pictures
from melanoma.catalog.labels import Said, read_words
from melanoma.catalog.mapping import NO_MAP, Map
from melanoma.errors import InputError
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

    Left out is what is of another picture: masks, thumbnails. Raises OSError, and InputError where a folder is a link:
    links are not followed, and a whole class would be missing.
    """
    found: list[dict[str, Any]] = []
    linked: list[str] = []
    # isic9/Train may be a source of its own. No folder above it counts: it may be the home of a project "melanoma".
    _, _, name = source.removeprefix("s3://").rpartition("/")
    infos, companions = pictures(source)
    for info in infos:
        # A folder that is listed is a link to one. S3 has none.
        if not storage.is_s3(info.uri) and os.path.isdir(info.uri):
            linked.append(info.uri)
            continue
        words = [word.lower() for word in (name, *below(source, info.uri)[:-1])]
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
    if linked:
        more = f" and {len(linked) - 3:,} more" if len(linked) > 3 else ""
        raise InputError(
            f"{source} has linked folders, which are not followed: {', '.join(linked[:3])}{more}. Put the folders "
            "themselves there, such as in a copy that `cp -rL` makes, or take the links away."
        )
    return found, companions


def nearest(source: str, uri: str) -> list[str]:
    """The folders that may be a diagnosis, the nearest to a file first."""
    return [folder for folder in reversed(below(source, uri)[:-1]) if folder.lower() not in SPLIT_WORDS]


def _said(words: list[str], words_of: Map) -> Said:
    """The nearest folder that is known decides: isic9/Train/nevus/clinic A/x.jpg is a nevus."""
    said = [read_words([(word, False)], words_of) for word in words]
    for place, each in enumerate(said):
        if each.label or each.other:
            # malignant/clinic A/x.jpg is malignant, and "clinic A" may be more than a name.
            nearer = [one.unknown for one in said[:place] if one.unknown] if each.label in taxonomy.COARSE else []
            return each._replace(passed_over=next(iter(nearer), None))
    silent = [each for each in said if not each.unknown]
    return next(iter([*silent, *said]), Said())
