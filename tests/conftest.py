"""What the tests share: a real S3 server, generated lesions, a small bundle of an untrained network."""

import hashlib
import io
import os
import platform
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

import melanoma
from melanoma import cli, storage, taxonomy
from melanoma.catalog.seen import digest
from melanoma.demo.lesions import draw_lesion
from melanoma.demo.local_s3 import LocalS3, serve
from melanoma.imaging.decode import decode
from melanoma.imaging.hashing import perceptual_hash
from melanoma.model import bundle as bundles
from melanoma.model import compiled, outliers
from melanoma.model.bundle import Bundle
from melanoma.model.manifest import Agreement, Calibration, CompiledForm, Draft
from melanoma.model.predictor import CompiledNetwork, Predictor, calibrated
from melanoma.training.config import Network, TrainConfig
from tests.support import in_this_process
from tests.support.shared_ray import SharedRay

LESION_SIZE = 96  # pixels a side of a generated lesion
INPUT_SIZE = 32  # pixels a side of the bundle's input

# They begin first, in this order: a long module that began last would keep one test process waiting for the other.
LONGEST_FIRST = (
    "integration/test_interrupted_runs.py",
    "scoring/test_run.py",
    "training/test_faults.py",
    "integration/test_jobs.py",
    "evaluation/test_run.py",
    "training/test_networks.py",
    "scoring/test_faults.py",
    "integration/test_one_probability.py",
    "evaluation/test_report.py",
    "serving/test_app.py",
    "model/test_explain.py",
    "training/test_configs.py",
    "test_readme.py",
    "test_api.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    order = {name: place for place, name in enumerate(LONGEST_FIRST)}
    tests = Path(__file__).parent
    items.sort(key=lambda item: order.get(item.path.relative_to(tests).as_posix(), len(order)))
    for item in items:
        if item.get_closest_marker("slow") and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(3600))


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalS3]:
    """A real S3 server that the environment points to. Its buckets are the sub-folders of `root`: see `bucket`."""
    with serve(tmp_path_factory.mktemp("s3")) as server, pytest.MonkeyPatch.context() as patch:
        for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL_S3"):
            patch.delenv(name, raising=False)
        # Nothing of the user's own takes part.
        for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
            patch.setenv(name, os.devnull)
        for name, value in server.environment().items():
            patch.setenv(name, value)
        storage.forget_client()
        yield server
    storage.forget_client()


@pytest.fixture
def bucket(s3: LocalS3, request: pytest.FixtureRequest) -> str:
    """The name of an empty bucket of the test's own; its objects are the files of ``s3.root / bucket``."""
    name = hashlib.sha256(request.node.nodeid.encode()).hexdigest()[:20]
    (s3.root / name).mkdir()
    return name


@pytest.fixture(scope="session")
def lesion() -> Callable[..., bytes]:
    """A generated lesion as a file: ``lesion("MEL", seed=3)`` is a JPEG; `format` and Pillow's options may follow."""

    def make(code: str = "NV", seed: int = 0, format: str = "JPEG", size: int = LESION_SIZE, **options: Any) -> bytes:
        buffer = io.BytesIO()
        Image.fromarray(draw_lesion(code, seed, size, size)).save(buffer, format, **options)
        return buffer.getvalue()

    return make


@pytest.fixture(scope="session")
def lesions(tmp_path_factory: pytest.TempPathFactory, lesion: Callable[..., bytes]) -> Path:
    """A folder of 36 JPEGs, four a diagnosis: ``melanoma/MEL-0.jpg`` and so on. Not to be written to."""
    folder = tmp_path_factory.mktemp("lesions") / "lesions"
    for code, name in taxonomy.NAMES.items():
        (folder / name).mkdir(parents=True)
        for seed in range(4):
            (folder / name / f"{code}-{seed}.jpg").write_bytes(lesion(code, seed))
    return folder


