"""What a Prior is given: conditions as numpy arrays, checked and completed."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from unclip_jax.errors import UsageError
from unclip_jax.models.conditions import FLOATS, MASK, Condition

Arrays = Mapping[str, Any]


def check_conditions(
    conditions: Mapping[str, Condition], given: Arrays, where: str, rows: int
) -> dict[str, Any]:
    """{"arrays": {name: array}, "missing": {name: (B,) bool}}, of every condition.

    Args:
      conditions: the prior's.
      given: {name: array}, and NAME_mask; what is left out is missing from every row.
      where: what they are, for messages.
      rows: how many there must be; 0: any number.

    Raises:
      UsageError: unknown names, shapes or numbers that cannot be, no rows.
    """
    names = [*conditions, *(name + MASK for name in conditions)]
    if unknown := [name for name in given if name not in names]:
        raise UsageError(
            f"{where}: the prior knows no {unknown[0]!r}; its conditions are "
            f"{', '.join(conditions)}"
        )
    arrays: dict[str, np.ndarray] = {}
    for name, condition in conditions.items():
        if name in given:
            mask = given.get(name + MASK)
            own = _check_array(given[name], mask, condition, f"{where}: {name}")
            arrays |= {name + suffix: x for suffix, x in own.items()}
    lengths = {name: len(x) for name, x in arrays.items()}
    rows = rows or max(lengths.values(), default=0)
    if not rows or set(lengths.values()) != {rows}:
        raise UsageError(
            f"{where}: expected at least one row, and {rows or 'as many'} of each; "
            f"got {lengths or 'no condition'}"
        )
    missing = {name: np.full(rows, name not in arrays) for name in conditions}
    for name, condition in conditions.items():
        if name not in arrays:
            zero = np.zeros((), "float32" if condition.kind in FLOATS else "int32")
            arrays[name] = np.broadcast_to(zero, (rows, *condition.shape))
        if condition.kind in FLOATS and name + MASK not in arrays:
            shape = arrays[name].shape[:-1]
            arrays[name + MASK] = np.broadcast_to(np.array(True), shape)
    return {"arrays": arrays, "missing": missing}


def _check_array(given, mask, condition: Condition, where: str):
    """{"": array, MASK: its mask, if it has one}, of the types the model takes.

    Raises UsageError for shapes and values that cannot be.
    """
    x, shape = np.asarray(given), list(condition.shape)
    if condition.kind == "repeats" and x.ndim == 3:
        shape[0] = x.shape[1]  # however many there are
    if x.shape[1:] != tuple(shape) or x.ndim != len(shape) + 1:
        sizes = "".join(f", {size}" for size in condition.shape)
        raise UsageError(f"{where} has shape {x.shape}, expected (rows{sizes})")
    if condition.kind not in FLOATS:
        if mask is not None or x.dtype.kind not in "iub":
            raise UsageError(
                f"{where} is {x.dtype}; expected whole numbers without a mask, "
                "negative where there is none"
            )
        if x.size and x.max() >= (condition.size or 0):
            raise UsageError(
                f"{where} holds {x.max()}, expected numbers below {condition.size}"
            )
        return {"": x.astype(np.int32)}
    if x.dtype.kind not in "fiub":
        raise UsageError(f"{where} is {x.dtype}, expected numbers")
    x, own = x.astype(np.float32), {}
    if mask is not None:
        mask = np.asarray(mask, bool)
        if mask.shape != x.shape[:-1]:
            raise UsageError(
                f"{where}{MASK} has shape {mask.shape}, expected {x.shape[:-1]}"
            )
        x, own = np.where(mask[..., None], x, 0), {MASK: mask}
    finite = np.isfinite(x).reshape(len(x), -1).all(1)
    if not finite.all():
        bad = np.flatnonzero(~finite)
        raise UsageError(
            f"{where}: {len(bad)} rows hold NaN or infinity, e.g. row {bad[0]}; mask "
            f"them with an array NAME{MASK}, or leave them out"
        )
    return {"": x, **own}
