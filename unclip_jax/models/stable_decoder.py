"""The decoder of Stable unCLIP 2.1: Stable Diffusion's UNet, steered by an embedding.

The CLIP image embedding comes noised, by as much as a noise level says (Ho et al. 2022,
"Cascaded diffusion models": conditioning augmentation), and joins the timestep
embedding together with that level. The caption comes as the states of a frozen text
encoder, every one of them visible, padding too.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from unclip_jax.errors import UsageError
from unclip_jax.models import layers
from unclip_jax.models.unet_sd import StableUNet
from unclip_jax.shapes import (
    Drop,
    Embeddings,
    Images,
    OutputImages,
    TextStates,
    Times,
    Tokens,
)


class StableDecoder(nn.Module):
    """A decoder of latents; called as `decoder.Decoder`, with a level as its `extra`.

    `pad_id` is the token that fills captions. What the text encoder makes of the empty
    caption is kept in a parameter that no gradient reaches; `space` has the mean and
    standard deviation of embeddings, between which and themselves they are noised.
    """

    image_size: int
    embed_dim: int
    vocab_size: int
    context_length: int
    eot_id: int
    pad_id: int
    text_width: int
    channels: int
    channel_mult: tuple[int, ...]
    num_heads: tuple[int, ...]
    mid_heads: int
    num_res_blocks: int = 2
    image_channels: int = 4
    learned_sigma: bool = False
    norm_groups: int = 32
    remat: bool = False
    dtype: Any = jnp.float32

    caption = "text_states"
    extra = "noise_level"
    is_latent = True

    @property
    def size_multiple(self) -> int:
        """Any size of latents will do."""
        return 1

    def setup(self):
        """Declares the layers."""
        self.space = layers.EmbeddingSpace(self.embed_dim)
        shape = self.context_length, self.text_width
        empty = self.param("empty_text_states", nn.initializers.zeros, shape)
        self.empty_text_states = jax.lax.stop_gradient(empty)
        self.unet = StableUNet(
            out_channels=self.image_channels * (1 + self.learned_sigma),
            channels=self.channels,
            channel_mult=self.channel_mult,
            num_res_blocks=self.num_res_blocks,
            num_heads=self.num_heads,
            mid_heads=self.mid_heads,
            norm_groups=self.norm_groups,
            remat=self.remat,
            dtype=self.dtype,
        )

    def normalize(self, raw: Embeddings) -> Embeddings:
        """Raw embeddings (B, D) -> those that noise is added to."""
        return self.space.normalize(raw)

    def denormalize(self, z: Embeddings) -> Embeddings:
        """The inverse of `normalize`."""
        return self.space.denormalize(z)

    def __call__(
        self,
        x_t: Images,
        t: Times,
        clip_image: Embeddings,
        tokens: Tokens | None,
        drop_clip: Drop,
        drop_text: Drop,
        clip_text: Embeddings | None = None,
        text_states: TextStates | None = None,
        extra=None,
        deterministic: bool = True,
    ) -> OutputImages:
        """Predicts what the part's config says, v in Stable unCLIP.

        Args:
          x_t: (B, H, W, C) noised latents.
          t: (B,) integer timesteps.
          clip_image: (B, D) raw CLIP image embeddings, noised.
          tokens: not looked at.
          drop_clip: (B,) bool; True rows see zeros in place of embedding and level.
          drop_text: (B,) bool; True rows see the empty caption.
          clip_text: not looked at.
          text_states: (B, L, W) of the text encoder.
          extra: (B,) noise levels of the embeddings.
          deterministic: no dropout.

        Returns:
          (B, H, W, C) float32.
        """
        del tokens, clip_text
        if text_states is None or extra is None:
            raise UsageError(
                "this decoder needs text_states of its text encoder and, as extra, the "
                "noise levels of its embeddings"
            )
        if self.is_initializing():
            self.space.normalize(clip_image)  # makes its parameters; not used here
        level = layers.timestep_embedding(extra, self.embed_dim)
        label = jnp.concatenate([clip_image.astype(jnp.float32), level], axis=-1)
        label = jnp.where(drop_clip[:, None], 0, label)  # (B, 2 D)
        empty = self.empty_text_states[: text_states.shape[1]]
        states = jnp.where(drop_text[:, None, None], empty, text_states)
        return self.unet(x_t, t, label, states, deterministic)
