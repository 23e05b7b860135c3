"""Checksums of saved values.

Orbax keeps none for arrays, and most bits flipped in its data files would come back as
other values without a word. They are the same on any mesh.
"""

import functools
import hashlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from unclip_jax.files import sha256_json
from unclip_jax.parallel.sharding import path_name

WORDS = {1: np.uint8, 2: np.uint16, 4: np.uint32}  # by item size


def tree_checksum(tree: Any) -> str:
    """Returns the checksum of names, dtypes, shapes and values of all leaves."""
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    sums = jax.device_get([word_sum(leaf) for _, leaf in leaves])
    return lines_checksum(
        line(path_name(path), leaf, value)
        for (path, leaf), value in zip(leaves, sums, strict=True)
    )


def line(name: str, leaf, value) -> str:
    """What is said of one leaf, `value` being its word_sum."""
    return f"{name} {leaf.dtype} {leaf.shape} {value}"


def lines_checksum(lines) -> str:
    """Returns the checksum of a tree from the lines of its leaves, in any order."""
    return hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest()


def json_checksum(value: dict) -> str:
    """Returns the checksum of a JSON-able dict without its own "checksums"."""
    rest = {key: entry for key, entry in value.items() if key != "checksums"}
    return sha256_json(rest)


def word_sum(x: jax.Array | np.ndarray):
    """() uint32: the sum of the bit patterns modulo 2^32, exact in any order."""
    words = WORDS[x.dtype.itemsize]
    if isinstance(x, np.ndarray):
        return _host_sum([x], words)
    if jax.default_backend() != "cpu" or not x.is_fully_addressable:
        return _device_sum(x, words)
    # on the host's own memory: a program for each shape takes seconds to compile
    shards = [np.asarray(s.data) for s in x.addressable_shards if s.replica_id == 0]
    return _host_sum(shards, words)


def _host_sum(pieces, words):
    sums = [p.reshape(-1).view(words).sum(dtype=np.uint32) for p in pieces]
    return np.sum(sums, dtype=np.uint32)


@functools.partial(jax.jit, static_argnums=1)
def _device_sum(x, words):
    return jax.lax.bitcast_convert_type(x, words).sum(dtype=jnp.uint32)
