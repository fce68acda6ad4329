"""The tables and folders of the field's sets, read as they are."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from melanoma import config
from melanoma.catalog import audit, draft, schema
from melanoma.catalog.build import build
from melanoma.catalog.mapping import NO_MAP, Map
from melanoma.errors import InputError

BENIGN, MALIGNANT = "AK|DF|NV|BKL|SK|VASC", "BCC|MEL|SCC"
NOT_MELANOMA = "AK|BCC|DF|NV|BKL|SK|SCC|VASC"


@pytest.fixture
def folder(tmp_path: Path, lesion: Callable[..., bytes]) -> Path:
    """Four pictures: ``set/images/ISIC_000000N.jpg``."""
    images = tmp_path / "set" / "images"
    images.mkdir(parents=True)
    for number in range(4):
        (images / f"ISIC_000000{number}.jpg").write_bytes(lesion("MEL", number))
    return images.parent


def table_of(header: str, rows: list[str]) -> str:
    """A table whose first column is the id of an image."""
    return "\n".join([header, *(f"ISIC_000000{number},{row}" for number, row in enumerate(rows))])


@pytest.mark.parametrize(
    ("header", "rows", "labels"),
    [
        # ISIC 2017's truth: what is neither is a nevus.
        ("image_id,melanoma,seborrheic_keratosis", ["1.0,0.0", "0.0,1.0", "0.0,0.0"], ["MEL", "SK", "NV"]),
        ("image_id,melanoma", ["1", "0"], ["MEL", NOT_MELANOMA]),
        # ISIC 2020, and Kaggle's copies of it.
        (
            "image_name,patient_id,diagnosis,benign_malignant,target",
            ["IP_1,melanoma,malignant,1", "IP_2,nevus,benign,0", "IP_3,unknown,benign,0", "IP_4,lentigo NOS,benign,0"],
            ["MEL", "NV", BENIGN, None],
        ),
        ("image_name,target", ["1", "0"], [MALIGNANT, BENIGN]),
        ("isic_id,benign_malignant", ["benign", "malignant", "indeterminate"], [BENIGN, MALIGNANT, None]),
        ("image_id,label", ["benign", "Malignant", ""], [BENIGN, MALIGNANT, None]),
        # SLICE-3D, of ISIC 2024.
        (
            "isic_id,target,iddx_full,iddx_1,iddx_2,iddx_3",
            [
                "0,Benign,Benign,,",
                "1,Malignant::Malignant epidermal proliferations::Squamous cell carcinoma in situ,Malignant,,",
                "0,Benign::Benign melanocytic proliferations::Nevus,Benign,Benign melanocytic proliferations,Nevus",
            ],
            [BENIGN, "SCC", "NV"],
        ),
        # The ISIC archive.
        (
            "isic_id,diagnosis_1,diagnosis_2,diagnosis_3,diagnosis_4,diagnosis_5",
            [
                "Benign,Benign melanocytic proliferations,Nevus,Blue nevus,",
                "Indeterminate,Indeterminate epidermal proliferations,Solar or actinic keratosis,,",
                "Benign,Flat melanotic pigmentations - not melanocytic nevus,Lentigo NOS,,",
                "Malignant,,,,",
            ],
            ["NV", "AK", None, MALIGNANT],
        ),
        # A kind that the archive may name one day.
        ("isic_id,diagnosis_1,diagnosis_3,diagnosis_4", ["Benign,Nevus,Purple nevoid spot"], ["NV"]),
        # MILK10k.
        (
            "isic_id,AKIEC,BCC,BEN_OTH,BKL,DF,INF,MAL_OTH,MEL,NV,SCCKA,VASC",
            ["0,0,0,0,0,0,0,0,0,1.0,0", "1,0,0,0,0,0,0,0,0,0,0", "0,0,1,0,0,0,0,0,0,0,0", "0,0,0,1,0,0,0,0,0,0,0"],
            ["SCC", "AK|SCC", None, "BKL|SK"],
        ),
        # BCN20000.
        ("bcn_filename,diagnosis", ["BKL", "SCC", "NV"], ["BKL|SK", "SCC", "NV"]),
        # PAD-UFES-20.
        ("img_id,diagnostic", ["ACK", "SEK", "NEV", "BOD"], ["AK", "SK", "NV", "SCC"]),
        # Column names as a spreadsheet has them.
        ("Image ID,DIAGNOSIS", ["blue naevus", "melanoma (in situ)"], ["NV", "MEL"]),
    ],
)
def test_labels_of_the_sets_own_tables(folder: Path, header: str, rows: list[str], labels: list[str | None]) -> None:
    (folder / "table.csv").write_text(table_of(header, rows))
    frame = build([str(folder / "table.csv")])
    assert frame["label"].tolist() == labels
    assert set(frame["error"]) == {None}


@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_isic_2016_has_no_header(folder: Path, separator: str) -> None:
    for name, text in {
        "train.csv": "ISIC_0000000,benign\nISIC_0000001,malignant\n",
        "test.csv": "ISIC_0000002,0.0\nISIC_0000003,1.0\n",
    }.items():
        (folder / name).write_text(text.replace(",", separator))
    frame = build([str(folder / "train.csv"), str(folder / "test.csv")])
    assert frame["label"].tolist() == [BENIGN, MALIGNANT, BENIGN, MALIGNANT]
    assert frame["image_id"].tolist() == [f"ISIC_000000{n}" for n in range(4)]


@pytest.mark.parametrize("name", ["HAM10000_metadata.tab", "HAM10000_metadata", "HAM10000_metadata.csv"])
@pytest.mark.parametrize("separator", ["\t", ","])
def test_the_metadata_of_ham10000_as_dataverse_gives_it(folder: Path, name: str, separator: str) -> None:
    lines = [
        '"lesion_id","image_id","dx","dx_type","age","sex","localization"',
        '"HAM_0000118","ISIC_0000000","bkl","histo",80.0,"male","scalp"',
        '"HAM_0000118","ISIC_0000001","akiec","histo",80.0,"male","scalp"',
    ]
    (folder / name).write_text("\n".join(lines).replace(",", separator))
    frame = build([str(folder / name)])
    assert frame["label"].tolist() == ["BKL|SK", "AK|SCC"]
    assert frame["lesion_id"].tolist() == ["HAM_0000118"] * 2
    assert set(frame["error"]) == {None}


def test_the_download_folder_of_isic_cli(folder: Path) -> None:
    (folder / "metadata.csv").write_text(
        "isic_id,attribution,copyright_license,age_approx,anatom_site_general,diagnosis_1,diagnosis_3,sex\n"
        "ISIC_0000000,Vienna,CC-BY-NC,85+,lower extremity,Malignant,Melanoma in situ,male\n"
        "ISIC_0000001,Vienna,CC-0,30,,Benign,Nevus,unknown\n"
    )
    for image in (folder / "images").iterdir():
        shutil.move(image, folder / image.name)
    (folder / "attribution.txt").write_text("Vienna\n")
    heard: list[str] = []
    frame = build([str(folder)], say=heard.append)
    assert frame["label"].tolist() == ["MEL", "NV"]
    assert (frame["age"].tolist(), frame["sex"].tolist()) == ([85.0, 30.0], ["male", None])
    assert any("metadata.csv says what its images are" in sentence for sentence in heard)
    (folder / "other.csv").write_text("isic_id,diagnosis\nISIC_0000002,nevus\n")
    with pytest.raises(InputError, match=r"has several tables of images: name one of \S+metadata.csv, \S+other.csv"):
        build([str(folder)])


def test_a_map_says_which_of_two_tables_is_that_of_the_images(folder: Path) -> None:
    (folder / "befunde.csv").write_text("image_id,Befund\nISIC_0000000,Melanom\n")
    (folder / "geraete.csv").write_text("Nummer,Name\n1,Dermatoskop\n")
    words_of = Map.model_validate({"columns": {"label": "Befund"}, "labels": {"Melanom": "MEL"}})
    assert build([str(folder)], words_of=words_of)["label"].tolist() == ["MEL"]


def test_a_draft_that_nobody_has_changed_changes_no_label(folder: Path, tmp_path: Path) -> None:
    """Words that leave it open stay so, and the challenges' BKL is what it is without a map."""
    header = "image_name,diagnosis,benign_malignant"
    table, words_of = folder / "m.csv", tmp_path / "map.yaml"
    table.write_text(table_of(header, ["unknown,benign", "melanoma,malignant", "BKL,benign", "scar,benign"]))
    draft.write([str(table)], str(words_of))
    for each in (NO_MAP, config.load(Map, str(words_of))):
        assert build([str(table)], words_of=each)["label"].tolist() == [BENIGN, "MEL", "BKL|SK", None]


