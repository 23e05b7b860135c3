"""Layers shared by every model: attention, pre-LN transformer, normalisation.

Parameters are float32; `dtype` is the type of the computation. Softmax and every
normalisation stay in float32 whatever `dtype` is; only their results are of that type.
"""

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float

from unclip_jax.errors import UsageError
from unclip_jax.models import norms
from unclip_jax.models.dense import Dense
from unclip_jax.shapes import (
    Array,
    Bias,
    Floats,
    Heads,
    Rows,
    States,
    Times,
    Vector,
)

REMAT_POLICIES = {
    "none": None,
    "full": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}


def gelu(x: Floats) -> Floats:
    """x Phi(x), by the error function in float32; the result has the type of `x`.

    jax.nn.gelu's exact form takes erfc, whose two branches and their gradient are three
    times the work. They differ by the rounding of 1 + erf, at most 2e-7 |x|.
    """
    wide = x.astype(jnp.float32)
    return (0.5 * wide * (1 + jax.lax.erf(wide * math.sqrt(0.5)))).astype(x.dtype)


def quick_gelu(x: Floats) -> Floats:
    """x * sigmoid(1.702 x), the activation of OpenAI's CLIP."""
    return x * jax.nn.sigmoid(1.702 * x)


def activation(name: str):
    """The activation called `name`: "gelu" (exact), "quick_gelu" or "silu"."""
    table = {
        "gelu": gelu,
        "quick_gelu": quick_gelu,
        "silu": jax.nn.silu,
    }
    if name not in table:
        raise UsageError(f"activation {name!r}: expected one of {sorted(table)}")
    return table[name]


def timestep_embedding(t: Times, dim: int, max_period: float = 10_000.0) -> Vector:
    """Sinusoidal embedding [cos, sin] of timesteps (Ho et al. 2020; ADM's order).

    Args:
      t: (B,) integer or float timesteps.
      dim: even width of the embedding.

    Returns:
      (B, dim) float32.
    """
    half = dim // 2
    freqs = jnp.exp(-jnp.log(max_period) * jnp.arange(half, dtype=jnp.float32) / half)
    args = t.astype(jnp.float32)[:, None] * freqs  # (B, dim / 2)
    return jnp.concatenate([jnp.cos(args), jnp.sin(args)], axis=-1)


def attend(
    q: Heads,
    k: Float[Array, "batch heads keys head_width"],
    v: Float[Array, "batch heads keys head_width"],
    bias: Bias | None = None,
) -> Heads:
    """Scaled dot-product attention, softmax in float32.

    Args:
      q: (B, H, Q, D); k, v: (B, H, K, D). Heads lead the sequence because batched
        matrix products over (B, S, H, D) are twice as slow on XLA:CPU.
      bias: optional float32, broadcastable to (B, H, Q, K), added to the logits.

    Returns:
      (B, H, Q, D) in the type of `q`.
    """
    logits = jnp.einsum("bhqd,bhkd->bhqk", q, k, preferred_element_type=jnp.float32)
    logits = logits * q.shape[-1] ** -0.5
    if bias is not None:
        logits = logits + bias
    # divided once summed (as Dao et al. 2022): fewer passes over (Q, K), both ways
    weights = jnp.exp(logits - jax.lax.stop_gradient(logits.max(-1, keepdims=True)))
    total = weights.sum(-1, keepdims=True)
    out = jnp.einsum(
        "bhqk,bhkd->bhqd",
        weights.astype(q.dtype),
        v,
        preferred_element_type=jnp.float32,
    )
    return (out / total).astype(q.dtype)


