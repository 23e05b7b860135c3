"""Pairwise distances in blocks, so that 30k x 30k never lies in memory at once."""

import numpy as np

from unclip_jax.errors import UsageError

BLOCK_BYTES = 64 * 2**20  # of one block of float64 distances


def blocks(rows, columns):
    """Yield slices over `rows` such that slice x columns float64 fits a block."""
    size = max(1, BLOCK_BYTES // (8 * max(columns, 1)))
    for start in range(0, rows, size):
        yield slice(start, min(start + size, rows))


def squared_distances(x, y):
    """|x_i - y_j|^2 for x (N, D), y (M, D) float64: (N, M), exactly 0 for equal rows.

    The expanded square is one matrix product, but leaves about 1e-16 * |x|^2 where
    the truth is 0; what lies below rounding is therefore set to 0, so that `<=` and
    `<` mean what they say for duplicated images.
    """
    xx = np.einsum("nd,nd->n", x, x)[:, None]
    yy = np.einsum("md,md->m", y, y)[None, :]
    d2 = xx + yy - 2.0 * (x @ y.T)
    d2[d2 < 1e-13 * (xx + yy)] = 0.0
    return d2


def neighbour_radii(x, k):
    """Squared distance of each row of x (N, D) to its k-th nearest other row: (N,).

    Raises:
      UsageError: if there are not more than k rows.
    """
    n = x.shape[0]
    if k < 1 or n <= k:
        raise UsageError(f"k = {k} neighbours need 1 <= k < {n}, the number of rows")
    radii = np.empty(n)
    for rows in blocks(n, n):
        d2 = squared_distances(x[rows], x)
        # A row's distance to itself counts as the smallest, whatever the duplicates.
        d2[np.arange(d2.shape[0]), np.arange(rows.start, rows.stop)] = -1.0
        radii[rows] = np.partition(d2, k, axis=1)[:, k]
    return radii


def centred(x, y):
    """Subtract y's mean from both: same distances, less rounding."""
    mean = y.mean(axis=0)
    return x - mean, y - mean
