"""What leaves the object store of a patient: decided here and nowhere else.

With a key in ``MELANOMA_PSEUDONYM_KEY`` patients and studies go by pseudonyms, in Parquet, pages, logs and deliveries:
HMAC-SHA256, so that who has the key can find the patient, who has not cannot, and the same patient is the same
pseudonym every night. The key is never written anywhere.

A picture from which a person may be known (Recognizable Visual Features, DICOM PS3.3 C.8.12.13) is scored, and its
alert raised, as any other; no page shows it, nor another image of the same photograph in its place. The page of a night
does so too for one that may have text burned in, where that is configured: exports set that flag on everything.
"""

import hashlib
import hmac
import os
from dataclasses import dataclass, field

from melanoma.errors import InputError
from melanoma.imaging.header import Header

KEY = "MELANOMA_PSEUDONYM_KEY"
_LEAST_BYTES = 16


@dataclass(frozen=True)
class Privacy:
    """`key`: None leaves identifiers as they are. `hold_back_annotated`: pictures with text in them are held back."""

    key: bytes | None = field(default=None, repr=False)
    hold_back_annotated: bool = False

    def pseudonym(self, identifier: str | None) -> str | None:
        if identifier is None or self.key is None:
            return identifier
        return hmac.digest(self.key, identifier.encode(), hashlib.sha256).hex()[:32]

    def fingerprint(self) -> str | None:
        """Tells keys apart without telling the key."""
        return None if self.key is None else hmac.digest(self.key, b"fingerprint", hashlib.sha256).hex()[:16]

    def columns(self, header: Header) -> dict[str, str | bool | None]:
        """What the scores say of a patient, in the columns `triage.PATIENT_FIELDS`."""
        return {
            "patient_id": self.pseudonym(header.patient_id),
            "study_uid": self.pseudonym(header.study_uid),
            "body_site": header.body_site,
            "acquired_at": header.acquired_at,
            "is_held_back": bool(header.is_recognizable) or (self.hold_back_annotated and bool(header.is_annotated)),
        }


def from_environment(hold_back_annotated: bool) -> Privacy:
    """Raises InputError where the key is too short to be one."""
    key = os.environ.get(KEY, "").encode()
    if key and len(key) < _LEAST_BYTES:
        raise InputError(
            f"{KEY} has {len(key)} bytes: give it at least {_LEAST_BYTES}, such as `openssl rand -hex 24`."
        )
    return Privacy(key or None, hold_back_annotated)
