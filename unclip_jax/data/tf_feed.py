"""The feed "tf": a tf.data pipeline makes batches ahead of the training step.

    range(reads) -> map(read a few rows, in parallel) -> rebatch(a step) -> prefetch

Each read is a few rows of one step's batch, so that many of them wait for a disk or a
bucket at once and the first batch comes as early as any other. What is read ahead is
bounded in bytes.
"""

import logging
import os
import weakref
from collections.abc import Callable, Iterator

import numpy as np

from unclip_jax.data.readers import Shapes
from unclip_jax.errors import UsageError

READ_BYTES = 2**22  # of one read, at least one row
AHEAD_BYTES = 2**30  # of reads in progress; and of batches that wait
MAX_BATCHES = 4  # ready at once, where the bytes allow
MAX_READS = min(32, max(2, os.cpu_count() or 2))  # more wait for Python's lock

logger = logging.getLogger(__name__)


def tf_batches(
    read: Callable[[int, int, int], dict[str, np.ndarray]],
    shapes: Shapes,
    rows: int,
    start_step: int,
    row_bytes: int,
) -> Iterator[dict[str, np.ndarray]]:
    """Returns an endless iterator of batches, read in parallel and given in order.

    Args:
      read: (step, first row, end row) -> {name: (end - first, ...)}, called from
        several threads.
      shapes: {name: (shape, dtype)} of what a batch holds, per example.
      rows: in each batch.
      start_step: the first one.
      row_bytes: what reading one row takes in memory.

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

    def read_part(number):
        step, part = divmod(int(number), reads_per_step)
        first = part * read_rows
        try:
            batch = read(step, first, min(first + read_rows, rows))
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
    weakref.finalize(running, iterators.clear)
    return running
