"""Host batches become global arrays, with the next ones already on their way."""

import collections
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding

from unclip_jax.errors import UsageError
from unclip_jax.parallel.mesh import batch_shards
from unclip_jax.parallel.sharding import batch_sharding


def check_batch_size(batch_size: int, mesh: Mesh, grad_accum: int = 1) -> None:
    """Raises UsageError unless each device gets whole examples of each micro-batch."""
    shards = batch_shards(mesh)
    if batch_size < 1 or grad_accum < 1 or batch_size % (shards * grad_accum):
        raise UsageError(
            f"batch_size {batch_size} is not divisible by {shards * grad_accum} = "
            f"data {mesh.shape['data']} x fsdp {mesh.shape['fsdp']} x grad_accum "
            f"{grad_accum}"
        )


def process_rows(mesh: Mesh, batch_size: int) -> np.ndarray:
    """Numbers of the rows of the global batch that this process feeds, ascending.

    Read from the mesh, not from the process number: on a torus the devices of a host
    are neighbours in the mesh but seldom in a row, and processes of one tensor group
    need the same rows.
    """
    indices = batch_sharding(mesh).addressable_devices_indices_map((batch_size,))
    slices = {index[0].indices(batch_size)[:2] for index in indices.values() if index}
    return np.concatenate([np.arange(*bounds) for bounds in sorted(slices)])


def place(
    batch: Mapping[str, np.ndarray],
    sharding: NamedSharding,
    batch_size: int,
    spec: Mapping[str, tuple[tuple[int, ...], Any]] | None = None,
    rows: np.ndarray | None = None,
) -> dict[str, jax.Array]:
    """This process's rows as global arrays of `batch_size` rows.

    Args:
      batch: {name: (number of rows, ...)}.
      sharding: of the global arrays.
      batch_size: rows of them.
      spec: what the rows must be.
      rows: of `process_rows`, which these are; None for all.

    Raises UsageError when the rows are not of `spec`, {name: (shape, dtype)} of one
    example.
    """
    if spec is not None:
        wanted = {n: (tuple(s), np.dtype(d).name) for n, (s, d) in spec.items()}
        found = {n: (rows.shape[1:], rows.dtype.name) for n, rows in batch.items()}
        if found != wanted:
            raise UsageError(
                f"the stage needs examples of {wanted}, the data gives {found}"
            )
    first = np.arange(batch_size) if rows is None else rows

    def array(values):
        def shard(index):
            start, stop, _ = index[0].indices(batch_size)
            place = np.searchsorted(first, start)
            return values[place : place + stop - start]

        shape = (batch_size, *values.shape[1:])
        return jax.make_array_from_callback(shape, sharding, shard)

    # with several processes jax takes this for an implicit transfer, with one not
    with jax.transfer_guard_host_to_device("allow"):
        return {name: array(values) for name, values in batch.items()}


class Prefetch:
    """Placed batches, of which a thread keeps `ahead` on the devices.

    A batch that comes late costs nothing while others are ready.

    Attributes:
      waited: seconds in which the devices had nothing to do while a batch was awaited.
    """

    def __init__(
        self,
        source: Iterator[Mapping[str, np.ndarray]],
        place_batch: Callable[[Mapping[str, np.ndarray]], Any],
        ahead: int = 2,
    ):
        """Begins to read."""
        self._source, self._place, self._ahead = source, place_batch, ahead
        self._ready: collections.deque = collections.deque()
        self._changed = threading.Condition()
        self._end: BaseException | None = None  # why nothing more comes
        self.waited = 0.0
        self._thread = threading.Thread(target=self._fill, daemon=True, name="prefetch")
        self._thread.start()

    def take(self, busy: Callable[[], bool] = lambda: False) -> Any:
        """Returns the next batch.

        Args:
          busy: whether the devices still have something to do.

        Raises StopIteration when the source ends, and what it or placing raised.
        """
        start = time.perf_counter()
        with self._changed:
            while not self._ready and self._end is None:
                self._changed.wait()
            if not busy():
                self.waited += time.perf_counter() - start
            if not self._ready:
                assert self._end is not None
                raise self._end
            self._changed.notify()
            return self._ready.popleft()

    def close(self) -> None:
        """Ends reading ahead, unless the storage does not answer."""
        with self._changed:
            self._end = self._end or StopIteration()
            self._changed.notify()
        self._thread.join(timeout=10)

    def _fill(self) -> None:
        try:
            while self._has_room():
                batch = self._place(next(self._source))
                with self._changed:
                    self._ready.append(batch)
                    self._changed.notify()
        except BaseException as error:  # the main thread raises it
            with self._changed:
                self._end = error
                self._changed.notify()
        if close := getattr(self._source, "close", None):
            close()

    def _has_room(self) -> bool:
        """Waits for room; False when nothing more is asked for."""
        with self._changed:
            while len(self._ready) >= self._ahead and self._end is None:
                self._changed.wait()
            return self._end is None
