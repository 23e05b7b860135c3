"""The unCLIP decoder: a denoiser of images, conditioned on a CLIP image embedding.

Paper, section 2.1: the embedding is projected and added to the timestep
embedding, and projected into four extra tokens that join the caption's. The caption
enters in one of three forms:

    tokens       read by a transformer of the decoder's own (GLIDE, the paper)
    clip_states  the frozen CLIP's text states and text embedding, projected: the form
                 of Karlo, diffusers' UnCLIPTextProjModel and UNet2DConditionModel
    none         not at all: Kandinsky 2.2, whose decoder sees the image embedding only

Kandinsky's draws latents of an autoencoder (`image_channels`), normalizes both
projections (`clip_norm`), and two of its decoders see something else besides (`extra`).

What is conditioned is GLIDE's UNet or a transformer over patches: BACKBONES.
"""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from unclip_jax.errors import UsageError
from unclip_jax.models import layers
from unclip_jax.models.clip_caption import (
    CAPTIONS,
    check_caption,
    drop_clip_captions,
    make_empty_caption,
)
from unclip_jax.models.dense import Dense
from unclip_jax.models.pixel_transformer import PixelTransformer
from unclip_jax.models.text_transformer import (
    TextTransformer,
    drop_captions,
    text_mask,
)
from unclip_jax.models.unet import UNet
from unclip_jax.shapes import (
    Drop,
    Embeddings,
    Images,
    Maps,
    OutputImages,
    TextStates,
    Times,
    Tokens,
)

# What a decoder may see besides: the picture around a mask, or a depth map.
EXTRAS = ("none", "inpaint", "hint")
# (channels, stride) of the convolutions from a hint to the size of latents.
HINT_CONVS = ((16, 1), (16, 1), (32, 2), (32, 1), (96, 2), (96, 1), (256, 2))
HINT_FACTOR = 8


class HintEncoder(nn.Module):
    """A hint (B, 8 H, 8 W, 3), such as a depth map -> (B, H, W, channels)."""

    channels: int
    dtype: Any

    @nn.compact
    def __call__(self, hint: Maps) -> Maps:
        """(B, 8 H, 8 W, 3) in [-1, 1] -> (B, H, W, channels)."""
        conv: dict[str, Any]
        conv = {"kernel_size": (3, 3), "padding": 1, "dtype": self.dtype}
        h = hint.astype(self.dtype)
        for i, (channels, stride) in enumerate(HINT_CONVS):
            h = nn.silu(nn.Conv(channels, strides=stride, **conv, name=f"conv_{i}")(h))
        return nn.Conv(self.channels, **conv, name=f"conv_{len(HINT_CONVS)}")(h)


