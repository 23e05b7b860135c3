"""AdamW with warm-up and clipping, from config.optimizer."""

import dataclasses
import math
from typing import Any

import jax
import optax

from unclip_jax.errors import UsageError

SCHEDULES = ("constant", "cosine", "linear")


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """AdamW and its learning rate."""

    learning_rate: float  # at its peak
    weight_decay: float = 0.0  # of what `decayed` says
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8
    warmup_steps: int = 0  # linear, from 0
    schedule: str = "constant"  # after the warm-up; the others end at 0
    grad_clip_norm: float = 0.0  # of the whole gradient; 0: no clipping

    def __post_init__(self):
        for field in dataclasses.fields(self):
            value, end = getattr(self, field.name), math.inf
            if field.name in ("b1", "b2"):
                end = 1.0
            if field.type is not str and not 0 <= value < end:
                raise UsageError(
                    f"config.optimizer.{field.name} must be in [0, {end:g}), got "
                    f"{value}"
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
    """Clipping by global norm, then AdamW."""
    adamw = optax.adamw(
        learning_rate(options, steps),
        b1=options.b1,
        b2=options.b2,
        eps=options.eps,
        weight_decay=options.weight_decay,
        mask=decayed,
    )
    if not options.grad_clip_norm:
        return adamw
    return optax.chain(optax.clip_by_global_norm(options.grad_clip_norm), adamw)
