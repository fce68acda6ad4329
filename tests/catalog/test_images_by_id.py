"""Which file is the picture of an id: never decided by the order of listing."""

from collections.abc import Callable
from pathlib import Path

import pytest

from melanoma.catalog import folders
from melanoma.catalog.build import build
from melanoma.demo.archive_files import dicom_file
from melanoma.demo.lesions import draw_lesion
from melanoma.errors import InputError

Lesion = Callable[..., bytes]


def pictures(tmp_path: Path, files: dict[str, bytes], ids: tuple[str, ...] = ("ISIC_0000001",)) -> list[str | None]:
    """The files that a table of these ids leads to."""
    for name, data in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(data)
    (tmp_path / "table.csv").write_text("\n".join(["image_id,label", *(f"{name},nevus" for name in ids)]))
    uris = build([str(tmp_path / "table.csv")])["uri"]
    return [None if uri is None else uri.removeprefix(f"{tmp_path}/") for uri in uris]


@pytest.mark.parametrize(
    ("picture", "others"),
    [
        ("images/ISIC_0000001.jpg", ["masks/ISIC_0000001.png"]),
        ("images/ISIC_0000001.jpg", ["a mask/ISIC_0000001.png", "z/Segmentations/ISIC_0000001.png"]),
        ("ISIC_0000001.jpg", ["HAM10000_segmentations_lesion_tschandl/ISIC_0000001.png"]),
        ("ISIC_0000001.jpg", ["ISIC2017_Training_Part1_GroundTruth/ISIC_0000001.png", "ground truth/ISIC_0000001.png"]),
        ("images/ISIC_0000001.jpg", ["thumbs/ISIC_0000001.jpg", "images/@eaDir/ISIC_0000001.jpg"]),
        ("images/ISIC_0000001.jpg", ["images/ISIC_0000001_downsampled.jpg", "a/ISIC_0000001_downsampled.jpg"]),
        ("z/ISIC_0000001_downsampled.jpg", ["masks/ISIC_0000001.png"]),
        ("images/ISIC_0000001.jpg", ["images/ISIC_0000001.xml", "z/ISIC_0000001.json", "a/ISIC_0000001.yaml"]),
        ("images/ISIC_0000001.JPG", ["a/ISIC_0000001.pdf", "z/ISIC_0000001"]),
    ],
)
def test_the_picture_wins_wherever_it_lies(tmp_path: Path, lesion: Lesion, picture: str, others: list[str]) -> None:
    files = {picture: lesion("NV", 1)}
    for number, name in enumerate(others):
        is_image = name.lower().endswith((".png", ".jpg"))
        files[name] = lesion("NV", 2 + number, "PNG") if is_image else b"<about>a picture</about>"
    assert pictures(tmp_path, files) == [picture]


@pytest.mark.parametrize(
    "names", [("a/ISIC_0000001.jpg", "b/ISIC_0000001.jpg"), ("ISIC_0000001.jpg", "ISIC_0000001.png")]
)
def test_two_pictures_of_one_id_are_both_named(tmp_path: Path, lesion: Lesion, names: tuple[str, ...]) -> None:
    with pytest.raises(InputError, match="Several pictures bear the same id") as caught:
        pictures(tmp_path, {name: lesion("NV", number) for number, name in enumerate(names)})
    assert all(f"{tmp_path}/{name}" in str(caught.value) for name in names)


def test_copies_of_a_picture_are_no_ambiguity(tmp_path: Path, lesion: Lesion) -> None:
    """Kaggle's HAM10000 has every folder twice."""
    files = {f"{folder}/ISIC_0000001.jpg": lesion("NV", 1) for folder in ("part_1", "PART_1")}
    assert pictures(tmp_path, files) == ["PART_1/ISIC_0000001.jpg"]


def test_files_without_an_ending_are_known_by_their_bytes(tmp_path: Path) -> None:
    dicom = dicom_file([draw_lesion("NV", 1, 90, 90)])
    files = {"1.2.840.113": dicom, "ISIC_0000002": dicom, "ISIC_0000002.txt": b"notes"}
    assert pictures(tmp_path, files, ("1.2.840.113", "ISIC_0000002")) == ["1.2.840.113", "ISIC_0000002"]


def test_ids_may_have_the_ending_of_a_file(tmp_path: Path, lesion: Lesion) -> None:
    files = {"imgs_part_1/PAT_8_15_820.png": lesion("NV", 1, "PNG")}
    assert pictures(tmp_path, files, ("PAT_8_15_820.png",)) == ["imgs_part_1/PAT_8_15_820.png"]


