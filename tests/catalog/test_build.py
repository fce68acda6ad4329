import hashlib
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from melanoma import privacy, taxonomy
from melanoma.catalog import schema
from melanoma.catalog.build import build
from melanoma.catalog.split import split
from melanoma.demo.archive_files import dicom_file
from melanoma.demo.lesions import draw_lesion
from melanoma.demo.local_s3 import LocalS3
from melanoma.errors import InputError
from melanoma.imaging.limits import DEFAULT_LIMITS

Lesion = Callable[..., bytes]

NOT_MELANOMA = "AK|BCC|DF|NV|BKL|SK|SCC|VASC"


def by_id(frame: pd.DataFrame, column: str) -> dict[str, Any]:
    assert frame["image_id"].is_unique
    return dict(zip(frame["image_id"].tolist(), frame[column].tolist(), strict=True))


def refusal(*sources: Path | str) -> str:
    with pytest.raises(InputError) as caught:
        build([str(source) for source in sources])
    assert caught.value.exit_code == 2
    return str(caught.value)


def fill(folder: Path, files: dict[str, bytes | str]) -> Path:
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data if isinstance(data, bytes) else data.encode())
    return folder


# --- class folders ---------------------------------------------------------------------------------------------------


def test_class_folders(lesions: Path) -> None:
    heard: list[tuple[int, int]] = []
    frame = build([str(lesions)], lambda done, total: heard.append((done, total)))
    assert heard == [(done, 36) for done in range(1, 37)]
    assert list(frame.columns) == schema.SCHEMA.names
    assert frame["label"].value_counts().to_dict() == dict.fromkeys(taxonomy.CODES, 4)
    assert (frame["image_id"].str.split("-").str[0] == frame["label"]).all()
    row = frame.iloc[0]
    data = Path(row["uri"]).read_bytes()
    assert row["sha256"] == hashlib.sha256(data).hexdigest()
    assert (row["size_bytes"], row["width"], row["height"], row["source"]) == (len(data), 96, 96, "lesions")
    assert frame["group_id"].nunique() == 36
    for column in ("lesion_id", "patient_id", "split", "error"):
        assert set(frame[column]) == {None}


def test_train_and_test_folders_are_splits(tmp_path: Path, lesion: Lesion) -> None:
    files = {
        "isic9/Train/nevus/ISIC_0000001.jpg": lesion("NV", 1),
        "isic9/Train/melanoma/ISIC_0000002.jpg": lesion("MEL", 2),
        "isic9/Test/melanoma/ISIC_0000003.jpg": lesion("MEL", 3),
        "isic9/valid/vascular lesion/deeper/ISIC_0000004.png": lesion("VASC", 4, "PNG"),
    }
    fill(tmp_path, dict(files))
    wanted = {
        "ISIC_0000001": ("NV", "train", "isic9"),
        "ISIC_0000002": ("MEL", "train", "isic9"),
        "ISIC_0000003": ("MEL", "test", "isic9"),
        "ISIC_0000004": ("VASC", "validation", "isic9"),
    }

    def found(*sources: Path) -> dict[str, Any]:
        frame = build(map(str, sources))
        return {str(row.image_id): (row.label, row.split, row.source) for row in frame.itertuples()}

    assert found(tmp_path / "isic9") == wanted
    # Each on its own is the same set.
    assert found(tmp_path / "isic9/Train", tmp_path / "isic9/Test", tmp_path / "isic9/valid") == wanted


def test_folders_above_the_source_say_nothing(tmp_path: Path, lesion: Lesion) -> None:
    """A project called melanoma in a folder called test: its unlabelled images are no melanomas of a test split."""
    source = tmp_path / "test" / "melanoma" / "archive"
    fill(source, {"nevus/1.jpg": lesion("NV", 1), "unsorted/2.jpg": lesion("MEL", 2)})
    frame = build([str(source)], unlabelled=True)
    assert by_id(frame, "label") == {"1": "NV", "2": None}
    assert set(frame["split"]) == {None}


