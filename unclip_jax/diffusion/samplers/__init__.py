"""Samplers: a pure step function each, run under one `lax.scan`.

Every sampler is called `sampler(predict, schedule, x_T, timesteps, noise, **options)`:

  predict: (x_t, t) -> process.Prediction, for x_t (B, ..., C) and t (B,) int32; called
    at one place of the compiled program.
  schedule: the process the model was trained on.
  x_T: (B, ..., C) float32 noise at timesteps[0].
  timesteps: (n,) descending integers on the host; the last step goes on to x_0.
  noise: (B,) typed PRNG keys, so that a sample depends neither on its batch nor on its
    device, or a function (i, shape) -> float32 noise of step i, where i is traced.
    Samplers that add none ignore it.

and returns x_0 (B, ..., C) float32. They raise ValueError for impossible timesteps.
"""

import numpy as np

from unclip_jax.diffusion.samplers.ancestral import ddpm
from unclip_jax.diffusion.samplers.ddim import ddim, ddim_inversion
from unclip_jax.diffusion.samplers.dpm_solver import dpmpp_2m, dpmpp_2m_sde
from unclip_jax.diffusion.samplers.heun import heun
from unclip_jax.diffusion.samplers.steps import normal
from unclip_jax.diffusion.schedule import (
    Schedule,
    log_snr_timesteps,
    strided_timesteps,
)

__all__ = [
    "SAMPLERS",
    "ddim",
    "ddim_inversion",
    "ddpm",
    "dpmpp_2m",
    "dpmpp_2m_sde",
    "heun",
    "normal",
    "timesteps",
]

SAMPLERS = {
    "ddim": ddim,
    "ddpm": ddpm,
    "dpmpp_2m": dpmpp_2m,
    "dpmpp_2m_sde": dpmpp_2m_sde,
    "heun": heun,
}

# Second order in the log SNR: uneven steps in it would undo that (docs/solvers.png).
_IN_LOG_SNR = ("dpmpp_2m", "dpmpp_2m_sde", "heun")


def timesteps(name: str, schedule: Schedule, num_steps: int) -> np.ndarray:
    """The `num_steps` timesteps, from T - 1 down to 0, that suit the sampler `name`."""
    if name in _IN_LOG_SNR:
        return log_snr_timesteps(schedule, num_steps)
    return strided_timesteps(schedule.num_steps, num_steps)
