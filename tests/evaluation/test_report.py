import base64
import dataclasses
import io
import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, NoReturn

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from matplotlib.patches import Rectangle
from PIL import Image

from melanoma.evaluation.comparison import Comparison, FigureComparison
from melanoma.evaluation.figures import class_distribution_figure, figure_png, training_curves_figure
from melanoma.evaluation.gallery import select_pictures
from melanoma.evaluation.intervals import UNDEFINED, Estimate
from melanoma.evaluation.metrics import Metrics, TopOfPatient, compute_metrics, to_json
from melanoma.evaluation.outlier_rates import OutlierRate
from melanoma.evaluation.report import Details, write_report
from melanoma.evaluation.stability import Change, Flips, Stability
from melanoma.evaluation.subgroups import counts, subgroups
from melanoma.evaluation.weighted_figures import FIGURES
from melanoma.evaluation.wording import percent
from melanoma.taxonomy import CODES

DETAILS: dict[str, Any] = {
    "title": "Evaluation of the test model",
    "model_version": "m-123",
    "bundle_created": "2026-11-19",
    "classes": CODES,
    "catalog": "catalog.parquet",
    "sources": "isic9",
    "split": "test",
    "split_fingerprint": "sha256:feed",
    "leak_warning": None,
    "code_version": "0.1.0",
    "training": {"epochs": "60"},
    "thresholds": {"review": 0.25, "urgent": 0.75, "chosen": "on validation"},
    "operating_point": None,
    "class_counts": {"train": {"MEL": 30, "NV": 70}, "validation": {"MEL": 10, "NV": 20}},
    "source_counts": None,
    "class_distribution": None,
    "leaked_twin": None,
    "members": [{"history": [], "best_epoch": 1}],
    "labels_changed": 0,
    "versions": {"keras": "3.15.1"},
    "fingerprints": {"sha256 of model.keras": "sha256:beef"},
    "date": "2026-11-21",
}
HOSTILE = '"><script>alert(1)</script><img src=x onerror=alert(2)>&amp;'


def predictions(n_melanoma: int = 16, n_nevus: int = 40, missed: int = 2, alarms: int = 5) -> pd.DataFrame:
    """Melanomas of which `missed` are below the threshold of 0.25, and nevi of which `alarms` are above it."""
    melanoma = np.array([True] * n_melanoma + [False] * n_nevus)
    p = np.concatenate(
        [
            np.linspace(0.01, 0.2, missed),
            np.linspace(0.3, 0.9, n_melanoma - missed),
            np.linspace(0.3, 0.8, alarms),
            np.linspace(0.01, 0.2, n_nevus - alarms),
        ]
    ).astype(np.float32)
    names = [f"image-{i:03}" for i in range(len(p))]
    frame = pd.DataFrame({"uri": [f"s3://set/{name}.jpg" for name in names], "image_id": names, "group_id": names})
    frame["label"] = np.where(melanoma, "MEL", "NV")
    frame[[f"p_{code}" for code in CODES]] = np.float32(0)
    frame["p_MEL"], frame["p_NV"], frame["p_melanoma"], frame["p_malignant"] = p, 1 - p, p, p
    frame["alert_level"] = np.select([p >= 0.75, p >= 0.25], ["urgent", "review"], "none")
    frame["threshold"] = 0.25
    return frame


