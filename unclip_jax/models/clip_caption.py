"""Captions as a frozen CLIP sees them, and the empty one that stands for no caption.

The form of Karlo and Kandinsky: instead of a caption encoder of their own, prior and
decoder take CLIP's text states and its text embedding. Without a caption they take what
CLIP makes of "", which travels with the parameters although no gradient reaches it.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from unclip_jax.errors import UsageError
from unclip_jax.shapes import Drop, Embeddings, TextStates

# How captions enter a prior or a decoder: read by a part of their own, or by CLIP.
CAPTIONS = ("tokens", "clip_states")
# The parameters that hold what CLIP makes of the empty caption.
EMPTY_CAPTION = ("empty_text_states", "empty_clip_text")


def check_caption(caption: str, where: str, known: Sequence[str] = CAPTIONS) -> None:
    """Raises UsageError unless `caption` is one of the `known`."""
    if caption not in known:
        raise UsageError(
            f"{where}: caption {caption!r}, expected one of {', '.join(known)}"
        )


def with_empty_caption(params: Mapping[str, Any], text_states, clip_text):
    """The parameters with what the frozen CLIP makes of the empty caption.

    Args:
      params: of a prior or decoder whose caption is "clip_states".
      text_states: (L, W) CLIP's states of the tokens of "".
      clip_text: (D,) its raw embedding.
    """
    values = text_states, clip_text
    return {**params, **dict(zip(EMPTY_CAPTION, values, strict=True))}


def make_empty_caption(module: nn.Module, length: int, width: int, dim: int):
    """Makes the parameters of `module` (in its setup); zeros until they are given.

    Returns:
      (states (L, W), embedding (D,)).
    """
    shapes = zip(EMPTY_CAPTION, ((length, width), (dim,)), strict=True)
    zeros = nn.initializers.zeros
    return jax.lax.stop_gradient([module.param(n, zeros, shape) for n, shape in shapes])


def drop_clip_captions(
    text_states: TextStates | None, clip_text: Embeddings | None, drop: Drop, empty
):
    """Replaces (B, L, W) states and (B, D) embeddings by the empty ones where `drop`.

    Args:
      text_states, clip_text: CLIP's of the captions.
      drop: (B,) bool.
      empty: what `make_empty_caption` returned.

    Raises UsageError when there are no states or no embedding.
    """
    if text_states is None or clip_text is None:
        raise UsageError(
            "a model with caption 'clip_states' needs text_states and clip_text: "
            "encode the captions with CLIP first"
        )
    states, embedding = empty
    length = text_states.shape[1]
    return (
        jnp.where(drop[:, None, None], states[:length], text_states),
        jnp.where(drop[:, None], embedding, clip_text),
    )