def test_a_bucket_may_be_called_anything(s3: LocalS3, lesion: Lesion) -> None:
    fill(s3.root, {"melanoma/nevus/1.jpg": lesion("NV", 1), "melanoma/x/2.jpg": lesion("MEL", 2)})
    frame = build(["s3://melanoma"], unlabelled=True)
    assert by_id(frame, "label") == {"1": "NV", "2": None}
    assert set(frame["source"]) == {"melanoma"}


def test_the_nearest_folder_decides(tmp_path: Path, lesion: Lesion) -> None:
    fill(tmp_path, {"melanoma/nevus/1.jpg": lesion("NV", 1), "bkl/2.jpg": lesion("SK", 2)})
    assert by_id(build([str(tmp_path)]), "label") == {"1": "NV", "2": "BKL|SK"}


def test_sources_that_are_none(tmp_path: Path, lesion: Lesion) -> None:
    assert refusal(tmp_path / "none").startswith(f"The source {tmp_path}/none cannot be read: ")
    assert refusal(tmp_path) == f"The source {tmp_path} holds no images."
    fill(tmp_path, {"a/1.jpg": lesion()})
    assert refusal(tmp_path).startswith(
        f"No folder in {tmp_path} is named after a diagnosis: there are 'a' (1). Expected"
    )
    assert "of a kind that is not read here" in refusal("https://example.org/archive")


def test_a_bucket_that_is_none(s3: LocalS3) -> None:
    assert "The bucket of s3://no-such-bucket/x does not exist." in refusal("s3://no-such-bucket/x")