def test_other_columns_of_the_isic_archive_are_no_diagnoses(folder: Path) -> None:
    """mel_thick_mm is a length, and mel_type is empty in most tables."""
    (folder / "lengths.csv").write_text(table_of("isic_id,diagnosis_1,mel_thick_mm", ["Malignant,0.0", "Benign,"]))
    (folder / "empty.csv").write_text(table_of("isic_id,melanoma,mel_type,nevus_type", ["1,,", "0,,"]))
    assert build([str(folder / "lengths.csv")])["label"].tolist() == [MALIGNANT, BENIGN]
    assert build([str(folder / "empty.csv")])["label"].tolist() == ["MEL", NOT_MELANOMA]


@pytest.mark.parametrize("header", ["image,MEL,NV,ANGIOSARC", "image,Melanoma,Nevus,Basaliom"])
def test_a_column_of_an_unknown_class_is_named(folder: Path, header: str) -> None:
    (folder / "truth.csv").write_text(table_of(header, ["1,0,0", "0,1,0", "0,0,1"]))
    with pytest.raises(InputError, match=rf"{header.split(',')[-1]}.*1"):
        build([str(folder / "truth.csv")])
    labels = {"Basaliom": "BCC", "ANGIOSARC": None}
    frame = build([str(folder / "truth.csv")], words_of=Map(labels=labels))
    assert frame["label"].tolist() == ["MEL", "NV", labels[header.split(",")[-1]]]


