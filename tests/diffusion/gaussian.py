"""A correlated 2-d Gaussian: data whose score, and whose ODE, are known exactly."""

import jax.numpy as jnp
import numpy as np

from unclip_jax.diffusion import process
from unclip_jax.diffusion.schedule import Schedule, gather

MEAN = np.array([0.4, -0.2])
COVARIANCE = np.array([[0.25, 0.12], [0.12, 0.10]])
_VARIANCES, _AXES = np.linalg.eigh(COVARIANCE)


def predictor(schedule: Schedule, clip=None, fraction=None):
    """(x_t, t) -> Prediction from E[x_0 | x_t] for data N(MEAN, COVARIANCE).

    `fraction` (T,), if given, is put where a model has its learned variance.
    """
    bar = schedule.alphas_cumprod[:, None]
    gains = np.sqrt(bar) * _VARIANCES / (bar * _VARIANCES + 1 - bar)  # (T, 2)

    def predict(x_t, t):
        signal = gather(np.sqrt(schedule.alphas_cumprod), t, x_t.ndim)
        gain = jnp.asarray(gains, jnp.float32)[t]  # (B, 2)
        off = (x_t - signal * MEAN) @ _AXES.astype(np.float32)
        output = MEAN + (gain * off) @ _AXES.T.astype(np.float32)
        if fraction is not None:
            raw = gather(2 * np.asarray(fraction) - 1, t, x_t.ndim)
            output = jnp.concatenate([output, jnp.broadcast_to(raw, x_t.shape)], -1)
        return process.interpret(schedule, "x0", x_t, t, output, clip)

    return predict


def flow(schedule: Schedule, x_T, t: int):
    """float64: where the probability-flow ODE takes x_T at timestep t, at abar = 1."""
    bar = schedule.alphas_cumprod[t]
    off = (np.asarray(x_T, np.float64) - np.sqrt(bar) * MEAN) @ _AXES
    return MEAN + (off * np.sqrt(_VARIANCES / (bar * _VARIANCES + 1 - bar))) @ _AXES.T


def data(n: int, seed: int = 0):
    """(n, 2) float32."""
    draws = np.random.default_rng(seed).multivariate_normal(MEAN, COVARIANCE, n)
    return draws.astype(np.float32)