def test_what_cannot_be_read_stays_with_its_reason(tmp_path: Path, lesion: Lesion) -> None:
    good = lesion("MEL", 1)
    fill(
        tmp_path,
        {
            "nevus/good.jpg": good,
            "nevus/empty.jpg": b"",
            "nevus/cut.jpg": good[: len(good) // 2],
            "nevus/Thumbs.db": b"\xd0\xcf\x11\xe0",
            "nevus/web page.jpg": b"<html>404</html>",
        },
    )
    (tmp_path / "nevus" / "dangling.jpg").symlink_to("nowhere")
    os.mkfifo(tmp_path / "nevus" / "fifo.jpg")
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/nevus/\xff.jpg")).write_bytes(good)
    frame = build([str(tmp_path)])
    assert len(frame) == 8
    errors = by_id(frame, "error")
    assert errors.pop("good") is None
    assert all(errors.values())
    assert "empty" in errors["empty"]
    assert "cut short" in errors["cut"]
    assert "Windows thumbnail" in errors["Thumbs"]
    assert "HTML" in errors["web page"]
    assert "does not exist" in errors["dangling"]
    assert "not a regular file" in errors["fifo"]
    broken = frame[frame["image_id"] == "cut"].iloc[0]
    assert broken["sha256"] == hashlib.sha256(good[: len(good) // 2]).hexdigest()
    assert broken["width"] is None
    assert len(schema.usable(frame, "all")) == 1
    # It can be written, read, split.
    schema.write(str(tmp_path / "c.parquet"), split(frame, 0.0, 0.0, seed=0))
    assert schema.read(str(tmp_path / "c.parquet"))["split"].tolist().count("train") == 1


def test_a_class_whose_folder_is_a_link_is_not_lost(tmp_path: Path, lesion: Lesion) -> None:
    fill(tmp_path, {"elsewhere/1.jpg": lesion("NV", 1), "set/melanoma/2.jpg": lesion("MEL", 2)})
    (tmp_path / "set" / "nevus").symlink_to(tmp_path / "elsewhere")
    told = refusal(tmp_path / "set")
    assert f"has linked folders, which are not followed: {tmp_path}/set/nevus. Put the folders themselves" in told
    # The advice works.
    subprocess.run(["cp", "-rL", tmp_path / "set", tmp_path / "copy"], check=True)
    assert by_id(build([str(tmp_path / "copy")]), "label") == {"1": "NV", "2": "MEL"}


# --- manifests -------------------------------------------------------------------------------------------------------


@pytest.fixture
def images(tmp_path: Path, lesion: Lesion) -> Path:
    """Three pictures: ``set/images/ISIC_000000N.jpg``."""
    return fill(tmp_path / "set", {f"images/ISIC_000000{n}.jpg": lesion("MEL", n) for n in range(3)})


def test_a_file_over_the_limit_has_no_size_and_no_digest(tmp_path: Path, lesion: Lesion) -> None:
    fill(tmp_path, {"nevus/a.jpg": lesion("NV", 1)})
    with (tmp_path / "nevus" / "b.jpg").open("wb") as file:
        file.truncate(DEFAULT_LIMITS.max_bytes + 1)
    frame = build([str(tmp_path)]).set_index("image_id")
    assert frame.loc["a", "error"] is None
    assert "more than 67,108,864 bytes" in str(frame.loc["b", "error"])
    assert (frame.loc["b", "size_bytes"], frame.loc["b", "sha256"]) == (None, None)  # only a part of it was read


def test_a_csv_manifest_names_paths_relative_to_itself(images: Path, lesion: Lesion) -> None:
    fill(images, {"odd, name #1%20 é.jpg": lesion("BCC", 9)})
    fill(
        images,
        {
            "list/manifest.csv": "label,path,image_id,lesion_id,patient_id,split\n"
            "nevus,../images/ISIC_0000000.jpg,,L1,007,train\n"
            f"MEL,{images}/images/ISIC_0000001.jpg,my id,,,Test\n"
            f" ,file://{images}/images/ISIC_0000002.jpg,,,,\n"
            'scc|ak,"../odd, name #1%20 é.jpg",,,8,val\n'.replace("scc|ak", "SCC|AK")
        },
    )
    frame = build([str(images / "list" / "manifest.csv")])
    assert set(frame["error"]) == {None}
    assert frame["image_id"].tolist() == ["ISIC_0000000", "my id", "ISIC_0000002", "odd, name #1%20 é"]
    assert frame["label"].tolist() == ["NV", "MEL", None, "AK|SCC"]
    assert frame["split"].tolist() == ["train", "test", None, "validation"]
    assert frame["lesion_id"].tolist() == ["L1", None, None, None]
    assert frame["patient_id"].tolist() == ["007", None, None, "8"]
    assert frame["uri"].tolist()[0] == f"{images}/images/ISIC_0000000.jpg"
    assert set(frame["source"]) == {"list"}


def test_a_manifest_from_a_spreadsheet(images: Path) -> None:
    """A byte order mark, Windows line ends, a comma at the end of every line, capitals in the name."""
    fill(
        images,
        {"Manifest.CSV": "\ufeffpath,label\r\nimages/ISIC_0000000.jpg,nevus,\r\n./images/ISIC_0000001.jpg,mel,\r\n"},
    )
    frame = build([str(images / "Manifest.CSV")])
    assert by_id(frame, "label") == {"ISIC_0000000": "NV", "ISIC_0000001": "MEL"}
    assert set(frame["error"]) == {None}


def test_a_parquet_manifest_of_any_types(images: Path) -> None:
    table = pd.DataFrame(
        {
            "file_name": pd.array([f"images/ISIC_000000{n}.jpg" for n in range(3)], dtype="string"),
            "label": pd.Categorical(["nevus", None, "melanoma"]),
            "patient_id": pd.array([7, None, 9], dtype="Int64"),
            "lesion_id": ["a", None, float("nan")],
        }
    )
    table.to_parquet(images / "m.parquet")
    frame = build([str(images / "m.parquet")])
    assert frame["label"].tolist() == ["NV", None, "MEL"]
    assert frame["patient_id"].tolist() == ["7", None, "9"]
    assert frame["lesion_id"].tolist() == ["a", None, None]
    assert set(frame["error"]) == {None}


def test_ham10000_metadata(images: Path) -> None:
    header = "lesion_id,image_id,dx,dx_type,age,sex,localization\n"
    fill(
        images,
        {
            "metadata.csv": header
            + "HAM_1,ISIC_0000000,bkl,histo,80.0,male,scalp\n"
            + "HAM_1,ISIC_0000001,akiec,histo,80.0,male,scalp\n"
            + "HAM_2,ISIC_0000002,nv,follow_up,,,\n"
            + "HAM_3,ISIC_0000003,mel,histo,,,\n"
        },
    )
    frame = build([str(images / "metadata.csv")])
    assert by_id(frame, "label") == {
        "ISIC_0000000": "BKL|SK", "ISIC_0000001": "AK|SCC", "ISIC_0000002": "NV", "ISIC_0000003": "MEL",
    }  # fmt: skip
    assert frame["lesion_id"].tolist() == ["HAM_1", "HAM_1", "HAM_2", "HAM_3"]
    assert frame["group_id"].tolist()[0] == frame["group_id"].tolist()[1] != frame["group_id"].tolist()[2]
    assert frame["uri"].tolist()[:3] == [f"{images}/images/ISIC_000000{n}.jpg" for n in range(3)]
    assert frame["error"].tolist() == [None, None, None, f"No image of this id lies below {images}."]


def test_isic_2019_ground_truth(images: Path) -> None:
    (images / "images" / "ISIC_0000002.jpg").rename(images / "images" / "ISIC_0000002_downsampled.jpg")
    fill(
        images,
        {
            "ISIC_2019_Training_GroundTruth.csv": "image,MEL,NV,BCC,AK,BKL,DF,VASC,SCC,UNK\n"
            "ISIC_0000000,1.0,0.0,0.0,0.0,0.0,0.0,0.0,0.0,0.0\n"
            "ISIC_0000001,0.0,0.0,0.0,0.0,1.0,0.0,0.0,0.0,0.0\n"
            "ISIC_0000002_downsampled,0,0,0,1,0,0,0,0,0\n"
            "ISIC_0000003,0,0,0,0,0,0,0,0,1\n"
        },
    )
    frame = build([str(images / "ISIC_2019_Training_GroundTruth.csv")])
    assert by_id(frame, "label") == {
        "ISIC_0000000": "MEL", "ISIC_0000001": "BKL|SK", "ISIC_0000002": "AK", "ISIC_0000003": None,
    }  # fmt: skip
    assert frame["error"].notna().tolist() == [False, False, False, True]


@pytest.mark.parametrize(
    ("header", "words", "labels"),
    [
        # ISIC 2017 with the labels of 2019, where BKL is the challenge's word.
        ("image_id,melanoma,isic2019_label", ["1,MEL", "0,BKL", "0,"], ["MEL", "BKL|SK", NOT_MELANOMA]),
        # An archive of originals.
        ("image_id,diagnosis,sex", ["nevus,f", "melanoma,", "unknown,m"], ["NV", "MEL", None]),
        ("image_name,patient_id,diagnosis", ["P1,melanoma", "P1,nevus", "P2,unknown"], ["MEL", "NV", None]),
        ("isic_id,diagnosis", ["seborrheic keratosis", "basal cell carcinoma", ""], ["SK", "BCC", None]),
        # ISIC 2018.
        (
            "image,MEL,NV,BCC,AKIEC,BKL,DF,VASC",
            ["0,0,0,1,0,0,0", "0,0,0,0,1,0,0", "0,1,0,0,0,0,0"],
            ["AK|SCC", "BKL|SK", "NV"],
        ),
    ],
)
def test_metadata_of_other_sets(images: Path, header: str, words: list[str], labels: list[str | None]) -> None:
    rows = [f"ISIC_000000{n},{rest}" for n, rest in enumerate(words)]
    fill(images, {"metadata.csv": "\n".join([header, *rows])})
    frame = build([str(images / "metadata.csv")])
    assert frame["label"].tolist() == labels
    assert set(frame["error"]) == {None}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            "path,label\nimages/ISIC_0000000.jpg,mole\n",
            "1 image has a word for the diagnosis that is not known here: 'mole' (1).",
        ),
        ("path,label\nx.jpg,\nx.jpg,mole\ny.jpg,nodule\nz.jpg,mole\n", "3 images have a word for the diagnosis"),
        ("path,label\nx.jpg,\nx.jpg,mole\ny.jpg,nodule\nz.jpg,mole\n", "'mole' (2), 'nodule' (1)."),
        ("path,label,split\nx.jpg,nevus,holdout\n", "has the split 'holdout': use train, validation or test"),
        ("name,label\nx.jpg,nevus\n", "has neither a column 'path' nor 'image_id': its columns are name, label."),
        ("path,class\nx.jpg,nevus\n", "has no column 'label'"),
        ("image,MEL,NV\nx,yes,no\n", "has 'yes' in the column MEL: use 1 or 0"),
        ("path,label\nhttps://example.org/x.jpg,nevus\n", "of a kind that is not read here"),
        ("path,label\n", "holds no images"),
        ("", "is not a readable CSV table"),
        ("\xff\xfe\x00", "neither a column"),
        ('path,label\n"x', "is not a readable CSV table"),
    ],
)
def test_mistakes_in_a_manifest_are_named(images: Path, text: str, words: str) -> None:
    fill(images, {"m.csv": text})
    sentence = refusal(images / "m.csv")
    assert words in sentence
    assert "\n" not in sentence


