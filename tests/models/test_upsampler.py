"""The upsampler on tiny random weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from tests.random_params import random_variables
from unclip_jax import models
from unclip_jax.models.upsampler import upsample

FIELDS = {
    "image_size": 32,
    "low_res_size": 8,
    "channels": 8,
    "channel_mult": (1, 2),
    "num_res_blocks": (1, 1),
    "scale_shift": False,
    "norm_groups": 4,
}
RNG = np.random.default_rng(0)
T = jnp.array([3, 900])


def normal(*shape):
    return jnp.asarray(RNG.standard_normal(shape), jnp.float32)


def randomized(**changes):
    """A model whose zero-initialised outputs don't hide what it does."""
    model = models.build("upsampler", {**FIELDS, **changes})
    x, low = normal(2, 16, 16, 3), normal(2, 4, 4, 3)
    return jax.jit(model.apply), random_variables(model, x, T, low), (x, T, low)


@pytest.fixture(scope="module")
def upsampler():
    return randomized()


@pytest.mark.parametrize("which", ["x_t", "t", "low_res"])
def test_every_input_acts_on_its_own_row(upsampler, which):
    call, variables, inputs = upsampler
    i = ("x_t", "t", "low_res").index(which)
    other = [*inputs]
    other[i] = other[i].at[0].add(1)
    changed = call(variables, *other) - call(variables, *inputs)
    changed = np.abs(changed).max((1, 2, 3))
    assert changed[0] > 1e-3 and changed[1] == 0


@pytest.mark.slow
def test_it_takes_pictures_of_any_size(upsampler):
    """No attention: trained on crops, applied to whole pictures, of any shape."""
    call, variables, _ = upsampler
    for h, w in ((32, 32), (8, 24)):
        out = call(variables, normal(2, h, w, 3), T, normal(2, h // 4, w // 4, 3))
        assert out.shape == (2, h, w, 3) and out.dtype == jnp.float32


def test_what_is_far_away_acts_through_the_norms_alone(upsampler):
    """Convolutions see near pixels only, so a crop is drawn like the whole."""
    call, variables, _ = upsampler
    x, low = normal(2, 128, 128, 3), normal(2, 32, 32, 3)
    moved = low.at[:, -1, -1].add(0.1)
    changed = np.abs(call(variables, x, T, moved) - call(variables, x, T, low))
    assert changed[:, -8:, -8:].max() > 30 * changed[:, :64, :64].max()


def test_learned_variance_and_early_down_sampling():
    call, variables, inputs = randomized(
        learned_sigma=True, patch_size=2, num_res_blocks=(1, 2), scale_shift=True
    )
    assert call(variables, *inputs).shape == (2, 16, 16, 6)


@pytest.mark.slow
def test_a_residual_model_starts_from_the_enlarged_picture():
    model = models.build("upsampler", {**FIELDS, "residual": True})
    x, low = normal(2, 16, 16, 3), normal(2, 4, 4, 3)
    out, _ = jax.jit(model.init_with_output)(jax.random.key(0), x, T, low)
    np.testing.assert_allclose(out, upsample(low, (16, 16)), atol=1e-6)


@pytest.mark.parametrize("method", ["bilinear", "bicubic"])
def test_resizing_is_pillows(method):
    """Max difference to Pillow's float resize: 5e-7 (its weights are double)."""
    x = RNG.standard_normal((5, 6)).astype(np.float32)
    filters = {
        "bilinear": Image.Resampling.BILINEAR,
        "bicubic": Image.Resampling.BICUBIC,
    }
    expected = np.asarray(Image.fromarray(x).resize((24, 20), filters[method]))
    ours = upsample(jnp.asarray(x)[None, ..., None], (20, 24), method)[0, ..., 0]
    np.testing.assert_allclose(ours, expected, atol=2e-6)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"resize": "nearest"}, "'nearest': expected one of bilinear, bicubic"),
        ({"low_res_size": 12}, "32 must be a multiple of low_res_size 12"),
        ({"patch_size": 16}, "16x16 does not divide by 32"),
    ],
)
def test_what_does_not_fit_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        randomized(**changes)
