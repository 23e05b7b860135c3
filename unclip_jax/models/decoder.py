"""The unCLIP decoder: GLIDE's UNet conditioned on a CLIP image embedding.

Paper, section 2.1: the embedding is projected and added to the timestep
embedding, and projected into four extra tokens that join the caption's.
"""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from unclip_jax.models import layers
from unclip_jax.models.text_transformer import (
    TextTransformer,
    drop_captions,
    text_mask,
)
from unclip_jax.models.unet import UNet


class Decoder(nn.Module):
    """UNet, caption encoder and CLIP projections in one module."""

    image_size: int
    channels: int
    channel_mult: tuple[int, ...]
    num_res_blocks: int | tuple[int, ...]
    attention_resolutions: tuple[int, ...]
    embed_dim: int
    vocab_size: int
    context_length: int
    eot_id: int
    text_width: int
    text_depth: int
    text_heads: int
    head_channels: int = 64
    patch_size: int = 1
    num_clip_tokens: int = 4
    learned_sigma: bool = True
    scale_shift: bool = True
    dropout: float = 0.0
    norm_groups: int = 32
    unit_norm: bool = False
    scan_layers: bool = False
    remat: bool = False
    dtype: Any = jnp.float32

    def setup(self):
        self.space = layers.EmbeddingSpace(self.embed_dim, self.unit_norm)
        self.null_clip_image = self.param(
            "null_clip_image", nn.initializers.zeros, (self.embed_dim,)
        )
        width = 4 * self.channels
        dense = {"dtype": self.dtype}
        self.clip_to_time = nn.Dense(width, **dense)
        self.clip_to_tokens = nn.Dense(self.num_clip_tokens * self.text_width, **dense)
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
        self.text_to_time = nn.Dense(width, **dense)
        self.unet = UNet(
            image_size=self.image_size,
            out_channels=6 if self.learned_sigma else 3,
            channels=self.channels,
            channel_mult=self.channel_mult,
            num_res_blocks=self.num_res_blocks,
            attention_resolutions=self.attention_resolutions,
            head_channels=self.head_channels,
            patch_size=self.patch_size,
            scale_shift=self.scale_shift,
            dropout=self.dropout,
            norm_groups=self.norm_groups,
            remat=self.remat,
            dtype=self.dtype,
        )

    def __call__(
        self,
        x_t,
        t,
        clip_image,
        tokens,
        drop_clip,
        drop_text,
        deterministic: bool = True,
    ):
        """Predicts the noise and, with `learned_sigma`, the variance.

        Args:
          x_t: (B, S, S, 3) noised images, x_0 in [-1, 1].
          t: (B,) integer timesteps.
          clip_image: (B, D) raw CLIP image embeddings.
          tokens: (B, L) int32 caption tokens.
          drop_clip: (B,) bool; True rows see the learned null embedding.
          drop_text: (B,) bool; True rows see the empty caption.
          deterministic: no dropout.

        Returns:
          (B, S, S, 6) float32, or (B, S, S, 3) without `learned_sigma`.
        """
        b = x_t.shape[0]
        z = self.space.normalize(clip_image)
        z = jnp.where(drop_clip[:, None], self.null_clip_image, z)
        z = z.astype(self.dtype)
        tokens = drop_captions(tokens, drop_text, self.eot_id)
        states, feature = self.text(tokens, deterministic)  # (B, L, W), (B, W)
        emb = self.clip_to_time(z) + self.text_to_time(feature)
        clip_tokens = self.clip_to_tokens(z).reshape(b, self.num_clip_tokens, -1)
        context = jnp.concatenate([clip_tokens, states], axis=1)  # (B, 4 + L, W)
        mask = jnp.concatenate(
            [
                jnp.ones((b, self.num_clip_tokens), bool),
                text_mask(tokens, self.eot_id),
            ],
            axis=1,
        )
        return self.unet(x_t, t, emb, context, mask, deterministic)
