"""Figures of the evaluation report, made without pyplot so that they keep no global state.

Colours are of Okabe and Ito's palette, which the colour-blind can tell apart; marks differ in shape as well, for print.
"""

import io
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from melanoma.evaluation.calibration import CALIBRATION_BINS, bin_of
from melanoma.evaluation.decision import DecisionCurve
from melanoma.evaluation.intervals import Bools, Estimate, Floats, Ints, proportion
from melanoma.evaluation.metrics import Metrics
from melanoma.evaluation.predictions import Side, malignant_side, melanoma_side, p_malignant
from melanoma.evaluation.roc import roc
from melanoma.evaluation.subgroups import ColumnFigures
from melanoma.taxonomy import name_of

BLUE, ORANGE, GREY = "#0072b2", "#d55e00", "#5f6b76"
# "default" first: a matplotlibrc of the user's would change what a report looks like, or ask for LaTeX.
_STYLE: list[str | dict[str, Any]] = [
    "default",
    {"font.size": 12, "axes.spines.top": False, "axes.spines.right": False, "axes.axisbelow": True},
]


def figure_png(figure: Figure) -> bytes:
    """The figure as PNG at 150 dots an inch."""
    out = io.BytesIO()
    FigureCanvasAgg(figure)
    with style.context(_STYLE):
        figure.savefig(out, format="png", dpi=150, facecolor="white", metadata={"Software": None})
    return out.getvalue()


def confusion_figure(metrics: Metrics) -> Figure:
    """Counts and row shares by true class (rows) and answer (columns), from the metrics' `confusion`."""
    classes = metrics.classes
    counts = np.array(metrics.confusion)
    totals = counts.sum(axis=1, keepdims=True)
    shares = np.divide(counts, totals, out=np.zeros(counts.shape), where=totals > 0)
    with style.context(_STYLE):
        figure = Figure(figsize=(3.4 + 0.72 * len(classes), 1.3 + 0.66 * len(classes)), layout="constrained")
        axes = figure.add_subplot()
        axes.spines[:].set_visible(False)
        axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, aspect="auto")
        for row, column in np.ndindex(*counts.shape):
            if totals[row, 0] == 0:
                continue
            share = shares[row, column]
            axes.text(
                column,
                row,
                f"{counts[row, column]}\n{share:.0%}" if counts[row, column] else "0",
                ha="center",
                va="center",
                fontsize=10.5,
                fontweight="bold" if row == column else "normal",
                color="white" if share > 0.65 else "black",
            )
        names = [textwrap.fill(f"{name_of(c)} ({c})", 30) for c in classes]
        names = [f"{name}\nno images" if total == 0 else name for name, total in zip(names, totals[:, 0], strict=True)]
        axes.set_yticks(range(len(classes)), names, fontsize=10.5)
        axes.set_xticks(range(len(classes)), [c.replace("|", "|\n") for c in classes])
        axes.set_xticks(np.arange(len(classes) - 1) + 0.5, minor=True)
        axes.set_yticks(np.arange(len(classes) - 1) + 0.5, minor=True)
        axes.grid(which="minor", color="white", linewidth=2)
        axes.tick_params(which="both", length=0)
        axes.set_xlabel("answer of the model")
        axes.set_ylabel("true class")
    return figure


