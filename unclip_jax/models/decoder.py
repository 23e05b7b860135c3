"""The unCLIP decoder: GLIDE's UNet conditioned on a CLIP image embedding.

Paper, section 2.1: the embedding is projected and added to the timestep
embedding, and projected into four extra tokens that join the caption's. The caption
enters in one of two forms:

    tokens       read by a transformer of the decoder's own (GLIDE, the paper)
    clip_states  the frozen CLIP's text states and text embedding, projected: the form
                 of Karlo, diffusers' UnCLIPTextProjModel and UNet2DConditionModel
"""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from unclip_jax.errors import UsageError
from unclip_jax.models import layers
from unclip_jax.models.clip_caption import (
    check_caption,
    drop_clip_captions,
    make_empty_caption,
)
from unclip_jax.models.text_transformer import (
    TextTransformer,
    drop_captions,
    text_mask,
)
from unclip_jax.models.unet import UNet


class Decoder(nn.Module):
    """UNet, caption encoder and CLIP projections in one module.

    Fields of the UNet are described there. `text_width` is the width of the UNet's
    context; `text_depth` and `text_heads` are those of the caption encoder, which
    "clip_states" has not. In that form the empty caption is kept in parameters that no
    gradient reaches: give it with `clip_caption.with_empty_caption`. `remat` and
    `scan_layers` (of the caption encoder) trade time for memory and compile time.
    """

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
    text_depth: int = 0
    text_heads: int = 0
    caption: str = "tokens"  # one of clip_caption.CAPTIONS
    text_states_width: int | None = None  # of CLIP's text states; None: embed_dim
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
        """Declares the layers; UsageError for an unknown `caption`."""
        check_caption(self.caption, "decoder")
        self.space = layers.EmbeddingSpace(self.embed_dim, self.unit_norm)
        self.null_clip_image = self.param(
            "null_clip_image", nn.initializers.zeros, (self.embed_dim,)
        )
        time_width = 4 * self.channels
        dense = {"dtype": self.dtype}
        self.clip_to_time = nn.Dense(time_width, **dense)
        self.clip_to_tokens = nn.Dense(self.num_clip_tokens * self.text_width, **dense)
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
        else:
            self.text_states_in = nn.Dense(self.text_width, **dense)
            self.text_states_norm = layers.LayerNorm(dtype=self.dtype)
            width = self.text_states_width or self.embed_dim
            self.empty_caption = make_empty_caption(
                self, self.context_length, width, self.embed_dim
            )
        self.text_to_time = nn.Dense(time_width, **dense)
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
        clip_text=None,
        text_states=None,
        deterministic: bool = True,
    ):
        """Predicts the noise and, with `learned_sigma`, the variance.

        Args:
          x_t: (B, S, S, 3) noised images, x_0 in [-1, 1].
          t: (B,) integer timesteps.
          clip_image: (B, D) raw CLIP image embeddings.
          tokens: (B, L) int32 caption tokens; of "clip_states", for the mask alone.
          drop_clip: (B,) bool; True rows see the learned null embedding.
          drop_text: (B,) bool; True rows see the empty caption.
          clip_text: (B, D) raw CLIP text embeddings, for "clip_states" only.
          text_states: (B, L, W) CLIP's states of the tokens, for "clip_states" only.
          deterministic: no dropout.

        Returns:
          (B, S, S, 6) float32, or (B, S, S, 3) without `learned_sigma`.
        """
        b = x_t.shape[0]
        z = self.space.normalize(clip_image)
        z = jnp.where(drop_clip[:, None], self.null_clip_image, z)
        z = z.astype(self.dtype)
        tokens = drop_captions(tokens, drop_text, self.eot_id)
        if self.caption == "tokens":
            states, feature = self.text(tokens, deterministic)  # (B, L, W), (B, W)
        else:
            states, feature = drop_clip_captions(
                text_states, clip_text, drop_text, self.empty_caption
            )
            states = self.text_states_norm(self.text_states_in(states))  # (B, L, W)
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

    def _check_caption_encoder(self):
        if not self.text_depth or not self.text_heads:
            raise UsageError(
                "decoder: text_depth and text_heads must be given unless caption is "
                "'clip_states'"
            )
