"""Muon: orthogonal steps for the matrices inside a model, Adam's for the rest.

The momentum U S V^T of a matrix is replaced by U V^T, nearly, by five Newton-Schulz
iterations (Jordan et al. 2024), and the root mean square of that is brought to 0.2, the
usual one of AdamW (Liu et al. 2025, arXiv 2502.16982, section 2.2): learning rate
and weight decay are the same for all parameters.
"""

import math
import re
from typing import Any

import jax
import optax
from optax.contrib import MuonDimensionNumbers

from unclip_jax.parallel.sharding import path_name

RMS = 0.2  # of a step, before the learning rate
# what comes into a model and goes out of it is no map between hidden states
_INPUT_OR_OUTPUT = re.compile(r"(^|_)(in|out)/kernel$")


def matrices(params: Any) -> Any:
    """MuonDimensionNumbers for the leaves that are hidden matrices, None for others.

    These are the kernels of dense layers (in, out), alone or stacked by `scan_layers`,
    and of convolutions (h, w, in, out), each a matrix of h w in rows; without those of
    layers called `..._in` and `..._out`, the inputs and outputs of a model.
    """

    def axes(path, leaf):
        name = path_name(path)
        if not name.endswith("/kernel") or _INPUT_OR_OUTPUT.search(name):
            return None
        rows = (0, 1, 2) if leaf.ndim == 4 else (leaf.ndim - 2,)
        return MuonDimensionNumbers(rows, leaf.ndim - 1)

    return jax.tree_util.tree_map_with_path(axes, params)


def scale_by_muon(b1: float, b2: float, eps: float) -> optax.GradientTransformation:
    """The directions of descent, to be scaled by the learning rate.

    Args:
      b1, b2, eps: Adam's. Muon's momentum is its authors': 0.95, Nesterov's.
    """

    def labels(params):
        axes = matrices(params)
        return jax.tree.map(lambda _, a: "muon" if a else "adam", params, axes)

    # the rate -1 undoes that it would go down already
    muon = optax.contrib.muon(-1.0, eps=eps, muon_weight_dimension_numbers=matrices)
    return optax.partition(
        {
            "muon": optax.chain(muon, optax.stateless(_match_adam)),
            "adam": optax.scale_by_adam(b1, b2, eps),
        },
        labels,
    )


def _match_adam(updates, params):
    """Brings the root mean square of matrices to RMS.

    An orthogonal matrix (n, m) has 1 / sqrt(max(n, m)), and optax multiplies it by
    sqrt(max(1, m / n)): sqrt(n) makes up for both.
    """
    del params

    def scale(update, axes):
        rows = math.prod(update.shape[axis] for axis in axes.reduction_axis)
        return RMS * math.sqrt(rows) * update

    return jax.tree.map(scale, updates, matrices(updates))
