"""The feed "tf": tf.data makes batches ahead of the training step."""

import atexit
import logging
import os
import weakref

import numpy as np

from unclip_jax.errors import UsageError

logger = logging.getLogger(__name__)


def tf_batches(make, shapes, rows: int, start_step: int):
    """An endless iterator of batches, made in parallel and given in order.

    Args:
      make: step -> {name: (rows, ...)}, called from several threads.
      shapes: {name: (shape, dtype)} of what a batch holds, per example.
      rows: in each batch.
      start_step: the first one.

    Raises:
      UsageError: TensorFlow is not installed.
      What `make` raised, when the batch of that step is asked for.
    """
    try:
        import tensorflow as tf
    except ImportError as error:
        raise UsageError(
            "config.data.feed 'tf' needs TensorFlow; install it or use feed 'arrays'"
        ) from error
    failed = []  # tf.data turns exceptions into strings: keep the first

    def read(step):
        try:
            batch = make(int(step))
        except Exception as error:
            failed.append(error)
            raise
        return [batch[name] for name in shapes]

    def load(step):
        types = [tf.as_dtype(dtype) for _, dtype in shapes.values()]
        tensors = tf.numpy_function(read, [step], types)
        for (shape, _), tensor in zip(shapes.values(), tensors, strict=True):
            tensor.set_shape((rows, *shape))
        return dict(zip(shapes, tensors, strict=True))

    threads = min(16, max(2, os.cpu_count() or 2))
    try:
        tf.config.set_visible_devices([], "GPU")  # accelerators are JAX's
    except RuntimeError:  # TensorFlow is already running: someone else's choice
        logger.debug("TensorFlow was started before; its devices stay as they are")
    steps = tf.data.Dataset.range(start_step, np.iinfo(np.int64).max)
    batches = steps.map(load, num_parallel_calls=threads, deterministic=True)
    options = tf.data.Options()
    options.threading.private_threadpool_size = threads
    options.threading.max_intra_op_parallelism = 1
    options.autotune.enabled = False
    iterator = iter(batches.prefetch(2).with_options(options))

    def run():
        while True:
            try:
                batch = next(iterator)
            except tf.errors.OpError:
                if failed:
                    raise failed[0] from None
                raise
            yield {name: batch[name].numpy() for name in shapes}

    reading = run()
    # Reading ahead runs Python in TensorFlow's threads: end it before Python does, or
    # the process hangs when it exits.
    atexit.register(_close, weakref.ref(reading))
    return reading


def _close(reference):
    reading = reference()
    if reading is not None:
        reading.close()
