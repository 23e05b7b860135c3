"""What lies between images and latents."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from unclip_jax.generation import latents


def enlarge(x):
    """The simplest decoder: three channels, each pixel four times."""
    return x[..., :3].repeat(2, axis=1).repeat(2, axis=2)


@pytest.mark.parametrize("shape", [(8, 8), (9, 20), (16, 5), (33, 8)])
def test_tiles_make_the_whole(shape):
    x = np.random.default_rng(0).standard_normal((2, *shape, 4)).astype(np.float32)
    drawn = jax.jit(lambda x: latents.by_tiles(enlarge, x, 8, 2))(x)
    np.testing.assert_allclose(drawn, enlarge(x), atol=1e-6)


def test_tiles_fade_into_one_another():
    """A decoder that draws each tile in a color of its own leaves no edge."""

    def color(x):
        return jnp.broadcast_to(x[:, :1, :1, :1], (*enlarge(x).shape[:3], 3))

    x = jnp.arange(14.0)[None, None, :, None].repeat(8, 1)  # tiles at 0 and 6
    row = np.asarray(latents.by_tiles(color, x, 8, 2))[0, 0, :, 0]
    assert row[0] == 0 and row[-1] == 6
    assert 0 < np.diff(row).max() < 2


def test_masks_of_latents():
    keep = np.ones((1, 8, 8, 1), np.float32)
    keep[0, 3, 5] = 0
    small = np.asarray(latents.shrink_mask(keep, 2))
    assert small.shape == (1, 4, 4, 1) and small.sum() == 15 and small[0, 1, 2] == 0
    wide = np.asarray(latents.widen_hole(small))[0, ..., 0]
    expected = np.ones((4, 4))
    expected[1, 2] = expected[0, 2] = expected[2, 2] = 0
    expected[1, 1] = expected[1, 3] = expected[0, 1] = expected[2, 3] = 0
    np.testing.assert_array_equal(wide, expected)
