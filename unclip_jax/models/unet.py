"""The ADM UNet (Dhariwal & Nichol 2021) as GLIDE and unCLIP use it, NHWC.

Res blocks with scale-shift (or shift) time conditioning, res-block down- and
up-sampling, and attention whose keys and values are [context, spatial] in one
softmax. Without attention and context it is the upsampler of the paper.
"""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from unclip_jax.errors import UsageError
from unclip_jax.models import dense, layers
from unclip_jax.shapes import (
    Context,
    ContextMask,
    Images,
    Maps,
    OutputImages,
    Resized,
    Times,
    Vector,
)

_zeros = nn.initializers.zeros


def space_to_depth(x: Maps, p: int) -> Maps:
    """(B, H, W, C) -> (B, H / p, W / p, p * p * C)."""
    b, h, w, c = x.shape
    if h % p or w % p:
        raise UsageError(f"image of {h}x{w} does not divide into patches of {p}")
    x = x.reshape(b, h // p, p, w // p, p, c).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(b, h // p, w // p, p * p * c)


def depth_to_space(x: Maps, p: int) -> Maps:
    """The inverse of `space_to_depth`."""
    b, h, w, c = x.shape
    x = x.reshape(b, h, w, p, p, c // (p * p)).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(b, h * p, w * p, c // (p * p))


def upsample_nearest(x: Maps) -> Maps:
    """(B, H, W, C) -> (B, 2H, 2W, C)."""
    return x.repeat(2, axis=1).repeat(2, axis=2)


def downsample_mean(x: Maps) -> Maps:
    """(B, H, W, C) -> (B, H / 2, W / 2, C) by 2x2 averages."""
    b, h, w, c = x.shape
    return x.reshape(b, h // 2, 2, w // 2, 2, c).mean((2, 4))


_Conv = functools.partial(
    nn.Conv, conv_general_dilated=layers.on_own_rows(jax.lax.conv_general_dilated)
)
_Dense = functools.partial(nn.Dense, dot_general=layers.on_own_rows(dense.product))


class ResBlock(nn.Module):
    """BigGAN-style residual block; `resample` is "none", "down" or "up"."""

    channels: int
    resample: str
    scale_shift: bool
    dropout: float
    norm_groups: int
    dtype: Any

    @nn.compact
    def __call__(self, x: Maps, emb: Vector, deterministic: bool) -> Maps:
        """(B, H, W, C), embedding (B, E) -> (B, H', W', channels)."""
        norm = {"groups": self.norm_groups, "dtype": self.dtype}
        conv = {"kernel_size": (3, 3), "padding": 1, "dtype": self.dtype}
        h = nn.silu(layers.GroupNorm(**norm, name="norm_1")(x))
        if self.resample == "up":
            x, h = upsample_nearest(x), upsample_nearest(h)
        elif self.resample == "down":
            x, h = downsample_mean(x), downsample_mean(h)
        h = _Conv(self.channels, **conv, name="conv_1")(h)
        width = self.channels * (2 if self.scale_shift else 1)
        mod = _Dense(width, dtype=self.dtype, name="time")(nn.silu(emb))
        mod = mod.astype(jnp.float32)
        if self.scale_shift:
            scale, shift = jnp.split(mod, 2, axis=-1)
            h = layers.GroupNorm(**norm, name="norm_2")(h, scale, shift)
        else:
            h = layers.GroupNorm(**norm, name="norm_2")(
                h + mod[:, None, None].astype(self.dtype)
            )
        h = nn.Dropout(self.dropout, deterministic=deterministic)(nn.silu(h))
        h = _Conv(self.channels, **conv, kernel_init=_zeros, name="conv_2")(h)
        if x.shape[-1] != self.channels:
            x = _Conv(self.channels, (1, 1), dtype=self.dtype, name="shortcut")(x)
        return layers.stored(x + h)


class AttentionBlock(nn.Module):
    """Attention over the pixels and, if given, a context, in one softmax (GLIDE)."""

    head_channels: int
    norm_groups: int
    dtype: Any

    @nn.compact
    def __call__(
        self, x: Images, context: Context | None = None, context_bias=None
    ) -> Images:
        """(B, H, W, C), context (B, S, K) or None -> (B, H, W, C)."""
        b, h, w, c = x.shape
        if c % self.head_channels:
            raise UsageError(
                f"{c} channels do not divide into heads of {self.head_channels}"
            )
        heads = c // self.head_channels

        def project(y, name):
            y = _Dense(c, dtype=self.dtype, name=name)(y)
            return layers.split_heads(y, heads)

        norm = layers.GroupNorm(self.norm_groups, dtype=self.dtype, name="norm")
        y = norm(x).reshape(b, h * w, c)
        q, k, v = (project(y, name) for name in ("q", "k", "v"))  # (B, H, S, D)
        bias = None
        if context is not None:
            k = jnp.concatenate([project(context, "context_k"), k], axis=2)
            v = jnp.concatenate([project(context, "context_v"), v], axis=2)
            if context_bias is not None:  # the pixels are always visible
                bias = jnp.pad(context_bias, ((0, 0),) * 3 + ((0, h * w),))
        y = layers.merge_heads(layers.attend(q, k, v, bias))
        y = _Dense(c, kernel_init=_zeros, dtype=self.dtype, name="out")(y)
        return layers.stored(x + y.reshape(b, h, w, c))


class UNet(nn.Module):
    """x (B, S, S, C) -> (B, S, S, out_channels) float32.

    `num_res_blocks` is one number, or one per level. `attention_resolutions` are sides
    of the feature map, in pixels after patching, of images of `image_size`: those of
    any other size have attention at the same levels. `patch_size` > 1 folds patches
    into channels first: down-sampling before any block. An "efficient" UNet does that
    and has its blocks where pictures are small: patches of 2 and (2, 3, 3, 4) blocks
    instead of 3 everywhere are 11% more parameters and 1 / 4.2 of the arithmetic of
    Karlo's decoder. `refine_channels` > 0 adds what three convolutions over pixels make
    of the result, which see what patches, through few channels, cannot: whether pixels
    agree with their neighbours. `remat` computes each block again in the
    backward pass instead of keeping what is inside it.
    """

    image_size: int
    out_channels: int
    channels: int
    channel_mult: tuple[int, ...]
    num_res_blocks: int | tuple[int, ...]
    attention_resolutions: tuple[int, ...] = ()
    head_channels: int = 64
    patch_size: int = 1
    refine_channels: int = 0
    scale_shift: bool = True
    dropout: float = 0.0
    norm_groups: int = 32
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
        """Predicts.

        Args:
          x: (B, S, S, C) noised image, with any conditioning image on its channels.
          t: (B,) timesteps.
          emb: optional (B, 4 * channels), added to the timestep embedding.
          context: optional (B, N, W) tokens for the attention blocks.
          context_mask: optional (B, N) bool, True where visible.
          deterministic: no dropout.
        """
        levels = len(self.channel_mult)
        depths = self.num_res_blocks
        depths = (depths,) * levels if isinstance(depths, int) else tuple(depths)
        if len(depths) != levels:
            raise UsageError(
                f"num_res_blocks {depths} must have one entry per level of "
                f"channel_mult {self.channel_mult}"
            )
        if context is not None:
            context = context.astype(self.dtype)
        bias = None if context_mask is None else layers.padding_bias(context_mask)
        res_block, attention_block = ResBlock, AttentionBlock
        if self.remat:
            res_block = nn.remat(ResBlock, static_argnums=(3,))
            attention_block = nn.remat(AttentionBlock)

        def res(y, channels, name, resample="none"):
            block = res_block(
                channels,
                resample,
                self.scale_shift,
                self.dropout,
                self.norm_groups,
                self.dtype,
                name=name,
            )
            return block(y, time, deterministic)

        def attend(y, name):
            block = attention_block(
                self.head_channels, self.norm_groups, self.dtype, name=name
            )
            return block(y, context, bias)

        width = 4 * self.channels
        time = layers.timestep_embedding(t, self.channels).astype(self.dtype)
        time = _Dense(width, dtype=self.dtype, name="time_1")(time)
        time = _Dense(width, dtype=self.dtype, name="time_2")(nn.silu(time))
        if emb is not None:
            time = time + emb.astype(self.dtype)

        h = space_to_depth(x.astype(self.dtype), self.patch_size)
        side = self.image_size // self.patch_size  # of that size, levels attend
        conv: dict[str, Any]
        conv = {"kernel_size": (3, 3), "padding": 1, "dtype": self.dtype}
        h = _Conv(self.channels, **conv, name="conv_in")(h)
        skips = [h]
        for i, mult in enumerate(self.channel_mult):
            for j in range(depths[i]):
                h = res(h, mult * self.channels, f"down_{i}_res_{j}")
                if side in self.attention_resolutions:
                    h = attend(h, f"down_{i}_attn_{j}")
                skips.append(h)
            if i + 1 < levels:
                h = res(h, mult * self.channels, f"down_{i}_downsample", "down")
                side //= 2
                skips.append(h)

        h = res(h, h.shape[-1], "mid_res_0")
        if self.attention_resolutions:
            h = attend(h, "mid_attn")
        h = res(h, h.shape[-1], "mid_res_1")

        for i, mult in reversed(list(enumerate(self.channel_mult))):
            for j in range(depths[i] + 1):
                h = jnp.concatenate([h, skips.pop()], axis=-1)
                h = res(h, mult * self.channels, f"up_{i}_res_{j}")
                if side in self.attention_resolutions:
                    h = attend(h, f"up_{i}_attn_{j}")
            if i:
                h = res(h, mult * self.channels, f"up_{i}_upsample", "up")
                side *= 2

        # what is predicted is not rounded to `dtype`: float32 from here on, as in ADM
        h = nn.silu(layers.GroupNorm(self.norm_groups, name="norm_out")(h))
        conv |= {"dtype": jnp.float32, "kernel_init": _zeros}
        out = self.out_channels * self.patch_size**2
        y = depth_to_space(_Conv(out, **conv, name="conv_out")(h), self.patch_size)
        return y + self._refine(y, time) if self.refine_channels else y

    def _refine(self, y, time):
        """y (B, S, S, out_channels) -> what to add to it.

        They do not see x: where there is little noise its pixels are a short cut, and
        the UNet learns shapes more slowly (docs/recipe.md).
        """
        conv: dict[str, Any]
        conv = {"kernel_size": (3, 3), "padding": 1}
        channels = self.refine_channels
        h = y.astype(self.dtype)
        h = _Conv(channels, dtype=self.dtype, **conv, name="refine_0")(h)
        shift = _Dense(channels, dtype=self.dtype, name="refine_time")(nn.silu(time))
        h = nn.silu(h + shift[:, None, None])
        h = nn.silu(_Conv(channels, dtype=self.dtype, **conv, name="refine_1")(h))
        return _Conv(y.shape[-1], kernel_init=_zeros, **conv, name="refine_2")(h)


def resize(x: Images, size: int) -> Resized:
    """Bilinear resize of (B, H, W, C) without antialiasing."""
    return jax.image.resize(
        x, (x.shape[0], size, size, x.shape[-1]), "bilinear", antialias=False
    )
