"""The nine diagnoses of the project: ISIC names and codes, and which are malignant.

A *label* is a code such as ``"MEL"``, or several codes joined by ``"|"`` where a source set does not tell them apart:
HAM10000's ``akiec`` is ``"AK|SCC"`` and its ``bkl`` is ``"BKL|SK"``; "benign" is all that are not malignant. Training
and metrics treat such a label as "one of these". Which words of the source sets stand for which label: `vocabulary`.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Diagnosis:
    code: str
    name: str
    malignant: bool


# Actinic keratosis is a precursor of squamous cell carcinoma, not yet a cancer; HAM10000's `akiec` joins the two.
DIAGNOSES: tuple[Diagnosis, ...] = (
    Diagnosis("AK", "actinic keratosis", False),
    Diagnosis("BCC", "basal cell carcinoma", True),
    Diagnosis("DF", "dermatofibroma", False),
    Diagnosis("MEL", "melanoma", True),
    Diagnosis("NV", "nevus", False),
    Diagnosis("BKL", "pigmented benign keratosis", False),
    Diagnosis("SK", "seborrheic keratosis", False),
    Diagnosis("SCC", "squamous cell carcinoma", True),
    Diagnosis("VASC", "vascular lesion", False),
)

CODES: tuple[str, ...] = tuple(d.code for d in DIAGNOSES)
MALIGNANT: tuple[str, ...] = tuple(d.code for d in DIAGNOSES if d.malignant)
MELANOMA = "MEL"
NAMES: dict[str, str] = {d.code: d.name for d in DIAGNOSES}

BENIGN_LABEL = "|".join(d.code for d in DIAGNOSES if not d.malignant)
MALIGNANT_LABEL = "|".join(MALIGNANT)
NOT_MELANOMA_LABEL = "|".join(code for code in CODES if code != MELANOMA)
COARSE: dict[str, str] = {BENIGN_LABEL: "benign", MALIGNANT_LABEL: "malignant", NOT_MELANOMA_LABEL: "not melanoma"}
"""The labels that tell no more than benign from malignant, or melanoma from the rest, and their names."""


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
    """``"AK|SCC"`` gives "actinic keratosis or squamous cell carcinoma", and `COARSE` labels their short names."""
    return COARSE.get(label) or " or ".join(NAMES[code] for code in codes_of(label))


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


def melanoma_of(label: str) -> bool | None:
    """Whether a label is melanoma; None where it leaves that open, as "malignant" (``"BCC|MEL|SCC"``) does."""
    return _one_answer(code == MELANOMA for code in codes_of(label))


def malignant_of(label: str) -> bool | None:
    """Whether a label is malignant; None where it leaves that open, as ``"AK|SCC"`` does."""
    return _one_answer(code in MALIGNANT for code in codes_of(label))


def _one_answer(answers: Iterable[bool]) -> bool | None:
    found = set(answers)
    return found.pop() if len(found) == 1 else None


# The seven of HAM10000: the fewest that a set of several diagnoses is told apart by.
_CLASSES = merged_classes(("AK|SCC", "BKL|SK"))


def is_class(label: str) -> bool:
    """Whether a label says which class an image is of: one diagnosis, or those that HAM10000 joins.

    A coarser one, such as "benign" or "malignant", would make one class of several that are known apart.
    """
    codes = set(codes_of(label))
    return any(codes <= set(codes_of(joined)) for joined in _CLASSES)
