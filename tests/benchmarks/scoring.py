"""python -m tests.benchmarks.scoring archive=s3://archive [--config tests/benchmarks/scoring.yaml] [key=value ...]

How fast `melanoma score` is: against the limit of the machine, against what a user would use instead, and against
itself where the store is slow, the archive large, or the cluster has a second node.

Every figure is measured in processes of its own, one after the other, in several rounds. A rate counts the difference
between a quarter of the images and all of them, so that start-up (interpreters, engines, loading the model) counts for
nobody; no alert is explained. Ours asks the compiled form of the network where the bundle has one, and so does the
limit; the peers ask Keras. The limit is the time that decoding and the network take on one core with all bytes in
memory, added up: it fetches, hashes and writes nothing. Everybody asks the network once an image; a bundle that
averages over orientations gets a row of its own.
"""

import contextlib
import dataclasses
import functools
import importlib.util
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from melanoma import storage
from melanoma.cli import jobs
from melanoma.demo import local_s3
from melanoma.errors import InputError, MelanomaError
from melanoma.imaging.decode import decode, decode_image
from melanoma.model import bundle as bundles
from melanoma.model import compiled
from melanoma.model.bundle import Bundle
from melanoma.scoring import listing
from melanoma.scoring.config import ScoreConfig
from melanoma.training.quantize import quantized
from tests.benchmarks import peers
from tests.benchmarks.config import BenchmarkConfig
from tests.benchmarks.scoring_tables import LATENCY, LIMIT, OURS, PIXEL_ARRAY, SCALED, table
from tests.support.faulty_proxy import faulty_proxy

_MANIFEST = {"image_uri": "uri", "size": "size", "etag": "etag"}
_CALIBRATED_ON = 64  # images
_NEEDS = {
    "Ray Data, read_images and map_batches": "ray",
    "tf.data and model.predict": "tensorflow",
    "PySpark, pandas UDF": "pyspark",
    "Daft": "daft",
}


@dataclasses.dataclass(frozen=True)
class _Bench:
    """What all measurements share. `few` and `all`: manifests, of every fourth image and of all."""

    settings: BenchmarkConfig
    work: Path
    uris: list[str]
    bundle: Bundle
    once: str  # a bundle of the same network that asks it once an image
    cores: int
    say: Callable[[str], None]

    def manifest(self, part: str) -> str:
        return str(self.work / f"{part}.parquet")

    @contextlib.contextmanager
    def folder(self) -> Iterator[Path]:
        with tempfile.TemporaryDirectory(dir=self.work) as folder:
            yield Path(folder)

    def score(self, archive: str, out: str, **values: Any) -> dict[str, Any]:
        """One run of ours in a process of its own."""
        keys = {"workers": self.cores, "bundle": self.once, "explained": 0, **self.settings.score, **values}
        return _in_its_own_process("score", json.dumps({**keys, "archive": archive, "out": out}))

    def scored(self, **values: Any) -> Callable[[str], float]:
        """A function of the name of a manifest: seconds of a run of ours."""

        def seconds(part: str) -> float:
            with self.folder() as out:
                return float(self.score(self.manifest(part), str(out / "out"), **values)["seconds"])

        return seconds


def run(settings: BenchmarkConfig, say: Callable[[str], None]) -> dict[str, Any]:
    """Measure what `settings.measure` names, and write ``benchmark.json`` and ``benchmark.md`` below `out`.

    Raises InputError and MelanomaError.
    """
    out = Path(settings.out).absolute()
    work = out / "work"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    bundle = bundles.load(settings.bundle)
    for name in settings.peers or ():
        if name not in peers.PEERS:
            raise InputError(f"There is no peer {name!r}: there are {', '.join(peers.PEERS)}.")
    prepared = _prepared(settings, work)
    bench = _Bench(
        settings,
        work,
        prepared,
        bundle,
        _asked_once(bundle, prepared, work),
        settings.cores or len(os.sched_getaffinity(0)),
        say,
    )
    sizes = [storage.info(uri).size for uri in bench.uris]
    found: dict[str, Any] = {
        "images": len(bench.uris),
        "mean_bytes": round(float(np.mean(sizes))),
        "model_version": bundle.version,
        "input_size": bundle.input_size,
        "orientations": bundle.test_time_flips,
        "cores": bench.cores,
    }
    measures = {
        "speed": _speed,
        "latency": _latency,
        "growth": _growth,
        "nodes": _nodes,
        "start": _start,
        "dicom": _dicom,
        "tar": _tar,
    }
    for name in settings.measure:
        found[name] = measures[name](bench)
        # After each: the next one may take an hour.
        (out / "benchmark.json").write_text(json.dumps(found, indent=2) + "\n")
        (out / "benchmark.md").write_text(table(found))
    shutil.rmtree(work)
    return found


