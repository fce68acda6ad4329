"""What is known of a picture beside its pixels."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Header:
    """What a DICOM file says of its picture, without the quotes and blanks that exports leave; None where it does not.

    `acquired_at`: ISO 8601, in the time zone of the header or else in none. `body_site`: SNOMED's words or DICOM's.
    `is_recognizable`: a person may be known from the picture. `is_annotated`: there may be text in it.
    """

    patient_id: str | None = None
    study_uid: str | None = None
    body_site: str | None = None
    acquired_at: str | None = None
    is_recognizable: bool | None = None
    is_annotated: bool | None = None


NO_HEADER = Header()