def picture(kind: str) -> bytes:
    out = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 255, size=(16, 16, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(out, kind)
    return out.getvalue()


def write(out: Path, frame: pd.DataFrame, pictures: dict[str, bytes] | None = None, **details: Any) -> str:
    write_report(out, frame, compute_metrics(frame, resamples=20), pictures or {}, Details(**(DETAILS | details)))
    return (out / "report.html").read_text(encoding="utf-8")


def estimate(value: float, low: float | None = None, high: float | None = None) -> Estimate:
    return Estimate(value, low, high, None if low is None else "exact binomial")


EXHIBITS: dict[str, Any] = to_json(
    {
        "operating_point": {
            "threshold": 0.25,
            "stated_sensitivity": 0.9,
            "bound": "lower",
            "sensitivity": estimate(0.96, 0.89, 0.99),
            "sensitivity_lower_bound": 0.906,
            "specificity": estimate(0.8, 0.7, 0.9),
            "n": 444,
            "n_melanoma": 80,
        },
        "source_counts": {"ham10000": {"MEL": 30, "NV": 70}},
        "class_distribution": [
            {"label": "NV", "images": 70, "copies": 0, "share": 0.7, "drawn": 0.5, "effective": 0.6},
            {"label": "MEL", "images": 30, "copies": 40, "share": 0.3, "drawn": 0.5, "effective": 0.4},
        ],
        "leaked_twin": {
            "explanation": "It is leaked.",
            "honest_validation": {
                "n": 30,
                "accuracy": estimate(0.6, 0.5, 0.7),
                "melanoma_auc": estimate(0.7, 0.6, 0.8),
            },
            "leaked_model_on_test": {"n": 56, "accuracy": estimate(0.42, 0.3, 0.5), "melanoma_auc": UNDEFINED},
            "leaked_validation": {"n": 30, "accuracy": estimate(0.93, 0.9, 0.96), "melanoma_auc": estimate(0.99)},
        },
        "labels_changed": 7,
        "members": [
            {
                "history": [
                    {
                        "epoch": epoch,
                        "loss": 2.0 / epoch,
                        "validation_loss": 2.2 / epoch + 0.01 * epoch,
                        "balanced_accuracy": 1 - 0.8 / epoch,
                        "melanoma_auc": 1 - 0.4 / epoch,
                        "images_per_second": 1200.0,
                        "input_wait_share": 0.03,
                    }
                    for epoch in range(1, 13)
                ],
                "best_epoch": 9,
            }
        ],
    }
)


def full_metrics(frame: pd.DataFrame) -> Metrics:
    """All that `evaluate` can measure."""
    sex = ["male", "female"] * (len(frame) // 2)
    flips = estimate(0.2, 0.1, 0.3), estimate(0.3, 0.2, 0.4), UNDEFINED
    names = ("sensitivity", "specificity", "accuracy", "malignant_sensitivity", "malignant_specificity", *FIGURES)
    compared = {name: FigureComparison(0.5, 0.4, estimate(0.1, -0.1, 0.3)) for name in names}
    compared["sensitivity"] = dataclasses.replace(compared["sensitivity"], only_this=3, only_other=0, p_value=0.25)
    return dataclasses.replace(
        compute_metrics(frame, resamples=20, prevalence=0.05),
        counts=[
            counts(frame, "sex", sex),
            counts(frame, "label", frame["label"].tolist()),
            counts(frame, "anatomic_site", [None] * len(frame)),
        ],
        subgroups=[subgroups(frame, "sex", sex, resamples=20)],
        stability=Stability(
            n=len(frame),
            n_raised_melanoma=3,
            size=96,
            changes=[Change("turned by 90 degrees", *flips, mean_change=estimate(0.05, 0.01, 0.1))],
            any=Flips(*flips),
        ),
        outliers=[
            OutlierRate("pages of text", 40, estimate(0.95, 0.83, 0.99), should_be_rejected=True),
            OutlierRate("dermoscopy", 56, estimate(0.02, 0.0, 0.1), should_be_rejected=False),
        ],
        comparison=Comparison("other-1", 0.5, "It has seen them.", compared),
        top_of_patient={"1": TopOfPatient(estimate(0.5, 0.1, 0.9), n_melanoma=2, n_patients=2)},
    )


class _Page(HTMLParser):
    """Elements with their attributes, and the text that a reader sees."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(html)
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if self.elements and self.elements[-1][0] != "style":
            self.words.append(data)

    def images(self) -> list[bytes]:
        sources = [attributes["src"] or "" for tag, attributes in self.elements if tag == "img"]
        return [base64.b64decode(source.partition(";base64,")[2], validate=True) for source in sources]


def test_files_and_strict_json(tmp_path: Path) -> None:
    frame = predictions(n_melanoma=0, missed=0).convert_dtypes(dtype_backend="pyarrow")
    write(tmp_path, frame)

    def refuse(constant: str) -> NoReturn:
        raise AssertionError(f"{constant} in metrics.json")

    metrics = json.loads((tmp_path / "metrics.json").read_text(encoding="utf-8"), parse_constant=refuse)
    assert metrics["melanoma_auc"] == {"value": None, "low": None, "high": None, "method": None}
    assert metrics["n"] == 40
    stored = pd.read_parquet(tmp_path / "predictions.parquet")
    pd.testing.assert_frame_equal(stored, frame.astype(stored.dtypes.to_dict()))
    # Without melanoma there is no decision curve.
    names = {"confusion.png", "roc.png", "reliability.png", "reliability_melanoma.png"}
    assert {path.name for path in (tmp_path / "figures").iterdir()} == names
    for name in names:
        with Image.open(tmp_path / "figures" / name) as image:
            image.load()
            assert image.width > 600


def test_written_twice_is_the_same(tmp_path: Path) -> None:
    frame = predictions()
    write(tmp_path / "a", frame)
    write(tmp_path / "b", frame)
    for path in sorted((tmp_path / "a").rglob("*.*")):
        assert path.read_bytes() == (tmp_path / "b" / path.relative_to(tmp_path / "a")).read_bytes(), path.name


@pytest.mark.usefixtures("blank_figures")
def test_headlines_in_words(tmp_path: Path) -> None:
    text = _Page(write(tmp_path, predictions())).text
    assert "14 of 16 melanomas were raised (88%, 95% interval 62% to 98%)." in text
    assert "35 of 40 images without melanoma were not raised (88%, 95% interval 73% to 96%)." in text
    assert "optimistic, and not the frozen operating point" in text
    assert "Not a medical device" in text
    for value in ("m-123", "catalog.parquet", "sha256:feed", "isic9", "on validation"):
        assert value in text


@pytest.mark.usefixtures("blank_figures")
def test_a_set_without_melanoma_says_so(tmp_path: Path) -> None:
    text = _Page(write(tmp_path, predictions(n_melanoma=0, missed=0))).text
    assert "This set has no melanoma: sensitivity cannot be measured." in text
    assert "None" not in text
    assert "nan" not in text.lower().split()


@pytest.mark.usefixtures("blank_figures")
def test_leak_warning_is_shown_only_where_there_is_one(tmp_path: Path) -> None:
    assert "not a fair test" not in write(tmp_path / "clean", predictions())
    text = _Page(write(tmp_path / "leaky", predictions(), leak_warning="3 images were seen")).text
    assert "not a fair test" in text
    assert "3 images were seen" in text


def test_what_cannot_be_shown_stops_the_report_before_anything_is_written(tmp_path: Path) -> None:
    frame = predictions()
    broken = Details(**(DETAILS | {"leaked_twin": {}, "class_distribution": [{"label": "NV"}]}))
    with pytest.raises(KeyError, match="images"):
        write_report(tmp_path / "out", frame, compute_metrics(frame, resamples=20), {}, broken)
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("blank_figures")
def test_hostile_text_stays_text(tmp_path: Path) -> None:
    frame = predictions()
    frame["image_id"] = HOSTILE + frame["image_id"]
    frame["alert_level"] = HOSTILE
    hostile = {key: HOSTILE for key, value in DETAILS.items() if isinstance(value, str)}
    pictures = dict.fromkeys(select_pictures(frame), picture("JPEG"))
    named = {HOSTILE: HOSTILE}
    html = write(tmp_path, frame, pictures, **hostile, leak_warning=HOSTILE, training=named, thresholds=named)
    page = _Page(html)
    assert HOSTILE + "image-000" in page.text
    assert "<script" not in html
    assert not [
        tag for tag, attributes in page.elements if tag == "script" or any(a.startswith("on") for a in attributes)
    ]
    assert all((attributes["src"] or "").startswith("data:image/") for tag, attributes in page.elements if tag == "img")


@pytest.mark.usefixtures("blank_figures")
def test_page_loads_nothing_from_elsewhere(tmp_path: Path) -> None:
    html = write(tmp_path, predictions())
    for tag, attributes in _Page(html).elements:
        assert tag not in ("script", "link", "iframe", "object", "embed", "form")
        assert (attributes.get("href") or "#").startswith("#")
        assert (attributes.get("src") or "data:").startswith("data:")
    assert "url(" not in html
    assert "@import" not in html
    assert "default-src 'none'" in html


@pytest.mark.usefixtures("blank_figures")
def test_contents_lead_to_sections_that_are_there(tmp_path: Path) -> None:
    frame = predictions()
    for name, metrics in {"plain": compute_metrics(frame, resamples=20), "full": full_metrics(frame)}.items():
        out = tmp_path / name
        write_report(out, frame, metrics, {}, Details(**(DETAILS | EXHIBITS)))
        elements = _Page((out / "report.html").read_text(encoding="utf-8")).elements
        anchors = [str(attributes["href"])[1:] for tag, attributes in elements if tag == "a"]
        ids = [str(attributes["id"]) for _, attributes in elements if "id" in attributes]
        assert anchors
        assert len(set(ids)) == len(ids)
        assert set(anchors) == set(ids)


def test_sections_of_a_full_evaluation(tmp_path: Path) -> None:
    frame = predictions()
    write_report(tmp_path, frame, full_metrics(frame), {}, Details(**(DETAILS | EXHIBITS)))
    text = _Page((tmp_path / "report.html").read_text(encoding="utf-8")).text
    for expected in (
        "Skin tone is unknown for every image of this set",
        "Not known for any of these images: anatomic site.",
        "By sex female 28",
        "5% as stated",
        "0.1%",
        "Any of these 20.0% 10.0% to 30.0%",
        "the size that the network takes, 96 x 96 pixels",
        "by mistake Dermoscopy 56 2.0%",
        "found out Pages of text 40 95.0%",
        "The model other-1 on the same images",
        "The other model is not tested fairly. It has seen them.",
        "p = 0.25",
        "one-sided 95% lower bound 90.6%",
        "Warning: figures not to be believed How the usual recipe flatters itself It is leaked.",
        "The usual recipe, on its own leaked validation images 93%",
        "The same leaked model on test images that it has not seen 42%",
        "The same recipe with an honest split, on validation 60%",
        "7 of these images bear a label or a group that rules of repair have changed",
        "ham10000 100 30",
        "It took 1,200 images a second, and 3.0% of that time was spent waiting for images.",
        "keras 3.15.1",
        "sha256:beef",
    ):
        assert expected in text, expected
    for figure in ("decision_curve", "subgroups", "class_distribution", "training_curves"):
        with Image.open(tmp_path / "figures" / f"{figure}.png") as image:
            image.load()
            assert image.width > 600
    assert "nan" not in text.lower().split()
    assert "None" not in text


@pytest.mark.usefixtures("blank_figures")
def test_the_leaked_figure_comes_first_and_is_the_only_struck_one(tmp_path: Path) -> None:
    html = write(tmp_path, predictions(), **EXHIBITS)
    boxes = [str(attributes["class"]) for _, attributes in _Page(html).elements if attributes.get("class")]
    headlines = [box for box in boxes if box.split()[0] == "headline"]
    assert headlines == ["headline"] * 4 + ["headline leaked"] + ["headline"] * 3


@pytest.mark.usefixtures("blank_figures")
def test_the_card_says_what_the_model_is_not_for(tmp_path: Path) -> None:
    text = _Page(write(tmp_path, predictions())).text
    assert "Leaving an image unread because it raised no alert." in text
    assert "The bundle does not say how many of them are of which source." in text
    assert "melanoma MEL 30 10" in text
    assert "How the usual recipe flatters itself" not in text


def test_class_distribution_figure_shows_every_class() -> None:
    figure = class_distribution_figure(EXHIBITS["class_distribution"])
    axes = figure.axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["nevus", "melanoma"]
    widths = sorted(round(bar.get_width(), 3) for bar in axes.patches if isinstance(bar, Rectangle))
    assert widths == [0.3, 0.4, 0.5, 0.5, 0.6, 0.7]


@pytest.mark.usefixtures("blank_figures")
def test_pictures_are_embedded_and_what_is_none_is_left_out(tmp_path: Path) -> None:
    frame = predictions(n_nevus=10)
    uris = select_pictures(frame)
    jpeg, png = picture("JPEG"), picture("PNG")
    page = _Page(write(tmp_path, frame, {uris[0]: jpeg, uris[1]: png, uris[2]: b"<svg onload=alert(1)>", uris[3]: b""}))
    images = page.images()
    assert jpeg in images
    assert png in images
    assert not any(image.startswith(b"<svg") for image in images)
    assert "no picture" in page.text


def test_pictures_are_the_worst_mistakes_and_a_fixed_sample() -> None:
    frame = predictions(n_melanoma=40, n_nevus=60, missed=15, alarms=20)
    uris = select_pictures(frame, seed=3)
    by_score = frame.sort_values("p_melanoma")
    missed = by_score[(by_score["label"] == "MEL") & (by_score["p_melanoma"] < 0.25)]
    alarms = by_score[(by_score["label"] != "MEL") & (by_score["p_melanoma"] >= 0.25)][::-1]
    assert uris[:12] == missed["uri"][:12].tolist()
    assert uris[12:24] == alarms["uri"][:12].tolist()
    assert 24 < len(uris) <= 36
    assert len(set(uris)) == len(uris)
    assert select_pictures(frame.sample(frac=1, random_state=0), seed=3) == uris
    assert select_pictures(frame, seed=4) != uris


def test_the_report_shows_the_pictures_that_were_selected_with_its_seed(tmp_path: Path) -> None:
    frame = predictions(n_melanoma=40, n_nevus=60, missed=15, alarms=20)
    metrics = compute_metrics(frame, seed=9, resamples=20)
    write_report(
        tmp_path, frame, metrics, dict.fromkeys(select_pictures(frame, seed=9), picture("PNG")), Details(**DETAILS)
    )
    text = _Page((tmp_path / "report.html").read_text(encoding="utf-8")).text
    assert "no picture" not in text
    assert "Missed melanomas (12 of 15)" in text
    assert "False alarms (12 of 20)" in text


@pytest.mark.parametrize(
    ("share", "text"),
    [(0, "0%"), (1, "100%"), (0.875, "88%"), (0.998, "99.8%"), (0.9999, "over 99.9%"), (0.0004, "under 0.1%")],
)
def test_percent_never_rounds_to_certainty(share: float, text: str) -> None:
    assert percent(share) == text


def test_training_curves_show_each_network_and_the_epoch_that_was_kept() -> None:
    one = EXHIBITS["members"][0]
    # A bundle need not know every figure of every epoch.
    other = {"history": [{"epoch": 1, "loss": 1.5, "balanced_accuracy": 0.4}], "best_epoch": 1}
    losses, validation = training_curves_figure([one, other]).axes
    curves = [np.asarray(line.get_xydata()).tolist() for line in validation.lines]
    assert [[epoch["epoch"], epoch["balanced_accuracy"]] for epoch in one["history"]] in curves
    assert [[epoch["epoch"], epoch["melanoma_auc"]] for epoch in one["history"]] in curves
    kept = [np.asarray(line.get_xydata()).tolist() for line in validation.lines if line.get_marker() == "D"]
    assert [[9, one["history"][8]["balanced_accuracy"]]] in kept
    assert [[1, 0.4]] in kept
    assert len([line for line in losses.lines if line.get_marker() == "D"]) == 1


@pytest.mark.usefixtures("blank_figures")
def test_images_that_may_not_be_given_away_are_neither_named_nor_shown(tmp_path: Path) -> None:
    frame = predictions()
    write_report(tmp_path, frame, compute_metrics(frame, resamples=20), None, Details(**DETAILS))
    assert not (tmp_path / "predictions.parquet").exists()
    html = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "neither named nor shown" in html
    everything = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert not [name for name in frame["image_id"] if name.encode() in everything]
    # The names would be found, if they were there.
    write(tmp_path, frame)
    assert any(name in (tmp_path / "report.html").read_text(encoding="utf-8") for name in frame["image_id"])


def test_figures_are_the_same_whatever_the_users_matplotlibrc_says() -> None:
    ours = figure_png(class_distribution_figure(EXHIBITS["class_distribution"]))
    with mpl.rc_context({"text.usetex": True, "axes.facecolor": "black", "savefig.bbox": "tight", "font.size": 30}):
        assert figure_png(class_distribution_figure(EXHIBITS["class_distribution"])) == ours
