"""Words for diagnoses: what they mean in the taxonomy, and which of them it has no class for.

A word is known by `vocabulary.yaml`. Case, order, punctuation, accents, plurals and British spelling do not matter:
"Nevus, Blue" and "blue naevi" are one. Of several words between "/" it may be any; of words between ":", as the ISIC
archive writes its hierarchy, each is known and narrows those before it. No other word is guessed, such as "no melanoma
seen", "melanoma: excluded" or "melanoma?".
"""

import functools
import re
import unicodedata
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import yaml

from melanoma import taxonomy

OTHER = "another diagnosis"
"""A word for something that none of the nine diagnoses is."""
UNSAID = "not said"
"""A word that leaves open what it is."""

_COARSE = {name: label for label, name in taxonomy.COARSE.items()}
# The challenges' BKL is HAM10000's: seborrheic keratosis, lichenoid keratosis and solar lentigo.
_CHALLENGE = {"BKL": "BKL|SK", "AKIEC": "AK|SCC"}

# How the ISIC archive and others know a diagnosis, and what may stand behind it: "Nevus [histopathology] CC-BY-NC".
_REMARK = re.compile(
    r"\s*\[\s*(histo\w*|patholog\w*|biops\w*|serial imaging showing no change|single contributor clinical assessment"
    r"|single image expert consensus|confocal microscopy with consensus dermoscopy)?\s*\]\s*(CC[\w\s.-]*)?$",
    re.IGNORECASE,
)
_NEGATIONS = {"no", "not", "non"}
_FILLERS = {"a", "and", "by", "nos", "of", "or", "the", "type"}
_SPELLINGS = (("naev", "nev"), ("haem", "hem"), ("rrhoe", "rrhe"), ("phoe", "phe"), ("tumour", "tumor"), ("oed", "ed"))
_PLURALS = {
    "nevi": "nevus",
    "lentigines": "lentigo",
    "metastases": "metastasis",
    "telangiectases": "telangiectasia",
    "carcinomata": "carcinoma",
    "melanomata": "melanoma",
    "verrucae": "verruca",
}

_Key = frozenset[str]


class _Entry(NamedTuple):
    words: frozenset[_Key]
    kinds: _Key


class _Vocabulary(NamedTuple):
    labels: dict[str, _Entry]
    unsaid: frozenset[_Key]
    other: frozenset[_Key]


@functools.lru_cache(100_000)  # a table says the same few words again and again
def meaning_of(word: str, is_challenge: bool = False) -> str | None:
    """The label that a word stands for, `OTHER`, `UNSAID`, or None where the word is not known.

    A label such as ``"AK|SCC"`` stands for itself. ``"BKL"`` in capitals is the single diagnosis of this taxonomy, and
    with `is_challenge` that of the ISIC challenges, which covers BKL and SK; ``"bkl"`` is HAM10000's word for both.
    """
    word = _REMARK.sub("", word).strip()
    if is_challenge and word in _CHALLENGE:
        return _CHALLENGE[word]
    codes = word.split("|")
    if all(code in taxonomy.CODES for code in codes):
        return taxonomy.join(codes)
    if len(parts := re.split(r":+", word)) > 1:
        return _narrowed(parts)
    if (known := _known(word)) is not None:
        return known
    if len(parts := re.split(r"[/|]", word)) > 1:
        return _any_of([meaning_of(part, is_challenge) for part in parts])
    return None


def label_of(word: str) -> str | None:
    """The label that a word stands for; None where it has none. See `meaning_of`."""
    return label_in(meaning_of(word))


def label_in(meaning: str | None) -> str | None:
    """A meaning that is a label; None for the others."""
    return None if meaning in (OTHER, UNSAID) else meaning


