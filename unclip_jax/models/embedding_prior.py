"""The embedding prior: from conditions of any kind to any frozen encoder's embedding.

The paper's prior (section 2.2) with other things in the caption's place: the sequence
is the conditions' tokens, the timestep, the noised embedding (one token, or N of a
grid) and as many learned queries, whose outputs are the prediction. Without a noised
embedding and a timestep it is a deterministic prior of a single pass (ECLIPSE,
arXiv 2312.04655).
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from unclip_jax.errors import UsageError
from unclip_jax.models import layers
from unclip_jax.models.conditions import MASK, Condition, ConditionEncoder, describe
from unclip_jax.models.dense import Dense


class EmbeddingPrior(nn.Module):
    """Predicts an embedding, or what `prediction` says of a noised one.

    Attributes:
      target_shape: (D,) of a vector, (N, D) of a grid of tokens.
      conditions: {name: fields of Condition}.
      vector_tokens: tokens that each vector among the conditions becomes.
      causal: each token sees those before it, as in the paper; else all.
      queries: whether learned queries are read; else the noised tokens' own outputs.
      single_pass: no noised embedding and no timestep.
      unit_norm: whether tokens are divided by their norm, see EmbeddingSpace.
    """

    target_shape: tuple[int, ...]
    conditions: Any
    width: int
    depth: int
    num_heads: int
    vector_tokens: int = 1
    causal: bool = True
    queries: bool = True
    single_pass: bool = False
    dropout: float = 0.0
    unit_norm: bool = False
    scan_layers: bool = False
    remat: str = "none"
    dtype: Any = jnp.float32

    @property
    def described(self) -> dict[str, Condition]:
        """The conditions by name, in the order of their tokens."""
        return describe(self.conditions)

    def setup(self):
        """Declares the layers; UsageError for fields that do not fit together."""
        shape = tuple(self.target_shape)
        if len(shape) not in (1, 2) or min(shape) < 1:
            raise UsageError(
                f"target_shape {shape}: expected (D,) or (N, D), none of them 0"
            )
        if not self.conditions:
            raise UsageError("an embedding prior needs at least one condition")
        if self.single_pass and not self.queries:
            raise UsageError(
                "model.queries=False has nothing to read in a single pass: leave it out"
            )
        self.count = shape[0] if len(shape) == 2 else 1
        init = nn.initializers.normal(0.02)
        dense = {"dtype": self.dtype}
        self.space = layers.EmbeddingSpace(shape, self.unit_norm)
        self.condition = {  # parameters "condition_NAME"
            name: ConditionEncoder(
                condition, self.width, self.vector_tokens, self.dtype
            )
            for name, condition in self.described.items()
        }
        lengths = [c.num_tokens or self.vector_tokens for c in self.described.values()]
        length = sum(lengths) + (0 if self.single_pass else 1 + self.count)
        length += self.count if self.queries else 0
        self.positional_embedding = self.param(
            "positional_embedding", init, (length, self.width)
        )
        if self.queries:
            self.query = self.param("query", init, (self.count, self.width))
        if not self.single_pass:
            self.noised_in = Dense(self.width, **dense)
            self.time_1 = Dense(self.width, **dense)
            self.time_2 = Dense(self.width, **dense)
        self.transformer = layers.Transformer(
            self.depth,
            self.num_heads,
            dropout=self.dropout,
            scan_layers=self.scan_layers,
            remat=self.remat,
            dtype=self.dtype,
        )
        self.ln_final = layers.LayerNorm(dtype=self.dtype)
        self.out = Dense(shape[-1], **dense)

    def normalize(self, raw):
        """Raw embeddings (B, *target_shape) -> the space the prior predicts in."""
        return self.space.normalize(raw)

    def denormalize(self, z):
        """The inverse of `normalize`."""
        return self.space.denormalize(z)

    def __call__(
        self,
        x_t,
        t,
        conditions: Mapping[str, Any],
        drop,
        deterministic: bool = True,
    ):
        """Predicts.

        Args:
          x_t: (B, *target_shape) noised embeddings in the prior's space; None in a
            single pass, as is t.
          t: (B,) integer timesteps.
          conditions: {name: array}, and NAME_mask of those with a mask; repeats merged
            (see conditions.merge_repeats).
          drop: (B,) bool, True for rows that see no condition, the unconditional model
            of guidance; or {name: (B,)} of some conditions.
          deterministic: no dropout.

        Returns:
          (B, *target_shape) float32.

        Raises:
          UsageError: a condition that is not there.
        """
        if missing := [name for name in self.condition if name not in conditions]:
            raise UsageError(f"the prior needs the condition {missing[0]!r}")
        parts, visible = [], []
        for name, encoder in self.condition.items():
            x, mask = conditions[name], conditions.get(name + MASK)
            rows = drop.get(name) if isinstance(drop, Mapping) else drop
            rows = jnp.zeros(len(x), bool) if rows is None else rows
            tokens, seen = encoder(x, mask, rows)
            parts.append(tokens)
            visible.append(seen)
        b = parts[0].shape[0]
        noised = [] if self.single_pass else self._noised(x_t, t)
        if self.queries:
            shape = (b, self.count, self.width)
            noised.append(jnp.broadcast_to(self.query.astype(self.dtype), shape))
        if self.is_initializing():  # makes its parameters; not used here
            self.space.normalize(jnp.zeros((b, *self.target_shape)))
        visible += [jnp.ones(part.shape[:2], bool) for part in noised]
        x = jnp.concatenate(parts + noised, axis=1)  # (B, S, W)
        bias = layers.padding_bias(jnp.concatenate(visible, axis=1))
        if self.causal:
            bias = bias + layers.causal_bias(x.shape[1])
        x = x + self.positional_embedding.astype(self.dtype)
        x = self.transformer(x, bias, deterministic)
        x = self.out(self.ln_final(x[:, -self.count :]))  # (B, N, D)
        return x.reshape(b, *self.target_shape).astype(jnp.float32)

    def _noised(self, x_t, t):
        """[(B, 1, W) timestep, (B, N, W) noised tokens]."""
        time = layers.timestep_embedding(t, self.width).astype(self.dtype)
        time = self.time_2(nn.silu(self.time_1(time)))
        x_t = x_t.reshape(len(x_t), self.count, -1)  # (B, N, D)
        return [time[:, None], self.noised_in(x_t.astype(self.dtype))]


def example_conditions(model, n: int = 1) -> dict[str, Any]:
    """{name: zeros} of n examples, repeats merged, to initialize the model with."""
    made = {}
    for name, condition in model.described.items():
        shape = condition.shape[-1:] if condition.kind == "repeats" else condition.shape
        made[name] = jnp.zeros((n, *shape), condition.dtype)
        if condition.masked:
            mask = shape[:-1]
            made[name + MASK] = jnp.ones((n, *mask), bool)
    return made
