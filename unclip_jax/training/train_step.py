"""The compiled training step: its state's shapes and shardings, and its lowering.

The loop runs it; `plan` compiles it for machines that are not there.
"""

from typing import Any

import jax
import optax
from jax.sharding import Mesh

from unclip_jax.parallel import sharding
from unclip_jax.training import state


def init_function(stage, tx: optax.GradientTransformation):
    """rng -> a fresh TrainState, to be jitted as one program."""

    def init(rng):
        return state.init_state(stage, tx, rng)

    return init


def abstract_state(stage, tx: optax.GradientTransformation, mesh: Mesh, rules) -> Any:
    """TrainState of ShapeDtypeStructs with shardings; allocates nothing."""
    shapes = jax.eval_shape(init_function(stage, tx), jax.random.key(0))
    shardings = sharding.state_shardings(shapes, mesh, rules)
    return jax.tree.map(
        lambda s, place: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=place),
        shapes,
        shardings,
    )


def lower_step(stage, tx, mesh: Mesh, config, abstract) -> jax.stages.Lowered:
    """Lowers (state, rng, batch) -> (state, metrics), the state donated.

    Args:
      stage, tx: what is trained, and how.
      mesh: the devices; they need not exist.
      config: batch_size, ema_decay and grad_accum are looked at.
      abstract: of `abstract_state`.
    """
    rows, whole = sharding.batch_sharding(mesh), sharding.replicated(mesh)
    batch = {
        name: jax.ShapeDtypeStruct((config.batch_size, *shape), dtype, sharding=rows)
        for name, (shape, dtype) in stage.batch_spec.items()
    }
    key = jax.eval_shape(lambda: jax.random.key(0))
    rng = jax.ShapeDtypeStruct(key.shape, key.dtype, sharding=whole)
    update = state.make_step(stage, tx, config.ema_decay, config.grad_accum)
    shardings = jax.tree.map(lambda s: s.sharding, abstract)
    jitted = jax.jit(update, donate_argnums=0, out_shardings=(shardings, whole))
    return jitted.lower(abstract, rng, batch)
