"""DPM-Solver++(2M) and its stochastic form (Lu et al. 2022, arXiv 2211.01095).

Second order in the half log-SNR lambda = log(signal / sigma), multistep: one call of
the model per step, the last two predictions of x0 extrapolated to the middle of the
step. The first step and the last (to x_0, where lambda is infinite) are of first
order, as in diffusers' DPMSolverMultistepScheduler with final_sigmas_type="zero".
"""

import jax.numpy as jnp
import numpy as np

from unclip_jax.diffusion.samplers.steps import (
    everywhere,
    half_log_snr_steps,
    make_steps,
    noise_source,
    run_all,
)
from unclip_jax.diffusion.schedule import Schedule
from unclip_jax.shapes import Path, Samples


def dpmpp_2m(
    predict, schedule: Schedule, x_T: Samples, timesteps: Path, noise=None, run=run_all
):
    """DPM-Solver++(2M) for the probability-flow ODE; arguments as in `samplers`."""
    steps = make_steps(schedule, timesteps)
    h = half_log_snr_steps(steps)
    keep = steps.sigma_s / steps.sigma_t
    move = -steps.signal_s * np.expm1(-h)
    rows = steps.t, h, keep, move, np.zeros_like(h)
    return _solve(predict, x_T, rows, None, run)


def dpmpp_2m_sde(
    predict, schedule: Schedule, x_T: Samples, timesteps: Path, noise, run=run_all
):
    """SDE-DPM-Solver++(2M) for the reverse SDE; arguments as in `samplers`."""
    steps = make_steps(schedule, timesteps)
    h = half_log_snr_steps(steps)
    keep = steps.sigma_s / steps.sigma_t * np.exp(-h)
    move = -steps.signal_s * np.expm1(-2 * h)
    spread = steps.sigma_s * np.sqrt(-np.expm1(-2 * h))
    rows = steps.t, h, keep, move, spread
    return _solve(predict, x_T, rows, noise_source(noise), run)


def _solve(predict, x_T, rows, draw, run):
    """x_s = keep x_t + move (x0 + (x0 - x0 of the step before) / 2r) + spread noise.

    r is the length h of the step before over that of this one.
    """
    t, h, keep, move, spread = rows
    extrapolation = np.zeros_like(h)
    extrapolation[1:-1] = 0.5 * h[1:-1] / h[:-2]

    def step(state, i, row):
        x, before = state
        t, keep, move, spread, extrapolation = row
        x0 = predict(x, everywhere(t, x)).x0
        x = keep * x + move * (x0 + extrapolation * (x0 - before))
        return (x + spread * draw(i, x.shape) if draw else x), x0

    rows = t, keep, move, spread, extrapolation
    return run(step, (x_T, jnp.zeros_like(x_T)), rows)