@pytest.fixture(scope="session")
def bundle_path(tmp_path_factory: pytest.TempPathFactory, lesion: Callable[..., bytes]) -> Path:
    """The folder of a bundle that `melanoma train` could have written. Not to be written to.

    Its network is untrained. Its thresholds are such that some pictures of `lesions` are urgent, some to review, and
    most neither.
    """
    # TensorFlow takes seconds to import, which tests without a bundle need not wait for.
    from melanoma.training import networks

    config = TrainConfig(
        catalog="catalog.parquet",
        out="bundle",
        image_size=INPUT_SIZE,
        epochs=1,
        network=Network(name="student", width=4),
        seed=11,
    )
    seen = {f"{code}-{seed}": lesion(code, seed) for code in taxonomy.CODES for seed in range(100, 104)}
    draft = _draft(config, np.stack([decode(data, INPUT_SIZE).pixels for data in seen.values()]))
    files = {
        "model.keras": bundles.model_bytes(networks.build(config.network, INPUT_SIZE, config.seed)),
        "training_images.parquet": _training_images(seen),
        "evaluation/metrics.json": b"{}\n",
    }
    lesions = [decode(lesion(code, seed), INPUT_SIZE).pixels for code in taxonomy.CODES for seed in range(4)]
    network = CompiledNetwork(files["model.keras"], INPUT_SIZE)
    probabilities = calibrated(network.logits(np.stack(lesions)), draft["calibration"]["temperature"])
    review, urgent = np.quantile(probabilities[:, taxonomy.CODES.index(taxonomy.MELANOMA)], [0.7, 0.9]).tolist()
    draft["thresholds"] = {"review": review, "urgent": urgent, "chosen": "to raise 11 of 36 generated lesions"}
    folder = tmp_path_factory.mktemp("bundle") / "bundle"
    bundles.write(str(folder), Draft.model_validate(draft), files)
    return folder


def _draft(config: TrainConfig, seen: np.ndarray) -> dict[str, Any]:
    """All that the bundle says but its thresholds; `seen` has images of train and validation in turn."""
    return {
        "created": "2026-11-20T01:02:03+00:00",
        "input_size": INPUT_SIZE,
        "calibration": {"method": "temperature", "temperature": 0.5, "fitted_on": "validation"},
        "outliers": outliers.fit(seen[::2], seen[1::2]),
        "training": {
            "config": config.model_dump(mode="json"),
            "catalog_fingerprint": hashlib.sha256(b"catalog").hexdigest(),
            "class_counts": {name: dict.fromkeys(taxonomy.CODES, 2) for name in ("train", "validation")},
            "members": [
                {"seed": 0, "best_epoch": 1, "history": [{"epoch": 1, "loss": 2.2, "balanced_accuracy": 0.11}]}
            ],
        },
        "versions": {
            "melanoma": melanoma.__version__,
            "python": platform.python_version(),
            **{name: version(name) for name in ("keras", "tensorflow", "ray", "numpy", "pillow")},
        },
        "metrics": {
            "split": "validation",
            "n": 18,
            "n_melanoma": 2,
            "melanoma_auc": {"value": 0.5, "low": 0.25, "high": 0.75},
        },
    }


def _training_images(seen: dict[str, bytes]) -> bytes:
    """As a bundle of an earlier version has them; `seen` by image id, train and validation in turn."""
    table = pa.table(
        {
            "sha256": [hashlib.sha256(data).hexdigest() for data in seen.values()],
            "image_id_sha256": [digest(image_id) for image_id in seen],
            "perceptual_hash": [perceptual_hash(Image.open(io.BytesIO(data)).convert("RGB")) for data in seen.values()],
            "split": [("train", "validation")[place % 2] for place in range(len(seen))],
        }
    )
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    return buffer.getvalue()


@pytest.fixture(scope="session")
def bundle(bundle_path: Path) -> Bundle:
    return bundles.load(str(bundle_path))


@pytest.fixture(scope="session")
def predictor(bundle: Bundle) -> Predictor:
    return Predictor(bundle)