def roc_figure(predictions: pd.DataFrame, metrics: Metrics) -> Figure:
    """ROC curves of melanoma against the rest, with the frozen threshold and its intervals as a cross, and of what is
    malignant against the rest where labels say no more than that."""
    with style.context(_STYLE):
        figure = Figure(figsize=(5.8, 5.8), layout="constrained")
        axes = figure.add_subplot()
        _unit_square(axes, "1 - specificity (others raised)", "sensitivity (melanomas raised)")
        auc, malignant_auc = metrics.melanoma_auc, metrics.malignant_auc
        if metrics.n_melanoma_unknown and malignant_auc.value is not None:
            name = "malignant, by its own probability"
            _roc_curve(axes, malignant_side(predictions), p_malignant(predictions), malignant_auc, name, GREY, "-.")
        elif auc.value is None:
            missing = "no melanoma" if metrics.n_melanoma == 0 else "nothing but melanoma"
            axes.text(0.5, 0.5, f"There is {missing} in this set:\nno ROC curve.", ha="center", va="center")
            return figure
        axes.plot([0, 1], [0, 1], color=GREY, linestyle="--", linewidth=1, label="chance")
        if auc.value is not None:
            score = predictions["p_melanoma"].to_numpy(dtype=np.float64)
            name = "melanoma" if metrics.n_melanoma_unknown else "model"
            _roc_curve(axes, melanoma_side(predictions), score, auc, name, BLUE, "-")
            if metrics.threshold is not None:
                _frozen_threshold(axes, metrics, metrics.threshold)
        axes.legend(loc="lower right", fontsize=10.5, framealpha=0.9)
    return figure


def _roc_curve(axes: Axes, side: Side, score: Floats, auc: Estimate, name: str, color: str, line: str) -> None:
    """The curve of the images whose side is known.

    Args:
        axes: Where it is drawn.
        side: Which images are positive.
        score: float [n], the probability of that.
        auc: The area under it, for the legend.
        name: Of what, for the legend.
        color: Of the line.
        line: Its style.
    """
    fpr, tpr = roc(side.yes[side.known], score[side.known])
    interval = f"\n(95% interval {auc.low:.3f} to {auc.high:.3f})" if auc.low is not None else ""
    axes.plot(fpr, tpr, color=color, linestyle=line, linewidth=2.2, label=f"{name}, AUC {auc.value:.3f}{interval}")


def _frozen_threshold(axes: Axes, metrics: Metrics, threshold: float) -> None:
    x, right, left = (1 - share for share in _bounds(metrics.specificity))
    y, low, high = _bounds(metrics.sensitivity)
    axes.errorbar(
        x,
        y,
        xerr=[[x - left], [right - x]],
        yerr=[[y - low], [high - y]],
        color=ORANGE,
        marker="D",
        markersize=8,
        capsize=4,
        linestyle="none",
        label=f"frozen threshold {threshold:.3g}:\nsensitivity {y:.1%}, specificity {1 - x:.1%}",
    )


def reliability_figure(probability: Floats, outcome: Bools, group: Ints, x_label: str, y_label: str) -> Figure:
    """How often something happens against its probability, in 15 equal bins, over a histogram.

    The bars are exact 95% intervals, those of `melanoma.evaluation.intervals.proportion`.

    Args:
        probability: float [n], 0 to 1.
        outcome: bool [n], whether it happened.
        group: int [n], which images belong together.
        x_label: What the probability is of.
        y_label: What the share is of.

    Returns:
        The figure, not yet drawn to a file.
    """
    edges = np.linspace(0, 1, CALIBRATION_BINS + 1)
    bins = bin_of(probability)
    counts = np.bincount(bins, minlength=CALIBRATION_BINS)
    used = np.flatnonzero(counts)
    with style.context(_STYLE):
        figure = Figure(figsize=(5.8, 7.0), layout="constrained")
        top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=[3.4, 1])
        _unit_square(top, "", y_label)
        top.plot([0, 1], [0, 1], color=GREY, linestyle="--", linewidth=1, label="perfectly calibrated")
        value, low, high = np.array([_bounds(proportion(outcome[bins == b], group[bins == b])) for b in used]).T
        top.errorbar(
            [probability[bins == b].mean() for b in used],
            value,
            yerr=[value - low, high - value],
            color=BLUE,
            marker="o",
            capsize=3,
            linestyle="none",
            label="model, with 95% interval",
        )
        top.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2, fontsize=10.5, frameon=False)
        bottom.bar(edges[:-1], counts, width=1 / CALIBRATION_BINS, align="edge", color=BLUE, edgecolor="white")
        bottom.set_xlabel(x_label)
        bottom.set_ylabel("images")
        bottom.grid(color="#e3e7ea", axis="y")
        figure.align_ylabels()
    return figure


