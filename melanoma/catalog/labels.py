"""What a table says of an image's diagnosis: in words, in one column a class, or as 0 and 1."""

import itertools
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from melanoma import table_files, taxonomy
from melanoma.catalog import columns
from melanoma.catalog.mapping import Map
from melanoma.errors import InputError
from melanoma.table_files import Rows
from melanoma.taxonomy import vocabulary

Record = Mapping[str, str | None]

_NUMBERS = {"1": True, "1.0": True, "true": True, "0": False, "0.0": False, "false": False}
# Codes of the challenges that are no label.
_MORE_CODES = ("UNK", "BEN_OTH", "INF", "MAL_OTH")


class Said(NamedTuple):
    """What is said of an image: a label, or else a word for another diagnosis, or words that are not known.

    `passed_over` is a word that is not known, and might tell more than the label does.
    """

    label: str | None = None
    other: str | None = None
    unknown: str | None = None
    passed_over: str | None = None


def read_words(words: list[tuple[str, bool]], words_of: Map) -> Said:
    """What words together say, each with whether its ``BKL`` is the challenges'."""
    meanings = [(word, words_of.meaning_of(word, is_challenge)) for word, is_challenge in words]
    return _together(meanings)


def _together(meanings: list[tuple[str, str | None]]) -> Said:
    meaning = vocabulary.combined(each for _, each in meanings)
    if meaning == vocabulary.OTHER:
        return Said(other=[word for word, each in meanings if each == vocabulary.OTHER][-1])
    if meaning is None:
        unknown = [word for word, each in meanings if each is None]
        return Said(unknown=", ".join(dict.fromkeys(unknown or [word for word, _ in meanings])))
    return Said(label=vocabulary.label_in(meaning))


@dataclass(frozen=True)
class LabelColumns:
    """The columns of a table that say what an image is."""

    source: str  # the table's address, for messages
    words: tuple[str, ...]
    classes: tuple[str, ...]  # one a class, of 0 and 1
    beside: tuple[str, ...]  # of 0 and 1, beside those of the classes: each may be one more
    flags: tuple[str, ...]  # malignant or benign
    words_of: Map
    is_own: bool = False  # the words stand in our column label, and not in one of a set

    @classmethod
    def of(cls, source: str, table: Rows, words_of: Map) -> "LabelColumns":
        """Those of a table: `label` alone where there is one, else all that are known."""
        label = words_of.column("label", table) or table_files.find(table, columns.COLUMNS["label"])
        if label is not None:
            return cls(source, (label,), (), (), (), words_of, is_own=True)
        found = [name for wanted in columns.WORDS if (name := table_files.find(table, [wanted]))]
        flags = [name for wanted in columns.FLAGS if (name := table_files.find(table, [wanted]))]
        numbers = tuple(name for name in flags if _is_of_numbers(table[name]))
        words = (*(name for name in flags if name not in numbers), *found)
        taken = {*words, *numbers}
        classes = tuple(name for name in table if name not in taken and _is_class(name, table[name], words_of))
        beside = _beside(table, classes, taken, words_of) if classes else ()
        return cls(source, words, classes, beside, numbers, words_of)

    def __bool__(self) -> bool:
        return bool(self.words or self.classes or self.flags)

    def read(self, record: Record) -> Said:
        """What a row of the table says. Raises InputError for a class that is neither 0 nor 1."""
        meanings = [
            (word, self.words_of.meaning_of(word, not self.is_own))
            for name in self.words
            if (word := (record[name] or "").strip())
        ]
        for name in self.flags:
            if (flag := self._flag(record, name)) is not None:
                label = taxonomy.MALIGNANT_LABEL if flag else taxonomy.BENIGN_LABEL
                meanings.append((f"{name} {int(flag)}", label))
        if self.classes:
            meanings += self._class(record)
        return _together(meanings)

    def _class(self, record: Record) -> list[tuple[str, str | None]]:
        flags = {name: self._flag(record, name) for name in self.classes}
        hot = [name for name, flag in flags.items() if flag]
        if len(hot) > 1:
            return [(", ".join(f"{name} 1" for name in hot), None)]
        if hot or (hot := [name for name in self.beside if self._flag(record, name)]):
            return [(name, self.words_of.meaning_of(name, True)) for name in hot]
        if None in flags.values():
            return [("", vocabulary.UNSAID)]
        return [(", ".join(f"{name} 0" for name in flags), _rest(self.classes, self.words_of))]

    def _flag(self, record: Record, name: str) -> bool | None:
        if (value := record[name]) is None:
            return None
        if (flag := _number(value)) is None:
            raise InputError(f"The manifest {self.source} has {value!r} in the column {name}: use 1 or 0.")
        return flag


def _rest(classes: Sequence[str], words_of: Map) -> str:
    """What an image is that is of none of these classes."""
    # A column alone tells its class from all others. ISIC 2017's two tell three classes apart.
    known = {words_of.meaning_of(name, True) for name in classes}
    if known == {"MEL", "SK"}:
        return "NV"
    if len(known) == 1 and (label := vocabulary.label_in(known.pop())):
        codes = taxonomy.codes_of(label)
        return taxonomy.join(code for code in taxonomy.CODES if code not in codes)
    return vocabulary.UNSAID


def _number(value: str) -> bool | None:
    return _NUMBERS.get(value.strip().casefold())


def _is_of_numbers(values: list[str | None]) -> bool:
    return all(value is None or _number(value) is not None for value in values)


def flags_of(table: Rows) -> list[str]:
    """The columns of 0 and 1 alone, such as that of a class."""
    # An empty column says nothing: the ISIC archive's mel_type is one in most tables.
    return [name for name, values in table.items() if any(values) and _is_of_numbers(values)]


def _is_class(name: str, values: list[str | None], words_of: Map) -> bool:
    """Whether a column is one of a class: by a code in capitals, or a diagnosis whose column holds 0 and 1 alone."""
    is_known = vocabulary.label_in(words_of.meaning_of(name, True)) is not None
    if name in _MORE_CODES or (name.isupper() and is_known):
        return True
    return is_known and any(values) and _is_of_numbers(values)


def _beside(table: Rows, classes: Sequence[str], taken: Collection[str], words_of: Map) -> tuple[str, ...]:
    """The columns of 0 and 1 that may be further classes, though their names are not known."""
    found = [name for name in flags_of(table) if name not in {*classes, *taken} and not _is_ours(name, words_of)]
    if _rest(classes, words_of) != vocabulary.UNSAID:
        # "smoker" beside "melanoma" is no class: it is 1 for melanomas, too.
        hot = {row for name in classes for row in hot_rows(table[name])}
        found = [name for name in found if hot.isdisjoint(hot_rows(table[name]))]
    return tuple(found)


def hot_rows(values: list[str | None]) -> list[int]:
    """The rows in which a column of 0 and 1 is 1."""
    return [row for row, value in enumerate(values) if value is not None and _number(value)]


def _is_ours(name: str, words_of: Map) -> bool:
    """Whether a column says something else of an image, such as its patient."""
    theirs = [*words_of.columns.model_dump().values(), *itertools.chain(*columns.COLUMNS.values())]
    return table_files.plain(name) in {table_files.plain(each) for each in theirs if each}