def split_heads(x: States, num_heads: int) -> Heads:
    """(B, S, H * D) -> (B, H, S, D)."""
    b, s, width = x.shape
    return x.reshape(b, s, num_heads, width // num_heads).transpose(0, 2, 1, 3)


def merge_heads(x: Heads) -> States:
    """(B, H, S, D) -> (B, S, H * D)."""
    b, h, s, d = x.shape
    return x.transpose(0, 2, 1, 3).reshape(b, s, h * d)


def split_batch(x, axes: tuple[str, ...] = ("data", "fsdp")):
    """x (B, ...) with its batch split over the mesh's batch axes, if a mesh is set.

    Nothing is asked of a batch that does not divide, nor inside of shard_map, where
    each device has its own.
    """
    mesh = jax.sharding.get_abstract_mesh()
    free = set(mesh.axis_names) - set(mesh.manual_axes)
    axes = tuple(axis for axis in axes if axis in free)
    parts = math.prod(mesh.shape[axis] for axis in axes)
    if parts == 1 or x.shape[0] % parts:
        return x
    return jax.lax.with_sharding_constraint(x, jax.sharding.PartitionSpec(axes))


def on_own_rows(operation):
    """operation(x, kernel, ...) with x split by rows and the kernel gathered.

    For `dot_general` of nn.Dense and `conv_general_dilated` of nn.Conv. Left to itself
    the compiler may follow a kernel that is split over "fsdp" and split the channels of
    a convolution, with all of the batch on each device. A kernel split over "tensor" is
    gathered as well: that axis spares UNets memory, not work.
    """

    def run(x, kernel, *args, **kwargs):
        if not jax.sharding.get_abstract_mesh().empty:
            whole = jax.sharding.PartitionSpec()
            kernel = jax.lax.with_sharding_constraint(kernel, whole)
        return split_batch(operation(split_batch(x), kernel, *args, **kwargs))

    return run


def stored(x):
    """x as an array of its own, which is not computed again where it is read.

    For sums along a residual stream. XLA:CPU fuses a sum into all that read it, so each
    layer would add up those before it anew, and in the backward pass those after it.
    """
    return jax.lax.optimization_barrier(x)


def mask_bias(mask: Bool[Array, "*size"]) -> Floats:
    """Turns a boolean mask (True = visible) into an additive float32 bias."""
    return jnp.where(mask, 0.0, -1e9).astype(jnp.float32)


def causal_bias(length: int) -> Float[Array, "1 1 length length"]:
    """(1, 1, L, L) bias under which position i sees positions 0..i."""
    return mask_bias(jnp.tril(jnp.ones((length, length), bool)))[None, None]


def padding_bias(
    visible: Bool[Array, "batch length"],
) -> Float[Array, "batch 1 1 length"]:
    """(B, 1, 1, L) bias from a (B, L) mask of the visible keys."""
    return mask_bias(visible)[:, None, None, :]


class _LayerNorm(nn.Module):
    """What `LayerNorm` keeps its parameters in."""

    epsilon: float

    @nn.compact
    def __call__(self, x):
        shape = (x.shape[-1],)
        scale = self.param("scale", nn.initializers.ones, shape)
        bias = self.param("bias", nn.initializers.zeros, shape)
        return norms.layer_norm(x, scale, bias, self.epsilon)


class LayerNorm(nn.Module):
    """LayerNorm with float32 statistics; the output has type `dtype`."""

    epsilon: float = 1e-5
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Floats) -> Floats:
        """(..., W) -> (..., W), normalized over the last axis."""
        return _LayerNorm(self.epsilon, name="norm")(x).astype(self.dtype)


class GroupNorm(nn.Module):
    """GroupNorm over (B, H, W, C) with an optional per-sample scale and shift.

    Computed in float32 and rounded to `dtype` once, as GroupNorm32 of ADM. Norm,
    affine, scale and shift collapse into one multiply-add per pixel; its factors stay
    float32, or a channel far from 0 would be biased by their rounding.
    """

    groups: int = 32
    epsilon: float = 1e-5
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch *size channels"],
        scale: Float[Array, "batch channels"] | None = None,
        shift: Float[Array, "batch channels"] | None = None,
    ) -> Float[Array, "batch *size channels"]:
        """(B, H, W, C), scale and shift (B, C) or None -> (B, H, W, C)."""
        b, c = x.shape[0], x.shape[-1]
        if c % self.groups:
            raise UsageError(
                f"GroupNorm: {c} channels do not divide into {self.groups} groups; "
                "choose channels that are a multiple of norm_groups"
            )
        gamma = self.param("scale", nn.initializers.ones, (c,))
        beta = self.param("bias", nn.initializers.zeros, (c,))
        a, d = (jnp.broadcast_to(y.astype(jnp.float32), (b, c)) for y in (gamma, beta))
        if scale is not None:
            a, d = a * (1 + scale), d * (1 + scale)
        if shift is not None:
            d = d + shift
        return norms.group_norm(x, a, d, self.groups, self.epsilon).astype(self.dtype)


class Attention(nn.Module):
    """Multi-head self-attention over (B, S, W).

    With a `position`, x holds the tokens position .. position + S - 1 of a longer
    sequence: their keys and values are written to the collection "cache", whose
    content they attend to, as many slots as `bias` has keys.
    """

    num_heads: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: States, bias: Bias | None = None, position=None) -> States:
        """(B, S, W), bias that broadcasts to (B, heads, S, keys) -> (B, S, W)."""
        width = x.shape[-1]
        if width % self.num_heads:
            raise UsageError(
                f"width {width} does not divide into {self.num_heads} heads"
            )
        q, k, v = (
            split_heads(Dense(width, dtype=self.dtype, name=name)(x), self.num_heads)
            for name in ("q", "k", "v")
        )  # (B, H, S, D) each
        if position is not None:
            if bias is None:
                raise UsageError(
                    "a position needs a bias, which has the cache's length"
                )
            slots = bias.shape[-1]
            k = self._cached("cached_k", k, slots, position)  # (B, H, slots, D)
            v = self._cached("cached_v", v, slots, position)
        out = merge_heads(attend(q, k, v, bias))
        return Dense(width, dtype=self.dtype, name="out")(out)

    def _cached(self, name, new, slots, position):
        b, heads, _, d = new.shape
        cache = self.variable("cache", name, jnp.zeros, (b, heads, slots, d), new.dtype)
        update = jax.lax.dynamic_update_slice_in_dim
        cache.value = update(cache.value, new, position, axis=2)
        return cache.value