def decision_curve_figure(curve: DecisionCurve) -> Figure:
    """Net benefit by threshold."""
    thresholds, model, everyone = np.array(curve.threshold), np.array(curve.model), np.array(curve.all)
    with style.context(_STYLE):
        figure = Figure(figsize=(7.2, 4.8), layout="constrained")
        axes = figure.add_subplot()
        if curve.low is not None and curve.high is not None:
            axes.fill_between(thresholds, curve.low, curve.high, color=BLUE, alpha=0.18, linewidth=0)
        axes.plot(thresholds, model, color=BLUE, linewidth=2.2, label="raise by the model, with 95% interval")
        axes.plot(thresholds, everyone, color=ORANGE, linewidth=1.6, linestyle="--", label="raise every image")
        axes.plot(thresholds, np.zeros(len(thresholds)), color=GREY, linewidth=1.6, linestyle=":", label="raise none")
        # What raising every image loses at high thresholds would press the rest into a line.
        top = max(model.max(), everyone.max(), *(curve.high or [0]))
        axes.set(xlim=(0, 0.5), ylim=(-0.4 * top, 1.08 * top))
        axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        axes.set_xlabel("threshold: probability of melanoma from which a lesion is worth a look")
        axes.set_ylabel("net benefit (melanomas an image)")
        axes.grid(color="#e3e7ea")
        axes.legend(loc="upper right", fontsize=10.5, framealpha=0.9)
    return figure


def subgroup_figure(subgroups: Sequence[ColumnFigures]) -> Figure:
    """Sensitivity, specificity and AUC of each group with its interval."""
    groups = [group for column in subgroups for group in column.groups]
    titles = {"sensitivity": "sensitivity", "specificity": "specificity", "melanoma_auc": "AUC of melanoma"}
    # An empty line before each column of the catalog.
    starts = np.cumsum([0, *(len(column.groups) + 1 for column in subgroups)])
    places = [start + 1 + i for start, c in zip(starts[:-1], subgroups, strict=True) for i in range(len(c.groups))]
    with style.context(_STYLE):
        figure = Figure(figsize=(10.4, 1.2 + 0.32 * starts[-1]), layout="constrained")
        panels = figure.subplots(1, len(titles), sharey=True)
        for axes, (name, title) in zip(panels, titles.items(), strict=True):
            for place, group in zip(places, groups, strict=True):
                _bar(axes, place, getattr(group, name))
            axes.set(xlim=(-0.03, 1.03), title=title)
            axes.title.set_fontsize(12)
            axes.set_xticks(np.linspace(0, 1, 6))
            axes.grid(color="#e3e7ea", axis="x")
        names = [_shortened(group.value) for group in groups]
        heads = [column.column.replace("_", " ") for column in subgroups]
        # Names from a catalog are no mathematics: "$" would be parsed, and what does not parse is an error.
        panels[0].set_yticks([*places, *starts[:-1]], [*names, *heads], fontsize=10.5, parse_math=False)
        for label in panels[0].get_yticklabels()[len(places) :]:
            label.set_fontweight("bold")
        panels[0].set_ylim(starts[-1] - 0.4, -0.6)
        for axes in panels:
            axes.tick_params(axis="y", length=0)
    return figure


def _shortened(text: str) -> str:
    # Not textwrap.shorten: of one long word it leaves nothing.
    text = " ".join(text.split())
    return text if len(text) <= 28 else f"{text[:25]}..."


def _bar(axes: Axes, place: float, estimate: Estimate) -> None:
    if estimate.value is None:
        axes.text(0.5, place, "not measurable", ha="center", va="center", fontsize=9.5, color=GREY)
        return
    if estimate.low is not None and estimate.high is not None:
        axes.plot([estimate.low, estimate.high], [place, place], color=BLUE, linewidth=2.2)
    axes.plot(estimate.value, place, color=BLUE, marker="o", markersize=6, linestyle="none")