def test_a_column_of_0_and_1_that_is_no_class_is_left_alone(folder: Path) -> None:
    (folder / "truth.csv").write_text(table_of("image,MEL,NV,bleeds", ["1,0,1", "0,1,0", "0,1,1"]))
    assert build([str(folder / "truth.csv")])["label"].tolist() == ["MEL", "NV", "NV"]


def test_a_manifest_may_say_the_source_of_each_image(folder: Path) -> None:
    (folder / "m.csv").write_text(
        "path,label,source,patient_id\nimages/ISIC_0000000.jpg,nevus,Barcelona,7\n"
        "images/ISIC_0000001.jpg,nevus,Vienna,7\nimages/ISIC_0000002.jpg,nevus,,7\n"
    )
    frame = build([str(folder / "m.csv")])
    assert frame["source"].tolist() == ["Barcelona", "Vienna", "set"]
    assert frame["group_id"].nunique() == 3, "patient 7 of three hospitals is three patients"


def test_placeholders_join_nobody(folder: Path) -> None:
    words = ["ANONYMOUS", "Unknown", "n.a.", "0"]
    rows = [f"nevus,{words[0]},{word}" for word in words]
    (folder / "m.csv").write_text(table_of("image_id,label,patient_id,lesion_id", rows))
    frame = build([str(folder / "m.csv")])
    assert set(frame["patient_id"]) == set(frame["lesion_id"]) == {None}
    assert frame["group_id"].nunique() == 4


def test_class_folders_are_read_by_the_words_of_the_sets(tmp_path: Path, lesion: Callable[..., bytes]) -> None:
    words = {
        "Actinic keratoses": "AK",
        "melanoma (in situ)": "MEL",
        "Benign": BENIGN,
        "SCCKA": "SCC",
        "lentigo NOS": None,
        "malignant/clinic A": MALIGNANT,
    }
    for number, word in enumerate(words):
        (tmp_path / "set" / word).mkdir(parents=True)
        (tmp_path / "set" / word / f"{number}.jpg").write_bytes(lesion("NV", number))
    heard: list[str] = []
    frame = build([str(tmp_path / "set")], say=heard.append)
    assert dict(zip(frame["image_id"], frame["label"], strict=True)) == {
        str(number): label for number, label in enumerate(words.values())
    }
    assert heard == [
        "1 image has another diagnosis than the nine, and so no label: 'lentigo NOS' (1).",
        "1 image has a coarse label of a folder above one that is not known here: 'clinic A' (1).",
    ]


@pytest.mark.parametrize("name", ["melanoma_0", "melanoma - no", "melanoma excluded"])
def test_a_folder_that_denies_a_diagnosis_is_not_of_it(tmp_path: Path, lesion: Callable[..., bytes], name: str) -> None:
    for folder in ("nevus", name):
        (tmp_path / "set" / folder).mkdir(parents=True)
        (tmp_path / "set" / folder / "1.jpg").write_bytes(lesion("NV", len(folder)))
    with pytest.raises(InputError, match=rf"not known here: '{name}' \(1\)"):
        build([str(tmp_path / "set")])


