import pytest

from melanoma import taxonomy


@pytest.mark.parametrize(
    ("word", "label"),
    [
        ("melanoma", "MEL"),
        ("MEL", "MEL"),
        ("  Melanoma \n", "MEL"),
        ("melanocytic_nevi", "NV"),
        ("Naevus", "NV"),
        ("basal-cell carcinoma", "BCC"),
        ("squamous  cell\tcarcinoma", "SCC"),
        ("seborrhoeic keratosis", "SK"),
        ("vascular lesion", "VASC"),
        ("akiec", "AK|SCC"),
        ("AKIEC", "AK|SCC"),
        # HAM10000's word, and the single diagnosis of the nine-class set.
        ("bkl", "BKL|SK"),
        ("BKL", "BKL"),
        ("pigmented benign keratosis", "BKL"),
        ("SCC|AK", "AK|SCC"),
        ("MEL|MEL", "MEL"),
    ],
)
def test_words_of_the_source_sets(word: str, label: str) -> None:
    assert taxonomy.label_of(word) == label


@pytest.mark.parametrize("word", ["", " ", "|", "MEL|", "mel|nv", "melanomas", "unknown", "皮膚", "\0", "NV,MEL"])
def test_other_words_are_not_guessed(word: str) -> None:
    assert taxonomy.label_of(word) is None


@pytest.mark.parametrize("name", taxonomy.NAMES.values())
def test_every_name_stands_for_its_code(name: str) -> None:
    label = taxonomy.label_of(name.upper())
    assert label is not None
    assert taxonomy.NAMES[label] == name


def test_the_challenges_bkl_covers_two_diagnoses() -> None:
    assert taxonomy.challenge_label_of(" BKL ") == "BKL|SK"
    assert taxonomy.challenge_label_of("AKIEC") == "AK|SCC"
    assert taxonomy.challenge_label_of("AK") == "AK"
    assert taxonomy.challenge_label_of("SK") == "SK"
    assert taxonomy.challenge_label_of("no such thing") is None


def test_codes_of_a_label() -> None:
    assert taxonomy.codes_of("MEL") == ("MEL",)
    assert taxonomy.codes_of("AK|SCC") == ("AK", "SCC")
    for label in ("", "mel", "AK|", "AK|XYZ"):
        with pytest.raises(ValueError, match="is not one of AK, BCC"):
            taxonomy.codes_of(label)


def test_a_label_is_written_in_the_order_of_the_codes() -> None:
    assert taxonomy.join(["SCC", "AK", "SCC"]) == "AK|SCC"
    assert taxonomy.join(reversed(taxonomy.CODES)) == "|".join(taxonomy.CODES)


def test_merged_classes_are_a_partition() -> None:
    assert taxonomy.merged_classes(["MEL", "NV"]) == taxonomy.CODES
    assert taxonomy.merged_classes(["MEL", "AK|SCC", "BKL|SK", "AK|SCC"]) == (
        "AK|SCC", "BCC", "DF", "MEL", "NV", "BKL|SK", "VASC",
    )  # fmt: skip
    # A chain of labels is one class.
    assert taxonomy.merged_classes(["AK|BCC", "BCC|DF", "DF|MEL"])[0] == "AK|BCC|DF|MEL"
    assert taxonomy.merged_classes(["AK|SCC"], among=("AK", "MEL", "SCC")) == ("AK|SCC", "MEL")


def test_melanoma_is_one_of_three_malignant_diagnoses() -> None:
    assert taxonomy.MALIGNANT == ("BCC", "MEL", "SCC")
    assert taxonomy.CODES == ("AK", "BCC", "DF", "MEL", "NV", "BKL", "SK", "SCC", "VASC")


@pytest.mark.parametrize(
    ("name", "image_id"),
    [
        ("s3://b/x/ISIC_0000001.jpg", "ISIC_0000001"),
        ("/x/ISIC_0000001_downsampled.jpg", "ISIC_0000001"),
        ("ISIC_0000001_downsampled", "ISIC_0000001"),
        ("/x/a.b.c.tiff", "a.b.c"),
        ("/x.y/none", "none"),
    ],
)
def test_image_ids(name: str, image_id: str) -> None:
    assert taxonomy.image_id_of(name) == image_id
