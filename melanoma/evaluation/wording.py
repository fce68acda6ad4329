"""The words of the report: what each measure is, what the model is for, and figures in sentences."""

from collections.abc import Mapping
from typing import Any

from melanoma.evaluation.decision import JOINT
from melanoma.evaluation.intervals import BOOTSTRAP, EXACT, EXACT_CLUSTERED, Estimate
from melanoma.evaluation.metrics import Metrics
from melanoma.evaluation.operating_point import LEAST_OF_SOURCE
from melanoma.taxonomy import MELANOMA

# What the report and the model card (melanoma.evaluation.card) both say.
INTENDED_USE = (
    (
        "Research and teaching: training, measuring and comparing models of dermoscopy images with figures that can be "
        "trusted."
    ),
    (
        "Ordering an archive of dermoscopy images by the probability of melanoma, for a dermatologist who looks at the "
        "images anyway, within a study that its ethics board knows of."
    ),
)
NOT_INTENDED_USE = (
    (
        "Diagnosing a person, or telling anyone that a lesion is harmless. It is not a medical device: nobody has "
        "cleared it for one."
    ),
    "Leaving an image unread because it raised no alert.",
    "Photographs that are no dermoscopy, such as those of a phone without a dermatoscope, nails, mucosa, or wounds.",
    "People whom the training images do not show: children, and dark skin, may be hardly among them.",
    "Anything commercial, unless the licence of every source of images allows it.",
)
MEASURES: dict[str, tuple[str, str]] = {
    "sensitivity": ("Sensitivity", "melanomas with a melanoma probability at or above the frozen threshold"),
    "specificity": ("Specificity", "other images below the frozen threshold"),
    "melanoma_auc": (
        "Area under the ROC curve",
        "melanoma against the rest: the chance that a melanoma ranks above another image; 0.5 is a random order",
    ),
    "melanoma_pauc": (
        "Partial area above 80% sensitivity",
        "the figure of the ISIC 2024 challenge, of melanoma: at most 0.2; 0.02 is a random order",
    ),
    "specificity_at_95_sensitivity": (
        "Specificity at 95% sensitivity",
        "read off this set's ROC curve: optimistic, and not the frozen operating point",
    ),
    "sensitivity_at_95_specificity": ("Sensitivity at 95% specificity", "read off this set's ROC curve, as well"),
    "malignant_sensitivity": (
        "Malignant images raised",
        "melanomas, basal and squamous cell carcinomas with a melanoma probability at or above the frozen threshold",
    ),
    "malignant_specificity": ("Benign images not raised", "images of no such cancer below the frozen threshold"),
    "malignant_auc": (
        "Area under the ROC curve, malignant",
        "malignant against the rest, by the probability of all that is malignant; 0.5 is a random order",
    ),
    "malignant_pauc": (
        "Partial area above 80% sensitivity, malignant",
        "as in the ISIC 2024 challenge, whose labels are malignant or not: at most 0.2; 0.02 is a random order",
    ),
    "accuracy": ("Accuracy", "images whose most probable class is the true one"),
    "balanced_accuracy": ("Balanced accuracy", "mean recall of the classes that have images in this set"),
    "ece": (
        "Calibration error (ECE)",
        (
            "gap between the probability of the most probable class and how often it is right, 15 equal bins; 0 is "
            "best, but chance alone keeps a small set above it, and its interval too"
        ),
    ),
    "brier": ("Brier score of melanoma", "mean squared error of the melanoma probability; 0 is best"),
    "calibration_slope": (
        "Calibration slope of melanoma",
        "1 is right; below 1 the melanoma probabilities are too extreme, above 1 too cautious",
    ),
    "calibration_intercept": (
        "Calibration intercept of melanoma",
        "0 is right; below 0 the melanoma probabilities are too high on the whole, above 0 too low (log odds)",
    ),
}
PERCENTAGES = (
    "sensitivity",
    "specificity",
    "specificity_at_95_sensitivity",
    "sensitivity_at_95_specificity",
    "malignant_sensitivity",
    "malignant_specificity",
    "accuracy",
    "balanced_accuracy",
)
METHODS = {  # how an interval was made, by its `method`
    EXACT: "exact binomial interval of Clopper and Pearson: every image is a group of its own",
    EXACT_CLUSTERED: "the exact binomial interval at the effective number of independent images, because images of one "
    "group resemble each other (Korn and Graubard 1998)",
    BOOTSTRAP: "percentile bootstrap that draws whole groups with replacement, {resamples:,} times: approximate; by "
    "simulation it holds the true AUC in 94% of cases, and for the other figures that was not tried",
    JOINT: "the exact binomial intervals of sensitivity and specificity, each at such a level (97.5%) that both hold "
    "together with 95%; by Bayes' rule, and a little wider than they need be",
}


