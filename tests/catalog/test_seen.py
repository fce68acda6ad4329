"""What a bundle says of the images that its model has seen, and what is found by it in another catalog."""

import io
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import pytest

from melanoma import taxonomy
from melanoma.catalog import seen
from melanoma.catalog.build import build


@pytest.fixture
def rows(lesion: Callable[..., bytes], tmp_path: Path) -> pd.DataFrame:
    """Six images, the first three of train and the others of validation."""
    (tmp_path / "set" / taxonomy.NAMES["MEL"]).mkdir(parents=True)
    for seed in range(6):
        (tmp_path / "set" / taxonomy.NAMES["MEL"] / f"{seed}.jpg").write_bytes(lesion("MEL", seed))
    return build([str(tmp_path / "set")]).assign(split=["train"] * 3 + ["validation"] * 3)


def test_ids_and_numbers_of_a_hospital_do_not_travel(rows: pd.DataFrame) -> None:
    rows["image_id"], rows["lesion_id"] = [f"image-4711{n}" for n in range(6)], "lesion-4712"
    rows["patient_id"] = pd.Series(["patient-4713", *[None] * 5], index=rows.index, dtype=object)
    table = pq.read_table(io.BytesIO(seen.training_images(rows)))
    assert table.column_names == [
        *("sha256", "image_id_sha256", "perceptual_hash", "lesion_id_sha256", "patient_id_sha256", "split")
    ]
    text = str(table.to_pylist())
    assert not [name for name in ("image-4711", "lesion-4712", "patient-4713") if name in text]
    assert table["sha256"].to_pylist() == rows["sha256"].tolist()
    assert table["patient_id_sha256"].null_count == 5
    assert len(set(table["lesion_id_sha256"].to_pylist())) == 1


def test_what_was_learned_is_a_leak_and_what_was_tuned_on_is_optimistic(rows: pd.DataFrame) -> None:
    known = seen.training_images(rows)
    assert "Leaked: 3 of these 6 images" in str(seen.leak_warning(known, rows))
    assert "Optimistic: 3 of these 3 images" in str(seen.leak_warning(known, rows[3:]))
    assert seen.leak_warning(seen.training_images(rows[:5]), rows[5:]) is None


def test_two_fields_in_a_black_frame_are_no_near_duplicates_for_their_frame(rows: pd.DataFrame) -> None:
    known = seen.training_images(rows[:1])
    rows = rows[1:3].copy()
    of_train = pq.read_table(io.BytesIO(known))["perceptual_hash"].to_pylist()[0]
    by_twenty_bits = f"{int(of_train, 16) ^ 0xFFFFF:064x}"
    rows["perceptual_hash"], rows["dark_border"] = by_twenty_bits, [0.0, 0.4]
    assert "Leaked: 1 of these 2 images" in str(seen.leak_warning(known, rows))
    rows["perceptual_hash"] = of_train
    assert "Leaked: 2 of these 2 images" in str(seen.leak_warning(known, rows))


def test_other_photographs_of_a_lesion_that_was_learned_are_a_leak(rows: pd.DataFrame) -> None:
    known = pq.read_table(io.BytesIO(seen.training_images(rows[:2]))).to_pandas()
    rows = rows[2:].copy()
    rows["lesion_id"] = pd.Series(["HAM_0000001", "7", "8", None], index=rows.index, dtype=object)
    known["lesion_id_sha256"] = [seen.digest("HAM_0000001"), seen.digest(f"{rows['source'].iloc[0]}/8")]

    def warning(table: pd.DataFrame) -> str | None:
        buffer = io.BytesIO()
        table.to_parquet(buffer)
        return seen.leak_warning(buffer.getvalue(), rows)

    assert "Leaked: 2 of these 4 images" in str(warning(known))
    known["lesion_id_sha256"] = [seen.digest("elsewhere/8"), None]  # another hospital's 8
    assert warning(known) is None
    # A bundle of an earlier version does not say.
    assert warning(known.drop(columns=["lesion_id_sha256", "patient_id_sha256"])) is None
