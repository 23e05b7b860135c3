"""Classifier-free guidance (Ho & Salimans 2021)."""

import jax
import jax.numpy as jnp


def classifier_free(model, conditions, scale):
    """Turns a conditional model into a guided one, in one doubled batch.

    Args:
      model: (x, t, conditions, drop) -> output, where drop (B,) bool selects the
        unconditional path.
      conditions: a pytree of arrays with the leading batch axis.
      scale: s in uncond + s (cond - uncond). The Python number 1 skips the
        unconditional half; anything else may be traced.

    Returns:
      (x, t) -> output. Channels beyond those of x (a learned variance) are the
      conditional model's.
    """

    def conditional(x, t):
        return model(x, t, conditions, jnp.zeros(x.shape[0], bool))

    def guided(x, t):
        b, channels = x.shape[0], x.shape[-1]
        twice = jax.tree.map(lambda a: jnp.concatenate([a, a]), (x, t, conditions))
        drop = jnp.arange(2 * b) >= b
        cond, uncond = jnp.split(model(*twice, drop), 2)
        mean, uncond = cond[..., :channels], uncond[..., :channels]
        mean = uncond + scale * (mean - uncond)
        return jnp.concatenate([mean, cond[..., channels:]], axis=-1)

    is_one = isinstance(scale, int | float) and scale == 1
    return conditional if is_one else guided
