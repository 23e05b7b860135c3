"""The noise of plain backgrounds."""

import numpy as np

from unclip_jax.evaluation.metrics.border_noise import border_noise


def test_it_is_the_standard_deviation_of_the_border_whatever_the_glyph():
    random = np.random.default_rng(0)
    images = np.full((3, 64, 64, 3), (200, 100, 50), np.float64)
    images[1] += random.normal(scale=6.0, size=(64, 64, 3))
    images[2, :, :20] = 0  # a glyph on 82 of the border's 252 pixels
    np.testing.assert_allclose(border_noise(images), [0, 6, 0], atol=1.0)