_NO_THRESHOLD = "No threshold of this model is known, so what it would raise is not measured."


def percent(share: float) -> str:
    """``0.875`` gives "88%"; never "0%" or "100%" for what is not quite that."""
    text = f"{share:.0%}"
    if (text == "0%" and share > 0) or (text == "100%" and share < 1):
        text = f"{share:.1%}"
        text = {"0.0%": "under 0.1%", "100.0%": "over 99.9%"}.get(text, text)
    return text


def words(name: str) -> str:
    """ "melanoma_auc" gives "melanoma auc"."""
    return name.replace("_", " ")


def kept(sensitivity: float | None, positives: int, stated: float | None) -> str:
    """How far a source of images keeps a stated sensitivity.

    `sensitivity` is what it has, None where there is nothing to find; `positives`, on how many images. Without a
    `stated` one it says only where they are too few to tell.
    """
    if sensitivity is None:
        return "not defined"
    few = f"few: {positives}" if positives < LEAST_OF_SOURCE else ""
    if stated is None:
        return few
    short = stated - sensitivity
    words = "yes" if short <= 0 else f"no: {100 * short:.1f} points below {stated:.0%}"
    return f"{words} ({few})" if few else words


def value_text(value: Any) -> str:
    """A value of a table of facts: numbers with four digits, lists with commas."""
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list | tuple):
        return ", ".join(value_text(part) for part in value)
    return str(value)


def left_out(metrics: Mapping[str, Any]) -> list[str]:
    """A sentence for each question that labels of a set leave open, from the counts of its metrics.json, and its notes.

    None for a metrics.json of an earlier version, which has no such labels.
    """
    sentences = []
    if unknown := metrics.get("n_melanoma_unknown", 0):
        cannot = "" if metrics["n_melanoma"] else ", so melanoma cannot be measured, only what is malignant"
        sentences.append(
            f"{_of_images(unknown)} whether {_they(unknown)} melanoma: left out of the figures of melanoma{cannot}."
        )
    if unknown := metrics.get("n_malignant_unknown", 0):
        sentences.append(
            f"{_of_images(unknown)} whether {_they(unknown)} malignant: left out of the figures of what is malignant."
        )
    if unknown := metrics.get("n_class_unknown", 0):
        sentences.append(
            f"{_of_images(unknown)} which diagnosis {_they(unknown)}: left out of accuracy, recall and the confusion "
            "matrix."
        )
    return [*sentences, *(metrics.get("notes") or [])]


def unknown_of_other(has_classes: bool, has_threshold: bool) -> list[str]:
    """What is not known of a model of which there is nothing but a table of probabilities, in sentences."""
    sentences = [
        "Which images this model was trained on is not known: neither is whether they are among those measured here."
    ]
    if not has_classes:
        sentences.append(
            "The table has one probability an image: no class is measured, and what is malignant is ranked by it, too."
        )
    if not has_threshold:
        sentences.append(
            "No threshold of this model is known: what it raises (sensitivity, specificity, alerts) is not measured; "
            "--thresholds-from validation chooses one on another split of the catalog."
        )
    return sentences


def _of_images(n: int) -> str:
    return f"The label{'' if n == 1 else 's'} of {n:,} image{' leaves' if n == 1 else 's leave'} open"


def _they(n: int) -> str:
    return "it is" if n == 1 else "they are"


def headlines(metrics: Metrics) -> list[tuple[str, str, str]]:
    """Title, figure and sentence of the most important results; of what is malignant only where labels need it."""
    unknown = metrics.n_melanoma_unknown
    n_other = metrics.n - metrics.n_melanoma - unknown
    has_threshold = metrics.threshold is not None
    of_melanomas = "No image of this set is known as melanoma" if unknown else "This set has no melanoma"
    of_melanomas += ": sensitivity cannot be measured."
    if metrics.n_melanoma:
        of_melanomas = _raised(metrics.sensitivity, metrics.n_melanoma, "melanoma") if has_threshold else _NO_THRESHOLD
    of_others = "This set has nothing but melanoma: specificity cannot be measured."
    if n_other:
        of_others = _NO_THRESHOLD
        if has_threshold:
            of_others = _raised(metrics.specificity, n_other, "image", " without melanoma", raised="not raised")
    found = [
        ("Melanomas raised (sensitivity)", _figure(metrics.sensitivity), of_melanomas),
        ("Others left alone (specificity)", _figure(metrics.specificity), of_others),
        ("Ranking of melanoma (AUC)", *_ranking("melanoma", metrics.melanoma_auc)),
    ]
    if unknown and has_threshold:
        found += _malignant_headlines(metrics)
    elif unknown:
        found.append(("Ranking of what is malignant (AUC)", *_ranking("malignant image", metrics.malignant_auc)))
    return [*found, ("Right class (balanced accuracy)", _figure(metrics.balanced_accuracy), _of_classes(metrics))]