def test_files_that_are_no_manifest(tmp_path: Path) -> None:
    for name, words in {"m.csv": "is not a readable CSV table", "m.parquet": "is not a Parquet file"}.items():
        fill(tmp_path, {name: b"PAR1\xff\xfe\0\x80"})
        assert words in refusal(tmp_path / name)
        assert "does not exist" in refusal(tmp_path / "none" / name)


def test_rows_without_an_image_stay_with_their_reason(images: Path, tmp_path: Path) -> None:
    fill(
        images,
        {
            "m.csv": "path,label\nimages/none.jpg,nevus\n,melanoma\nimages,nevus\na\0b.jpg,nevus\n"
            "images/ISIC_0000000.jpg,\n"
        },
    )
    frame = build([str(images / "m.csv")])
    assert frame["error"].notna().tolist() == [True, True, True, True, False]
    assert "does not exist" in frame["error"][0]
    assert "has no path" in frame["error"][1]
    schema.write(str(tmp_path / "c.parquet"), frame)
    assert schema.read(str(tmp_path / "c.parquet")).to_dict("records") == frame.to_dict("records")


def test_several_sources_are_one_catalog(images: Path, lesions: Path) -> None:
    fill(images, {"m.csv": "path,label\nimages/ISIC_0000000.jpg,nevus\n"})
    shutil.copy(lesions / "nevus" / "NV-0.jpg", images / "images" / "ISIC_0000000.jpg")
    frame = build([str(images / "m.csv"), str(lesions)])
    assert len(frame) == 37
    assert frame["source"].value_counts().to_dict() == {"lesions": 36, "set": 1}
    assert frame["group_id"].nunique() == 36  # the copy has the bytes of the other