class Decoder(nn.Module):
    """Caption encoder, CLIP projections and, in subclasses, the backbone they steer.

    A subclass has `time_width`, declares its backbone in `setup` and calls it in
    `denoise`.

    `text_width` is the width of the backbone's context; `text_depth` and `text_heads`
    are those of the caption encoder, which "clip_states" has not. In that form the
    empty caption is kept in parameters that no gradient reaches: give it with
    `clip_caption.with_empty_caption`. `image_size` and `image_channels` are of what is
    denoised, an image or latents. `remat` and `scan_layers` trade time for memory and
    compile time.
    """

    image_size: int
    embed_dim: int
    vocab_size: int
    context_length: int
    eot_id: int
    text_width: int
    text_depth: int = 0
    text_heads: int = 0
    caption: str = "tokens"  # one of clip_caption.CAPTIONS, or "none"
    text_states_width: int | None = None  # of CLIP's text states; None: embed_dim
    num_clip_tokens: int = 4
    clip_norm: bool = False  # LayerNorms after both projections of the embedding
    image_channels: int = 3
    extra: str = "none"  # one of EXTRAS
    learned_sigma: bool = True
    dropout: float = 0.0
    unit_norm: bool = False
    scan_layers: bool = False
    remat: bool = False
    dtype: Any = jnp.float32

    @property
    def is_latent(self) -> bool:
        """Whether what is denoised are latents, for an autoencoder to decode."""
        return self.image_channels != 3

    def setup(self):
        """Declares the layers; UsageError for an unknown `caption` or `extra`."""
        check_caption(self.caption, "decoder", (*CAPTIONS, "none"))
        if self.extra not in EXTRAS:
            raise UsageError(
                f"decoder: extra {self.extra!r}, expected one of {', '.join(EXTRAS)}"
            )
        self.space = layers.EmbeddingSpace(self.embed_dim, self.unit_norm)
        self.null_clip_image = self.param(
            "null_clip_image", nn.initializers.zeros, (self.embed_dim,)
        )
        dense = {"dtype": self.dtype}
        self.clip_to_time = Dense(self.time_width, **dense)
        self.clip_to_tokens = Dense(self.num_clip_tokens * self.text_width, **dense)
        if self.clip_norm:
            self.clip_to_time_norm = layers.LayerNorm(dtype=self.dtype)
            self.clip_to_tokens_norm = layers.LayerNorm(dtype=self.dtype)
        if self.extra == "hint":
            self.hint = HintEncoder(self.image_channels, self.dtype)
        if self.caption == "tokens":
            self._check_caption_encoder()
            self.text = TextTransformer(
                self.vocab_size,
                self.context_length,
                self.text_width,
                self.text_depth,
                self.text_heads,
                self.eot_id,
                scan_layers=self.scan_layers,
                remat="full" if self.remat else "none",
                dtype=self.dtype,
            )
        elif self.caption == "clip_states":
            self.text_states_in = Dense(self.text_width, **dense)
            self.text_states_norm = layers.LayerNorm(dtype=self.dtype)
            width = self.text_states_width or self.embed_dim
            self.empty_caption = make_empty_caption(
                self, self.context_length, width, self.embed_dim
            )
        if self.caption != "none":
            self.text_to_time = Dense(self.time_width, **dense)

    @property
    def size_multiple(self) -> int | None:
        """What the sides of other images than the trained ones must be multiples of.

        None: there are no others.
        """
        return None

    @property
    def time_width(self) -> int:
        """Width of the timestep embedding, which the CLIP embedding is added to."""
        raise NotImplementedError

    @property
    def out_channels(self) -> int:
        """Channels that the backbone puts out."""
        return self.image_channels * (1 + self.learned_sigma)

    def denoise(self, x_t, t, emb, context, mask, deterministic):
        """Calls the backbone; arguments as of `unet.UNet`."""
        raise NotImplementedError

    def __call__(
        self,
        x_t: Images,
        t: Times,
        clip_image: Embeddings,
        tokens: Tokens,
        drop_clip: Drop,
        drop_text: Drop,
        clip_text: Embeddings | None = None,
        text_states: TextStates | None = None,
        extra=None,
        deterministic: bool = True,
    ) -> OutputImages:
        """Predicts the noise and, with `learned_sigma`, the variance.

        Args:
          x_t: (B, H, W, C) noised images, x_0 in [-1, 1], or latents.
          t: (B,) integer timesteps.
          clip_image: (B, D) raw CLIP image embeddings.
          tokens: (B, L) int32 caption tokens; of "clip_states", for the mask alone.
          drop_clip: (B,) bool; True rows see the null embedding, which is learned or,
            in Kandinsky, that of an empty image.
          drop_text: (B,) bool; True rows see the empty caption.
          clip_text: (B, D) raw CLIP text embeddings, for "clip_states" only.
          text_states: (B, L, W) CLIP's states of the tokens, for "clip_states" only.
          extra: for "inpaint" (B, H, W, C + 1), latents of the image without what is
            masked, and the mask, 1 where it stays; for "hint" (B, 8 H, 8 W, 3).
          deterministic: no dropout.

        Returns:
          (B, H, W, 2 C) float32, or (B, H, W, C) without `learned_sigma`.
        """
        z = self.space.normalize(clip_image)
        z = jnp.where(drop_clip[:, None], self.null_clip_image, z)
        z = z.astype(self.dtype)
        emb = self.clip_to_time(z)
        context = self.clip_to_tokens(z)
        context = context.reshape(len(z), self.num_clip_tokens, self.text_width)
        if self.clip_norm:
            emb = self.clip_to_time_norm(emb)
            context = self.clip_to_tokens_norm(context)
        mask = None
        if self.caption != "none":
            tokens = drop_captions(tokens, drop_text, self.eot_id)
            states, feature = self._read_caption(
                tokens, drop_text, clip_text, text_states, deterministic
            )
            emb = emb + self.text_to_time(feature)
            context = jnp.concatenate([context, states], axis=1)  # (B, 4 + L, W)
            mask = jnp.concatenate(
                [
                    jnp.ones((len(z), self.num_clip_tokens), bool),
                    text_mask(tokens, self.eot_id),
                ],
                axis=1,
            )
        x_t = self._with_extra(x_t, extra)
        return self.denoise(x_t, t, emb, context, mask, deterministic)

    def _read_caption(self, tokens, drop, clip_text, text_states, deterministic):
        """Returns the caption's states (B, L, W) and feature (B, W)."""
        if self.caption == "tokens":
            return self.text(tokens, deterministic)
        states, feature = drop_clip_captions(
            text_states, clip_text, drop, self.empty_caption
        )
        return self.text_states_norm(self.text_states_in(states)), feature

    def _with_extra(self, x_t, extra):
        """Puts on the channels of x_t what the decoder sees besides."""
        if (extra is None) != (self.extra == "none"):
            needs = "nothing" if self.extra == "none" else f"the input {self.extra!r}"
            raise UsageError(f"this decoder takes {needs} beside x_t")
        if extra is None:
            return x_t
        if self.extra == "hint":
            extra = self.hint(extra)
        return jnp.concatenate([x_t, extra], axis=-1)

    def _check_caption_encoder(self):
        if not self.text_depth or not self.text_heads:
            raise UsageError(
                "decoder: text_depth and text_heads must be given unless caption is "
                "'clip_states'"
            )


