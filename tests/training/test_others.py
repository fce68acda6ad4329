"""Pictures that are no dermoscopy: what the outlier model learns of them, and what is kept to measure it."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from melanoma import config
from melanoma.demo.lesions import draw_lesion
from melanoma.errors import InputError
from melanoma.evaluation import outlier_rates
from melanoma.model import bundle as bundles
from melanoma.model import outliers
from melanoma.model.predictor import CompiledNetwork
from melanoma.taxonomy import CODES
from melanoma.training import networks, others
from melanoma.training.config import Network, TrainConfig
from melanoma.training.data import DevelopmentSet

SIZE = 64


def settings(**values: Any) -> TrainConfig:
    return config.load(TrainConfig, None, **{"catalog": "unused", "out": "unused", "image_size": SIZE, **values})


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """Forty pages of text, and ten screens and a file that is no picture; two folders of one name."""
    root = tmp_path_factory.mktemp("others")
    generator = np.random.default_rng(0)
    for name, draw, count in (("a", outlier_rates.text_pages, 40), ("b", outlier_rates.tables, 10)):
        folder = root / name / "images"
        folder.mkdir(parents=True)
        for number, page in enumerate(draw(count, SIZE, generator)):
            Image.fromarray(page).save(folder / f"{number}.png")
    (root / "b" / "images" / "list.csv").write_text("image_id\n1\n")
    return str(root / "a" / "images"), str(root / "b" / "images")


def test_without_folders_there_are_none() -> None:
    assert others.read(settings(), print) is None


def test_a_fifth_of_each_folder_is_kept_to_measure(folders: tuple[str, str]) -> None:
    found = others.read(settings(others=folders), print)
    assert found is not None
    assert found.learned.shape == (32 + 8, SIZE, SIZE, 3)
    assert {name: len(pictures) for name, pictures in found.measured.items()} == dict(zip(folders, (8, 2), strict=True))
    learned = {picture.tobytes() for picture in found.learned}
    measured = [picture.tobytes() for pictures in found.measured.values() for picture in pictures]
    assert len(learned.union(measured)) == 50
    again = others.read(settings(others=folders), print)
    assert again is not None
    np.testing.assert_array_equal(again.learned, found.learned)


def test_a_folder_of_too_few_pictures_is_named(tmp_path: Path) -> None:
    for number in range(4):
        Image.fromarray(draw_lesion("NV", number, SIZE, SIZE)).save(tmp_path / f"{number}.png")
    with pytest.raises(InputError, match="has 4 of the 5 pictures that are needed"):
        others.read(settings(others=[str(tmp_path)]), print)


def test_what_was_learned_is_found_again(folders: tuple[str, str]) -> None:
    training = settings(others=folders[:1])
    images = np.stack([draw_lesion(CODES[seed % 9], seed, SIZE, SIZE) for seed in range(120)])
    rows = pd.DataFrame({"split": ["train"] * 80 + ["validation"] * 40, "source": ["a"] * 70 + ["b"] * 50})
    development = DevelopmentSet(rows, images)
    members = [networks.build(Network(name="residual", width=4, blocks=(1, 1)), SIZE, seed) for seed in (0, 1)]
    network = CompiledNetwork(bundles.model_bytes(networks.ensemble(members, SIZE)), SIZE)
    foreign = others.read(training, print)
    assert foreign is not None
    validation = network.outputs(images[80:])
    model = others.outlier_model(training, development, network, validation, foreign)
    assert model.of_features is not None
    assert len(model.of_features.coefficients) == 16  # eight channels of each of the two networks
    features_alone = model.model_copy(update={"distance_at_1": 1e9, "log_odds_at_1": 1e9})

    def share(pixels: np.ndarray) -> float:
        return float((outliers.scores(pixels, network.outputs(pixels).features, features_alone) > 1).mean())

    (held_out,) = foreign.measured.values()
    assert share(held_out) >= 0.75
    assert share(images[80:]) <= 0.05
    assert others.outlier_model(training, development, network, validation, None).of_features is None
