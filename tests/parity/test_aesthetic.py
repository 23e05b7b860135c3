"""The aesthetic score against the same layers in torch, random weights: 1e-6."""

import numpy as np
import pytest
import torch

from unclip_jax.evaluation.metrics.aesthetic import aesthetic, layers_of
from unclip_jax.interop.weights import read_tensors

WIDTHS = (768, 1024, 128, 64, 16, 1)


class Predictor(torch.nn.Module):
    """The public predictor's structure: dropout after the first three layers."""

    def __init__(self):
        super().__init__()
        layers = []
        for i, (wide, out) in enumerate(zip(WIDTHS, WIDTHS[1:], strict=False)):
            layers += [torch.nn.Linear(wide, out)]
            layers += [torch.nn.Dropout(0.1)] * (i < 3)
        self.layers = torch.nn.Sequential(*layers)


def test_it_is_the_public_predictor(tmp_path):
    torch.manual_seed(0)
    model = Predictor().double().eval()
    assert "layers.7.bias" in model.state_dict()
    torch.save(model.state_dict(), tmp_path / "linear.pth")
    x = np.random.default_rng(0).normal(size=(5, 768)) * 9
    with torch.no_grad():
        unit = torch.nn.functional.normalize(torch.from_numpy(x), dim=-1)
        want = model.layers(unit)[:, 0].numpy()
    layers = layers_of(read_tensors(tmp_path / "linear.pth", "the predictor"))
    np.testing.assert_allclose(aesthetic(x, layers), want, rtol=1e-6)
    with pytest.raises(ValueError, match="512 wide.*ViT-L/14"):
        aesthetic(x[:, :512], layers)
    with pytest.raises(ValueError, match="layers.N.weight"):
        layers_of({"weight": np.zeros(3)})
