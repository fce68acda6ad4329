"""Faults planted in generated data, from files to findings: each is found, and nothing else is."""

import csv
import io
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

from melanoma.catalog import audit, schema
from melanoma.catalog.build import build
from melanoma.demo.lesions import draw_lesion
from melanoma.taxonomy import CODES

SIZE = 128  # pixels a side

Row = dict[str, str]


def encoded(picture: Image.Image, format: str = "JPEG", quality: int = 90) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, format, **({"quality": quality} if format == "JPEG" else {}))
    return buffer.getvalue()


def opened(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data)).convert("RGB")


def cropped(picture: Image.Image, left: float, top: float, right: float, bottom: float) -> Image.Image:
    width, height = picture.size
    return picture.crop(
        (round(left * width), round(top * height), round((1 - right) * width), round((1 - bottom) * height))
    )


def exposed(picture: Image.Image, brightness: float, contrast: float) -> Image.Image:
    return ImageEnhance.Contrast(ImageEnhance.Brightness(picture).enhance(brightness)).enhance(contrast)


def scaled(picture: Image.Image, share: float) -> Image.Image:
    return picture.resize((round(share * picture.width), round(share * picture.height)), Image.Resampling.LANCZOS)


COPIES: dict[str, Callable[[Image.Image], bytes]] = {
    "recompressed": lambda picture: encoded(picture, quality=70),
    "mirrored": lambda picture: encoded(ImageOps.mirror(picture)),
    "upside down": lambda picture: encoded(ImageOps.flip(picture)),
    "rotated": lambda picture: encoded(picture.transpose(Image.Transpose.ROTATE_90)),
    "rotated back": lambda picture: encoded(picture.transpose(Image.Transpose.ROTATE_270)),
    "scaled": lambda picture: encoded(scaled(picture, 0.8)),
    "cropped": lambda picture: encoded(cropped(picture, 0.025, 0.025, 0.025, 0.025)),
    "cropped at a corner": lambda picture: encoded(cropped(picture, 0.05, 0.05, 0, 0)),
    "brighter": lambda picture: encoded(exposed(picture, 1.15, 1)),
    "darker, more contrast": lambda picture: encoded(exposed(picture, 0.85, 1.15)),
    "as PNG": lambda picture: encoded(picture, "PNG"),
}


@dataclass
class Planted:
    """A folder of generated lesions with a manifest and a reference table, and what was planted in it."""

    folder: Path
    rows: dict[str, Row] = field(default_factory=dict)
    faults: dict[str, set[str]] = field(default_factory=dict)  # of each the paths of the images

    def add(self, path: str, data: bytes, label: str, split: str, **columns: str) -> str:
        (self.folder / path).parent.mkdir(parents=True, exist_ok=True)
        (self.folder / path).write_bytes(data)
        self.rows[path] = {"path": path, "label": label, "split": split, **columns}
        return path

    def lesions(self, count: int, first: int = 0) -> list[str]:
        """That many pictures of no two alike, of all diagnoses in turn; of four one is in test."""
        paths = []
        for number in range(first, first + count):
            code = CODES[number % len(CODES)]
            data = encoded(Image.fromarray(draw_lesion(code, number, SIZE, SIZE)))
            split = "test" if number % 4 == 3 else "train"
            paths.append(self.add(f"{code}/ISIC_{number:07d}.jpg", data, code, split))
        return paths

    def audit(self, reference: dict[str, str] | None = None) -> dict[str, Any]:
        with (self.folder / "manifest.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, ["path", "label", "split", "lesion_id", "patient_id"])
            writer.writeheader()
            writer.writerows(self.rows.values())
        catalog = str(self.folder / "catalog.parquet")
        schema.write(catalog, build([str(self.folder / "manifest.csv")]))
        frame, repeats = audit.read([catalog])
        return audit.examine(frame, reference, repeats)

    def of(self, finding: dict[str, Any]) -> set[str]:
        return {str(Path(image["uri"]).relative_to(self.folder)) for image in finding["images"]}


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Planted, dict[str, Any]]:
    """300 images, a fault of each kind among them, and the audit of them. Each fault has images of its own."""
    planted = Planted(tmp_path_factory.mktemp("planted"))
    train = iter([path for path in planted.lesions(300) if planted.rows[path]["split"] == "train"])

    def plant(fault: str, name: str, change: Callable[[bytes], bytes], wrong: bool = False, **columns: str) -> None:
        """A copy of the next image: in test, or, with a wrong label, in train."""
        original = next(train)
        planted.rows[original] |= columns
        label = planted.rows[original]["label"]
        if wrong:
            label = "NV" if label == "MEL" else "MEL"
        data = change((planted.folder / original).read_bytes())
        split = "train" if wrong else "test"
        copy = planted.add(f"copies/{name.format(Path(original).stem)}.jpg", data, label, split, **columns)
        planted.faults[fault] = {original, copy}

    def other(seed: int) -> bytes:
        return encoded(Image.fromarray(draw_lesion("NV", 100_000 + seed, SIZE, SIZE)))

    for name, copy in COPIES.items():
        plant(f"leak: {name}", name, lambda data, copy=copy: copy(opened(data)))  # type: ignore[misc]
    plant("leak: renamed", "renamed", lambda data: data)
    plant("leak: lesion", "lesion", lambda data: other(0), lesion_id="L7")
    plant("leak: patient", "patient", lambda data: other(1), patient_id="P7")
    plant("label: id", "{}", lambda data: other(2), wrong=True)
    plant("label: bytes", "bytes", lambda data: data, wrong=True)
    plant("label: picture", "picture", lambda data: encoded(ImageOps.mirror(opened(data)), quality=80), wrong=True)

    disputed, broken = next(train), next(train)
    reference = {Path(path).stem: row["label"] for path, row in planted.rows.items() if row["label"] in ("BCC", "DF")}
    reference[Path(disputed).stem] = "NV" if planted.rows[disputed]["label"] != "NV" else "MEL"
    (planted.folder / broken).write_bytes((planted.folder / broken).read_bytes()[:1000])
    planted.faults |= {"reference": {disputed}, "undecodable": {broken}}
    return planted, planted.audit(reference)


