"""Nights over an archive: every object ends in scores or in rejects, once, and what a later night does again.

The file has more than 500 lines, as its tests share two runs that take their time.
"""

import hashlib
import io
import json
import os
import shutil
import signal
import tarfile
import zipfile
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from markupsafe import escape
from PIL import Image

from melanoma import config, privacy, storage, taxonomy
from melanoma.demo.archive_files import broken_files, dicom_file, good_files
from melanoma.demo.lesions import draw_lesion
from melanoma.demo.local_s3 import LocalS3
from melanoma.errors import InputError, MelanomaError
from melanoma.imaging.decode import decode
from melanoma.model.bundle import Bundle
from melanoma.model.predictor import Predictor
from melanoma.scoring import tables
from melanoma.scoring.config import ScoreConfig
from melanoma.scoring.progress import Progress
from melanoma.scoring.record import RunRecord
from melanoma.scoring.results import read_alerts
from melanoma.scoring.run import Outcome, score
from melanoma.taxonomy import image_id_of
from tests.support import in_this_process

Contents = Callable[[Path], dict[str, tuple[int, bytes]]]

MAX_BYTES = 8_000_000
GONE = "taken away/after the listing.jpg"
_MELANOMA = taxonomy.CODES.index(taxonomy.MELANOMA)
TWO_FRAMES, FACE = "pacs/two frames.dcm", "pacs/face.dcm"
NAMES = [
    "a b.jpg",
    'it\'s "q".jpg',
    "a#b?c.jpg",
    "100%.jpg",
    "100%25.jpg",
    "a+b&c=d;e,f@g!h$i(j)[k]{l}.jpg",
    "Läsion \u0065\u0301 zerlegt.jpg",
    "皮膚/病変.jpg",
    "-rf.jpg",
    ".hidden.jpg",
    "no ending",
    "two.endings.png.JPG",
    "run_date=2020-01-01/run_id=x/p.parquet",
    "deep/er/and/deep/er/x.jpg",
]


@dataclass(frozen=True)
class ScoredRun:
    """One committed run, with what it was made of."""

    archive: str
    out: str
    files: Path  # where the objects of `out` lie on this machine
    expected: dict[str, str | None]  # each object's URI, and its error kind, None for a picture
    outcome: Outcome

    @property
    def record(self) -> RunRecord:
        return self.outcome.record

    def rows(self, kind: str) -> pd.DataFrame:
        """The rows of this run, read as an analyst reads them, before pandas sees a type that is not plain."""
        run = self.files / kind / f"run_date={self.record.run_date}" / f"run_id={self.record.run_id}"
        held = [row for path in sorted(run.iterdir()) for row in pq.ParquetFile(path).read().to_pylist()]
        return pd.DataFrame(held).assign(run_id=self.record.run_id, run_date=self.record.run_date)


def settings(archive: str | Path, out: str | Path, bundle: Path, **values: Any) -> ScoreConfig:
    return config.load(ScoreConfig, None, archive=str(archive), out=str(out), bundle=str(bundle), **values)


def silent(_: str) -> None:
    pass