def _bounds(share: Estimate) -> tuple[float, float, float]:
    """Value, low and high of a share of at least one image, which has them all."""
    if share.value is None or share.low is None or share.high is None:
        raise ValueError("a share of no images has no interval to draw")
    return share.value, share.low, share.high


def class_distribution_figure(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """The share of each class in the training images, in what an epoch draws, and in the loss.

    Each of `rows` has `label`, `images` and `copies` (counts), `drawn` and `effective` (shares of all classes).
    """
    total = sum(row["images"] for row in rows)
    bars = {
        "images as they are": (GREY, "", [row["images"] / total for row in rows]),
        "drawn in an epoch, with copies": (BLUE, "", [row["drawn"] for row in rows]),
        "after loss weights": (ORANGE, "//", [row["effective"] for row in rows]),
    }
    places = np.arange(len(rows))
    with style.context(_STYLE):
        figure = Figure(figsize=(7.6, 1.7 + 0.75 * len(rows)), layout="constrained")
        axes = figure.add_subplot()
        for i, (name, (color, hatch, shares)) in enumerate(bars.items()):
            at = places + (i - 1) * 0.27
            axes.barh(at, shares, height=0.25, color=color, hatch=hatch, edgecolor="white", label=name)
            for y, share in zip(at, shares, strict=True):
                axes.text(share, y, f" {share:.1%}", va="center", fontsize=9)
        axes.set_yticks(places, [textwrap.fill(name_of(row["label"]), 24) for row in rows], fontsize=10.5)
        axes.set_ylim(len(rows) - 0.45, -0.55)
        axes.margins(x=0.12)
        axes.tick_params(axis="y", length=0)
        axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        axes.set_xlabel("share of the class in training")
        axes.legend(loc="lower center", bbox_to_anchor=(0.4, 1.0), ncols=3, fontsize=10, frameon=False)
    return figure


def training_curves_figure(members: Sequence[Mapping[str, Any]]) -> Figure:
    """Losses, balanced accuracy and AUC of melanoma by epoch, with a diamond at the epoch that was kept.

    Each of `members`, the networks of the model, has `history`, a mapping an epoch with `epoch` (counted from 1) and
    the figures that are known of it, and `best_epoch`.
    """
    panels = {
        "loss": {"loss": (GREY, "--", "training"), "validation_loss": (BLUE, "-", "validation")},
        "on validation": {
            "balanced_accuracy": (BLUE, "-", "balanced accuracy"),
            "melanoma_auc": (ORANGE, "-.", "AUC of melanoma"),
        },
    }
    with style.context(_STYLE):
        figure = Figure(figsize=(10.4, 4.4), layout="constrained")
        for axes, (title, curves) in zip(figure.subplots(1, 2), panels.items(), strict=True):
            for number, member in enumerate(members):
                for name, (color, line, label) in curves.items():
                    known = {epoch["epoch"]: epoch[name] for epoch in member["history"] if name in epoch}
                    # A training of one epoch is a point, which a line would not show.
                    axes.plot(
                        list(known),
                        list(known.values()),
                        color=color,
                        linestyle=line,
                        linewidth=1.8 if len(members) == 1 else 1.1,
                        marker="." if len(known) == 1 else "",
                        label=label if number == 0 else None,
                    )
                    if name != "loss" and (best := member["best_epoch"]) in known:
                        kept = f"epoch kept{'' if len(members) > 1 else f': {best}'}"
                        axes.plot(
                            best,
                            known[best],
                            color=color,
                            marker="D",
                            markersize=7,
                            linestyle="none",
                            label=kept if number == 0 and name == "validation_loss" else None,
                        )
            axes.set(xlabel="epoch", ylabel=title)
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
            axes.grid(color="#e3e7ea")
            axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3, fontsize=10, frameon=False)
    return figure