# --- S3 --------------------------------------------------------------------------------------------------------------


def test_the_place_of_the_images_does_not_matter(
    lesions: Path, tmp_path: Path, s3: LocalS3, bucket: str, lesion: Lesion
) -> None:
    """The same files, in a folder and in a bucket: the same groups and, by one seed, the same split."""
    odd = {"nevus/a #1?.jpg": lesion("NV", 50), "nevus/b.jpg": lesion("NV", 50), "melanoma/broken 100%.jpg": b"x"}
    shutil.copytree(lesions, tmp_path / "set")
    fill(tmp_path / "set", dict(odd))
    shutil.copytree(tmp_path / "set", s3.root / bucket / "set")
    local, remote = build([str(tmp_path / "set")]), build([f"s3://{bucket}/set/"])
    assert remote["uri"].str.startswith(f"s3://{bucket}/set/").all()
    assert len(local) == len(remote) == 39
    assert by_id(local, "group_id") == by_id(remote, "group_id")
    assert by_id(split(local, 0.25, 0.25, 3), "split") == by_id(split(remote, 0.25, 0.25, 3), "split")
    assert schema.fingerprint(local) == schema.fingerprint(remote)


def test_a_manifest_in_a_bucket(s3: LocalS3, bucket: str, images: Path) -> None:
    shutil.copytree(images, s3.root / bucket / "set")
    fill(
        s3.root / bucket,
        {
            "set/list/m.csv": "path,label\n"
            f"../images/ISIC_0000000.jpg,nv\ns3://{bucket}/set/images/ISIC_0000001.jpg,mel\n"
            "./../images/./ISIC_0000002.jpg,bcc\nnone.jpg,nv\n",
            "set/metadata.csv": "image_id,dx\nISIC_0000002,df\nISIC_0000009,df\n",
        },
    )
    frame = build([f"s3://{bucket}/set/list/m.csv", f"s3://{bucket}/set/metadata.csv"])
    assert frame["uri"].tolist()[:3] == [f"s3://{bucket}/set/images/ISIC_000000{n}.jpg" for n in range(3)]
    assert frame["error"].notna().tolist() == [False, False, False, True, False, True]


