"""Random parameters, drawn by NumPy: nothing is compiled for them."""

import jax
import numpy as np


def random_params(shapes, seed=0):
    """float32 arrays of these shapes: as after some training, and none of them zero.

    Zero-initialized outputs would hide what a model does with its inputs.
    """
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        noise = rng.standard_normal(leaf.shape, np.float32)
        name = path[-1].key
        if name == "kernel":
            return noise / np.float32(np.prod(leaf.shape[:-1])) ** 0.5
        return (name in ("scale", "std")) + np.float32(0.1) * noise

    return jax.tree_util.tree_map_with_path(draw, shapes)


def random_variables(module, *inputs, seed=0, **named) -> dict:
    """{"params": random parameters of a Flax module} that takes such inputs."""
    shapes = jax.eval_shape(module.init, jax.random.key(0), *inputs, **named)
    return {"params": random_params(shapes["params"], seed)}
