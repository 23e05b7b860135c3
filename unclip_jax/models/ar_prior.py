"""The autoregressive prior: a causal transformer over codes of CLIP image embeddings.

Paper, section 2.2: the embedding's principal components, quantized, are predicted left
to right. The caption and the CLIP text embedding z_t are encoded as a prefix of the
sequence, and so is the quantized dot product z_i . z_t.

The latent decoder's `context` is, in order,

    text slots | z_t | dot product | components 1 .. K - 1

and the outputs at the last K positions predict components 1 .. K. With Table 3's
context of 384 and 319 components, 64 slots are left for a caption of 256 tokens: the
text encoder's states are therefore joined in fours, as a ViT joins pixels, and
projected. Nothing is lost, nothing but a matrix is added, and short captions still take
few slots, the rest being masked. (The paper gives the sizes of both transformers, not
what lies between them.) Captions that fit are not joined at all.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Int

from unclip_jax.errors import UsageError
from unclip_jax.models import layers
from unclip_jax.models.codebook import Codebook
from unclip_jax.models.dense import Dense
from unclip_jax.models.text_transformer import TextTransformer, drop_captions, text_mask
from unclip_jax.shapes import (
    Array,
    Codes,
    Drop,
    Embeddings,
    Indices,
    Logits,
    PerSample,
    Tokens,
)


class AutoregressivePrior(nn.Module):
    """Logits of an image embedding's codes, for training and step by step."""

    embed_dim: int
    vocab_size: int
    context_length: int  # tokens of a caption
    eot_id: int
    width: int  # of the latent decoder, as are the next three
    depth: int
    num_heads: int
    context: int
    text_width: int
    text_depth: int
    text_heads: int
    num_components: int
    num_buckets: int = 1024
    dropout: float = 0.0
    unit_norm: bool = False
    scan_layers: bool = False
    remat: str = "none"
    dtype: Any = jnp.float32

    def setup(self):
        """Declares the layers; UsageError for sizes that do not fit."""
        room = self.context - 1 - self.num_components
        if room < 1:
            raise UsageError(
                f"context {self.context}: expected at least "
                f"{self.num_components + 2}, for z_t, the dot product, all but one of "
                f"{self.num_components} components, and a slot for the text"
            )
        self.joined = -(-self.context_length // room)  # tokens of a slot
        self.slots = -(-self.context_length // self.joined)
        init, dense = nn.initializers.normal(0.02), {"dtype": self.dtype}
        layout = {"scan_layers": self.scan_layers, "remat": self.remat, **dense}
        self.space = layers.EmbeddingSpace(self.embed_dim, self.unit_norm)
        self.codebook = Codebook(self.embed_dim, self.num_components, self.num_buckets)
        self.text = TextTransformer(
            self.vocab_size,
            self.context_length,
            self.text_width,
            self.text_depth,
            self.text_heads,
            self.eot_id,
            **layout,
        )
        self.text_in = Dense(self.width, **dense)
        self.null_clip_text = self.param("null_clip_text", init, (self.embed_dim,))
        self.clip_text_in = Dense(self.width, **dense)
        embed = {"embedding_init": init, **dense}
        self.dot_embedding = nn.Embed(self.num_buckets, self.width, **embed)
        self.code_embedding = nn.Embed(self.num_buckets, self.width, **embed)
        self.positional_embedding = self.param(
            "positional_embedding", init, (self.context, self.width)
        )
        self.transformer = layers.Transformer(
            self.depth, self.num_heads, dropout=self.dropout, **layout
        )
        self.ln_final = layers.LayerNorm(**dense)
        self.code_out = Dense(self.num_buckets, **dense)

    def __call__(
        self,
        clip_image: Embeddings,
        tokens: Tokens,
        clip_text: Embeddings,
        drop: Drop,
        deterministic: bool = True,
    ) -> tuple[Logits, Int[Array, "batch components"]]:
        """Logits of every component's code given the true codes before it.

        Args:
          clip_image: (B, D) raw CLIP image embeddings.
          tokens, clip_text, drop, deterministic: see `predict`.

        Returns:
          (logits (B, K, N) float32, codes (B, K) int32 that they should predict).
        """
        codes = self.encode(clip_image, clip_text)  # (B, 1 + K)
        logits = self.predict(codes, tokens, clip_text, drop, deterministic)
        return logits, codes[:, 1:]

    def predict(
        self,
        codes: Codes,
        tokens: Tokens,
        clip_text: Embeddings,
        drop: Drop,
        deterministic: bool = True,
    ) -> Logits:
        """Logits of every component given the codes before it.

        Args:
          codes: (B, 1 + K) int32, the dot product's first; the last is not looked at.
          tokens: (B, L) int32 caption tokens.
          clip_text: (B, D) raw CLIP text embeddings.
          drop: (B,) bool; True rows see the empty caption and a learned null text
            embedding, the unconditional model of classifier-free guidance. The dot
            product's token stays.
          deterministic: no dropout.

        Returns:
          (B, K, N) float32.
        """
        x, visible = self._prefix(tokens, clip_text, codes[:, 0], drop)
        x = jnp.concatenate([x, self.code_embedding(codes[:, 1:-1])], axis=1)
        x = self._transform(x, 0, visible, deterministic)  # (B, S, W)
        return self._logits(x[:, -self.num_components :])

    def encode(self, clip_image: Embeddings, clip_text: Embeddings) -> Codes:
        """Raw embeddings (B, D) -> int32 (B, 1 + K) codes, the dot product's first.

        The dot product is that of the unit embeddings, whatever the prior's space.
        """
        dots = (_unit(clip_image) * _unit(clip_text)).sum(-1)
        return self.codebook.encode(self.space.normalize(clip_image), dots)

    def decode(self, codes: Codes) -> Embeddings:
        """int32 (B, K) codes of the components -> raw embeddings (B, D)."""
        return self.space.denormalize(self.codebook.decode(codes))

    def expected(self, logits: Logits) -> Embeddings:
        """Logits (B, K, N) -> raw embeddings (B, D) of the mean component values."""
        values = self.codebook.component_values()
        values = (jax.nn.softmax(logits) * values).sum(-1)  # (B, K)
        return self.space.denormalize(self.codebook.expand(values))

    def start(
        self,
        tokens: Tokens,
        clip_text: Embeddings,
        dot_code: Indices,
        drop: Drop,
    ):
        """Reads the prefix; apply with mutable=["cache"].

        Args:
          tokens, clip_text, drop: as for `predict`.
          dot_code: (B,) int32, see Codebook.dot_code.

        Returns:
          (logits of the first component (B, N), visible (B, S) for `step`).
        """
        x, visible = self._prefix(tokens, clip_text, dot_code, drop)
        return self._logits(self._transform(x, 0, visible, cached=True)[:, -1]), visible

    def step(self, code: Indices, index, visible):
        """Logits (B, N) of component `index` (from 0) given the one before, code (B,).

        Apply with the cache of `start` or of the step before, and mutable=["cache"].
        """
        x = self.code_embedding(code)[:, None]  # (B, 1, W)
        first = self.slots + 1 + index
        return self._logits(self._transform(x, first, visible, cached=True)[:, 0])

    def dot_code(self, quantile: PerSample) -> Indices:
        """See Codebook.dot_code."""
        return self.codebook.dot_code(quantile)

    def _prefix(self, tokens, clip_text, dot_code, drop):
        """The embedded prefix (B, T + 2, W), and which of all S tokens may be seen."""
        tokens = drop_captions(tokens, drop, self.eot_id)
        clip_text = jnp.where(drop[:, None], self.null_clip_text, clip_text)
        states, _ = self.text(tokens)  # (B, L, text_width)
        seen = text_mask(tokens, self.eot_id)  # (B, L)
        states = states * seen[..., None]
        b, length = tokens.shape
        short = self.slots * self.joined - length
        states = jnp.pad(states, ((0, 0), (0, short), (0, 0)))
        text = self.text_in(states.reshape(b, self.slots, -1))  # (B, T, W)
        tail = [self.clip_text_in(clip_text), self.dot_embedding(dot_code)]
        x = jnp.concatenate([text, jnp.stack(tail, axis=1)], axis=1)
        rest = jnp.ones((b, 1 + self.num_components), bool)
        # a slot is seen from its first token on: captions have no holes
        return x, jnp.concatenate([seen[:, :: self.joined], rest], axis=1)

    def _transform(self, x, first, visible, deterministic=True, cached=False):
        """Tokens (B, Q, W) at positions first, first + 1, ... -> states (B, Q, W)."""
        keys = jnp.arange(visible.shape[1])
        queries = first + jnp.arange(x.shape[1])
        causal = layers.mask_bias(keys <= queries[:, None])[None, None]
        pos = self.positional_embedding
        # as wherever the caption is shorter, its last slots' positions are not used
        pos = jnp.concatenate([pos[: self.slots], pos[-1 - self.num_components :]])
        pos = jax.lax.dynamic_slice_in_dim(pos, first, x.shape[1])
        bias = causal + layers.padding_bias(visible)
        position = first if cached else None
        x = x + pos.astype(self.dtype)
        return self.transformer(x, bias, deterministic, position)

    def _logits(self, x):
        return self.code_out(self.ln_final(x)).astype(jnp.float32)


def _unit(x):
    x = x.astype(jnp.float32)
    return x / jnp.linalg.norm(x, axis=-1, keepdims=True).clip(1e-12)
