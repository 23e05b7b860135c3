"""Where each array of a state lives: path-regex rules, then automatic FSDP.

A rule is `(regex, spec)`: the regex is searched in the leaf's path ("params/block_0/
attention/query/kernel", "opt_state/1/0/mu/...", "ema/..."), the spec names a mesh axis
(or a tuple of them, or None) for each array axis from the left; `()` replicates. The
first rule that matches decides. Leaves without a rule are split along their largest
axis divisible by the mesh's fsdp axis when they have at least `min_size` elements.

Misspelt rules that silently replicate are the classic failure, so a rule that decides
nothing is an error, and so is a large leaf that nothing could split.
"""

import dataclasses
import math
import re
from collections.abc import Sequence
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from unclip_jax.errors import UsageError
from unclip_jax.parallel.mesh import BATCH_AXES

Rule = tuple[str, Sequence[Any]]
MIN_SIZE = 2**16  # elements; smaller leaves cost more to gather than to keep


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of the table of `describe`."""

    path: str
    shape: tuple[int, ...]
    spec: P
    bytes_per_device: int


def state_shardings(
    tree: Any,
    mesh: Mesh,
    rules: Sequence[Rule] = (),
    min_size: int = MIN_SIZE,
) -> Any:
    """NamedSharding for each leaf of `tree` (arrays or ShapeDtypeStructs).

    Raises:
      UsageError: a rule that decides nothing, names an unknown mesh axis or does not
        fit its leaf, or a leaf of at least `min_size` elements left replicated while
        fsdp > 1.
    """
    parsed = [_parse(rule, mesh) for rule in _as_list(rules, "config.sharding_rules")]
    used = set()
    leaves, treedef = jax.tree_util.tree_flatten_with_path(tree)
    specs = []
    for path, leaf in leaves:
        name = path_name(path)
        decider = next((r for r in parsed if re.search(r[0], name)), None)
        if decider is None:
            specs.append(_automatic(name, leaf.shape, mesh, min_size))
        else:
            used.add(decider[0])
            specs.append(_fitting(*decider, name, leaf.shape, mesh))
    unused = [regex for regex, _ in parsed if regex not in used]
    if unused:
        raise UsageError(
            f"sharding rule {unused[0]!r} decides nothing: no path matches it, or an "
            f"earlier rule takes all that do; paths look like {_examples(leaves)}"
        )
    return jax.tree.unflatten(treedef, [NamedSharding(mesh, spec) for spec in specs])


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Leading axis over data and fsdp."""
    return NamedSharding(mesh, P(BATCH_AXES))


def replicated(mesh: Mesh) -> NamedSharding:
    """The whole array on each device."""
    return NamedSharding(mesh, P())


def path_name(path: Sequence[Any]) -> str:
    """'/'-joined name of a key path of jax.tree_util."""
    return jax.tree_util.keystr(tuple(path), simple=True, separator="/")


def describe(tree: Any, shardings: Any) -> list[Row]:
    """Path, shape, spec and bytes per device of each leaf, in tree order."""
    rows = []
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    for (path, leaf), sharding in zip(leaves, jax.tree.leaves(shardings), strict=True):
        shard = sharding.shard_shape(leaf.shape)
        size = math.prod(shard) * leaf.dtype.itemsize
        rows.append(Row(path_name(path), tuple(leaf.shape), sharding.spec, size))
    return rows


def table(rows: Sequence[Row]) -> str:
    """The rows as aligned text, with the total bytes per device last."""
    cells = [("path", "shape", "spec", "bytes/device")]
    for row in rows:
        shape = "x".join(map(str, row.shape)) or "scalar"
        cells.append((row.path, shape, _said(row), f"{row.bytes_per_device:,}"))
    cells.append(("total", "", "", f"{sum(r.bytes_per_device for r in rows):,}"))
    return _aligned(cells)


def summary(rows: Sequence[Row]) -> str:
    """A line for each part of the state (params, ema, ...) and each way to split it."""
    found: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        found.setdefault((row.path.partition("/")[0], _said(row)), []).append(row)
    cells = [("state", "spec", "arrays", "elements", "bytes/device")]
    for (part, spec), group in found.items():
        elements = sum(math.prod(row.shape) for row in group)
        size = sum(row.bytes_per_device for row in group)
        cells.append((part, spec, str(len(group)), f"{elements:,}", f"{size:,}"))
    total = sum(row.bytes_per_device for row in rows)
    cells.append(("total", "", str(len(rows)), "", f"{total:,}"))
    return _aligned(cells)


def _said(row: Row) -> str:
    return ", ".join(map(str, row.spec)) or "-"


def _aligned(cells: Sequence[tuple[str, ...]]) -> str:
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in cells)


def _as_list(value: Any, where: str) -> list[Any]:
    if not isinstance(value, list | tuple):
        raise UsageError(f"{where} must be a tuple, got {value!r}")
    return list(value)


def _parse(rule: Any, mesh: Mesh) -> tuple[str, P]:
    if len(_as_list(rule, "a sharding rule")) != 2 or not isinstance(rule[0], str):
        raise UsageError(f"a sharding rule must be (regex, axes), got {rule!r}")
    regex, spec = rule
    try:
        re.compile(regex)
    except re.error as error:
        raise UsageError(f"sharding rule {regex!r} is no regex: {error}") from error
    spec = _as_list(
        spec, f"the axes of sharding rule {regex!r}, one for each of an array,"
    )
    entries = [tuple(e) if isinstance(e, list | tuple) else e for e in spec]
    for entry in entries:
        for axis in entry if isinstance(entry, tuple) else (entry,):
            if axis is not None and axis not in mesh.axis_names:
                raise UsageError(
                    f"sharding rule {regex!r} names the mesh axis {axis!r}; there are "
                    f"{', '.join(mesh.shape)}"
                )
    return regex, P(*entries)


def _fitting(regex: str, spec: P, name: str, shape: tuple[int, ...], mesh: Mesh) -> P:
    if len(spec) > len(shape):
        raise UsageError(
            f"sharding rule {regex!r} gives {len(spec)} axes to {name} of shape {shape}"
        )
    for axis, (size, entry) in enumerate(zip(shape, spec, strict=False)):
        axes = entry if isinstance(entry, tuple) else (entry,)
        parts = math.prod(mesh.shape[a] for a in axes if a is not None)
        if size % parts:
            raise UsageError(
                f"sharding rule {regex!r} splits axis {axis} of {name}, of size "
                f"{size}, into {parts} parts; {size} is not divisible by {parts}"
            )
    return spec


def _automatic(name: str, shape: tuple[int, ...], mesh: Mesh, min_size: int) -> P:
    parts = mesh.shape["fsdp"]
    if parts == 1 or math.prod(shape) < min_size:
        return P()
    divisible = [axis for axis, size in enumerate(shape) if size % parts == 0]
    if not divisible:
        raise UsageError(
            f"{name} of shape {shape} has {math.prod(shape):,} elements and no axis "
            f"divisible by fsdp={parts}: it would be replicated on every device; "
            "change its size or fsdp, or give it a sharding rule (spec () replicates)"
        )
    best = max(divisible, key=lambda axis: (shape[axis], axis))
    return P(*("fsdp" if axis == best else None for axis in range(best + 1)))


def _examples(leaves: Sequence[Any], count: int = 3) -> str:
    # Longest names first: scalars such as "step" would teach nothing.
    names = sorted({path_name(path) for path, _ in leaves}, key=len, reverse=True)
    return ", ".join(names[:count])
