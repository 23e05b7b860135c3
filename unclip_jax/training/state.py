"""What training carries from step to step."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from unclip_jax.errors import UsageError
from unclip_jax.parallel import sharding
from unclip_jax.parallel.leaves import run_by_leaf
from unclip_jax.stages.lora import LoraStage


@flax.struct.dataclass
class TrainState:
    """Everything a step changes.

    Attributes:
      step: () int32, steps taken.
      skipped: () int32, steps whose loss or gradient was not finite.
      params: float32 master parameters.
      ema: float32 exponential moving average of them, in its own buffers.
      opt_state: of optax.
      profiles: {std: averages} of power_ema, or None.
      frozen: parameters that no step changes and no checkpoint holds, of a LoraStage;
        else None.
    """

    step: jax.Array
    skipped: jax.Array
    params: Any
    ema: Any
    opt_state: Any
    profiles: Any = None
    frozen: Any = None

    @property
    def averaged(self):
        """What a stage's methods take for parameters: the average's."""
        return joined(self.ema, self.frozen)


def joined(params, frozen):
    """What a stage's methods take for parameters: `params`, unless some are frozen."""
    return params if frozen is None else {"frozen": frozen, "trained": params}


def init_state(
    stage, tx: optax.GradientTransformation, rng, profiles: Sequence[float] = ()
) -> TrainState:
    """A fresh state. Averages are copies: donating one buffer twice is fatal."""
    return _state_of(stage, tx, rng, stage.init(rng), profiles)


def _state_of(stage, tx, rng, params, profiles) -> TrainState:
    """The state of a fresh model."""
    frozen = None
    if isinstance(stage, LoraStage):
        params, frozen = stage.init_trained(rng, params), params
    averages = {f"{std:g}": jax.tree.map(jnp.copy, params) for std in profiles}
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        skipped=jnp.zeros((), jnp.int32),
        params=params,
        ema=jax.tree.map(jnp.copy, params),
        opt_state=tx.init(params),
        profiles=averages or None,
        frozen=frozen,
    )


def abstract_state(stage, tx, mesh: Mesh, rules, profiles=()) -> TrainState:
    """TrainState of ShapeDtypeStructs with shardings; allocates nothing.

    Raises UsageError where the stage's fields do not make a model.
    """
    init = functools.partial(init_state, stage, tx, profiles=profiles)
    try:
        shapes = jax.eval_shape(init, jax.random.key(0))
    except (ArithmeticError, TypeError, ValueError) as error:
        raise UsageError(
            f"config.model does not make a model: {error} (--debug shows where)"
        ) from error
    shardings = sharding.state_shardings(shapes, mesh, rules)
    return jax.tree.map(
        lambda s, place: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=place),
        shapes,
        shardings,
    )


def init_sharded(stage, tx, seed: int, abstract: TrainState) -> TrainState:
    """A fresh state on the devices, sharded as `abstract` says."""
    shardings = jax.tree.map(lambda s: s.sharding, abstract)
    profiles = [float(std) for std in abstract.profiles or ()]
    rng = jax.random.key(seed)
    # the parameters of the model are in one of two places, see _state_of
    missing: dict[str, Any] = {"params" if abstract.frozen is None else "frozen": None}
    (name,) = missing
    model = run_by_leaf(stage.init, getattr(shardings, name), rng)

    def rest(rng, params):
        state = _state_of(stage, tx, rng, params, profiles)
        return dataclasses.replace(state, **missing)

    places = dataclasses.replace(shardings, **missing)
    state = jax.jit(rest, out_shardings=places)(rng, model)
    made: dict[str, Any] = {name: model}
    return dataclasses.replace(state, **made)


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

    def replace(old, params):
        like = {name: old[name] for name in params}
        return {**old, **jax.tree.map(shard, params, like)}

    if state.frozen is not None:
        trained = [dict(tree) for tree in (state.params, state.ema)]
        for tree in trained:
            kept = {k: params[k] for k in tree["of_data"] if k in params}
            tree["of_data"] = replace(tree["of_data"], kept)
        frozen = replace(state.frozen, params)
        return dataclasses.replace(
            state, params=trained[0], ema=trained[1], frozen=frozen
        )
    new, ema = replace(state.params, params), replace(state.ema, params)
    return dataclasses.replace(state, params=new, ema=ema)
