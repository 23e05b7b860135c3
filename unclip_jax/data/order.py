"""The order of training examples: a pure function of (seed, step).

Example number g of a run (g = step * batch_size + row) belongs to epoch g // n and is
the example whose index is the epoch's keyed permutation of g % n. Nothing is stored,
so resuming at any step costs the same, and the global batch of a step does not depend
on how many processes read it.

The permutation is a generalised Feistel network on pairs (left, right) with
left < a, right < b and a * b just above n, and cycle walking for what falls outside
(Black and Rogaway, "Ciphers with arbitrary finite domains", CT-RSA 2002). Everything is
vectorised over indices and epochs; memory is that of one batch.
"""

import math
from typing import Any

import numpy as np

from unclip_jax.errors import UsageError

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_CAPTIONS = 0xCA  # keeps these keys apart from those of the order
_CROPS = 0xCB  # likewise
_ROUNDS = 8  # four are enough for a random-looking order; eight cost nothing


def mix(x) -> np.ndarray:
    """splitmix64's finaliser: a bijection of 64-bit words that looks random.

    Args:
      x: integers of any shape, taken modulo 2**64.

    Returns:
      uint64 of the same shape.
    """
    x = _words(x)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def make_key(*numbers) -> Any:
    """One uint64 key from integers (arrays broadcast): other numbers, another key."""
    with np.errstate(over="ignore"):  # scalars warn where arrays wrap around
        key = np.uint64(0)
        for number in numbers:
            key = mix(mix(_words(number) + _GOLDEN) + key * _GOLDEN + _GOLDEN)
        return key


def permute(index, n: int, key) -> np.ndarray:
    """The keyed permutation of range(n) at some indices.

    Args:
      index: int (B,) each in [0, n).
      n: how many there are, at least 1.
      key: uint64, one or (B,) (see `make_key`).

    Returns:
      int64 (B,) in [0, n); over all indices, each value appears once per key.
    """
    index = np.asarray(index, dtype=np.int64)
    if n < 1:
        raise UsageError(f"a permutation needs at least one example, got n={n}")
    if index.size and (index.min() < 0 or index.max() >= n):
        raise UsageError(
            f"indices must lie in [0, {n}), got {index.min()}..{index.max()}"
        )
    keys = np.broadcast_to(np.asarray(key, dtype=np.uint64), index.shape)
    out = _feistel(index, n, keys)
    outside = np.flatnonzero(out >= n)
    while outside.size:  # walk along the cycle until inside; a * b < n + 2 sqrt(n) + 1
        out[outside] = _feistel(out[outside], n, keys[outside])
        outside = outside[out[outside] >= n]
    return out


def batch_indices(
    seed: int, step: int, batch_size: int, num_examples: int, rows=None
) -> np.ndarray:
    """Which examples the global batch of a step holds.

    Args:
      seed: of the run's data order.
      step: counted from 0; nothing earlier needs to have been read.
      batch_size: global.
      num_examples: in the data set; each epoch shows every one exactly once.
      rows: int (B,), numbers of rows in the global batch; None for all.

    Returns:
      int64 (B,) indices in [0, num_examples).
    """
    if step < 0 or batch_size < 1:
        raise UsageError(
            f"step must be >= 0 and batch_size >= 1, got {step} and {batch_size}"
        )
    if num_examples < 1:
        raise UsageError(f"the data set is empty ({num_examples} examples)")
    number = _example_numbers(step, batch_size, rows)
    epoch, place = np.divmod(number, num_examples)
    return permute(place, num_examples, make_key(seed, epoch))


def caption_indices(
    seed: int, step: int, batch_size: int, num_examples: int, indices, rows=None
) -> np.ndarray:
    """Which of its captions each example of a step is read with, modulo their number.

    An example begins with any of them and goes on with the next one in each epoch, so
    that m captions are all read in m epochs.

    Args:
      seed, step, batch_size, num_examples, rows: as for `batch_indices`.
      indices: int64 (B,), its result.

    Returns:
      int64 (B,), at least 0.
    """
    number = _example_numbers(step, batch_size, rows)
    first = make_key(seed, _CAPTIONS, indices) >> np.uint64(33)
    return first.astype(np.int64) + number // num_examples


def crop_positions(seed: int, step: int, rows) -> np.ndarray:
    """Where along its longer side the square of each example lies that training sees.

    Args:
      seed, step: of the batch.
      rows: int (B,), numbers of the rows in the global batch.

    Returns:
      float64 (B,), uniform in [0, 1).
    """
    return (make_key(seed, _CROPS, step, rows) >> np.uint64(11)) * 2.0**-53


def _example_numbers(step, batch_size, rows) -> np.ndarray:
    """Numbers of a step's examples, counted from the beginning of the run."""
    rows = np.arange(batch_size) if rows is None else np.asarray(rows)
    return step * batch_size + rows.astype(np.int64)


def _words(x) -> Any:
    """uint64; Python integers of any sign and size are taken modulo 2**64."""
    if isinstance(x, int):
        return np.uint64(x % 2**64)
    return np.asarray(x).astype(np.uint64)


def _feistel(x, n, keys):
    """One pass over the domain [0, a * b), a * b >= n: int64 (B,) -> int64 (B,)."""
    a = math.isqrt(n - 1) + 1  # ceil(sqrt(n))
    b = -(-n // a)
    left, right = (part.astype(np.uint64) for part in np.divmod(x, b))
    a, b, b_signed = np.uint64(a), np.uint64(b), b
    for i in range(_ROUNDS):
        with np.errstate(over="ignore"):
            salt = keys + np.uint64(i + 1) * _GOLDEN
        if i % 2 == 0:
            left = (left + mix(mix(right + salt) ^ keys) % a) % a
        else:
            right = (right + mix(mix(left + salt) ^ keys) % b) % b
    return left.astype(np.int64) * b_signed + right.astype(np.int64)
