"""DPM-Solver++(2M) and its stochastic form (Lu et al. 2022, arXiv 2211.01095).

Second order in the half log-SNR lambda = log(signal / sigma), multistep: one call of
the model per step, the last two predictions of x0 extrapolated to the middle of the
step. The first step and the last (to x_0, where lambda is infinite) are of first
order, as in diffusers' DPMSolverMultistepScheduler with final_sigmas_type="zero".
"""

import jax.numpy as jnp
import numpy as np

from unclip_jax.diffusion.samplers.steps import (
    Steps,
    everywhere,
    make_steps,
    noise_source,
    scan_rows,
)
from unclip_jax.diffusion.schedule import Schedule


def dpmpp_2m(predict, schedule: Schedule, x_T, timesteps, noise=None):
    """DPM-Solver++(2M) for the probability-flow ODE; arguments as in `samplers`."""
    steps = make_steps(schedule, timesteps)
    shrink = _exp_minus_h(steps)
    keep = steps.sigma_s / steps.sigma_t
    move = steps.signal_s * (1 - shrink)
    return _run(predict, x_T, steps, keep, move, np.zeros_like(keep), None)


def dpmpp_2m_sde(predict, schedule: Schedule, x_T, timesteps, noise):
    """SDE-DPM-Solver++(2M) for the reverse SDE; arguments as in `samplers`."""
    steps = make_steps(schedule, timesteps)
    shrink = _exp_minus_h(steps)
    keep = steps.sigma_s / steps.sigma_t * shrink
    move = steps.signal_s * (1 - shrink**2)
    spread = steps.sigma_s * np.sqrt(1 - shrink**2)
    return _run(predict, x_T, steps, keep, move, spread, noise_source(noise))


def _exp_minus_h(steps: Steps):
    """exp(-h), h = lambda_s - lambda_t > 0 the length of a step; 0 for the last."""
    return steps.signal_t * steps.sigma_s / (steps.sigma_t * steps.signal_s)


def _run(predict, x_T, steps: Steps, keep, move, spread, draw):
    """x_s = keep x_t + move (x0 + (x0 - x0 of the step before) / 2r) + spread noise.

    r is the length of the step before over that of this one.
    """
    h = np.append(-np.log(_exp_minus_h(steps)[:-1]), np.inf)
    extrapolation = np.zeros_like(keep)
    extrapolation[1:-1] = 0.5 * h[1:-1] / h[:-2]

    def step(state, i, row):
        x, before = state
        t, keep, move, spread, extrapolation = row
        x0 = predict(x, everywhere(t, x)).x0
        x = keep * x + move * (x0 + extrapolation * (x0 - before))
        return (x + spread * draw(i, x.shape) if draw else x), x0

    rows = steps.t, keep, move, spread, extrapolation
    return scan_rows(step, (x_T, jnp.zeros_like(x_T)), rows)[0]
