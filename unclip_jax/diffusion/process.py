"""The forward process, its posterior, parameterisations and training losses.

Notation of Ho et al. 2020 and Nichol & Dhariwal 2021 (IDDPM). Everything here
computes in float32 whatever the type of the model.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from unclip_jax.diffusion.schedule import Schedule, gather
from unclip_jax.errors import UsageError
from unclip_jax.shapes import (
    Bytes,
    Floats,
    Output,
    PerSample,
    Samples,
    Table,
    Timesteps,
)

PREDICTIONS = ("epsilon", "x0", "v", "flow")


class Prediction(NamedTuple):
    """What a model says of x_t: x0, epsilon and, if learned, the raw variance."""

    x0: jax.Array
    epsilon: jax.Array
    variance: jax.Array | None


def q_sample(schedule: Schedule, x_0: Samples, t: Timesteps, noise: Samples) -> Samples:
    """x_t ~ q(x_t | x_0) = N(sqrt(abar_t) x_0, (1 - abar_t) I)."""
    bar = schedule.alphas_cumprod
    signal = gather(np.sqrt(bar), t, x_0.ndim)
    return signal * x_0 + gather(np.sqrt(1 - bar), t, x_0.ndim) * noise


def target(
    schedule: Schedule, prediction: str, x_0: Samples, t: Timesteps, noise: Samples
) -> Samples:
    """What a model of the given parameterisation should output.

    "flow" is the velocity epsilon - x_0 of the straight path from x_0 to the noise
    (rectified flow, Liu et al. 2023), which a variance-preserving process runs along up
    to a factor: x_t = signal x_0 + sigma epsilon is (1 - u) x_0 + u epsilon, scaled,
    with u = sigma / (signal + sigma). Any schedule and any sampler will do;
    schedule.make_schedule's "flow" has u evenly spaced.
    """
    if prediction == "epsilon":
        return noise
    if prediction == "x0":
        return x_0
    if prediction == "flow":
        return noise - x_0
    if prediction == "v":  # Salimans & Ho 2022, appendix D
        bar = schedule.alphas_cumprod
        signal = gather(np.sqrt(bar), t, x_0.ndim)
        return signal * noise - gather(np.sqrt(1 - bar), t, x_0.ndim) * x_0
    raise UsageError(f"prediction {prediction!r}: expected one of {PREDICTIONS}")


def dynamic_threshold(
    quantile: float, bound: float = 1.0, most: float = math.inf
) -> Callable:
    """Imagen's thresholding (Saharia et al. 2022, section 2.3), for `interpret`.

    Returns:
      x0 (B, ..., C) -> x0 clipped to [-s, s] and divided by s / bound, where s is the
      quantile of |x0| within each sample, or bound if that is larger, at most `most`.

    Raises:
      UsageError: a quantile outside (0, 1].
    """
    if not 0 < quantile <= 1:
        raise UsageError(f"quantile {quantile}: expected more than 0, at most 1")

    def threshold(x0):
        rest = tuple(range(1, x0.ndim))
        s = jnp.quantile(jnp.abs(x0), quantile, axis=rest, keepdims=True)
        s = jnp.clip(s, bound, most)
        return jnp.clip(x0, -s, s) * (bound / s)

    return threshold


def interpret(
    schedule: Schedule,
    prediction: str,
    x_t: Samples,
    t: Timesteps,
    output: Output,
    clip: float | Callable | None,
) -> Prediction:
    """Turns a model's output into x0 and epsilon.

    Args:
      schedule: the process the model was trained on.
      prediction: one of PREDICTIONS, see `target`.
      x_t: (B, ..., C) noised input.
      t: (B,) timesteps.
      output: (B, ..., C) or (B, ..., 2C), the second half a learned variance.
      clip: bound on |x0|, a function of x0 such as `dynamic_threshold`, or None.
        epsilon is recomputed from what it leaves.
    """
    channels = x_t.shape[-1]
    variance = output[..., channels:] if output.shape[-1] == 2 * channels else None
    output = output[..., :channels].astype(jnp.float32)
    bar = schedule.alphas_cumprod
    signal = gather(np.sqrt(bar), t, x_t.ndim)
    sigma = gather(np.sqrt(1 - bar), t, x_t.ndim)
    if prediction == "epsilon":
        x0 = (x_t - sigma * output) / signal
    elif prediction == "x0":
        x0 = output
    elif prediction == "v":
        x0 = signal * x_t - sigma * output
    elif prediction == "flow":
        x0 = (x_t - sigma * output) / (signal + sigma)
    else:
        raise UsageError(f"prediction {prediction!r}: expected one of {PREDICTIONS}")
    if clip is not None:
        x0 = clip(x0) if callable(clip) else jnp.clip(x0, -clip, clip)
    return Prediction(x0, (x_t - signal * x0) / sigma, variance)


def make_denoiser(
    model: Callable,
    schedule: Schedule,
    prediction: str,
    clip: float | Callable | None = None,
) -> Callable:
    """Makes what samplers ask at each step of a model, which may be a guided one.

    Args:
      model: (x_t, t) -> output, such as guidance.classifier_free makes.
      schedule, prediction, clip: as of `interpret`.

    Returns:
      (x_t, t) -> Prediction.
    """

    def denoise(x_t, t):
        return interpret(schedule, prediction, x_t, t, model(x_t, t), clip)

    return denoise


class Posterior(NamedTuple):
    """q(x_s | x_t, x_0) for s < t, and the bounds of a learned variance."""

    mean: jax.Array
    log_variance: jax.Array
    log_beta: jax.Array


def posterior(
    schedule: Schedule, x_0: Samples, x_t: Samples, t: Timesteps, s: Timesteps
) -> Posterior:
    """q(x_s | x_t, x_0), IDDPM equations 10 and 11, for strided steps too.

    Args:
      schedule: the process.
      x_0, x_t: (B, ..., C).
      t: (B,) timesteps.
      s: (B,) previous timesteps; -1 stands for x_0 itself (abar = 1).

    Returns:
      The mean and the log variance. At s = -1 the variance is 0; its logarithm is
      that of the variance at the first step that has one, as IDDPM clips it.
    """
    padded = np.append(schedule.alphas_cumprod, 1.0)  # index -1 -> abar = 1
    bar_t, bar_s = (gather(padded, i, x_0.ndim) for i in (t, s))
    # 1 - abar suffers from cancellation near 0: take it from a float64 table
    one_minus_t, one_minus_s = (gather(1 - padded, i, x_0.ndim) for i in (t, s))
    alpha = bar_t / bar_s
    # of the two equal differences, the one between the smaller numbers is exact
    beta = jnp.where(bar_s > 0.5, one_minus_t - one_minus_s, bar_s - bar_t) / bar_s
    mean = (jnp.sqrt(bar_s) * beta * x_0 + jnp.sqrt(alpha) * one_minus_s * x_t) / (
        one_minus_t
    )
    first = np.log(
        (1 - padded[0]) * (1 - padded[1] / padded[0]) / (1 - padded[1])
        if schedule.num_steps > 1
        else schedule.betas[0]
    )
    variance = one_minus_s / one_minus_t * beta
    log_variance = jnp.where(variance > 0, jnp.log(jnp.maximum(variance, 1e-30)), first)
    return Posterior(mean, log_variance, jnp.log(beta))


def learned_log_variance(post: Posterior, raw: Samples) -> Samples:
    """IDDPM equation 15: interpolates log variances by (raw + 1) / 2.

    The bounds, far outside what any step needs, keep a stray output from overflowing.
    """
    fraction = (raw.astype(jnp.float32) + 1) / 2
    logvar = fraction * post.log_beta + (1 - fraction) * post.log_variance
    return jnp.clip(logvar, -30, 10)


def normal_kl(mean_1, logvar_1, mean_2, logvar_2):
    """KL(N_1 || N_2) per element, in nats."""
    d = logvar_1 - logvar_2  # expm1: no cancellation where the variances are close
    return 0.5 * (jnp.expm1(d) - d + jnp.square(mean_1 - mean_2) * jnp.exp(-logvar_2))


def discretized_gaussian_log_likelihood(x, mean, log_scale):
    """log P of 8-bit images scaled to [-1, 1] under a Gaussian (DDPM, eq. 13)."""
    centred, inv = x - mean, jnp.exp(-log_scale)
    cdf = jax.scipy.stats.norm.cdf
    log_plus = jnp.log(cdf(inv * (centred + 1 / 255)).clip(1e-12))
    log_rest = jnp.log(cdf(-inv * (centred - 1 / 255)).clip(1e-12))
    # the lower of the two symmetric tails: near 1 the difference would cancel
    lower = -jnp.abs(centred)
    delta = cdf(inv * (lower + 1 / 255)) - cdf(inv * (lower - 1 / 255))
    log_delta = jnp.log(delta.clip(1e-12))
    return jnp.where(x < -0.999, log_plus, jnp.where(x > 0.999, log_rest, log_delta))


def _mean_flat(x):
    return x.mean(tuple(range(1, x.ndim)))


def vlb_bits(
    schedule: Schedule, x_0: Samples, x_t: Samples, t: Timesteps, pred: Prediction
) -> PerSample:
    """(B,) terms of the variational bound in bits per dimension (IDDPM, eq. 4-7).

    A model without a learned variance has the posterior's (DDPM's small one).
    """
    true = posterior(schedule, x_0, x_t, t, t - 1)
    model = posterior(schedule, pred.x0, x_t, t, t - 1)
    logvar = model.log_variance
    if pred.variance is not None:
        logvar = learned_log_variance(model, pred.variance)
    kl = normal_kl(true.mean, true.log_variance, model.mean, logvar)
    nll = -discretized_gaussian_log_likelihood(x_0, model.mean, 0.5 * logvar)
    return jnp.where(t == 0, _mean_flat(nll), _mean_flat(kl)) / jnp.log(2.0)


# Errors of x_0 near the image are not weighed beyond 1 / LEAST_SLOPE^2: by "flow" the
# weight of x_0 is 1 / u^2, which Li & He 2025 (arXiv 2511.13720) bound at u = 0.05.
LEAST_SLOPE = 0.05


def x0_slope(schedule: Schedule, prediction: str) -> Table:
    """(T,) float64: by how much x_0 changes with the output, at a fixed x_t."""
    bar = schedule.alphas_cumprod
    signal, sigma = np.sqrt(bar), np.sqrt(1 - bar)
    with np.errstate(divide="ignore"):  # inf where no signal is left
        of_epsilon = sigma / signal
    return {
        "x0": np.ones_like(bar),
        "epsilon": of_epsilon,
        "v": sigma,
        "flow": sigma / (signal + sigma),
    }[prediction]


def loss_weight(schedule: Schedule, prediction: str, space: str) -> Table:
    """(T,) weights that turn an output's squared error into that of `space`.

    A model that predicts x_0 may be trained on the error of the velocity that follows
    from it, or of epsilon; `space` is one of PREDICTIONS.
    """
    if space == prediction:
        return np.ones(schedule.num_steps)
    slope = np.maximum(x0_slope(schedule, space), LEAST_SLOPE)
    return (x0_slope(schedule, prediction) / slope) ** 2


def min_snr_weight(schedule: Schedule, prediction: str, gamma: float) -> Table:
    """(T,) weights min(SNR, gamma) on the x_0 error (Hang et al. 2023), per output."""
    bar = schedule.alphas_cumprod
    return np.minimum(bar / (1 - bar), gamma) * x0_slope(schedule, prediction) ** 2


def training_losses(
    schedule: Schedule,
    prediction: str,
    x_0: Samples,
    x_t: Samples,
    t: Timesteps,
    noise: Samples,
    output: Output,
    *,
    space: str | None = None,
    min_snr_gamma: float | None = None,
) -> dict[str, PerSample]:
    """Per-sample losses of a model's output.

    Args:
      schedule, prediction: the process, and what the model predicts of it.
      x_0, x_t, t, noise: the images, (B,) timesteps, and what `q_sample` made of them.
      output: (B, ..., C) or (B, ..., 2C), the second half a learned variance.
      space: whose error is squared, see `loss_weight`; None: the output's own.
      min_snr_gamma: bounds the weight of x_0's error by the signal-to-noise ratio, see
        `min_snr_weight`; instead of `space`.

    Returns:
      {"mse": (B,)} and, where the output has twice the channels, {"vb": (B,)}: the
      bound in bits per dimension with the mean's gradient stopped, times T / 1000
      (RESCALED_MSE of IDDPM). Train on their sum.
    """
    channels = x_0.shape[-1]
    output = output.astype(jnp.float32)
    mean_output = output[..., :channels]
    mse = _mean_flat(
        jnp.square(target(schedule, prediction, x_0, t, noise) - mean_output)
    )
    if min_snr_gamma is not None:
        mse = mse * gather(min_snr_weight(schedule, prediction, min_snr_gamma), t, 1)
    elif space is not None:
        mse = mse * gather(loss_weight(schedule, prediction, space), t, 1)
    losses = {"mse": mse}
    if output.shape[-1] == 2 * channels:
        frozen = jnp.concatenate(
            [jax.lax.stop_gradient(mean_output), output[..., channels:]], axis=-1
        )
        pred = interpret(schedule, prediction, x_t, t, frozen, None)
        bits = vlb_bits(schedule, x_0, x_t, t, pred)
        losses["vb"] = bits * schedule.num_steps / 1000
    return losses


def from_uint8(x: Bytes) -> Floats:
    """uint8 -> float32 in [-1, 1], of numpy or jax."""
    return x.astype(np.float32) / 127.5 - 1


def to_uint8(x: Floats) -> Bytes:
    """[-1, 1] float -> uint8, floor(127.5 x + 128) clipped (as ADM rounds)."""
    return jnp.clip(jnp.floor(x * 127.5 + 128), 0, 255).astype(jnp.uint8)
