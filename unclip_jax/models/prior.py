"""The diffusion prior: a causal transformer that denoises CLIP image embeddings.

Paper, section 2.2: the sequence is, in order, the caption's tokens, the CLIP text
embedding, the timestep, the noised CLIP image embedding and a learned query whose
output predicts the un-noised embedding. The caption enters in one of two forms:

    tokens       embedded by the prior itself, the paper's form
    clip_states  the frozen CLIP's text states, projected: the form of Karlo and
                 Kandinsky, diffusers' PriorTransformer
"""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from unclip_jax.models import layers
from unclip_jax.models.clip_caption import (
    check_caption,
    drop_clip_captions,
    make_empty_caption,
)
from unclip_jax.models.dense import Dense
from unclip_jax.models.text_transformer import drop_captions, text_mask
from unclip_jax.shapes import Drop, Embeddings, TextStates, Times, Tokens


class DiffusionPrior(nn.Module):
    """Predicts x0 in the prior's own embedding space (see EmbeddingSpace).

    In the form "clip_states" the unconditional model sees what CLIP makes of the empty
    caption. That is kept in parameters that no gradient reaches, to be given with
    `clip_caption.with_empty_caption`; they start as zeros.
    """

    embed_dim: int
    vocab_size: int
    context_length: int
    eot_id: int
    width: int
    depth: int
    num_heads: int
    caption: str = "tokens"  # one of clip_caption.CAPTIONS
    text_width: int | None = None  # of CLIP's text states; None: embed_dim
    dropout: float = 0.0
    unit_norm: bool = False
    scan_layers: bool = False
    remat: str = "none"
    dtype: Any = jnp.float32

    def setup(self):
        """Declares the layers; UsageError for an unknown `caption`."""
        check_caption(self.caption, "prior")
        init = nn.initializers.normal(0.02)
        dense = {"dtype": self.dtype}
        self.space = layers.EmbeddingSpace(self.embed_dim, self.unit_norm)
        self.positional_embedding = self.param(
            "positional_embedding", init, (self.context_length + 4, self.width)
        )
        self.query = self.param("query", init, (self.width,))
        if self.caption == "tokens":
            self.token_embedding = nn.Embed(
                self.vocab_size, self.width, embedding_init=init, dtype=self.dtype
            )
            self.null_clip_text = self.param("null_clip_text", init, (self.embed_dim,))
        else:
            self.text_states_in = Dense(self.width, **dense)
            self.empty_caption = make_empty_caption(
                self,
                self.context_length,
                self.text_width or self.embed_dim,
                self.embed_dim,
            )
        self.clip_text_in = Dense(self.width, **dense)
        self.clip_image_in = Dense(self.width, **dense)
        self.time_1 = Dense(self.width, **dense)
        self.time_2 = Dense(self.width, **dense)
        self.transformer = layers.Transformer(
            self.depth,
            self.num_heads,
            dropout=self.dropout,
            scan_layers=self.scan_layers,
            remat=self.remat,
            dtype=self.dtype,
        )
        self.ln_final = layers.LayerNorm(dtype=self.dtype)
        self.clip_image_out = Dense(self.embed_dim, **dense)

    def normalize(self, raw: Embeddings) -> Embeddings:
        """Raw CLIP image embeddings (B, D) -> the space the prior diffuses in."""
        return self.space.normalize(raw)

    def denormalize(self, z: Embeddings) -> Embeddings:
        """The inverse of `normalize`."""
        return self.space.denormalize(z)

    def __call__(
        self,
        x_t: Embeddings,
        t: Times,
        tokens: Tokens,
        clip_text: Embeddings,
        drop: Drop,
        text_states: TextStates | None = None,
        deterministic: bool = True,
    ) -> Embeddings:
        """Denoises.

        Args:
          x_t: (B, D) noised image embeddings in the prior's space.
          t: (B,) integer timesteps.
          tokens: (B, L) int32 caption tokens. The form "clip_states" only takes from
            them which states are padding.
          clip_text: (B, D) raw CLIP text embeddings.
          drop: (B,) bool; True rows see the empty caption and its text embedding (a
            learned one in the form "tokens"), the unconditional model of
            classifier-free guidance.
          text_states: (B, L, W) CLIP's text states; only for "clip_states".
          deterministic: no dropout.

        Returns:
          (B, D) float32, the prediction of x0.

        Raises:
          UsageError: the form "clip_states" without text_states.
        """
        if self.is_initializing():
            self.space.normalize(x_t)  # makes its parameters; not used here
        b, length = tokens.shape
        tokens = drop_captions(tokens, drop, self.eot_id)
        if self.caption == "tokens":
            clip_text = jnp.where(drop[:, None], self.null_clip_text, clip_text)
            caption = self.token_embedding(tokens)  # (B, L, W)
        else:
            text_states, clip_text = drop_clip_captions(
                text_states, clip_text, drop, self.empty_caption
            )
            caption = self.text_states_in(text_states)  # (B, L, W)
        time = layers.timestep_embedding(t, self.width).astype(self.dtype)
        time = self.time_2(nn.silu(self.time_1(time)))
        query = jnp.broadcast_to(self.query.astype(self.dtype), (b, self.width))
        tail = [self.clip_text_in(clip_text), time, self.clip_image_in(x_t), query]
        x = jnp.concatenate([caption, jnp.stack(tail, axis=1)], axis=1)  # (B, L + 4, W)
        pos = self.positional_embedding
        pos = jnp.concatenate([pos[:length], pos[-4:]]).astype(self.dtype)
        visible = jnp.concatenate(
            [text_mask(tokens, self.eot_id), jnp.ones((b, 4), bool)], axis=1
        )
        bias = layers.causal_bias(length + 4) + layers.padding_bias(visible)
        x = self.transformer(x + pos, bias, deterministic)
        return self.clip_image_out(self.ln_final(x[:, -1])).astype(jnp.float32)
