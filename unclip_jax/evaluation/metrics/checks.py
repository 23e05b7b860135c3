"""Checks every metric makes on the features it is given."""

import numpy as np

from unclip_jax.errors import UsageError


def as_features(x, name="features", minimum=1, dtype=np.float64):
    """Return `x` as float64 (N, D), or say precisely what is wrong with it.

    Args:
      x: array (N, D) of any float dtype; row i belongs to image (or text) i.
      name: what to call the array in an error.
      minimum: the least number of rows the caller can work with.
      dtype: another one, or None to leave it (and not to copy).

    Raises:
      UsageError: wrong rank, too few rows, no columns, or a NaN / infinite row (the
        first such rows are named).
    """
    x = np.asarray(x, dtype=dtype)
    if x.ndim != 2 or x.shape[1] == 0:
        raise UsageError(f"{name}: expected an array (N, D), got shape {x.shape}")
    if x.shape[0] < minimum:
        raise UsageError(
            f"{name}: {x.shape[0]} rows, but at least {minimum} are needed; "
            "evaluate more images"
        )
    bad = np.flatnonzero(~np.isfinite(x).all(axis=1))
    if bad.size:
        rows = ", ".join(map(str, bad[:5])) + (", ..." if bad.size > 5 else "")
        raise UsageError(
            f"{name}: {bad.size} of {x.shape[0]} rows hold NaN or infinity "
            f"(rows {rows}); look at those images and at the weights"
        )
    return x


def same_width(x, y, names=("generated", "reference")):
    """Raise UsageError unless two feature sets (N, D), (M, D) have the same D."""
    if x.shape[1] != y.shape[1]:
        raise UsageError(
            f"{names[0]} features are {x.shape[1]} wide and {names[1]} features "
            f"{y.shape[1]}; both must come from the same feature extractor"
        )


def same_rows(x, y, names=("image", "text")):
    """Raise UsageError unless two paired sets (N, D), (N, D) have the same shape."""
    if x.shape != y.shape:
        raise UsageError(
            f"{names[0]} features {x.shape} and {names[1]} features {y.shape} "
            "must be paired row by row and equally wide"
        )


def unit_rows(x):
    """L2-normalise the rows of x (N, D); a zero row stays zero."""
    norm = np.linalg.norm(x, axis=-1, keepdims=True)
    return x / np.where(norm > 0, norm, 1.0)


def paired_cosine(x, y):
    """Cosine of row i of x (N, D) with row i of y (N, D): float64 (N,)."""
    return np.einsum("nd,nd->n", unit_rows(x), unit_rows(y))
