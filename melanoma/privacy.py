"""Which data of a patient leave the object store: decided here and nowhere else.

With a key in ``MELANOMA_PSEUDONYM_KEY`` patients and studies go by pseudonyms, in Parquet, pages, logs and deliveries:
HMAC-SHA256, so that whoever has the key can find the patient and nobody else can, and the same patient has the same
pseudonym every night. The key is never written anywhere.

A picture from which a person may be known (Recognizable Visual Features, DICOM PS3.3 C.8.12.13) is scored, and its
alert raised, as any other; no page shows it, nor another image of the same photograph in its place. The page of a night
does not show a picture that may have text burned in either, where that is configured: exports set that flag on
everything. From which elements of DICOM all this is read: see `melanoma.imaging.dicom`.
"""

import hashlib
import hmac
import os
from dataclasses import dataclass, field

from melanoma.errors import InputError
from melanoma.imaging.header import Header

KEY = "MELANOMA_PSEUDONYM_KEY"
_LEAST_BYTES = 16
_OTHER_PSEUDONYMS = (
    "Earlier versions took this for a part of the key: patients of nights that were scored so go by other pseudonyms "
    "from now on."
)


@dataclass(frozen=True)
class Privacy:
    """What is done with the data of patients."""

    key: bytes | None = field(default=None, repr=False)  # None leaves identifiers as they are
    hold_back_annotated: bool = False  # whether pictures with text in them are held back, too

    def pseudonym(self, identifier: str | None) -> str | None:
        """32 hexadecimal digits for a patient or study; without a key the identifier itself."""
        if identifier is None or self.key is None:
            return identifier
        return hmac.digest(self.key, identifier.encode(), hashlib.sha256).hex()[:32]

    def fingerprint(self) -> str | None:
        """16 hexadecimal digits that tell keys apart without telling the key; None where there is none."""
        return None if self.key is None else hmac.digest(self.key, b"fingerprint", hashlib.sha256).hex()[:16]

    def columns(self, header: Header) -> dict[str, str | bool | None]:
        """What the scores say of a patient, in the columns `melanoma.scoring.tables.PATIENT_FIELDS`."""
        return {
            "patient_id": self.pseudonym(header.patient_id),
            "study_uid": self.pseudonym(header.study_uid),
            "body_site": header.body_site,
            "acquired_at": header.acquired_at,
            "is_held_back": bool(header.is_recognizable) or (self.hold_back_annotated and bool(header.is_annotated)),
        }


def from_environment(hold_back_annotated: bool) -> Privacy:
    """With the key of ``MELANOMA_PSEUDONYM_KEY``. Raises InputError where it is too short to be one, or where blanks, a
    line end or quotes surround it: with and without them, a patient would go by two names."""
    value = os.environ.get(KEY, "")
    if value != value.strip().strip("\ufeff"):
        # A shell's $(...) drops line feeds alone.
        advice = "\"$(tail -c +4 FILE | tr -d '\\r')\"" if value.startswith("\ufeff") else "\"$(tr -d '\\r' < FILE)\""
        raise InputError(
            f"{KEY} begins or ends in a blank or a line break, as a key does that was read from a file with its line "
            f"end: set it without, such as with {advice}. {_OTHER_PSEUDONYMS}"
        )
    if len(value) > 1 and value[0] == value[-1] and value[0] in "\"'":
        raise InputError(
            f"{KEY} stands in quotes, which docker's --env-file keeps: set it without them. {_OTHER_PSEUDONYMS}"
        )
    key = os.fsencode(value)  # whatever bytes it has
    if key and len(key) < _LEAST_BYTES:
        raise InputError(
            f"{KEY} has {len(key)} bytes: give it at least {_LEAST_BYTES}, such as `openssl rand -hex 24`."
        )
    return Privacy(key or None, hold_back_annotated)