def _prepared(settings: BenchmarkConfig, work: Path) -> list[str]:
    """The URIs of the images, in manifests as well; copies in `work` where they are to be other than they are."""
    places = [settings.archive] if isinstance(settings.archive, str) else settings.archive
    listed = sorted(
        listing.objects(places, storage.Store(ScoreConfig.model_fields["patience"].default)),
        key=lambda info: info.uri,
    )
    # Spread over the archive, whatever its order means.
    chosen = np.linspace(0, len(listed) - 1, min(settings.images, len(listed)), dtype=int)
    uris = [listed[place].uri for place in chosen]
    if len(uris) * settings.repeat < 8:
        raise InputError(f"The archive {' '.join(places)} holds {len(uris)} objects: the benchmark needs at least 8.")
    if settings.repeat > 1 or settings.resize:
        uris = _copies(uris, work / "store" / "archive", settings.resize, settings.repeat)
    for part, some in {"few": uris[::4], "all": uris}.items():
        _write_manifest(str(work / f"{part}.parquet"), [storage.info(uri) for uri in some])
    return uris


def _write_manifest(path: str, infos: list[storage.ObjectInfo]) -> None:
    columns = {name: [getattr(info, attribute) for info in infos] for name, attribute in _MANIFEST.items()}
    pq.write_table(pa.table(columns), path)


def _copies(uris: list[str], folder: Path, size: tuple[int, int] | None, times: int) -> list[str]:
    """Local copies of images, each under `times` names; of `size` (width, height) if one is given."""
    found = []
    for number, uri in enumerate(uris):
        data = storage.read_bytes(uri)
        if size:
            buffer = io.BytesIO()
            decode_image(data).resize(size).save(buffer, "JPEG", quality=90)
            data = buffer.getvalue()
        name = f"{number:05}-{Path(uri).stem}.jpg"
        for copy in range(times):
            path = folder / f"{copy:05}" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if copy:
                path.hardlink_to(folder / "00000" / name)
            else:
                path.write_bytes(data)
            found.append(str(path))
    return sorted(found)


def _asked_once(bundle: Bundle, uris: Sequence[str], work: Path) -> str:
    (work / "network.keras").write_bytes(bundle.model)
    draft = bundle.manifest.draft().model_copy(update={"test_time_flips": 1})
    files = {"model.keras": bundle.model, "training_images.parquet": bundle.training_images}
    if bundle.manifest.compiled:
        # The orientations are a part of the compiled network.
        pixels = [decode(storage.read_bytes(uri), bundle.input_size).pixels for uri in uris[:_CALIBRATED_ON]]
        files[compiled.FILE] = quantized(bundle.model, 1, np.stack(pixels))
    bundles.write(str(work / "once"), draft, files)
    return str(work / "once")


def _in_its_own_process(*words: str) -> dict[str, Any]:
    return _answer([sys.executable, "-m", "tests.benchmarks.scoring_process", *words])


def _answer(words: list[str]) -> dict[str, Any]:
    ended = subprocess.run(words, capture_output=True, text=True, check=False)
    if ended.returncode:
        last = ended.stderr.strip().splitlines()[-1:] or ["it said nothing"]
        raise MelanomaError(f"{' '.join(words[2:4])} ended with {ended.returncode}: {last[0]}")
    answer: dict[str, Any] = json.loads(ended.stdout.strip().splitlines()[-1])
    return answer


# --- what is measured ------------------------------------------------------------------------------------------------


def _speed(bench: _Bench) -> dict[str, Any]:
    """Images a second of the limit, of ours and of the peers, one after the other, in each round anew."""
    asked = {"": bench.once}
    if bench.bundle.test_time_flips > 1:
        asked[f", {bench.bundle.test_time_flips} orientations"] = bench.settings.bundle or str(bundles.REFERENCE)
    measured: dict[str, Callable[[], dict[str, Any]]] = {}
    for note, bundle in asked.items():
        measured[LIMIT + note] = functools.partial(_limit, bench, bundle)
        measured[OURS + note] = functools.partial(_rate, bench, bench.scored(bundle=bundle))
    for name in _chosen(bench):
        measured[name] = functools.partial(_rate, bench, functools.partial(_of_peer, bench, name))
    return _in_rounds(bench, measured)


