"""An audit for people: tables for a terminal, and one self-contained page that shows the images side by side."""

import io
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from melanoma import storage
from melanoma.catalog import audit, properties
from melanoma.imaging import load
from melanoma.imaging.errors import ImageError
from melanoma.pages import page

SETS_SHOWN = 200
"""Of each kind of finding the page shows at most this many sets of images,"""
IMAGES_SHOWN = 6
"""and of each set at most this many images."""
LINES_SHOWN = 5
"""The terminal shows at most this many sets of images of each kind."""

_PICTURE_SIDE = 160  # pixels, the longer side
_JPEG_QUALITY = 75

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


def write(out: str, answer: Mapping[str, Any], on_image: Callable[[int, int], None] = lambda done, total: None) -> None:
    """Write ``audit.json`` and ``audit.html`` of an answer of `melanoma.catalog.audit.examine` below the URI `out`.

    The page needs nothing else, and no script; its pictures are small JPEGs. An image that cannot be read is "no
    picture". `on_image` is told how many pictures of how many are there. Raises OSError where nothing can be written.
    """
    out = storage.normalize(out)
    storage.write_json(storage.join(out, "audit.json"), answer)
    wanted = {image["uri"]: None for finding in _shown(answer) for image in finding["images"][:IMAGES_SHOWN]}
    wanted.pop(None, None)
    pictures: dict[str, str | None] = {}
    with ThreadPoolExecutor(max_workers=16) as pool:
        for done, (uri, picture) in enumerate(zip(wanted, pool.map(_picture, wanted), strict=True), start=1):
            pictures[uri] = picture
            on_image(done, len(wanted))
    storage.write_bytes(storage.join(out, "audit.html"), _html(answer, pictures).encode())


def _shown(answer: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [finding for kind in KINDS if answer[kind] for finding in answer[kind]["findings"][:SETS_SHOWN]]


def _picture(uri: str) -> str | None:
    """A data URI, or None for what cannot be read, or from which a person may be known."""
    try:
        image = load.picture(uri, _PICTURE_SIDE)
    except ImageError:
        return None
    if image is None:
        return None
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=_JPEG_QUALITY)
    return page.data_uri(buffer.getvalue(), "jpeg")


def _html(answer: Mapping[str, Any], pictures: Mapping[str, str | None]) -> str:
    environment = page.environment(Path(__file__).parent)
    environment.filters |= {"match": _match, "percent": "{:.0%}".format}
    return environment.get_template("audit.html.j2").render(
        answer=answer,
        summary=answer["summary"],
        clean=audit.is_clean(answer),
        sentences=sentences(answer),
        kinds=KINDS,
        reasons=REASONS,
        leak_columns=_leak_columns(answer),
        pictures=pictures,
        sets_shown=SETS_SHOWN,
        images_shown=IMAGES_SHOWN,
        limits=audit,
        fewest_groups=properties.FEWEST_GROUPS,
        warning_above=properties.WARNING_ABOVE,
    )


def _match(finding: Mapping[str, Any]) -> str:
    """How the images of a finding are joined, in a line."""
    by = ", ".join(REASONS[reason] for reason in finding["by"])
    by = f"a chain of images ({by})" if finding["chain"] else by
    hows = sorted({f"{match['how']} ({match['similarity']:.2f})" for match in finding["matches"]})
    more = f" and {len(hows) - 3} more" if len(hows) > 3 else ""
    return by + (f": {', '.join(hows[:3])}{more}" if hows and "near-duplicate" in finding["by"] else "")


def _leak_columns(answer: Mapping[str, Any]) -> list[str]:
    """The reasons that any two splits have a leak by."""
    rows = answer["leaks"]["by_splits"]
    return [name for name in ("any", *audit.REASONS, "picture only") if any(row["by"][name] for row in rows)]


# --- in words --------------------------------------------------------------------------------------------------------


