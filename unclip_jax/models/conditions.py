"""Conditions of any kind as tokens of a transformer.

A condition is described by {"kind", "shape", "dtype", "size"} of one example:

    vector    float (D,), or of several measurements of one thing, (R, D): see `repeats`
    sequence  float (L, D)
    tokens    int (L,) below `size`, negative where there is none
    class     int () below `size`, negative where it is not known

An array NAME may come with a mask NAME_mask, bool, True where there is something: ()
of a vector, (R,) of repeats, (L,) of a sequence. Where an example lacks a condition,
and where guidance drops it, learned tokens stand in its place.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from unclip_jax import config as config_lib
from unclip_jax.errors import UsageError
from unclip_jax.models import layers
from unclip_jax.models.dense import Dense
from unclip_jax.models.text_transformer import text_mask

KINDS = ("vector", "repeats", "sequence", "tokens", "class")
FLOATS = ("vector", "repeats", "sequence")
MASK = "_mask"


@dataclasses.dataclass(frozen=True)
class Condition:
    """What a condition's arrays are, per example.

    Attributes:
      kind: one of KINDS.
      shape: of one example, see the file's docstring.
      dtype: that its array is stored in.
      size: tokens or classes there are; None for floats.
      masked: whether a mask comes with it.
      position: its tokens come after those of lower ones; of equal ones, by name.
      eot_id: of tokens that end with the first of this one; None: negative ones pad.
    """

    kind: str
    shape: tuple[int, ...]
    dtype: str = "float32"
    size: int | None = None
    masked: bool = False
    eot_id: int | None = None
    position: int = 0

    def __post_init__(self):
        object.__setattr__(self, "shape", tuple(self.shape))
        if self.kind not in KINDS:
            raise UsageError(
                f"condition kind {self.kind!r}: expected one of {', '.join(KINDS)}"
            )
        ndim = {"class": 0, "repeats": 2, "sequence": 2}.get(self.kind, 1)
        if len(self.shape) != ndim or 0 in self.shape:
            raise UsageError(
                f"a condition of kind {self.kind!r} has {ndim} axes per example, none "
                f"of them empty; this one has shape {self.shape}"
            )
        if self.kind not in FLOATS and not (self.size and self.size > 0):
            raise UsageError(
                f"a condition of kind {self.kind!r} needs its size, the number of "
                f"{'classes' if self.kind == 'class' else 'tokens'}; got {self.size}"
            )

    @property
    def mask_shape(self) -> tuple[int, ...]:
        """Shape of the mask of one example."""
        return self.shape[:-1]

    @property
    def num_tokens(self) -> int | None:
        """Tokens of a transformer that it is; None: as many as one asks for."""
        return {"class": 1, "vector": None, "repeats": None}.get(
            self.kind, self.shape[0] if self.shape else 1
        )


def describe(conditions: Mapping[str, Any]) -> dict[str, Condition]:
    """{name: Condition} of {name: its fields}, in the order of their tokens.

    Not in that of the mapping, which a file of JSON does not keep.

    Raises UsageError for a description that is none.
    """
    found = {
        name: config_lib.build(Condition, dict(fields), f"condition {name!r}")
        for name, fields in conditions.items()
    }
    order = sorted(found, key=lambda name: (found[name].position, name))
    return {name: found[name] for name in order}


def batch_spec(conditions: Mapping[str, Condition]) -> dict[str, Any]:
    """{name: (shape, dtype)} of the arrays of one example, masks among them."""
    spec: dict[str, Any] = {}
    for name, condition in conditions.items():
        spec[name] = condition.shape, condition.dtype
        if condition.masked:
            spec[name + MASK] = condition.mask_shape, "bool"
    return spec


def merge_repeats(conditions: Mapping[str, Condition], batch, rng=None):
    """Makes one vector (B, D) of the measurements (B, R, D) of each example.

    Args:
      conditions: by name.
      batch: {name: array}, with masks.
      rng: draws one of those that are there; None averages them.

    Returns:
      the batch with vectors, and masks (B,) of them.
    """
    out = dict(batch)
    for i, (name, condition) in enumerate(conditions.items()):
        if condition.kind != "repeats":
            continue
        x = jnp.asarray(batch[name], jnp.float32)  # (B, R, D)
        mask = batch.get(name + MASK)
        mask = jnp.ones(x.shape[:2], bool) if mask is None else mask  # (B, R)
        if rng is None:
            weights = mask / mask.sum(1, keepdims=True).clip(1)
        else:
            key, logits = jax.random.fold_in(rng, i), jnp.where(mask, 0.0, -1e9)
            chosen = jax.random.categorical(key, logits)
            weights = jax.nn.one_hot(chosen, x.shape[1])
        x = jnp.where(mask[..., None], x, 0)
        out[name] = jnp.einsum("br,brd->bd", weights, x)
        out[name + MASK] = mask.any(1)
    return out


class ConditionEncoder(nn.Module):
    """Turns one condition into tokens of the transformer's width.

    Floats are standardized by constants that no gradient reaches ("space"), which a
    stage takes from the data.
    """

    condition: Condition
    width: int
    vector_tokens: int = 1  # that a vector becomes
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x, mask, drop):
        """Encodes.

        Args:
          x: (B, *shape); of kind "repeats" one vector (B, D).
          mask: bool (B,), or (B, L) of a sequence; None: everything is there.
          drop: (B,) bool, True for rows that are treated as if it was missing.

        Returns:
          (tokens (B, L, W), visible (B, L) bool).
        """
        condition, b = self.condition, x.shape[0]
        if condition.kind in FLOATS:
            space = layers.EmbeddingSpace(condition.shape[-1], name="space")
            x = space.normalize(x)
            count = condition.num_tokens or self.vector_tokens
            out = self.width if condition.num_tokens else count * self.width
            x = Dense(out, dtype=self.dtype, name="in")(x)
            x = x.reshape(b, count, self.width)  # (B, L, W)
        else:
            ids = x.reshape(b, -1)  # (B, L)
            if condition.eot_id is not None:
                mask = text_mask(ids, condition.eot_id)
            else:
                mask = ids >= 0
            init = nn.initializers.normal(0.02)
            embed = nn.Embed(
                condition.size or 0,
                self.width,
                embedding_init=init,
                dtype=self.dtype,
                name="embed",
            )
            x = embed(ids.clip(0))
        length = x.shape[1]
        if mask is None:
            mask = jnp.ones((b, length), bool)
        mask = jnp.broadcast_to(mask.reshape(b, -1), (b, length))
        missing = drop | ~mask.any(1)  # (B,)
        null = self.param("null", nn.initializers.normal(0.02), (length, self.width))
        x = jnp.where(missing[:, None, None], null.astype(self.dtype), x)
        return x, mask | missing[:, None]