# --- real images -----------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not os.environ.get("MELANOMA_DATA"), reason="MELANOMA_DATA names no real images")
def test_200_images_of_ham10000(tmp_path: Path) -> None:
    folder = Path(os.environ["MELANOMA_DATA"]) / "ham10000"
    table = pd.read_csv(folder / "metadata.csv", nrows=200)
    table["path"] = [f"{folder}/images/{image_id}.jpg" for image_id in table["image_id"]]
    table.to_csv(tmp_path / "m.csv", index=False)
    frame = build([str(tmp_path / "m.csv")])
    assert frame["error"].isna().all()
    assert set(zip(frame["width"], frame["height"], strict=True)) == {(200, 150)}
    assert set(frame["label"]) <= {"AK|SCC", "BCC", "BKL|SK", "DF", "MEL", "NV", "VASC"}
    # Photographs of one lesion are one group; those of two lesions are two, but for few near-duplicates.
    assert (frame.groupby("lesion_id")["group_id"].nunique() == 1).all()
    assert 0 <= table["lesion_id"].nunique() - frame["group_id"].nunique() <= 2


def test_diagnoses_that_are_no_class_here_are_images_without_a_label(images: Path) -> None:
    heard: list[str] = []
    for column in ("diagnosis", "label"):
        fill(images, {"m.csv": f"path,{column}\nx.jpg,lentigo NOS\nimages/ISIC_0000000.jpg,nevus\n"})
        assert build([str(images / "m.csv")], say=heard.append)["label"].tolist() == [None, "NV"]
    assert heard == ["1 image has another diagnosis than the nine, and so no label: 'lentigo NOS' (1)."] * 2


# --- what metadata tables know of images ------------------------------------------------------------------------------


