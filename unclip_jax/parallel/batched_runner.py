"""Runs a function over any number of rows, in batches of one shape, on a mesh."""

import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from unclip_jax.parallel.mesh import batch_shards
from unclip_jax.parallel.sharding import batch_sharding, state_shardings


class BatchedRunner:
    """Pads batches, places them on the devices, and fetches what is made of them.

    Attributes:
      mesh: rows of a batch are split over its data and fsdp axes, parameters over
        fsdp.
      batch_size: rows of the largest batch, a multiple of the devices' number.
    """

    def __init__(self, mesh: Mesh, batch_size: int):
        shards = batch_shards(mesh)
        self.mesh = mesh
        self.batch_size = math.ceil(batch_size / shards) * shards

    def place_params(self, params: Any) -> Any:
        """Parameters on the devices."""
        return jax.device_put(params, state_shardings(params, self.mesh))

    def map(
        self,
        function: Callable,
        arrays: tuple,
        progress: Callable[[int, int], None] | None = None,
        ahead: bool = True,
    ) -> Any:
        """Returns function(*rows) over batches of the arrays' rows, on the host.

        Args:
          function: of a batch on the devices; returns a pytree of arrays of as many
            rows, best before they are ready.
          arrays: arrays and pytrees of them, of at least one row.
          progress: called with (rows done, of all), first with 0.
          ahead: see `run_ahead`.
        """
        total = len(jax.tree.leaves(arrays)[0])
        if progress is not None:
            progress(0, total)

        def run(chunk):
            rows = jax.tree.map(lambda a: a[chunk], arrays)
            return function(*self.place(rows, total))

        starts, results = range(0, total, self.batch_size), []
        chunks = (slice(i, min(i + self.batch_size, total)) for i in starts)
        for chunk, batch in run_ahead(run, chunks, ahead):
            results.append(fetch(batch, chunk.stop - chunk.start))
            if progress is not None:
                progress(chunk.stop, total)
        return jax.tree.map(lambda *parts: np.concatenate(parts), *results)

    def place(self, arrays: Any, total: int | None = None) -> Any:
        """A pytree of arrays with equal leading axes, padded to a batch, on devices.

        The shape is batch_size when there are that many rows in `total` (None: at any
        rate), so that the last batch does not need a program of its own; fewer rows are
        padded to the next power of two that the devices can share.
        """
        shards, size = batch_shards(self.mesh), self.batch_size
        if total is not None:
            few = math.ceil(2 ** math.ceil(math.log2(total)) / shards) * shards
            size = min(size, few)
        sharding = batch_sharding(self.mesh)

        def pad(a):
            rest = np.repeat(a[-1:], size - len(a), axis=0)
            return jax.device_put(np.concatenate([a, rest]), sharding)

        return jax.tree.map(pad, arrays)


def run_ahead(run: Callable, batches: Iterable, ahead: bool = True) -> Iterator[tuple]:
    """Yields (batch, run(batch)), with `ahead` after the next batch was sent off.

    The devices then work on that one while the host fetches and writes this one.
    """
    waiting = None
    for batch in batches:
        running = batch, run(batch)
        if not ahead:
            yield running
            continue
        if waiting is not None:
            yield waiting
        waiting = running
    if waiting is not None:
        yield waiting


def fetch(batch: Any, rows: int) -> Any:
    """The first `rows` of a pytree of arrays, on the host (of every process)."""

    def one(array):
        if not array.is_fully_addressable:
            array = multihost_utils.process_allgather(array, tiled=True)
        return np.asarray(array)[:rows]

    return jax.tree.map(one, batch)
