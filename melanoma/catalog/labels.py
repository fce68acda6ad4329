"""What a table says of an image's diagnosis: in words, in one column a class, or as 0 and 1."""

from collections.abc import Mapping
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
    """What is said of an image: a label, or else a word for another diagnosis, or words that are not known."""

    label: str | None = None
    other: str | None = None
    unknown: str | None = None


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
    flags: tuple[str, ...]  # malignant or benign
    words_of: Map
    is_own: bool = False  # the words stand in our column label, and not in one of a set

    @classmethod
    def of(cls, source: str, table: Rows, words_of: Map) -> "LabelColumns":
        """Those of a table: `label` alone where there is one, else all that are known."""
        mapped = words_of.columns.label
        label = mapped if mapped in table else table_files.find(table, columns.COLUMNS["label"])
        if label is not None:
            return cls(source, (label,), (), (), words_of, is_own=True)
        found = [name for wanted in columns.WORDS if (name := table_files.find(table, [wanted]))]
        flags = [name for wanted in columns.FLAGS if (name := table_files.find(table, [wanted]))]
        numbers = tuple(name for name in flags if _is_of_numbers(table[name]))
        words = (*(name for name in flags if name not in numbers), *found)
        taken = {*words, *numbers}
        others = [name for name in table if name not in taken]
        classes = tuple(name for name in others if _is_class(name, table[name], words_of))
        strange = _strange_classes(table, classes, others) if len(classes) > 1 else ()
        return cls(source, words, (*classes, *strange), numbers, words_of)

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
            meanings.append(self._class(record))
        return _together(meanings)

    def _class(self, record: Record) -> tuple[str, str | None]:
        flags = {name: self._flag(record, name) for name in self.classes}
        hot = [name for name, flag in flags.items() if flag]
        if len(hot) > 1:
            return (", ".join(f"{name} 1" for name in hot), None)
        if hot:
            return (hot[0], self.words_of.meaning_of(hot[0], True))
        if None in flags.values():
            return ("", vocabulary.UNSAID)
        # A column alone tells its class from all others. ISIC 2017's two tell three classes apart.
        known = {self.words_of.meaning_of(name, True) for name in flags}
        none = ", ".join(f"{name} 0" for name in flags)
        if known == {"MEL", "SK"}:
            return (none, "NV")
        if len(known) == 1 and (label := vocabulary.label_in(known.pop())):
            codes = taxonomy.codes_of(label)
            return (none, taxonomy.join(code for code in taxonomy.CODES if code not in codes))
        return (none, vocabulary.UNSAID)

    def _flag(self, record: Record, name: str) -> bool | None:
        if (value := record[name]) is None:
            return None
        if (flag := _number(value)) is None:
            raise InputError(f"The manifest {self.source} has {value!r} in the column {name}: use 1 or 0.")
        return flag


def _number(value: str) -> bool | None:
    return _NUMBERS.get(value.strip().casefold())


def _is_of_numbers(values: list[str | None]) -> bool:
    return all(value is None or _number(value) is not None for value in values)


def _is_class(name: str, values: list[str | None], words_of: Map) -> bool:
    """Whether a column is one of a class: by a code in capitals, or a diagnosis whose column holds 0 and 1 alone."""
    if name in _MORE_CODES or (name.isupper() and vocabulary.label_of(name) is not None):
        return True
    # An empty column says nothing: the ISIC archive's mel_type is one in most tables.
    is_said = any(value is not None for value in values)
    meaning = words_of.meaning_of(name.replace("_", " ")) or words_of.meaning_of(name)
    return is_said and vocabulary.label_in(meaning) is not None and _is_of_numbers(values)


def _strange_classes(table: Rows, classes: tuple[str, ...], others: list[str]) -> tuple[str, ...]:
    """The columns of 0 and 1 beside those of classes that stand for a class which is not known: each is 1 only where
    no class is."""
    is_hot = [any(_number(table[name][row] or "") for name in classes) for row in range(len(table[classes[0]]))]
    found = []
    for name in others:
        values = table[name]
        if name in classes or not all(value is not None and _number(value) is not None for value in values):
            continue
        ones = [hot for value, hot in zip(values, is_hot, strict=True) if _number(value or "")]
        if ones and not any(ones):
            found.append(name)
    return tuple(found)
