"""The prior network of DALLE2-pytorch, to read and fine-tune what it trained.

As version 1.9 and later of that package compute it (DiffusionPriorNetwork), and as
MindEye does for grids of tokens (PriorNetwork; Scotti et al. 2023, arXiv 2305.18274).
The sequence is the paper's, the transformer another: one key and value for all query
heads, cosines times 16 as logits, a null key and value, rotary embeddings beside T5's
relative positions, gated feed-forward layers and LayerNorms without bias. New priors
are better served by embedding_prior.py.
"""

import math
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from unclip_jax.errors import UsageError
from unclip_jax.models import layers
from unclip_jax.models.conditions import FLOATS, MASK, Condition, describe

LOGIT_SCALE = 16.0
BUCKETS, MAX_DISTANCE = 32, 128  # of relative positions
ROTATED = 32  # numbers of a head that rotary embeddings turn, at most
QUERIES = ("token", "pos_emb", "all_pos_emb", "none")


class Dalle2Prior(nn.Module):
    """Predicts an embedding, called as EmbeddingPrior is.

    Attributes:
      target_shape: (D,) of a vector, (N, D) of a grid of tokens.
      conditions: {name: fields of Condition}, floats of width D.
      ff_width: of the feed-forward layers.
      queries: what is learned: "token", tokens at the end, whose outputs are the
        prediction; "pos_emb", added to the noised tokens, or "all_pos_emb", to all
        tokens; "none". Without "token" the noised tokens' own outputs are.
      num_timesteps: rows of the table of timesteps; None: sinusoids and an MLP.
      time_tokens, noised_tokens, vector_tokens: tokens that the timestep, a noised
        vector and each vector among the conditions become.
    """

    target_shape: tuple[int, ...]
    conditions: Any
    depth: int
    num_heads: int
    ff_width: int
    head_width: int = 64
    causal: bool = True
    queries: str = "token"
    num_timesteps: int | None = None
    time_tokens: int = 1
    noised_tokens: int = 1
    vector_tokens: int = 1
    norm_in: bool = False
    norm_out: bool = True
    project_out: bool = True
    normformer: bool = False  # a LayerNorm inside the feed-forward layers
    rotary: bool = True
    dropout: float = 0.0
    attention_dropout: float = 0.0
    unit_norm: bool = False
    single_pass: bool = False
    dtype: Any = jnp.float32

    @property
    def described(self) -> dict[str, Condition]:
        """The conditions by name, in the order of their tokens."""
        return describe(self.conditions)

    @property
    def count(self) -> int:
        """Tokens of the prediction."""
        return self.target_shape[0] if len(self.target_shape) == 2 else 1

    def setup(self):
        """Declares the embedding space; UsageError for fields that do not fit."""
        width = self.target_shape[-1]
        if self.single_pass:
            raise UsageError(
                "backbone 'dalle2_pytorch' is a diffusion prior's: leave it out of the "
                "stage embedding_regression"
            )
        if self.queries not in QUERIES:
            raise UsageError(
                f"model.queries {self.queries!r}: expected one of {', '.join(QUERIES)}"
            )
        for name, condition in self.described.items():
            if condition.kind not in FLOATS or condition.shape[-1] != width:
                raise UsageError(
                    f"condition {name!r} is a {condition.kind} of shape "
                    f"{condition.shape}; with backbone 'dalle2_pytorch' conditions are "
                    f"floats of the target's width, {width}"
                )
        self.space = layers.EmbeddingSpace(tuple(self.target_shape), self.unit_norm)

    def normalize(self, raw):
        """Raw embeddings (B, *target_shape) -> the space the prior predicts in."""
        return self.space.normalize(raw)

    def denormalize(self, z):
        """The inverse of `normalize`."""
        return self.space.denormalize(z)

    @nn.compact
    def __call__(
        self,
        x_t,
        t,
        conditions: Mapping[str, Any],
        drop,
        deterministic: bool = True,
    ):
        """Predicts; arguments and result are those of EmbeddingPrior.

        Where a row sees no condition it sees no noised embedding either: learned ones
        stand in, as in the package's own guidance.
        """
        b, width = len(x_t), self.target_shape[-1]
        parts, missing = [], []
        for name, condition in self.described.items():
            if name not in conditions:
                raise UsageError(f"the prior needs the condition {name!r}")
            encoder = _Condition(
                condition, self.vector_tokens, self.dtype, name=f"condition_{name}"
            )
            rows = drop.get(name) if isinstance(drop, Mapping) else drop
            rows = jnp.zeros(b, bool) if rows is None else rows
            tokens, absent = encoder(
                conditions[name], conditions.get(name + MASK), rows
            )
            parts.append(tokens)
            missing.append(absent)
        if self.is_initializing():  # makes its parameters; not used here
            self.space.normalize(jnp.zeros((b, *self.target_shape)))
        noised = x_t.reshape(b, self.count, width)
        if self.noised_tokens > 1:
            size = self.noised_tokens * width
            noised = nn.Dense(size, dtype=self.dtype, name="noised_in")(noised)
            noised = noised.reshape(b, -1, width)
        normal = nn.initializers.normal(1.0)
        null = self.param("null_noised", normal, (self.count, width))
        empty = jnp.stack(missing).all(0)[:, None, None]
        noised = jnp.where(empty, null, noised)
        query = self._query(width)
        if self.queries == "pos_emb":
            noised = noised + query
        parts += [self._time(t, width), noised]
        if self.queries == "token":
            parts.append(jnp.broadcast_to(query, (b, *query.shape)))
        x = jnp.concatenate([part.astype(self.dtype) for part in parts], axis=1)
        if self.queries == "all_pos_emb":
            x = x + query.astype(self.dtype)
        x = self._transform(x, deterministic)[:, -self.count :]
        return x.reshape(b, *self.target_shape).astype(jnp.float32)

    def _query(self, width):
        """(tokens, D) learned; of "none" no tokens."""
        if self.queries == "none":
            return jnp.zeros((0, width))
        shape, std = tuple(self.target_shape), 1.0
        if self.queries == "all_pos_emb":
            shape = (2 * self.count + 1, width)
        if self.queries != "token":
            std = width**-0.5
        query = self.param("query", nn.initializers.normal(std), shape)
        return query.reshape(-1, width)

    def _time(self, t, width):
        """(B,) timesteps -> (B, time_tokens, D)."""
        size = self.time_tokens * width
        if self.num_timesteps is not None:
            init = nn.initializers.normal(1.0)
            table = nn.Embed(
                self.num_timesteps, size, embedding_init=init, name="time_table"
            )
            return table(t).reshape(-1, self.time_tokens, width)
        half = width // 2
        rates = np.exp(-math.log(10_000) / (half - 1) * np.arange(half))
        angles = t.astype(jnp.float32)[:, None] * rates.astype(np.float32)
        x = jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)
        for name in ("time_1", "time_2"):
            x = nn.silu(nn.Dense(2 * size, name=name)(x))
        return nn.Dense(size, name="time_3")(x).reshape(-1, self.time_tokens, width)

    def _transform(self, x, deterministic):
        """The transformer: (B, S, D) -> (B, S, D)."""
        length, width = x.shape[1:]
        table = self.param(
            "relative_positions", nn.initializers.normal(1.0), (BUCKETS, self.num_heads)
        )
        bias = table[relative_buckets(length)].transpose(2, 0, 1)[None]  # (1, H, S, K)
        if self.causal:
            keys = np.arange(length + 1)[None] <= np.arange(length)[:, None] + 1
            bias = bias + layers.mask_bias(keys)
        if self.norm_in:
            x = _Norm(dtype=self.dtype, name="norm_in")(x)
        for i in range(self.depth):
            x = _Block(
                num_heads=self.num_heads,
                head_width=self.head_width,
                ff_width=self.ff_width,
                normformer=self.normformer,
                rotary=self.rotary,
                dropout=self.dropout,
                attention_dropout=self.attention_dropout,
                dtype=self.dtype,
                name=f"block_{i}",
            )(x, bias, deterministic)
        if self.norm_out:
            x = _Norm(stable=True, dtype=self.dtype, name="norm_out")(x)
        if self.project_out:
            x = nn.Dense(width, use_bias=False, dtype=self.dtype, name="out")(x)
        return x


