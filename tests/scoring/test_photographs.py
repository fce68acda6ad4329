"""Which images show the same photograph: as comparing all pairs says, and without comparing all pairs."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from melanoma.imaging.hashing import NEAR_DUPLICATE_DISTANCE
from melanoma.scoring import alerts, photographs, tables

Row = dict[str, Any]


# --- The reference: row by row, each compared with every alert --------------------------------------------------------


def by_comparing_all(rows: list[Row], earlier: list[Row]) -> list[Row]:
    """What `alerts.ranked` must say of its alerts."""
    found: list[Row] = []
    for row in sorted(rows, key=lambda row: (-row["p_melanoma"], row["image_uri"])):
        if alert := next((alert for alert in found if same(alert, row)), None):
            alert["copies"].append(row["image_uri"])
            alert["is_held_back"] |= row["is_held_back"]
            continue
        found.append({**row, "rank": len(found) + 1, "copies": []})
    for alert in found:
        dates = [row["run_date"] for row in earlier if same(row, alert)]
        alert["first_raised"] = min(dates, default=None)
    return found


def same(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    patients = one["patient_id"], other["patient_id"]
    return (not all(patients) or patients[0] == patients[1]) and (
        (bool(one["content_sha256"]) and one["content_sha256"] == other["content_sha256"])
        or (
            bool(one["perceptual_hash"] and other["perceptual_hash"])
            and distance(one["perceptual_hash"], other["perceptual_hash"]) <= NEAR_DUPLICATE_DISTANCE
        )
    )


def distance(one: str, other: str) -> int:
    return (int(one, 16) ^ int(other, 16)).bit_count()


# --- Cases ------------------------------------------------------------------------------------------------------------


def flipped(generator: np.random.Generator, value: int, bits: int) -> int:
    return value ^ sum(1 << int(bit) for bit in generator.choice(256, bits, replace=False))


def drawn(seed: int, count: int) -> Iterator[Row]:
    """Images around a few photographs: copies of all distances about the limit, chains, equal bytes, equal
    probabilities, patients, and images without one or the other."""
    generator = np.random.default_rng(seed)
    centres = [
        int.from_bytes(generator.bytes(32), "big") for _ in range(max(1, count // int(generator.integers(2, 60))))
    ]
    patients = ["A", "B", "C", None, None, "", *(f"P{n}" for n in range(int(generator.integers(0, 40))))]
    share_of_patients = generator.random()
    values = list(centres)
    for number in range(count):
        base = values[generator.integers(len(values))] if generator.random() < 0.4 else centres[number % len(centres)]
        value = flipped(generator, base, int(generator.choice([0, 1, 2, 9, 14, 20, 27, 28, 29, 40, 128])))
        values.append(value)
        known = generator.random() < share_of_patients
        yield {
            "image_uri": f"{generator.integers(10**6):06d}-{number}",
            "p_melanoma": float(np.float32(generator.integers(1, 40) / 40)),
            "content_sha256": generator.choice([f"sha {number}", f"sha {number}", f"sha {number // 7}", "one", ""]),
            "perceptual_hash": f"{value:064x}" if generator.random() < 0.9 else None,
            "patient_id": patients[generator.integers(len(patients))] if known else None,
            "is_held_back": bool(generator.random() < 0.1),
            "run_date": f"2026-11-{generator.integers(1, 29):02d}",
        }


def without_common_bytes(rows: list[Row]) -> list[Row]:
    """Images that only their hashes join."""
    return [{**row, "content_sha256": f"{number}"} for number, row in enumerate(rows)]


def found(rows: list[Row], earlier: list[Row]) -> list[Row]:
    names = ["image_uri", "rank", "copies", "first_raised", "is_held_back", "patient_id"]
    ranked = alerts.ranked(
        pa.Table.from_pylist(rows, schema=tables.SCORES), pa.Table.from_pylist(earlier, schema=alerts.EARLIER)
    )
    assert ranked.schema == tables.ALERTS
    return ranked.select(names).to_pylist()


def expected(rows: list[Row], earlier: list[Row]) -> list[Row]:
    names = ["image_uri", "rank", "copies", "first_raised", "is_held_back", "patient_id"]
    return [{name: alert[name] for name in names} for alert in by_comparing_all(rows, earlier)]


@pytest.fixture(params=["as it is", "small"])
def parts(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also with so few images at a time that a hundred of them take every way."""
    if request.param == "small":
        for name, value in {"_FEW": 4, "_QUERIES": 7, "_CANDIDATES": 16}.items():
            monkeypatch.setattr(photographs, name, value)


@pytest.mark.parametrize("seed", range(12))
def test_alerts_are_those_of_comparing_all_pairs(seed: int, parts: None) -> None:
    rows = list(drawn(seed, 10 + 9 * seed))
    earlier = list(drawn(seed, 6 * seed))[:: 1 + seed % 3] + list(drawn(1000 + seed, 30))
    if seed % 2:
        rows, earlier = without_common_bytes(rows), without_common_bytes(earlier)
    assert found(rows, earlier) == expected(rows, earlier)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(100, 160))
