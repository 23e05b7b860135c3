"""A report on arrays before anybody trains on them; nothing is written."""

import numpy as np

from unclip_jax.data.aligned.alignment import Alignment, Column, chunks


def report(alignment: Alignment, say=print) -> None:
    """Prints shapes, norms, NaNs, duplicates, keys, constant dimensions, splits."""
    for column in alignment.columns:
        array = column.array
        size = f", {column.size:,} of them" if column.size else ""
        say(f"{column.name}: {column.kind}{size}, {array.dtype} {array.shape}")
        for line in _keys(column):
            say(f"  {line}")
        floats = array.dtype.kind == "f"
        for line in _floats(column) if floats else _integers(column):
            say(f"  {line}")
    say(f"{int(alignment.keep.sum()):,} of {len(alignment.keep):,} examples are used")
    for reason, count in alignment.left_out.items():
        say(f"  left out: {count:,}, {reason}")
    for name, rows in alignment.splits.items():
        say(f"  split {name}: {len(rows):,}")


def _keys(column: Column):
    if absent := int((column.rows < 0).sum()):
        yield f"{absent:,} rows of the target have no key here"
    if column.unused:
        yield f"{column.unused:,} rows have keys that the target has not"


def _floats(column: Column):
    array = column.array
    rows = np.arange(len(array))
    width = array.shape[-1]
    low, high = np.full(width, np.inf), np.full(width, -np.inf)
    norms, bad, seen, repeated = [], 0, set(), 0
    for part, values in chunks(array, rows):
        wide = values.astype(np.float64)
        finite = np.isfinite(wide)
        whole = finite.reshape(len(wide), -1).all(1)
        bad += int((~whole).sum())
        norms.append(np.linalg.norm(wide[whole], axis=-1).ravel())
        if column.mask is not None:
            finite &= np.asarray(column.mask[rows[part]]).astype(bool)[..., None]
        flat, seen_here = wide.reshape(-1, width), finite.reshape(-1, width)
        low = np.minimum(low, np.where(seen_here, flat, np.inf).min(0))
        high = np.maximum(high, np.where(seen_here, flat, -np.inf).max(0))
        for row in values:
            key = hash(row.tobytes())
            repeated += key in seen
            seen.add(key)
    norm = np.concatenate(norms)
    if norm.size:
        yield (
            f"norm: {norm.mean():.4g} +- {norm.std():.3g} ({norm.min():.4g} to "
            f"{norm.max():.4g})"
        )
    if zeros := int((norm == 0).sum()):
        yield f"{zeros:,} norms are 0"
    if bad:
        yield f"{bad:,} rows hold NaN or infinity"
    if repeated:
        yield f"{repeated:,} rows are there more than once"
    if constant := int((low == high).sum()):
        yield f"{constant:,} of {width:,} dimensions are constant"
    if never := int((low > high).sum()):
        yield f"{never:,} of {width:,} dimensions are never there"


def _integers(column: Column):
    negative, used = 0, set()
    for _, values in chunks(column.array, np.arange(len(column.array))):
        negative += int((values < 0).sum())
        used.update(np.unique(values[values >= 0]).tolist())
    yield f"{len(used):,} different numbers, {min(used)} to {max(used)}"
    if negative:
        yield f"{negative:,} are negative: nothing there"