class _Condition(nn.Module):
    """A condition as tokens; learned ones where it, or one of its tokens, is missing.

    A token of a condition with a mask is missing too where all of it is 0.
    """

    condition: Condition
    vector_tokens: int
    dtype: Any

    @nn.compact
    def __call__(self, x, mask, drop):
        """((B, L, D), (B,) whether all of it is missing) of (B, D) or (B, L, D)."""
        condition, b, width = self.condition, len(x), x.shape[-1]
        count = condition.num_tokens or self.vector_tokens
        seen = jnp.ones((b, count), bool)
        if mask is not None:
            seen = jnp.broadcast_to(mask.reshape(b, -1), (b, count))
        if condition.masked and condition.num_tokens:
            seen = seen & (x != 0).any(-1)
        x = layers.EmbeddingSpace(width, name="space").normalize(x)
        if condition.num_tokens is None and count > 1:
            x = nn.Dense(count * width, dtype=self.dtype, name="in")(x)
        x = x.reshape(b, count, width)
        null = self.param("null", nn.initializers.normal(1.0), (count, width))
        seen = seen & ~drop[:, None]
        return jnp.where(seen[..., None], x, null), ~seen.any(1)


class _Norm(nn.Module):
    """LayerNorm without bias, in float32; `stable` divides by the maximum first."""

    stable: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x):
        """(..., D) -> (..., D)."""
        x = x.astype(jnp.float32)
        if self.stable:
            largest = jax.lax.stop_gradient(x.max(-1, keepdims=True))
            x = x / jnp.where(largest == 0, 1, largest)
        norm = nn.LayerNorm(
            epsilon=1e-5, use_bias=False, use_fast_variance=False, name="norm"
        )
        return norm(x).astype(self.dtype)