class UNetDecoder(Decoder, kw_only=True):
    """The paper's decoder; the fields are those of `unet.UNet`."""

    channels: int
    channel_mult: tuple[int, ...]
    num_res_blocks: int | tuple[int, ...]
    attention_resolutions: tuple[int, ...]
    head_channels: int = 64
    patch_size: int = 1
    refine_channels: int = 0
    scale_shift: bool = True
    norm_groups: int = 32

    def setup(self):
        """Declares the layers."""
        super().setup()
        self.unet = UNet(
            image_size=self.image_size,
            out_channels=self.out_channels,
            channels=self.channels,
            channel_mult=self.channel_mult,
            num_res_blocks=self.num_res_blocks,
            attention_resolutions=self.attention_resolutions,
            head_channels=self.head_channels,
            patch_size=self.patch_size,
            refine_channels=self.refine_channels,
            scale_shift=self.scale_shift,
            dropout=self.dropout,
            norm_groups=self.norm_groups,
            remat=self.remat,
            dtype=self.dtype,
        )

    @property
    def size_multiple(self) -> int:
        """A pixel at the lowest resolution."""
        return self.patch_size * 2 ** (len(self.channel_mult) - 1)

    @property
    def time_width(self) -> int:
        """Width of the timestep embedding."""
        return 4 * self.channels

    def denoise(self, x_t, t, emb, context, mask, deterministic):
        """Calls the UNet."""
        return self.unet(x_t, t, emb, context, mask, deterministic)


class TransformerDecoder(Decoder, kw_only=True):
    """A decoder without convolutions; the fields are those of PixelTransformer."""

    patch_size: int
    width: int
    depth: int
    num_heads: int
    mlp_ratio: float = 4.0
    learned_sigma: bool = False

    def setup(self):
        """Declares the layers."""
        super().setup()
        self.transformer = PixelTransformer(
            image_size=self.image_size,
            out_channels=self.out_channels,
            patch_size=self.patch_size,
            width=self.width,
            depth=self.depth,
            num_heads=self.num_heads,
            mlp_ratio=self.mlp_ratio,
            dropout=self.dropout,
            scan_layers=self.scan_layers,
            remat=self.remat,
            dtype=self.dtype,
        )

    @property
    def time_width(self) -> int:
        """Width of the timestep embedding."""
        return self.width

    def denoise(self, x_t, t, emb, context, mask, deterministic):
        """Calls the transformer."""
        return self.transformer(x_t, t, emb, context, mask, deterministic)


BACKBONES = {"unet": UNetDecoder, "transformer": TransformerDecoder}
