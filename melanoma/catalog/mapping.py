"""A hospital's own columns and words: ``map.yaml``, and a draft of it.

``columns`` says what the table calls our columns, ``labels`` which label a word stands for, or null for a word that is
known and has no label here::

    columns: {path: Datei, label: Diagnose}
    labels: {"Melanom, in situ": MEL, "Muttermal": NV, "Warze": null}
"""

import functools
import unicodedata
from collections.abc import Iterable
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from melanoma import table_files
from melanoma.catalog.resolve import Label
from melanoma.config import Model
from melanoma.taxonomy import vocabulary


class Columns(Model):
    """What the table calls each of our columns."""

    path: str | None = None
    image_id: str | None = None
    label: str | None = None
    source: str | None = None
    lesion_id: str | None = None
    patient_id: str | None = None
    split: str | None = None
    age: str | None = None
    sex: str | None = None
    anatomic_site: str | None = None


def _word(value: Any) -> Any:
    if isinstance(value, bool) or value is None:  # YAML reads no, off and null so
        raise ValueError("is no word for YAML: put it in quotes")
    return str(value)


def _or_none_yet(value: Any) -> Any:
    return {} if value is None else value  # a heading with nothing but comments below


_Labels = dict[Annotated[str, BeforeValidator(_word)], Label | None]


class Map(Model):
    columns: Annotated[Columns, BeforeValidator(_or_none_yet)] = Columns()
    labels: Annotated[_Labels, BeforeValidator(_or_none_yet)] = Field(default_factory=dict)

    def column(self, ours: str, names: Iterable[str]) -> str | None:
        """What a table with these columns calls ours by this map; None where the map or the table has none."""
        theirs, names = getattr(self.columns, ours), list(names)
        return theirs if theirs is None or theirs in names else table_files.find(names, [table_files.plain(theirs)])

    def meaning_of(self, word: str, is_challenge: bool = False) -> str | None:
        """As `melanoma.taxonomy.vocabulary.meaning_of`, but the map's own words come first."""
        if (key := _folded(word)) in self._by_folded:
            return self._by_folded[key] or vocabulary.OTHER
        return vocabulary.meaning_of(word, is_challenge)

    @functools.cached_property
    def _by_folded(self) -> dict[str, str | None]:
        return {_folded(word): label for word, label in self.labels.items()}


NO_MAP = Map()


def _folded(word: str) -> str:
    return " ".join(unicodedata.normalize("NFC", word).casefold().split())