@pytest.fixture(scope="session")
def other_bundle_path(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a bundle with other weights than `bundle`, and all else alike. Not to be written to."""
    from melanoma.training import networks

    config = TrainConfig.model_validate(bundle.manifest.training.config)
    model = networks.build(config.network, bundle.input_size, config.seed + 1)
    folder = tmp_path_factory.mktemp("bundle") / "other"
    bundles.write(
        str(folder),
        bundle.manifest.draft(),
        {"model.keras": bundles.model_bytes(model), "training_images.parquet": bundle.training_images},
    )
    return folder


@pytest.fixture(scope="session")
def compiled_bundle_path(bundle: Bundle, lesions: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of `bundle` with a compiled form beside it, whose calibration and thresholds are others. Not to be
    written to."""
    from melanoma.training.quantize import quantized

    images = [decode(path.read_bytes(), INPUT_SIZE).pixels for path in sorted(lesions.rglob("*.jpg"))[::4]]
    form = CompiledForm(
        form=compiled.FORM,
        calibration=Calibration(method="temperature", temperature=0.4, fitted_on="validation"),
        thresholds=bundle.thresholds.model_copy(update={"chosen": "as those of the TensorFlow form"}),
        agreement=Agreement(n=18, correlation=0.99, largest_change=0.01),
    )
    folder = tmp_path_factory.mktemp("bundle") / "compiled"
    bundles.write(
        str(folder),
        bundle.manifest.draft().model_copy(update={"compiled": form}),
        {
            "model.keras": bundle.model,
            "training_images.parquet": bundle.training_images,
            compiled.FILE: quantized(bundle.model, bundle.test_time_flips, np.stack(images)),
        },
    )
    return folder


@pytest.fixture(scope="session")
def shared_ray() -> Iterator[SharedRay]:
    """The Ray of this test process, which may not run yet. For tests that need another one: `set_aside`."""
    shared = SharedRay()
    with pytest.MonkeyPatch.context() as patch:
        # Ray Train asks its workers every two seconds how they are, which is longer than an epoch of these tests takes,
        # and watches for a cloud that takes machines back. Without both a training takes 19 seconds and not 31.
        patch.setenv("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")
        patch.setenv("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
        yield shared
        shared.stop()


@pytest.fixture(scope="module")
def ray_cluster(shared_ray: SharedRay, s3: LocalS3) -> None:
    """The Ray of this test process runs. Its workers know of `s3`, as they inherit this process's environment."""
    shared_ray.start()


@pytest.fixture
def scored_in_this_process() -> Iterator[None]:
    """Scoring runs need no Ray, and start at once: for tests of what the driver decides."""
    with in_this_process.scored_in_this_process():
        yield


@pytest.fixture
def blank_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """The figures of a report are not drawn, which takes seconds: for tests that do not look at them."""
    blank = io.BytesIO()
    Image.new("RGB", (1, 1)).save(blank, "PNG")
    monkeypatch.setattr("melanoma.evaluation.report.figure_png", lambda figure: blank.getvalue())


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The lengths of the ranges that are read."""
    found: list[int] = []
    whole = storage.Store.read_range

    def counted(store: storage.Store, uri: str, offset: int, length: int, etag: str = "") -> bytes:
        found.append(length)
        return whole(store, uri, offset, length, etag)

    monkeypatch.setattr(storage.Store, "read_range", counted)
    return found


@pytest.fixture
def quick_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    """The object store is asked for as long as ever, but without waiting for seconds in between."""
    monkeypatch.setattr("melanoma.s3._LONGEST_WAIT", 0.01)


@pytest.fixture
def impatient() -> Iterator[None]:
    """What has no patience configured waits a second for the object store."""
    object.__setattr__(storage.DEFAULT, "patience", 1.0)
    yield
    object.__setattr__(storage.DEFAULT, "patience", storage.Store().patience)


@pytest.fixture(scope="module", autouse=True)
def no_ray_left_behind(shared_ray: SharedRay) -> Iterator[None]:
    """A Ray, a node or an actor that one test module leaves running would silently be that of the next."""
    yield
    shared_ray.assert_nothing_is_left()


@dataclass(frozen=True)
class Said:
    """What a command said, and the code that it ended with."""

    code: int
    out: str
    err: str


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Callable[..., Said]:
    """``command("score", folder, ...)`` is `melanoma score folder ...` in this process."""

    def run(*arguments: object) -> Said:
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return Said(int(ended.value.code or 0), captured.out, captured.err)

    return run


@pytest.fixture(scope="session")
def program() -> str:
    """The command `melanoma` of the environment that runs the tests."""
    return str(Path(sys.executable).with_name("melanoma"))


@pytest.fixture
def program_environment() -> dict[str, str]:
    """What a user's shell has: this environment without what the Ray of a test has put into it."""
    return {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}


@pytest.fixture(scope="session")
def contents() -> Callable[[Path], dict[str, tuple[int, bytes]]]:
    """Every file below a folder: when it was written, in nanoseconds, and what."""

    def read(folder: Path) -> dict[str, tuple[int, bytes]]:
        files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
        return {str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.read_bytes()) for path in files}

    return read


@pytest.fixture(scope="session")
def descendants() -> Callable[[int], dict[int, str]]:
    """The processes that a process has started, and they in turn: their numbers and command lines."""

    def find(pid: int) -> dict[int, str]:
        parents, commands = {}, {}
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                try:
                    parents[int(entry.name)] = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
                    commands[int(entry.name)] = (entry / "cmdline").read_text(errors="replace").replace("\0", " ")
                except OSError:  # it has just ended
                    continue
        found: set[int] = set()
        ahead = {pid}
        while ahead := {child for child, parent in parents.items() if parent in ahead} - found:
            found |= ahead
        return {pid: commands[pid] for pid in found if pid in commands}

    return find
