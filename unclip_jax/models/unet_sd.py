"""The UNet of Stable Diffusion (Rombach et al. 2022), NHWC.

Res blocks that the timestep shifts, convolutions for down- and up-sampling, and at some
levels transformers over the pixels, whose blocks attend to themselves, then to a
context.
"""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from unclip_jax.errors import UsageError
from unclip_jax.models import layers
from unclip_jax.models.dense import Dense
from unclip_jax.models.unet import ResBlock, upsample_nearest
from unclip_jax.shapes import Context, Images, OutputImages, States, Times, Vector


class CrossAttention(nn.Module):
    """Multi-head attention from x to a context, or to x itself."""

    num_heads: int
    dtype: Any

    @nn.compact
    def __call__(self, x: States, context: Context | None = None) -> States:
        """(B, S, W), (B, L, K) or None -> (B, S, W)."""
        width = x.shape[-1]
        if width % self.num_heads:
            raise UsageError(f"{width} channels do not divide into {self.num_heads}")
        context = x if context is None else context

        def project(y, name):
            y = Dense(width, use_bias=False, dtype=self.dtype, name=name)(y)
            return layers.split_heads(y, self.num_heads)

        q, k, v = project(x, "q"), project(context, "k"), project(context, "v")
        y = layers.merge_heads(layers.attend(q, k, v))
        return Dense(width, dtype=self.dtype, name="out")(y)


class TransformerBlock(nn.Module):
    """Self-attention, cross-attention and a gated MLP (GEGLU), each after a norm."""

    num_heads: int
    dtype: Any

    @nn.compact
    def __call__(self, x: States, context: Context) -> States:
        """(B, S, W), context (B, L, K) -> (B, S, W)."""
        width = x.shape[-1]
        norm, attention = {"dtype": self.dtype}, (self.num_heads, self.dtype)
        y = layers.LayerNorm(**norm, name="ln_1")(x)
        x = x + CrossAttention(*attention, name="self_attn")(y)
        y = layers.LayerNorm(**norm, name="ln_2")(x)
        x = x + CrossAttention(*attention, name="cross_attn")(y, context)
        y = layers.LayerNorm(**norm, name="ln_3")(x)
        y = Dense(8 * width, dtype=self.dtype, name="fc_1")(y)
        y, gate = jnp.split(y, 2, axis=-1)
        y = y * layers.gelu(gate)
        return x + Dense(width, dtype=self.dtype, name="fc_2")(y)


class SpatialTransformer(nn.Module):
    """A transformer over the pixels of a feature map, between linear projections."""

    num_heads: int
    norm_groups: int
    dtype: Any

    @nn.compact
    def __call__(self, x: Images, context: Context) -> Images:
        """(B, H, W, C), context (B, L, K) -> (B, H, W, C)."""
        b, h, w, c = x.shape
        norm = layers.GroupNorm(self.norm_groups, 1e-6, self.dtype, name="norm")
        y = norm(x).reshape(b, h * w, c)
        y = Dense(c, dtype=self.dtype, name="proj_in")(y)
        y = TransformerBlock(self.num_heads, self.dtype, name="block")(y, context)
        y = Dense(c, dtype=self.dtype, name="proj_out")(y)
        return x + y.reshape(b, h, w, c)


class StableUNet(nn.Module):
    """x (B, H, W, C) -> (B, H, W, out_channels) float32.

    `num_heads` has the heads of each level's transformers, 0 where there are none;
    `mid_heads` those of the one in the middle. `remat` computes each block again in the
    backward pass.
    """

    out_channels: int
    channels: int
    channel_mult: tuple[int, ...]
    num_res_blocks: int
    num_heads: tuple[int, ...]
    mid_heads: int
    norm_groups: int = 32
    remat: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self,
        x: Images,
        t: Times,
        label: Vector,
        context: Context,
        deterministic: bool = True,
    ) -> OutputImages:
        """Predicts.

        Args:
          x: (B, H, W, C) noised latents.
          t: (B,) timesteps.
          label: (B, K) features that are projected and added to the timestep embedding.
          context: (B, L, W) tokens for the transformers.
          deterministic: no dropout.
        """
        levels, heads = len(self.channel_mult), tuple(self.num_heads)
        if len(heads) != levels:
            raise UsageError(
                f"num_heads {heads} must have one entry per level of channel_mult "
                f"{self.channel_mult}"
            )
        res_block, transformer = ResBlock, SpatialTransformer
        if self.remat:
            res_block = nn.remat(ResBlock, static_argnums=(3,))
            transformer = nn.remat(SpatialTransformer)

        def res(y, channels, name):
            fields = (channels, "none", False, 0.0, self.norm_groups, self.dtype)
            return res_block(*fields, name=name)(y, time, deterministic)

        def attend(y, num_heads, name):
            fields = num_heads, self.norm_groups, self.dtype
            return transformer(*fields, name=name)(y, context)

        def mlp(y, name):
            width = 4 * self.channels
            y = Dense(width, dtype=self.dtype, name=f"{name}_1")(y)
            return Dense(width, dtype=self.dtype, name=f"{name}_2")(nn.silu(y))

        time = layers.timestep_embedding(t, self.channels).astype(self.dtype)
        time = mlp(time, "time") + mlp(label.astype(self.dtype), "label")
        context = context.astype(self.dtype)
        conv: dict[str, Any]
        conv = {"kernel_size": (3, 3), "padding": 1, "dtype": self.dtype}
        h = nn.Conv(self.channels, **conv, name="conv_in")(x.astype(self.dtype))
        skips = [h]
        for i, mult in enumerate(self.channel_mult):
            for j in range(self.num_res_blocks):
                h = res(h, mult * self.channels, f"down_{i}_res_{j}")
                if heads[i]:
                    h = attend(h, heads[i], f"down_{i}_attn_{j}")
                skips.append(h)
            if i + 1 < levels:
                name = f"down_{i}_downsample"
                h = nn.Conv(h.shape[-1], strides=2, **conv, name=name)(h)
                skips.append(h)

        h = res(h, h.shape[-1], "mid_res_0")
        h = attend(h, self.mid_heads, "mid_attn")
        h = res(h, h.shape[-1], "mid_res_1")

        for i, mult in reversed(list(enumerate(self.channel_mult))):
            for j in range(self.num_res_blocks + 1):
                h = jnp.concatenate([h, skips.pop()], axis=-1)
                h = res(h, mult * self.channels, f"up_{i}_res_{j}")
                if heads[i]:
                    h = attend(h, heads[i], f"up_{i}_attn_{j}")
            if i:
                rows, columns = skips[-1].shape[1:3]  # may be odd
                h = upsample_nearest(h)[:, :rows, :columns]
                h = nn.Conv(h.shape[-1], **conv, name=f"up_{i}_upsample")(h)

        # what is predicted is not rounded to `dtype`
        h = nn.silu(layers.GroupNorm(self.norm_groups, name="norm_out")(h))
        conv |= {"dtype": jnp.float32, "kernel_init": nn.initializers.zeros}
        return nn.Conv(self.out_channels, **conv, name="conv_out")(h)
