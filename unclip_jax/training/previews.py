"""Pictures drawn while training."""

import jax
import numpy as np


class Previews:
    """Draws what the stage previews, from the EMA, always with the same noise."""

    def __init__(self, stage, data, count: int, seed: int, replicated):
        """`count` examples, the first of the data; `replicated` is where they go."""
        batch = data.take(count, tuple(stage.batch_spec))
        self._batch = jax.device_put(batch, replicated)
        self._rng = jax.device_put(jax.random.key(seed), replicated)
        self._draw = jax.jit(stage.preview, out_shardings=replicated)
        self._columns = max(2, 2 * round(count**0.5 / 2))

    def draw(self, step: int, current, writer) -> None:
        """Writes a grid, unless the stage has nothing to show."""
        images = self._draw(current.ema, self._rng, self._batch)
        if images is not None:
            writer.images(step, np.asarray(jax.device_get(images)), self._columns)
