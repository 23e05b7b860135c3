"""Captions as a frozen CLIP sees them, and the empty one that stands for no caption.

The form of Karlo and Kandinsky: instead of a caption encoder of their own, prior and
decoder take CLIP's text states and its text embedding. Without a caption they take what
CLIP makes of "", which travels with the parameters although no gradient reaches it.
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

# The parameters that hold what CLIP makes of the empty caption.
EMPTY_CAPTION = ("empty_text_states", "empty_clip_text")


def with_empty_caption(params: Mapping[str, Any], text_states, clip_text):
    """The parameters with what the frozen CLIP makes of the empty caption.

    Args:
      params: of a prior or decoder whose caption is "clip_states".
      text_states: (L, W) CLIP's states of the tokens of "".
      clip_text: (D,) its raw embedding.
    """
    values = text_states.reshape(-1), clip_text
    return {**params, **dict(zip(EMPTY_CAPTION, values, strict=True))}


def make_empty_caption(module: nn.Module, length: int, width: int, dim: int):
    """Makes the parameters of `module` (in its setup); zeros until they are given.

    Returns:
      (states (L, W), embedding (D,)).
    """
    # the states are kept as one vector, which weight decay leaves alone
    sizes = length * width, dim
    states, clip_text = (
        jax.lax.stop_gradient(module.param(name, nn.initializers.zeros, (size,)))
        for name, size in zip(EMPTY_CAPTION, sizes, strict=True)
    )
    return states.reshape(length, width), clip_text


def drop_clip_captions(text_states, clip_text, drop, empty):
    """Replaces (B, L, W) states and (B, D) embeddings by the empty ones where `drop`.

    Args:
      text_states, clip_text: CLIP's of the captions.
      drop: (B,) bool.
      empty: what `make_empty_caption` returned.

    Raises ValueError when there are no states or no embedding.
    """
    if text_states is None or clip_text is None:
        raise ValueError(
            "a model whose caption is 'clip_states' takes the captions' clip_text and "
            "text_states: encode them with CLIP first"
        )
    states, embedding = empty
    states = states[: text_states.shape[1]].astype(text_states.dtype)
    return (
        jnp.where(drop[:, None, None], states, text_states),
        jnp.where(drop[:, None], embedding, clip_text),
    )
