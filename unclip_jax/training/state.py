"""What training carries from step to step."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from unclip_jax.errors import UsageError
from unclip_jax.parallel import sharding


@flax.struct.dataclass
class TrainState:
    """Everything a step changes.

    Attributes:
      step: () int32, steps taken.
      skipped: () int32, steps whose loss or gradient was not finite.
      params: float32 master parameters.
      ema: float32 exponential moving average of them, in its own buffers.
      opt_state: of optax.
    """

    step: jax.Array
    skipped: jax.Array
    params: Any
    ema: Any
    opt_state: Any


def init_state(stage, tx: optax.GradientTransformation, rng) -> TrainState:
    """A fresh state. The EMA is a copy: donating one buffer twice is fatal."""
    params = stage.init(rng)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        skipped=jnp.zeros((), jnp.int32),
        params=params,
        ema=jax.tree.map(jnp.copy, params),
        opt_state=tx.init(params),
    )


def abstract_state(stage, tx, mesh: Mesh, rules) -> TrainState:
    """TrainState of ShapeDtypeStructs with shardings; allocates nothing.

    Raises UsageError where the stage's fields do not make a model.
    """
    init = functools.partial(init_state, stage, tx)
    try:
        shapes = jax.eval_shape(init, jax.random.key(0))
    except UsageError:
        raise
    except (ArithmeticError, TypeError, ValueError) as error:
        raise UsageError(
            f"config.model does not make a model ({error}; --debug shows where)"
        ) from error
    shardings = sharding.state_shardings(shapes, mesh, rules)
    return jax.tree.map(
        lambda s, place: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=place),
        shapes,
        shardings,
    )


def init_sharded(stage, tx, seed: int, abstract: TrainState) -> TrainState:
    """A fresh state on the devices, sharded as `abstract` says."""
    # jitted as one program, so that each buffer is made where it will live
    shardings = jax.tree.map(lambda s: s.sharding, abstract)
    init = jax.jit(lambda rng: init_state(stage, tx, rng), out_shardings=shardings)
    return init(jax.random.key(seed))


def replace_params(state: TrainState, params: Mapping[str, Any]) -> TrainState:
    """The state with other parameters, and with them as their average.

    Args:
      state: on the devices.
      params: host arrays; what is missing of the outermost names stays as it is.
    """

    def shard(array, like):
        return jax.make_array_from_callback(
            array.shape, like.sharding, lambda index: array[index]
        )

    def replace(old):
        like = {name: old[name] for name in params}
        return {**old, **jax.tree.map(shard, params, like)}

    new, ema = replace(state.params), replace(state.ema)
    return dataclasses.replace(state, params=new, ema=ema)
