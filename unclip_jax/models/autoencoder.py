"""Autoencoders of latent diffusion: images to few-channel maps, and back, NHWC.

Two kinds, which share everything but what lies between encoder and decoder:

    num_codes = 0   AutoencoderKL (Rombach et al. 2022): a Gaussian per latent
    num_codes > 0   VQModel; with `spatial_norm` MoVQ (Zheng et al. 2022), whose
                    decoder reads the scale and shift of its norms off the latents
"""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from unclip_jax.errors import UsageError
from unclip_jax.models import layers
from unclip_jax.models.unet import upsample_nearest
from unclip_jax.shapes import Images, Maps

EPSILON = 1e-6  # of every norm


class SpatialNorm(nn.Module):
    """GroupNorm with a scale and a shift for every pixel, from the latents.

    Both are 1x1 convolutions of the enlarged latents; taken before the enlargement,
    which changes no number, they cost next to nothing.
    """

    groups: int
    dtype: Any

    @nn.compact
    def __call__(self, x: Images, z: Maps) -> Images:
        """(B, H, W, C), latents (B, h, w, D) with h dividing H -> (B, H, W, C)."""
        y = layers.GroupNorm(self.groups, EPSILON, self.dtype, name="norm")(x)
        factor = x.shape[1] // z.shape[1]

        def modulation(name):
            m = nn.Conv(x.shape[-1], (1, 1), dtype=self.dtype, name=name)(z)
            return m.repeat(factor, axis=1).repeat(factor, axis=2)

        return y * modulation("modulation_scale") + modulation("modulation_shift")


def _norm(x, z, groups, dtype, name):
    """A norm of x; modulated by the latents z, unless they are None."""
    if z is None:
        return layers.GroupNorm(groups, EPSILON, dtype, name=name)(x)
    return SpatialNorm(groups, dtype, name=name)(x, z)


class ResBlock(nn.Module):
    """Two convolutions, without a time embedding."""

    channels: int
    groups: int
    dtype: Any

    @nn.compact
    def __call__(
        self,
        x: Maps,
        z: Maps | None = None,
    ) -> Maps:
        """(B, H, W, C), latents or None -> (B, H, W, channels)."""
        conv: dict[str, Any]
        conv = {"kernel_size": (3, 3), "padding": 1, "dtype": self.dtype}
        h = nn.silu(_norm(x, z, self.groups, self.dtype, "norm_1"))
        h = nn.Conv(self.channels, **conv, name="conv_1")(h)
        h = nn.silu(_norm(h, z, self.groups, self.dtype, "norm_2"))
        h = nn.Conv(self.channels, **conv, name="conv_2")(h)
        if x.shape[-1] != self.channels:
            x = nn.Conv(self.channels, (1, 1), dtype=self.dtype, name="shortcut")(x)
        return x + h


class AttentionBlock(nn.Module):
    """Attention over the pixels, in one head."""

    groups: int
    dtype: Any

    @nn.compact
    def __call__(self, x: Images, z: Maps | None = None) -> Images:
        """(B, H, W, C), latents or None -> (B, H, W, C)."""
        b, h, w, c = x.shape
        y = _norm(x, z, self.groups, self.dtype, "norm").reshape(b, 1, h * w, c)
        q, k, v = (nn.Dense(c, dtype=self.dtype, name=name)(y) for name in "qkv")
        y = nn.Dense(c, dtype=self.dtype, name="out")(layers.attend(q, k, v))
        return x + y.reshape(b, h, w, c)


class Encoder(nn.Module):
    """(B, H, W, C) -> (B, H / f, W / f, out_channels), f = 2 ** (levels - 1)."""

    out_channels: int
    widths: tuple[int, ...]
    num_res_blocks: int
    attention_levels: tuple[int, ...]
    mid_attention: bool
    groups: int
    dtype: Any

    @nn.compact
    def __call__(self, x: Maps) -> Maps:
        """(B, H, W, C) -> (B, h, w, out_channels)."""
        block = self.groups, self.dtype
        conv: dict[str, Any]
        conv = {"kernel_size": (3, 3), "dtype": self.dtype}
        h = nn.Conv(self.widths[0], padding=1, **conv, name="conv_in")(x)
        for i, width in enumerate(self.widths):
            for j in range(self.num_res_blocks):
                h = ResBlock(width, *block, name=f"down_{i}_res_{j}")(h)
                if i in self.attention_levels:
                    h = AttentionBlock(*block, name=f"down_{i}_attn_{j}")(h)
            if i + 1 < len(self.widths):
                h = nn.Conv(
                    width,
                    strides=2,
                    padding=((0, 1), (0, 1)),  # as latent diffusion pads
                    **conv,
                    name=f"down_{i}_downsample",
                )(h)
        h = _middle(h, None, self.mid_attention, block)
        h = nn.silu(_norm(h, None, *block, "norm_out"))
        return nn.Conv(self.out_channels, padding=1, **conv, name="conv_out")(h)


class Decoder(nn.Module):
    """(B, h, w, C) -> (B, f h, f w, out_channels)."""

    out_channels: int
    widths: tuple[int, ...]
    num_res_blocks: int
    attention_levels: tuple[int, ...]
    mid_attention: bool
    groups: int
    dtype: Any

    @nn.compact
    def __call__(
        self,
        x: Maps,
        z: Maps | None = None,
    ) -> Maps:
        """(B, h, w, C), latents for SpatialNorm or None -> (B, H, W, out_channels)."""
        block = self.groups, self.dtype
        conv: dict[str, Any]
        conv = {"kernel_size": (3, 3), "padding": 1, "dtype": self.dtype}
        h = nn.Conv(self.widths[-1], **conv, name="conv_in")(x)
        h = _middle(h, z, self.mid_attention, block)
        for i, width in reversed(list(enumerate(self.widths))):
            for j in range(self.num_res_blocks + 1):
                h = ResBlock(width, *block, name=f"up_{i}_res_{j}")(h, z)
                if i in self.attention_levels:
                    h = AttentionBlock(*block, name=f"up_{i}_attn_{j}")(h, z)
            if i:
                h = upsample_nearest(h)
                h = nn.Conv(width, **conv, name=f"up_{i}_upsample")(h)
        h = nn.silu(_norm(h, z, *block, "norm_out"))
        return nn.Conv(self.out_channels, **conv, name="conv_out")(h)


