"""What several processes computed, on every one of them, to the last bit."""

import json

import jax
import numpy as np
from jax.experimental import multihost_utils


def gather_exactly(array):
    """(P, ...) of every process's equally shaped array, any dtype, bit for bit.

    jax's own gathering turns float64 into float32 in silence; bytes go through
    unharmed, as uint32.
    """
    array = np.asarray(array, order="C")
    if jax.process_count() == 1:
        return array[None]
    raw = array.tobytes()
    raw += bytes(-len(raw) % 4)
    words = np.frombuffer(raw, np.uint32)
    everyone = np.asarray(multihost_utils.process_allgather(words))  # (P, words)
    count = array.nbytes
    rows = [np.frombuffer(row.tobytes()[:count], array.dtype) for row in everyone]
    return np.stack(rows).reshape(len(rows), *array.shape)


def gather_rows(chunks, rows, size):
    """{name: (rows, D)} of all processes' chunks, in the order of the rows.

    Args:
      chunks: [{name: (B, D)}], this process's, which are every P-th of all; all but
        the last of all have `size` rows.
      rows: of all processes together.
      size: rows of a chunk.
    """
    if jax.process_count() == 1:
        return {k: np.concatenate([c[k] for c in chunks]) for k in chunks[0]}
    total = -(-rows // size)
    most = -(-total // jax.process_count())
    # A process may have no chunk: all learn names and widths from process 0, which
    # always has one.
    widths = {k: v.shape[1] for k, v in sorted(chunks[0].items())} if chunks else {}
    text = np.frombuffer(json.dumps(widths).encode(), np.uint8)
    length = int(gather_exactly(np.int64(len(text)))[0])
    text = gather_exactly(np.resize(text, length))[0]
    out = {}
    for name, width in json.loads(text.tobytes()).items():
        mine = np.zeros((most, size, width), np.float32)
        for i, chunk in enumerate(chunks):
            mine[i, : len(chunk[name])] = chunk[name]
        everyone = gather_exactly(mine)  # (P, most, size, D): chunk i * P + p
        ordered = everyone.transpose(1, 0, 2, 3).reshape(-1, width)
        out[name] = ordered[:rows]  # padding of the last chunks is at the end
    return out
