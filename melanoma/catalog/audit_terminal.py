"""An audit on a terminal."""

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

from melanoma import storage
from melanoma.catalog import audit_words
from melanoma.catalog.audit_words import several, short

LINES_SHOWN = 5
"""The terminal shows at most this many sets of images of each kind of finding."""


def show(console: Console, answer: Mapping[str, Any], out: str | None) -> None:
    """Print an audit: what it comes to, what there is to know of classes and properties, the first findings."""
    summary = answer["summary"]
    against = f", {several(summary['reference_contradictions'], 'id')} against the reference"
    console.print(
        f"{several(summary['images'], 'image')}: {several(summary['leaks'], 'leak')}, "
        f"{several(summary['contradictions'], 'contradictory label')}{against if answer['reference'] else ''}."
    )
    for sentence in audit_words.sentences(answer):
        console.print(f"- {sentence}")
    for table in _tables(answer):
        console.print(table)
    for kind, title in audit_words.KINDS.items():
        findings = answer[kind]["findings"] if answer[kind] else []
        if not findings:
            continue
        table = Table("by", "among", "images", title=f"{title} ({len(findings):,})", title_justify="left")
        for finding in findings[:LINES_SHOWN]:
            table.add_row(audit_words.match(finding), _among(kind, finding), _names(finding))
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
        classes.add_row(short(row["label"]), *(f"{row[name]:,}" for name in counted), row["warning"])
    measured = Table("property", "images", "melanoma AUC (95%)", "")
    for row in answer["properties"]:
        words = ["clinical"] * row["clinical"] + ["warning"] * row["warning"]
        measured.add_row(row["name"], f"{row['known']:,}", audit_words.auc_words(row), ", ".join(words))
    return classes, measured


def _among(kind: str, finding: Mapping[str, Any]) -> str:
    if kind == "reference":
        return f"{' / '.join(map(short, finding['labels']))}, reference {finding['images'][0]['reference']}"
    return " / ".join(finding["splits"] if kind == "leaks" else map(short, finding["labels"]))


def _names(finding: Mapping[str, Any]) -> str:
    names = [f"{image['label'] or 'no label'}/{storage.name(image['uri'] or '')}" for image in finding["images"][:3]]
    more = f" and {len(finding['images']) - 3} more" if len(finding["images"]) > 3 else ""
    return ", ".join(names) + more
