"""Token handling and the decoder's own caption encoder (GLIDE)."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Bool

from unclip_jax.models import layers
from unclip_jax.shapes import Array, Drop, Indices, States, Tokens, Vector


def eot_position(tokens: Tokens, eot_id: int) -> Indices:
    """(B,) index of the first end-of-text token (the last column if none)."""
    is_eot = tokens == eot_id
    last = tokens.shape[1] - 1
    return jnp.where(is_eot.any(-1), jnp.argmax(is_eot, axis=-1), last)


def text_mask(tokens: Tokens, eot_id: int) -> Bool[Array, "batch length"]:
    """(B, L) bool: True from the start token to the first end-of-text token."""
    positions = jnp.arange(tokens.shape[1])[None]
    return positions <= eot_position(tokens, eot_id)[:, None]


def fill_captions(tokens: Tokens, eot_id: int, pad_id: int) -> Tokens:
    """(B, L) tokens with `pad_id` after the first end-of-text token."""
    return jnp.where(text_mask(tokens, eot_id), tokens, pad_id)


def drop_captions(tokens: Tokens, drop: Drop, eot_id: int) -> Tokens:
    """Replaces the rows of (B, L) tokens where `drop` by the empty caption.

    The empty caption is the start token followed by end-of-text tokens, what the
    tokenizer makes of "".
    """
    empty = jnp.full_like(tokens, eot_id).at[:, 0].set(tokens[:, 0])
    return jnp.where(drop[:, None], empty, tokens)


class TextTransformer(nn.Module):
    """Bidirectional caption encoder of the decoder (GLIDE, section 3).

    Returns (states (B, L, W), feature (B, W)): every token's state after the final
    LayerNorm, and the state of the end-of-text token, which GLIDE adds where a
    class embedding would go. Padding is masked.
    """

    vocab_size: int
    context_length: int
    width: int
    depth: int
    num_heads: int
    eot_id: int
    scan_layers: bool = False
    remat: str = "none"
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, tokens: Tokens, deterministic: bool = True
    ) -> tuple[States, Vector]:
        """int32 (B, L) -> states (B, L, W), feature (B, W)."""
        init = nn.initializers.normal(0.02)
        x = nn.Embed(
            self.vocab_size,
            self.width,
            embedding_init=init,
            dtype=self.dtype,
            name="token_embedding",
        )(tokens)  # (B, L, W)
        positions = self.param(
            "positional_embedding",
            init,
            (self.context_length, self.width),
        )
        x = x + positions[: tokens.shape[1]].astype(self.dtype)
        bias = layers.padding_bias(text_mask(tokens, self.eot_id))
        x = layers.Transformer(
            self.depth,
            self.num_heads,
            scan_layers=self.scan_layers,
            remat=self.remat,
            dtype=self.dtype,
            name="transformer",
        )(x, bias, deterministic)
        x = layers.LayerNorm(dtype=self.dtype, name="ln_final")(x)
        rows = jnp.arange(tokens.shape[0])
        return x, x[rows, eot_position(tokens, self.eot_id)]