def _malignant_headlines(metrics: Metrics) -> list[tuple[str, str, str]]:
    n_benign = metrics.n - metrics.n_malignant - metrics.n_malignant_unknown
    of_malignant = "No image of this set is known as malignant."
    if metrics.n_malignant:
        of_malignant = _raised(metrics.malignant_sensitivity, metrics.n_malignant, "malignant image")
    of_benign = "No image of this set is known as benign."
    if n_benign:
        of_benign = _raised(metrics.malignant_specificity, n_benign, "benign image", raised="not raised")
    return [
        ("Malignant images raised", _figure(metrics.malignant_sensitivity), of_malignant),
        ("Benign images left alone", _figure(metrics.malignant_specificity), of_benign),
        ("Ranking of what is malignant (AUC)", *_ranking("malignant image", metrics.malignant_auc)),
    ]


def _ranking(noun: str, auc: Estimate) -> tuple[str, str]:
    """The figure and its sentence."""
    if auc.value is None:
        return "-", f"Ranking takes {noun}s and other images: it cannot be measured on this set."
    return f"{auc.value:.2f}", (
        f"A {noun} has a higher probability than another image, both drawn at random, in {percent(auc.value)} of cases "
        f"({_interval(auc)}); 50% would be chance."
    )


def _of_classes(metrics: Metrics) -> str:
    if not metrics.classes:
        return "This model tells no class but melanoma."
    if metrics.majority_class_accuracy is None:
        return "No label of this set names a diagnosis: whether the class is right cannot be measured."
    balanced, accuracy, n = metrics.balanced_accuracy, metrics.accuracy, metrics.n - metrics.n_class_unknown
    return (
        f"Mean recall of the classes with images ({_with_interval(balanced)}). {_hits(accuracy, n, 'image')} given the "
        f"right class ({_with_interval(accuracy)}); always naming the commonest class would be right for "
        f"{percent(metrics.majority_class_accuracy)}."
    )


def training_gap(class_counts: Mapping[str, Mapping[str, int]]) -> str:
    """What a model cannot have learned from the images that it was trained on, by split and label; "" for nothing."""
    if MELANOMA in class_counts.get("train", {MELANOMA: 0}):
        return ""
    return (
        "No training image is known as melanoma: the model has learned what is malignant, and which share of that it "
        "calls melanoma is left to chance."
    )


def training_pace(history: list[Mapping[str, Any]]) -> str:
    """How fast the training was and how long it waited for its input, where the epochs of `history` say."""
    epochs = [epoch for epoch in history if "input_wait_share" in epoch]
    if not epochs:
        return ""
    waited, pace = (
        sum(epoch[name] for epoch in epochs) / len(epochs) for name in ("input_wait_share", "images_per_second")
    )
    return f"It took {pace:,.0f} images a second, and {waited:.1%} of that time was spent waiting for images."


def _figure(estimate: Estimate) -> str:
    return "-" if estimate.value is None else percent(estimate.value)


def _with_interval(estimate: Estimate) -> str:
    return f"{_figure(estimate)}, {_interval(estimate)}"


def _interval(estimate: Estimate) -> str:
    if estimate.low is None or estimate.high is None:
        return "no interval: too few groups"
    return f"95% interval {percent(estimate.low)} to {percent(estimate.high)}"


def _raised(share: Estimate, n: int, noun: str, which: str = "", raised: str = "raised") -> str:
    return f"{_hits(share, n, noun, which)} {raised} ({_with_interval(share)})."


def _hits(estimate: Estimate, n: int, noun: str, which: str = "") -> str:
    """ "14 of 16 melanomas were"."""
    hits = round((estimate.value or 0.0) * n)
    return f"{hits:,} of {n:,} {noun}{'' if n == 1 else 's'}{which} {'was' if hits == 1 else 'were'}"