def _in_rounds(bench: _Bench, measured: Mapping[str, Callable[[], dict[str, Any]]]) -> dict[str, Any]:
    """Measure all in turn, round after round: whatever else the machine does falls on all of them."""
    found: dict[str, Any] = {name: [] for name in measured}
    for number in range(bench.settings.rounds):
        for name, measure in measured.items():
            found[name].append(measure())
            rate = found[name][-1]["images_per_second"]
            bench.say(f"round {number + 1} of {bench.settings.rounds}, {name}: {rate:.1f} images/s")
    return found


def _rate(bench: _Bench, seconds: Callable[[str], float]) -> dict[str, Any]:
    """`seconds` takes the name of a manifest without its suffix."""
    taken = {part: seconds(part) for part in ("few", "all")}
    difference = len(bench.uris) - len(bench.uris[::4])
    return {"seconds": taken, "images_per_second": difference / (taken["all"] - taken["few"])}


def _limit(bench: _Bench, bundle: str) -> dict[str, float]:
    limit = _in_its_own_process("limit", bench.manifest("all"), bundle)
    limit["images_per_second"] = bench.cores / (limit["decode_seconds"] + limit["predict_seconds"])
    return limit


def _chosen(bench: _Bench) -> list[str]:
    wanted = bench.settings.peers
    installed = [name for name in peers.PEERS if importlib.util.find_spec(_NEEDS[name])]
    for name in peers.PEERS:
        if name not in installed:
            bench.say(f"{name}: not installed, and so not measured (pip install {_NEEDS[name]}).")
    return [name for name in installed if wanted is None or name in wanted]


def _of_peer(bench: _Bench, name: str, part: str) -> float:
    words = [name, bench.manifest(part), str(bench.work / "network.keras"), str(bench.bundle.input_size)]
    with bench.folder() as out:
        words += [str(bench.cores), str(out / "logits")]
        return float(_answer([sys.executable, "-m", "tests.benchmarks.peers", *words])["seconds"])


def _latency(bench: _Bench) -> dict[str, Any]:
    """The rate on S3 (a server on this machine, behind a proxy), without and with a delay of every request."""
    store = bench.work / "store"
    if not (store / "archive").exists():
        _copies(bench.uris, store / "archive", None, 1)
    with (
        local_s3.serve(store) as s3,
        faulty_proxy(s3.endpoint, lambda method, path: "") as proxy,
        _environment(s3, proxy.url),
    ):
        infos = list(storage.list_objects("s3://archive"))
        _write_manifest(bench.manifest("s3-few"), infos[::4])
        _write_manifest(bench.manifest("s3-all"), infos)

        def delayed(delay: float) -> dict[str, Any]:
            proxy.delay = delay
            return _rate(bench, lambda part: bench.scored()(f"s3-{part}"))

        measured = {f"{delay:g}": functools.partial(delayed, delay) for delay in (0.0, LATENCY)}
        return _in_rounds(bench, measured)


@contextlib.contextmanager
def _environment(s3: local_s3.LocalS3, endpoint: str) -> Iterator[None]:
    values = {**s3.environment(), "AWS_ENDPOINT_URL": endpoint}
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    storage.forget_client()
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name)
            if value is not None:
                os.environ[name] = value
        storage.forget_client()


