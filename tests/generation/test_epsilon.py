"""Latents by a decoder of the paper's kind: epsilon, learned sigma, cosine, trained.

tests/data/make_epsilon_export.py trained it. Unlike a random net, or one that predicts
x_0, it errs at the last timesteps, where the signal that its error is divided by is
small.
"""

import dataclasses
import pathlib

import jax.numpy as jnp
import numpy as np
import pytest

from tests.data.make_epsilon_export import CLASSES
from tests.generation.conftest import make_model
from unclip_jax.data.sources import make_source
from unclip_jax.generation.loading import load_stack

pytestmark = pytest.mark.slow
EXPORT = pathlib.Path(__file__).parents[1] / "data" / "epsilon_export"


def psnr(a, b):
    error = np.square(a.astype(float) - b).mean()
    return 10 * np.log10(255**2 / max(error, 1e-9))


def saturated(images):
    return ((images == 0) | (images == 255)).mean()


@pytest.fixture(scope="module")
def stack():
    return load_stack(EXPORT)


@pytest.fixture(scope="module")
def model(stack):
    return make_model(stack)


@pytest.fixture(scope="module")
def images():
    """Eight pictures of combinations that training never saw."""
    source = make_source(
        {"source": "icons", "split": "held_out", "image_size": 8, **CLASSES}
    )
    return np.stack([source[i]["image"] for i in range(8)])


@pytest.fixture(scope="module")
def back(model, images):
    return model.reconstruct(images, steps=250)


def test_reconstructions(model, images, back):
    assert psnr(back, images) > 35, psnr(back, images)
    few = model.reconstruct(images, steps=50)
    assert psnr(few, images) > 28, psnr(few, images)
    assert saturated(back) < 0.05


def test_a_correction_makes_inversion_exact(model, images):
    """Measured at 50 steps: 36.0 dB without, 47.6 with one."""
    drawn = model.reconstruct(images, steps=50, corrections=1)
    assert psnr(drawn, images) > 42, psnr(drawn, images)


def test_few_steps_leave_out_the_same_timesteps(model, images):
    """From the schedule's last timestep everything would be at 0 or 255."""
    for steps in (10, "10,10,3,2,2"):
        drawn = model.reconstruct(images, steps=steps)
        assert psnr(drawn, images) > 18, (steps, psnr(drawn, images))
        assert saturated(drawn) < 0.5, (steps, saturated(drawn))


def test_text_diff_starts_at_the_picture(model, images, back):
    thetas = (0.0, 0.25, 0.5)
    rows = model.text_diff(images[:2], "a red heart", "a blue heart", thetas)
    assert np.abs(rows[:, 0].astype(int) - back[:2]).max() <= 1
    assert saturated(rows) < 0.1


def test_interpolation_ends_at_both_pictures(model, images, back):
    rows = model.interpolate(images[:1], images[1:2], frames=4)[0]
    ends = np.stack([rows[0], rows[-1]])
    assert np.abs(ends.astype(int) - back[:2]).max() <= 2
    assert saturated(rows) < 0.1


def test_variations_of_inverted_noise(model, images, back):
    """The noise of the steps brings the bound back: without it 58% are at 0 or 255."""
    same = model.variations(images, inverted=True, eta=0.0)
    np.testing.assert_array_equal(same, back)
    moved = model.variations(images, inverted=True, eta=1.0)
    assert psnr(moved, images) < 25 and saturated(moved) < 0.1


def test_guidance_draws_near_the_picture(model, images):
    """Coarsely: it is clipped, which inversion was not."""
    drawn = model.reconstruct(images, guidance=1.5, steps=250)
    assert psnr(drawn, images) > 20, psnr(drawn, images)


@pytest.mark.parametrize("sampler", ["ddim", "ddpm"])
def test_given_noise_is_as_good_as_drawn(model, images, sampler):
    """Only inverted noise leaves out the bound on x_0, and only when it is said."""
    z = model.encode_image(images)
    options = dict(guidance=1.0, steps=25, sampler=sampler, seed=3)
    drawn = model.decode(z, **options)
    given = model.decode(z, noise=model.draw_noise(8, 3), **options)
    assert np.abs(given.astype(int) - drawn).max() <= 1
    assert saturated(given) < 0.5  # measured: 0.2; without the bound, 1


def test_shared_noise_without_guidance(model, images):
    options = dict(noise="shared", guidance=1.0, steps=25, seed=3)
    row = model.interpolate(images[:1], images[1:2], frames=3, **options)[0]
    z = model.encode_image(images[:1])
    first = model.decode(z, guidance=1.0, steps=25, sampler="ddim", seed=3)
    assert np.abs(row[:1].astype(int) - first).max() <= 1


class Erring:
    """A decoder whose epsilon is off by 1%, by a function of x_t."""

    def __init__(self, module):
        self._module = module

    def __getattr__(self, name):
        return getattr(self._module, name)

    def apply(self, variables, x, *rest):
        output = self._module.apply(variables, x, *rest)
        error = 0.01 * np.sqrt(2) * jnp.sin(40 * x + jnp.arange(3))
        return output + jnp.concatenate([error, 0 * error], -1)


def test_an_error_of_epsilon_costs_little(stack, images, back):
    decoder = stack.parts["decoder"]
    decoder = dataclasses.replace(decoder, module=Erring(decoder.module))
    parts = {**stack.parts, "decoder": decoder}
    model = make_model(dataclasses.replace(stack, parts=parts))
    erred = psnr(model.reconstruct(images, steps=250), images)
    assert erred > psnr(back, images) - 3, (erred, psnr(back, images))
