"""The words of the field's sets: each has its label, or is known to be another diagnosis, and no other is guessed."""

import csv
import os
from collections import Counter
from pathlib import Path

import pytest

from melanoma import taxonomy
from melanoma.taxonomy.vocabulary import OTHER, UNSAID, combined, label_of, meaning_of

BENIGN, MALIGNANT = "AK|DF|NV|BKL|SK|VASC", "BCC|MEL|SCC"
DATA = Path(os.environ.get("MELANOMA_DATA", "/nonexistent"))

WORDS = {
    # ISIC archive, diagnosis_1 to diagnosis_5 and the words before them.
    "Solar or actinic keratosis": "AK",
    "Actinic keratosis, Bowenoid": "AK",
    "Basal cell carcinoma, Nodular": "BCC",
    "Basal cell carcinoma, Fibroeipthelial": "BCC",
    "Malignant adnexal epithelial proliferations - Follicular": "BCC",
    "Dermatofibroma, Hemosiderotic": "DF",
    "Melanoma Invasive, On chronically sun-exposed skin or lentigo maligna melanoma": "MEL",
    "Melanoma Invasive, Associated with a nevus": "MEL",
    "Melanoma, NOS": "MEL",
    "Malignant melanocytic proliferations (Melanoma)": "MEL",
    "Nevus, Atypical, Dysplastic, or Clark": "NV",
    "Nevus, NOS, Compound": "NV",
    "Blue nevus, Sclerosing": "NV",
    "nevus spilus": "NV",
    "Nevus/Nevus, NOS, Junctional": "NV",
    "Lichen planus like keratosis": "BKL",
    "Solar lentigo": "BKL",
    "Seborrheic keratosis, Clonal": "SK",
    "Squamous cell carcinoma in situ, Bowens disease": "SCC",
    "Squamous cell carcinoma, Invasive, Keratoacanthoma-type, well differentiated": "SCC",
    "Hemangioma, Cherry": "VASC",
    "Benign": BENIGN,
    "Malignant": MALIGNANT,
    "Benign:Benign melanocytic proliferations:Nevus:Blue nevus": "NV",
    "Malignant::Malignant epidermal proliferations::Squamous cell carcinoma, NOS": "SCC",
    "Benign epidermal proliferations": "BKL|SK",
    # MILK10k.
    "AKIEC": "AK|SCC",
    "SCCKA": "SCC",
    "AKIEC: Solar or actinic keratosis": "AK",
    "BKL: Seborrheic keratosis": "SK",
    "SCCKA: Keratoacanthoma": "SCC",
    # Derm7pt.
    "melanoma (in situ)": "MEL",
    "melanoma (0.76 to 1.5 mm)": "MEL",
    "melanoma (more than 1.5 mm)": "MEL",
    "reed or spitz nevus": "NV",
    "clark nevus": "NV",
    "vascular lesion": "VASC",
    # PAD-UFES-20.
    "ACK": "AK",
    "SEK": "SK",
    "NEV": "NV",
    "BOD": "SCC",
    "Basosquamous carcinoma": "BCC|SCC",
    # HAM10000 as it stands in many a notebook.
    "bkl": "BKL|SK",
    "akiec": "AK|SCC",
    "Actinic keratoses": "AK",
    "Melanocytic nevi": "NV",
    "Benign keratosis-like lesions ": "BKL|SK",
    "benign keratosis-like lesions (solar lentigines / seborrheic keratoses and lichen-planus like keratoses, bkl)": (
        "BKL|SK"
    ),
    "Actinic keratoses and intraepithelial carcinoma / Bowen's disease": "AK|SCC",
    "basal cell carcinoma (bcc)": "BCC",
    "pyogenic granulomas and hemorrhage": "VASC",
    # Fitzpatrick17k.
    "malignant melanoma": "MEL",
    "superficial spreading melanoma ssm": "MEL",
    "lentigo maligna": "MEL",
    "nevocytic nevus": "NV",
    "halo nevus": "NV",
    "solid cystic basal cell carcinoma": "BCC",
    "basal cell carcinoma morpheiform": "BCC",
    "port wine stain": "VASC",
    "granuloma pyogenic": "VASC",
    # Spelling, number, order, punctuation.
    "  Melanoma \n": "MEL",
    "melanomas": "MEL",
    "blue naevi": "NV",
    "Nævus": None,
    "seborrhoeic keratoses": "SK",
    "haemangiomas": "VASC",
    "BasalCellCarcinoma": "BCC",
    "basal_cell-carcinoma": "BCC",
    "squamous  cell\tcarcinoma": "SCC",
    "carcinoma, basal cell": "BCC",
    "Nevus [histopathology] CC-BY-NC": "NV",
    # One of several.
    "SCC|AK": "AK|SCC",
    "MEL|MEL": "MEL",
    "mel/nv": "MEL|NV",
    "non-melanoma": "AK|BCC|DF|NV|BKL|SK|SCC|VASC",
}


@pytest.mark.parametrize(("word", "label"), WORDS.items())
def test_words_of_the_sets(word: str, label: str | None) -> None:
    assert label_of(word) == label


@pytest.mark.parametrize("name", taxonomy.NAMES.values())
def test_every_name_stands_for_its_code(name: str) -> None:
    label = label_of(name.upper())
    assert label is not None
    assert taxonomy.NAMES[label] == name


