"""Words of others (names of files, headers of DICOM) made harmless where they are printed: on a terminal and in CSV.

Parquet and JSON hold them as they are.
"""

import re

# Control characters (ESC among them), what turns the direction of writing, line separators, and halves of surrogate
# pairs, which no output can encode.
_UNSAFE = re.compile(
    r"[\x00-\x1f\x7f-\x9f\xad\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ud800-\udfff\U000e0000-\U000e007f]"
)
# What a spreadsheet takes for a formula: https://owasp.org/www-community/attacks/CSV_Injection
_FORMULA = re.compile(r"\s*[=+\-@\uff1d\uff0b\uff0d\uff20]|[\t\r\n]")


def for_terminal(words: str) -> str:
    """`words` with an escape such as ``\\x1b`` in place of each character that is not for people to read."""
    return _UNSAFE.sub(lambda found: ascii(found[0])[1:-1], words)


def for_csv(cell: object) -> object:
    """A cell of CSV: words as `for_terminal`, with an apostrophe before what would be a formula; others as they are."""
    if not isinstance(cell, str):
        return cell
    return f"'{for_terminal(cell)}" if _FORMULA.match(cell) else for_terminal(cell)


def for_json(text: str) -> str:
    """JSON of the same value, in which `for_terminal` would find nothing but the line breaks between values."""
    return _UNSAFE.sub(lambda found: found[0] if found[0] == "\n" else f"\\u{ord(found[0]):04x}", text)
