"""Heun's method on the probability-flow ODE, in the angle of the process."""

import jax.numpy as jnp
import numpy as np

from unclip_jax.diffusion.samplers.steps import everywhere, make_steps, scan_rows
from unclip_jax.diffusion.schedule import Schedule


def heun(predict, schedule: Schedule, x_T, timesteps, noise=None):
    """Heun, second order; arguments as in `samplers`. 2n - 1 calls of the model.

    With signal = cos(phi) and sigma = sin(phi) the ODE is dx/dphi = v, where
    v = cos(phi) epsilon - sin(phi) x0 (Salimans & Ho 2022, appendix D): regular from
    phi = pi/2, pure noise, where the usual sigma / signal is infinite, to phi = 0. A
    step of length d predicts with DDIM, x cos(d) + v sin(d), and corrects with the
    slopes v at both ends: x + tan(d/2) (v_t + v_s). That is the trapezoidal rule up to
    d^3, and like DDIM exact as long as x0 and epsilon are constant. The last step, to
    x_0, is DDIM's.
    """
    steps = make_steps(schedule, timesteps)
    phi_t = np.arctan2(steps.sigma_t, steps.signal_t)
    phi_s = np.arctan2(steps.sigma_s, steps.signal_s)
    # two rows a step: predict at t, correct at s; the last has no second
    twice = 2 * len(phi_t) - 1
    rows = {
        "correct": np.arange(twice) % 2,
        "t": np.stack([steps.t, steps.s], 1),
        "signal": np.stack([steps.signal_t, steps.signal_s], 1),
        "sigma": np.stack([steps.sigma_t, steps.sigma_s], 1),
        "next_signal": np.repeat(steps.signal_s, 2),
        "next_sigma": np.repeat(steps.sigma_s, 2),
        "tan": np.repeat(np.tan((phi_s - phi_t) / 2), 2),
    }
    rows = {name: a.reshape(-1)[:twice] for name, a in rows.items()}

    def step(state, i, row):
        x, start, slope = state
        pred = predict(x, everywhere(row["t"], x))
        v = row["signal"] * pred.epsilon - row["sigma"] * pred.x0
        predicted = row["next_signal"] * pred.x0 + row["next_sigma"] * pred.epsilon
        corrected = start + row["tan"] * (slope + v)
        correct = row["correct"] == 1
        return (
            jnp.where(correct, corrected, predicted),
            jnp.where(correct, start, x),
            jnp.where(correct, slope, v),
        )

    zeros = jnp.zeros_like(x_T)
    return scan_rows(step, (x_T, zeros, zeros), rows)[0]
