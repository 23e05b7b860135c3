"""What training carries from step to step, and the step itself."""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax


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


def make_step(stage, tx: optax.GradientTransformation, ema_decay: float, accum: int):
    """(state, rng, batch) -> (state, metrics), to be compiled with donation.

    The step's noise comes from fold_in(rng, state.step), so that it is a function of
    (seed, step). With accum > 1 the batch runs in so many micro-batches and gradients
    and metrics are averaged. A step whose loss or gradient is not finite changes
    nothing but the counters.
    """

    grad = jax.value_and_grad(stage.loss, has_aux=True)

    def gradients(params, rng, batch):
        if accum == 1:
            (value, metrics), grads = grad(params, rng, batch)
            return grads, {"loss": value, **metrics}

        def body(carry, micro):
            i, rows = micro
            key = jax.random.fold_in(rng, i)
            (value, metrics), grads = grad(params, key, rows)
            found = (grads, {"loss": value, **metrics})
            return jax.tree.map(jnp.add, carry, found), None

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
        grads, metrics = gradients(state.params, rng, batch)
        norm = optax.global_norm(grads)
        finite = jnp.isfinite(norm) & jnp.isfinite(metrics["loss"])
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        # a short horizon first, or the average would remember the initialisation
        count = state.step.astype(jnp.float32)
        decay = jnp.minimum(ema_decay, (1 + count) / (10 + count))
        ema = jax.tree.map(lambda e, p: decay * e + (1 - decay) * p, state.ema, params)

        def keep(new, old):
            return jax.tree.map(lambda a, b: jnp.where(finite, a, b), new, old)

        new = TrainState(
            step=state.step + 1,
            skipped=state.skipped + (~finite).astype(jnp.int32),
            params=keep(params, state.params),
            ema=keep(ema, state.ema),
            opt_state=keep(opt_state, state.opt_state),
        )
        return new, {**metrics, "grad_norm": norm, "skipped": new.skipped}

    return step
