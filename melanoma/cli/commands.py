"""The command `melanoma`. Each command is one call of the library; what is here is words in and words out.

Exit codes: 0 done, 1 the thing asked about is not so (a leak), 2 wrong use or bad input, 3 failed while running.
Answers go to standard output, progress to standard error.
"""

import contextlib
import csv
import hashlib
import json
import logging
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from melanoma import __version__, config, quiet, storage, taxonomy
from melanoma.errors import InputError, MelanomaError
from melanoma.evaluation.config import EvaluateConfig
from melanoma.scoring import tables
from melanoma.scoring.config import DeliveryConfig, ScoreConfig
from melanoma.training.config import TrainConfig
from melanoma.training.studies.config import AblationConfig, RecipesConfig, TuneConfig

if TYPE_CHECKING:
    import pandas as pd

    from melanoma.model.explain import Explainer
    from melanoma.model.predictor import Predictor
    from melanoma.training.plan import ClassShare

app = typer.Typer(
    help="Train a CNN on skin images and score image archives for melanoma. Not a medical device.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)
# Text is never wrapped in the middle of a path, and neither is a table that goes to a file.
_WIDTH = None if sys.stdout.isatty() else 1000
# Paths and labels are the users' own words: square brackets in them are not markup.
answer = Console(highlight=False, markup=False, soft_wrap=True, width=_WIDTH)
progress_console = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)

Json = Annotated[bool, typer.Option("--json", help="Print the answer as JSON.")]
BundleOption = Annotated[
    str | None,
    typer.Option("--bundle", help="The model: a folder or an s3:// URI. Default: the reference that comes with this."),
]


def main(arguments: Sequence[str] | None = None) -> None:
    """The entry point of the command and of the jobs: runs, and exits with the code of the outcome."""
    sys.exit(run(lambda: app(args=list(arguments) if arguments is not None else None, standalone_mode=False)))


def run(call: Callable[[], Any]) -> int:
    """Call, and turn what happens into an exit code, and an error into one sentence."""
    try:
        result = call()
    except MelanomaError as error:
        return _fail(str(error), error.exit_code)
    except typer.TyperException as error:  # wrong use; without a message, the help was printed
        message = error.format_message()
        return _fail(f"{message} See `melanoma --help`.", 2) if message else 2
    except typer.Exit as error:
        return error.exit_code
    except (KeyboardInterrupt, typer.Abort):
        return _fail("Interrupted.", 3)
    except SystemExit:  # what Ray makes of SIGTERM
        return _fail("Terminated.", 3)
    except Exception as error:
        if os.environ.get("MELANOMA_DEBUG"):
            raise
        message = str(error).splitlines()[0] if str(error) else ""
        return _fail(f"Unexpected {type(error).__name__}: {message} (set MELANOMA_DEBUG=1 to see where)", 3)
    if result == 130:  # what Typer makes of Ctrl-C
        return _fail("Interrupted.", 3)
    return result if isinstance(result, int) else 0


def _fail(message: str, code: int) -> int:
    print(f"melanoma: {message}", file=sys.stderr)
    return code


def say(message: str) -> None:
    """One line of progress."""
    progress_console.print(message)


def _import_tensorflow() -> None:
    """Import TensorFlow without what its C++ prints before any logging can be set."""
    with quiet.native_stderr():
        import tensorflow as tf

        tf.config.list_physical_devices()


def _print_json(value: Any) -> None:
    print(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False, default=str))


class _Rate(ProgressColumn):
    """How many a second, lately."""

    def render(self, task: Task) -> Text:
        return Text(f"{task.speed:.1f}/s" if task.speed else "")


