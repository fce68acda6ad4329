"""melanoma predict."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from melanoma.cli import console, options

if TYPE_CHECKING:
    from melanoma.model.manifest import OperatingPoint, Thresholds

_MEANING = {
    "none": "The model sees too little of {what} to raise this image, which is no proof that it is harmless.",
    "review": "A dermatologist should look at this image. Most images raised at this level are no {whats}.",
    "urgent": "To this model the image looks more like {what} than most do: a dermatologist should see it first.",
}
# Comes first: figures of a model say nothing of pictures that it does not know.
_UNKNOWN = (
    "Warning: {image_uri} is unlike the images that the model was trained on, as a phone's close-up is. Do not rely on "
    "what follows, alert or none: take a dermoscopic picture, or have a dermatologist look."
)


def predict(
    images: Annotated[list[str], typer.Argument(metavar="IMAGE...", help="Files or s3:// URIs.")],
    bundle: options.Bundle = None,
    operating_point: options.OperatingPoint = None,
    network: options.Network = "auto",
    explain: Annotated[str | None, typer.Option(help="Folder for an overlay PNG an image.")] = None,
    as_json: options.Json = False,
) -> int:
    """Score single images and print the probabilities, the alert level and what it means."""
    from melanoma import api

    model = api.load(bundle, operating_point, network)
    rows = model.predict_rows(images, explain)
    if as_json:
        console.print_json(rows)
    else:
        for row in rows:
            _print_prediction(row, model.thresholds)
    return 2 if any("error_kind" in row for row in rows) else 0


def _print_prediction(row: dict[str, Any], thresholds: "Thresholds") -> None:
    from rich.table import Table

    from melanoma import taxonomy

    answer = console.answer
    if "error_kind" in row:
        answer.print(f"{row['image_uri']}: rejected ({row['error_kind']}). {row['error']}\n")
        return
    table = Table("diagnosis", "probability", title=row["image_uri"], title_justify="left")
    for code in sorted(taxonomy.CODES, key=lambda code: -row[f"p_{code}"]):
        table.add_row(f"{taxonomy.NAMES[code]} ({code})", f"{row[f'p_{code}']:.1%}")
    is_known = row["outlier_score"] <= 1
    if not is_known:
        answer.print(_UNKNOWN.format(**row))
    answer.print(table)
    answer.print(
        f"Alert level: {row['alert_level']}. The melanoma probability is {row['p_melanoma']:.1%}; review begins at "
        f"{thresholds.review:.1%}, urgent at {thresholds.urgent:.1%}."
    )
    if asked := thresholds.malignancy:
        answer.print(
            f"The probability of any malignancy is {row['p_malignant']:.1%}; review begins at {asked.review:.1%}, "
            f"urgent at {asked.urgent:.1%}. Raised for: {row['alert_reason'] or 'neither question'}."
        )
    if is_known:
        answer.print(_meaning(row["alert_level"], row["alert_reason"], asks_malignancy=asked is not None))
        if thresholds.operating_point:
            answer.print(_reliability(thresholds.operating_point))
    if "explanation_uri" in row:
        answer.print(
            f"What raised the probability: {row['explanation_uri']} (with the reddest 15% of the picture covered, the "
            f"melanoma probability is {row['p_melanoma_covered']:.1%})"
        )
    answer.print(f"Model {row['model_version']}. Not a medical device.\n")


def _meaning(level: str, reason: str | None, asks_malignancy: bool) -> str:
    """What an alert level means, for the question that has raised the image, or for those that have not."""
    if reason == "malignancy":
        return _MEANING[level].format(what="a malignancy", whats="malignancies")
    either = asks_malignancy and reason != "melanoma"
    return _MEANING[level].format(
        what="a melanoma or another malignancy" if either else "a melanoma", whats="melanomas"
    )


def _reliability(point: "OperatingPoint") -> str:
    """What the threshold of `review` gave on the images that it was chosen on."""
    # Where no image was known as melanoma, the threshold was chosen for all that is malignant.
    n, kind = (point.n_malignant, "malignant ones") if point.n_malignant else (point.n_melanoma, "melanomas")
    shares = []
    for estimate, whom in ((point.sensitivity, f"the {kind}"), (point.specificity, "the other images")):
        interval = "" if estimate.low is None else f" (95% interval {estimate.low:.0%} to {estimate.high:.0%})"
        shares.append(f"{estimate.value:.0%} of {whom}{interval}")
    raised, not_raised = shares
    return (
        f"On the {point.n} validation images ({n} {kind}) that the threshold was chosen on, an "
        f"alert was raised for {raised}, and none for {not_raised}; on other cameras and patients it can be less."
    )
