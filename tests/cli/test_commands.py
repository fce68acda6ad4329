"""The command: what it answers, and that whatever is wrong ends as one sentence and the right exit code."""

import csv
import hashlib
import io
import json
import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import typer

from melanoma import __version__, cli, config, taxonomy
from melanoma.catalog import build, schema
from melanoma.catalog import split as splitting
from melanoma.demo.local_s3 import LocalS3
from melanoma.model import bundle as bundles
from melanoma.model.bundle import Bundle
from melanoma.scoring.config import ScoreConfig

Run = Callable[..., Any]

COMMANDS = ["catalog", "split", "audit", "train", "evaluate", "predict", "score", "alerts", "deliver", "serve", "demo"]


def sentence(said: Any, code: int = 2) -> str:
    """The one line that a refusal is."""
    assert (said.code, said.out) == (code, "")
    found = re.fullmatch(r"melanoma: ([^\n]+)\n", said.err)
    assert found, said.err
    return found[1]


@pytest.fixture(scope="module")
def catalogs(lesions: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the catalog of `lesions`, before and after its split. Not to be written to."""
    folder = tmp_path_factory.mktemp("catalogs")
    schema.write(str(folder / "unsplit.parquet"), build.build([str(lesions)]))
    frame = schema.read(str(folder / "unsplit.parquet"))
    schema.write(str(folder / "catalog.parquet"), splitting.split(frame, validation=0.25, test=0.25, seed=0))
    return folder


# --- help ------------------------------------------------------------------------------------------------------------


def test_every_command_is_tested_here() -> None:
    assert sorted(COMMANDS) == sorted(typer.main.get_command(cli.app).commands)  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", COMMANDS)
def test_help_shows_an_example_that_the_command_would_take(command: Run, name: str) -> None:
    said = command(name, "--help")
    assert (said.code, said.err) == (0, "")
    text = " ".join(said.out.replace("│", " ").split())
    found = re.search(r"Example: ((?:[A-Z_]+=\S+ )?melanoma .+)", text)
    assert found, text
    words = shlex.split(found[1])
    words = words[words.index("melanoma") + 1 :]
    assert words[0] == name
    parser = typer.main.get_command(cli.app).commands[name]  # type: ignore[attr-defined]
    parser.make_context(name, words[1:])


def test_the_program_itself_starts_and_says_its_version(program: str, program_environment: dict[str, str]) -> None:
    done = subprocess.run([program, "--version"], env=program_environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{__version__}\n", "")


@pytest.mark.parametrize("arguments", [[], ["--help"]])
def test_without_a_command_there_is_help(command: Run, arguments: list[str]) -> None:
    said = command(*arguments)
    assert (said.code, said.err) == (0 if arguments else 2, "")
    assert all(name in said.out for name in COMMANDS)


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (["paint"], "No such command 'paint'"),
        (["score"], "ARCHIVE"),
        (["score", "archive"], "--out"),
        (["score", "archive", "--out", "out", "--colour", "red"], "--colour"),
        (["split", "catalog.parquet", "-o", "x.parquet", "--validation", "many"], "--validation"),
        (["predict"], "IMAGE"),
        (["predict", "x.jpg"], "No bundle was named: give one with --bundle"),
        (["score", "archive", "--out", "out"], "No bundle was named: give one with --bundle"),
        (["serve"], "MELANOMA_API_KEY"),
    ],
)
def test_wrong_use_is_one_line(
    command: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, arguments: list[str], hint: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MELANOMA_API_KEY", raising=False)
    monkeypatch.setattr(bundles, "REFERENCE", tmp_path / "reference")
    if arguments == ["serve"]:
        arguments = ["serve", "--bundle", "nowhere"]
    assert hint in sentence(command(*arguments))
    assert list(tmp_path.iterdir()) == []


# --- bad input -------------------------------------------------------------------------------------------------------


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
    assert (done.returncode, done.stdout) == (2, "")
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


# --- answers ---------------------------------------------------------------------------------------------------------


def test_catalog_and_split_say_what_they_found(command: Run, lesions: Path, tmp_path: Path) -> None:
    shutil.copytree(lesions, tmp_path / "images")
    (tmp_path / "images" / "melanoma" / "broken.jpg").write_bytes(b"")
    said = command("catalog", tmp_path / "images", "-o", tmp_path / "c.parquet", "--json")
    summary = json.loads(said.out)
    assert (said.code, summary["images"], summary["unusable"], summary["labels"]["MEL"]) == (0, 37, 1, 5)
    said = command("split", tmp_path / "c.parquet", "-o", tmp_path / "s.parquet", "--test", "0.25", "--json")
    summary = json.loads(said.out)
    assert (said.code, sum(summary["splits"].values())) == (0, 36)
    assert summary["splits"]["test"] == 9
    frozen = pd.read_parquet(tmp_path / "s.parquet")
    assert frozen.groupby("group_id")["split"].nunique().max() == 1
    again = command("split", tmp_path / "s.parquet", "-o", tmp_path / "t.parquet", "--test", "0", "--json")
    assert json.loads(again.out)["splits"]["test"] == 9, "a test split that is there is kept"
    table = command("split", tmp_path / "c.parquet", "-o", tmp_path / "s.parquet")
    assert "MEL (melanoma)" in table.out
    assert "Frozen with fingerprint" in table.out


def test_a_catalog_is_repaired_by_rule(command: Run, lesion: Callable[..., bytes], tmp_path: Path) -> None:
    for name, data in {
        "Train/melanoma/ISIC_0000001.jpg": lesion("MEL", 1),
        "Train/nevus/ISIC_0000001.jpg": lesion("MEL", 1),
        "Train/nevus/ISIC_0000002.jpg": lesion("NV", 2),
        "Test/nevus/ISIC_0000003.jpg": lesion("NV", 3),
    }.items():
        (tmp_path / "set" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "set" / name).write_bytes(data)
    (tmp_path / "lesions.csv").write_text("image_id,lesion_id\nISIC_0000002,L1\nISIC_0000003,L1\n")
    (tmp_path / "rules.yaml").write_text(
        "rules:\n"
        "  - {rule: prefer, label: MEL, over: NV, reason: histology}\n"
        "  - {rule: drop_copies, reason: once is enough}\n"
        "  - {rule: set_aside, split: train, when_in: test, reason: same lesion}\n"
    )
    catalog = ("catalog", tmp_path / "set", "-o", tmp_path / "c.parquet")
    assert command(*catalog, "--metadata", tmp_path / "lesions.csv").code == 0
    assert command("audit", tmp_path / "c.parquet").code == 1

    said = command(*catalog, "--metadata", tmp_path / "lesions.csv", "--resolve", tmp_path / "rules.yaml", "--json")
    summary = json.loads(said.out)
    assert (said.code, summary["changed"], summary["dropped"], summary["unlabelled"]) == (0, 2, 1, 0)
    assert "Rule prefer: 1 images changed (histology)." in said.err
    assert command("audit", tmp_path / "c.parquet").code == 0
    said = command(*catalog, "--resolve", tmp_path / "none.yaml")
    assert (said.code, said.out) == (2, "")
    assert "does not exist" in said.err


def test_audit_ends_with_0_on_a_clean_catalog(command: Run, catalogs: Path) -> None:
    said = command("audit", catalogs / "catalog.parquet")
    assert (said.code, said.err) == (0, "")
    assert "36 images: 0 leaks, 0 contradictory labels." in said.out
    said = command("audit", catalogs / "catalog.parquet", "--json")
    assert (said.code, json.loads(said.out)["summary"]["images"]) == (0, 36)


def test_audit_ends_with_1_on_a_planted_leak(command: Run, lesion: Callable[..., bytes], tmp_path: Path) -> None:
    files = {
        "Train/melanoma/a.jpg": lesion("MEL", 1),
        "Train/nevus/b.jpg": lesion("NV", 2),
        "Test/melanoma/c.jpg": lesion("MEL", 1),  # the bytes of a.jpg
        "Test/nevus/d.jpg": lesion("NV", 3),
        "Test/melanoma/e.jpg": lesion("NV", 3),  # the bytes of d.jpg, under another label
    }
    for name, data in files.items():
        (tmp_path / "set" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "set" / name).write_bytes(data)
    assert command("catalog", tmp_path / "set", "-o", tmp_path / "c.parquet").code == 0
    said = command("audit", tmp_path / "c.parquet")
    assert (said.code, said.err) == (1, "")
    assert "5 images: 1 leak, 1 contradictory label." in said.out
    said = command("audit", tmp_path / "c.parquet", "--json")
    assert said.code == 1
    found = json.loads(said.out)
    (leak,), (contradiction,) = found["leaks"]["findings"], found["contradictions"]["findings"]
    assert {Path(image["uri"]).name for image in leak["images"]} == {"a.jpg", "c.jpg"}
    assert (leak["by"], leak["splits"]) == (["sha256"], ["train", "test"])
    assert {Path(image["uri"]).name for image in contradiction["images"]} == {"d.jpg", "e.jpg"}
    assert (contradiction["by"], contradiction["labels"]) == (["sha256"], ["MEL", "NV"])


def test_predict_answers_each_image_or_says_why_not(
    command: Run, bundle: Bundle, bundle_path: Path, lesions: Path, tmp_path: Path
) -> None:
    good, text = lesions / "melanoma" / "MEL-0.jpg", tmp_path / "notes.txt"
    text.write_text("no picture")
    said = command("predict", good, "--bundle", bundle_path, "--json", "--explain", tmp_path / "explained")
    (row,) = json.loads(said.out)
    assert (said.code, said.err) == (0, "")
    assert (row["image_uri"], row["model_version"]) == (str(good), bundle.version)
    assert row["content_sha256"] == hashlib.sha256(good.read_bytes()).hexdigest()
    assert sum(row[f"p_{code}"] for code in taxonomy.CODES) == pytest.approx(1, abs=1e-5)
    assert Path(row["explanation_uri"]).read_bytes().startswith(b"\x89PNG")
    said = command("predict", text, good, tmp_path / "nowhere.jpg", "--bundle", bundle_path, "--json")
    assert said.code == 2
    assert [row.get("error_kind") for row in json.loads(said.out)] == ["not_an_image", None, "not_found"]
    said = command("predict", text, good, "--bundle", bundle_path)
    assert said.code == 2
    assert f"{text}: rejected (not_an_image). " in said.out
    assert f"Model {bundle.version}. Not a medical device." in said.out


def test_predict_says_what_its_alert_level_means(
    command: Run, bundle: Bundle, other_bundle_path: Path, lesions: Path, tmp_path: Path
) -> None:
    manifest = {name: value for name, value in bundle.manifest.items() if name not in ("model_version", "files")}
    point = {
        "n": 437,
        "n_melanoma": 85,
        "sensitivity": {"value": 0.96, "low": 0.91, "high": 0.99},
        "specificity": {"value": 0.61, "low": None, "high": None},
    }
    files = {"model.keras": bundle.model, "training_images.parquet": bundle.training_images}
    seen = {}
    for level, thresholds in {"none": (0.9998, 0.9999), "review": (0.0001, 0.9999), "urgent": (0.0001, 0.0002)}.items():
        chosen = dict(zip(("review", "urgent"), thresholds, strict=True))
        bundles.write(str(tmp_path / level), manifest | {"thresholds": chosen | {"operating_point": point}}, files)
        said = command("predict", lesions / "melanoma" / "MEL-0.jpg", "--bundle", tmp_path / level)
        assert f"Alert level: {level}. The melanoma probability is " in said.out
        assert f"review begins at {thresholds[0]:.1%}, urgent at {thresholds[1]:.1%}." in said.out
        assert "the 437 validation images (85 melanomas)" in said.out
        assert "for 96% of the melanomas (95% interval 91% to 99%), and none for 61% of the other images;" in said.out
        seen[level] = said.out.split("urgent at ")[1].splitlines()[1]
    assert "no proof that it is harmless" in seen["none"]
    assert len(set(seen.values())) == 3
    # A bundle of which the operating point is not known says nothing of it.
    assert (
        "validation images" not in command("predict", lesions / "nevus" / "NV-0.jpg", "--bundle", other_bundle_path).out
    )


def test_predict_has_no_digest_of_a_file_that_it_did_not_read_to_its_end(
    command: Run, bundle_path: Path, tmp_path: Path
) -> None:
    with (tmp_path / "big.jpg").open("wb") as file:
        file.truncate(64 * 2**20 + 5)
    (row,) = json.loads(command("predict", tmp_path / "big.jpg", "--bundle", bundle_path, "--json").out)
    assert (row["error_kind"], row["content_sha256"]) == ("too_large", None)


def test_evaluate_answers_with_metrics_and_writes_the_report(
    command: Run, bundle_path: Path, catalogs: Path, tmp_path: Path
) -> None:
    arguments = ["evaluate", bundle_path, catalogs / "catalog.parquet", "--split", "all", "--out", tmp_path / "out"]
    said = command(*arguments, "--json")
    assert (said.code, said.err) == (0, "")
    metrics = json.loads(said.out)
    assert (metrics["n"], metrics["n_melanoma"]) == (36, 4)
    names = ["accuracy", "balanced_accuracy", "melanoma_auc", "melanoma_pauc", "sensitivity", "specificity"]
    for name in [*names, "specificity_at_95_sensitivity", "ece", "brier"]:
        assert {"value", "low", "high"} <= metrics[name].keys()
        assert metrics[name]["low"] <= metrics[name]["value"] <= metrics[name]["high"]
    assert set(metrics["recall"]) == set(taxonomy.CODES)
    assert json.loads((tmp_path / "out" / "metrics.json").read_text()) == metrics
    assert len(pd.read_parquet(tmp_path / "out" / "predictions.parquet")) == 36
    assert "<html" in (tmp_path / "out" / "report.html").read_text()


def test_without_a_named_bundle_the_reference_is_used(
    command: Run,
    monkeypatch: pytest.MonkeyPatch,
    ray_cluster: None,
    lesions: Path,
    bundle: Bundle,
    bundle_path: Path,
    tmp_path: Path,
) -> None:
    monkeypatch.setattr(bundles, "REFERENCE", bundle_path)
    (row,) = json.loads(command("predict", lesions / "nevus" / "NV-0.jpg", "--json").out)
    assert row["model_version"] == bundle.version
    said = command("score", lesions / "nevus", "--out", tmp_path / "out", "--json")
    assert (said.code, json.loads(said.out)["model_version"]) == (0, bundle.version)
    settings = config.load(ScoreConfig, None, ["archive=s3://archive", "out=s3://out"])
    assert bundles.load(settings.bundle).version == bundle.version


def test_what_is_named_goes_before_the_reference(
    command: Run, monkeypatch: pytest.MonkeyPatch, lesions: Path, bundle_path: Path, other_bundle_path: Path
) -> None:
    monkeypatch.setattr(bundles, "REFERENCE", bundle_path)
    said = command("predict", lesions / "nevus" / "NV-0.jpg", "--json", "--bundle", other_bundle_path)
    assert json.loads(said.out)[0]["model_version"] == bundles.load(str(other_bundle_path)).version


def test_score_and_alerts_answer_in_words_and_in_json(
    command: Run, ray_cluster: None, lesions: Path, bundle: Bundle, bundle_path: Path, tmp_path: Path
) -> None:
    out, settings = tmp_path / "out", tmp_path / "score.yaml"
    settings.write_text("workers: 1\nshard_size: 12\nbatch_size: 5\n")
    arguments = ["score", lesions, "--out", out, "--bundle", bundle_path, "--config", settings]
    said = command(*arguments, "--run-date", "2026-11-20", "--run-id", "night", "--json")
    record = json.loads(said.out)
    assert (said.code, record["changed"], record["run_id"]) == (0, True, "night")
    *lines, last = said.err.splitlines()
    assert lines == [
        "36 objects listed, 0 of them done before by this model.",
        *[f"Scoring: {done} of 36" for done in (12, 24, 36)],
    ]
    assert (json.loads(last)["run_id"], json.loads(last)["done"]) == ("night", 36)
    counts = record["counts"]
    assert (counts["scored"], counts["rejected"]) == (36, 0)
    said = command(*arguments, "--run-date", "2026-11-20", "--run-id", "night")
    assert (said.code, said.err) == (0, "")
    assert "nothing was changed" in said.out
    assert f"36 scored, 0 rejected, {counts['alerts']} alerts" in said.out

    rows = json.loads(command("alerts", out, "--json").out)
    assert [row["rank"] for row in rows] == list(range(1, counts["alerts"] + 1))
    assert {row["alert_level"] for row in rows} == {"urgent", "review"}
    assert all(row["model_version"] == bundle.version for row in rows)
    said = command("alerts", out, "--date", "2026-11-20")
    assert (said.code, said.err) == (0, "")
    assert said.out.count(bundle.version) == counts["alerts"]
    for row in rows:
        assert row["image_uri"] in said.out
        assert f"{row['p_melanoma']:.1%}" in said.out
    assert said.out.splitlines()[-1] == f"{counts['alerts']} alerts, {counts['alerts']} of them new."
    table = list(csv.DictReader(io.StringIO(command("alerts", out, "--csv").out)))
    assert [row["image_uri"] for row in table] == [row["image_uri"] for row in rows]
    assert [float(row["p_melanoma"]) for row in table] == [row["p_melanoma"] for row in rows]
    assert (out / "runs" / "run_id=night" / "run.html").exists()

    # What the night before has raised is said, and may be left out.
    again = command(*arguments, "--run-date", "2026-11-21", "--all", "--json")
    assert json.loads(again.out)["counts"]["alerts"] == counts["alerts"]
    assert command("alerts", out, "--new").out.splitlines()[-1] == "0 alerts, 0 of them new."
    assert {row["first_raised"] for row in json.loads(command("alerts", out, "--json").out)} == {"2026-11-20"}
    assert "there are runs of 2026-11-20, 2026-11-21" in sentence(command("alerts", out, "--date", "2026-11-22"))


def test_an_unexpected_error_says_how_to_see_where(command: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise ZeroDivisionError("first line\nsecond line")

    assert cli.run(fail) == 3
    monkeypatch.setitem(os.environ, "MELANOMA_DEBUG", "1")
    with pytest.raises(ZeroDivisionError):
        cli.run(fail)
