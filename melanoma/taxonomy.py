"""The nine diagnoses of the project: ISIC names and codes, aliases in each source set, and which are malignant.

A *label* is a code such as ``"MEL"``, or several codes joined by ``"|"`` where a source set does not tell them apart:
HAM10000's ``akiec`` is ``"AK|SCC"`` and its ``bkl`` is ``"BKL|SK"``. Training and metrics treat such a label as "one
of these".
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Diagnosis:
    """A diagnosis of the taxonomy; `aliases` are words of source sets for it, in lower case."""

    code: str
    name: str
    malignant: bool
    aliases: tuple[str, ...] = ()


# Actinic keratosis is a precursor of squamous cell carcinoma, not yet a cancer; HAM10000's `akiec` joins the two.
DIAGNOSES: tuple[Diagnosis, ...] = (
    Diagnosis("AK", "actinic keratosis", False, ("ak", "solar keratosis")),
    Diagnosis("BCC", "basal cell carcinoma", True, ("bcc",)),
    Diagnosis("DF", "dermatofibroma", False, ("df",)),
    Diagnosis("MEL", "melanoma", True, ("mel", "melanoma in situ", "melanoma invasive", "melanoma metastasis")),
    Diagnosis("NV", "nevus", False, ("nv", "naevus", "melanocytic nevus", "melanocytic nevi", "nevi")),
    Diagnosis("BKL", "pigmented benign keratosis", False, ("pbk", "benign keratosis")),
    Diagnosis("SK", "seborrheic keratosis", False, ("sk", "seborrhoeic keratosis")),
    Diagnosis("SCC", "squamous cell carcinoma", True, ("scc",)),
    Diagnosis("VASC", "vascular lesion", False, ("vasc", "vascular lesions", "vl")),
)

CODES: tuple[str, ...] = tuple(d.code for d in DIAGNOSES)
MALIGNANT: tuple[str, ...] = tuple(d.code for d in DIAGNOSES if d.malignant)
MELANOMA = "MEL"
NAMES: dict[str, str] = {d.code: d.name for d in DIAGNOSES}

# Words that cover several diagnoses. HAM10000: Tschandl et al. 2018, doi:10.1038/sdata.2018.161.
_MERGED: dict[str, str] = {
    "akiec": "AK|SCC",
    "bkl": "BKL|SK",
    "benign keratosis-like lesions": "BKL|SK",
}
_ALIASES: dict[str, str] = {
    **{alias: d.code for d in DIAGNOSES for alias in (d.code.lower(), d.name, *d.aliases)},
    **_MERGED,
}


# The challenges' BKL is HAM10000's: seborrheic keratosis, lichenoid keratosis and solar lentigo.
_CHALLENGE: dict[str, str] = {"BKL": "BKL|SK", "AKIEC": "AK|SCC"}


def challenge_label_of(word: str) -> str | None:
    """Like `label_of`, for the codes of the ISIC 2018 and 2019 challenges, whose BKL covers BKL and SK."""
    return _CHALLENGE.get(word.strip()) or label_of(word)


def label_of(word: str) -> str | None:
    """The label that `word` stands for, or None when the taxonomy does not know it.

    Case, surrounding space, ``_`` and ``-`` are ignored. A label such as ``"AK|SCC"`` stands for itself. ``"BKL"`` in
    capitals is the single diagnosis of this taxonomy, ``"bkl"`` in lower case is HAM10000's word for BKL and SK.
    """
    word = word.strip()
    codes = word.split("|")
    if all(code in CODES for code in codes):
        return join(codes)
    word = word.lower()
    return _ALIASES.get(word) or _ALIASES.get(" ".join(word.replace("_", " ").replace("-", " ").split()))


def join(codes: Iterable[str]) -> str:
    """One label for "one of these codes", in the order of `CODES`."""
    wanted = set(codes)
    return "|".join(code for code in CODES if code in wanted)


def codes_of(label: str) -> tuple[str, ...]:
    """The codes that a label covers: ``"AK|SCC"`` gives ``("AK", "SCC")``.

    Raises ValueError for a label that is not of this taxonomy.
    """
    codes = tuple(label.split("|"))
    if unknown := [code for code in codes if code not in CODES]:
        raise ValueError(f"label {label!r}: {unknown[0]!r} is not one of {', '.join(CODES)}")
    return codes


def name_of(label: str) -> str:
    """``"AK|SCC"`` gives "actinic keratosis or squamous cell carcinoma"."""
    return " or ".join(NAMES[code] for code in codes_of(label))


def merged_classes(labels: Iterable[str], among: Iterable[str] = CODES) -> tuple[str, ...]:
    """The classes of a set with these labels, where codes that one label joins are one class.

    ``{"MEL", "AK|SCC", "BKL|SK"}`` gives AK|SCC, BCC, DF, MEL, NV, BKL|SK, VASC: a partition of `among`, in the order
    of `CODES`, so that the probability of a class is the sum over its codes.
    """
    groups: list[set[str]] = [{code} for code in among]
    for label in set(labels):
        codes = set(codes_of(label))
        touched = [group for group in groups if group & codes]
        groups = [group for group in groups if not group & codes]
        if touched:
            groups.append(set().union(*touched))
    return tuple(sorted((join(group) for group in groups), key=lambda c: CODES.index(c.split("|")[0])))


def identity(image_id: str, uri: str | None) -> str:
    """What tells a photograph from others: an ISIC id wherever it stands, any other id only within its folder.

    Many sets number the files of each class folder anew: benign/1.jpg and malignant/1.jpg are two photographs.
    """
    return image_id if is_global(image_id) else f"{(uri or '').rpartition('/')[0]}/{image_id}"


def is_global(image_id: str) -> bool:
    """Whether an id names the same photograph wherever it stands: ISIC's ids do."""
    return re.fullmatch(r"ISIC_\d+", image_id) is not None


def number_identity(number: str, source: str) -> str:
    """What tells a lesion or patient from others: ISIC's numbers wherever they stand, any other only in its source.

    Two hospitals both have a patient 7. ISIC's are ``HAM_0000118``, ``IL_7972535`` and ``IP_7279968``.
    """
    return number if re.fullmatch(r"(HAM|IL|IP)_\d+", number) else f"{source}/{number}"


def image_id_of(uri: str) -> str:
    """The file name without its ending; ISIC's ``_downsampled`` copies bear the id of their original."""
    stem = uri.rsplit("/", 1)[-1].rsplit(".", 1)[0]
    return re.sub(r"^(ISIC_\d{7})_downsampled.*$", r"\1", stem)
