"""Arrays drawn one by one are those of the whole function as one program."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec, SingleDeviceSharding

from unclip_jax.models.layers import Transformer
from unclip_jax.parallel import leaves


def one_device(function, *args):
    device = SingleDeviceSharding(jax.devices()[0])
    return jax.tree.map(lambda _: device, jax.eval_shape(function, *args))


@pytest.mark.parametrize("scan_layers", [False, True])
def test_a_model_is_initialized_as_by_one_program(scan_layers):
    model = Transformer(2, 2, scan_layers=scan_layers)

    def init(rng):
        return model.init(rng, jnp.zeros((1, 3, 8)))["params"]

    rng = jax.random.key(3)
    found = leaves.run_by_leaf(init, one_device(init, rng), rng)
    expected = jax.jit(init)(rng)
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_arrays_of_one_shape_share_a_program(monkeypatch):
    """However many there are; what no array is made of is not computed."""

    def init(rng):
        drawn = [jax.random.normal(key, (8, 4)) for key in jax.random.split(rng, 50)]
        unused = drawn[0] @ drawn[1].T
        del unused
        return {"drawn": drawn, "zeros": jnp.zeros(3), "again": 2 * drawn[3]}

    rng, programs, compiled = jax.random.key(1), [], jax.jit
    shardings, expected = one_device(init, rng), compiled(init)(rng)

    def count(function, **kwargs):
        programs.append(function)
        return compiled(function, **kwargs)

    monkeypatch.setattr(leaves.jax, "jit", count)
    found = leaves.run_by_leaf(init, shardings, rng)
    assert len(programs) == 3
    jax.tree.map(np.testing.assert_array_equal, found, expected)


@pytest.mark.skipif(jax.device_count() < 2, reason="needs two devices")
def test_outputs_are_sharded_as_asked():
    mesh = jax.make_mesh((2,), ("data",))
    place = NamedSharding(mesh, PartitionSpec("data"))

    def init(rng):
        return jax.random.normal(rng, (4, 8))

    found = leaves.run_by_leaf(init, place, jax.random.key(0))
    assert found.sharding.is_equivalent_to(place, 2)
    np.testing.assert_array_equal(found, init(jax.random.key(0)))