@pytest.mark.parametrize(
    ("header", "rows", "words"),
    [
        ("image,MEL,NV,ANGIOSARC", ["0,0,1", "0,1,0"], r"'ANGIOSARC' \(1\)"),
        ("image,MEL,NV,SEBK,LENT", ["0,0,1,0", "0,0,0,1", "0,0,1,0"], r"'SEBK' \(2\), 'LENT' \(1\)"),
        ("image,Melanoma,Nevus,Basaliom", ["1,0,0", "0,0,1.0"], r"'Basaliom' \(1\)"),
        ("image,melanoma,seborrheic_keratosis,Basaliom", ["1,0,0", "0,0,1"], r"'Basaliom' \(1\)"),
        ("image,MEL,Sarkom,sex", ["0,1,0", "1,0,1"], r"'Sarkom' \(1\)"),
        ("image,MEL,NV,SEBK", ["1,0,", ",,1"], r"'SEBK' \(1\)"),
    ],
)
def test_a_class_column_that_is_not_known_is_named(folder: Path, header: str, rows: list[str], words: str) -> None:
    (folder / "m.csv").write_text(table_of(header, rows))
    with pytest.raises(InputError, match=f"not known here: {words}"):
        build([str(folder / "m.csv")])
    heard: list[str] = []
    assert len(build([str(folder / "m.csv")], unlabelled=True, say=heard.append)) == len(rows)
    assert any("not known here" in sentence for sentence in heard)


@pytest.mark.parametrize(
    ("header", "rows", "labels"),
    [
        # A column of another diagnosis, and columns that are no classes.
        ("image,MEL,NV,OTHER", ["0,0,1", "0,1,0"], [None, "NV"]),
        ("image,melanoma,smoker", ["1,1", "0,1", "0,0"], ["MEL", NOT_MELANOMA, NOT_MELANOMA]),
        ("image,MEL,NV,tattoo,sex", ["1,0,1,1", "0,1,1,0"], ["MEL", "NV"]),
        ("image,melanoma,sex,age,patient_id", ["1,0,0,0", "0,1,1,1"], ["MEL", NOT_MELANOMA]),
    ],
)
def test_columns_beside_those_of_the_classes(
    folder: Path, header: str, rows: list[str], labels: list[str | None]
) -> None:
    (folder / "m.csv").write_text(table_of(header, rows))
    heard: list[str] = []
    assert build([str(folder / "m.csv")], say=heard.append)["label"].tolist() == labels
    assert heard == ["1 image has another diagnosis than the nine, and so no label: 'OTHER' (1)."] * ("OTHER" in header)


def test_a_map_reaches_one_column_a_class(folder: Path) -> None:
    (folder / "m.csv").write_text(table_of("image,MEL,NV,SEBK,LENT", ["0,0,1,0", "0,0,0,1", "0,1,0,0"]))
    words_of = Map.model_validate({"labels": {"SEBK": "SK", "LENT": "BKL"}})
    assert build([str(folder / "m.csv")], words_of=words_of)["label"].tolist() == ["SK", "BKL", "NV"]
    rows = [f"images/ISIC_000000{number}.jpg;{row}" for number, row in enumerate(["1;0;0", "0;1;0", "0;0;1"])]
    (folder / "m.csv").write_text("\n".join(["Datei;Melanom;Na\u0308vus;Basaliom", *rows]))  # NFD, as macOS writes it
    words_of = Map.model_validate(
        {"columns": {"path": "Datei"}, "labels": {"Melanom": "MEL", "N\u00e4vus": "NV", "Basaliom": "BCC"}}
    )
    assert build([str(folder / "m.csv")], words_of=words_of)["label"].tolist() == ["MEL", "NV", "BCC"]


def test_the_columns_of_a_map_may_be_encoded_otherwise(folder: Path) -> None:
    (folder / "m.csv").write_text(table_of("image_id,Pra\u0308parat", ["Na\u0308vus"]))
    words_of = Map.model_validate({"columns": {"label": "Pr\u00e4parat"}, "labels": {"N\u00e4vus": "NV"}})
    assert build([str(folder / "m.csv")], words_of=words_of)["label"].tolist() == ["NV"]