def _growth(bench: _Bench) -> dict[str, Any]:
    """Time and memory of a large archive, of a tenth of it and of a hundredth, which shows what a run costs before its
    first image; then of a second run, for which 1% of the large archive is new."""
    many = bench.settings.many
    found: dict[str, Any] = {}
    with bench.folder() as out:
        for number in (many // 100, many // 10, many):
            folder = bench.work / f"archive-{number}"
            _fill(bench, folder, 0, number)
            with _peak_memory() as peak:
                answer = bench.score(str(folder), str(out / str(number)), run_date="2026-11-20")
            found[str(number)] = {**answer, "peak_bytes": peak()}
            bench.say(f"{number} images: {answer['seconds']:.0f} s, {peak() / 2**20:.0f} MiB")
        large = bench.work / f"archive-{many}"
        _fill(bench, large, many, many // 100)
        found["second_run"] = bench.score(str(large), str(out / str(many)), run_date="2026-11-21")
    if found["second_run"]["scored"] != many // 100:
        raise MelanomaError(f"The second run scored {found['second_run']['scored']} images, not {many // 100}.")
    return {"many": many, **found}


def _fill(bench: _Bench, folder: Path, first: int, number: int) -> None:
    for each in range(first, first + number):
        path = folder / f"{each // 1000:03}" / f"{each:06}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        source = bench.uris[each % len(bench.uris)]
        if each < first + len(bench.uris):
            path.write_bytes(storage.read_bytes(source))
        else:
            other = each - len(bench.uris)
            path.hardlink_to(folder / f"{other // 1000:03}" / f"{other:06}.jpg")


@contextlib.contextmanager
def _peak_memory() -> Iterator[Callable[[], int]]:
    """The most memory that the processes below this one took together, in bytes: the proportional set size, measured
    every second."""
    ended = threading.Event()
    peak = 0

    def measure() -> None:
        nonlocal peak
        while not ended.wait(1.0):
            peak = max(peak, sum(_proportional_set(pid) for pid in _below(os.getpid())))

    thread = threading.Thread(target=measure, daemon=True)
    thread.start()
    try:
        yield lambda: peak
    finally:
        ended.set()
        thread.join()


def _below(pid: int) -> set[int]:
    parents = {}
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has just ended
            parents[int(entry.name)] = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
    found: set[int] = set()
    ahead = {pid}
    while ahead := {child for child, parent in parents.items() if parent in ahead} - found:
        found |= ahead
    return found


def _proportional_set(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))


def _nodes(bench: _Bench) -> dict[str, Any]:
    """The rate of one node of one core, and of two."""
    of = {nodes: bench.scored(nodes=nodes, workers=nodes) for nodes in (1, 2)}
    return _in_rounds(bench, {str(nodes): functools.partial(_rate, bench, seconds) for nodes, seconds in of.items()})


def _start(bench: _Bench) -> dict[str, Any]:
    """Seconds from the call of the command to its end, for 8 images, where Ray runs already."""
    words = ("start", json.dumps(bench.uris[:8]), bench.once)
    seconds = []
    for _ in range(bench.settings.rounds):
        with bench.folder() as out:
            seconds.append(_in_its_own_process(*words, str(out / "start"))["seconds"])
    return {"seconds": seconds}


def _dicom(bench: _Bench) -> dict[str, Any]:
    """Images a second of an archive of DICOM files with JPEG frames, against libjpeg's scaled decoding of these frames
    and against pydicom's `pixel_array`, resized: both on all cores, with the network, and with nothing else to do."""
    limits: list[dict[str, float]] = []

    def limit(decoder: str) -> dict[str, Any]:
        if decoder == SCALED:  # the first of a round
            limits.append(_in_its_own_process("dicom", bench.manifest("all"), bench.once))
        return {"images_per_second": bench.cores / (limits[-1][decoder] + limits[-1]["predict_seconds"])}

    decoders = {decoder: functools.partial(limit, decoder) for decoder in (SCALED, PIXEL_ARRAY)}
    return _in_rounds(bench, {**decoders, OURS: functools.partial(_rate, bench, bench.scored())})


def _tar(bench: _Bench) -> dict[str, Any]:
    """The rate on S3 (a server on this machine): of objects, and of the same files in a tar."""
    store = bench.work / "store"
    if not (store / "archive").exists():
        _copies(bench.uris, store / "archive", None, 1)
    with local_s3.serve(store, etags=False) as s3, _environment(s3, s3.endpoint):
        infos = list(storage.list_objects("s3://archive"))
        (store / "tars").mkdir()
        for part, some in {"few": infos[::4], "all": infos}.items():
            _write_manifest(bench.manifest(f"objects-{part}"), some)
            # Repeated images are links to one file, which a tar would have as links, too.
            with tarfile.open(store / "tars" / f"{part}.tar", "w", dereference=True) as tar:
                for info in some:
                    tar.add(store / info.uri.removeprefix("s3://"), info.uri.removeprefix("s3://archive/"))

        def of_tar(part: str) -> float:
            with bench.folder() as out:
                answer = bench.score(f"s3://tars/{part}.tar", str(out / "out"))
            if answer["scored"] != len(infos[::4] if part == "few" else infos):
                raise MelanomaError(f"Only {answer['scored']} images of the tar {part} were scored.")
            return float(answer["seconds"])

        measured = {
            "objects": functools.partial(_rate, bench, lambda part: bench.scored()(f"objects-{part}")),
            "tar": functools.partial(_rate, bench, of_tar),
        }
        return _in_rounds(bench, measured)


def _run_and_print(settings: BenchmarkConfig) -> None:
    print(table(run(settings, lambda line: print(line, file=sys.stderr))))
    print(f"Figures: {settings.out}/benchmark.json, table: {settings.out}/benchmark.md")


if __name__ == "__main__":
    jobs.main(BenchmarkConfig, _run_and_print, __doc__, default="tests/benchmarks/scoring.yaml")
