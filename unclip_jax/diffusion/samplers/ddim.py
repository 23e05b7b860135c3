"""DDIM (Song, Meng & Ermon 2021), and its inversion."""

import jax.numpy as jnp
import numpy as np

from unclip_jax.diffusion.samplers.steps import (
    everywhere,
    make_steps,
    noise_source,
    scan_rows,
)
from unclip_jax.diffusion.schedule import Schedule


def ddim(predict, schedule: Schedule, x_T, timesteps, noise, eta=0.0):
    """DDIM (equation 12); arguments as in `samplers`.

    eta scales the noise: 0 is deterministic, 1 has DDPM's small variance. It may be
    traced.
    """
    steps, draw = make_steps(schedule, timesteps), noise_source(noise)
    alpha = (steps.signal_t / steps.signal_s) ** 2
    spread = steps.sigma_s / steps.sigma_t * np.sqrt(1 - alpha)

    def step(x, i, row):
        steps, spread = row
        pred = predict(x, everywhere(steps.t, x))
        sigma = eta * spread
        rest = jnp.sqrt(jnp.maximum(steps.sigma_s**2 - sigma**2, 0))
        mean = steps.signal_s * pred.x0 + rest * pred.epsilon
        return mean + sigma * draw(i, x.shape)

    return scan_rows(step, x_T, (steps, spread))


def ddim_inversion(predict, schedule: Schedule, x_0, timesteps):
    """The x_T from which `ddim` with eta = 0 and the same timesteps returns to x_0.

    Takes ddim's steps backwards, each with the epsilon of the less noisy end, so that
    the way back is exact only in the limit of many steps (for x_0 itself, which no
    model was trained on, with that of timesteps[-1]). `predict` must not clip x0:
    epsilon would no longer be the model's.

    Args:
      predict, schedule, timesteps: as for `ddim` (timesteps descend here too).
      x_0: (B, ..., C) float32.

    Returns:
      (B, ..., C) float32 at timesteps[0].
    """
    steps = make_steps(schedule, timesteps)

    def step(x, i, steps):
        t = jnp.where(steps.s < 0, steps.t, steps.s)
        pred = predict(x, everywhere(t, x))
        x0 = (x - steps.sigma_s * pred.epsilon) / steps.signal_s
        return steps.signal_t * x0 + steps.sigma_t * pred.epsilon

    backwards = type(steps)(*(a[::-1] for a in steps))
    return scan_rows(step, x_0, backwards)
