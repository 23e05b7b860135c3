"""Samplers on a Gaussian, whose score is known in closed form."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from unclip_jax.diffusion import guidance, process, samplers
from unclip_jax.diffusion.schedule import gather, make_schedule, strided_timesteps

SCHEDULE = make_schedule("cosine")
MEAN, STD = 0.4, 0.3


def predict(x_t, t):
    """E[x_0 | x_t] for x_0 ~ N(MEAN, STD^2)."""
    bar = gather(SCHEDULE.alphas_cumprod, t, x_t.ndim)
    gain = jnp.sqrt(bar) * STD**2 / (bar * STD**2 + 1 - bar)
    x0 = MEAN + gain * (x_t - jnp.sqrt(bar) * MEAN)
    return process.interpret(SCHEDULE, "x0", x_t, t, x0, None)


def draw(sampler, steps, seed=0, n=4096, **kwargs):
    keys = jax.random.split(jax.random.key(seed), n)
    x_T = samplers.normal(keys, (1,))
    steps = strided_timesteps(1000, steps)
    run = jax.jit(lambda x, k: sampler(predict, SCHEDULE, x, steps, k, **kwargs))
    return np.asarray(run(x_T, keys))


@pytest.mark.parametrize(
    "sampler,kwargs",
    [(samplers.ddim, {}), (samplers.ddim, {"eta": 1.0}), (samplers.ddpm, {})],
)
def test_samplers_reach_the_mean_and_the_spread(sampler, kwargs):
    x = draw(sampler, 250, **kwargs)
    np.testing.assert_allclose(x.mean(), MEAN, atol=4 * STD / 64)
    np.testing.assert_allclose(x.std(), STD, rtol=0.06)


def test_a_sample_depends_on_its_key_only():
    many, few = draw(samplers.ddpm, 5, n=8), draw(samplers.ddpm, 5, n=8)[:3]
    np.testing.assert_array_equal(many[:3], few)
    keys = jax.random.split(jax.random.key(0), 8)
    alone = samplers.ddpm(
        predict,
        SCHEDULE,
        samplers.normal(keys[2:3], (1,)),
        strided_timesteps(1000, 5),
        keys[2:3],
    )
    np.testing.assert_allclose(alone[0], many[2], atol=1e-6)


def test_ddim_without_eta_uses_no_noise():
    keys = jax.random.split(jax.random.key(0), 4)
    x_T, steps = samplers.normal(keys, (1,)), strided_timesteps(1000, 10)
    other = jax.random.split(jax.random.key(1), 4)
    a, b = (samplers.ddim(predict, SCHEDULE, x_T, steps, k) for k in (keys, other))
    np.testing.assert_array_equal(a, b)


def test_guidance_extrapolates_from_the_unconditional_output():
    def model(x, t, c, drop):
        out = jnp.where(drop[:, None], -1.0, c)
        return jnp.concatenate([out, out * 10], axis=-1)  # mean, variance

    x, t = jnp.zeros((2, 1)), jnp.zeros(2, int)
    c = jnp.array([[2.0], [3.0]])
    out = guidance.classifier_free(model, c, 4.0)(x, t)
    np.testing.assert_allclose(out[:, 0], -1 + 4 * (c[:, 0] + 1))
    np.testing.assert_allclose(out[:, 1], 10 * c[:, 0])  # the conditional variance


def test_guidance_of_one_is_the_conditional_model():
    def model(x, t, c, drop):
        return jnp.where(drop[:, None], -1.0, c) + x

    x, t = jnp.ones((2, 1)), jnp.zeros(2, int)
    c = jnp.array([[2.0], [3.0]])
    one = guidance.classifier_free(model, c, 1)(x, t)
    np.testing.assert_allclose(one, c + x)
    np.testing.assert_allclose(
        guidance.classifier_free(model, c, jnp.float32(1))(x, t), one
    )
