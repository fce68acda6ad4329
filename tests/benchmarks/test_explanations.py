from typing import Any

import numpy as np
import pytest

from melanoma.model import bundle as bundles
from melanoma.training import networks
from melanoma.training.config import Network
from tests.benchmarks import explanations


@pytest.mark.parametrize("name", ["residual", "EfficientNetLite0"])
def test_the_maps_reach_the_layers_of_a_pretrained_network_within(name: str) -> None:
    network = networks.build(Network.model_validate({"name": name}), 64, seed=0)
    data = bundles.model_bytes(network)

    class Fake:
        model = data

    fake: Any = Fake()
    gradients = explanations.Gradients(fake)
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    logits = gradients._networks[0]([pixels[None].astype(np.float32)])[-1]
    np.testing.assert_allclose(np.asarray(logits), np.asarray(network(pixels[None])), atol=1e-4)
    assert gradients.sides[0] < gradients.sides[1] < gradients.sides[2] < 64
    for depth, side in enumerate(gradients.sides):
        heat = gradients.layer_cam(depth)(pixels)
        assert heat.shape == (side, side)
        assert heat.max() > 0
    assert np.isfinite(gradients.integrated(pixels)).all()
