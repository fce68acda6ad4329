"""What the driver of a night does alone: python -m tests.benchmarks.publishing [--quick] [--images N ...] [--share 0.5]

It plans a night, publishes it, and plans the next one, of which 1% is new; listings and results are generated, and no
image is. `melanoma.scoring.plan` and `melanoma.scoring.publish` do their work, each time in a process of its own.

A share of the images of a night is raised, half of them if nothing else is said, with 30 earlier nights of 10,000
alerts. Every image has a perceptual hash of its own, drawn at random, but for what archives hold: 2% near copies and 1%
equal bytes of others, 2% black pictures of a camera, which are all alike, and 5% that an earlier night has raised, too.
Half of the images are of known patients, three each. Nothing is explained, which costs the same in any night. Seconds
are those of the planning or publishing alone, the memory is the peak of the whole process with all that the driver of a
run imports. `--most-mib` ends a process that takes more, so that the machine is left to others.
"""

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa

from melanoma import config, storage, taxonomy
from melanoma.imaging.errors import TRANSIENT
from melanoma.model import bundle
from melanoma.scoring import drift, layout, plan, tables
from melanoma.scoring import run as driver
from melanoma.scoring.config import ScoreConfig
from melanoma.scoring.publish import Run
from melanoma.scoring.record import RunHeader, RunRecord, Stages
from melanoma.storage import ObjectInfo

T = TypeVar("T")

IMAGES = (250_000, 500_000, 1_000_000)
NIGHTS, ALERTS_A_NIGHT = 30, 10_000
QUICK = (200, 400, 800)
QUICK_NIGHTS, QUICK_ALERTS_A_NIGHT = 3, 40
SHARD_SIZE = 4096
RUN, DATE = "tonight", "2026-11-26"
NEXT_RUN, NEXT_DATE = "tomorrow", "2026-11-27"
NEW = 100  # one of so many images is new in the next night
REJECTED = 100  # one of so many images
FIRST = 10_000_000  # number of the first image of the night: earlier nights have those before
WHAT = {"plan": "planning", "publish": "publishing", "plan-next": "planning the next night"}


def image_uri(number: int) -> str:
    return f"s3://archive/2026/11/26/export-of-the-ward/{number:09d}.dcm"


class Archive:
    """Draws images as scores say them; what `raise_again` holds is drawn again now and then."""

    def __init__(self, seed: int) -> None:
        self._rng = np.random.default_rng(seed)
        self._black = self._rng.integers(0, 2, 256, dtype=np.uint8)
        self._drawn = 0  # images of earlier nights
        self.raise_again: list[tuple[str, np.ndarray]] = []

    def earlier_scores(self, count: int, run_id: str, date: str) -> pa.Table:
        """`tables.SCORES` of so many images, other ones with each call, which are all raised."""
        self._drawn += count
        return self.scores(range(self._drawn - count, self._drawn), run_id, date, share_raised=1.0)

    def scores(self, numbers: range, run_id: str, date: str, share_raised: float) -> pa.Table:
        """`tables.SCORES` of the images of these numbers."""
        rng, count = self._rng, len(numbers)
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
            "image_uri": [image_uri(number) for number in numbers],
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
            "quality": pa.StructArray.from_arrays(
                [*rng.random((2, count), dtype=np.float32)], ["sharpness", "exposure"]
            ),
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
    scores = archive.earlier_scores(alerts, run_id, date)
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