class Block(nn.Module):
    """Pre-LN transformer block; shaped for `nn.scan` (carry in, carry out)."""

    num_heads: int
    mlp_ratio: float = 4.0
    activation: str = "gelu"
    dropout: float = 0.0
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, x: States, bias: Bias | None, deterministic: bool, position=None
    ):
        """(B, S, W) -> (B, S, W), None: a carry and no output, for `nn.scan`."""
        width = x.shape[-1]
        # or the compiler may split the width, as kernels are, and not the batch
        x = split_batch(x)
        drop = nn.Dropout(self.dropout, deterministic=deterministic)
        y = LayerNorm(dtype=self.dtype, name="ln_1")(x)
        attention = Attention(self.num_heads, self.dtype, name="attn")
        x = split_batch(stored(x + drop(attention(y, bias, position))))
        y = LayerNorm(dtype=self.dtype, name="ln_2")(x)
        y = Dense(round(width * self.mlp_ratio), dtype=self.dtype, name="fc_1")(y)
        y = activation(self.activation)(y)
        x = x + drop(Dense(width, dtype=self.dtype, name="fc_2")(y))
        return split_batch(stored(x)), None


class Transformer(nn.Module):
    """A stack of pre-LN blocks over (B, S, W), without a final LayerNorm.

    `scan_layers` stores the blocks stacked along a leading axis and compiles one
    of them; `remat` is a key of REMAT_POLICIES. `position` is Attention's: with it,
    apply with mutable=["cache"].
    """

    depth: int
    num_heads: int
    mlp_ratio: float = 4.0
    activation: str = "gelu"
    dropout: float = 0.0
    scan_layers: bool = False
    remat: str = "none"
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self,
        x: States,
        bias: Bias | None = None,
        deterministic: bool = True,
        position=None,
    ) -> States:
        """(B, S, W) -> (B, S, W); `bias` and `position` are Attention's."""
        if self.remat not in REMAT_POLICIES:
            raise UsageError(
                f"remat {self.remat!r}: expected one of {sorted(REMAT_POLICIES)}"
            )
        block = Block
        if self.remat != "none":
            block = nn.remat(
                Block,
                prevent_cse=not self.scan_layers,
                policy=REMAT_POLICIES[self.remat],
                static_argnums=(3,),
            )
        fields = {
            "num_heads": self.num_heads,
            "mlp_ratio": self.mlp_ratio,
            "activation": self.activation,
            "dropout": self.dropout,
            "dtype": self.dtype,
        }
        if bias is None:
            bias = jnp.zeros((1, 1, 1, 1), jnp.float32)
        if self.scan_layers:
            stack = nn.scan(
                block,
                variable_axes={"params": 0, "cache": 0},
                split_rngs={"params": True, "dropout": True},
                in_axes=(nn.broadcast, nn.broadcast, nn.broadcast),
                length=self.depth,
            )
            x, _ = stack(**fields, name="blocks")(x, bias, deterministic, position)
        else:
            for i in range(self.depth):
                one = block(**fields, name=f"block_{i}")
                x, _ = one(x, bias, deterministic, position)
        return x


# The norm, by embedding convention and dimension, of unit embeddings scaled for a
# model. The paper's 17.2 at 1024 dimensions gives them ImageNet's standard deviation
# per dimension, RGB in [-1, 1]; "unit_scaled" does so at any dimension.
UNIT_SCALES = {
    "unit_scaled": lambda dim: 0.5375 * math.sqrt(dim),
    "unit_17.2": lambda dim: 17.2,
}


class EmbeddingSpace(nn.Module):
    """The convention under which a model sees CLIP image embeddings.

    `normalize` maps raw CLIP outputs to the model's space, `denormalize` back:
    (z - mean) / std, after an l2-normalisation if `unit_norm`. mean and std are
    parameters that no gradient reaches, so they travel with every checkpoint (as
    Karlo's clip_mean and clip_std do). The paper's convention is unit_norm with mean 0
    and std 1 / 17.2 (UNIT_SCALES); Karlo's and Kandinsky's are per-dimension
    statistics.

    A grid of N tokens has dim (N, D): norms are of tokens, statistics of each number.
    """

    dim: int | tuple[int, ...]
    unit_norm: bool = False

    def setup(self):
        """Declares mean and std (*dim,), which gradients do not change."""
        shape = (self.dim,) if isinstance(self.dim, int) else self.dim
        mean = self.param("mean", nn.initializers.zeros, shape)
        std = self.param("std", nn.initializers.ones, shape)
        self.mean_std = jax.lax.stop_gradient((mean, std))

    def normalize(self, raw: Rows) -> Rows:
        """Raw CLIP embeddings (B, *dim) -> the model's space, float32."""
        raw = raw.astype(jnp.float32)
        if self.unit_norm:
            raw = raw / jnp.linalg.norm(raw, axis=-1, keepdims=True).clip(1e-12)
        mean, std = self.mean_std
        return (raw - mean) / std

    def denormalize(self, z: Rows) -> Rows:
        """The model's space (B, *dim) -> raw (or unit-norm) embeddings, float32."""
        mean, std = self.mean_std
        return z.astype(jnp.float32) * std + mean