def test_two_columns_of_one_name_are_refused(folder: Path) -> None:
    (folder / "m.csv").write_text(table_of("image_id,label,Label", ["nevus,melanoma"]))
    with pytest.raises(InputError, match="two columns that are one, 'label' and 'Label': rename one of them"):
        build([str(folder / "m.csv")])


@pytest.mark.parametrize("name", ["list.xlsx", "list.txt"])
def test_a_list_that_is_not_read_is_a_sentence(folder: Path, name: str) -> None:
    (folder / name).write_bytes(b"image_id\tlabel\nISIC_0000000\tnevus\n")
    with pytest.raises(InputError, match=rf"{name} is no folder, and no table that is read here: save it as .*\.csv, "):
        build([str(folder / name)])
    with pytest.raises(InputError, match=f"{name} is no folder"):
        draft.write([str(folder / name)], str(folder / "map.yaml"))


def test_all_words_that_are_not_known_are_told_together(folder: Path, tmp_path: Path) -> None:
    (folder / "m.csv").write_text(table_of("image_id,diagnosis", ["Melanom", "nevus", "Melanom", "Basaliom"]))
    shutil.copytree(folder / "images", tmp_path / "folders" / "Melanom")
    shutil.copytree(folder / "images", tmp_path / "folders" / "nevus")
    sources = [str(folder / "m.csv"), str(tmp_path / "folders")]
    with pytest.raises(InputError, match=r"7 images have a word .*: 'Melanom' \(6\), 'Basaliom' \(1\)\. Say what"):
        build(sources)
    heard: list[str] = []
    frame = build(sources, unlabelled=True, say=heard.append)
    assert frame["label"].value_counts(dropna=False).to_dict() == {None: 7, "NV": 5}
    assert "'Melanom' (6), 'Basaliom' (1)" in heard[0]


@pytest.mark.parametrize(
    ("header", "row", "word"),
    [
        ("image_id,diagnosis,benign_malignant", "nevus,malignant", "malignant, nevus"),
        ("image_id,MEL,NV", "1,1", "MEL 1, NV 1"),
        ("image_id,diagnosis,target", "melanoma,0", "melanoma, target 0"),
        ("image_id,diagnosis,melanoma", "melanoma,0", "melanoma, melanoma 0"),
    ],
)
def test_columns_that_contradict_one_another_are_told(folder: Path, header: str, row: str, word: str) -> None:
    (folder / "m.csv").write_text(table_of(header, [row]))
    with pytest.raises(InputError, match=rf"not known here: '{word}' \(1\)"):
        build([str(folder / "m.csv")])


def test_coarse_and_fine_labels_of_one_photograph_are_no_contradiction(folder: Path) -> None:
    """A challenge calls benign what HAM10000 calls a nevus; what one calls benign and the other melanoma is wrong."""
    tables = {
        "coarse": ["benign", "malignant", "benign", "malignant"],
        "fine": ["nevus", "melanoma", "melanoma", "SCC"],
    }
    for name, labels in tables.items():
        (folder / f"{name}.csv").write_text(table_of("image_id,label", labels))
    frame = build([str(folder / f"{name}.csv") for name in tables])
    found = audit.examine(frame)
    assert found["summary"]["contradictions"] == 1
    (contradiction,) = found["contradictions"]["findings"]
    assert contradiction["labels"] == [BENIGN, "MEL"]
    assert {image["image_id"] for image in contradiction["images"]} == {"ISIC_0000002"}


def test_a_catalog_of_nothing_but_errors_is_refused(folder: Path) -> None:
    (folder / "m.csv").write_text("image_id,label\nX_1,nevus\nX_2,nevus\nX_3,melanoma\n")
    with pytest.raises(
        InputError, match=r"None of the 3 images can be used: No image of this id lies below \S+ \(3\)\."
    ):
        build([str(folder / "m.csv")])


def test_reasons_are_counted_without_places_and_numbers() -> None:
    errors = ["/0.jpg does not exist.", "The file is empty.", "/2.jpg does not exist.", None]
    reasons = schema.reasons([{"uri": f"/{place}.jpg", "error": error} for place, error in enumerate(errors)])
    assert reasons == {"The file does not exist": 2, "The file is empty": 1}
    assert list(reasons) == ["The file does not exist", "The file is empty"]