def write_results(out: str, archive: Archive, share_raised: float) -> None:
    """Scores and rejects of all shards of the night, which is planned."""
    frozen = plan.read(out, RUN)
    assert frozen is not None
    for number in frozen.shards:
        first = FIRST + number * SHARD_SIZE
        scores = archive.scores(range(first, first + frozen.images_of(number)), RUN, DATE, share_raised)
        rejected = scores["image_uri"].slice(0, len(scores) // REJECTED)
        rejects = {"image_uri": rejected, "error_kind": pa.array(["truncated"] * len(rejected), pa.string())}
        rejects |= {"error": pa.array(["The file is cut short."] * len(rejected), pa.string())}
        storage.write_table(frozen.result_uri("scores", number), tables.in_file(scores.slice(len(rejected))))
        storage.write_table(frozen.result_uri("rejects", number), pa.table(rejects))


# --- What is measured -------------------------------------------------------------------------------------------------


def plan_night(out: str, images: int) -> dict[str, float]:
    """Plan the night, in this process; returns what it took."""
    header = RunHeader(key="benchmark", run_date=DATE, archive="s3://archive", planned_at=f"{DATE}T01:00:00+00:00")
    made, took = timed(lambda: plan.freeze(out, RUN, header, listing(images), [], lambda images: SHARD_SIZE))
    return {"images": made.images, **took}


def plan_next_night(out: str, images: int) -> dict[str, float]:
    """Plan the night after it, in this process: the same images are listed, and some that are new."""
    frozen = plan.read(out, RUN)
    assert frozen is not None
    done = [plan.Done(RUN, [frozen.uri(number) for number in frozen.shards], TRANSIENT, [])]
    header = RunHeader(key="benchmark", run_date=NEXT_DATE, planned_at=f"{NEXT_DATE}T01:00:00+00:00")
    listed = listing(images + images // NEW)
    made, took = timed(lambda: plan.freeze(out, NEXT_RUN, header, listed, done, lambda images: SHARD_SIZE))
    return {"images": made.images, **took}


def listing(images: int) -> Iterator[ObjectInfo]:
    """The objects of the night. Their ETags are as long and as random as those of a store."""
    for number in range(FIRST, FIRST + images):
        digest = hashlib.md5(str(number).encode(), usedforsecurity=False)
        yield ObjectInfo(image_uri(number), 395_000, digest.hexdigest())


def publish(out: str) -> dict[str, float]:
    """Publish the run, in this process; returns what it took."""
    frozen = plan.read(out, RUN)
    assert frozen is not None
    settings = config.load(ScoreConfig, None, archive="s3://archive", out=out, explained=0)
    run = Run(settings, bundle.load(None), frozen, storage.Store(), lambda: None, print)
    record, took = timed(lambda: driver.publish(run, Stages(), time.monotonic()))
    return {"images": record.counts.scored, "alerts": record.counts.alerts, **took}


def timed(work: Callable[[], T]) -> tuple[T, dict[str, float]]:
    """What the work returns, and what it took."""
    imports, began, began_processor = peak_mib(), time.monotonic(), time.process_time()
    found = work()
    return found, {
        "seconds": time.monotonic() - began,
        "processor_seconds": time.process_time() - began_processor,
        "imports_mib": imports,
        "peak_mib": peak_mib(),
    }


def peak_mib() -> float:
    """The most memory that this process has taken. `getrusage` counts the process that has started it, too."""
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:")]
    return int(line.split()[1]) / 1024


def end_above(most_mib: float) -> None:
    """End this process, whatever it does, when it takes more memory."""

    def watch() -> None:
        while peak_mib() < most_mib:
            time.sleep(0.2)
        print(f"More than {most_mib:,.0f} MiB are taken: ended.", file=sys.stderr, flush=True)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def measured(
    folder: Path, sizes: Sequence[int], nights: int, alerts_a_night: int, share: float, most_mib: float = 8192
) -> Iterator[dict[str, Any]]:
    """What the driver does alone in a night of each size, with the same earlier nights.

    Args:
        folder: Where it is written; what is of one size is deleted before the next.
        sizes: Images of a night.
        nights: Earlier nights.
        alerts_a_night: Alerts of each of these.
        share: The share of the images that is raised.
        most_mib: Memory that a process may take.

    Yields:
        The size, and what was measured, by the keys of `WHAT`.

    Raises:
        CalledProcessError: A process took more memory, or failed.
    """
    for images in sizes:
        out = folder / str(images)
        archive = Archive(seed=0)
        for night in range(nights):
            write_earlier(str(out), archive, night, alerts_a_night)
        row: dict[str, Any] = {"images": images}
        for what in WHAT:
            if what == "publish":
                write_results(str(out), archive, share)
            options = ["--do", what, "--out", str(out), "--images", str(images), "--most-mib", str(most_mib)]
            command = [sys.executable, "-m", "tests.benchmarks.publishing", *options]
            said = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
            row[what] = json.loads(said.splitlines()[-1])
            print(images, what, row[what], file=sys.stderr, flush=True)
        shutil.rmtree(out)
        yield row


def table(rows: Sequence[dict[str, Any]]) -> str:
    """A Markdown table."""
    lines = [
        "| what | images listed | which gives | seconds | of the processor | microseconds an image | peak, MiB |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for what, words in WHAT.items():
        for row in rows:
            took = row[what]
            came = f"{took['alerts']:,} alerts" if "alerts" in took else f"{took['images']:,} images"
            lines.append(
                f"| {words} | {row['images']:,} | {came} | {took['seconds']:.1f} | {took['processor_seconds']:.1f} | "
                f"{1e6 * took['seconds'] / row['images']:.0f} | {took['peak_mib']:,.0f} |"
            )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="Small nights, to see that it works.")
    parser.add_argument("--images", type=int, nargs="+", default=IMAGES, help="Images of a night, one number or more.")
    parser.add_argument("--share", type=float, default=0.5, help="The share of them that is raised.")
    parser.add_argument("--most-mib", type=float, default=8192, help="Memory that a process may take.")
    parser.add_argument("--out", metavar="FOLDER", help="Write there, and not to a temporary folder.")
    parser.add_argument("--do", choices=[*WHAT], help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.do:
        end_above(arguments.most_mib)
        print(json.dumps(done(arguments.do, arguments.out, arguments.images[0])))
        return
    sizes, nights, alerts_a_night = arguments.images, NIGHTS, ALERTS_A_NIGHT
    if arguments.quick:
        sizes, nights, alerts_a_night = QUICK, QUICK_NIGHTS, QUICK_ALERTS_A_NIGHT
    with tempfile.TemporaryDirectory() as folder:
        where = Path(arguments.out or folder)
        rows = list(measured(where, sizes, nights, alerts_a_night, arguments.share, arguments.most_mib))
    print(table(rows))


def done(what: str, out: str, images: int) -> dict[str, float]:
    """Do one thing of `WHAT` in this process; returns what it took."""
    if what == "publish":
        return publish(out)
    return plan_night(out, images) if what == "plan" else plan_next_night(out, images)


if __name__ == "__main__":
    main()
