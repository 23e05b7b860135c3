"""Analytic-DPM: the best variance of the reverse steps (Bao et al. 2022).

For data of d dimensions the optimal isotropic variance of a step t -> s is, by
theorem 1 for the DDPM process,

  sigma^2 = lambda^2 + (sqrt(bbar_t / alpha) - sqrt(bbar_s - lambda^2))^2
                       (1 - bbar_t Gamma_t),     Gamma_t = E ||score(x_t)||^2 / d,

with bbar = 1 - abar, alpha = abar_t / abar_s and lambda^2 the variance of
q(x_s | x_t, x_0). The factor before the last is k^2 bbar_t / abar_t, where k is the
weight of x_0 in the mean of q(x_s | x_t, x_0): sigma^2 = lambda^2 + k^2 v_t with
v_t = bbar_t / abar_t (1 - bbar_t Gamma_t), the mean variance of x_0 given x_t. As
score = -epsilon / sqrt(bbar_t), the statistic kept is bbar_t Gamma_t, the mean square
of the predicted epsilon: 1 for pure noise, between 0 and 1 for a perfect model.
"""

import jax
import jax.numpy as jnp
import numpy as np

from unclip_jax.diffusion import process
from unclip_jax.diffusion.samplers.steps import make_steps, normal, run_all
from unclip_jax.diffusion.schedule import Schedule
from unclip_jax.errors import UsageError
from unclip_jax.shapes import Path, Samples, StepTable, Table


def square_epsilon(
    predict, schedule: Schedule, x_0: Samples, timesteps: Path, keys, run=run_all
):
    """(B, n) mean squares of the epsilon of each sample, at each of n timesteps.

    The noise's own mean square, 1 in expectation, is subtracted where it is known:
    the mean of 1 + epsilon^2 - noise^2 has the same expectation and, where the model
    is nearly right, a small part of the error.

    Args:
      predict: (x_t, t) -> process.Prediction, without a clip of x0.
      schedule: the process.
      x_0: (B, ..., C) float32 data.
      timesteps: (n,) integers.
      keys: (B,) PRNG keys.
      run: how the loop over the timesteps is run, see diffusion.samplers.
    """

    def step(errors, i, t):
        folded = jax.vmap(jax.random.fold_in, (0, None))(keys, t)
        noise = normal(folded, x_0.shape[1:])
        t = jnp.full(x_0.shape[0], t)
        epsilon = predict(process.q_sample(schedule, x_0, t, noise), t).epsilon
        error = 1 + jnp.mean(epsilon**2 - noise**2, range(1, x_0.ndim))  # (B,)
        return errors.at[:, i].set(error)

    timesteps = np.asarray(timesteps)
    return run(step, jnp.zeros((len(x_0), len(timesteps))), timesteps)


def interpolate(schedule: Schedule, timesteps, means) -> Table:
    """The statistic at every timestep from its values at some, linear in between.

    Args:
      schedule: the process.
      timesteps: (n,) rising integers.
      means: (n,) means of `square_epsilon` over a data set: of the model that sampling
        uses, but without guidance.

    Returns:
      (T,) float64, the mean of bbar_t Gamma_t.

    Raises:
      UsageError: what are no timesteps, or means that are not (n,) finite numbers.
    """
    steps = make_steps(schedule, np.asarray(timesteps)[::-1])
    means = np.asarray(means, np.float64)
    if means.shape != steps.t.shape or not np.isfinite(means).all():
        raise UsageError(
            f"expected {len(steps.t)} finite numbers, one per timestep, got {means}"
        )
    return np.interp(np.arange(schedule.num_steps), steps.t[::-1], means)


def reverse_variance(
    schedule: Schedule,
    timesteps: Path,
    statistic: np.ndarray,
    *,
    bound: float | None = None,
    pixels: float | None = None,
) -> StepTable:
    """The optimal variance of the steps through `timesteps`, theorem 1 with bounds.

    Args:
      schedule: the process.
      timesteps: (n,) descending, as samplers take them.
      statistic: (T,) what `interpolate` returns; clipped to [0, 1] (theorem 2).
      bound: if data lie in [-bound, bound], v_t is at most bound^2 (theorem 2).
      pixels: for images in [-1, 1]: the standard deviation of the last noise added,
        that of x_s for s = timesteps[-1], is clipped so that its mean size is at
        most this many of 255 grey levels (section 4; the paper takes 1 or 2).

    Returns:
      (n,) float64. The last, of the step to x_0, is not used by samplers.

    Raises:
      UsageError: a statistic of another shape than (T,).
    """
    statistic = np.asarray(statistic, np.float64)
    if statistic.shape != (schedule.num_steps,):
        raise UsageError(
            f"statistic has shape {statistic.shape}: expected one number for each of "
            f"the {schedule.num_steps} timesteps"
        )
    t, _, signal_t, sigma_t, signal_s, sigma_s = make_steps(schedule, timesteps)
    if signal_t[0] == 0:
        raise UsageError(
            f"analytic variance at timestep {t[0]}, where nothing is left of x_0: take "
            "another variance, or sampler"
        )
    beta = 1 - (signal_t / signal_s) ** 2
    of_x_0 = (sigma_t / signal_t) ** 2 * (1 - np.clip(statistic[t], 0, 1))
    if bound is not None:
        of_x_0 = np.minimum(of_x_0, bound**2)
    weight = signal_s * beta / sigma_t**2
    variance = (sigma_s / sigma_t) ** 2 * beta + weight**2 * of_x_0
    if pixels is not None and len(t) > 1:
        # E |sigma z| = sigma sqrt(2 / pi); a grey level is 2 / 255 of [-1, 1]
        most = pixels * 2 / 255 * np.sqrt(np.pi / 2)
        variance[-2] = min(variance[-2], most**2)
    return variance