def combined(meanings: Iterable[str | None]) -> str | None:
    """What several words for one image mean together: the codes that all of them leave open.

    Another diagnosis wins, as no code is left. A word that is not known leaves the others standing only where they tell
    more than benign from malignant. None: they are not known, or contradict one another.
    """
    said = [meaning for meaning in meanings if meaning != UNSAID]
    if not said or OTHER in said:
        return OTHER if said else UNSAID
    known = [meaning for meaning in said if meaning is not None]
    if not known:
        return None
    label = taxonomy.join(set.intersection(*(set(taxonomy.codes_of(meaning)) for meaning in known)))
    if not label or (None in said and label in taxonomy.COARSE):
        return None
    return label


def _narrowed(parts: list[str]) -> str | None:
    """What words of a hierarchy mean together. "Melanoma: excluded" and "melanoma: none" are no melanoma."""
    meanings = [meaning_of(part, True) for part in parts]
    # Of the words that leave it open, the archive has but one as a group.
    said = [each for part, each in zip(parts, meanings, strict=True) if part.strip().casefold() != "indeterminate"]
    return None if None in said or UNSAID in said else combined(meanings)


def _any_of(meanings: list[str | None]) -> str | None:
    labels = {label for meaning in meanings if (label := label_in(meaning)) is not None}
    if len(labels) < len(set(meanings)):  # another diagnosis, or an unknown word, may be the right one
        return meanings[0] if len(set(meanings)) == 1 else None
    codes = {code for label in labels for code in taxonomy.codes_of(label)}
    return taxonomy.join(codes) if len(codes) < len(taxonomy.CODES) else None  # "melanoma / no melanoma"


def _known(word: str) -> str | None:
    key, vocabulary = _key(word), _vocabulary()
    if not key:
        return UNSAID if not word else None
    for label, entry in vocabulary.labels.items():
        if key in entry.words:
            return label
    if key in vocabulary.unsaid:
        return UNSAID
    if key in vocabulary.other:
        return OTHER
    fitting = {
        label
        for label, entry in vocabulary.labels.items()
        if any(base <= key and key - base <= entry.kinds for base in entry.words)
    }
    return fitting.pop() if len(fitting) == 1 else None


def _key(word: str) -> _Key:
    """What two spellings of one word have in common."""
    plain = "".join(each for each in unicodedata.normalize("NFKD", word) if not unicodedata.combining(each))  # café
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", plain)  # BasalCellCarcinoma
    text = spaced.casefold().replace("'", "").replace("\u2019", "")  # Bowen's
    # What is no separator stays: "melanoma?" is none, and neither is "melanoma (-)".
    tokens = re.findall(r"[^\W_]+|[^\w\s\-\u2010-\u2014,.;():/\"&+]|(?<![^\s(])[\-\u2010-\u2014](?=\s*\)?\s*$)", text)
    words = [singular for token in tokens if (singular := _plain(token)) not in _FILLERS]
    # A negation holds for what follows it: "melanoma / no melanoma" is not "no melanoma".
    return frozenset([" ".join(words)] if _NEGATIONS & set(words) else words)


def _plain(token: str) -> str:
    for british, american in _SPELLINGS:
        token = token.replace(british, american)
    if token in _PLURALS:
        return _PLURALS[token]
    if token.endswith("oses"):
        return token[:-2] + "is"
    if len(token) > 3 and token.endswith("s") and not token.endswith(("ss", "us", "is")):
        return token[:-1]
    return token


@functools.cache
def _vocabulary() -> _Vocabulary:
    tree = yaml.safe_load(Path(__file__).with_name("vocabulary.yaml").read_text(encoding="utf-8"))
    labels = {}
    for name, entry in tree["labels"].items():
        words = frozenset(map(_key, entry["words"]))
        if name in taxonomy.NAMES:
            words |= {_key(taxonomy.NAMES[name])}
        # "basal cell carcinoma (bcc)": what is a word of its own may stand beside another.
        alone = {token for word in words if len(word) == 1 for token in word}
        kinds = {_plain(kind.casefold()) for kind in entry.get("kinds", "").split()}
        labels[_COARSE.get(name, name)] = _Entry(words, frozenset(alone | kinds))
    return _Vocabulary(labels, frozenset(map(_key, tree["unsaid"])), frozenset(map(_key, tree["other"])))
