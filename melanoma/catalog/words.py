"""The words of the sources that gave no label: they are told, or stop the catalog."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from melanoma import table_files
from melanoma.catalog.mapping import Map
from melanoma.errors import InputError

_TOLD = 10  # of folders that may be the names of patients


def check(rows: Sequence[Mapping[str, Any]], unlabelled: bool, say: Callable[[str], None]) -> None:
    """Tell which words for a diagnosis gave no label.

    Args:
        rows: Of sources, with `other`, `unknown` and `passed_over` of `melanoma.catalog.labels.Said`.
        unlabelled: Whether there may be words that are not known.
        say: Is given the sentences.

    Raises:
        InputError: There are words that are not known, and they may not be.
    """
    other, unknown, passed_over = (
        Counter(row[name] for row in rows if row.get(name)) for name in ("other", "unknown", "passed_over")
    )
    if other:
        say(f"{_images(other)} another diagnosis than the nine, and so no label: {listed(other)}.")
    if passed_over:
        some = Counter(dict(passed_over.most_common(_TOLD)))
        more = f" and {len(passed_over) - _TOLD:,} more" if len(passed_over) > _TOLD else ""
        say(
            f"{_images(passed_over)} a coarse label of a folder above one that is not known here: {listed(some)}{more}."
        )
    if not unknown:
        return
    if not unlabelled:
        raise InputError(
            f"{_images(unknown)} a word for the diagnosis that is not known here: {listed(unknown)}. Say what they "
            "mean (--map; --propose map.yaml writes a draft), or leave these images without a label (--unlabelled)."
        )
    say(f"{_images(unknown)} a word that is not known here, and so no label: {listed(unknown)}.")


def check_columns(words_of: Map, columns: Sequence[str]) -> None:
    """Raises InputError where a map names a column that no table has."""
    plain = set(map(table_files.plain, columns))
    for ours, theirs in words_of.columns.model_dump().items():
        if theirs is not None and table_files.plain(theirs) not in plain:
            known = ", ".join(dict.fromkeys(columns)) or "none, as no source is a table"
            raise InputError(
                f"The map says that {ours} is the column {theirs!r}, and no table has it: there are {known}."
            )


def _images(words: Counter[str]) -> str:
    count = words.total()
    return f"{count:,} image{' has' if count == 1 else 's have'}"


def listed(words: Counter[str]) -> str:
    """Words with their counts, the commonest first."""
    return ", ".join(
        f"{word!r} ({count:,})" for word, count in sorted(words.items(), key=lambda item: (-item[1], item[0]))
    )
