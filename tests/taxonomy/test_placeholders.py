import pytest

from melanoma.taxonomy.placeholders import known


@pytest.mark.parametrize(
    "text",
    [
        *("-1", "-999", "UNKNOWN^UNKNOWN", "NoName^NoName", "none^none", "AnonymousPatient", "NoPatientID"),
        *("not recorded", "withheld", "Anonymous Male", "ohne Angabe", "o.A.", "N/K", "#REF!", "匿名", "неизвестно"),
        *("ANONYMOUS", "Anonymized", "anonymisiert", "Anonymisé", "ANON", "Unknown", "unbekannt", "inconnu", "n.a."),
        *("0", "000000", "0.0", "-", "?", "...", " ", "", "XXX", "x", "9999", "111111", "NONE", "null", "NaN", "TEST"),
        *("DUMMY", "N/A", "ANONYMOUS^PATIENT", "Unknown Patient", "patient id", "k.A.", "De-identified", "<unknown>"),
        *("-1", "-9", "-99", "-999", "-1.0", "\u22121", "UNKNOWN^UNKNOWN", "NoName^NoName", "none^none"),
        *("AnonymousPatient", "AnonymousID", "UnknownPatient", "NoPatientID", "NOPATIENTID", "anonymouspatient"),
        *("not recorded", "Not collected", "not assigned", "NOT_ENTERED", "nicht erfasst", "withheld", "confidential"),
        *("Anonymous Male", "unknown, female", "ohne Angabe", "o.A.", "N/K", "#REF!", "PatientUnknown"),
        *("#BEZUG!", "#NAME?", "#N/A", "#NV"),
        *("匿名", "不明", "неизвестно", "НЕИЗВЕСТНЫЙ", "익명", "Ανώνυμος", "無"),
        *("NULL^NULL", "Unknown, unknown", "\uff10\uff10"),
    ],
)  # fmt: skip
def test_placeholders_are_no_number(text: str) -> None:
    assert known(text) is None


@pytest.mark.parametrize(
    "text",
    [
        *(
            "7",
            "11",
            "99",
            "0042",
            "IP_3075186",
            "HAM_0000118",
            "Patient 7",
            "patient_0",
            "ANON-0012",
            "anon17",
            "TEST1",
        ),
        *("999", "A0", "ANON-0001", "Nono", "Nona", "Nana", "Not", "AnonA17", "Notter", "#17", "McNo"),
        *("山田 NA", "患者ID"),
        *("山田", "Müller", "Nan Li", "Test-4711", "X7", "1.2.840.1", "lesion 3", "10", "100", "na2"),
    ],
)
def test_numbers_and_pseudonyms_stay(text: str) -> None:
    assert known(text) == text


def test_blanks_around_a_number_do_not_count() -> None:
    assert known(" 0042\n") == "0042"
    assert known(None) is None