def test_masks_and_thumbnails_in_class_folders_are_left_out(tmp_path: Path, lesion: Lesion) -> None:
    names = ["1.jpg", "1_segmentation.png", "1_mask.png", "thumbnails/1.jpg", "._1.jpg", "1_superpixels.png", "2.jpg"]
    for number, name in enumerate(names):
        path = tmp_path / "set" / "nevus" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(lesion("NV", number))
    heard: list[str] = []
    frame = build([str(tmp_path / "set")], say=heard.append)
    assert sorted(frame["image_id"]) == ["1", "2"]
    assert heard == [f"5 files in {tmp_path}/set are left out: masks, thumbnails and the like."]


def left_out(tmp_path: Path, names: tuple[str, ...], lesion: Lesion) -> set[str]:
    """What of these files in class folders is no picture, and is said to be left out."""
    for number, name in enumerate(names):
        path = tmp_path / "set" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(lesion("NV", number))
    rows, count = folders.rows(str(tmp_path / "set"))
    out = set(names) - {row["uri"].removeprefix(f"{tmp_path}/set/") for row in rows}
    assert count == len(out)
    return out


def test_what_lies_beside_its_picture_is_left_out(tmp_path: Path, lesion: Lesion) -> None:
    beside = (
        *(
            "X_GT.png",
            "X GT.png",
            "X-gt.png",
            "X mask.png",
            "X(mask).png",
            "X (mask).png",
            "X.mask.png",
            "X_mask_1.png",
        ),
        *("X_Mask1.png", "X_segmented.png", "X_annotation.png", "X_label.png", "X_overlay.jpg", "X_contour.png"),
        *("X_heatmap.png", "benign (1)_mask_1.png", "X_lesion.bmp", "X_roi.png", "X_Ground Truth.png"),
    )
    files = (*("nevus/X.jpg", "nevus/benign (1).png"), *(f"nevus/{name}" for name in beside))
    assert left_out(tmp_path, files, lesion) == {f"nevus/{name}" for name in beside}


def test_folders_of_masks_in_class_folders_are_left_out(tmp_path: Path, lesion: Lesion) -> None:
    masks = {
        *("nevus/GT/1.png", "nevus/seg/1.png", "nevus/overlay/1.jpg", "nevus/Heatmaps/1.jpg"),
        *("nevus/IMD003/IMD003_lesion/IMD003_lesion.bmp", "nevus/IMD003/IMD003_roi/IMD003_R1_Label3.bmp"),
    }
    files = ("nevus/1.jpg", "nevus/IMD003/IMD003_Dermoscopic_Image/IMD003.bmp", *masks)
    assert left_out(tmp_path, files, lesion) == masks


def test_no_picture_is_taken_for_a_mask_by_a_name_alone(tmp_path: Path, lesion: Lesion) -> None:
    files = (
        *(
            "nevus/7_label.jpg",
            "nevus/7 overlay.jpg",
            "nevus/GT.jpg",
            "nevus/8.jpg",
            "nevus/8_lesion.jpg",
            "nevus/8_2.jpg",
        ),
        *("nevus/clinic GT/1.jpg", "nevus/roi/1.jpg", "nevus/P7/P7_lesion/close.jpg", "nevus/8_magnet.jpg"),
    )
    assert left_out(tmp_path, files, lesion) == set()


def test_a_folder_of_a_finger_is_no_folder_of_thumbnails(tmp_path: Path, lesion: Lesion) -> None:
    path = tmp_path / "set" / "melanoma" / "thumb" / "1.jpg"
    path.parent.mkdir(parents=True)
    path.write_bytes(lesion("MEL", 0))
    assert build([str(tmp_path / "set")])["label"].tolist() == ["MEL"]


def test_metadata_that_says_two_things_of_an_image_is_refused(tmp_path: Path, lesion: Lesion) -> None:
    (tmp_path / "set" / "nevus").mkdir(parents=True)
    (tmp_path / "set" / "nevus" / "ISIC_0000001.jpg").write_bytes(lesion("NV", 1))
    table = tmp_path / "metadata.csv"
    table.write_text("image_id,lesion_id,age\nISIC_0000001,L1,\nISIC_0000001,L1,50\n")
    (row,) = build([str(tmp_path / "set")], metadata=[str(table)]).to_dict("records")
    assert (row["lesion_id"], row["age"]) == ("L1", 50.0)
    table.write_text("image_id,lesion_id\nISIC_0000001,L1\nISIC_0000001,L2\n")
    with pytest.raises(InputError, match="says two things of ISIC_0000001: its lesion_id is L1 and L2"):
        build([str(tmp_path / "set")], metadata=[str(table)])
