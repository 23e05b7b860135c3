"""Heun's method on the probability-flow ODE, for x0 in the half log-SNR."""

import jax.numpy as jnp
import numpy as np

from unclip_jax.diffusion.samplers.steps import (
    everywhere,
    half_log_snr_steps,
    make_steps,
    run_all,
)
from unclip_jax.diffusion.schedule import Schedule
from unclip_jax.shapes import Path, Samples


def heun(
    predict, schedule: Schedule, x_T: Samples, timesteps: Path, noise=None, run=run_all
):
    """Heun, second order; arguments as in `samplers`. 2n - 1 calls of the model.

    In lambda = log(signal / sigma) the solution of the ODE is (Lu et al. 2022,
    arXiv 2211.01095, proposition 4.1)

      x_s = sigma_s / sigma_t x_t + sigma_s int_t^s exp(lambda) x0(lambda) dlambda.

    A step predicts x_s with x0 constant, which is DDIM, and corrects it with x0 linear
    between the predictions at both ends: exponential Heun. Unlike the trapezoidal rule
    for epsilon in sigma / signal, it stays finite in a cosine schedule's first step and
    does not divide a model's error in x0 by the small sigma of the last. The step to
    x_0 is DDIM's.
    """
    steps = make_steps(schedule, timesteps)
    h = half_log_snr_steps(steps)
    shrink = np.exp(-h)  # 0 for the last
    first = steps.signal_s * (1 - shrink)
    second = steps.signal_s * (1 - (1 - shrink) / h)
    # two rows a step: predict at t, correct at s; the last has no second
    count = 2 * len(h) - 1
    times = np.stack([steps.t, steps.s], 1).reshape(-1)[:count]
    tables = (
        np.repeat(table, 2)[:count]
        for table in (steps.sigma_s / steps.sigma_t, first, second)
    )

    def step(state, i, row):
        x, start, before = state  # at a correction: x_s predicted, x_t and x0 at t
        t, keep, first, second = row
        x0 = predict(x, everywhere(t, x)).x0
        corrected = keep * start + first * before + second * (x0 - before)
        correct = i % 2 == 1
        return (
            jnp.where(correct, corrected, keep * x + first * x0),
            jnp.where(correct, start, x),
            jnp.where(correct, before, x0),
        )

    zeros = jnp.zeros_like(x_T)
    return run(step, (x_T, zeros, zeros), (times, *tables))
