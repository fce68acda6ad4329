"""The images that the demo trains on, where real ones are at hand."""

from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import pytest

from melanoma.demo import run


def test_the_nine_class_set_is_repaired_before_it_is_learned(
    tmp_path: Path, lesion: Callable[..., bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in the set of nine classes, photographs lie under two labels, and one of Test lies in Train, too."""
    files = {f"Train/melanoma/ISIC_{number:07}.jpg": lesion("MEL", number) for number in range(6)}
    files |= {f"Train/seborrheic keratosis/ISIC_{number:07}.jpg": lesion("MEL", number) for number in range(1, 6)}
    files |= {f"Train/nevus/ISIC_{number:07}.jpg": lesion("NV", number) for number in range(10, 16)}
    files |= {f"Train/actinic keratosis/ISIC_{number:07}.jpg": lesion("NV", number) for number in range(10, 12)}
    files |= {"Test/nevus/ISIC_0000015.jpg": lesion("NV", 15), "Test/melanoma/ISIC_0000020.jpg": lesion("MEL", 20)}
    for name, data in files.items():
        (tmp_path / "isic9" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "isic9" / name).write_bytes(data)
    monkeypatch.setenv("MELANOMA_DATA", str(tmp_path))
    said: list[str] = []
    training, _, what = run._images(tmp_path / "generated", said.append)
    classes = defaultdict(set)
    for key in training:
        folder, _, name = key.partition("/")
        classes[folder].add(int(name[5:12]))
    assert classes == {"melanoma": set(range(6)), "actinic keratosis": {10, 11}, "nevus": {12, 13, 14}}
    assert "3 diagnoses" in what
    (sentence,) = said
    assert "configs/isic9.yaml" in sentence
    assert not (tmp_path / "generated").exists()
