"""What can be wrong with an image: the kinds of rejects, each with its meaning, and the one file that decides them.

| kind | what is wrong | found by |
|---|---|---|
| `empty` | The file has no bytes. | `limits` |
| `truncated` | The file is cut short or damaged, also a JPEG inside a DICOM file. | `decode`, `tiff` |
| `not_an_image` | The magic bytes are of something else. | `kinds` |
| `unsupported` | An image of a kind that is not read; several frames where one is wanted. | `kinds`, all decoders |
| `too_large` | It has more bytes or pixels than the limits. | `limits`, `decode`, `dicom` |
| `dicom` | The DICOM file is damaged, or of a kind that is not read. | `dicom` |
| `blank` | The picture is of one flat colour: nothing is seen on it. | `samples` |
| `crashed` | The process that decodes it dies of it, or runs out of memory. | `isolated` |
| `timeout` | Decoding it does not end. | `isolated` |
| `not_found` | It was listed and is not there any more. | the store, see `of_storage` |
| `access` | The store refused or failed. | the store, see `of_storage` |

Whoever finds something in an image calls a function of this file, which decides the kind and the sentence for people.
Three files see an image before its bytes are here, and choose among these kinds with words of their own:
`scoring.tar_and_zip` (a file in a tar or zip that is refused, cut short or too large), `scoring.plan` and
`scoring.fetch` (an archive that cannot be read, a listed size over the limit), `serving.app` (a body over the limit).

`TRANSIENT` and `UNREAD` below say which kinds a later run tries again; the others wait until the file changes.
"""

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from melanoma.storage import ChangedError, UnavailableError

ErrorKind = Literal[
    "empty", "truncated", "not_an_image", "unsupported", "too_large", "dicom", "blank", "crashed", "timeout",
    "not_found", "access",
]  # fmt: skip

TRANSIENT: tuple[ErrorKind, ...] = ("not_found", "access")
"""Rejects of these kinds say nothing of the image: a later run tries again."""

UNREAD: tuple[ErrorKind, ...] = (
    "unsupported", "dicom", "not_an_image", "truncated", "blank", "crashed", "timeout"
)  # fmt: skip
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


def of_storage(error: OSError | UnavailableError) -> ImageError:
    """What an error of `melanoma.storage` means for an image."""
    if isinstance(error, UnavailableError):
        return UnreachableError("access", str(error))
    if isinstance(error, ChangedError):
        return ImageError("not_found", "The archive has changed since it was listed: the next night looks again.")
    if isinstance(error, (FileNotFoundError, NotADirectoryError)):
        return ImageError("not_found", str(error))
    return ImageError("access", str(error))


@dataclass(frozen=True)
class Reason:
    """Why `count` files cannot be used."""

    error_kind: str
    error: str  # of the first of them, without its name
    count: int


def counted(errors: Iterable[tuple[str, str, str | None]]) -> list[Reason]:
    """The reasons among errors, each its kind, its sentence and the URI of the file, the most frequent first.

    Other sizes and another file are the same reason.
    """
    counts: Counter[tuple[str, str]] = Counter()
    examples: dict[tuple[str, str], str] = {}
    for kind, error, uri in errors:
        words = error.replace(uri, "The file" if error.startswith(uri) else "the file") if uri else error
        key = kind, re.sub(r"\d[\d,.]*", "0", words)
        counts[key] += 1
        examples.setdefault(key, words)
    return [Reason(key[0], examples[key], count) for key, count in counts.most_common()]


def empty() -> ImageError:
    return ImageError("empty", "The file is empty: fetch or export it again.")


def damaged(name: str) -> ImageError:
    """A file of the format `name` that is cut short or damaged."""
    return ImageError("truncated", f"The {name} is cut short or damaged: fetch or export it again.")


def not_an_image(what: str) -> ImageError:
    """Something else; `what` it is, in words, such as "a PDF document"."""
    return ImageError("not_an_image", f"This is not an image but {what}: leave it out or replace it.")


def unsupported(what: str) -> ImageError:
    """An image of a kind that is not read; `what`: the beginning of a sentence that says so."""
    return ImageError("unsupported", f"{what}: save the picture as an 8-bit JPEG or PNG.")


def too_large(what: str) -> ImageError:
    """A file or picture over a limit; `what`: the beginning of a sentence that says how large it is."""
    return ImageError("too_large", f"{what}: make it smaller.")


def blank() -> ImageError:
    return ImageError("blank", "The picture is one flat colour, and nothing is seen on it: fetch or export it again.")


def too_many_frames(frames: int, limit: int) -> ImageError:
    return ImageError("too_large", f"The DICOM file has {frames:,} frames, as a film, more than {limit}.")


def damaged_dicom(what: str) -> ImageError:
    """`what` is damaged: the file, or the picture in it."""
    return ImageError("dicom", f"{what} is damaged: fetch or export it again.")


def decided(kind: ErrorKind, reason: str) -> ImageError:
    """What a function of this file has decided in another process."""
    return ImageError(kind, reason)


def crashed(what: str) -> ImageError:
    """A file that kills the process that decodes it; `what`: the end of a sentence that says how."""
    return ImageError("crashed", f"Decoding this file {what}: export it again, as a plain JPEG or PNG.")


def timed_out(seconds: float) -> ImageError:
    reason = f"Decoding this file took more than {seconds:g} s: export it again, as a plain JPEG or PNG."
    return ImageError("timeout", reason)


def refused_dicom(what: str) -> ImageError:
    """A DICOM file that is not read; `what`: the end of a sentence that says why. It repeats nothing that the header
    says in words: that may be a name."""
    return ImageError("dicom", f"The DICOM file {what}.")
