"""The training step, and its lowering.

The loop runs it; `plan` compiles it for machines that are not there.
"""

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from unclip_jax.parallel import sharding
from unclip_jax.training import power_ema
from unclip_jax.training.run_config import TrainConfig
from unclip_jax.training.state import TrainState, joined


def make_step(stage, tx: optax.GradientTransformation, ema_decay: float, accum: int):
    """(state, rng, batch) -> (state, metrics), to be compiled with donation.

    The step's noise comes from fold_in(rng, state.step), so that it is a function of
    (seed, step). With accum > 1 the batch runs in so many micro-batches and gradients
    and metrics are averaged. A step whose loss or gradient is not finite changes
    nothing but the counters.
    """

    def gradients(params, frozen, rng, batch):
        def loss(params, rng, batch):
            return stage.loss(joined(params, frozen), rng, batch)

        grad = jax.value_and_grad(loss, has_aux=True)
        if accum == 1:
            (value, metrics), grads = grad(params, rng, batch)
            return grads, {"loss": value, **metrics}

        def body(carry, micro):
            i, rows = micro
            key = jax.random.fold_in(rng, i)
            (value, metrics), grads = grad(params, key, rows)
            terms = (grads, {"loss": value, **metrics})
            return jax.tree.map(jnp.add, carry, terms), None

        # (B // A, A) then swapped: each device keeps its own rows, no collective
        micro = jax.tree.map(
            lambda x: x.reshape(-1, accum, *x.shape[1:]).swapaxes(0, 1), batch
        )
        first = jax.tree.map(lambda x: x[0], micro)
        (value, metrics), grads = jax.eval_shape(grad, params, rng, first)
        zeros = jax.tree.map(
            lambda s: jnp.zeros(s.shape, s.dtype), (grads, {"loss": value, **metrics})
        )
        total, _ = jax.lax.scan(body, zeros, (jnp.arange(accum), micro))
        return jax.tree.map(lambda x: x / accum, total)

    def step(state: TrainState, rng, batch):
        rng = jax.random.fold_in(rng, state.step)
        grads, metrics = gradients(state.params, state.frozen, rng, batch)
        norm = optax.global_norm(grads)
        finite = jnp.isfinite(norm) & jnp.isfinite(metrics["loss"])
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        # a short horizon first, or the average would remember the initialisation
        count = state.step.astype(jnp.float32)
        decay = jnp.minimum(ema_decay, (1 + count) / (10 + count))
        ema = jax.tree.map(lambda e, p: decay * e + (1 - decay) * p, state.ema, params)

        profiles = power_ema.update(state.profiles, params, state.step)

        def keep(new, old):
            return jax.tree.map(lambda a, b: jnp.where(finite, a, b), new, old)

        new = TrainState(
            step=state.step + 1,
            skipped=state.skipped + (~finite).astype(jnp.int32),
            params=keep(params, state.params),
            ema=keep(ema, state.ema),
            opt_state=keep(opt_state, state.opt_state),
            profiles=keep(profiles, state.profiles),
            frozen=state.frozen,
        )
        return new, {**metrics, "grad_norm": norm, "skipped": new.skipped}

    return step


def lower_step(
    stage, tx, mesh: Mesh, config: TrainConfig, abstract
) -> jax.stages.Lowered:
    """Lowers (state, rng, batch) -> (state, metrics), the state donated.

    Args:
      stage, tx: what is trained, and how.
      mesh: the devices; they need not exist.
      config: batch_size, ema_decay and grad_accum are looked at.
      abstract: of `state.abstract_state`.
    """
    rows, whole = sharding.batch_sharding(mesh), sharding.replicated(mesh)
    batch = {
        name: jax.ShapeDtypeStruct((config.batch_size, *shape), dtype, sharding=rows)
        for name, (shape, dtype) in stage.batch_spec.items()
    }
    key = jax.eval_shape(lambda: jax.random.key(0))
    rng = jax.ShapeDtypeStruct(key.shape, key.dtype, sharding=whole)
    update = make_step(stage, tx, config.ema_decay, config.grad_accum)
    shardings = jax.tree.map(lambda s: s.sharding, abstract)
    jitted = jax.jit(update, donate_argnums=0, out_shardings=(shardings, whole))
    return jitted.lower(abstract, rng, batch)
