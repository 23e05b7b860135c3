"""Arrays of a frozen encoder's embeddings, for `python -m unclip_jax.align`.

    encode(encoder, texts, "conditions.npy")

An encoder is any function from a list of inputs to an array with a row for each; see
interop.transformers_encoder for those of transformers' folders.
"""

import json
import os
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from unclip_jax import files
from unclip_jax.errors import UsageError

TOLERANCE = 0.01  # of rows that are encoded again, see _check_origin


def encode(
    encoder: Callable[[list[Any]], Any],
    inputs: Sequence[Any],
    path: str | os.PathLike,
    batch_size: int = 64,
    dtype: str = "float32",
    progress: Callable[[int, int], None] | None = None,
) -> np.ndarray:
    """Writes what an encoder makes of every input into a .npy file, row by row.

    The file may be larger than memory. Interrupted, the same call goes on; a finished
    file is kept. Some rows of either, evenly spaced, are encoded again and compared, so
    that rows of two encoders are never mixed.

    Args:
      encoder: inputs, at most `batch_size` of them -> array-like (n, ...).
      inputs: anything that the encoder takes, indexed by row.
      path: the file.
      batch_size: inputs that are encoded at a time.
      dtype: of the file, float32 or float16.
      progress: called with (rows done, of all).

    Returns:
      the array, memory-mapped.

    Raises:
      UsageError: no inputs; rows that are not one per input, not finite, or of another
        shape than the first.
      FileExistsError: the file, or what an interrupted call left, holds an array of
        other rows, of other inputs or of another encoder.
    """
    path, count = pathlib.Path(path), len(inputs)
    if path.suffix != ".npy" or count == 0 or dtype not in ("float32", "float16"):
        raise UsageError(
            f"expected a file NAME.npy, at least one input, and float32 or float16; "
            f"got {path}, {count} inputs and {dtype}"
        )
    if path.is_file():
        done = np.load(path, mmap_mode="r")
        _check_rows(path, done, count, count, dtype)
        _check_origin(path, done, count, encoder, inputs, batch_size)
        return done
    path.parent.mkdir(parents=True, exist_ok=True)
    partial, state = (path.with_name(f".{path.name}{s}") for s in (".partial", ".json"))
    start, out = 0, None
    if partial.is_file() and state.is_file():
        start = int(json.loads(state.read_text())["rows"])
        out = np.lib.format.open_memmap(partial, "r+")
        _check_rows(partial, out, start, count, dtype)
        _check_origin(partial, out, start, encoder, inputs, batch_size)
    for first in range(start, count, batch_size):
        rows = [inputs[i] for i in range(first, min(first + batch_size, count))]
        values = np.asarray(encoder(rows), dtype)
        shape = (len(rows), *(values.shape[1:] if out is None else out.shape[1:]))
        if values.ndim == 0 or values.shape != shape:
            raise UsageError(
                f"the encoder made {values.shape} of {len(rows)} inputs, expected "
                f"{shape}"
            )
        if not np.isfinite(values).all():
            bad = first + int(np.argwhere(~np.isfinite(values))[0][0])
            raise UsageError(f"the encoder made NaN or infinity of input {bad}")
        if out is None:
            shape = (count, *values.shape[1:])
            out = np.lib.format.open_memmap(partial, "w+", dtype, shape)
        out[first : first + len(rows)] = values
        out.flush()
        files.write_json(state, {"rows": first + len(rows)})
        if progress is not None:
            progress(first + len(rows), count)
    del out
    files.sync(partial)
    partial.rename(path)
    state.unlink(missing_ok=True)
    return np.load(path, mmap_mode="r")


def _check_rows(path, array, done, count, dtype) -> None:
    """Raises FileExistsError unless `array` is to have `count` rows of `dtype`."""
    if len(array) != count or array.dtype != dtype or done > count:
        raise FileExistsError(
            f"{path} holds {array.dtype} {array.shape}, not {count:,} rows of {dtype}; "
            "choose another file or remove it"
        )


def _check_origin(path, array, done, encoder, inputs, batch_size) -> None:
    """Raises FileExistsError unless the encoder makes the rows that are there.

    Up to TOLERANCE of a row's largest number, for what other batches and devices round.
    """
    rows = np.unique(np.linspace(0, done - 1, min(batch_size, done)).astype(int))
    made = np.asarray(encoder([inputs[i] for i in rows]), np.float64)
    there = np.asarray(array[rows], np.float64)
    differ = range(len(rows))
    if made.shape == there.shape:
        axes = tuple(range(1, made.ndim))
        error = np.abs(made - there).max(axes, initial=0)
        size = np.abs(there).max(axes, initial=0)
        differ = np.flatnonzero(~(error <= TOLERANCE * size))
    if len(differ):
        raise FileExistsError(
            f"{path} holds what another encoder, or other inputs, made: of "
            f"{len(rows):,} rows that were encoded again {len(differ):,} differ, the "
            f"first is row {rows[differ[0]]}; choose another file or remove it"
        )