def _middle(h, z, attention, block):
    width = h.shape[-1]
    h = ResBlock(width, *block, name="mid_res_0")(h, z)
    if attention:
        h = AttentionBlock(*block, name="mid_attn")(h, z)
    return ResBlock(width, *block, name="mid_res_1")(h, z)


class Autoencoder(nn.Module):
    """Images (B, H, W, 3) in [-1, 1] to latents (B, H / f, W / f, C), and back.

    `latent_scale` is what the encoder's output is multiplied by for diffusion, so that
    latents have a standard deviation of about 1. `attention_levels` are those whose
    blocks attend, 0 the full resolution; the middle does unless `mid_attention` is
    False. `code_channels` is the width of the codes; None: of the latents.
    """

    channels: int
    channel_mult: tuple[int, ...]
    num_res_blocks: int = 2
    attention_levels: tuple[int, ...] = ()
    mid_attention: bool = True
    latent_channels: int = 4
    num_codes: int = 0
    code_channels: int | None = None
    spatial_norm: bool = False
    latent_scale: float = 1.0
    image_size: int = 256  # that it was trained on; any multiple of f will do
    norm_groups: int = 32
    dtype: Any = jnp.float32

    @property
    def factor(self) -> int:
        """f, the side of an image over that of its latents."""
        return 2 ** (len(self.channel_mult) - 1)

    def setup(self):
        """Declares the layers; UsageError for spatial norms without codes."""
        if self.spatial_norm and not self.num_codes:
            raise UsageError("autoencoder: spatial_norm needs num_codes (it is MoVQ's)")
        shared = {
            "widths": tuple(self.channels * mult for mult in self.channel_mult),
            "num_res_blocks": self.num_res_blocks,
            "attention_levels": tuple(self.attention_levels),
            "mid_attention": self.mid_attention,
            "groups": self.norm_groups,
            "dtype": self.dtype,
        }
        width = self.code_channels or self.latent_channels
        variational = not self.num_codes
        moments = (1 + variational) * self.latent_channels
        self.encoder = Encoder(out_channels=moments, **shared)
        self.decoder = Decoder(out_channels=3, **shared)
        pointwise = {"kernel_size": (1, 1), "dtype": self.dtype}
        self.quant_conv = nn.Conv(moments if variational else width, **pointwise)
        self.post_quant_conv = nn.Conv(self.latent_channels, **pointwise)
        if self.num_codes:
            init = nn.initializers.variance_scaling(1.0, "fan_out", "uniform")
            shape = self.num_codes, width
            self.codebook = self.param("codebook", init, shape)

    def encode(
        self,
        images: Maps,
        noise: Maps | None = None,
    ) -> Maps:
        """Latents (B, h, w, C) float32 of images (B, H, W, 3), not quantized.

        Args:
          images: in [-1, 1]; H and W are multiples of f.
          noise: (B, h, w, C) standard normal, for a sample of the Gaussian of latents
            instead of its mean. A vector-quantized autoencoder has none.

        Raises:
          UsageError: another H or W, or noise that has no meaning.
        """
        if noise is not None and self.num_codes:
            raise UsageError("noise for a vector-quantized autoencoder: it draws none")
        mean, std = self.encode_moments(images)
        return mean if noise is None else mean + std * noise

    def encode_moments(self, images):
        """Mean and standard deviation of the latents of images, scaled as `encode`'s.

        Returns:
          Two of (B, h, w, C) float32; None for the second of a vector-quantized
          autoencoder.

        Raises UsageError for an H or W that is no multiple of f.
        """
        if images.shape[1] % self.factor or images.shape[2] % self.factor:
            raise UsageError(
                f"images of {images.shape[1]}x{images.shape[2]} do not divide into "
                f"latents of {self.factor}x{self.factor} pixels: crop or resize them"
            )
        h = self.encoder(images.astype(self.dtype))
        latents = self.quant_conv(h).astype(jnp.float32)
        if self.num_codes:
            return latents * self.latent_scale, None
        mean, log_variance = jnp.split(latents, 2, axis=-1)
        std = jnp.exp(0.5 * log_variance.clip(-30, 20))  # as in latent diffusion
        return mean * self.latent_scale, std * self.latent_scale

    def quantize(self, latents: Images) -> Images:
        """Replaces each latent (B, h, w, C) by the nearest code, float32."""
        codes = self.codebook
        distance = jnp.square(codes).sum(-1) - 2 * latents @ codes.T  # (B, h, w, codes)
        return codes[jnp.argmin(distance, axis=-1)]

    def decode(self, latents: Maps) -> Maps:
        """Images (B, f h, f w, 3) float32 of latents (B, h, w, C), as they are.

        Nothing is quantized here, which is how diffusion's latents are decoded.
        """
        z = (latents / self.latent_scale).astype(self.dtype)
        images = self.decoder(self.post_quant_conv(z), z if self.spatial_norm else None)
        return images.astype(jnp.float32)

    def __call__(self, images: Images) -> Images:
        """Images (B, H, W, 3) -> what the autoencoder makes of them."""
        latents = self.encode(images)
        return self.decode(self.quantize(latents) if self.num_codes else latents)
