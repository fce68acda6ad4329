"""An audit in words, for the page and the terminal."""

from collections.abc import Mapping
from typing import Any

from melanoma import taxonomy
from melanoma.catalog.joined import REASONS as JOINING_REASONS

REASONS = {
    "image_id": "same id",
    "sha256": "same bytes",
    "near-duplicate": "near-duplicate",
    "lesion_id": "same lesion",
    "patient_id": "same patient",
    "group_id": "same stored group",
    "reference": "reference",
    "picture only": "near-duplicate of another id",
    "any": "any of these",
}
KINDS = {
    "leaks": "Leaks between splits",
    "contradictions": "One image under labels that exclude one another",
    "reference": "Labels that the reference contradicts",
}


def match(finding: Mapping[str, Any]) -> str:
    """How the images of a finding are joined, in a line."""
    by = ", ".join(REASONS[reason] for reason in finding["by"])
    by = f"a chain of images ({by})" if finding["chain"] else by
    hows = sorted({f"{match['how']} ({match['similarity']:.2f})" for match in finding["matches"]})
    more = f" and {len(hows) - 3} more" if len(hows) > 3 else ""
    return by + (f": {', '.join(hows[:3])}{more}" if hows and "near-duplicate" in finding["by"] else "")


def leak_columns(answer: Mapping[str, Any]) -> list[str]:
    """The reasons that any two splits have a leak by."""
    rows = answer["leaks"]["by_splits"]
    return [name for name in ("any", *JOINING_REASONS, "picture only") if any(row["by"][name] for row in rows)]


def sentences(answer: Mapping[str, Any]) -> list[str]:
    """What was found, most important first, a sentence each."""
    return [*_of_leaks(answer), *_of_labels(answer), *_of_classes(answer), *_of_images(answer), *_of_properties(answer)]


def _of_leaks(answer: Mapping[str, Any]) -> list[str]:
    said = []
    for row in answer["leaks"]["by_splits"]:
        first, second = row["splits"]
        by = ", ".join(f"{row['by'][name]:,} {REASONS[name]}" for name in leak_columns(answer)[1:] if row["by"][name])
        leaked = row["by"]["any"]
        said.append(
            f"{leaked:,} of {several(row['images'], f'{second} image')} {_have(leaked)} a relative in {first} "
            f"({by or 'by a chain of images'})."
        )
    return said


def _of_labels(answer: Mapping[str, Any]) -> list[str]:
    said = []
    for row in answer["contradictions"]["by_pair"]:
        a, b = map(short, row["labels"])
        said.append(f"{several(row['sets'], 'photograph')} {_be(row['sets'])} both {a} and {b}.")
    reference = answer["reference"]
    if reference is not None:
        said.append(f"The reference knows {reference['known']:,} of {several(reference['ids'], 'image id')}.")
        said += [
            f"{several(row['ids'], 'id')} of label {short(row['label'])}: {short(row['reference'])} by the reference."
            for row in reference["by_pair"]
        ]
    return said


def _of_classes(answer: Mapping[str, Any]) -> list[str]:
    said = []
    for row in answer["classes"]:
        if row["warning"]:
            others = ", ".join(f"{n:,} are also {short(other)}" for other, n in row["others"].items())
            said.append(
                f"{short(row['label'])}: {row['warning']} (of {several(row['photographs'], 'photograph')} "
                f"{others + ', ' if others else ''}{row['independent']:,} support it)."
            )
    if small := [row for row in answer["sizes"] if row["too_small"]]:
        least = min(small, key=lambda row: row["groups"])
        names = ", ".join(f"{row['label']}{_in(row['split'])} ({row['groups']:,})" for row in small)
        said.append(
            f"Too few groups for a claim about a class: {names}; {least['label']}{_in(least['split'])} has "
            f"{size_sentence(least)}."
        )
    return said


def _of_images(answer: Mapping[str, Any]) -> list[str]:
    summary, said = answer["summary"], []
    if summary["near_duplicates_of_different_ids"]:
        said.append(
            f"{several(summary['near_duplicates_of_different_ids'], 'pair')} of near-duplicates bear different ids."
        )
    if summary["same_bytes_under_different_ids"]:
        said.append(f"{several(summary['same_bytes_under_different_ids'], 'file content')} bear different ids.")
    if summary["unreadable"]:
        said.append(f"{several(summary['unreadable'], 'image')} cannot be decoded.")
    if summary["unlabelled"]:
        said.append(f"{several(summary['unlabelled'], 'image')} {_have(summary['unlabelled'])} no label.")
    if summary["dropped"]:
        said.append(f"{several(summary['dropped'], 'image')} {_be(summary['dropped'])} dropped by rule.")
    return said


def _of_properties(answer: Mapping[str, Any]) -> list[str]:
    said = []
    for clinical, kind in ((False, "without the lesion"), (True, "by what is known of the patient")):
        telling = [row for row in answer["properties"] if row["warning"] and row["clinical"] == clinical]
        if telling:
            words = ", ".join(f"{row['name']} {auc_words(row)}" for row in telling)
            said.append(f"Melanoma can be told {kind} (area under the ROC curve): {words}.")
    if repeats := answer["summary"]["repeats"]:
        said.append(f"{several(repeats, 'row')} repeated what another row says of the same file, and were left out.")
    return said


def short(label: str) -> str:
    """A label, or the short name of one that leaves nearly everything open, such as "benign"."""
    return taxonomy.COARSE.get(label, label)


def size_sentence(row: Mapping[str, Any]) -> str:
    """What the size of a class allows: "3 groups: a recall of 67% would be 9% to 99%"."""
    if not row["groups"]:
        return "no images: nothing can be said of its recall"
    return (
        f"{several(row['groups'], 'group')}: a recall of {row['recall']:.0%} would be {row['low']:.0%} to "
        f"{row['high']:.0%}"
    )


def auc_words(row: Mapping[str, Any]) -> str:
    if row["auc"] is None:
        return f"not measured: {row['note']}"
    interval = "" if row["low"] is None else f" ({row['low']:.2f} to {row['high']:.2f})"
    return f"{row['auc']:.2f}{interval}{', ' + row['note'] if row['note'] else ''}"


def several(n: int, noun: str) -> str:
    """ "1 image", "2 images"."""
    return f"{n:,} {noun}{'' if n == 1 else 's'}"


def _have(n: int) -> str:
    return "has" if n == 1 else "have"


def _be(n: int) -> str:
    return "is" if n == 1 else "are"


def _in(split: str | None) -> str:
    return "" if split is None else f" in {split}"
