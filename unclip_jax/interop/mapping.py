"""Tables between our parameters and other libraries' tensors, used both ways.

A table is a list of `Entry`: our '/'-joined path, their name, and the layout that
turns one array into the other. The same table loads, saves and, on shapes alone,
proves that a model of full size has every tensor of a public checkpoint.

Our side of a table names blocks one by one (`block_0`, `block_1`, ...); models with
`scan_layers` keep them stacked under `blocks`, see `stack_blocks`.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from unclip_jax.errors import UsageError
from unclip_jax.interop import lazy
from unclip_jax.interop.native import flatten, leaves, unflatten
from unclip_jax.interop.tensor_checks import list_problems


@dataclasses.dataclass(frozen=True)
class Layout:
    """An axis permutation of theirs that gives ours, and leading axes of size 1.

    Attributes:
      permutation: their axes in our order, None to leave them.
      lead: axes of size 1 that theirs has in front and ours has not.
    """

    permutation: tuple[int, ...] | None = None
    lead: int = 0

    def from_torch(self, a):
        """Their array -> ours."""
        a = a.reshape(a.shape[self.lead :])
        return a if self.permutation is None else a.transpose(self.permutation)

    def to_torch(self, a):
        """Our array -> theirs."""
        if self.permutation is not None:
            a = a.transpose(np.argsort(self.permutation))
        return a.reshape((1,) * self.lead + a.shape)

    def their_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        """The shape of their array for ours."""
        return self.to_torch(np.broadcast_to(np.float32(0), shape)).shape


IDENTITY = Layout()
DENSE = Layout((1, 0))  # [out, in] -> [in, out]
CONV = Layout((2, 3, 1, 0))  # OIHW -> HWIO
SQUEEZE_1 = Layout(lead=1)  # (1, ...) -> (...)
SQUEEZE_2 = Layout(lead=2)  # (1, 1, ...) -> (...)


@dataclasses.dataclass(frozen=True)
class Entry:
    """One tensor: our path, their name, the layout."""

    ours: str
    theirs: str
    layout: Layout = IDENTITY


def dense(ours: str, theirs: str, bias: bool = True) -> list[Entry]:
    """A Dense layer and their Linear."""
    entries = [Entry(f"{ours}/kernel", f"{theirs}.weight", DENSE)]
    return entries + [Entry(f"{ours}/bias", f"{theirs}.bias")] * bias


def conv(ours: str, theirs: str, bias: bool = True) -> list[Entry]:
    """A convolution."""
    entries = [Entry(f"{ours}/kernel", f"{theirs}.weight", CONV)]
    return entries + [Entry(f"{ours}/bias", f"{theirs}.bias")] * bias


def norm(ours: str, theirs: str) -> list[Entry]:
    """An affine normalisation; of `layers.LayerNorm` give the path of its `norm`."""
    return [
        Entry(f"{ours}/scale", f"{theirs}.weight"),
        Entry(f"{ours}/bias", f"{theirs}.bias"),
    ]


def from_torch(
    table: Sequence[Entry],
    tensors: Mapping[str, np.ndarray],
    where: str,
    ignore: Sequence[str] = (),
) -> dict[str, Any]:
    """Their tensors as our parameters, a nested dict.

    Args:
      table: every tensor that must be there.
      tensors: theirs.
      where: what they are, for messages.
      ignore: names that may be there and are not needed (buffers).

    Raises:
      UsageError: listing every missing and every unexpected name.
    """
    names = {e.theirs for e in table}
    problems = list_problems(
        {
            "missing": names - tensors.keys(),
            "unexpected": tensors.keys() - names - set(ignore),
        }
    )
    if problems:
        raise UsageError(f"{where}: the tensors do not fit its config; {problems}")
    ours = {}
    for e in table:
        try:
            ours[e.ours] = np.asarray(e.layout.from_torch(tensors[e.theirs]), order="C")
        except ValueError as error:
            shape = tensors[e.theirs].shape
            raise UsageError(f"{where}: {e.theirs} has shape {shape}") from error
    return unflatten(ours)


def to_torch(
    table: Sequence[Entry], params: Mapping[str, Any], keep: Sequence[str] = ()
) -> dict[str, np.ndarray | lazy.Lazy]:
    """Our parameters as their tensors, Lazy where ours are.

    Args:
      table: every tensor that they have.
      params: nested dict of arrays, blocks one by one.
      keep: our paths (prefixes) that their format has no place for.

    Raises:
      UsageError: listing parameters that the table does not know.
    """
    flat = dict(leaves(params))
    known = {e.ours for e in table}
    rest = [n for n in flat if n not in known and not n.startswith(tuple(keep) or "/")]
    if rest:
        raise UsageError(f"their format has no place for {', '.join(sorted(rest))}")
    return {
        e.theirs: lazy.apply(
            lambda a, e=e: np.asarray(e.layout.to_torch(a), order="C"),
            flat[e.ours],
            e.layout.their_shape(flat[e.ours].shape),
        )
        for e in table
    }


def stack_blocks(params: Mapping[str, Any]) -> dict[str, Any]:
    """`block_0`, `block_1`, ... -> `blocks`, stacked along a new leading axis."""
    if not isinstance(params, Mapping):
        return params
    numbered = [k for k in params if k.startswith("block_") and k[6:].isdigit()]
    rest = {k: stack_blocks(v) for k, v in params.items() if k not in numbered}
    if numbered:
        in_order = [flatten(params[f"block_{i}"]) for i in range(len(numbered))]
        stacked = {k: np.stack([b[k] for b in in_order]) for k in in_order[0]}
        rest["blocks"] = unflatten(stacked)
    return rest


def unstack_blocks(params: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `stack_blocks`."""
    if not isinstance(params, Mapping):
        return params
    rest = {k: unstack_blocks(v) for k, v in params.items() if k != "blocks"}
    if "blocks" in params:
        flat = dict(leaves(params["blocks"]))
        for i in range(next(iter(flat.values())).shape[0]):
            block = {
                k: lazy.apply(lambda a, i=i: a[i], a, a.shape[1:])
                for k, a in flat.items()
            }
            rest[f"block_{i}"] = unflatten(block)
    return rest
