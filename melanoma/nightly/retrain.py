"""A training on its own schedule: a candidate, compared with the promoted model, and proposed to people.

    CANDIDATES/begun.json                 the date of a training that was not finished
    CANDIDATES/2026-11-20/bundle/         the candidate
    CANDIDATES/2026-11-20/comparison/     its report beside the promoted model, on the same test images
    CANDIDATES/2026-11-20/proposal.json   written last: what was proposed

Nothing is promoted by itself: a model that raises other images is a decision of people, who set `score.bundle`.
"""

import datetime
from collections.abc import Callable
from typing import Any

from melanoma import storage
from melanoma.nightly.config import RetrainConfig
from melanoma.scoring import results

_COMPARED = ("melanoma_auc", "sensitivity", "specificity")


def where_due(
    config: RetrainConfig, promoted: str | None, today: datetime.date, say: Callable[[str], None]
) -> str | None:
    """Train, compare and propose, where the last proposal is `every_days` old.

    Args:
        config: What is trained, how often, and where candidates go.
        promoted: The bundle that the night scores with; None: the reference that comes with this program.
        today: The date of the night.
        say: Given one line a step.

    Returns:
        The proposal in words; None where none is due.

    Raises:
        InputError: The catalog, the configuration or a place cannot be used.
        MelanomaError: The training failed. The next night resumes it.
        OSError: The candidates cannot be read or written.
    """
    root = storage.normalize(config.candidates)
    begun = storage.join(root, "begun.json")
    if storage.exists(begun):
        date = str(storage.read_json(begun)["date"])
        say(f"The training of {date} was not finished: it goes on.")
    elif is_due(proposed(root), config.every_days, today):
        date = today.isoformat()
        storage.write_json(begun, {"date": date})
    else:
        return None
    proposal = _proposal(config, promoted, date, say)
    storage.write_json(storage.join(root, date, "proposal.json"), proposal)
    storage.delete(begun)
    return _in_words(proposal)


def proposed(root: str) -> list[str]:
    """The ISO dates of the proposals, oldest first."""
    found = [uri for uri in results.uris_below(root) if storage.name(uri) == "proposal.json"]
    return sorted(storage.name(storage.parent(uri)) for uri in found)


def is_due(dates: list[str], every_days: int, today: datetime.date) -> bool:
    return not dates or (today - datetime.date.fromisoformat(dates[-1])).days >= every_days


def _proposal(config: RetrainConfig, promoted: str | None, date: str, say: Callable[[str], None]) -> dict[str, Any]:
    from melanoma.evaluation.config import EvaluateConfig
    from melanoma.evaluation.run import evaluate
    from melanoma.model import bundle as bundles
    from melanoma.training.train import train

    folder = storage.join(storage.normalize(config.candidates), date)
    bundle, comparison = storage.join(folder, "bundle"), storage.join(folder, "comparison")
    against = promoted or str(bundles.REFERENCE)
    if not storage.exists(storage.join(bundle, "bundle.json")):
        train(config.train.model_copy(update={"out": bundle, "run_name": f"candidate-{date}"}), say=say)
    settings = EvaluateConfig(bundle=bundle, against=against, catalog=config.train.catalog, out=comparison)
    metrics = evaluate(settings, say).metrics.to_json()
    return {
        "date": date,
        "bundle": bundle,
        "model_version": bundles.load(bundle).version,
        "promoted": against,
        "promoted_version": metrics["comparison"]["model_version"],
        "leak_warning": metrics["comparison"]["leak_warning"],
        "report": storage.join(comparison, "report.html"),
        "figures": {name: metrics["comparison"]["figures"][name] for name in _COMPARED},
    }


def _in_words(proposal: dict[str, Any]) -> str:
    figures = []
    for name, figure in proposal["figures"].items():
        difference = figure["difference"]
        if figure["this"] is None or figure["other"] is None or difference["value"] is None:
            continue
        interval = f"{difference['low']:+.3f} to {difference['high']:+.3f}"
        figures.append(
            f"{name.replace('_', ' ')} {figure['this']:.3f} against {figure['other']:.3f} "
            f"(difference {difference['value']:+.3f}, 95% interval {interval})"
        )
    warning = f" {proposal['leak_warning']}" if proposal["leak_warning"] else ""
    return (
        f"A candidate was trained, {proposal['model_version']}, beside the promoted model "
        f"{proposal['promoted_version']}: {', '.join(figures)}.{warning} Its report: {proposal['report']}. Whoever "
        f"wants it sets score.bundle to {proposal['bundle']}; nothing else uses it."
    )