def sentences(answer: Mapping[str, Any]) -> list[str]:
    """What was found, most important first, a sentence each."""
    summary = answer["summary"]
    said = []
    for row in answer["leaks"]["by_splits"]:
        first, second = row["splits"]
        by = ", ".join(f"{row['by'][name]:,} {REASONS[name]}" for name in _leak_columns(answer)[1:] if row["by"][name])
        leaked = row["by"]["any"]
        said.append(
            f"{leaked:,} of {_several(row['images'], f'{second} image')} {_have(leaked)} a relative in {first} "
            f"({by or 'by a chain of images'})."
        )
    for row in answer["contradictions"]["by_pair"]:
        a, b = row["labels"]
        said.append(f"{_several(row['sets'], 'photograph')} {_be(row['sets'])} both {a} and {b}.")
    reference = answer["reference"]
    if reference is not None:
        said.append(f"The reference knows {reference['known']:,} of {_several(reference['ids'], 'image id')}.")
        said += [
            f"{_several(row['ids'], 'id')} of label {row['label']}: {row['reference']} by the reference."
            for row in reference["by_pair"]
        ]
    for row in answer["classes"]:
        if row["warning"]:
            others = ", ".join(f"{n:,} are also {other}" for other, n in row["others"].items())
            said.append(
                f"{row['label']}: {row['warning']} (of {_several(row['photographs'], 'photograph')} "
                f"{others + ', ' if others else ''}{row['independent']:,} support it)."
            )
    if small := [row for row in answer["sizes"] if row["too_small"]]:
        least = min(small, key=lambda row: row["groups"])
        names = ", ".join(f"{row['label']}{_in(row['split'])} ({row['groups']:,})" for row in small)
        said.append(
            f"Too few groups for a claim about a class: {names}; {least['label']}{_in(least['split'])} has "
            f"{size_sentence(least)}."
        )
    if summary["near_duplicates_of_different_ids"]:
        said.append(
            f"{_several(summary['near_duplicates_of_different_ids'], 'pair')} of near-duplicates bear different ids."
        )
    if summary["same_bytes_under_different_ids"]:
        said.append(f"{_several(summary['same_bytes_under_different_ids'], 'file content')} bear different ids.")
    if summary["unreadable"]:
        said.append(f"{_several(summary['unreadable'], 'image')} cannot be decoded.")
    if summary["unlabelled"]:
        said.append(f"{_several(summary['unlabelled'], 'image')} {_have(summary['unlabelled'])} no label.")
    if summary["dropped"]:
        said.append(f"{_several(summary['dropped'], 'image')} {_be(summary['dropped'])} dropped by rule.")
    for clinical, kind in ((False, "without the lesion"), (True, "by what is known of the patient")):
        telling = [row for row in answer["properties"] if row["warning"] and row["clinical"] == clinical]
        if telling:
            words = ", ".join(f"{row['name']} {auc_words(row)}" for row in telling)
            said.append(f"Melanoma can be told {kind} (area under the ROC curve): {words}.")
    if summary["repeats"]:
        said.append(f"{_several(summary['repeats'], 'row')} said the same of the same file again, and were left out.")
    return said


def size_sentence(row: Mapping[str, Any]) -> str:
    """What the size of a class allows: "3 groups: a recall of 67% would be 9% to 99%"."""
    if not row["groups"]:
        return "no images: nothing can be said of its recall"
    return (
        f"{_several(row['groups'], 'group')}: a recall of {row['recall']:.0%} would be {row['low']:.0%} to "
        f"{row['high']:.0%}"
    )


def auc_words(row: Mapping[str, Any]) -> str:
    if row["auc"] is None:
        return f"not measured: {row['note']}"
    interval = "" if row["low"] is None else f" ({row['low']:.2f} to {row['high']:.2f})"
    return f"{row['auc']:.2f}{interval}{', ' + row['note'] if row['note'] else ''}"


def _several(n: int, noun: str) -> str:
    return f"{n:,} {noun}{'' if n == 1 else 's'}"


def _have(n: int) -> str:
    return "has" if n == 1 else "have"


def _be(n: int) -> str:
    return "is" if n == 1 else "are"


def _in(split: str | None) -> str:
    return "" if split is None else f" in {split}"


# --- terminal --------------------------------------------------------------------------------------------------------


def show(console: Console, answer: Mapping[str, Any], out: str | None) -> None:
    """Print an audit: what it comes to, what there is to know of classes and properties, the first findings."""
    summary = answer["summary"]
    against = f", {_several(summary['reference_contradictions'], 'id')} against the reference"
    console.print(
        f"{_several(summary['images'], 'image')}: {_several(summary['leaks'], 'leak')}, "
        f"{_several(summary['contradictions'], 'contradictory label')}{against if answer['reference'] else ''}."
    )
    for sentence in sentences(answer):
        console.print(f"- {sentence}")
    for table in _tables(answer):
        console.print(table)
    for kind, title in KINDS.items():
        findings = answer[kind]["findings"] if answer[kind] else []
        if not findings:
            continue
        table = Table("by", "among", "images", title=f"{title} ({len(findings):,})", title_justify="left")
        for finding in findings[:LINES_SHOWN]:
            table.add_row(_match(finding), _among(kind, finding), _names(finding))
        console.print(table)
        if len(findings) > LINES_SHOWN:
            where = f"see {out}/audit.html" if out else "see --out or --json"
            console.print(f"and {len(findings) - LINES_SHOWN:,} more: {where}")
    if out:
        console.print(f"Report: {out}/audit.html")


def _tables(answer: Mapping[str, Any]) -> tuple[Table, Table]:
    columns = ["contradicted_by_reference", "confirmed_by_reference"] if answer["reference"] else []
    titles = (column.replace("_", " ") for column in columns)
    classes = Table("label", "images", "photographs", "also under another", *titles, "support", "")
    for row in answer["classes"]:
        counted = ("images", "photographs", "under_another_label", *columns, "independent")
        classes.add_row(row["label"], *(f"{row[name]:,}" for name in counted), row["warning"])
    measured = Table("property", "images", "melanoma AUC (95%)", "")
    for row in answer["properties"]:
        words = ["clinical"] * row["clinical"] + ["warning"] * row["warning"]
        measured.add_row(row["name"], f"{row['known']:,}", auc_words(row), ", ".join(words))
    return classes, measured


def _among(kind: str, finding: Mapping[str, Any]) -> str:
    if kind == "reference":
        return f"{' / '.join(finding['labels'])}, reference {finding['images'][0]['reference']}"
    return " / ".join(finding["splits"] if kind == "leaks" else finding["labels"])


def _names(finding: Mapping[str, Any]) -> str:
    names = [f"{image['label'] or 'no label'}/{storage.name(image['uri'] or '')}" for image in finding["images"][:3]]
    more = f" and {len(finding['images']) - 3} more" if len(finding["images"]) > 3 else ""
    return ", ".join(names) + more
