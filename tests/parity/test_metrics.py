"""Metrics of given features against the libraries that define them: 1e-6 relative."""

import numpy as np
import prdc
import pytest
import torch
from torchmetrics.functional.multimodal.clip_score import _clip_score_update

from tests.parity import fid_programs
from unclip_jax.evaluation.metrics.clip_score import clip_score
from unclip_jax.evaluation.metrics.cmmd import cmmd
from unclip_jax.evaluation.metrics.density_coverage import density_coverage
from unclip_jax.evaluation.metrics.inception_score import inception_score
from unclip_jax.evaluation.metrics.kid import kid
from unclip_jax.evaluation.metrics.precision_recall import precision_recall


@pytest.fixture(scope="module")
def features():
    """Generated x (90, 24), real y (110, 24), logits (90, 1008), float64."""
    random = np.random.default_rng(0)
    scale = np.arange(1, 25) ** -0.5
    return {
        "x": random.normal(size=(90, 24)) * scale * 0.9 + 0.1,
        "y": random.normal(size=(110, 24)) * scale,
        "logits": random.normal(size=(90, 1008)) * 2,
    }


@pytest.fixture(scope="module")
def fidelity(features, tmp_path_factory):
    """torch-fidelity's numbers."""
    if not fid_programs.available():
        pytest.skip(f"the FID programs are not in {fid_programs.PROGRAMS}: make test")
    folder = tmp_path_factory.mktemp("metrics")
    np.savez(folder / "features.npz", **features)
    return fid_programs.reference("metrics", folder)


@pytest.mark.programs
def test_kid(features, fidelity):
    got = kid(features["x"], features["y"], subsets=20, subset_size=50)
    want = [fidelity[f"kernel_inception_distance_{q}"] for q in ("mean", "std")]
    assert want[0] > 0
    np.testing.assert_allclose(got, want, rtol=1e-6)


@pytest.mark.programs
def test_inception_score(features, fidelity):
    got = inception_score(features["logits"])
    want = [fidelity[f"inception_score_{q}"] for q in ("mean", "std")]
    np.testing.assert_allclose(got, want, rtol=1e-6)


@pytest.mark.programs
def test_precision_recall(features, fidelity):
    got = precision_recall(features["x"], features["y"])
    assert 0 < got[1] < 1 and 0 < got[0] < 1
    np.testing.assert_allclose(got, [fidelity["precision"], fidelity["recall"]], 1e-6)


def test_density_coverage(features):
    want = prdc.compute_prdc(features["y"], features["x"], nearest_k=5)
    got = density_coverage(features["x"], features["y"], k=5)
    np.testing.assert_allclose(got, [want["density"], want["coverage"]], rtol=1e-6)


def test_clip_score(features):
    image, text = features["x"], features["y"][:90] + features["x"]
    towers = _Towers(torch.from_numpy(image), torch.from_numpy(text))
    pictures = [torch.zeros(3, 4, 4, dtype=torch.uint8)] * len(image)
    score, count = _clip_score_update(pictures, ["a"] * len(text), towers, towers)
    want = float(torch.clamp(score.sum() / count, min=0))
    assert want > 1
    got = clip_score(image, text, "torchmetrics")
    assert got == pytest.approx(want, rel=1e-6)
    assert clip_score(image, text, "cosine") == pytest.approx(want / 100, rel=1e-6)


class _Towers:
    """A CLIP model and its processor in one, whose features are given."""

    def __init__(self, image, text):
        self.image, self.text = image, text
        self.device = torch.device("cpu")
        limits = {"max_position_embeddings": 77}
        self.config = type("C", (), {"text_config": type("T", (), limits)})

    def to(self, device):
        return self

    def __call__(self, text=None, images=None, **_):
        n = len(text if text is not None else images)
        return {
            "pixel_values": torch.zeros(n, 3, 4, 4),
            "input_ids": torch.zeros(n, 8, dtype=torch.long),
            "attention_mask": torch.ones(n, 8, dtype=torch.long),
        }

    def get_image_features(self, *_, **__):
        return self.image

    def get_text_features(self, *_, **__):
        return self.text


def test_cmmd(features):
    x, y = features["x"], features["y"]
    x = x / np.linalg.norm(x, axis=1, keepdims=True)
    y = y / np.linalg.norm(y, axis=1, keepdims=True)

    def kernel(a, b):  # the paper's formula, in extended precision
        gap = (a[:, None] - b[None]).astype(np.longdouble)
        return np.exp(-np.sum(gap * gap, axis=-1) / (2 * np.longdouble(10) ** 2)).mean()

    want = float(1000 * (kernel(x, x) + kernel(y, y) - 2 * kernel(x, y)))
    assert want > 0.01
    assert cmmd(features["x"], features["y"]) == pytest.approx(want, rel=1e-6)
