"""What data says of itself to stages and checkpoints."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataSpec:
    """Sizes, names and statistics of a dataset; None where it has no such thing."""

    num_examples: int | None = None
    fingerprint: str | None = None  # another for other examples

    image_size: int | None = None  # side, in pixels, as is crop_size
    crop_size: int | None = None  # of a degradation, as is low_res_size
    low_res_size: int | None = None

    tokenizer_folder: str | None = None
    tokenizer_fingerprint: str | None = None
    vocab_size: int | None = None
    context_length: int | None = None  # tokens of a caption
    eot_id: int | None = None

    clip_fingerprint: str | None = None  # of the CLIP that made the embeddings
    embed_dim: int | None = None
    embedding_convention: str | None = None  # "raw" or "unit", see data/records.py
    embedding_mean: np.ndarray | None = None  # float64 (D,), as is embedding_std
    embedding_std: np.ndarray | None = None
    embedding_scale: float | None = None  # mean L2 norm
    # {"clip_image", "clip_text"} (n, D) of a part of the data, read when it is called
    embedding_sample: Callable[[], dict[str, np.ndarray]] | None = None

    # of aligned arrays: the target's shape per example and what its array is called,
    # {name: fields of models.conditions.Condition}, {name: {"mean", "std"} (D,)}
    target: str | None = None
    target_shape: tuple[int, ...] | None = None
    target_dtype: str | None = None
    conditions: dict[str, dict[str, Any]] | None = None
    absent_conditions: tuple[str, ...] | None = None  # that no example has
    condition_statistics: Callable[[], dict[str, dict[str, np.ndarray]]] | None = None

    text_width: int | None = None  # W of CLIP's text states
    empty_text_states: np.ndarray | None = None  # (L, W), of the empty caption
    empty_clip_text: np.ndarray | None = None  # (D,)
    # (D,), of an image of zeros, as CLIP's image tower sees them
    empty_clip_image: np.ndarray | None = None
    pad_id: int | None = None  # of the text states' captions, where it is not eot_id

    autoencoder_fingerprint: str | None = None  # of the one that made the latents
    latent_shape: tuple[int, int, int] | None = None  # (h, w, C)
    has_latent_std: bool | None = None  # latents are Gaussians, to be drawn from

    def to_plain(self) -> dict[str, Any]:
        """Returns what a checkpoint says of its data, JSON-able: no array or method."""
        return {
            name: value
            for name, value in vars(self).items()
            if not isinstance(value, np.ndarray) and not callable(value)
        }