def test_bkl_in_capitals_is_a_diagnosis_here_and_two_in_the_challenges() -> None:
    assert label_of("BKL") == "BKL"
    assert meaning_of(" BKL ", is_challenge=True) == "BKL|SK"
    assert meaning_of("AK", is_challenge=True) == "AK"


@pytest.mark.parametrize(
    "word",
    [
        *(
            "lentigo NOS",
            "lentigo simplex",
            "scar",
            "wart",
            "verrucae",
            "psoriasis",
            "Merkel cell carcinoma",
            "BEN_OTH",
        ),
        *("BEN_OTH", "INF", "MAL_OTH", "epidermal nevus", "nevus sebaceous of jadassohn", "becker nevus"),
        *("atypical Spitz tumor", "atypical Spitz naevus", "cafe-au-lait macule", "café-au-lait macule", "AIMP"),
        "Sézary syndrome",
        *("BEN_OTH: Benign soft tissue proliferations - Vascular", "miscellaneous"),
        *("disseminated actinic porokeratosis", "Benign:Cysts:Comedo", "telangiectasia macularis eruptiva perstans"),
    ],
)
def test_diagnoses_that_are_none_of_the_nine(word: str) -> None:
    assert meaning_of(word) == OTHER


@pytest.mark.parametrize("word", ["", "unknown", "UNK", "n/a", "Indeterminate", "indeterminate/benign"])
def test_words_that_leave_it_open(word: str) -> None:
    assert meaning_of(word) == UNSAID


@pytest.mark.parametrize(
    "word",
    [
        *("melanoma: no", "melanoma:excluded", "Melanoma [excluded]", "Melanoma: 0", "melanoma, 0", "melanoma_0"),
        *("MEL|", "皮膚", "\0", "NV,MEL", "mole", "melanoma?", "no melanoma seen", "suspected melanoma"),
        *("nevus vs melanoma", "melanoma / scar", "keratosis", "carcinoma", "lesion", "!nevus", "MEL: NV"),
        *("benign: melanoma", "images", "1"),
    ],
)  # fmt: skip
def test_other_words_are_not_guessed(word: str) -> None:
    assert meaning_of(word) is None


@pytest.mark.parametrize(
    "word",
    [
        *("melanoma: no", "melanoma: negative", "melanoma:excluded", "Melanoma: unlikely", "No: melanoma"),
        *("melanoma: none", "none: melanoma", "Melanoma: n/a", "Melanoma:", "melanoma: unknown", "Melanoma::No"),
        *("Melanoma [excluded]", "Melanoma [no]", "melanoma (excluded)", "melanoma (-)", "melanoma \u2013"),
        *("Melanoma: 0", "melanoma, 0", "melanoma_0", "melanoma 0", "melanoma (0)", "melanoma_1", "melanoma -"),
        *("melanoma / no melanoma", "no melanoma/melanoma", "melanoma, not", "melanoma - no", "melanoma | none"),
        *("melanoma, less", "nevus_1", "nevus: no", "BCC: 0", "BCC [excluded]"),
    ],
)  # fmt: skip
def test_an_answer_beside_a_word_is_not_passed_over(word: str) -> None:
    assert meaning_of(word) is None


@pytest.mark.parametrize(
    ("word", "label"),
    [
        ("Nevus, BAP-1 deficient", "NV"),
        ("melanoma (less than 0.76 mm)", "MEL"),
        ("SCCKA: Squamous cell carcinoma, Invasive [histopathology]", "SCC"),
        ("Nevus [] CC-BY", "NV"),
        ("Nevus [serial imaging showing no change]", "NV"),
        ("Indeterminate:Indeterminate epidermal proliferations:Solar or actinic keratosis", "AK"),
        ("no melanoma", "AK|BCC|DF|NV|BKL|SK|SCC|VASC"),
    ],
)
def test_what_only_looks_like_an_answer(word: str, label: str) -> None:
    assert meaning_of(word) == label


def test_what_several_words_leave_open() -> None:
    assert combined(["BKL|SK", "SK"]) == "SK"
    assert combined([BENIGN, UNSAID, "NV"]) == "NV"
    assert combined([BENIGN, OTHER]) == OTHER
    assert combined([UNSAID]) == combined([]) == UNSAID
    assert combined(["MEL", BENIGN]) is None, "they contradict one another"
    assert combined([BENIGN, "NV", None]) == "NV", "a kind of nevus that is new"
    assert combined([BENIGN, None]) is None, "it may be another diagnosis"


@pytest.mark.skipif(not (DATA / "milk10k").is_dir(), reason="MELANOMA_DATA names no folder with real sets")
@pytest.mark.parametrize("name", ["milk10k", "acral", "isic_misc"])
def test_real_words_agree_with_the_labels_beside_them(name: str) -> None:
    with (DATA / name / "metadata.csv").open(encoding="utf-8") as table:
        rows = Counter((row["label"], meaning_of(row["dx"])) for row in csv.DictReader(table))
    assert None not in {meaning for _, meaning in rows}
    for label, meaning in rows:
        if meaning in (OTHER, UNSAID):
            continue
        # Who labelled MILK10k counted Bowen's disease as AK; it is a squamous cell carcinoma in situ.
        assert meaning == label or (label, meaning) == ("AK", "SCC")
