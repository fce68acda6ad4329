"""What is known of a picture beside its pixels."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Header:
    """What a DICOM file says of its picture, without the quotes and blanks that exports leave; None where it is silent.

    `melanoma.imaging.dicom` says what each field is read from.
    """

    patient_id: str | None = None
    study_uid: str | None = None
    body_site: str | None = None  # in SNOMED's words or DICOM's
    acquired_at: str | None = None  # ISO 8601, in the time zone of the header or else in none
    is_recognizable: bool | None = None  # a person may be known from the picture
    is_annotated: bool | None = None  # there may be text in it


NO_HEADER = Header()
