"""Compiled programs over batches of one shape, on all devices of a mesh."""

import functools
import inspect
import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from unclip_jax.interop.components import Component
from unclip_jax.parallel.mesh import batch_shards
from unclip_jax.parallel.sharding import batch_sharding, state_shardings


class Programs:
    """Compiles functions once per shape and set of static options, and reuses them.

    Attributes:
      mesh: rows of a batch are split over its data and fsdp axes, parameters over
        fsdp.
      batch_size: rows of the largest batch.
    """

    def __init__(self, mesh: Mesh, batch_size: int):
        shards = batch_shards(mesh)
        self.mesh = mesh
        self.batch_size = math.ceil(batch_size / shards) * shards
        self._jitted: dict[tuple[Callable, str], Callable] = {}

    def place_params(self, params: Any) -> Any:
        """Parameters on the devices."""
        return jax.device_put(params, state_shardings(params, self.mesh))

    def jit(self, function: Callable, component: Component) -> Callable:
        """jit of function(component, ...), whose keyword-only arguments are static."""
        key = function, component.kind
        if key not in self._jitted:
            parameters = inspect.signature(function).parameters.values()
            static = [p.name for p in parameters if p.kind == p.KEYWORD_ONLY]
            self._jitted[key] = jax.jit(
                functools.partial(function, component),
                static_argnames=static,
                out_shardings=batch_sharding(self.mesh),
            )
        return self._jitted[key]

    def chunks(self, rows: int) -> Iterator[slice]:
        """Slices of at most batch_size rows that cover range(rows)."""
        for start in range(0, rows, self.batch_size):
            yield slice(start, min(start + self.batch_size, rows))

    def place(self, arrays: Any, rows: int) -> Any:
        """A pytree of arrays with equal leading axes, padded to a batch, on devices.

        The shape is batch_size when there are that many `rows` altogether, so that
        the last chunk does not need a program of its own; fewer rows are padded to
        the next power of two that the devices can share.
        """
        shards = batch_shards(self.mesh)
        few = math.ceil(2 ** math.ceil(math.log2(rows)) / shards) * shards
        size = min(self.batch_size, few)
        sharding = batch_sharding(self.mesh)

        def pad(a):
            rest = np.repeat(a[-1:], size - len(a), axis=0)
            return jax.device_put(np.concatenate([a, rest]), sharding)

        return jax.tree.map(pad, arrays)

    def fetch(self, batch: jax.Array, rows: int) -> np.ndarray:
        """The first `rows` of a batch on the host (of every process)."""
        if not batch.is_fully_addressable:
            batch = multihost_utils.process_allgather(batch, tiled=True)
        return np.asarray(batch)[:rows]
