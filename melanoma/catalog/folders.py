"""Class folders: one sub-folder a diagnosis, as the nine-class ISIC set is laid out."""

from typing import Any

from melanoma import storage, taxonomy
from melanoma.errors import InputError

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


def rows(source: str) -> list[dict[str, Any]]:
    """A row of the catalog for each image below a folder, as far as its path tells. Raises InputError and OSError."""
    found: list[dict[str, Any]] = []
    # isic9/Train may be a source of its own. No folder above it counts: it may be the home of a project "melanoma".
    _, _, name = source.removeprefix("s3://").rpartition("/")
    for info in storage.list_objects(source):
        if info.uri.endswith("/"):  # S3's folder marker
            continue
        folders = info.uri.removeprefix(source).split("/")[:-1]
        # The nearest folder decides: isic9/Train/nevus/x.jpg is a nevus of the training folder.
        label = next((code for word in reversed(folders) if (code := taxonomy.label_of(word))), None)
        words = [word.lower() for word in (name, *folders)]
        split = next((SPLIT_WORDS[word] for word in reversed(words) if word in SPLIT_WORDS), None)
        found.append(
            {
                "uri": info.uri,
                "image_id": taxonomy.image_id_of(info.uri),
                "source": source_name(source),
                "label": label,
                "split": split,
            }
        )
    if found and all(row["label"] is None for row in found):
        raise InputError(
            f"No folder in {source} is named after a diagnosis: expected sub-folders such as 'melanoma' or 'nevus', "
            "or give a manifest with the columns path and label."
        )
    return found
