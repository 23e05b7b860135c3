"""AdamW or Muon with warm-up and clipping, from config.optimizer."""

import dataclasses
import math
from typing import Any

import jax
import optax

from unclip_jax.errors import UsageError
from unclip_jax.training.muon import scale_by_muon

NAMES = ("adamw", "muon")
SCHEDULES = ("constant", "cosine", "linear", "warmup_stable_decay")


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """An optimizer and its learning rate."""

    learning_rate: float  # at its peak
    weight_decay: float = 0.0  # of what `decayed` says
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8
    warmup_steps: int = 0  # linear, from 0
    schedule: str = "constant"  # after the warm-up; the others end at 0
    grad_clip_norm: float = 0.0  # of the whole gradient; 0: no clipping
    name: str = "adamw"  # or "muon": for matrices, with AdamW for the rest
    # of the steps, that schedule="warmup_stable_decay" takes from the peak to 0
    decay_fraction: float = 0.2

    def __post_init__(self):
        for field in dataclasses.fields(self):
            value, end = getattr(self, field.name), math.inf
            if field.name in ("b1", "b2", "decay_fraction"):
                end = 1.0
            if field.type is not str and not 0 <= value < end:
                raise UsageError(
                    f"config.optimizer.{field.name} must be in [0, {end:g}), got "
                    f"{value}"
                )
        if self.name not in NAMES:
            raise UsageError(
                f"config.optimizer.name {self.name!r}: expected one of "
                f"{', '.join(NAMES)}"
            )


def learning_rate(options: OptimizerConfig, steps: int) -> optax.Schedule:
    """step -> learning rate. Raises UsageError for an unknown schedule."""
    peak, warmup = options.learning_rate, options.warmup_steps
    rest = max(steps - warmup, 1)
    if options.schedule == "constant":
        after = optax.constant_schedule(peak)
    elif options.schedule == "cosine":
        after = optax.cosine_decay_schedule(peak, rest)
    elif options.schedule == "linear":
        after = optax.linear_schedule(peak, 0.0, rest)
    elif options.schedule == "warmup_stable_decay":
        last = max(round(options.decay_fraction * steps), 1)
        after = optax.linear_schedule(peak, 0.0, last, max(rest - last, 0))
    else:
        raise UsageError(
            f"config.optimizer.schedule {options.schedule!r}: expected one of "
            f"{', '.join(SCHEDULES)}"
        )
    if not warmup:
        return after
    # from peak / warmup, not 0: the first step should count
    rising = optax.linear_schedule(peak / warmup, peak, warmup - 1)
    return optax.join_schedules([rising, after], [warmup])


def decayed(params: Any) -> Any:
    """True for the leaves that weight decay shrinks: those called "kernel".

    They are the weights of dense and convolutional layers. Biases, norms, embeddings
    (of tokens, positions, classes), the logit scale and a stage's constants keep their
    length. A rule by name, since stacking the blocks (`scan_layers`) gives biases and
    norms a second axis.
    """
    return jax.tree_util.tree_map_with_path(
        lambda path, _: path[-1] == jax.tree_util.DictKey("kernel"), params
    )


def make_optimizer(
    options: OptimizerConfig, steps: int
) -> optax.GradientTransformation:
    """Clipping by global norm, then AdamW, or Muon with it."""
    rate, betas = learning_rate(options, steps), (options.b1, options.b2, options.eps)
    if options.name == "muon":
        tx = optax.chain(
            scale_by_muon(*betas),
            optax.add_decayed_weights(options.weight_decay, decayed),
            optax.scale_by_learning_rate(rate),
        )
    else:
        decay = {"weight_decay": options.weight_decay, "mask": decayed}
        tx = optax.adamw(rate, *betas, **decay)
    if not options.grad_clip_norm:
        return tx
    return optax.chain(optax.clip_by_global_norm(options.grad_clip_norm), tx)