def leaked_curves_figure(
    leaked: Sequence[Mapping[str, float]], honest: Sequence[Mapping[str, float]], published: Sequence[float]
) -> Figure:
    """Accuracy and loss by epoch, in training and on validation, of a leaked training and an honest one.

    Args:
        leaked: The figures of each epoch, see `training_curves_figure`, with `accuracy` (of validation) and, where
            it is known, `training_accuracy`.
        honest: Those of the honest training.
        published: Validation accuracies that others print of leaked trainings, as ticks at the right.

    Returns:
        The figure, not yet drawn to a file.
    """
    panels = {"accuracy": ("training_accuracy", "accuracy"), "loss": ("loss", "validation_loss")}
    with style.context(_STYLE):
        figure = Figure(figsize=(10.4, 4.6), layout="constrained")
        for axes, (title, names) in zip(figure.subplots(1, 2), panels.items(), strict=True):
            for name, line, what in zip(names, ("--", "-"), ("training", "validation"), strict=True):
                for history, color, which in ((leaked, ORANGE, "leaked"), (honest, BLUE, "honest")):
                    known = {epoch["epoch"]: epoch[name] for epoch in history if name in epoch}
                    axes.plot(
                        list(known),
                        list(known.values()),
                        color=color,
                        linestyle=line,
                        linewidth=1.8,
                        marker="." if len(known) == 1 else "",
                        label=f"{which}, {what}",
                    )
            if title == "accuracy":
                last = max((epoch["epoch"] for epoch in (*leaked, *honest)), default=1)
                axes.plot(
                    [last] * len(published),
                    published,
                    color=GREY,
                    marker="_",
                    markersize=14,
                    linestyle="none",
                    label="leaked validation, as published",
                )
                axes.set_ylim(-0.02, 1.02)
            axes.set(xlabel="epoch", ylabel=title)
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
            axes.grid(color="#e3e7ea")
            axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2, fontsize=10, frameon=False)
    return figure


def _unit_square(axes: Axes, x_label: str, y_label: str) -> None:
    axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), xlabel=x_label, ylabel=y_label)
    axes.set_xticks(np.linspace(0, 1, 6))
    axes.set_yticks(np.linspace(0, 1, 6))
    axes.grid(color="#e3e7ea")


def score_distribution_figure(scores: Floats, earlier: Floats, review: float, urgent: float) -> Figure:
    """How the probabilities of melanoma of a night are distributed, over those of earlier nights.

    Args:
        scores: float [images]: p_melanoma of the run.
        earlier: float [images]; empty where there is no earlier night.
        review: The threshold of the alert level "review".
        urgent: That of "urgent".

    Returns:
        The figure, not yet drawn to a file.
    """
    edges = np.linspace(0, 1, 41).tolist()
    with style.context(_STYLE):
        figure = Figure(figsize=(8, 3.2), layout="constrained")
        axes = figure.add_subplot()
        if len(earlier):
            weights = np.full(len(earlier), 1 / len(earlier))
            axes.hist(earlier, edges, weights=weights, color="#c3ccd4", label="earlier nights")
        axes.hist(
            scores, edges, weights=np.full(len(scores), 1 / len(scores)), histtype="step", linewidth=2, color=BLUE,
            label="this night",
        )  # fmt: skip
        for value, name, line in ((review, "review", "--"), (urgent, "urgent", "-")):
            axes.axvline(value, color=ORANGE, linestyle=line, linewidth=1.5, label=f"{name} from {value:.1%}")
        axes.set(xlim=(0, 1), xlabel="probability of melanoma", ylabel="share of images")
        axes.set_yscale("symlog", linthresh=0.01)
        axes.xaxis.set_major_formatter(PercentFormatter(1))
        axes.yaxis.set_major_formatter(PercentFormatter(1))
        axes.legend(frameon=False, fontsize=10.5)
    return figure
