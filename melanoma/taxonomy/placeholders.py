"""What stands where the number of a patient, a lesion or a study is not known: "ANONYMOUS", "n/a", "0".

Taken for a number, one of these would make one patient of all.
"""

import re
import unicodedata

# In English, German, French, Spanish, Italian, Portuguese and Dutch, without accents and case.
_WORDS = {
    *("anon", "anonym", "anonymous", "anonymised", "anonymized", "anonymisation", "anonymization", "anonymity"),
    *("anonyme", "anonymise", "anonymisiert", "anonimo", "anonima", "anonimizado", "anonimizzato", "anoniem"),
    *("pseudonym", "pseudonymised", "pseudonymized", "deidentified", "de identified", "deid", "removed", "redacted"),
    *("deleted", "masked", "hidden", "blank", "empty", "leer", "vide", "unknown", "unk", "not known", "unbekannt"),
    *("inconnu", "inconnue", "desconocido", "desconocida", "desconhecido", "sconosciuto", "onbekend"),
    *("unassigned", "unspecified", "undefined", "unnamed", "noname", "no name", "no id", "noid", "missing", "fehlt"),
    *("not available", "not applicable", "not given", "not specified", "not provided", "nicht bekannt"),
    *("keine angabe", "k a", "none", "none given", "null", "nil", "nan", "na", "n a", "nd", "n d", "tbd"),
    *("test", "testpatient", "dummy", "default", "sample", "example", "muster", "patient", "patientid", "name", "id"),
    *("withheld", "confidential", "undisclosed", "unavailable", "unidentified", "unregistered", "no data"),
    "no information",
    *("ohne angabe", "o a", "n k", "anonymos", "non renseigne", "non connu", "sin datos", "non noto", "niet bekend"),
    *("john doe", "jane doe", "doe john", "doe jane", "max mustermann", "mustermann"),
}
# "ANON PATIENT", "unknown patient id", "Patient, Anonymous", "Anonymous Male".
_BESIDE = {
    *("patient", "patients", "id", "name", "pid", "subject", "person", "case", "lesion", "study", "the", "of", "no"),
    *("male", "female"),
}
# In scripts that are not Latin, compared whole.
_OTHER_SCRIPTS = {
    *(
        "匿名",
        "匿名患者",
        "不明",
        "未知",
        "未詳",
        "不詳",
        "不详",
        "未記載",
        "未登録",
        "無名",
        "无名",
        "なし",
        "無し",
        "無",
        "无",
    ),
    *("익명", "미상", "неизвестно", "неизвестный", "неизвестен", "неизвестна", "аноним", "анонимно", "анонимный"),
    *("невідомо", "невідомий", "анонім", "нет данных", "άγνωστο", "άγνωστος", "ανώνυμος", "مجهول", "غير معروف"),
}
# What a program of a table writes for a formula that fails: "#REF!", "#BEZUG!", "#NAME?", "#N/A", "#NV".
_FAILED_FORMULA = re.compile(r"#(n/?[av]|[\w/]+[!?])")
# What "AnonymousPatient" and NOPATIENTID are made of.
_PIECES = re.compile(
    "|".join(
        sorted({each for each in _WORDS | _BESIDE if len(each) > 3 and each.isalpha()} | {"no", "id"}, key=len)[::-1]
    )
)
# No number of anybody is below 0. 999 without a sign is a number: a hospital may well have that patient.
_BELOW_0 = re.compile(r"[-\u2212]\d+(\.0*)?")


def known(text: str | None) -> str | None:
    """The number as it stands, or None where it is a placeholder for one.

    A placeholder is a word for it, also twice (NULL^NULL), with "patient" or "id" beside it, or "not" and a word;
    nothing but punctuation; a formula that failed; a number below 0; one character again and again, such as
    000000, XXXX or 9999. A single digit but 0 is a number, and so is 999: there is a patient 7.
    """
    if text is None or not (stripped := text.strip()):
        return None
    if any(character.isalnum() and not character.isascii() for character in unicodedata.normalize("NFKD", stripped)):
        return None if _plain(stripped) in map(_plain, _OTHER_SCRIPTS) else stripped  # 山田 is a name, and so is 山田 A
    if _FAILED_FORMULA.fullmatch(_plain(stripped)) or _BELOW_0.fullmatch(stripped):
        return None
    tokens = re.findall(r"[a-z]+|\d+", _plain(stripped))
    if not tokens:
        return None  # "-", "?", "..."
    if _is_placeholder(tokens) or _is_placeholder(_parted("".join(tokens))):
        return None
    joined = "".join(tokens)
    if set(joined) == {"0"} or re.fullmatch(r"x+|z{3,}|9{4,}|1{6,}|8{6,}", joined):
        return None
    return stripped


def _plain(text: str) -> str:
    """Without case and accents."""
    return "".join(each for each in unicodedata.normalize("NFKD", text).casefold() if not unicodedata.combining(each))


def _parted(letters: str) -> list[str]:
    """The words that were written as one; none where they are no words of ours."""
    pieces = _PIECES.findall(letters)
    return pieces if "".join(pieces) == letters and set(pieces) - {"no", "id"} else []


def _is_placeholder(tokens: list[str]) -> bool:
    if len(tokens) > 1 and len(set(tokens)) == 1 and tokens[0].isalpha():
        tokens = tokens[:1]
    if " ".join(tokens) in _WORDS or (len(tokens) == 2 and tokens[0] in ("not", "nicht") and tokens[1].isalpha()):
        return True
    rest = [token for token in tokens if token not in _BESIDE]
    return len(rest) < len(tokens) and (not rest or " ".join(rest) in _WORDS)
