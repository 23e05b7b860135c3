"""Analytic variance through UnCLIP, with a prior that is exact for Gaussian data."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.environment import one_device
from unclip_jax.diffusion import analytic, bound, process
from unclip_jax.diffusion.schedule import gather, make_schedule
from unclip_jax.generation import UnCLIP
from unclip_jax.generation.estimation import (
    BITS,
    bits_per_dim,
    spread_timesteps,
    square_epsilon,
)
from unclip_jax.interop.components import Component

SCHEDULE = make_schedule("cosine", 100)
BAR = SCHEDULE.alphas_cumprod
VARIANCE, N, D = 0.25, 512, 8
PROMPTS = [f"prompt {i}" for i in range(N)]
EXACT = (1 - BAR) / (BAR * VARIANCE + 1 - BAR)  # E epsilon^2, tests/diffusion


class ExactPrior:
    """E[x_0 | x_t] of x_0 ~ N(0, VARIANCE), with the interface of a Linen prior."""

    embed_dim, caption = D, "tokens"

    def apply(self, variables, x, t=None, *condition, method=None):
        if method is not None:  # normalize, denormalize
            return x
        gain = np.sqrt(BAR) * VARIANCE / (BAR * VARIANCE + 1 - BAR)
        return gather(gain, t, x.ndim) * x


@pytest.fixture(scope="module")
def exact(stack):
    diffusion = {"schedule": "cosine", "num_steps": 100, "prediction": "x0"}
    config = {"diffusion": diffusion, "embedding": "raw"}
    part = Component("prior", ExactPrior(), {"none": jnp.zeros(8)}, config, "tiny", {})
    parts = {"clip": stack.parts["clip"], "prior": part}
    return UnCLIP(dataclasses.replace(stack, parts=parts), one_device(), batch_size=N)


@pytest.fixture(scope="module")
def found(exact):
    z = np.random.default_rng(0).normal(size=(N, D)) * VARIANCE**0.5
    where = spread_timesteps(exact.stack.part("prior"), 34)
    return square_epsilon(exact, "prior", PROMPTS, z, None, where), where, z


def test_the_statistic_is_the_known_one(found):
    """4,096 numbers; the error of 1 + epsilon^2 - noise^2 is largest where t is small:
    4 sigma of its mean are 0.09 there, 0.03 at t = 69 and 0.004 at t = 96."""
    each, where, _ = found
    assert each.shape == (N, 34) and where[0] == 0 and where[-1] == 99
    np.testing.assert_allclose(each.mean(0), EXACT[where], atol=0.09)
    np.testing.assert_allclose(each.mean(0)[-11:], EXACT[where][-11:], atol=0.04)
    np.testing.assert_allclose(each.mean(0)[-2:], EXACT[where][-2:], atol=5e-3)


def test_an_example_is_noised_as_it_is_in_the_whole_list(exact, found):
    each, where, z = found
    last = square_epsilon(
        exact, "prior", PROMPTS[480:], z[480:], None, where, first=480
    )
    np.testing.assert_allclose(last, each[480:], atol=1e-4)


@pytest.mark.slow
def test_drawing_with_it_has_the_spread_of_the_data(exact, found):
    """Which the posterior's variance loses at few steps.

    4 sigma of the spread of 4,096 numbers are 0.09; the table's own error adds to it.
    """
    means = found[0].mean(0)
    table = analytic.interpolate(SCHEDULE, found[1], means)
    part = dataclasses.replace(exact.stack.part("prior"), analytic=table)
    parts = {**exact.stack.parts, "prior": part}
    model = UnCLIP(
        dataclasses.replace(exact.stack, parts=parts), one_device(), batch_size=N
    )
    options = {"guidance": 1.0, "num_candidates": 1, "steps": 6, "sampler": "ddpm"}
    drawn = model.sample_embeddings(PROMPTS, **options, variance="analytic")
    np.testing.assert_allclose(drawn.var() / VARIANCE, 1, atol=0.15)
    drawn = model.sample_embeddings(PROMPTS, **options)
    assert drawn.var() / VARIANCE < 0.8


def test_without_it_the_command_is_named(exact):
    options = {"sampler": "ddpm", "variance": "analytic"}
    with pytest.raises(
        FileNotFoundError,
        match="of exports/tiny lacks.*estimate_variance --model=exports/tiny",
    ):
        exact.sample_embeddings(["a"], **options)


@pytest.mark.slow
def test_pictures_and_their_embeddings_are_what_the_decoder_is_asked_about(
    model, images
):
    z = model.encode_image(images)
    prompts = ["a cat"] * 5
    each = square_epsilon(model, "decoder", prompts, z, images, [3, 12])
    assert each.shape == (5, 2)
    with pytest.raises(ValueError, match="the decoder takes images"):
        square_epsilon(model, "decoder", prompts, z, images[:, :4], [3, 12])


@pytest.mark.slow
def test_bits_per_dim_is_the_bound_of_the_decoder_alone(model, stack, images):
    """Assembled here from the module: no guidance, no dropped condition, |x_0| <= 1."""
    z, prompts = model.encode_image(images), [f"a cat {i}" for i in range(5)]
    whole = bits_per_dim(model, prompts, z, images, seed=7)
    part, tokens = stack.part("decoder"), model.tokenize(prompts)
    sched, keep = make_schedule("cosine", 20), jnp.zeros(5, bool)

    def predict(x_t, t):
        inputs = x_t, t, z, tokens, keep, keep, None, None
        output = part.module.apply({"params": part.params}, *inputs)
        return process.interpret(sched, "epsilon", x_t, t, output, 1.0)

    def key(i):
        return jax.random.fold_in(jax.random.fold_in(jax.random.key(7), i), BITS)

    x_0 = jnp.asarray(images, jnp.float32) / 127.5 - 1
    keys = jax.vmap(key)(jnp.arange(5))
    expected = jax.jit(lambda x: bound.bits_per_dim(predict, sched, x, keys).total)(x_0)
    np.testing.assert_allclose(whole, expected, rtol=1e-4)
    last = bits_per_dim(model, prompts[3:], z[3:], images[3:], seed=7, first=3)
    np.testing.assert_allclose(last, whole[3:], rtol=1e-4)
    other = bits_per_dim(model, prompts, z, images, seed=8)
    assert np.abs(other - whole).max() > 1e-3
