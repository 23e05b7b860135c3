"""Sampling with a consistency model, in one step or a few (Song et al. 2023)."""

import numpy as np

from unclip_jax.diffusion.samplers.steps import (
    everywhere,
    make_steps,
    noise_source,
    run_all,
)
from unclip_jax.diffusion.schedule import Schedule
from unclip_jax.shapes import Path, Samples


def consistency(
    predict, schedule: Schedule, x_T: Samples, timesteps: Path, noise, run=run_all
):
    """Algorithm 1: the model's x_0, then noise of the next timestep on it, and again.

    Arguments as in `samplers`. For models of consistency training alone: of others x_0
    is a mean, and what is drawn has too little variance.
    """
    steps, draw = make_steps(schedule, timesteps), noise_source(noise)

    def step(x, i, steps):
        x0 = predict(x, everywhere(steps.t, x)).x0
        return steps.signal_s * x0 + steps.sigma_s * draw(i, x.shape)

    return run(step, x_T, steps)


def even_timesteps(num_train_steps: int, count: int) -> np.ndarray:
    """The ends of `count` equal parts of T, descending: the last is not timestep 0."""
    return np.arange(count, 0, -1) * num_train_steps // count - 1
