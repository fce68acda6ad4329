"""What publishing a night costs: python -m tests.benchmarks.publishing [--quick] [--out FOLDER]

Half of the images of a night are raised: 125,000, 250,000 and 500,000 alerts, with 30 earlier nights of 10,000 alerts.
Every image has a perceptual hash of its own, drawn at random, but for what archives hold: 2% near copies and 1% equal
bytes of others, 2% black pictures of a camera, which are all alike, and 5% that an earlier night has raised, too. Half
of the images are of known patients, three each. What the workers would have left is written without images; then
`melanoma.scoring.publish` does its work in a process of its own, without explanations, which cost the same in any
night. Seconds are those of `publish` alone, the memory is the peak of the whole process with all that the driver of a
run imports.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from melanoma import config, storage, taxonomy
from melanoma.scoring import drift, layout, plan, tables
from melanoma.scoring.config import ScoreConfig
from melanoma.scoring.record import PlanDetails, RunRecord

ALERTS = (125_000, 250_000, 500_000)
NIGHTS, ALERTS_A_NIGHT = 30, 10_000
QUICK = (100, 200, 400)
QUICK_NIGHTS, QUICK_ALERTS_A_NIGHT = 3, 40
SHARD_SIZE = 4096
RUN, DATE = "tonight", "2026-11-26"
REJECTED = 100  # one of so many images


class Archive:
    """Draws images as scores say them; what `raise_again` holds is drawn again now and then."""

    def __init__(self, seed: int) -> None:
        self._rng = np.random.default_rng(seed)
        self._black = self._rng.integers(0, 2, 256, dtype=np.uint8)
        self._drawn = 0
        self.raise_again: list[tuple[str, np.ndarray]] = []

    def scores(self, count: int, run_id: str, date: str, share_raised: float) -> pa.Table:
        """`tables.SCORES` of so many images."""
        rng = self._rng
        numbers = range(self._drawn, self._drawn + count)
        self._drawn += count
        bits, digests = self._photographs(numbers)
        p = rng.dirichlet(np.full(len(taxonomy.CODES), 0.5), count).astype(np.float32)
        p_melanoma = p[:, taxonomy.CODES.index(taxonomy.MELANOMA)]
        is_raised = rng.random(count) < share_raised
        hashes = [row.tobytes().hex() for row in np.packbits(bits, axis=1)]
        if not self.raise_again:
            self.raise_again = [(digests[place], bits[place]) for place in np.flatnonzero(is_raised)[:500].tolist()]
        table = {
            "run_id": [run_id] * count,
            "run_date": [date] * count,
            "scored_at": [0] * count,
            "image_uri": [f"s3://archive/2026/11/26/export-of-the-ward/{number:09d}.dcm" for number in numbers],
            "image_id": [f"{number:09d}" for number in numbers],
            "patient_id": [f"{number // 3:032x}" if number % 6 < 3 else None for number in numbers],
            "is_held_back": rng.random(count) < 0.01,
            "content_sha256": digests,
            "model_version": ["f44c250c053d939f"] * count,
            "diagnosis": [taxonomy.CODES[place] for place in p.argmax(axis=1)],
            **{f"p_{code}": p[:, place] for place, code in enumerate(taxonomy.CODES)},
            "p_melanoma": p_melanoma,
            "p_malignant": np.minimum(1, p_melanoma * 1.2),
            "alert_level": np.where(is_raised, np.where(p_melanoma > 0.5, "urgent", "review"), "none"),
            "threshold": np.full(count, 0.1, np.float32),
            "quality": [{"sharpness": a, "exposure": b} for a, b in rng.random((count, 2))],
            "outlier_score": rng.random(count, dtype=np.float32),
            "perceptual_hash": [value if known else None for value, known in zip(hashes, is_raised, strict=True)],
        }
        columns = [
            pa.array(table[name], type_) if name in table else pa.nulls(count, type_)
            for name, type_ in zip(tables.SCORES.names, tables.SCORES.types, strict=True)
        ]
        return pa.Table.from_arrays(columns, schema=tables.SCORES)

    def _photographs(self, numbers: range) -> tuple[np.ndarray, list[str]]:
        """The bits of the hashes, uint8 [images, 256], and the digests."""
        rng, count = self._rng, len(numbers)
        bits = rng.integers(0, 2, (count, 256), dtype=np.uint8)
        digests = [rng.bytes(32).hex() for _ in numbers]
        kind = rng.random(count)
        for place in np.flatnonzero(kind < 0.10).tolist():
            other = int(rng.integers(count))
            if kind[place] < 0.02:
                bits[place] = flipped(rng, bits[other], 12)
            elif kind[place] < 0.03:
                bits[place], digests[place] = bits[other], digests[other]
            elif kind[place] < 0.05:
                bits[place] = flipped(rng, self._black, 12)
            elif self.raise_again:
                digests[place], bits[place] = self.raise_again[int(rng.integers(len(self.raise_again)))]
        return bits, digests


def flipped(rng: np.random.Generator, bits: np.ndarray, most: int) -> np.ndarray:
    changed = bits.copy()
    changed[rng.choice(256, int(rng.integers(most + 1)), replace=False)] ^= 1
    return changed


# --- What the workers leave -------------------------------------------------------------------------------------------


def write_earlier(out: str, archive: Archive, night: int, alerts: int) -> None:
    """A committed run of an earlier night."""
    date = f"2026-10-{night + 1:02d}"
    run_id = f"{date}-night"
    scores = archive.scores(alerts, run_id, date, share_raised=1.0)
    added = {
        "rank": pa.array(range(1, alerts + 1), pa.int32()),
        "explanation_uri": pa.nulls(alerts, pa.string()),
        "copies": pa.array([[]] * alerts, pa.list_(pa.string())),
        "first_raised": pa.nulls(alerts, pa.string()),
    }
    table = pa.Table.from_arrays([*scores.columns, *added.values()], schema=tables.ALERTS)
    storage.write_table(layout.alerts(out, date, run_id), tables.in_file(table))
    measured = {name: np.random.default_rng(night).random(5000) for name in (*drift.PICTURE, *drift.PROBABILITY)}
    record = RunRecord(
        run_id=run_id,
        run_date=date,
        key="benchmark",
        finished_at=f"{date}T03:00:00+00:00",
        distribution=drift.distribution(measured),
    )
    storage.write_json(layout.record(out, run_id), record.to_json())


def write_night(out: str, archive: Archive, alerts: int) -> None:
    """A run whose shards are all scored, of twice as many images as are raised."""
    images = 2 * alerts
    shards = -(-images // SHARD_SIZE)
    details = PlanDetails(
        key="benchmark",
        run_date=DATE,
        archive="s3://archive",
        planned_at=f"{DATE}T01:00:00+00:00",
        listed=images,
        images=images,
        untried=images,
        shards=shards,
        shard_size=SHARD_SIZE,
        attempt="first",
    )
    frozen = plan.Plan(out, RUN, details)
    for number in frozen.shards:
        scores = archive.scores(frozen.images_of(number), RUN, DATE, share_raised=0.5)
        planned = {"image_uri": scores["image_uri"], "tried": pa.repeat(False, len(scores))}
        storage.write_table(frozen.uri(number), storage.completed(pa.table(planned), plan.SHARD))
        rejected = scores["image_uri"].slice(0, len(scores) // REJECTED)
        rejects = {"image_uri": rejected, "error_kind": pa.array(["truncated"] * len(rejected), pa.string())}
        rejects |= {"error": pa.array(["The file is cut short."] * len(rejected), pa.string())}
        storage.write_table(frozen.result_uri("scores", number), tables.in_file(scores.slice(len(rejected))))
        storage.write_table(frozen.result_uri("rejects", number), pa.table(rejects))
    storage.write_json(layout.plan(out, RUN), details.to_json())


# --- What is measured -------------------------------------------------------------------------------------------------


def publish(out: str) -> dict[str, float]:
    """Publish the run, in this process; returns what it took."""
    from melanoma.model import bundle
    from melanoma.scoring import run as driver
    from melanoma.scoring.publish import Run
    from melanoma.scoring.record import Stages

    frozen = plan.read(out, RUN)
    assert frozen is not None
    settings = config.load(ScoreConfig, None, archive="s3://archive", out=out, explained=0)
    run = Run(settings, bundle.load(None), frozen, storage.Store(), lambda: None, print)
    before, began = resource.getrusage(resource.RUSAGE_SELF), time.monotonic()
    record = driver.publish(run, Stages(), began)
    after, seconds = resource.getrusage(resource.RUSAGE_SELF), time.monotonic() - began
    return {
        "images": record.counts.scored,
        "alerts": record.counts.alerts,
        "seconds": seconds,
        "processor_seconds": after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime,
        "imports_mib": before.ru_maxrss / 1024,
        "peak_mib": after.ru_maxrss / 1024,
    }


def measured(folder: Path, sizes: Sequence[int], nights: int, alerts_a_night: int) -> Iterator[dict[str, float]]:
    """What publishing a night of each size takes, with the same earlier nights."""
    for raised in sizes:
        out = folder / str(raised)
        archive = Archive(seed=0)
        for night in range(nights):
            write_earlier(str(out), archive, night, alerts_a_night)
        write_night(str(out), archive, raised)
        command = [sys.executable, "-m", "tests.benchmarks.publishing", "--publish", str(out)]
        said = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        yield {"raised": raised, **json.loads(said.splitlines()[-1])}


def table(rows: Sequence[dict[str, float]]) -> str:
    """A Markdown table; the ratio is that of the seconds a raised image, to the row before."""
    lines = [
        "| raised | alerts | seconds | of the processor | microseconds a raised image | ratio | peak memory, MiB |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    before = None
    for row in rows:
        each = 1e6 * row["seconds"] / row["raised"]
        ratio = f"{each / before:.2f}" if before else ""
        lines.append(
            f"| {row['raised']:,} of {2 * row['raised']:,} | {row['alerts']:,} | {row['seconds']:.1f} | "
            f"{row['processor_seconds']:.1f} | {each:.0f} | {ratio} | {row['peak_mib']:,.0f} |"
        )
        before = each
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="Small nights, to see that it works.")
    parser.add_argument("--out", metavar="FOLDER", help="Keep what is written there.")
    parser.add_argument("--publish", metavar="OUT", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.publish:
        print(json.dumps(publish(arguments.publish)))
        return
    sizes, *earlier = (
        (QUICK, QUICK_NIGHTS, QUICK_ALERTS_A_NIGHT) if arguments.quick else (ALERTS, NIGHTS, ALERTS_A_NIGHT)
    )
    with tempfile.TemporaryDirectory() as folder:
        rows = list(measured(Path(arguments.out or folder), sizes, *earlier))
    print(table(rows))


if __name__ == "__main__":
    main()