@contextlib.contextmanager
def _bar(title: str) -> Iterator[Callable[[int, int], None]]:
    """A progress bar on a terminal; elsewhere a line for each tenth."""
    if not progress_console.is_terminal:
        tenths = Counter[int]()

        def line(done: int, total: int) -> None:
            tenth = 10 * done // max(1, total)
            tenths[tenth] += 1
            if tenths[tenth] == 1 and tenth:
                say(f"{title}: {done} of {total}")

        yield line
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), _Rate(), TimeRemainingColumn())
    with Progress(*columns, console=progress_console, transient=True) as bar:
        task = bar.add_task(title, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


@app.callback(invoke_without_command=True)
def _root(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        answer.print(__version__)
        raise typer.Exit


# --- Data ------------------------------------------------------------------------------------------------------------


@app.command(epilog="Example: melanoma catalog data/isic9 s3://images/ham10000/metadata.csv -o catalog.parquet")
def catalog(
    sources: Annotated[
        list[str], typer.Argument(metavar="SRC...", help="Folders with a sub-folder a class, or CSV/Parquet manifests.")
    ],
    output: Annotated[str, typer.Option("--output", "-o", help="The catalog to write (Parquet).")],
    metadata: Annotated[
        list[str] | None,
        typer.Option(help="Table that knows lesion, patient, age, sex or site of images by ISIC id. May be repeated."),
    ] = None,
    rules_file: Annotated[
        str | None, typer.Option("--resolve", metavar="RULES", help="YAML of repairs, such as configs/isic9.yaml.")
    ] = None,
    as_json: Json = False,
) -> None:
    """List images with their labels, digests and groups, as one Parquet table; repair it by rule."""
    from melanoma.catalog import build, resolve, schema

    rules = config.load(resolve.Rules, rules_file) if rules_file else None
    with _bar("Reading images") as bar:
        frame = build.build(sources, bar, metadata or ())
    if rules:
        frame, counts = resolve.resolve(frame, rules)
        for rule, count in zip(rules.rules, counts, strict=True):
            say(f"Rule {rule.rule}: {count} images changed ({rule.reason}).")
    _write_catalog(output, frame, schema.write)
    summary = _summary(frame)
    if as_json:
        _print_json(summary)
        return
    _print_distribution(frame)
    answer.print(
        f"{summary['images']} images in {summary['groups']} groups, {summary['unusable']} unusable, "
        f"{summary['unlabelled']} without a label: {output}"
    )
    if rules:
        answer.print(f"{summary['changed']} images changed by rule, {summary['dropped']} of them dropped.")


def _write_catalog(output: str, frame: "pd.DataFrame", write: Callable[[str, "pd.DataFrame"], str]) -> None:
    try:
        write(output, frame)
    except OSError as error:
        raise InputError(f"The catalog cannot be written to {output}: {error}") from None


def _summary(frame: "pd.DataFrame") -> dict[str, Any]:
    from melanoma.catalog import schema

    dropped = schema.dropped(frame)
    return {
        "images": len(frame),
        "groups": int(frame["group_id"].nunique()),
        "unusable": int(frame["error"].notna().sum()),
        "unlabelled": int((frame["label"].isna() & ~dropped).sum()),
        "dropped": int(dropped.sum()),
        "changed": int(frame["changes"].notna().sum()),
        "labels": {str(k): int(v) for k, v in frame["label"].value_counts().sort_index().items()},
        "splits": {str(k): int(v) for k, v in frame["split"].value_counts().sort_index().items()},
        "fingerprint": schema.fingerprint(frame),
    }


def _print_distribution(frame: "pd.DataFrame") -> None:
    splits = [*[s for s in ("train", "validation", "test") if (frame["split"] == s).any()], "none"]
    table = Table("label", *splits, "all")
    for label in sorted(frame["label"].dropna().unique()):
        rows = frame[frame["label"] == label]
        counts = [int((rows["split"] == s).sum()) for s in splits[:-1]] + [int(rows["split"].isna().sum())]
        table.add_row(f"{label} ({taxonomy.name_of(label)})", *map(str, counts), str(len(rows)))
    answer.print(table)


@app.command(epilog="Example: melanoma split catalog.parquet -o catalog.parquet --validation 0.2 --test 0")
def split(
    source: Annotated[str, typer.Argument(metavar="CATALOG")],
    output: Annotated[str, typer.Option("--output", "-o", help="The catalog to write (Parquet).")],
    validation: Annotated[float, typer.Option(help="Share of the images for validation.")] = 0.15,
    test: Annotated[
        float | None, typer.Option(help="Share for test; default 0.15, or 0 where a brought test split is kept.")
    ] = None,
    given_test: Annotated[
        Literal["keep", "aside"],
        typer.Option(help="A test split that the catalog brings is kept, or its groups are in no split."),
    ] = "keep",
    seed: Annotated[int, typer.Option(help="Decides which group goes where.")] = 0,
    as_json: Json = False,
) -> None:
    """Deal the groups of a catalog to train, validation and test, stratified by source and label, and freeze it."""
    from melanoma.catalog import schema
    from melanoma.catalog import split as splitting

    frame = schema.read(source)
    if test is None:
        test = 0.0 if given_test == "keep" and not schema.usable(frame, "test").empty else 0.15
    result = splitting.split(frame, validation, test, seed, given_test)
    _write_catalog(output, result, schema.write)
    summary = _summary(result)
    if as_json:
        _print_json(summary)
        return
    _print_distribution(result)
    aside = int((result["split"].isna() & result["error"].isna() & result["label"].notna()).sum())
    if aside:
        answer.print(f"{aside} images are set aside: they belong to groups of the test split that the catalog brings.")
    answer.print(f"Frozen with fingerprint {summary['fingerprint'][:16]}: {output}")


@app.command(epilog="Example: melanoma audit isic9.parquet ham10000.parquet --reference isic2019.csv --out out/audit")
def audit(
    catalogs: Annotated[list[str], typer.Argument(metavar="CATALOG...", help="Looked at as one set of images.")],
    reference: Annotated[
        str | None, typer.Option(help="Table of image ids and labels that the catalog's labels are compared with.")
    ] = None,
    out: Annotated[str | None, typer.Option(help="Folder or s3:// URI for audit.html and audit.json.")] = None,
    as_json: Json = False,
) -> int:
    """Look for leaks, contradictory labels, weak classes and what gives a label away; exit 1 on the first two."""
    from melanoma.catalog import audit as auditing
    from melanoma.catalog import audit_report

    if out is not None:
        storage.check_writable(out)
    known = None if reference is None else auditing.read_reference(reference)
    frame, repeats = auditing.read(catalogs)
    found = auditing.examine(frame, known, repeats)
    if out is not None:
        with _bar("Fetching pictures") as bar:
            audit_report.write(out, found, bar)
    if as_json:
        _print_json(found)
    else:
        audit_report.show(answer, found, out)
    return 0 if auditing.is_clean(found) else 1


# --- Models ----------------------------------------------------------------------------------------------------------


@app.command(epilog="Example: melanoma train --config configs/train.yaml --out out/bundle epochs=10 seed=1")
def train(
    config_file: Annotated[str, typer.Option("--config", help="YAML of the training, such as configs/train.yaml.")],
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...")] = None,
    out: Annotated[str | None, typer.Option(help="Where the bundle is written: a folder or an s3:// URI.")] = None,
    as_json: Json = False,
) -> None:
    """Train as configured, choose the best epoch on validation, calibrate, measure, write a bundle."""
    settings = config.load(TrainConfig, config_file, overrides, out=out)
    run_train(settings, as_json)


def run_train(settings: TrainConfig, as_json: bool = False) -> None:
    _import_tensorflow()
    from melanoma.training import train

    bundle = train.train(settings, say_epoch(settings), say, _say_distribution)
    if as_json:
        _print_json({"bundle": settings.out, **bundle.manifest})
        return
    _print_metrics(bundle.manifest["metrics"], bundle.manifest["metrics"]["split"])
    answer.print(f"Bundle of model {bundle.version}: {settings.out} (report: {settings.out}/evaluation/report.html)")


def _say_distribution(classes: "list[ClassShare]") -> None:
    table = Table("training split", "images", "copies", "share", "of draws", "of the loss", title="Class balance")
    for row in classes:
        shares = (f"{row[column]:.1%}" for column in ("share", "drawn", "effective"))
        table.add_row(row["label"], str(row["images"]), str(row["copies"]), *shares)
    progress_console.print(table)


def run_ablation(settings: AblationConfig) -> None:
    """What jobs/ablation.py calls."""
    _import_tensorflow()
    from melanoma.training.studies import ablation

    answer.print(ablation.table(ablation.run(settings, say)))
    answer.print(f"Figures: {settings.out}/ablation.json, table: {settings.out}/ablation.md")


def run_tune(settings: TuneConfig) -> None:
    """What jobs/tune.py calls."""
    _import_tensorflow()
    from melanoma.training.studies import search

    answer.print(search.markdown(search.run(settings, say), settings.scheduler.metric))
    answer.print(
        f"Figures: {settings.out}/search.json, table: {settings.out}/search.md, best configuration: "
        f"{settings.out}/best.yaml"
    )


def run_recipes(settings: RecipesConfig) -> None:
    """What jobs/recipes.py calls."""
    _import_tensorflow()
    from melanoma.training.studies import recipes

    answer.print(recipes.table(recipes.run(settings, say)))
    answer.print(f"Figures: {settings.out}/recipes.json, table: {settings.out}/recipes.md")


def say_epoch(settings: TrainConfig) -> Callable[[dict[str, float]], None]:
    def line(metrics: dict[str, float]) -> None:
        say(
            f"epoch {metrics['epoch']:.0f}/{settings.epochs}  loss {metrics['loss']:.3f}  validation: "
            f"loss {metrics['validation_loss']:.3f}, accuracy {metrics['accuracy']:.3f}, balanced "
            f"{metrics['balanced_accuracy']:.3f}, melanoma AUC {metrics['melanoma_auc']:.3f}  "
            f"({metrics['images_per_second']:.0f} images/s, {metrics['input_wait_share']:.0%} of it waiting for input)"
        )

    return line


@app.command(epilog="Example: melanoma evaluate out/bundle catalog.parquet --out out/evaluation --split test")
def evaluate(
    bundle: Annotated[str, typer.Argument(metavar="BUNDLE")],
    catalog: Annotated[str, typer.Argument(metavar="CATALOG")],
    out: Annotated[str, typer.Option(help="Folder or s3:// URI of the report.")],
    split: Annotated[str, typer.Option(help="train, validation, test or all.")] = "test",
    source: Annotated[
        list[str] | None, typer.Option(help="Measure only images of this source; may be given again. Default: all.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the bootstrap.")] = 0,
    by: Annotated[
        list[str] | None,
        typer.Option(help="Column of the catalog to measure subgroups by; may be given again. Default: what is known."),
    ] = None,
    against: Annotated[str | None, typer.Option(help="Another bundle, to compare with on the same images.")] = None,
    prevalence: Annotated[
        float | None, typer.Option(help="Share of melanoma to show alerts and predictive values at.")
    ] = None,
    others: Annotated[
        list[str] | None, typer.Option(help="Folder of pictures that are no dermoscopy; may be given again.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Measure a bundle on a split of a catalog: metrics.json, predictions.parquet and report.html."""
    settings = config.load(
        EvaluateConfig,
        None,
        None,
        bundle=bundle,
        catalog=catalog,
        out=out,
        split=split,
        sources=source or None,
        seed=seed,
        by=by or None,
        against=against,
        prevalence=prevalence,
        others=others or None,
    )
    run_evaluate(settings, as_json)


def run_evaluate(settings: EvaluateConfig, as_json: bool = False) -> None:
    _import_tensorflow()
    from melanoma.evaluation.run import evaluate

    metrics = (evaluate(settings) if as_json else evaluate(settings, say)).metrics
    if as_json:
        _print_json(metrics)
        return
    _print_metrics(metrics, settings.split)
    answer.print(f"Report: {settings.out}/report.html")


def _print_metrics(metrics: dict[str, Any], split: str) -> None:
    table = Table(
        "figure", "value", "95% interval", title=f"{split}: {metrics['n']} images, {metrics['n_melanoma']} melanomas"
    )
    figures = {
        **{name: value for name, value in metrics.items() if isinstance(value, dict) and "value" in value},
        **{f"recall of {name}": value for name, value in metrics["recall"].items()},
    }
    for name, figure in figures.items():
        if figure["value"] is None:
            table.add_row(name.replace("_", " "), "not defined", "")
        else:
            interval = f"{figure['low']:.3f} to {figure['high']:.3f}" if figure["low"] is not None else ""
            table.add_row(name.replace("_", " "), f"{figure['value']:.3f}", interval)
    answer.print(table)
    if comparison := metrics.get("comparison"):
        table = Table("figure", "this", "other", "difference", "95% interval", title="against the other bundle")
        for name, figure in comparison["figures"].items():
            difference = figure["difference"]
            if difference["value"] is not None:
                interval = f"{difference['low']:+.3f} to {difference['high']:+.3f}" if difference["method"] else ""
                numbers = f"{figure['this']:.3f}", f"{figure['other']:.3f}", f"{difference['value']:+.3f}"
                table.add_row(name.replace("_", " "), *numbers, interval)
        answer.print(table)
        if comparison["leak_warning"]:
            answer.print(f"The other bundle: {comparison['leak_warning']}", style="bold red")
    if metrics.get("leak_warning"):
        answer.print(metrics["leak_warning"], style="bold red")


@app.command(epilog="Example: melanoma predict lesion.jpg --bundle out/bundle --explain out/explained")
def predict(
    images: Annotated[list[str], typer.Argument(metavar="IMAGE...", help="Files or s3:// URIs.")],
    bundle: BundleOption = None,
    explain: Annotated[str | None, typer.Option(help="Folder for an overlay PNG an image.")] = None,
    as_json: Json = False,
) -> int:
    """Score single images and print the probabilities, the alert level and what it means."""
    from melanoma.imaging import load as load_image
    from melanoma.imaging.errors import ImageError
    from melanoma.model.bundle import load
    from melanoma.model.explain import Explainer
    from melanoma.model.predictor import Predictor, predict_bytes

    loaded = load(bundle)
    _import_tensorflow()
    predictor = Predictor(loaded)
    explainer = Explainer(loaded) if explain else None
    answers = []
    for image in images:
        uri = storage.normalize(image)
        try:
            data: bytes | ImageError = load_image.fetch(uri)
        except ImageError as error:
            data = error
        answers.append({"image_uri": uri, **predict_bytes(predictor, data)})
        if explainer and explain and isinstance(data, bytes) and "error_kind" not in answers[-1]:
            answers[-1] |= _explain(predictor, explainer, data, uri, explain, answers[-1]["p_melanoma"])
    if as_json:
        _print_json(answers)
    else:
        for row in answers:
            _print_prediction(row, loaded.manifest["thresholds"])
    return 2 if any("error_kind" in row for row in answers) else 0


def _explain(
    predictor: "Predictor", explainer: "Explainer", data: bytes, uri: str, folder: str, p_melanoma: float
) -> dict[str, Any]:
    """Writes the overlay; where it lies, and the melanoma probability with the marked region covered."""
    from melanoma.imaging.decode import decode, decode_image
    from melanoma.model import explain

    pixels = decode(data, predictor.bundle.input_size).pixels
    heat = explainer.heat(pixels)
    without = explain.covered(pixels, explain.hottest(heat, len(pixels)))
    p_covered = predictor.probabilities(without[None])[0, taxonomy.CODES.index(taxonomy.MELANOMA)]
    target = storage.join(
        storage.normalize(folder), f"{taxonomy.image_id_of(uri)}-{hashlib.sha256(data).hexdigest()[:12]}.png"
    )
    try:
        storage.write_bytes(target, explain.overlay(decode_image(data, longest=800), heat, p_melanoma))
    except OSError as error:
        raise InputError(f"The explanation cannot be written to {folder}: {error}") from None
    return {"explanation_uri": target, "p_melanoma_covered": float(p_covered)}


_MEANING = {
    "none": "The model sees too little of a melanoma to raise this image, which is no proof that it is harmless.",
    "review": "A dermatologist should look at this image. Most images raised at this level are no melanomas.",
    "urgent": "To this model the image looks more like a melanoma than most do: a dermatologist should see it first.",
}


def _print_prediction(row: dict[str, Any], thresholds: dict[str, Any]) -> None:
    if "error_kind" in row:
        answer.print(f"{row['image_uri']}: rejected ({row['error_kind']}). {row['error']}\n")
        return
    table = Table("diagnosis", "probability", title=row["image_uri"], title_justify="left")
    for code in sorted(taxonomy.CODES, key=lambda code: -row[f"p_{code}"]):
        table.add_row(f"{taxonomy.NAMES[code]} ({code})", f"{row[f'p_{code}']:.1%}")
    answer.print(table)
    answer.print(
        f"Alert level: {row['alert_level']}. The melanoma probability is {row['p_melanoma']:.1%}; review begins at "
        f"{thresholds['review']:.1%}, urgent at {thresholds['urgent']:.1%}.\n{_MEANING[row['alert_level']]}"
    )
    if "operating_point" in thresholds:
        answer.print(_reliability(thresholds["operating_point"]))
    if row["outlier_score"] > 1:
        answer.print("This picture is unlike the images that the model was trained on: do not rely on its answer.")
    if "explanation_uri" in row:
        answer.print(
            f"What raised the probability: {row['explanation_uri']} (with the reddest 15% of the picture covered, the "
            f"melanoma probability is {row['p_melanoma_covered']:.1%})"
        )
    answer.print(f"Model {row['model_version']}. Not a medical device.\n")


def _reliability(point: dict[str, Any]) -> str:
    """What the threshold of `review` gave on the images that it was chosen on."""
    shares = []
    for estimate, whom in ((point["sensitivity"], "the melanomas"), (point["specificity"], "the other images")):
        low, high = estimate["low"], estimate["high"]
        interval = "" if low is None else f" (95% interval {low:.0%} to {high:.0%})"
        shares.append(f"{estimate['value']:.0%} of {whom}{interval}")
    raised, quiet = shares
    return (
        f"On the {point['n']} validation images ({point['n_melanoma']} melanomas) that the threshold was chosen on, an "
        f"alert was raised for {raised}, and none for {quiet}; on other cameras and patients it can be less."
    )


# --- The nightly job and its alerts ----------------------------------------------------------------------------------


@app.command(epilog="Example: melanoma score s3://archive/2026 --out s3://results --bundle s3://models/current")
def score(
    archive: Annotated[
        list[str],
        typer.Argument(
            metavar="ARCHIVE...",
            help="Folders and s3:// prefixes; manifests (.csv, .parquet); manifest.json of an S3 Inventory.",
        ),
    ],
    out: Annotated[str, typer.Option(help="Folder or s3:// URI of the results.")],
    bundle: BundleOption = None,
    run_id: Annotated[str | None, typer.Option(help="Name of the run; default: the date and a digest.")] = None,
    run_date: Annotated[str | None, typer.Option(help="ISO date of the run; default: today, UTC.")] = None,
    everything: Annotated[bool, typer.Option("--all", help="Score again what this model has scored.")] = False,
    config_file: Annotated[str | None, typer.Option("--config", help="YAML such as configs/score.yaml.")] = None,
    as_json: Json = False,
) -> None:
    """Score an archive: every image ends in scores or in rejects, melanoma alerts in one ranked Parquet file."""
    settings = config.load(
        ScoreConfig,
        config_file,
        archive=archive[0] if len(archive) == 1 else archive,
        out=out,
        bundle=bundle,
        run_id=run_id,
        run_date=run_date,
        all=everything or None,
    )
    run_score(settings, as_json)


def run_score(settings: ScoreConfig, as_json: bool = False) -> None:
    from melanoma.scoring import deliver
    from melanoma.scoring.run import score

    if settings.deliver:
        deliver.check(settings.deliver)  # rather now than after hours
    with _bar("Scoring") as bar, _log_lines(settings.log):
        outcome = score(settings, lambda watch: bar(watch.done, watch.total), say)
    record = outcome.record
    if settings.deliver:
        deliver.deliver(settings.out, settings.deliver, say=say)
    if as_json:
        _print_json({**record, "changed": outcome.changed})
        return
    if not outcome.changed:
        answer.print(f"The run {record['run_id']} was finished at {record['finished_at']}: nothing was changed.")
    print_run(record, settings.out)


@contextlib.contextmanager
def _log_lines(path: str | None) -> Iterator[None]:
    """The run's log lines go into a file, if one is named, and to stderr where no terminal shows a bar."""
    from melanoma.scoring.run import LOG

    handlers: list[logging.Handler] = [] if progress_console.is_terminal else [logging.StreamHandler()]
    if path:
        try:
            handlers.append(logging.FileHandler(path))
        except OSError as error:
            raise InputError(f"The log {path} cannot be written: {error.strerror}.") from None
    LOG.setLevel(logging.INFO)
    LOG.propagate = False
    for handler in handlers:
        LOG.addHandler(handler)
    try:
        yield
    finally:
        for handler in handlers:
            LOG.removeHandler(handler)
            handler.close()


def print_run(record: dict[str, Any], out: str) -> None:
    counts = record["counts"]
    kinds = ", ".join(f"{number} {kind}" for kind, number in counts["rejects_by_kind"].items())
    answer.print(
        f"Run {record['run_id']}: {counts['listed']} objects listed, {counts['done_before']} done before, "
        f"{counts['scored']} scored, {counts['rejected']} rejected{f' ({kinds})' if kinds else ''}, "
        f"{counts['alerts']} alerts ({counts['urgent']} urgent, {counts['review']} review).",
    )
    answer.print(f"Results in {out}: scores/, rejects/, alerts/ and runs/run_id={record['run_id']}.json")
    answer.print(f"The night on one page: {out}/runs/run_id={record['run_id']}/run.html")


@app.command(epilog="Example: melanoma alerts s3://results --date 2026-11-20")
def alerts(
    out: Annotated[str, typer.Argument(metavar="OUT", help="Folder or s3:// URI of the results.")],
    date: Annotated[str | None, typer.Option(help="ISO date; default: the newest.")] = None,
    new: Annotated[bool, typer.Option("--new", help="Only what no earlier night has raised.")] = False,
    by_patient: Annotated[bool, typer.Option("--by-patient", help="Patients together, the worst first.")] = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV.")] = False,
    as_json: Json = False,
) -> None:
    """List the alerts of a night, the most probable melanoma first."""
    from melanoma.scoring import alerts as alerting
    from melanoma.scoring.run import read_alerts

    rows = [row for row in read_alerts(out, date).to_pylist() if not new or row["first_raised"] is None]
    if by_patient:
        rows = alerting.by_patient(rows)
    if as_json:
        _print_json(rows)
        return
    if as_csv:
        fields = [name for name in tables.ALERTS.names if name not in ("quality", "copies")]
        writer = csv.DictWriter(sys.stdout, [*fields, "copies"], extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows({**row, "copies": " ".join(row["copies"] or ())} for row in rows)
        return
    table = Table("rank", "level", "melanoma", "diagnosis", "outlier", "patient", "raised before", "image", "model")
    for row in rows:
        copies = f" (+{len(row['copies'])})" if row["copies"] else ""
        table.add_row(
            str(row["rank"]),
            row["alert_level"],
            f"{row['p_melanoma']:.1%}",
            row["diagnosis"],
            f"{row['outlier_score']:.1f}",
            row["patient_id"] or "",
            row["first_raised"] or "",
            f"{row['image_uri']}{copies}",
            row["model_version"],
        )
    answer.print(table)
    known = sum(row["first_raised"] is not None for row in rows)
    answer.print(f"{len(rows)} alerts, {len(rows) - known} of them new.")


@app.command(epilog="Example: melanoma deliver s3://results --config configs/deliver.yaml")
def deliver(
    out: Annotated[str, typer.Argument(metavar="OUT", help="Folder or s3:// URI of the results.")],
    config_file: Annotated[str, typer.Option("--config", help="YAML such as configs/deliver.yaml.")],
    date: Annotated[str | None, typer.Option(help="ISO date; default: the newest.")] = None,
    again: Annotated[bool, typer.Option("--again", help="Send too what may have arrived already.")] = False,
) -> None:
    """Send the new alerts of a night by webhook and e-mail, each once."""
    from melanoma.scoring.deliver import deliver

    sent = deliver(out, config.load(DeliveryConfig, config_file), date, again, say)
    if not sent:
        say("Nothing was left to deliver.")


@app.command(epilog="Example: MELANOMA_API_KEY=... melanoma serve --bundle out/bundle --port 8000")
def serve(
    bundle: BundleOption = None,
    port: Annotated[int, typer.Option(min=1, max=65535, help="TCP port.")] = 8000,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
) -> None:
    """Answer single images over HTTP; the key that clients must send is in MELANOMA_API_KEY."""
    from melanoma.serving.app import serve_forever

    serve_forever(bundle, host, port, say)


@app.command(epilog="Example: melanoma demo --out demo")
def demo(
    out: Annotated[
        str, typer.Option(help="Folder for everything that the demo makes; its results stay there.")
    ] = "demo",
) -> None:
    """One night, end to end, on this machine: object storage, training, scoring an archive, alerts in Parquet."""
    _import_tensorflow()
    from melanoma.demo.run import demo

    demo(Path(out), say)


if __name__ == "__main__":
    main()
