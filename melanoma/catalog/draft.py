"""A draft of ``map.yaml``: what the columns of some tables may be, and all words for diagnoses with their counts."""

import difflib
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence

from melanoma import storage, table_files, taxonomy
from melanoma.catalog import build, columns, folders, manifest
from melanoma.catalog.images_by_id import ENDINGS
from melanoma.catalog.labels import LabelColumns, flags_of, hot_rows
from melanoma.catalog.mapping import NO_MAP
from melanoma.errors import InputError
from melanoma.table_files import Rows
from melanoma.taxonomy import vocabulary

# What else hospitals call a column, by one of its words.
_HINTS = {
    "age": {"alter", "edad", "eta", "leeftijd", "idade"},
    "sex": {"geschlecht", "sexe", "sexo", "sesso", "geslacht"},
    "patient_id": {"mrn", "patient", "patientin", "patientennummer", "patientennr", "pid"},
    "anatomic_site": {"lokalisation", "lokalisierung", "localisation", "localizacion", "körperstelle"},
}
_SAYS_LABEL = re.compile(r"diag|histo|befund|klasse|class|kategorie|category|dx|patholog")
_CLOSE = 0.75  # of difflib: "PatientID" is patient_id


def write(sources: Iterable[str], out: str) -> None:
    """Write a draft for these sources, which whoever knows their words completes.

    Raises InputError where a source cannot be read, or the draft cannot be written.
    """
    names: dict[str, str] = {}
    unused: dict[str, None] = {}
    words = Counter[str]()
    of_sets: set[str] = set()  # in columns of the field's sets, where BKL is the challenges'
    for source in map(storage.normalize, sources):
        try:
            tables, of_folders = _read(source)
        except OSError as error:
            raise InputError(f"The source {source} cannot be read: {error}") from None
        words += of_folders
        for table in tables:
            found = _columns(table)
            names = {**found, **names}
            of_table, read = _words(source, table, found)
            unused |= dict.fromkeys(name for name in table if name not in {*found.values(), *read})
            words += of_table
            of_sets |= set() if "label" in found else set(of_table)
    try:
        storage.write_bytes(storage.normalize(out), _text(names, list(unused), words, of_sets).encode())
    except OSError as error:
        raise InputError(f"The map cannot be written to {out}: {error}") from None


def _read(source: str) -> tuple[list[Rows], Counter[str]]:
    """The tables of a source, and the words of its folders."""
    if build.is_table(source):
        return [manifest.read(source)], Counter()
    rows, _ = folders.rows(source)
    build.check_is_folder(source, rows)
    tables = [manifest.read(uri) for uri in build.tables_in(source, rows)]
    nearest = (folders.nearest(source, row["uri"]) for row in rows)
    return tables, Counter() if tables else Counter(words[0] for words in nearest if words)


def _columns(table: Rows) -> dict[str, str]:
    """What a table probably calls our columns: by the name, by one close to it, or by what stands in the column."""
    found = {ours: name for ours, name in manifest.columns_of(table).items() if name is not None}
    free = [name for name in table if name not in found.values()]
    for ours, theirs in columns.COLUMNS.items():
        close = [name for name in free if difflib.get_close_matches(table_files.plain(name), theirs, 1, _CLOSE)]
        if ours not in found and close:
            found[ours] = close[0]
            free.remove(close[0])
    if "path" not in found and "image_id" not in found:
        _take(found, "path", table, free, lambda word: word.casefold().endswith(ENDINGS))
    for ours, hints in _HINTS.items():
        hinted = [name for name in free if hints & set(re.split(r"[\W_]+", table_files.plain(name)))]
        if ours not in found and hinted:
            found[ours] = hinted[0]
            free.remove(hinted[0])
    if "label" not in found and not LabelColumns.of("", table, NO_MAP):
        is_named = [name for name in free if _SAYS_LABEL.search(table_files.plain(name)) and _is_in_words(table[name])]
        _take(found, "label", table, free, lambda word: vocabulary.label_of(word) is not None)
        if "label" not in found and is_named:
            found["label"] = min(is_named, key=len)
    return found


def _words(source: str, table: Rows, found: dict[str, str]) -> tuple[Counter[str], list[str]]:
    """The words for diagnoses in a table with their counts, and the columns that say them."""
    if "label" in found:
        return Counter(word for word in table[found["label"]] if word), [found["label"]]
    labels = LabelColumns.of(source, table, NO_MAP)
    one_hot = [*labels.classes, *labels.beside]
    if not labels:  # one column a class, of which none is known
        one_hot = [name for name in flags_of(table) if name not in found.values()]
    words = Counter(word for name in labels.words for word in table[name] if word)
    words += Counter({name: len(hot_rows(table[name])) for name in one_hot})
    return words, [*labels.words, *labels.flags, *one_hot]


def _is_in_words(values: Iterable[str | None]) -> bool:
    """Unlike a date, or a column of 0 and 1."""
    return any(letter.isalpha() for value in values for letter in value or "")


def _take(found: dict[str, str], ours: str, table: Rows, free: Sequence[str], fits: Callable[[str], bool]) -> None:
    """Take for one of our columns the one of which most values fit."""
    counts = {name: sum(1 for word in table[name] if word and fits(word)) for name in free}
    if counts and (most := max(counts, key=lambda name: counts[name])) and counts[most]:
        found[ours] = most


def _text(names: dict[str, str], unused: Sequence[str], words: Counter[str], of_sets: set[str]) -> str:
    lines = ["# A draft: look at every line. What has a # before it does not count.", "columns:"]
    lines += [f"  {ours}: {_quoted(names[ours])}" for ours in columns.COLUMNS if ours in names]
    lines += [f"  # {ours}:" for ours in columns.COLUMNS if ours not in names]
    if unused:
        lines.append(f"  # Columns of the tables that are not used: {', '.join(map(_quoted, unused))}")
    lines += [
        f"# {', '.join(taxonomy.CODES)}, several joined by |, {', '.join(taxonomy.COARSE.values())}; null: no label.",
        "labels:",
    ]
    unknown = []
    for word, count in sorted(words.items(), key=lambda item: (-item[1], item[0])):
        meaning, images = vocabulary.meaning_of(word, word in of_sets), f"{count:,} image{'' if count == 1 else 's'}"
        if meaning is None:
            unknown.append(f"  # {_quoted(word)}:  # {images}")
        elif meaning == vocabulary.UNSAID:
            # null would be another diagnosis, and take the label that a further column gives.
            lines.append(f"  # {_quoted(word)}:  # {images}, {meaning}")
        elif meaning == vocabulary.OTHER:
            lines.append(f"  {_quoted(word)}: null  # {images}, {meaning}")
        else:
            lines.append(f"  {_quoted(word)}: {taxonomy.COARSE.get(meaning, meaning)}  # {images}")
    if unknown:
        lines += ["  # Not known here: take the # away and say what they mean.", *unknown]
    return "\n".join(lines) + "\n"


def _quoted(word: str) -> str:
    return json.dumps(word, ensure_ascii=False)
