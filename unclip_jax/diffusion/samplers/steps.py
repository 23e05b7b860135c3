"""What samplers share: the steps they take, where noise comes from, and the loop."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from unclip_jax.diffusion.schedule import Schedule
from unclip_jax.errors import UsageError
from unclip_jax.shapes import Path, Rows, Timesteps


class Steps(NamedTuple):
    """The steps t -> s of a sampler: (n,) each, float64 on the host.

    x_t = signal_t x_0 + sigma_t epsilon; s = -1 stands for x_0 itself.
    """

    t: np.ndarray  # int32
    s: np.ndarray  # int32
    signal_t: np.ndarray  # sqrt(abar_t)
    sigma_t: np.ndarray  # sqrt(1 - abar_t)
    signal_s: np.ndarray
    sigma_s: np.ndarray


def make_steps(schedule: Schedule, timesteps: Path, to_x0: bool = True) -> Steps:
    """The steps through `timesteps`, strictly descending integers in [0, T), to x_0.

    Unless `to_x0` they end at the last of the timesteps, of which there must be two.

    Raises UsageError if they are not.
    """
    t = np.asarray(timesteps)
    integers = t.ndim == 1 and len(t) > 0 and np.issubdtype(t.dtype, np.integer)
    inside = integers and 0 <= t[-1] and t[0] < schedule.num_steps
    if not (inside and (np.diff(t) < 0).all()):
        raise UsageError(
            f"timesteps {t.tolist()}: expected integers that descend from at most "
            f"{schedule.num_steps - 1} to at least 0"
        )
    if not to_x0 and len(t) == 1:
        raise UsageError(f"timesteps {t.tolist()}: expected two to step between")
    t, s = (t, np.append(t[1:], -1)) if to_x0 else (t[:-1], t[1:])
    bar = np.append(schedule.alphas_cumprod, 1.0)  # index -1 -> abar = 1
    signal, sigma = np.sqrt(bar), np.sqrt(1 - bar)
    t, s = np.asarray(t, np.int32), np.asarray(s, np.int32)
    return Steps(t, s, signal[t], sigma[t], signal[s], sigma[s])


def half_log_snr_steps(steps: Steps) -> np.ndarray:
    """(n,) float64 lengths of the steps in log(signal / sigma); inf for the last.

    And for the first, from a timestep without signal.
    """
    with np.errstate(divide="ignore"):
        h = np.log(steps.signal_s / steps.signal_t) + np.log(steps.sigma_t)
    return np.append(h[:-1] - np.log(steps.sigma_s[:-1]), np.inf)


def normal(keys, shape) -> Rows:
    """(B, *shape) standard normal noise, row i from keys[i] alone."""
    return jax.vmap(lambda key: jax.random.normal(key, shape))(keys)


def noise_source(noise) -> Callable:
    """(i, shape) -> noise: `noise` itself if it is a function, else drawn from keys."""
    if callable(noise):
        return noise

    def draw(i, shape):
        keys = jax.vmap(lambda key: jax.random.fold_in(key, i))(noise)
        return normal(keys, shape[1:])

    return draw


def run_all(step: Callable, state, rows):
    """The first array of the state after all steps, made in one scan.

    Args:
      step: (state, i, row) -> state, where row is `rows` at i: float32 and int32
        scalars.
      state: a pytree of arrays.
      rows: a pytree of (n,) host arrays; float64 becomes float32 only here.
    """

    def body(state, inputs):
        return step(state, *inputs), None

    rows = _tables(rows)
    state = jax.lax.scan(body, state, (jnp.arange(_count(rows)), rows))[0]
    return jax.tree.leaves(state)[0]


def run_piece(step: Callable, state, rows, first, end, total):
    """The state after a piece of the loop, which `run_all` makes at once.

    The piece is from first / total of the rows to end / total of them.

    Args:
      step, rows: as for `run_all`.
      state: that after the piece before.
      first, end, total: integers, all of which may be traced: one program makes any
        piece.
    """
    rows = _tables(rows)
    count = _count(rows)

    def body(i, state):
        row = jax.tree.map(
            lambda table: jax.lax.dynamic_index_in_dim(table, i, keepdims=False), rows
        )
        return step(state, i, row)

    return jax.lax.fori_loop(first * count // total, end * count // total, body, state)


def _tables(rows):
    return jax.tree.map(
        lambda a: jnp.asarray(a, jnp.float32 if a.dtype.kind == "f" else jnp.int32),
        rows,
    )


def _count(rows) -> int:
    return len(jax.tree.leaves(rows)[0])


def everywhere(t, x: Rows) -> Timesteps:
    """(B,): the timestep t for every sample of x."""
    return jnp.full(x.shape[0], t)
