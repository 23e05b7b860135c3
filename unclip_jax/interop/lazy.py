"""Arrays that are read when numpy asks for them: a model is never whole in memory.

What is made of them (a slice, another layout) is again such an array.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True, eq=False)
class Lazy:
    """An array somewhere else.

    Attributes:
      shape, dtype: of the array.
      make: returns it.
      order: arrays of equal `order` are made from one that is read; take them in turn.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    make: Callable[[], np.ndarray]
    order: int = 0

    @property
    def size(self) -> int:
        """The number of elements."""
        return int(np.prod(self.shape))

    def __array__(self, dtype=None, copy=None):
        del copy  # always newly read
        return np.asarray(self.make(), dtype)


def tree(shapes: Mapping[str, Any], read: Callable[[str], np.ndarray]) -> dict:
    """Nested dict of Lazy.

    Args:
      shapes: nested dict of anything with `shape` and `dtype`.
      read: from the '/'-joined name of an array to the array.
    """
    counter = iter(range(10**9))

    def walk(node, prefix):
        return {
            key: walk(value, f"{prefix}{key}/")
            if isinstance(value, Mapping)
            else _leaf(f"{prefix}{key}", value)
            for key, value in node.items()
        }

    def _leaf(name, like):
        dtype = np.dtype(like.dtype)
        return Lazy(tuple(like.shape), dtype, lambda: read(name), next(counter))

    return walk(shapes, "")


def apply(function: Callable, a, shape=None):
    """function(array), or what will be it when `a` is Lazy.

    Args:
      function: changes no dtype.
      a: an array or Lazy.
      shape: of the result; None is that of `a`.
    """
    if not isinstance(a, Lazy):
        return function(np.asarray(a))
    shape = a.shape if shape is None else tuple(shape)
    return Lazy(shape, a.dtype, lambda: function(np.asarray(a)), a.order)


def concatenate(arrays):
    """np.concatenate of arrays, or of Lazy ones."""
    if not any(isinstance(a, Lazy) for a in arrays):
        return np.concatenate(arrays)
    first = arrays[0]
    shape = sum(a.shape[0] for a in arrays), *first.shape[1:]
    make = lambda: np.concatenate([np.asarray(a) for a in arrays])  # noqa: E731
    return Lazy(shape, first.dtype, make, first.order)
