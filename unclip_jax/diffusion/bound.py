"""The variational bound of whole images in bits per dimension (IDDPM, equation 3)."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from unclip_jax.diffusion import process
from unclip_jax.diffusion.samplers.steps import everywhere, noise_source, run_all
from unclip_jax.diffusion.schedule import Schedule
from unclip_jax.shapes import PerSample, Samples


class BitsPerDim(NamedTuple):
    """An upper bound of -log2 P(8-bit image) per dimension, and what it is made of."""

    total: jax.Array  # (B,) prior + the sum of the terms
    prior: jax.Array  # (B,) of x_T
    terms: jax.Array  # (T, B): terms[t] of the step t -> t - 1


def prior_bits(schedule: Schedule, x_0: Samples) -> PerSample:
    """(B,) KL(q(x_T | x_0) || N(0, I)) in bits per dimension."""
    bar = schedule.alphas_cumprod[-1]
    # variance - 1 - log(variance) of 1 - abar, a difference lost in float32
    of_variance = np.float32(-bar - np.log1p(-bar))
    nats = 0.5 * (np.float32(bar) * jnp.square(x_0) + of_variance)
    return nats.mean(tuple(range(1, x_0.ndim))) / np.log(2.0)


def bits_per_dim(predict, schedule: Schedule, x_0: Samples, noise) -> BitsPerDim:
    """The bound of each image, from one draw of x_t at each of the T timesteps.

    Args: as for `vlb_terms`.
    """
    terms = vlb_terms(predict, schedule, x_0, noise).T  # (T, B)
    prior = prior_bits(schedule, x_0)
    return BitsPerDim(prior + terms.sum(0), prior, terms)


def vlb_terms(predict, schedule: Schedule, x_0: Samples, noise, run=run_all):
    """(B, T): the terms of the steps t -> t - 1 in bits per dimension.

    Args:
      predict: (x_t, t) -> process.Prediction. IDDPM clips x0 to the data's range.
      schedule: the process, whole: the bound of strided steps is another one.
      x_0: (B, ..., C) float32, 8-bit images scaled to [-1, 1].
      noise: (B,) PRNG keys, or a function (t, shape) -> noise of timestep t.
      run: how the loop over the timesteps is run, see diffusion.samplers.
    """
    draw = noise_source(noise)

    def step(terms, i, row):
        del row  # timestep i
        t = everywhere(i, x_0)
        x_t = process.q_sample(schedule, x_0, t, draw(i, x_0.shape))
        term = process.vlb_bits(schedule, x_0, x_t, t, predict(x_t, t))
        return terms.at[:, i].set(term)

    count = schedule.num_steps
    return run(step, jnp.zeros((len(x_0), count)), np.arange(count))