@pytest.fixture(scope="module")
def archive(
    tmp_path_factory: pytest.TempPathFactory, lesion: Callable[..., bytes], predictor: Predictor
) -> tuple[Path, dict[str, Any]]:
    """A folder as hospitals have them, and of each name what must become of it. Not to be written to."""
    folder = tmp_path_factory.mktemp("archive") / "archive"
    pictures = [draw_lesion(taxonomy.CODES[n % 9], n, 120, 100) for n in range(24)]
    files: dict[str, tuple[bytes, str | None]]
    files = {f"good/{name}": (data, None) for name, data in good_files(pictures)}
    files |= {f"broken/{file.name}": (file.data, file.error_kind) for file in broken_files()}
    files |= {name: (lesion("MEL", number), None) for number, name in enumerate(NAMES)}
    files["twice.jpg"] = files["the same again.jpg"] = (lesion("NV", 1), None)
    files["film.avi"] = (bytes(MAX_BYTES + 1), "too_large")
    files[GONE] = (lesion("NV", 2), None)
    patient: dict[str, Any] = {
        "PatientID": '"IP_1"',
        "AcquisitionDateTime": "20261101093000",
        "BodyPartExamined": "BACK",
    }
    files[TWO_FRAMES] = (dicom_file([draw(code) for code in ("NV", "MEL")], **patient), None)
    size, review = predictor.bundle.input_size, predictor.bundle.thresholds.review
    raised = next(
        seed
        for seed in range(1000, 1100)
        if predictor.probabilities(decode(dicom_file([draw("MEL", seed)]), size).pixels[None])[0, _MELANOMA]
        > review + 0.01
    )
    files[FACE] = (dicom_file([draw("MEL", raised)], RecognizableVisualFeatures="YES", **patient), None)
    files["exports/2020.tar.gz"] = (b"\x1f\x8b" + bytes(100), "unsupported")
    for name, (data, _) in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    expected = {name: kind for name, (_, kind) in files.items()}
    members: dict[str, tuple[bytes, str | None]] = {
        "a.jpg": (lesion("MEL", 40), None),
        "in/b.png": (lesion("NV", 41, "PNG"), None),
    }
    members |= {"letter.txt": (b"Dear colleague", "not_an_image"), "more.zip": (zipped({}), "not_an_image")}
    packed = zipped({name: data for name, (data, _) in members.items()})
    (folder / "exports" / "ward.zip").write_bytes(packed)
    (folder / "exports" / "half.zip").write_bytes(packed[: len(packed) // 2])
    with tarfile.open(folder / "exports" / "ward.tar", "w") as tar:
        for name, (data, _) in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    for archive in ("ward.zip", "ward.tar"):
        expected |= {f"exports/{archive}!/{name}": kind for name, (_, kind) in members.items()}
    return folder, expected | {"exports/half.zip": "truncated"}


def draw(code: str, seed: int = 0) -> np.ndarray:
    return draw_lesion(code, seed, 120, 100)


def zipped(files: Mapping[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def first_run(folder: Path, uri: str, expected: dict[str, Any], out: str, files: Path, bundle: Path) -> ScoredRun:
    def say(line: str) -> None:
        # The run says this between its listing and its first read.
        if "objects listed" in line:
            (folder / GONE).unlink()

    outcome = score(
        settings(uri, out, bundle, run_date="2026-11-20", shard_size=20, max_bytes=MAX_BYTES, workers=2), say=say
    )
    objects = {f"{uri}/{name}": kind for name, kind in expected.items()} | {f"{uri}/{GONE}": "not_found"}
    return ScoredRun(uri, out, files, objects, outcome)


@pytest.fixture(scope="module")
def local_run(
    archive: tuple[Path, dict[str, Any]], tmp_path_factory: pytest.TempPathFactory, bundle_path: Path, ray_cluster: None
) -> ScoredRun:
    """A night over a folder, in which there is what only a folder can hold."""
    folder = tmp_path_factory.mktemp("local") / "archive"
    shutil.copytree(archive[0], folder)
    expected: dict[str, Any] = dict(archive[1])
    (folder / "dangling link.jpg").symlink_to("nowhere")
    (folder / "link.jpg").symlink_to(folder / "twice.jpg")
    os.mkfifo(folder / "pipe.jpg")
    (folder / os.fsdecode(b"latin1-\xe9.jpg")).write_bytes((folder / "twice.jpg").read_bytes())
    expected |= {
        "dangling link.jpg": "not_found",
        "link.jpg": None,
        "pipe.jpg": "access",
        "latin1-\\xe9.jpg": "not_found",
    }
    if os.geteuid() != 0:  # root may read everything
        (folder / "secret.jpg").write_bytes(b"secret")
        (folder / "secret.jpg").chmod(0)
        expected["secret.jpg"] = "access"
    out = tmp_path_factory.mktemp("local_results") / "results"
    return first_run(folder, str(folder), expected, str(out), out, bundle_path)


@pytest.fixture(scope="module")
def s3_run(archive: tuple[Path, dict[str, Any]], s3: LocalS3, bundle_path: Path, ray_cluster: None) -> ScoredRun:
    """A night over a bucket. Another archive's name begins like this one's."""
    bucket = s3.root / "nights"
    shutil.copytree(archive[0], bucket / "archive")
    shutil.copytree(archive[0] / "good", bucket / "archive-2")
    out = "s3://nights/results"
    return first_run(bucket / "archive", "s3://nights/archive", archive[1], out, bucket / "results", bundle_path)


@pytest.fixture(scope="module", params=["local", "s3"])
def scored_run(request: pytest.FixtureRequest) -> ScoredRun:
    found: ScoredRun = request.getfixturevalue(f"{request.param}_run")
    return found


def test_every_object_is_in_scores_or_in_rejects_once(scored_run: ScoredRun) -> None:
    uris = Counter([*scored_run.rows("scores")["image_uri"], *scored_run.rows("rejects")["image_uri"]])
    assert set(uris) == set(scored_run.expected)
    assert set(uris.values()) == {1}
    assert set(scored_run.rows("scores")["image_uri"]) == {
        uri for uri, kind in scored_run.expected.items() if kind is None
    }


def test_every_reject_says_why(scored_run: ScoredRun) -> None:
    rejects = scored_run.rows("rejects").set_index("image_uri")
    assert rejects["error_kind"].to_dict() == {
        uri: kind for uri, kind in scored_run.expected.items() if kind is not None
    }
    assert set(rejects["error_kind"]) >= {
        "empty", "truncated", "not_an_image", "unsupported", "too_large", "dicom", "not_found"
    }  # fmt: skip
    assert rejects["error"].str.fullmatch(r"[^\n]+\.").all()
    # No content was read of these, and none has a digest.
    unread = rejects["error_kind"].isin(["not_found", "access"])
    unread |= rejects.index.str.endswith(("film.avi", "half.zip", "2020.tar.gz"))
    assert rejects["content_sha256"].isna().equals(unread)


def test_the_files_have_the_columns_and_types_of_the_contract(scored_run: ScoredRun) -> None:
    schemas = {"scores": tables.SCORES, "rejects": tables.REJECTS, "alerts": tables.ALERTS}
    for kind, schema in schemas.items():
        paths = list((scored_run.files / kind).rglob("*.parquet"))
        assert paths
        for path in paths:
            # Two columns are the names of the folders.
            assert list(schema.names[:2]) == [part.split("=")[0] for part in (path.parts[-2], path.parts[-3])]
            assert pq.ParquetFile(path).schema_arrow.equals(pa.schema(list(schema)[2:])), path
    codes = [f"p_{code}" for code in taxonomy.CODES]
    assert tables.SCORES.names == [
        *("run_id", "run_date", "scored_at", "image_uri", "image_id", "frame"),
        *("patient_id", "study_uid", "body_site", "acquired_at", "is_held_back", "content_sha256"),
        *("model_version", "diagnosis", *codes, "p_melanoma", "p_malignant", "alert_level", "alert_reason"),
        *("threshold", "threshold_urgent", "threshold_malignancy", "threshold_malignancy_urgent"),
        *("quality", "outlier_score", "perceptual_hash"),
    ]
    assert tables.ALERTS.names == [*tables.SCORES.names, "rank", "explanation_uri", "copies", "first_raised"]
    assert {str(tables.SCORES.field(name).type) for name in codes} == {"float"}


def test_scores_say_what_the_columns_promise(scored_run: ScoredRun, bundle: Bundle) -> None:
    scores = scored_run.rows("scores")
    p = scores[[f"p_{code}" for code in taxonomy.CODES]].to_numpy()
    assert p.min() >= 0
    np.testing.assert_allclose(p.sum(axis=1), 1, atol=1e-5)
    assert np.ptp(p, axis=0).max() > 0.01, "the pictures must not all look alike to the model"
    assert scores["diagnosis"].tolist() == [taxonomy.CODES[index] for index in p.argmax(axis=1)]
    assert scores["p_melanoma"].equals(scores["p_MEL"])
    np.testing.assert_allclose(scores["p_malignant"], scores[["p_BCC", "p_MEL", "p_SCC"]].sum(axis=1), atol=1e-6)
    assert set(scores["model_version"]) == {bundle.version}
    assert scores["image_id"].tolist() == [image_id_of(uri) for uri in scores["image_uri"]]
    assert [value.utcoffset().total_seconds() for value in scores["scored_at"]] == [0] * len(scores)
    objects = scores[~scores["image_uri"].str.contains("!/")]
    for uri, digest in zip(objects["image_uri"], objects["content_sha256"], strict=True):
        assert digest == hashlib.sha256(storage.read_bytes(uri)).hexdigest()
    review, urgent = np.float32(bundle.thresholds.review), np.float32(bundle.thresholds.urgent)
    assert set(scores["threshold"]) == {float(review)}
    levels = np.select([scores["p_melanoma"] >= urgent, scores["p_melanoma"] >= review], ["urgent", "review"], "none")
    assert scores["alert_level"].tolist() == levels.tolist()
    assert set(levels) == {"none", "review", "urgent"}
    assert all(set(value) == {"sharpness", "exposure"} and 0 <= value["exposure"] <= 1 for value in scores["quality"])
    assert (scores["outlier_score"] >= 0).all()


def test_alerts_are_the_raised_scores_most_probable_first(scored_run: ScoredRun) -> None:
    files = list((scored_run.files / "alerts").rglob("*"))
    assert [path.name for path in files if path.is_file()] == ["alerts.parquet"]
    alerts, scores = scored_run.rows("alerts"), scored_run.rows("scores")
    assert alerts["rank"].tolist() == list(range(1, len(alerts) + 1))
    assert alerts["p_melanoma"].is_monotonic_decreasing
    raised = scores[scores["alert_level"] != "none"]
    shown = [*alerts["image_uri"], *alerts["copies"].explode().dropna()]
    assert sorted(shown) == sorted(raised["image_uri"])
    kept = raised[raised["image_uri"].isin(alerts["image_uri"])].sort_values("image_uri", ignore_index=True)
    shared = alerts[scores.columns].sort_values("image_uri", ignore_index=True)
    known = kept.dropna(axis=1, how="all").columns
    pd.testing.assert_frame_equal(shared[known], kept[known], check_dtype=False)
    assert shared.drop(columns=known).isna().all(axis=None)
    listed = pd.DataFrame(read_alerts(scored_run.out, "2026-11-20").to_pylist())
    pd.testing.assert_frame_equal(listed[[*alerts.columns, "archive"]], alerts.assign(archive=scored_run.archive))


def test_what_a_header_says_is_in_the_scores(scored_run: ScoredRun) -> None:
    scores = scored_run.rows("scores").set_index("image_uri")
    columns = ["patient_id", "body_site", "acquired_at", "is_held_back"]
    known = {uri: [row[name] for name in columns] for uri, row in scores.astype(object).to_dict("index").items()}
    assert known[f"{scored_run.archive}/{TWO_FRAMES}"] == ["IP_1", "BACK", "2026-11-01T09:30:00", False]
    assert known[f"{scored_run.archive}/{FACE}"] == ["IP_1", "BACK", "2026-11-01T09:30:00", True]
    assert pd.isna(known[f"{scored_run.archive}/twice.jpg"][:3]).all()
    assert not known[f"{scored_run.archive}/twice.jpg"][3]


def test_of_several_frames_the_most_suspicious_counts(scored_run: ScoredRun, predictor: Predictor) -> None:
    scores, uri = scored_run.rows("scores").set_index("image_uri"), f"{scored_run.archive}/{TWO_FRAMES}"
    p = [
        predictor.probabilities(decode(dicom_file([draw(code)]), predictor.bundle.input_size).pixels[None])
        for code in ("NV", "MEL")
    ]
    melanoma = [float(found[0, _MELANOMA]) for found in p]
    assert scores["p_melanoma"][uri] == pytest.approx(max(melanoma), abs=1e-6)
    assert scores["frame"][uri] == 1 + melanoma.index(max(melanoma))
    assert scores["frame"].drop(uri).isna().all()


def test_the_page_shows_and_explains_the_alerts(scored_run: ScoredRun) -> None:
    html = (scored_run.files / "runs" / f"run_id={scored_run.record.run_id}" / "run.html").read_text()
    alerts = scored_run.rows("alerts")
    assert alerts["is_held_back"].any()
    for alert in alerts.to_dict("records"):
        assert str(escape(alert["image_uri"])) in html
        assert pd.isna(alert["explanation_uri"]) == alert["is_held_back"]
        if not alert["is_held_back"]:
            assert Image.open(io.BytesIO(storage.read_bytes(alert["explanation_uri"]))).format == "PNG"
    assert html.count("<img ") == 2 * int((~alerts["is_held_back"]).sum()) + 1  # and the figure
    assert "could not be explained" not in html


def test_the_commit_record_counts_what_is_there(scored_run: ScoredRun, bundle: Bundle) -> None:
    record = json.loads((scored_run.files / "runs" / f"run_id={scored_run.record.run_id}.json").read_text())
    assert record == scored_run.record.to_json()
    rejects, alerts = scored_run.rows("rejects"), scored_run.rows("alerts")
    assert record["counts"] == {
        "listed": len(scored_run.expected),
        "done_before": 0,
        "scored": len(scored_run.rows("scores")),
        "rejected": len(rejects),
        "rejects_by_kind": dict(sorted(Counter(rejects["error_kind"]).items())),
        "alerts": len(alerts),
        "urgent": int((alerts["alert_level"] == "urgent").sum()),
        "review": int((alerts["alert_level"] == "review").sum()),
    }
    assert (record["model_version"], record["archive"]) == (bundle.version, scored_run.archive)
    assert record["thresholds"] == bundle.thresholds.to_json()
    assert record["stages"]["workers"] == 2
    assert scored_run.outcome.changed


def test_a_bomb_of_3600_megapixels_takes_no_memory(scored_run: ScoredRun) -> None:
    bombs = scored_run.rows("rejects").loc[lambda rows: rows["image_uri"].str.endswith("/bomb.png")]
    assert bombs["error_kind"].tolist() == ["too_large"]
    # TensorFlow alone takes nine tenths of a gigabyte; the picture would take ten.
    assert 10**8 < scored_run.record.stages.peak_memory_bytes < 1.3 * 10**9


def test_the_bucket_and_the_folder_get_the_same_answers(local_run: ScoredRun, s3_run: ScoredRun) -> None:
    answers = []
    for scored_run in (local_run, s3_run):
        rows = pd.concat([scored_run.rows("scores"), scored_run.rows("rejects")])
        rows["name"] = [uri.removeprefix(scored_run.archive) for uri in rows["image_uri"]]
        answers.append(rows.set_index("name").drop(columns=["run_id", "scored_at", "image_uri", "error"]))
    local, s3 = answers
    pd.testing.assert_frame_equal(local.loc[s3.index].drop(columns="quality"), s3.drop(columns="quality"), atol=1e-6)


def test_pandas_reads_the_results_where_they_are(s3_run: ScoredRun) -> None:
    scores = pd.read_parquet(f"{s3_run.out}/scores")
    assert sorted(scores["image_uri"]) == sorted(s3_run.rows("scores")["image_uri"])


# --- the nights after ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def next_run(local_run: ScoredRun, lesion: Callable[..., bytes], bundle_path: Path) -> tuple[ScoredRun, set[str]]:
    """The folder a day later, and the URIs that are to be scored: two new, one changed, one come back."""
    folder = Path(local_run.archive)
    changed = folder / "twice.jpg"
    before = changed.stat()
    changed.write_bytes(lesion("MEL", 77))
    assert changed.stat().st_mtime_ns > before.st_mtime_ns
    (folder / "new 1.jpg").write_bytes(lesion("BCC", 1))
    (folder / "new").mkdir()
    (folder / "new" / "2.jpg").write_bytes(lesion("BCC", 2))
    (folder / GONE).write_bytes(lesion("NV", 2))
    # Two more that the folder's links and odd names bring: they are tried every night.
    rescored = {f"{folder}/{name}" for name in ("twice.jpg", "link.jpg", "new 1.jpg", "new/2.jpg", GONE)}
    with in_this_process.scored_in_this_process():
        outcome = score(settings(folder, local_run.out, bundle_path, run_date="2026-11-21"), say=silent)
    return ScoredRun(str(folder), local_run.out, local_run.files, {}, outcome), rescored


def test_the_next_night_scores_what_is_new_changed_or_could_not_be_fetched(
    local_run: ScoredRun, next_run: tuple[ScoredRun, set[str]]
) -> None:
    scored_run, rescored = next_run
    assert set(scored_run.rows("scores")["image_uri"]) == rescored
    transient = {uri for uri, kind in local_run.expected.items() if kind in ("not_found", "access")}
    assert set(scored_run.rows("rejects")["image_uri"]) == transient - rescored
    listed = len(local_run.expected) + 2
    counts = scored_run.record.counts
    assert (counts.listed, counts.done_before) == (listed, listed - len(rescored | transient))
    now = scored_run.rows("scores").set_index("image_uri")["content_sha256"][f"{scored_run.archive}/twice.jpg"]
    then = local_run.rows("scores").set_index("image_uri")["content_sha256"][f"{scored_run.archive}/twice.jpg"]
    assert now != then


def test_two_nights_are_one_table(local_run: ScoredRun, next_run: tuple[ScoredRun, set[str]]) -> None:
    for kind in ("scores", "rejects", "alerts"):
        table = pd.read_parquet(local_run.files / kind)
        nights = Counter(
            {scored_run.record.run_id: len(scored_run.rows(kind)) for scored_run in (local_run, next_run[0])}
        )
        assert Counter(table["run_id"]) == +nights
    assert set(pd.read_parquet(local_run.files / "scores")["run_date"]) == {"2026-11-20", "2026-11-21"}


def test_a_finished_night_run_again_changes_nothing(
    s3_run: ScoredRun, bundle_path: Path, scored_in_this_process: None, contents: Contents
) -> None:
    before = contents(s3_run.files)
    for spelling in (s3_run.archive, f"{s3_run.archive}/"):
        outcome = score(settings(spelling, f"{s3_run.out}/", bundle_path, run_date="2026-11-20"), say=silent)
        assert (outcome.changed, outcome.record) == (False, s3_run.record)
    assert contents(s3_run.files) == before


def test_another_model_scores_everything_again_beside_the_first(
    s3_run: ScoredRun, scored_in_this_process: None, other_bundle_path: Path, contents: Contents
) -> None:
    before = contents(s3_run.files)
    places = (f"{s3_run.archive}/", s3_run.out, other_bundle_path)
    outcome = score(settings(*places, run_date="2026-11-20", max_bytes=MAX_BYTES), say=silent)
    other = ScoredRun(s3_run.archive, s3_run.out, s3_run.files, {}, outcome)
    assert outcome.record.counts.done_before == 0
    assert outcome.record.run_id != s3_run.record.run_id
    assert outcome.record.model_version != s3_run.record.model_version
    first, second = (scored_run.rows("scores").set_index("image_uri") for scored_run in (s3_run, other))
    assert sorted(first.index) == sorted(second.index)
    assert np.abs(first["p_melanoma"] - second["p_melanoma"]).max() > 1e-3
    after = contents(s3_run.files)
    assert {name: after[name] for name in before} == before
    assert len(pd.read_parquet(s3_run.files / "scores")) == 2 * len(first)


def test_all_scores_again_what_is_scored(
    local_run: ScoredRun,
    next_run: tuple[ScoredRun, set[str]],
    scored_in_this_process: None,
    tmp_path: Path,
    bundle_path: Path,
) -> None:
    out = tmp_path / "results"
    shutil.copytree(local_run.files, out)
    counts = []
    for date, everything in [("2026-11-22", False), ("2026-11-23", True)]:
        chosen = settings(local_run.archive, out, bundle_path, run_date=date, all=everything, max_bytes=MAX_BYTES)
        counts.append(score(chosen, say=silent).record.counts)
    assert (counts[0].scored, counts[0].alerts) == (0, 0)
    assert read_alerts(str(out), "2026-11-22").num_rows == 0
    assert (counts[1].scored + counts[1].rejected, counts[1].done_before) == (counts[0].listed, 0)
    assert counts[1].scored == len(local_run.rows("scores")) + 3, "two that are new, and one that came back"
    assert read_alerts(str(out), "2026-11-23").num_rows == counts[1].alerts > 0
    listed = read_alerts(str(out))["image_uri"].to_pylist()
    assert sorted(listed) == sorted(set(listed)), "what the 20th and the 23rd have raised is listed once"


@pytest.mark.slow
def test_what_can_never_be_read_does_not_stop_the_nights(
    tmp_path: Path, lesion: Callable[..., bytes], bundle_path: Path, ray_cluster: None
) -> None:
    archive, out = tmp_path / "archive", tmp_path / "out"
    archive.mkdir()
    for number in range(8):
        (archive / f"{number}.jpg").write_bytes(lesion("NV", number))
    for name in ("pipe.jpg", "another pipe.jpg"):
        os.mkfifo(archive / name)
    found = []
    # On the second night there is nothing but what could not be read on the first.
    for date in ("2026-11-20", "2026-11-21"):
        counts = score(settings(archive, out, bundle_path, run_date=date, workers=1), say=silent).record.counts
        found.append((counts.done_before, counts.scored, counts.rejects_by_kind))
    assert found == [(0, 8, {"access": 2}), (8, 0, {"access": 2})]


# --- interrupted -----------------------------------------------------------------------------------------------------


def test_a_run_survives_the_death_of_its_worker(
    tmp_path: Path,
    lesion: Callable[..., bytes],
    bundle_path: Path,
    ray_cluster: None,
    descendants: Callable[[int], dict[int, str]],
) -> None:
    archive = tmp_path / "archive"
    archive.mkdir()
    data = lesion("NV", 0, size=1500)
    for number in range(48):
        (archive / f"{number}.jpg").write_bytes(data)
    seen: list[set[int]] = []

    def kill_one(_: Progress) -> None:
        seen.append({pid for pid, command in descendants(os.getpid()).items() if "ShardScorer" in command})
        if len(seen) == 1:
            os.kill(min(seen[0]), signal.SIGKILL)

    # A worker on every core there is: none is left for anything else.
    record = score(settings(archive, tmp_path / "out", bundle_path, shard_size=2), kill_one, silent).record
    assert set.union(*seen) - seen[0], "the worker had nothing left to do when it was killed"
    assert (record.counts.scored, record.counts.rejected) == (48, 0)
    uris = pd.read_parquet(tmp_path / "out" / "scores")["image_uri"]
    assert sorted(uris) == sorted(str(path) for path in archive.iterdir())


@pytest.fixture
def died_before_its_record(s3_run: ScoredRun, s3: LocalS3, bucket: str) -> tuple[Path, str]:
    """What the night leaves that dies after its last shard: all but the commit record. And its URI."""
    out = s3.root / bucket
    for kind in ("scores", "rejects", "alerts", "runs", "plans"):
        for path in (s3_run.files / kind).rglob(f"run_id={s3_run.record.run_id}/**/*.*"):
            target = out / path.relative_to(s3_run.files)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(path, target)
    return out, f"s3://{bucket}"


def test_a_night_that_died_before_its_record_is_committed_and_then_the_next_one_is_begun(
    died_before_its_record: tuple[Path, str], s3_run: ScoredRun, bundle_path: Path, contents: Contents
) -> None:
    out, uri = died_before_its_record
    with pytest.raises(InputError, match="no finished run"):
        read_alerts(uri)
    before = contents(out)
    # The command of the next night, as a scheduler gives it: without a date.
    said: list[str] = []
    outcome = score(settings(s3_run.archive, uri, bundle_path, max_bytes=MAX_BYTES), say=said.append)
    after = contents(out)
    name = f"runs/run_id={s3_run.record.run_id}.json"
    assert json.loads(after[name][1])["counts"] == s3_run.record.counts.to_json()
    rewritten = {name for name in before if name.startswith("alerts/") or name.endswith("run.html")}
    assert {name for name in before if after[name] != before[name]} == rewritten
    assert said[0] == f"Resuming the run {s3_run.record.run_id}."
    # All that it still lists was done the night before.
    assert outcome.record.run_date > "2026-11-20"
    counts = outcome.record.counts
    assert (counts.scored, counts.rejected, counts.done_before) == (0, 0, len(s3_run.expected) - 1)


def test_a_worker_that_cannot_write_ends_the_run_with_its_reason(
    lesions: Path, tmp_path: Path, bundle_path: Path, ray_cluster: None
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "rejects").write_text("in the way")
    chosen = settings(lesions, out, bundle_path, run_date="2026-11-20", workers=1)
    with pytest.raises(MelanomaError) as caught:
        score(chosen, say=silent)
    assert caught.value.exit_code == 3
    assert "\n" not in str(caught.value)
    assert "not a directory. The same command resumes it." in str(caught.value)
    assert not list((out / "runs").glob("*.json"))


# --- refused before anything is written ------------------------------------------------------------------------------


def test_a_run_id_of_another_archive_model_or_date_is_refused(
    local_run: ScoredRun, lesions: Path, bundle_path: Path, other_bundle_path: Path, contents: Contents
) -> None:
    before = contents(local_run.files)
    taken = local_run.record.run_id
    for chosen in (
        settings(lesions, local_run.out, bundle_path, run_id=taken),
        settings(local_run.archive, local_run.out, other_bundle_path, run_id=taken),
        settings(local_run.archive, local_run.out, bundle_path, run_id=taken, run_date="2026-11-19"),
    ):
        with pytest.raises(InputError, match=r"choose another --run-id"):
            score(chosen, say=silent)
    assert contents(local_run.files) == before


@pytest.mark.parametrize("below", ["", "results", "deep/er"])
def test_results_within_the_archive_are_refused(
    lesions: Path, bundle_path: Path, below: str, contents: Contents
) -> None:
    before = contents(lesions)
    with pytest.raises(InputError, match="lies in the archive"):
        score(settings(lesions, lesions / below, bundle_path), say=silent)
    assert contents(lesions) == before
    # A neighbour whose name begins alike is none.
    with pytest.raises(InputError, match="cannot be listed"):
        score(settings(lesions / "nowhere", f"{lesions}/nowhere-2", bundle_path), say=silent)


def test_alerts_of_a_day_without_a_run_name_the_days_that_have_one(
    local_run: ScoredRun, next_run: tuple[ScoredRun, set[str]], tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="there are runs of 2026-11-20, 2026-11-21"):
        read_alerts(local_run.out, "2026-11-22")
    with pytest.raises(InputError, match="no finished run"):
        read_alerts(str(tmp_path))


def test_with_a_key_no_identifier_is_anywhere(
    tmp_path: Path, bundle_path: Path, scored_in_this_process: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "archive").mkdir()
    names: dict[str, Any] = {
        "PatientID": "Mustermann-4711",
        "StudyInstanceUID": "1.2.840.4711",
        "BodyPartExamined": "BACK",
    }
    for number in range(24):
        data = dicom_file([draw("MEL", number)], **names)
        (tmp_path / "archive" / f"{number}.dcm").write_bytes(data if number else data[:-999])
    places = (tmp_path / "archive", tmp_path / "out", bundle_path)
    chosen = settings(*places, workers=1, run_date="2026-11-20", run_id="first")
    monkeypatch.setenv(privacy.KEY, "a key that is a secret")
    said: list[str] = []
    assert score(chosen, say=said.append).record.counts.alerts > 0
    pseudonym = privacy.from_environment(False).pseudonym("Mustermann-4711")
    alerts = read_alerts(str(tmp_path / "out"))
    assert set(alerts["patient_id"].to_pylist()) == {pseudonym}
    files = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert f"Patient {pseudonym}" in next(path for path in files if path.name == "run.html").read_text()
    for path in files:
        written = str(pq.read_table(path).to_pylist()) if path.suffix == ".parquet" else str(path.read_bytes())
        for secret in ("Mustermann", "1.2.840.4711", "a key that is a secret"):
            assert secret not in written + str(said), path

    monkeypatch.delenv(privacy.KEY)
    later = settings(*places, run_date="2026-11-21")
    with pytest.raises(InputError, match="MELANOMA_PSEUDONYM_KEY is not set now"):
        score(later, say=silent)
    (tmp_path / "out" / "runs" / "run_id=first.json").unlink()
    with pytest.raises(InputError, match="begun with another MELANOMA_PSEUDONYM_KEY"):
        score(chosen, say=silent)
