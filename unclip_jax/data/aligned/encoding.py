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
    file of as many rows is kept.

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
      FileExistsError: the file holds an array of other rows.
    """
    path, count = pathlib.Path(path), len(inputs)
    if path.suffix != ".npy" or count == 0 or dtype not in ("float32", "float16"):
        raise UsageError(
            f"expected a file NAME.npy, at least one input, and float32 or float16; "
            f"got {path}, {count} inputs and {dtype}"
        )
    if path.is_file():
        done = np.load(path, mmap_mode="r")
        if len(done) != count or done.dtype != dtype:
            raise FileExistsError(
                f"{path} holds {done.dtype} {done.shape}, not {count:,} rows of "
                f"{dtype}; choose another file or remove it"
            )
        return done
    path.parent.mkdir(parents=True, exist_ok=True)
    partial, state = (path.with_name(f".{path.name}{s}") for s in (".partial", ".json"))
    start = _rows_done(partial, state, count, dtype)
    out = np.lib.format.open_memmap(partial, "r+") if start else None
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
        about = {"rows": first + len(rows), "count": count, "dtype": dtype}
        files.write_json(state, about)
        if progress is not None:
            progress(first + len(rows), count)
    del out
    files.sync(partial)
    partial.rename(path)
    state.unlink(missing_ok=True)
    return np.load(path, mmap_mode="r")


def _rows_done(partial, state, count, dtype) -> int:
    """Rows that an interrupted call left; 0 where it was of other inputs."""
    if not (partial.is_file() and state.is_file()):
        return 0
    about = json.loads(state.read_text())
    same = about.get("count") == count and about.get("dtype") == dtype
    return int(about["rows"]) if same else 0
