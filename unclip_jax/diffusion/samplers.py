"""Samplers: a pure step function each, run under one `lax.scan`.

A sampler takes `predict`, (x_t, t) -> process.Prediction, and one PRNG key per
sample, so that a sample depends neither on its batch nor on its device.
"""

import jax
import jax.numpy as jnp
import numpy as np

from unclip_jax.diffusion import process
from unclip_jax.diffusion.schedule import Schedule, gather


def normal(keys, shape):
    """(B, *shape) standard normal noise, row i from keys[i] alone."""
    return jax.vmap(lambda key: jax.random.normal(key, shape))(keys)


def _fold(keys, i):
    return jax.vmap(lambda key: jax.random.fold_in(key, i))(keys)


def _run(step, x, timesteps, keys):
    """Scans step(x, t, s, noise) over pairs of consecutive timesteps."""
    timesteps = np.asarray(timesteps)
    pairs = np.stack([timesteps, np.append(timesteps[1:], -1)], axis=1)

    def body(x, inputs):
        i, (t, s) = inputs
        b = x.shape[0]
        noise = normal(_fold(keys, i), x.shape[1:])
        return step(x, jnp.full(b, t), jnp.full(b, s), noise), None

    x, _ = jax.lax.scan(body, x, (jnp.arange(len(pairs)), jnp.asarray(pairs)))
    return x


def ddim(predict, schedule: Schedule, x_T, timesteps, keys, eta: float = 0.0):
    """DDIM (Song et al. 2021, equation 12); eta = 1 has DDPM's small variance.

    Args:
      predict: (x_t, t) -> process.Prediction.
      schedule: the process the model was trained on.
      x_T: (B, ..., C) noise at timesteps[0].
      timesteps: descending integers; the last step goes to x_0.
      keys: (B,) typed PRNG keys.
      eta: 0 is deterministic.
    """
    bars = np.append(schedule.alphas_cumprod, 1.0)

    def step(x, t, s, noise):
        pred = predict(x, t)
        bar_t, bar_s = gather(bars, t, x.ndim), gather(bars, s, x.ndim)
        rest_t, rest_s = gather(1 - bars, t, x.ndim), gather(1 - bars, s, x.ndim)
        beta = jnp.where(bar_s > 0.5, rest_t - rest_s, bar_s - bar_t) / bar_s
        sigma = eta * jnp.sqrt(rest_s / rest_t * beta)
        direction = jnp.sqrt(jnp.maximum(rest_s - sigma**2, 0)) * pred.epsilon
        return jnp.sqrt(bar_s) * pred.x0 + direction + sigma * noise

    return _run(step, x_T, timesteps, keys)


def ddpm(predict, schedule: Schedule, x_T, timesteps, keys):
    """Ancestral sampling; the variance is the model's if it has one, else small."""

    def step(x, t, s, noise):
        pred = predict(x, t)
        post = process.posterior(schedule, pred.x0, x, t, s)
        logvar = post.log_variance
        if pred.variance is not None:
            logvar = process.learned_log_variance(post, pred.variance)
        sigma = jnp.exp(0.5 * logvar) * (s >= 0).reshape((-1,) + (1,) * (x.ndim - 1))
        return post.mean + sigma * noise

    return _run(step, x_T, timesteps, keys)


SAMPLERS = {"ddim": ddim, "ddpm": ddpm}
