"""Bits per dimension: against float64, and against a density that is known."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.diffusion import gaussian
from unclip_jax.diffusion import bound, process
from unclip_jax.diffusion.schedule import make_schedule

SCHEDULE = make_schedule("cosine")
RNG = np.random.default_rng(0)


def cdf(x):
    return np.vectorize(math.erfc)(-x / math.sqrt(2)) / 2


def reference(schedule, x, noise, x0_of, raw):
    """Equations 4 to 7 of IDDPM, as written, in float64: (prior, terms (T, B))."""
    beta = schedule.betas
    bar = np.cumprod(1 - beta)
    bar_before = np.append(1.0, bar[:-1])
    small = beta * (1 - bar_before) / (1 - bar)
    log_small = np.log(np.append(small[1], small[1:]))
    terms = []
    for t in range(len(beta)):
        x_t = np.sqrt(bar[t]) * x + np.sqrt(1 - bar[t]) * noise[t]
        on_x0 = beta[t] * np.sqrt(bar_before[t]) / (1 - bar[t])
        on_xt = (1 - bar_before[t]) * np.sqrt(1 - beta[t]) / (1 - bar[t])
        true = on_x0 * x + on_xt * x_t
        mean = on_x0 * x0_of(x_t, t) + on_xt * x_t
        fraction = (raw + 1) / 2
        logvar = fraction * np.log(beta[t]) + (1 - fraction) * log_small[t]
        if t == 0:
            inv = np.exp(-0.5 * logvar)
            plus, minus = (cdf(inv * (x - mean + d)) for d in (1 / 255, -1 / 255))
            plus, minus = np.where(x > 0.999, 1, plus), np.where(x < -0.999, 0, minus)
            nats = -np.log(np.maximum(plus - minus, 1e-12))
        else:
            nats = 0.5 * (
                logvar
                - log_small[t]
                - 1
                + np.exp(log_small[t] - logvar)
                + (true - mean) ** 2 / np.exp(logvar)
            )
        terms.append(nats.mean((1, 2)) / np.log(2))
    variance = 1 - bar[-1]
    prior = 0.5 * (variance - 1 - np.log(variance) + bar[-1] * x**2)
    return prior.mean((1, 2)) / np.log(2), np.stack(terms)


@pytest.mark.parametrize("name,length", [("cosine", 1000), ("linear", 50)])
def test_every_term_is_iddpms(name, length):
    schedule = make_schedule(name, length)
    x = (RNG.integers(0, 256, (3, 4, 2)) / 127.5 - 1).astype(np.float32)
    x[0, 0], x[1, 0] = -1, 1  # the open ends of the range
    noise = RNG.standard_normal((length, *x.shape)).astype(np.float32)
    raw = RNG.uniform(-1, 1, x.shape).astype(np.float32)

    def predict(x_t, t):
        x0 = 0.9 * jnp.asarray(x) + 0.05 * jnp.tanh(x_t)
        output = jnp.concatenate([x0, jnp.asarray(raw)], -1)
        return process.interpret(schedule, "x0", x_t, t, output, None)

    got = jax.jit(
        lambda x: bound.bits_per_dim(
            predict, schedule, x, lambda t, shape: jnp.asarray(noise)[t]
        )
    )(x)
    wide = x.astype(np.float64)
    prior, terms = reference(
        schedule, wide, noise, lambda x_t, t: 0.9 * wide + 0.05 * np.tanh(x_t), raw
    )
    np.testing.assert_allclose(got.terms, terms, rtol=2e-3, atol=1e-6)
    np.testing.assert_allclose(got.prior, prior, rtol=1e-4, atol=1e-12)
    np.testing.assert_allclose(got.total, prior + terms.sum(0), rtol=1e-3)


def test_the_perfect_models_bound_is_the_entropy():
    """One axis of the Gaussian, every reverse step exact: nothing is lost."""
    length, variance = 200, 0.09
    schedule = make_schedule("cosine", length)
    bar = schedule.alphas_cumprod
    before = np.append(1.0, bar[:-1])
    beta = schedule.betas
    exact = 1 / (1 / (before * variance + 1 - before) + (1 - beta) / beta)
    small = np.append(1.0, (beta * (1 - before) / (1 - bar))[1:])
    small[0] = small[1]  # as IDDPM clips it
    fraction = np.log(exact / small) / np.log(beta / small)
    gain = np.sqrt(bar) * variance / (bar * variance + 1 - bar)

    def predict(x_t, t):
        at = lambda table: jnp.asarray(table, jnp.float32)[t][:, None]  # noqa: E731
        raw = jnp.broadcast_to(at(2 * fraction - 1), x_t.shape)
        output = jnp.concatenate([at(gain) * x_t, raw], -1)
        return process.interpret(schedule, "x0", x_t, t, output, None)

    keys = jax.random.split(jax.random.key(0), 512)
    x = RNG.normal(0, variance**0.5, (512, 16)).clip(-1, 1)
    x = (np.round((x + 1) * 127.5) / 127.5 - 1).astype(np.float32)
    bits = jax.jit(lambda x: bound.bits_per_dim(predict, schedule, x, keys).total)(x)
    # of 8-bit values, 2 / 255 apart
    entropy = 0.5 * np.log2(2 * np.pi * np.e * variance) - np.log2(2 / 255)
    # 8,192 numbers: 4 sigma of the entropy's own estimate is 0.05
    np.testing.assert_allclose(bits.mean(), entropy, atol=0.06)


def test_a_model_without_a_variance_has_the_small_one():
    x = jnp.asarray(gaussian.data(4))
    t = jnp.array([1, 10, 500, 999])
    x_t = process.q_sample(SCHEDULE, x, t, jnp.ones_like(x))
    plain = gaussian.predictor(SCHEDULE)(x_t, t)
    small = plain._replace(variance=-jnp.ones_like(x))
    bits = jax.jit(lambda pred: process.vlb_bits(SCHEDULE, x, x_t, t, pred))
    a, b = bits(plain), bits(small)
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-8)
