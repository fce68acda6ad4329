"""melanoma catalog, split and audit: what they answer."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

Run = Callable[..., Any]


def test_catalog_and_split_say_what_they_found(command: Run, lesions: Path, tmp_path: Path) -> None:
    shutil.copytree(lesions, tmp_path / "images")
    (tmp_path / "images" / "melanoma" / "broken.jpg").write_bytes(b"")
    said = command("catalog", tmp_path / "images", "-o", tmp_path / "c.parquet", "--json")
    summary = json.loads(said.out)
    assert (said.code, summary["images"], summary["unusable"], summary["labels"]["MEL"]) == (0, 37, 1, 5)
    said = command("split", tmp_path / "c.parquet", "-o", tmp_path / "s.parquet", "--test", "0.25", "--json")
    summary = json.loads(said.out)
    assert (said.code, sum(summary["splits"].values())) == (0, 36)
    assert summary["splits"]["test"] == 9
    frozen = pd.read_parquet(tmp_path / "s.parquet")
    assert frozen.groupby("group_id")["split"].nunique().max() == 1
    again = command("split", tmp_path / "s.parquet", "-o", tmp_path / "t.parquet", "--test", "0", "--json")
    assert json.loads(again.out)["splits"]["test"] == 9, "a test split that is there is kept"
    table = command("split", tmp_path / "c.parquet", "-o", tmp_path / "s.parquet")
    assert "MEL (melanoma)" in table.out
    assert "Frozen with fingerprint" in table.out


def test_a_catalog_is_repaired_by_rule(command: Run, lesion: Callable[..., bytes], tmp_path: Path) -> None:
    for name, data in {
        "Train/melanoma/ISIC_0000001.jpg": lesion("MEL", 1),
        "Train/nevus/ISIC_0000001.jpg": lesion("MEL", 1),
        "Train/nevus/ISIC_0000002.jpg": lesion("NV", 2),
        "Test/nevus/ISIC_0000003.jpg": lesion("NV", 3),
    }.items():
        (tmp_path / "set" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "set" / name).write_bytes(data)
    (tmp_path / "lesions.csv").write_text("image_id,lesion_id\nISIC_0000002,L1\nISIC_0000003,L1\n")
    (tmp_path / "rules.yaml").write_text(
        "rules:\n"
        "  - {rule: prefer, label: MEL, over: NV, reason: histology}\n"
        "  - {rule: drop_copies, reason: once is enough}\n"
        "  - {rule: set_aside, split: train, when_in: test, reason: same lesion}\n"
    )
    catalog = ("catalog", tmp_path / "set", "-o", tmp_path / "c.parquet")
    assert command(*catalog, "--metadata", tmp_path / "lesions.csv").code == 0
    assert command("audit", tmp_path / "c.parquet").code == 1

    said = command(*catalog, "--metadata", tmp_path / "lesions.csv", "--resolve", tmp_path / "rules.yaml", "--json")
    summary = json.loads(said.out)
    assert (said.code, summary["changed"], summary["dropped"], summary["unlabelled"]) == (0, 2, 1, 0)
    assert "Rule prefer: 1 images changed (histology)." in said.err
    assert command("audit", tmp_path / "c.parquet").code == 0
    said = command(*catalog, "--resolve", tmp_path / "none.yaml")
    assert (said.code, said.out) == (2, "")
    assert "does not exist" in said.err


def test_audit_ends_with_0_on_a_clean_catalog(command: Run, catalogs: Path) -> None:
    said = command("audit", catalogs / "catalog.parquet")
    assert (said.code, said.err) == (0, "")
    assert "36 images: 0 leaks, 0 contradictory labels." in said.out
    said = command("audit", catalogs / "catalog.parquet", "--json")
    assert (said.code, json.loads(said.out)["summary"]["images"]) == (0, 36)


def test_audit_ends_with_1_on_a_planted_leak(command: Run, lesion: Callable[..., bytes], tmp_path: Path) -> None:
    files = {
        "Train/melanoma/a.jpg": lesion("MEL", 1),
        "Train/nevus/b.jpg": lesion("NV", 2),
        "Test/melanoma/c.jpg": lesion("MEL", 1),  # the bytes of a.jpg
        "Test/nevus/d.jpg": lesion("NV", 3),
        "Test/melanoma/e.jpg": lesion("NV", 3),  # the bytes of d.jpg, under another label
    }
    for name, data in files.items():
        (tmp_path / "set" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "set" / name).write_bytes(data)
    assert command("catalog", tmp_path / "set", "-o", tmp_path / "c.parquet").code == 0
    said = command("audit", tmp_path / "c.parquet")
    assert (said.code, said.err) == (1, "")
    assert "5 images: 1 leak, 1 contradictory label." in said.out
    said = command("audit", tmp_path / "c.parquet", "--json")
    assert said.code == 1
    found = json.loads(said.out)
    (leak,), (contradiction,) = found["leaks"]["findings"], found["contradictions"]["findings"]
    assert {Path(image["uri"]).name for image in leak["images"]} == {"a.jpg", "c.jpg"}
    assert (leak["by"], leak["splits"]) == (["sha256"], ["train", "test"])
    assert {Path(image["uri"]).name for image in contradiction["images"]} == {"d.jpg", "e.jpg"}
    assert (contradiction["by"], contradiction["labels"]) == (["sha256"], ["MEL", "NV"])


# --- a hospital's own words -------------------------------------------------------------------------------------------


@pytest.fixture
def hospital(tmp_path: Path, lesion: Callable[..., bytes]) -> Path:
    """A spreadsheet's list of ten images in a hospital's own words, in a folder of its own."""
    words = ["Melanom"] * 3 + ["Naevus"] * 4 + ["Warze", "wart", "BCC"]
    folder = tmp_path / "hospital"
    (folder / "Bilder").mkdir(parents=True)
    lines = ["Datei;Diagnose;Patient"]
    for number, word in enumerate(words):
        (folder / "Bilder" / f"{number}.jpg").write_bytes(lesion("NV", number))
        lines.append(f"Bilder/{number}.jpg;{word};P{number}")
    (folder / "Liste.csv").write_bytes("\r\n".join(["\ufeff" + lines[0], *lines[1:]]).encode())
    return folder


def test_a_map_of_a_hospitals_words_is_drafted_and_used(command: Run, hospital: Path, tmp_path: Path) -> None:
    table, words, out = hospital / "Liste.csv", tmp_path / "map.yaml", tmp_path / "c.parquet"
    said = command("catalog", table, "-o", out)
    assert (said.code, out.exists()) == (2, False)
    assert "its columns are Datei, Diagnose, Patient" in said.err
    assert "--propose" in said.err

    assert command("catalog", table, "--propose", words).code == 0
    draft = words.read_text()
    for line in (
        'path: "Datei"',
        'label: "Diagnose"',
        '"Naevus": NV  # 4 images',
        '"wart": null  # 1 image, another diagnosis',
        '# "Melanom":  # 3 images',
        '# "Warze":  # 1 image',
    ):
        assert f"  {line}\n" in draft
    said = command("catalog", table, "-o", out, "--map", words)
    assert (said.code, out.exists()) == (2, False), "a draft that nobody has completed loses nothing in silence"
    assert "4 images have a word for the diagnosis that is not known here: 'Melanom' (3), 'Warze' (1)." in said.err

    said = command("catalog", table, "-o", out, "--map", words, "--unlabelled", "--json")
    assert (said.code, json.loads(said.out)["labels"], json.loads(said.out)["unlabelled"]) == (
        0,
        {"BCC": 1, "NV": 4},
        5,
    )
    words.write_text(draft.replace('# "Melanom":', '"melanom": MEL').replace('# "Warze":', '"Warze": null'))
    said = command("catalog", table, "-o", out, "--map", words, "--json")
    assert (said.code, json.loads(said.out)["labels"]) == (0, {"BCC": 1, "MEL": 3, "NV": 4})
    assert "2 images have another diagnosis than the nine, and so no label: 'Warze' (1), 'wart' (1)." in said.err
    assert command("catalog", hospital, "-o", out, "--map", words).code == 0, "the folder of the table, too"


@pytest.mark.parametrize("column", ["Diagnose", "Diagnose (Histo)", "Befund"])
def test_a_draft_of_a_table_of_which_no_word_is_known(
    command: Run, hospital: Path, tmp_path: Path, column: str
) -> None:
    (hospital / "Liste.csv").write_text(
        f"Datei;Diagnosedatum;{column};Alter;Geschlecht;MRN\nBilder/0.jpg;2026-03-01;Melanom;40;w;17\n"
        "Bilder/1.jpg;2026-03-01;Muttermal;50;m;18\n"
    )
    assert command("catalog", hospital / "Liste.csv", "--propose", tmp_path / "map.yaml").code == 0
    text = (tmp_path / "map.yaml").read_text()
    for line in (
        *('path: "Datei"', f'label: "{column}"', 'age: "Alter"', 'sex: "Geschlecht"', 'patient_id: "MRN"'),
        *('# "Melanom":  # 1 image', '# "Muttermal":  # 1 image'),
    ):
        assert f"  {line}\n" in text


def test_a_draft_of_one_column_a_class_is_used(command: Run, hospital: Path, tmp_path: Path) -> None:
    table, words, out = hospital / "Liste.csv", tmp_path / "map.yaml", tmp_path / "c.parquet"
    rows = ["1;0;0", "0;1;0", "0;1;0", "0;0;1"]
    lines = [f"Bilder/{number}.jpg;{row}" for number, row in enumerate(rows)]
    table.write_text("\n".join(["Datei;Melanom;Nävus;Basaliom", *lines]))
    assert command("catalog", table, "--propose", words).code == 0
    text = words.read_text()
    assert "not used" not in text
    for word, label, count in (
        ("Melanom", "MEL", "1 image"),
        ("Nävus", "NV", "2 images"),
        ("Basaliom", "BCC", "1 image"),
    ):
        assert f'  # "{word}":  # {count}\n' in text
        text = text.replace(f'# "{word}":', f'"{word}": {label}')
    words.write_text(text)
    said = command("catalog", table, "-o", out, "--map", words, "--json")
    assert (said.code, json.loads(said.out)["labels"]) == (0, {"BCC": 1, "MEL": 1, "NV": 2})


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("columns: {lable: x}", "did you mean 'label'?"),
        (
            "columns: {path: Datai}",
            "says that path is the column 'Datai', and no table has it: there are Datei, Diagnose",
        ),
        ("labels: {x: mole}", "is 'mole': is no diagnosis known here"),
        ("labels: {no: NV}", "is no word for YAML: put it in quotes"),
        ("- 1", "is not a mapping"),
    ],
)
def test_mistakes_in_a_map_are_named(command: Run, hospital: Path, tmp_path: Path, text: str, hint: str) -> None:
    (tmp_path / "map.yaml").write_text(text)
    said = command("catalog", hospital / "Liste.csv", "-o", tmp_path / "c.parquet", "--map", tmp_path / "map.yaml")
    assert (said.code, said.out) == (2, "")
    assert hint in said.err


def test_a_draft_for_folders(command: Run, hospital: Path, tmp_path: Path) -> None:
    shutil.copytree(hospital / "Bilder", tmp_path / "set" / "Muttermal")
    shutil.copytree(hospital / "Bilder", tmp_path / "set" / "Train" / "naevi")
    assert command("catalog", tmp_path / "set", "--propose", tmp_path / "map.yaml").code == 0
    draft = (tmp_path / "map.yaml").read_text()
    assert '  "naevi": NV  # 10 images\n' in draft
    (tmp_path / "map.yaml").write_text(draft.replace('# "Muttermal":', '"Muttermal": NV'))
    said = command("catalog", tmp_path / "set", "-o", tmp_path / "c.parquet", "--map", tmp_path / "map.yaml", "--json")
    assert (said.code, json.loads(said.out)["labels"]) == (0, {"NV": 20})


def test_a_catalog_needs_a_place(command: Run, lesions: Path) -> None:
    said = command("catalog", lesions)
    assert (said.code, said.err) == (2, "melanoma: Say where the catalog is written: --output FILE.\n")


# --- what cannot be used ----------------------------------------------------------------------------------------------


def test_images_that_cannot_be_used_are_told_with_their_reasons(command: Run, lesions: Path, tmp_path: Path) -> None:
    (tmp_path / "set" / "nevus").mkdir(parents=True)
    for number, data in enumerate([b"", b"", b"<html>404</html>"]):
        (tmp_path / "set" / "nevus" / f"{number}.jpg").write_bytes(data)
    out = tmp_path / "c.parquet"
    said = command("catalog", tmp_path / "set", "-o", out)
    assert (said.code, said.out, out.exists()) == (2, "", False)
    assert "None of the 3 images can be used: The file is empty: fetch or export it again (2); " in said.err
    shutil.copy(lesions / "nevus" / "NV-0.jpg", tmp_path / "set" / "nevus")
    said = command("catalog", tmp_path / "set", "-o", out)
    assert (said.code, out.exists()) == (0, True)
    assert "3 unusable" in said.out
    assert "Unusable: The file is empty: fetch or export it again (2); " in said.out
    reasons = json.loads(command("catalog", tmp_path / "set", "-o", out, "--json").out)["unusable_reasons"]
    assert list(reasons.values()) == [2, 1]


def test_a_split_that_misses_its_share_says_so(command: Run, lesion: Callable[..., bytes], tmp_path: Path) -> None:
    """One patient has nearly all images."""
    (tmp_path / "set").mkdir()
    lines = ["path,label,patient_id"]
    for number in range(12):
        (tmp_path / "set" / f"{number}.jpg").write_bytes(lesion("NV", number))
        lines.append(f"{number}.jpg,nevus,{'4711' if number < 10 else number}")
    (tmp_path / "set" / "m.csv").write_text("\n".join(lines))
    assert command("catalog", tmp_path / "set" / "m.csv", "-o", tmp_path / "c.parquet").code == 0
    split = ("split", tmp_path / "c.parquet", "-o", tmp_path / "s.parquet")
    said = command(*split, "--test", "0", "--validation", "0.5")
    assert said.code == 0
    assert "The split validation missed its share: 1 of 12 images, where 6 were asked for; the largest" in said.err
    assert "has 10 images, of patient 4711." in said.err
    (tmp_path / "set" / "m.csv").write_text("\n".join(lines[:11]))
    assert command("catalog", tmp_path / "set" / "m.csv", "-o", tmp_path / "c.parquet").code == 0
    said = command("split", tmp_path / "c.parquet", "-o", tmp_path / "t.parquet")
    assert (said.code, said.out, (tmp_path / "t.parquet").exists()) == (2, "", False)
    assert "would be empty" in said.err
    assert "of patient 4711" in said.err