class _Block(nn.Module):
    """Attention, which has a LayerNorm on either side, and a gated feed-forward."""

    num_heads: int
    head_width: int
    ff_width: int
    normformer: bool
    rotary: bool
    dropout: float
    attention_dropout: float
    dtype: Any

    @nn.compact
    def __call__(self, x, bias, deterministic):
        """(B, S, D), bias (1, H, S, S + 1) -> (B, S, D)."""
        x = x + self._attend(x, bias, deterministic)
        y = _Norm(dtype=self.dtype, name="ff_norm")(x)
        y, gate = jnp.split(self._dense(2 * self.ff_width, "ff_in")(y), 2, axis=-1)
        y = y * nn.silu(gate)
        if self.normformer:
            y = _Norm(dtype=self.dtype, name="ff_norm_2")(y)
        y = nn.Dropout(self.dropout, deterministic=deterministic)(y)
        return x + self._dense(x.shape[-1], "ff_out")(y)

    def _dense(self, size, name):
        return nn.Dense(size, use_bias=False, dtype=self.dtype, name=name)

    def _attend(self, x, bias, deterministic):
        b, _, width = x.shape
        x = _Norm(dtype=self.dtype, name="norm")(x)
        q = self._dense(self.num_heads * self.head_width, "q")(x)
        q = layers.split_heads(q, self.num_heads)  # (B, H, S, W)
        k, v = jnp.split(self._dense(2 * self.head_width, "kv")(x), 2, axis=-1)
        if self.rotary:
            q, k = rotate(q), rotate(k)
        normal = nn.initializers.normal(1.0)
        null = self.param("null_kv", normal, (2, self.head_width))
        null = jnp.broadcast_to(null[:, None, None], (2, b, 1, self.head_width))
        k, v = (
            jnp.concatenate([own.astype(a.dtype), a], axis=1)
            for own, a in zip(null, (k, v), strict=True)
        )  # (B, S + 1, W)
        logits = LOGIT_SCALE * jnp.einsum("bhqd,bkd->bhqk", _unit(q), _unit(k))
        weights = jax.nn.softmax(logits + bias, axis=-1).astype(self.dtype)
        drop = nn.Dropout(self.attention_dropout, deterministic=deterministic)
        out = jnp.einsum("bhqk,bkd->bhqd", drop(weights), v.astype(self.dtype))
        out = self._dense(width, "attn_out")(layers.merge_heads(out))
        return _Norm(dtype=self.dtype, name="norm_2")(out)


def _unit(x):
    """Rows of norm 1, float32; a row of zeros stays, and has a gradient."""
    x = x.astype(jnp.float32)
    return x * jax.lax.rsqrt(jnp.square(x).sum(-1, keepdims=True).clip(1e-24))


def rotate(x):
    """Rotary embeddings (Su et al. 2021) of (..., S, W), pairs side by side.

    Of a head the first 32 numbers are turned; float32 inside.
    """
    length, width = x.shape[-2:]
    size = min(ROTATED, width)
    rates = 10_000.0 ** (-np.arange(0, size, 2) / size)
    angles = (np.arange(length)[:, None] * rates).astype(np.float32)  # (S, size / 2)
    turned = x[..., :size].astype(jnp.float32)
    a, b = turned[..., ::2], turned[..., 1::2]
    cos, sin = np.cos(angles), np.sin(angles)
    pairs = jnp.stack([a * cos - b * sin, b * cos + a * sin], axis=-1)
    turned = pairs.reshape(*x.shape[:-1], size).astype(x.dtype)
    return jnp.concatenate([turned, x[..., size:]], axis=-1)


def relative_buckets(length: int) -> np.ndarray:
    """(S, S + 1) T5's bucket of each query's distance to each key, the null first.

    Raffel et al. 2020, section 2.1, one direction: keys that come later are at 0.
    """
    distance = np.arange(length)[:, None] - np.arange(length + 1)[None]
    distance = np.maximum(distance, 0)
    exact = BUCKETS // 2
    ratio = np.log(np.maximum(distance, 1) / exact) / np.log(MAX_DISTANCE / exact)
    large = exact + np.trunc(ratio * (BUCKETS - exact)).astype(int)
    return np.where(distance < exact, distance, np.minimum(large, BUCKETS - 1))
