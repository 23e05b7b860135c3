"""Classifier-free guidance (Ho & Salimans 2021), and guidance by a weaker model."""

import math

import jax
import jax.numpy as jnp
import numpy as np

from unclip_jax.errors import UsageError


def classifier_free(model, conditions, scale, *, interval=None, rescale=0.0):
    """Turns a conditional model into a guided one, in one doubled batch.

    Args:
      model: (x, t, conditions, drop) -> output, where drop (B,) bool selects the
        unconditional path.
      conditions: a pytree of arrays with the leading batch axis.
      scale: s in uncond + s (cond - uncond). The number 1 on the host skips the
        unconditional half; anything else may be traced, a scalar or (B,).
      interval: (first, last) timesteps, inclusive, that are guided; the others take
        the conditional output (Kynkaanniemi et al. 2024). None is all.
      rescale: phi in [0, 1], how far a sample's guided output is brought back to the
        standard deviation of the conditional one (Lin et al. 2023, equations 15, 16).

    Returns:
      (x, t) -> output. Channels beyond those of x (a learned variance) are the
      conditional model's.

    Raises:
      UsageError: a scale on the host that is not finite, an interval that holds no
        timestep, or a rescale outside [0, 1].
    """
    _check(scale, interval, rescale)

    def conditional(x, t):
        return model(x, t, conditions, jnp.zeros(x.shape[0], bool))

    def outputs(x, t):
        b = x.shape[0]
        twice = jax.tree.map(lambda a: jnp.concatenate([a, a]), (x, t, conditions))
        return jnp.split(model(*twice, jnp.arange(2 * b) >= b), 2)

    if _is_one(scale):
        return conditional
    return _extrapolated(outputs, scale, interval, rescale)


def autoguidance(model, weaker, conditions, scale, *, interval=None, rescale=0.0):
    """Turns a conditional model into one that is led away from a weaker one.

    Karras et al. 2024, "Guiding a diffusion model with a bad version of itself",
    equation 3: weaker + s (model - weaker), both with the condition. The weaker one is
    an earlier checkpoint, or smaller, or another average of the parameters.

    Args:
      model, weaker: as of `classifier_free`.
      conditions, scale, interval, rescale: as of `classifier_free`.

    Returns and raises what `classifier_free` does.
    """
    _check(scale, interval, rescale)

    def conditional(x, t):
        return model(x, t, conditions, jnp.zeros(x.shape[0], bool))

    def outputs(x, t):
        return conditional(x, t), weaker(x, t, conditions, jnp.zeros(x.shape[0], bool))

    if _is_one(scale):
        return conditional
    return _extrapolated(outputs, scale, interval, rescale)


def _on_host(scale) -> bool:
    return isinstance(scale, int | float | np.number)


def _is_one(scale) -> bool:
    return _on_host(scale) and bool(scale == 1)


def _check(scale, interval, rescale):
    if _on_host(scale) and not math.isfinite(scale):
        raise UsageError(f"guidance scale must be a finite number, got {scale}")
    if interval is not None and not 0 <= interval[0] <= interval[1]:
        raise UsageError(f"guidance interval {interval}: expected 0 <= first <= last")
    if not 0 <= rescale <= 1:
        raise UsageError(f"guidance rescale must be between 0 and 1, got {rescale}")


def _extrapolated(outputs, scale, interval, rescale):
    """(x, t) -> guided output, of outputs (x, t) -> (of the model, of the other)."""

    def guided(x, t):
        b, channels = x.shape[0], x.shape[-1]
        output, other = outputs(x, t)
        cond, other = output[..., :channels], other[..., :channels]
        s = jnp.broadcast_to(scale, (b,))
        if interval is not None:
            s = jnp.where((interval[0] <= t) & (t <= interval[1]), s, 1)
        s = s.reshape((b,) + (1,) * (x.ndim - 1))
        # other + s (cond - other), exactly cond at s = 1
        mean = cond + (s - 1) * (cond - other)
        if rescale:
            mean = mean * (1 - rescale + rescale * _std(cond) / _std(mean))
        mean = mean.astype(cond.dtype)
        return jnp.concatenate([mean, output[..., channels:]], axis=-1)

    return guided


def _std(x):
    """(B, 1, ..., 1) standard deviation of each sample, in float32."""
    return x.astype(jnp.float32).std(tuple(range(1, x.ndim)), keepdims=True)
