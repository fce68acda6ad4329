"""The benchmark measures what it says. No test asks how fast anything is."""

import json
from pathlib import Path
from typing import Any

import pytest

from melanoma import config
from melanoma.errors import InputError
from tests.benchmarks import peers, scoring, scoring_tables
from tests.benchmarks.config import BenchmarkConfig


def settings(lesions: Path, out: Path, bundle: Path, **values: Any) -> BenchmarkConfig:
    places = {"archive": str(lesions), "out": str(out), "bundle": str(bundle)}
    return config.load(BenchmarkConfig, None, **places, **values)


@pytest.mark.slow
def test_everything_is_measured_and_in_the_table(lesions: Path, bundle_path: Path, tmp_path: Path) -> None:
    chosen = settings(
        lesions,
        tmp_path,
        bundle_path,
        measure=["speed", "latency", "growth", "nodes", "start"],
        peers=["tf.data and model.predict", "Ray Data, read_images and map_batches"],
        images=16,
        repeat=2,
        resize=[60, 45],
        many=200,
        rounds=2,
    )
    found = scoring.run(chosen, lambda line: None)
    assert json.loads((tmp_path / "benchmark.json").read_text()) == found
    assert found["images"] == 32
    assert set(found["speed"]) == {scoring_tables.LIMIT, scoring_tables.OURS, *(chosen.peers or ())}
    assert all(len(rounds) == 2 for rounds in found["speed"].values())
    assert [found["growth"][name]["scored"] for name in ("2", "20", "200", "second_run")] == [2, 20, 200, 2]
    assert found["growth"]["200"]["peak_bytes"] > 2**28
    written = (tmp_path / "benchmark.md").read_text()
    for words in (*found["speed"], "60 ms a request", "1% new", "two", "8 images published"):
        assert words in written
    assert not (tmp_path / "work").exists()


def test_the_table_compares_within_a_round() -> None:
    def rounds(*rates: float) -> list[dict[str, float]]:
        return [{"images_per_second": rate} for rate in rates]

    speed = {scoring_tables.LIMIT: rounds(100, 50), scoring_tables.OURS: rounds(90, 40), "another": rounds(30, 40)}
    written = scoring_tables.table({"speed": speed, "nodes": {"1": rounds(10, 20), "2": rounds(20, 30)}})
    assert "| the limit | 75.0 (50.0 to 100.0) | 0.85 (0.80 to 0.90) |" in written
    assert "| another | 35.0 (30.0 to 40.0) | 2.00 (1.00 to 3.00) |" in written
    assert "| 15.0 (10.0 to 20.0) | 25.0 (20.0 to 30.0) | 1.75 (1.50 to 2.00) |" in written


def test_a_peer_that_does_not_exist_is_refused(lesions: Path, bundle_path: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="There is no peer 'Dask'"):
        scoring.run(settings(lesions, tmp_path, bundle_path, peers=["Dask"]), lambda line: None)


def test_too_few_images_are_refused(lesions: Path, bundle_path: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds 1 objects: the benchmark needs at least 8"):
        scoring.run(settings(lesions, tmp_path, bundle_path, images=1), lambda line: None)


def test_peers_write_what_the_network_says_of_every_image(lesions: Path, bundle_path: Path, tmp_path: Path) -> None:
    uris = [str(path) for path in sorted(lesions.rglob("*.jpg"))[:5]]
    network = str(bundle_path / "model.keras")
    assert peers.tf_data(uris, network, 32, 1, str(tmp_path / "out")) > 0
    import pyarrow.parquet as pq

    assert pq.read_table(tmp_path / "out")["image_uri"].to_pylist() == uris
