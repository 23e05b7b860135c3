"""A transformer over patches of pixels, with the call of the UNet.

Patches and context tokens are one sequence, as in MMDiT without separate weights (Esser
et al. 2024); blocks are modulated by the timestep embedding as PixArt-alpha's are (Chen
et al. 2023, adaLN-single: one projection for all blocks, and an offset of each block's
own). Queries and keys are normalized and patches turned by 2-D rotary positions. Large
patches suit a model that predicts x_0 (Li & He 2025, arXiv 2511.13720). Nearly all of
its arithmetic is dense matrix products.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from unclip_jax.errors import UsageError
from unclip_jax.models import layers
from unclip_jax.models.dense import Dense
from unclip_jax.models.unet import depth_to_space, space_to_depth
from unclip_jax.shapes import (
    Array,
    Context,
    ContextMask,
    Floats,
    Heads,
    Images,
    OutputImages,
    States,
    Times,
    Vector,
)

_zeros = nn.initializers.zeros
_ROTARY_BASE = 100.0  # of grids with tens of patches a side


def rms_norm(x: Floats, epsilon: float = 1e-6) -> Floats:
    """x over the root mean square of its last axis, computed and kept in float32."""
    x = x.astype(jnp.float32)
    return x * jax.lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + epsilon)


def rotary_table(side: int, dim: int, num_context: int) -> np.ndarray:
    """Angles of 2-D rotary positions: (num_context + side^2, dim / 2) float32.

    The first half of them turns with a patch's row, the second with its column, at
    frequencies 1 ... 1 / 100. Context tokens, which lead the sequence, are not turned.
    """
    freqs = _ROTARY_BASE ** -(np.arange(dim // 4) / (dim // 4))
    rows, columns = np.divmod(np.arange(side * side), side)
    angles = np.concatenate([rows[:, None] * freqs, columns[:, None] * freqs], axis=1)
    return np.pad(angles, ((num_context, 0), (0, 0))).astype(np.float32)


def rotate(x: Heads, angles: Float[Array, "length _"]) -> Heads:
    """Turns the pairs (x[i], x[i + D / 2]) of (B, H, S, D) by `angles` (S, D / 2)."""
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    a, b = jnp.split(x, 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)


class TransformerBlock(nn.Module):
    """Attention and a gated MLP, each modulated; shaped for `nn.scan`."""

    num_heads: int
    mlp_ratio: float
    dropout: float
    dtype: Any

    @nn.compact
    def __call__(
        self,
        x: States,
        modulation: Float[Array, "batch 6 width"],
        angles,
        bias,
        deterministic: bool,
    ):
        """(B, S, W), modulation (B, 6, W) -> (B, S, W), None."""
        width = x.shape[-1]
        x = layers.split_batch(x)
        own = self.param("modulation", _zeros, (6, width))
        parts = (modulation + own)[:, :, None]  # (B, 6, 1, W)
        shift_1, scale_1, gate_1, shift_2, scale_2, gate_2 = (
            parts[:, i] for i in range(6)
        )
        drop = nn.Dropout(self.dropout, deterministic=deterministic)

        y = (rms_norm(x) * (1 + scale_1) + shift_1).astype(self.dtype)
        y = drop(self._attention(y, angles, bias))
        x = layers.split_batch(x + (gate_1 * y).astype(self.dtype))

        y = (rms_norm(x) * (1 + scale_2) + shift_2).astype(self.dtype)
        hidden = 8 * round(width * self.mlp_ratio / 12)  # as many weights as an MLP's
        y = Dense(2 * hidden, dtype=self.dtype, name="fc_1")(y)
        gate, y = jnp.split(y, 2, axis=-1)
        y = drop(Dense(width, dtype=self.dtype, name="fc_2")(nn.silu(gate) * y))
        return layers.split_batch(x + (gate_2 * y).astype(self.dtype)), None

    def _attention(self, x, angles, bias):
        width = x.shape[-1]
        q, k, v = (
            layers.split_heads(Dense(width, dtype=self.dtype, name=name)(x), heads)
            for name, heads in zip("qkv", [self.num_heads] * 3, strict=True)
        )  # (B, H, S, D) each
        dim = width // self.num_heads
        q_scale, k_scale = (
            self.param(f"{name}_scale", nn.initializers.ones, (dim,)) for name in "qk"
        )
        q = rotate(rms_norm(q) * q_scale, angles).astype(self.dtype)
        k = rotate(rms_norm(k) * k_scale, angles).astype(self.dtype)
        y = layers.merge_heads(layers.attend(q, k, v, bias))
        return Dense(width, dtype=self.dtype, name="out")(y)


class PixelTransformer(nn.Module):
    """x (B, S, S, C) -> (B, S, S, out_channels) float32.

    `patch_size` divides S, `num_heads` divides `width` into heads of a multiple of 4.
    `scan_layers` compiles one block instead of `depth`; `remat` computes each block
    again in the backward pass instead of keeping what is inside it.
    """

    image_size: int
    out_channels: int
    patch_size: int
    width: int
    depth: int
    num_heads: int
    mlp_ratio: float = 4.0
    dropout: float = 0.0
    scan_layers: bool = False
    remat: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self,
        x: Images,
        t: Times,
        emb: Vector | None = None,
        context: Context | None = None,
        context_mask: ContextMask | None = None,
        deterministic: bool = True,
    ) -> OutputImages:
        """Predicts; arguments as of `unet.UNet`, but `emb` is (B, width)."""
        b, width = x.shape[0], self.width
        if width % (4 * self.num_heads):
            raise UsageError(
                f"width {width} does not divide into {self.num_heads} heads of a "
                "multiple of 4"
            )
        dense = {"dtype": self.dtype}
        time = layers.timestep_embedding(t, width).astype(self.dtype)
        time = Dense(width, **dense, name="time_1")(time)
        time = Dense(width, **dense, name="time_2")(nn.silu(time))
        if emb is not None:
            time = time + emb.astype(self.dtype)
        time = nn.silu(time)

        patches = space_to_depth(x.astype(self.dtype), self.patch_size)
        side = patches.shape[1]
        patches = patches.reshape(b, side * side, -1)
        h = Dense(width, **dense, name="patches_in")(patches)  # (B, N, W)
        num_context, bias = 0, None
        if context is not None:
            num_context = context.shape[1]
            context = context.astype(self.dtype)
            h = jnp.concatenate(
                [Dense(width, **dense, name="context_in")(context), h], 1
            )
        if context_mask is not None:  # the patches are always visible
            bias = layers.padding_bias(context_mask)
            bias = jnp.pad(bias, ((0, 0),) * 3 + ((0, side * side),))
        h = self._blocks(
            h,
            time,
            rotary_table(side, width // self.num_heads, num_context),
            bias,
            deterministic,
        )

        h = h[:, num_context:]
        last = Dense(2 * width, kernel_init=_zeros, **dense, name="modulation_out")
        shift, scale = jnp.split(last(time).astype(jnp.float32)[:, None], 2, axis=-1)
        h = rms_norm(h) * (1 + scale) + shift
        out = self.out_channels * self.patch_size**2
        h = Dense(out, kernel_init=_zeros, name="patches_out")(h)
        return depth_to_space(h.reshape(b, side, side, out), self.patch_size)

    def _blocks(self, x, time, angles, bias, deterministic):
        modulation = Dense(
            6 * self.width, kernel_init=_zeros, dtype=self.dtype, name="modulation"
        )(time)
        modulation = modulation.astype(jnp.float32).reshape(-1, 6, self.width)
        block = TransformerBlock
        if self.remat:
            block = nn.remat(
                block, prevent_cse=not self.scan_layers, static_argnums=(5,)
            )
        fields = {
            "num_heads": self.num_heads,
            "mlp_ratio": self.mlp_ratio,
            "dropout": self.dropout,
            "dtype": self.dtype,
        }
        inputs = modulation, angles, bias, deterministic
        if self.scan_layers:
            stack = nn.scan(
                block,
                variable_axes={"params": 0},
                split_rngs={"params": True, "dropout": True},
                in_axes=nn.broadcast,
                length=self.depth,
            )
            return stack(**fields, name="blocks")(x, *inputs)[0]
        for i in range(self.depth):
            x, _ = block(**fields, name=f"block_{i}")(x, *inputs)
        return x
