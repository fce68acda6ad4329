import pytest

from melanoma import taxonomy


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


def test_coarse_labels_have_short_names() -> None:
    assert taxonomy.name_of("AK|DF|NV|BKL|SK|VASC") == "benign"
    assert taxonomy.name_of("BCC|MEL|SCC") == "malignant"
    assert taxonomy.name_of("AK|BCC|DF|NV|BKL|SK|SCC|VASC") == "not melanoma"
    assert taxonomy.name_of("AK|SCC") == "actinic keratosis or squamous cell carcinoma"
