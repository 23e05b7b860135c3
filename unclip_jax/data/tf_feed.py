"""The feed "tf": a tf.data pipeline makes batches ahead of the training step.

    range(reads) -> map(read a few rows, in parallel) -> rebatch(a step) -> prefetch

Each read is a few rows of one step's batch, so that the first batch comes as early as
any other. As many as there are cores go on at once. Where the storage has to be waited
for (a bucket), their bytes are fetched beforehand, one row or a few at a time, hundreds
at once. What is read ahead is bounded in bytes.
"""

import functools
import logging
import os
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np

from unclip_jax.data.readers import Shapes
from unclip_jax.errors import UsageError

READ_BYTES = 2**22  # of one read, at least one row
AHEAD_BYTES = 2**30  # of reads in progress; and of batches that wait
MAX_BATCHES = 4  # ready at once, where the bytes allow
FETCHES = 256  # at once, each of which waits for the storage
FETCHES_OF_BATCH = 128  # at most: more rows are fetched a few at a time
FAR = 1e-3  # seconds of a fetch that are spent waiting
MAX_READS = min(32, max(2, os.cpu_count() or 2))  # more wait for Python's lock

logger = logging.getLogger(__name__)


def tf_batches(
    read: Callable[..., dict[str, np.ndarray]],
    shapes: Shapes,
    rows: int,
    start_step: int,
    row_bytes: int,
    fetch: Callable[[int, int, int], list] | None = None,
) -> Iterator[dict[str, np.ndarray]]:
    """Returns an endless iterator of batches, read in parallel and given in order.

    Args:
      read: (step, first row, end row[, fetched]) -> {name: (end - first, ...)},
        called from several threads.
      shapes: {name: (shape, dtype)} of what a batch holds, per example.
      rows: in each batch.
      start_step: the first one.
      row_bytes: what reading one row takes in memory.
      fetch: (step, first row, end row) -> a list that `read` takes as `fetched`; called
        ahead where it has to wait.

    Raises:
      UsageError: TensorFlow is not installed.
      What `read` raised, when the batch of that step is asked for.
    """
    try:
        import tensorflow as tf
    except ImportError as error:
        raise UsageError(
            "config.data.feed 'tf' needs TensorFlow; install it or use feed 'arrays'"
        ) from error
    try:
        tf.config.set_visible_devices([], "GPU")  # accelerators are JAX's
    except RuntimeError:  # TensorFlow is already running: someone else's choice
        logger.debug("TensorFlow was started before; its devices stay as they are")
    read_rows = min(-(-rows // MAX_READS), max(1, READ_BYTES // row_bytes))
    reads_per_step = -(-rows // read_rows)
    reads = min(MAX_READS, max(2, AHEAD_BYTES // (read_rows * row_bytes)))
    batches = min(MAX_BATCHES, max(1, AHEAD_BYTES // (rows * row_bytes)))
    errors: list[Exception] = []  # tf.data turns them into strings

    def rows_of(number):
        step, part = divmod(int(number), reads_per_step)
        return step, part * read_rows, min((part + 1) * read_rows, rows)

    fetcher = None
    if fetch is not None and _seconds_to_wait(fetch, start_step, rows) > FAR:
        several = max(1, rows // FETCHES_OF_BATCH)
        ahead = min(2 * FETCHES * several, AHEAD_BYTES // row_bytes)
        fetcher = _Fetcher(
            lambda number: [
                functools.partial(fetch, step, row, min(row + several, end))
                for step, first, end in [rows_of(number)]
                for row in range(first, end, several)
            ],
            start_step * reads_per_step,
            max(1, ahead // read_rows),
        )

    def read_part(number):
        try:
            fetched = (fetcher.take(int(number)),) if fetcher else ()
            batch = read(*rows_of(number), *fetched)
        except Exception as error:
            errors.append(error)
            raise
        return [batch[name] for name in shapes]

    def load(number):
        types = [tf.as_dtype(dtype) for _, dtype in shapes.values()]
        tensors = tf.numpy_function(read_part, [number], types)
        for (shape, _), tensor in zip(shapes.values(), tensors, strict=True):
            tensor.set_shape((None, *shape))
        return dict(zip(shapes, tensors, strict=True))

    dataset = (
        tf.data.Dataset.range(start_step * reads_per_step, np.iinfo(np.int64).max)
        .map(load, num_parallel_calls=reads, deterministic=True)
        .rebatch(rows)
        .prefetch(batches)
    )
    options = tf.data.Options()
    options.threading.private_threadpool_size = reads
    options.threading.max_intra_op_parallelism = 1
    options.autotune.enabled = False
    iterators = [iter(dataset.with_options(options))]

    def run():
        while iterators:
            try:
                batch = next(iterators[0])
            except tf.errors.OpError:
                if errors:
                    raise errors[0] from None
                raise
            yield {name: batch[name].numpy() for name in shapes}

    running = run()
    # Reading ahead runs Python in TensorFlow's threads: end it before Python does, or
    # the process hangs when it exits.
    weakref.finalize(running, _close, iterators, fetcher)
    return running


class _Fetcher:
    """Fetches the rows of reads that come later, in threads of its own."""

    def __init__(self, fetches, first: int, ahead: int):
        """Starts with the first read.

        Args:
          fetches: number of a read -> functions, each of which fetches some of its
            rows as a list.
          first: number of the first read.
          ahead: how many reads are fetched before they are taken.
        """
        self._fetches, self._next, self._ahead = fetches, first, ahead
        self._pool = ThreadPoolExecutor(FETCHES, "fetch")
        self._futures: dict[int, list[Future]] = {}
        self._lock = threading.Lock()
        self._begin(first + ahead)

    def take(self, number: int) -> list:
        """Returns the rows of a read when they are there, and begins with later ones.

        In order of the numbers, but for calls at the same time.
        """
        with self._lock:
            self._begin(number + 1 + self._ahead)
            futures = self._futures.pop(number, None)
        if futures is None:  # closed
            return [item for fetch in self._fetches(number) for item in fetch()]
        return [item for future in futures for item in future.result()]

    def close(self) -> None:
        """Begins nothing more; what is being fetched is not interrupted."""
        self._next = np.iinfo(np.int64).max

    def _begin(self, end: int) -> None:
        try:
            while self._next < end:
                fetches = self._fetches(self._next)
                futures = [self._pool.submit(fetch) for fetch in fetches]
                self._futures[self._next] = futures
                self._next += 1
        except RuntimeError:  # Python ends
            self.close()


def _close(iterators, fetcher) -> None:
    if fetcher:
        fetcher.close()
    iterators.clear()


def _seconds_to_wait(fetch, step, rows) -> float:
    """The least time that fetching one of a few rows takes without using the CPU."""

    def measure(row):
        began, busy = time.perf_counter(), time.thread_time()
        fetch(step, row, row + 1)
        return time.perf_counter() - began - (time.thread_time() - busy)

    with ThreadPoolExecutor(4) as pool:
        return min(pool.map(measure, range(0, rows, -(-rows // 4))))
