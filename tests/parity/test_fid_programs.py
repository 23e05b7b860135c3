"""FID end to end against the programs that define it, on the same PNG files.

Random weights, calibrated so that activations stay of a useful size; the layer of 192
(the whole network is compared in test_inception.py).  Tolerance 1e-5 relative.
"""

import numpy as np
import pytest
from PIL import Image

from tests.parity import fid_programs
from unclip_jax.evaluation.features import gaussian
from unclip_jax.evaluation.features.inception import InceptionExtractor
from unclip_jax.evaluation.metrics.frechet import (
    frechet_distance,
    frechet_from_features,
    statistics,
)
from unclip_jax.interop.inception import load_inception

pytestmark = [pytest.mark.programs, pytest.mark.slow]
LAYER = "192"


def pictures(seed, n, height, width):
    """Smooth random pictures, uint8 (n, height, width, 3)."""
    random = np.random.default_rng(seed)
    coarse = random.integers(0, 256, (n, 6, 5, 3), dtype=np.uint8)
    size = (width, height)
    images = [Image.fromarray(c).resize(size, Image.Resampling.BICUBIC) for c in coarse]
    noise = random.normal(0, 15, (n, height, width, 3))
    return np.clip(np.stack(images) + noise, 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def sets(fid_folder):
    """Generated (64 x 48) and real (310 x 330: shrunk) pictures, saved as PNG files."""
    found = {"a": pictures(0, 10, 64, 48), "b": pictures(1, 12, 310, 330)}
    for name, images in found.items():
        (fid_folder / name).mkdir()
        for i, image in enumerate(images):
            Image.fromarray(image).save(fid_folder / name / f"{i:03d}.png")
    return found


@pytest.fixture(scope="module")
def inception(fid_folder):
    return load_inception(str(fid_folder / "weights.pth"))


@pytest.fixture(scope="module")
def theirs(fid_folder, inception, sets):
    extractor = InceptionExtractor(inception, "pytorch-fid", [LAYER], batch_size=16)
    b = extractor.image(sets["b"])[LAYER]
    ours = gaussian.GaussianStatistics(*statistics(b), {"n": len(b)})
    gaussian.write(fid_folder / "ours.npz", ours)
    return fid_programs.reference("distances", fid_folder, LAYER)


@pytest.mark.parametrize("convention", ["pytorch-fid", "torch-fidelity", "clean"])
def test_the_distance_is_the_programs(inception, sets, theirs, convention):
    extractor = InceptionExtractor(inception, convention, [LAYER], batch_size=16)
    a, b = (extractor.image(sets[name])[LAYER] for name in "ab")
    got, want = frechet_from_features(a, b), theirs[convention]
    print(f"{convention}: {got:.6f} against {want:.6f}, relative {got / want - 1:.1e}")
    assert got == pytest.approx(want, rel=1e-5)


def test_the_conventions_differ(theirs):
    values = [theirs[c] for c in ("pytorch-fid", "torch-fidelity", "clean")]
    assert min(abs(np.subtract.outer(values, values)[np.triu_indices(3, 1)])) > 1e-3


def test_statistics_files_go_both_ways(fid_folder, theirs):
    a, b = (gaussian.read(fid_folder / f"{x}.npz") for x in ("theirs", "ours"))
    got = frechet_distance(a.mean, a.covariance, b.mean, b.covariance)
    assert theirs["ours"] == pytest.approx(theirs["pytorch-fid"], rel=1e-5)
    assert got == pytest.approx(theirs["ours"], rel=1e-5)
