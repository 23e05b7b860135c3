"""Do tensors fit the module that a config describes?"""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from unclip_jax.errors import UsageError
from unclip_jax.interop.native import leaves
from unclip_jax.interop.weights import is_float


def check_tensors(
    params: Mapping[str, Any], expected: Mapping[str, Any], where: str
) -> None:
    """Raises UsageError listing every tensor that is missing or cannot be.

    Args:
      params: nested dict of arrays.
      expected: the same of anything with a `.shape`.
      where: what the tensors are, for the message.
    """
    arrays, likes = dict(leaves(params)), dict(leaves(expected))
    found = {name: tuple(a.shape) for name, a in arrays.items()}
    wanted = {name: tuple(a.shape) for name, a in likes.items()}
    shapes = [
        f"{name} {found[name]} instead of {wanted[name]}"
        for name in sorted(found.keys() & wanted.keys())
        if found[name] != wanted[name]
    ]
    problems = list_problems(
        {
            "missing": wanted.keys() - found.keys(),
            "unexpected": found.keys() - wanted.keys(),
            "of another shape": shapes,
            "of another type": [
                f"{name} {arrays[name].dtype}"
                for name in sorted(found.keys() & wanted.keys())
                if is_float(arrays[name].dtype) != is_float(likes[name].dtype)
            ],
            "not finite": [
                name
                for name, a in sorted(arrays.items())
                if isinstance(a, np.ndarray) and is_float(a.dtype)
                if not np.isfinite(a).all()
            ],
        }
    )
    if problems:
        raise UsageError(f"{where} does not fit its config; tensors {problems}")


def list_problems(names: Mapping[str, Iterable[str]]) -> str:
    """Returns "2 missing: a, b; 1 unexpected: c"; "" where there are none."""
    kinds = {kind: sorted(those) for kind, those in names.items()}
    return "; ".join(f"{len(n)} {k}: {', '.join(n)}" for k, n in kinds.items() if n)
