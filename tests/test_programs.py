"""Which compiled programs are kept from run to run."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from tests.programs import talks_in_a_loop
from unclip_jax.parallel.mesh import make_mesh


def mean_outside(x):
    """A loop of every device alone, then one sum."""
    return jax.lax.fori_loop(0, 3, lambda _, x: jnp.sin(x), x).mean()


def mean_inside(x):
    return jax.lax.fori_loop(0, 3, lambda _, x: x - x.mean(), x)


def mean_in_a_branch(x):
    def step(i, x):
        return jax.lax.cond(i > 1, lambda x: x - x.mean(), jnp.sin, x)

    return jax.lax.fori_loop(0, 3, step, x)


@pytest.mark.parametrize(
    "function,talks",
    [(mean_outside, False), (mean_inside, True), (mean_in_a_branch, True)],
)
def test_collectives_in_a_loop_are_found(function, talks):
    sharding = NamedSharding(make_mesh(fsdp=8), PartitionSpec("fsdp"))
    x = jax.device_put(jnp.arange(16.0), sharding)
    hlo = jax.jit(function).lower(x).compile().as_text()
    assert "all-reduce" in hlo and "while(" in hlo
    assert talks_in_a_loop(hlo) == talks
