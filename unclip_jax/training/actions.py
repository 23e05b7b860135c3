"""What a run does now and then, between two steps.

An action has `due(step)`, whether it should happen before the step after `step` (with
config.steps, at the end), and `run(step, state)`. training/evaluators.py has another.
"""

import dataclasses
from typing import Any, Protocol

import jax
import numpy as np

from unclip_jax.errors import UsageError
from unclip_jax.training.checkpoint import Checkpoints
from unclip_jax.training.run_config import TrainConfig
from unclip_jax.training.state import TrainState
from unclip_jax.training.writers import Writer


class Action(Protocol):
    """The interface."""

    def due(self, step: int) -> bool:
        """Whether it is time, `step` steps being done."""

    def run(self, step: int, state: TrainState) -> None:
        """Does it."""


@dataclasses.dataclass(frozen=True)
class Save:
    """Saves a checkpoint every so many steps, in the background."""

    checkpoints: Checkpoints
    meta: dict[str, Any]
    every: int
    start: int  # step of the checkpoint that the run goes on from

    def due(self, step: int) -> bool:
        """Not at the start: that state is saved, or as easily made again."""
        return step > self.start and step % self.every == 0

    def run(self, step: int, state: TrainState) -> None:
        """Starts to save `state`, unless that is done."""
        self.checkpoints.save(step, state, self.meta)


class Previews:
    """Draws what the stage previews, from the EMA, always with the same noise."""

    def __init__(
        self, config: TrainConfig, stage, data, placement, writer: Writer, latents
    ):
        """Takes the first examples of `data`; `placement` is where they go.

        Raises UsageError when the stage has no `preview`, or latents cannot be shown.
        """
        self._every, self._steps = config.preview.every, config.steps
        self._writer = writer
        if not self._every:
            return
        if not hasattr(stage, "preview"):
            raise UsageError(
                f"stage {config.stage!r} draws no images: set config.preview.every=0"
            )
        names = tuple(latents.data_spec(stage.batch_spec))
        batch = jax.device_put(data.take(config.preview.count, names), placement)
        self._batch = latents.encode(batch, replicated=True)
        self._show = latents.decode
        self._rng = jax.device_put(jax.random.key(config.seed), placement)
        self._draw = jax.jit(stage.preview, out_shardings=placement)
        self._columns = max(2, 2 * round(config.preview.count**0.5 / 2))

    def due(self, step: int) -> bool:
        """At the first and the last step and at every `every`-th between."""
        if not self._every:
            return False
        return step % self._every == 0 or step == self._steps

    def run(self, step: int, state: TrainState) -> None:
        """Writes a grid."""
        images = self._show(self._draw(state.averaged, self._rng, self._batch))
        self._writer.images(step, np.asarray(jax.device_get(images)), self._columns)
