"""Low-rank adaptation: frozen kernels, to which products of two thin ones are added.

W + (alpha / rank) A B (Hu et al. 2021, section 4.1): A (in, rank) starts uniform as
PEFT's does, B (rank, out) with zeros, so that nothing changes at first. Kernels of
stacked blocks have a leading axis, which A and B have too.
"""

import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from unclip_jax.errors import UsageError


def init_adapters(rng, params: Mapping[str, Any], rank: int, targets: str):
    """Makes A and B of the kernels whose '/'-joined path `targets` is found in.

    Args:
      rng: key.
      params: nested dict of arrays or ShapeDtypeStructs.
      rank: of the products.
      targets: a regular expression.

    Returns:
      Nested dict: {"a", "b"} where `params` has a "kernel".

    Raises:
      UsageError: no kernel of a dense layer is matched, a convolution's is, or the rank
        is larger than a kernel.
    """
    shapes = find_kernels(params, targets)
    adapters: dict[str, Any] = {}
    for i, (name, shape) in enumerate(sorted(shapes.items())):
        *stack, rows, columns = shape
        if rank > min(rows, columns):
            raise UsageError(
                f"config.lora.rank {rank}: {name} is only {rows} x {columns}"
            )
        bound = rows**-0.5  # PEFT: Kaiming's for a = sqrt(5)
        key = jax.random.fold_in(rng, i)
        a = jax.random.uniform(key, (*stack, rows, rank), minval=-bound, maxval=bound)
        node = adapters
        for part in name.split("/")[:-1]:
            node = node.setdefault(part, {})
        node |= {"a": a, "b": jnp.zeros((*stack, rank, columns))}
    return adapters


def find_kernels(params: Mapping[str, Any], targets: str) -> dict[str, tuple[int, ...]]:
    """{path: shape} of the kernels that `targets` is found in; raises as above."""
    flat = jax.tree_util.tree_flatten_with_path(params)[0]
    names = {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf.shape
        for path, leaf in flat
    }
    kernels = {n: s for n, s in names.items() if n.rpartition("/")[2] == "kernel"}
    found = {n: s for n, s in kernels.items() if re.search(targets, n)}
    if not found:
        raise UsageError(
            f"config.lora.targets {targets!r} is found in no kernel; there are "
            f"{', '.join(sorted(kernels)[:5])}, ..."
        )
    for name, shape in found.items():
        if len(shape) != 2 + ("blocks" in name.split("/")):
            raise UsageError(
                f"config.lora.targets {targets!r} is found in {name}, of shape "
                f"{shape}: only dense layers are adapted"
            )
    return found


def merge_adapters(params: Mapping[str, Any], adapters: Mapping[str, Any], scale):
    """The parameters with scale A B added to the kernels that `adapters` has.

    Of numpy or jax arrays; sums are float32.
    """
    if set(adapters) == {"a", "b"}:
        kernel, a, b = params["kernel"], adapters["a"], adapters["b"]
        if isinstance(kernel, np.ndarray):
            a, b = np.asarray(a), np.asarray(b)
        return {**params, "kernel": kernel + np.float32(scale) * (a @ b)}
    merged = {k: merge_adapters(params[k], v, scale) for k, v in adapters.items()}
    return {**params, **merged}
