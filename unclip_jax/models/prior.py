"""The diffusion prior: a causal transformer that denoises CLIP image embeddings.

Paper, section 2.2: the sequence is, in order, the caption's tokens, the CLIP text
embedding, the timestep, the noised CLIP image embedding and a learned query whose
output predicts the un-noised embedding.
"""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from unclip_jax.models import layers
from unclip_jax.models.text_transformer import drop_captions, text_mask


class DiffusionPrior(nn.Module):
    """Predicts x0 in the prior's own embedding space (see EmbeddingSpace)."""

    embed_dim: int
    vocab_size: int
    context_length: int
    eot_id: int
    width: int
    depth: int
    num_heads: int
    dropout: float = 0.0
    unit_norm: bool = False
    scan_layers: bool = False
    remat: str = "none"
    dtype: Any = jnp.float32

    def setup(self):
        init = nn.initializers.normal(0.02)
        dense = {"dtype": self.dtype}
        self.space = layers.EmbeddingSpace(self.embed_dim, self.unit_norm)
        self.token_embedding = nn.Embed(
            self.vocab_size, self.width, embedding_init=init, dtype=self.dtype
        )
        self.positional_embedding = self.param(
            "positional_embedding", init, (self.context_length + 4, self.width)
        )
        self.query = self.param("query", init, (self.width,))
        self.null_clip_text = self.param("null_clip_text", init, (self.embed_dim,))
        self.clip_text_in = nn.Dense(self.width, **dense)
        self.clip_image_in = nn.Dense(self.width, **dense)
        self.time_1 = nn.Dense(self.width, **dense)
        self.time_2 = nn.Dense(self.width, **dense)
        self.transformer = layers.Transformer(
            self.depth,
            self.num_heads,
            dropout=self.dropout,
            scan_layers=self.scan_layers,
            remat=self.remat,
            dtype=self.dtype,
        )
        self.ln_final = layers.LayerNorm(dtype=self.dtype)
        self.clip_image_out = nn.Dense(self.embed_dim, **dense)

    def normalize(self, raw):
        """Raw CLIP image embeddings (B, D) -> the space the prior diffuses in."""
        return self.space.normalize(raw)

    def denormalize(self, z):
        """The inverse of `normalize`."""
        return self.space.denormalize(z)

    def __call__(self, x_t, t, tokens, clip_text, drop, deterministic: bool = True):
        """Denoises.

        Args:
          x_t: (B, D) noised image embeddings in the prior's space.
          t: (B,) integer timesteps.
          tokens: (B, L) int32 caption tokens.
          clip_text: (B, D) raw CLIP text embeddings.
          drop: (B,) bool; True rows see the empty caption and a learned null text
            embedding, the unconditional model of classifier-free guidance.
          deterministic: no dropout.

        Returns:
          (B, D) float32, the prediction of x0.
        """
        if self.is_initializing():
            self.space.normalize(x_t)  # makes its parameters; not used here
        b = x_t.shape[0]
        tokens = drop_captions(tokens, drop, self.eot_id)
        clip_text = jnp.where(drop[:, None], self.null_clip_text, clip_text)
        time = layers.timestep_embedding(t, self.width).astype(self.dtype)
        time = self.time_2(nn.silu(self.time_1(time)))
        query = jnp.broadcast_to(self.query.astype(self.dtype), (b, self.width))
        tail = [self.clip_text_in(clip_text), time, self.clip_image_in(x_t), query]
        x = jnp.concatenate(
            [self.token_embedding(tokens), jnp.stack(tail, axis=1)], axis=1
        )  # (B, L + 4, W)
        length = tokens.shape[1]
        pos = self.positional_embedding
        pos = jnp.concatenate([pos[:length], pos[-4:]]).astype(self.dtype)
        visible = jnp.concatenate(
            [text_mask(tokens, self.eot_id), jnp.ones((b, 4), bool)], axis=1
        )
        bias = layers.causal_bias(length + 4) + layers.padding_bias(visible)
        x = self.transformer(x + pos, bias, deterministic)
        return self.clip_image_out(self.ln_final(x[:, -1])).astype(jnp.float32)
