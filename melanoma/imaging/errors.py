"""What can be wrong with an image: the kinds of rejects, each with its meaning, and the one place that decides them.

| kind | what is wrong | decided by |
|---|---|---|
| `empty` | The file has no bytes. | the decoder |
| `truncated` | The file is cut short or damaged. | the decoder; the reader of tars and zips |
| `not_an_image` | The magic bytes are of something else. | `kinds.py` |
| `unsupported` | It is an image of a kind that is not read. | `kinds.py`, the decoder |
| `too_large` | It has more bytes or pixels than the limits. | `limits.py` |
| `dicom` | The DICOM file is damaged, or of a kind that is not read. | `dicom.py` |
| `not_found` | It was listed and is not there any more. | `of_storage` |
| `access` | The store refused or failed. | `of_storage` |
"""

from typing import Literal

from melanoma.storage import ChangedError, UnavailableError

ErrorKind = Literal[
    "empty", "truncated", "not_an_image", "unsupported", "too_large", "dicom", "not_found", "access"
]  # fmt: skip

TRANSIENT: tuple[ErrorKind, ...] = ("not_found", "access")
"""Rejects of these kinds say nothing of the image: a later run tries again."""

UNREAD: tuple[ErrorKind, ...] = ("unsupported", "dicom", "not_an_image")
"""Rejects of these kinds are tried again by a version of this program that reads more kinds of files."""


class ImageError(Exception):
    """An image that cannot be read or fetched: `kind` for the machine, `reason`, one sentence, for people."""

    def __init__(self, kind: ErrorKind, reason: str) -> None:
        super().__init__(kind, reason)
        self.kind: ErrorKind = kind
        self.reason = reason

    def __str__(self) -> str:
        return self.reason


class UnreachableError(ImageError):
    """The store did not answer: this says nothing of the image, and a later try may succeed."""


def of_storage(error: OSError) -> ImageError:
    """What an error of `melanoma.storage` means for an image."""
    if isinstance(error, UnavailableError):
        return UnreachableError("access", str(error))
    if isinstance(error, ChangedError):
        return ImageError("not_found", "The archive has changed since it was listed: the next night looks again.")
    if isinstance(error, (FileNotFoundError, NotADirectoryError)):
        return ImageError("not_found", str(error))
    return ImageError("access", str(error))


def unsupported(what: str) -> ImageError:
    """An image of a kind that is not read; `what`: the beginning of a sentence that says so."""
    return ImageError("unsupported", f"{what}: save the picture as an 8-bit JPEG or PNG.")


def too_many_pixels(what: str) -> ImageError:
    """A picture over the limit; `what`: how many pixels it has."""
    return ImageError("too_large", f"The picture has {what}: make it smaller.")


def damaged(name: str) -> ImageError:
    """A file of the format `name` that is cut short or damaged."""
    return ImageError("truncated", f"The {name} is cut short or damaged: fetch or export it again.")
