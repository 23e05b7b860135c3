"""Pixels equal to those of transformers' CLIPImageProcessor, exactly."""

import numpy as np
import pytest
import transformers

from unclip_jax.images import fit
from unclip_jax.models.clip import OPENAI_MEAN, OPENAI_STD


@pytest.mark.parametrize("size", [32, 28])
@pytest.mark.parametrize(
    "shape", [(50, 81), (97, 33), (64, 64), (32, 32), (20, 31), (32, 47)]
)
def test_pixels_are_theirs(shape, size):
    rng = np.random.default_rng(sum(shape))
    image = rng.integers(0, 256, (*shape, 3), dtype=np.uint8)
    processor = transformers.CLIPImageProcessorPil(
        size={"shortest_edge": size}, crop_size={"height": size, "width": size}
    )
    only_pixels = {"do_rescale": False, "do_normalize": False}
    theirs = processor(image, return_tensors="np", **only_pixels)["pixel_values"][0]
    ours = fit(image, size)
    assert ours.dtype == np.uint8 and ours.shape == (size, size, 3)
    np.testing.assert_array_equal(ours, theirs.transpose(1, 2, 0))
    normalised = processor(image, return_tensors="np")["pixel_values"][0]
    expected = (ours / 255 - np.array(OPENAI_MEAN)) / np.array(OPENAI_STD)
    np.testing.assert_allclose(normalised.transpose(1, 2, 0), expected, atol=1e-5)
