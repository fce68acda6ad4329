"""melanoma catalog, split and audit: what they answer."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd

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
