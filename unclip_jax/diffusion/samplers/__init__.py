"""Samplers: a pure step function each, and how it is run.

Every sampler is called `sampler(predict, schedule, x_T, timesteps, noise, **options)`:

  predict: (x_t, t) -> process.Prediction, for x_t (B, ..., C) and t (B,) int32; called
    at one place of the compiled program.
  schedule: the process the model was trained on.
  x_T: (B, ..., C) float32 noise at timesteps[0].
  timesteps: (n,) descending integers on the host; the last step goes on to x_0.
  noise: (B,) typed PRNG keys, so that a sample depends neither on its batch nor on its
    device, or a function (i, shape) -> float32 noise of step i, where i is traced.
    Samplers that add none ignore it.
  run: (step, state, rows) -> result, by default `run_all`, which makes all steps in one
    `lax.scan`; see steps.py. The state's first array is x.

and returns x_0 (B, ..., C) float32, or what another `run` does. They raise UsageError
for impossible timesteps.
"""

from unclip_jax.diffusion.samplers.ancestral import ddpm
from unclip_jax.diffusion.samplers.consistency import consistency, even_timesteps
from unclip_jax.diffusion.samplers.ddim import ddim, ddim_inversion
from unclip_jax.diffusion.samplers.dpm_solver import dpmpp_2m, dpmpp_2m_sde
from unclip_jax.diffusion.samplers.heun import heun
from unclip_jax.diffusion.samplers.steps import normal, run_all, run_piece
from unclip_jax.diffusion.schedule import (
    Schedule,
    check_count,
    count_of,
    head,
    log_snr_timesteps,
    respace,
    strided_timesteps,
)
from unclip_jax.errors import UsageError
from unclip_jax.shapes import HostPath

__all__ = [
    "SAMPLERS",
    "consistency",
    "ddim",
    "ddim_inversion",
    "ddpm",
    "dpmpp_2m",
    "dpmpp_2m_sde",
    "heun",
    "normal",
    "run_all",
    "run_piece",
    "timesteps",
]

SAMPLERS = {
    "ddim": ddim,
    "ddpm": ddpm,
    "dpmpp_2m": dpmpp_2m,
    "dpmpp_2m_sde": dpmpp_2m_sde,
    "heun": heun,
    "consistency": consistency,
}

# Second order in the log SNR: uneven steps in it would undo that (docs/solvers.png).
_IN_LOG_SNR = ("dpmpp_2m", "dpmpp_2m_sde", "heun")


def timesteps(
    name: str, schedule: Schedule, steps: int | str, min_signal: float = 0.0
) -> HostPath:
    """The timesteps that `steps` stands for, as they suit the sampler `name`.

    A number of steps is spread from T - 1 down to 0, evenly in time; for the solvers of
    second order evenly in the log SNR, without the end of a schedule that goes far down
    (`schedule.log_snr_timesteps`); for "consistency" over the ends of equal parts.
    Anything else is `schedule.respace`'s.

    Args:
      name: a key of SAMPLERS.
      schedule: the process the model was trained on.
      steps: a number of steps, or a respacing of `schedule.respace`.
      min_signal: timesteps whose signal sqrt(alphas_cumprod) is less are left out: a
        number of steps is spread over the others (all of these if it is more), a
        respacing loses them. Where x0 is not bounded, an error of epsilon is
        multiplied by 1 / signal; see `ddim_inversion`.

    Returns:
      (n,) int64, descending.

    Raises:
      UsageError: impossible steps, or none with enough signal.
    """
    kept = head(schedule, min_signal)
    count = count_of(steps)
    if count is None:
        named = respace(schedule.num_steps, steps)
        named = named[named < kept.num_steps]
        if not len(named):
            raise UsageError(
                f"sampling steps {steps!r}: none has a signal of {min_signal} or more"
            )
        return named
    check_count(count, schedule.num_steps)
    count = min(count, kept.num_steps)
    if name in _IN_LOG_SNR:
        return log_snr_timesteps(kept, count)
    if name == "consistency":
        return even_timesteps(kept.num_steps, count)
    return strided_timesteps(kept.num_steps, count)
