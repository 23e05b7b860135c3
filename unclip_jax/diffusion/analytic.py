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

from collections.abc import Callable, Iterable

import jax
import jax.numpy as jnp
import numpy as np

from unclip_jax.diffusion import process
from unclip_jax.diffusion.samplers.steps import make_steps, normal
from unclip_jax.diffusion.schedule import Schedule


def mean_square_epsilon(predict, schedule: Schedule, x_0, timesteps, keys):
    """(n,) mean square of epsilon over a batch, at each of n timesteps.

    The noise's own mean square, 1 in expectation, is subtracted where it is known:
    the mean of 1 + epsilon^2 - noise^2 has the same expectation and, where the model
    is nearly right, a small part of the error.

    Args:
      predict: (x_t, t) -> process.Prediction, without a clip of x0.
      schedule: the process.
      x_0: (B, ..., C) float32 data.
      timesteps: (n,) integers.
      keys: (B,) PRNG keys.
    """

    def one(t):
        folded = jax.vmap(jax.random.fold_in, (0, None))(keys, t)
        noise = normal(folded, x_0.shape[1:])
        t = jnp.full(x_0.shape[0], t)
        epsilon = predict(process.q_sample(schedule, x_0, t, noise), t).epsilon
        return 1 + jnp.mean(epsilon**2 - noise**2)

    return jax.lax.map(one, jnp.asarray(timesteps))


def estimate(
    predict: Callable, schedule: Schedule, batches: Iterable, key, timesteps=None
) -> np.ndarray:
    """The statistic of a model over a data set.

    Args:
      predict: (x_t, t, condition) -> process.Prediction, without a clip of x0; for
        the model that sampling uses, but without guidance.
      schedule: the process.
      batches: of equal shapes, (x_0 float32 (B, ..., C), condition) each; a condition
        is a pytree of arrays with the leading batch axis, or None.
      key: PRNG key of the noise.
      timesteps: where to evaluate the model, linear in between; all by default. The
        cost is one call of the model per batch and timestep.

    Returns:
      (T,) float64, the mean of bbar_t Gamma_t.

    Raises:
      ValueError: no batches, or a model whose epsilon is not finite.
    """
    every = np.arange(schedule.num_steps)
    where = every if timesteps is None else np.unique(timesteps)
    make_steps(schedule, where[::-1])  # refuses what are no timesteps

    @jax.jit
    def of_batch(x_0, condition, key):
        keys = jax.random.split(key, x_0.shape[0])
        model = lambda x, t: predict(x, t, condition)  # noqa: E731
        return mean_square_epsilon(model, schedule, x_0, where, keys)

    means = [
        np.asarray(of_batch(x_0, condition, jax.random.fold_in(key, i)), np.float64)
        for i, (x_0, condition) in enumerate(batches)
    ]
    if not means:
        raise ValueError("no batches to estimate the statistic from")
    table = np.interp(every, where, np.mean(means, axis=0))
    if not np.isfinite(table).all():
        raise ValueError("the model's epsilon is not finite at some timesteps")
    return table


def reverse_variance(
    schedule: Schedule,
    timesteps,
    statistic: np.ndarray,
    *,
    bound: float | None = None,
    pixels: float | None = None,
) -> np.ndarray:
    """The optimal variance of the steps through `timesteps`, theorem 1 with bounds.

    Args:
      schedule: the process.
      timesteps: (n,) descending, as samplers take them.
      statistic: (T,) what `estimate` returns; clipped to [0, 1] (theorem 2).
      bound: if data lie in [-bound, bound], v_t is at most bound^2 (theorem 2).
      pixels: for images in [-1, 1]: the standard deviation of the last noise added,
        that of x_s for s = timesteps[-1], is clipped so that its mean size is at
        most this many of 255 grey levels (section 4; the paper takes 1 or 2).

    Returns:
      (n,) float64. The last, of the step to x_0, is not used by samplers.

    Raises:
      ValueError: a statistic of another shape than (T,).
    """
    statistic = np.asarray(statistic, np.float64)
    if statistic.shape != (schedule.num_steps,):
        raise ValueError(
            f"statistic has shape {statistic.shape}: expected one number for each of "
            f"the {schedule.num_steps} timesteps"
        )
    t, _, signal_t, sigma_t, signal_s, sigma_s = make_steps(schedule, timesteps)
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