def test_metadata_by_isic_id_joins_photographs_of_one_lesion(tmp_path: Path, lesion: Lesion) -> None:
    for name in ("ISIC_0000001", "ISIC_0000002_downsampled", "ISIC_0000003", "7"):
        path = tmp_path / "set" / "melanoma" / f"{name}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(lesion("MEL", seed=len(name) + int(name.split("_")[1] if "_" in name else 9)))
    table = tmp_path / "metadata.csv"
    table.write_text(
        "image_id,lesion_id,age_approx,sex,localization\n"
        "ISIC_0000001,HAM_1,55.0,female,back\n"
        "ISIC_0000002,HAM_1,,unknown,back\n"
        "ISIC_0000009,HAM_2,80,male,scalp\n"
        "7,HAM_1,20,male,foot\n"  # no ISIC id: another set's seven
    )
    frame = build([str(tmp_path / "set")], metadata=[str(table)])
    first, second, third, seven = "ISIC_0000001", "ISIC_0000002", "ISIC_0000003", "7"
    assert by_id(frame, "lesion_id") == {first: "HAM_1", second: "HAM_1", third: None, seven: None}
    assert by_id(frame, "age") == {first: 55.0, second: None, third: None, seven: None}
    assert by_id(frame, "sex") == {first: "female", second: None, third: None, seven: None}
    groups = by_id(frame, "group_id")
    assert groups[first] == groups[second]
    assert len(set(groups.values())) == 3


def test_what_a_source_says_itself_is_not_overwritten(images: Path, tmp_path: Path) -> None:
    manifest = images / "own.csv"
    manifest.write_text("image_id,label,lesion_id,sex\nISIC_0000001,MEL,own,male\n")
    (tmp_path / "table.csv").write_text("image_id,lesion_id,sex,age\nISIC_0000001,other,female,40\n")
    row = build([str(manifest)], metadata=[str(tmp_path / "table.csv")]).iloc[0]
    assert (row["lesion_id"], row["sex"], row["age"]) == ("own", "male", 40.0)


@pytest.mark.parametrize(
    ("text", "words"),
    [("image_id,colour\nISIC_0000001,red\n", "needs a column image_id and one of lesion_id"), (None, "cannot be read")],
)
def test_metadata_that_is_of_no_use(lesions: Path, tmp_path: Path, text: str | None, words: str) -> None:
    if text:
        (tmp_path / "table.csv").write_text(text)
    with pytest.raises(InputError, match=words):
        build([str(lesions)], metadata=[str(tmp_path / "table.csv")])


def test_a_dicom_file_says_itself_of_whom_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "nevus").mkdir()
    data = dicom_file([draw_lesion("NV", 1, 90, 90)], PatientID="4711", BodyPartExamined="BACK")
    (tmp_path / "nevus" / "a.dcm").write_bytes(data)
    frame = build([str(tmp_path)])
    (row,) = frame.to_dict("records")
    assert (row["patient_id"], row["anatomic_site"], row["error"]) == ("4711", "BACK", None)
    monkeypatch.setenv(privacy.KEY, "0123456789abcdef")
    pseudonym = privacy.from_environment(False).pseudonym("4711")
    assert build([str(tmp_path)])["patient_id"].tolist() == [pseudonym]
    (tmp_path / "manifest.csv").write_text("path,label,patient_id\nnevus/a.dcm,nevus,4711\n")
    assert build([str(tmp_path / "manifest.csv")])["patient_id"].tolist() == [pseudonym]


def test_a_dicom_file_of_nobody(tmp_path: Path) -> None:
    (tmp_path / "nevus").mkdir()
    for number, word in enumerate(["ANONYMOUS", "0", '"Unknown"']):
        data = dicom_file([draw_lesion("NV", number, 90, 90)], PatientID=word)
        (tmp_path / "nevus" / f"{number}.dcm").write_bytes(data)
    (tmp_path / "m.csv").write_text("path,label,patient_id\nnevus/0.dcm,nevus,n/a\nnevus/1.dcm,nevus,7\n")
    assert build([str(tmp_path / "nevus")], unlabelled=True)["patient_id"].tolist() == [None] * 3
    frame = build([str(tmp_path / "m.csv")])
    assert frame["patient_id"].tolist() == [None, "7"]
    assert frame["group_id"].nunique() == 2