@pytest.mark.parametrize("fault", [*COPIES, "renamed", "lesion", "patient"])
def test_a_leak_is_found(planted: tuple[Planted, dict[str, Any]], fault: str) -> None:
    there, answer = planted
    wanted = there.faults[f"leak: {fault}"]
    (finding,) = (f for f in answer["leaks"]["findings"] if there.of(f) & wanted)
    assert there.of(finding) == wanted
    reason = {"renamed": "sha256", "lesion": "lesion_id", "patient": "patient_id"}.get(fault, "near-duplicate")
    assert (finding["by"], finding["splits"], finding["chain"]) == ([reason], ["train", "test"], False)
    assert bool(finding["matches"]) == (fault in COPIES)


@pytest.mark.parametrize("reason", ["id", "bytes", "picture"])
def test_a_contradictory_label_is_found(planted: tuple[Planted, dict[str, Any]], reason: str) -> None:
    there, answer = planted
    wanted = there.faults[f"label: {reason}"]
    (finding,) = (f for f in answer["contradictions"]["findings"] if there.of(f) & wanted)
    assert there.of(finding) == wanted
    assert finding["by"] == [{"id": "image_id", "bytes": "sha256", "picture": "near-duplicate"}[reason]]


def test_a_label_against_the_reference_is_found(planted: tuple[Planted, dict[str, Any]]) -> None:
    there, answer = planted
    (finding,) = answer["reference"]["findings"]
    assert there.of(finding) == there.faults["reference"]


def test_a_damaged_file_is_found(planted: tuple[Planted, dict[str, Any]]) -> None:
    there, answer = planted
    (row,) = answer["unreadable"]
    assert {str(Path(row["uri"]).relative_to(there.folder))} == there.faults["undecodable"]


def test_nothing_else_is_found(planted: tuple[Planted, dict[str, Any]]) -> None:
    there, answer = planted
    for kind, word in (("leaks", "leak"), ("contradictions", "label")):
        assert len(answer[kind]["findings"]) == sum(fault.startswith(f"{word}: ") for fault in there.faults)
    (row,) = answer["leaks"]["by_splits"]
    assert row["by"] == {
        "any": len(COPIES) + 3,
        "image_id": 0,
        "sha256": 1,
        "near-duplicate": len(COPIES),
        "lesion_id": 1,
        "patient_id": 1,
        # What the catalog itself has joined.
        "group_id": len(COPIES) + 3,
        "picture only": len(COPIES),
    }


@pytest.mark.slow
def test_2000_images_without_faults_have_no_leak(tmp_path: Path) -> None:
    planted = Planted(tmp_path)
    planted.lesions(2000, first=1000)
    answer = planted.audit()
    assert answer["summary"]["images"] == answer["summary"]["groups"] == 2000
    assert answer["leaks"] == {"by_splits": [], "findings": []}
    assert answer["contradictions"] == {"by_pair": [], "findings": []}
    assert audit.is_clean(answer)


def test_a_class_too_small_is_found(tmp_path: Path) -> None:
    """Pictures of noise will do: 40 of a class are enough for a claim, three are not."""
    planted = Planted(tmp_path)
    for number in range(43):
        noise = np.random.default_rng(number).integers(0, 256, (8, 8, 3), dtype=np.uint8)
        data = encoded(Image.fromarray(noise).resize((64, 64), Image.Resampling.BICUBIC))
        planted.add(f"{number}.jpg", data, "NV" if number < 40 else "VASC", "test")
    small, large = planted.audit()["sizes"][::-1]
    assert (small["label"], small["groups"], small["too_small"]) == ("VASC", 3, True)
    assert (large["label"], large["groups"], large["too_small"]) == ("NV", 40, False)
    assert (round(small["low"], 2), round(small["high"], 2)) == (0.09, 0.99)  # two of three


def test_a_border_that_tells_melanoma_is_found(tmp_path: Path) -> None:
    def border(bordered: bool) -> dict[str, Any]:
        planted = Planted(tmp_path / str(bordered))
        for number in range(120):
            code = "MEL" if number % 2 else "NV"
            pixels = draw_lesion(code, number, SIZE, SIZE)
            if bordered and code == "MEL" and number % 10 != 1:
                y, x = np.mgrid[:SIZE, :SIZE] - (SIZE - 1) / 2
                pixels[np.hypot(x, y) > 0.52 * SIZE] = 3
            planted.add(f"{number}.jpg", encoded(Image.fromarray(pixels)), code, "train")
        (row,) = (row for row in planted.audit()["properties"] if row["name"] == "dark border")
        return row

    told, untold = border(True), border(False)
    assert told["warning"]
    assert told["auc"] > 0.85
    assert not untold["warning"]
    assert untold["auc"] < 0.65