def test_more_alerts_are_those_of_comparing_all_pairs(seed: int, parts: None) -> None:
    rows, earlier = list(drawn(seed, 400)), list(drawn(seed, 500))[::2]
    if seed % 2:
        rows, earlier = without_common_bytes(rows), without_common_bytes(earlier)
    assert found(rows, earlier) == expected(rows, earlier)


@pytest.mark.parametrize("spread", range(0, 29, 4))
def test_hashes_at_the_very_distance_are_found_however_the_bits_lie(spread: int, parts: None) -> None:
    """28 bits that differ in as many bands as can be, and one more."""
    bits = photographs._DEALT[(np.arange(29) * 9 + spread) % 256].tolist()
    generator = np.random.default_rng(spread)
    others = [image(number, int.from_bytes(generator.bytes(32), "big"), p=0.95) for number in range(20)]
    base = int.from_bytes(generator.bytes(32), "big")
    near, beyond = (base ^ sum(1 << (255 - bit) for bit in bits[:count]) for count in (28, 29))
    rows = [*others, image(100, base, p=0.9), image(101, near, p=0.8), image(102, beyond, p=0.7)]
    assert [row["copies"] for row in found(rows, []) if row["image_uri"] in ("100", "102")] == [["101"], []]


# --- Many images, and what is alike among them ------------------------------------------------------------------------


def image(number: int, value: int, p: float = 0.5, patient: str | None = None) -> Row:
    given = {"image_uri": f"{number}", "p_melanoma": p, "content_sha256": f"sha {number}", "patient_id": patient}
    return {**given, "perceptual_hash": f"{value:064x}", "is_held_back": False}


@pytest.fixture
def compared(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many pairs of images are compared, each time that some are."""
    counted: list[int] = []
    distance, expanded = photographs._distance, photographs._expanded

    def counting(one: Any, other: Any) -> Any:
        counted.append(np.broadcast(one[0], other[0]).size)
        return distance(one, other)

    def counting_candidates(*lists: Any) -> Any:
        for slots, places in expanded(*lists):
            counted.append(len(places))
            yield slots, places

    monkeypatch.setattr(photographs, "_distance", counting)
    monkeypatch.setattr(photographs, "_expanded", counting_candidates)
    return counted


def of(bits: np.ndarray, patients: list[str | None]) -> photographs.Photographs:
    hashes = [row.tobytes().hex() for row in np.packbits(bits, axis=1)]
    columns = ([f"sha {number}" for number in range(len(bits))], hashes, patients)
    return photographs.of_columns(*(pa.chunked_array([column], pa.string()) for column in columns))


def test_the_comparisons_are_in_proportion_to_the_images(compared: list[int]) -> None:
    each = {}
    for count in (4_000, 24_000):
        bits = np.random.default_rng(0).integers(0, 2, (count, 256), dtype=np.uint8)
        compared.clear()
        assert photographs.shown_for(of(bits, [None] * count)).tolist() == list(range(count))
        each[count] = sum(compared) / count
    # Those beside it in the list, and few others. All pairs would be 2,000 each, and then 12,000.
    assert max(each.values()) < 1_900


@pytest.mark.parametrize("share_of_patients", [0, 0.5, 1])
@pytest.mark.parametrize("most", [0, 4, 13, 40])
def test_a_camera_whose_pictures_are_all_black(most: int, share_of_patients: float, compared: list[int]) -> None:
    """5,000 pictures of one hash, of hashes near to each other, and of hashes that share bands and are not near; of one
    patient each, of nobody, or some of each."""
    generator, count = np.random.default_rng(most), 5_000
    black = generator.integers(0, 2, 256, dtype=np.uint8)
    bits = np.stack([black ^ (generator.random(256) < most / 256) for _ in range(count)])
    has_patient = generator.random(count) < share_of_patients
    photos = of(bits, [f"P{number}" if has else None for number, has in enumerate(has_patient.tolist())])
    shown = photographs.shown_for(photos)
    all_pairs = count**2 / 2
    assert sum(compared) < (1.5 * all_pairs if most == 40 else 0.8 * all_pairs)
    assert max(compared) <= 2 * photographs._CANDIDATES
    # By comparing with what is shown, one after the other.
    for place in [*range(300), *range(count - 300, count)]:
        heads = np.flatnonzero(shown[:place] == np.arange(place))
        near = (bits[heads] ^ bits[place]).sum(axis=1) <= NEAR_DUPLICATE_DISTANCE
        near &= ~(has_patient[heads] & has_patient[place])
        assert shown[place] == (heads[near][0] if near.any() else place)
