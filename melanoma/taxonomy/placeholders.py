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
    *("not recorded", "not collected", "not assigned", "withheld", "confidential", "ohne angabe", "o a", "n k", "ref"),
    *("keine angabe", "k a", "none", "none given", "null", "nil", "nan", "na", "n a", "nd", "n d", "tbd"),
    *("test", "testpatient", "dummy", "default", "sample", "example", "muster", "patient", "patientid", "name", "id"),
    *("john doe", "jane doe", "doe john", "doe jane", "max mustermann", "mustermann"),
}
_OTHER_SCRIPTS = {"匿名", "匿名患者", "不明", "未知", "аноним", "анонимный", "неизвестно", "неизвестный", "άγνωστο"}
# "ANON PATIENT", "unknown patient id", "Patient, Anonymous".
_BESIDE = {
    *("male", "female"),
    *("patient", "patients", "id", "name", "pid", "subject", "person", "case", "lesion", "study", "the", "of", "no"),
}


def known(text: str | None) -> str | None:
    """The number as it stands, or None where it is a placeholder for one.

    A placeholder is a word for it, also twice (NULL^NULL) or with "patient" or "id" beside it; nothing but punctuation;
    a number below 0; or one character again and again, such as 000000, XXXX or 9999. A single digit but 0 is a number:
    there is a patient 7.
    """
    if text is None or not (stripped := text.strip()):
        return None
    if stripped in _OTHER_SCRIPTS or re.fullmatch(r"-\d+", stripped):
        return None
    if len(parts := [part for part in stripped.split("^") if part.strip()]) > 1:  # of a name in DICOM
        return None if all(known(part) is None for part in parts) else stripped
    plain = unicodedata.normalize("NFKD", stripped)
    if any(character.isalnum() and not character.isascii() for character in plain):
        return stripped  # in another script: 山田 is a name, and so is 山田 A
    apart = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", plain)  # AnonymousPatient
    return None if _is_placeholder(plain) or _is_placeholder(apart) else stripped


def _is_placeholder(text: str) -> bool:
    tokens = re.findall(r"[a-z]+|\d+", text.casefold())
    if not tokens:
        return True  # "-", "?", "..."
    if len(set(tokens)) == 1 and tokens[0].isalpha():
        tokens = tokens[:1]
    if " ".join(tokens) in _WORDS:
        return True
    rest = [token for token in tokens if token not in _BESIDE]
    if len(rest) < len(tokens) and (not rest or " ".join(rest) in _WORDS):
        return True
    joined = "".join(tokens)
    return set(joined) == {"0"} or re.fullmatch(r"x+|z{3,}|9{4,}|1{6,}|8{6,}", joined) is not None
