"""Frozen encoders of transformers, for data.aligned.encoding: texts or images in."""

import os
import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np

from unclip_jax.errors import UsageError

OUTPUTS = ("pooled", "tokens")


def transformers_encoder(
    folder: str | os.PathLike, inputs: str, output: str = "pooled"
) -> Callable[[list[Any]], np.ndarray]:
    """A function from texts or images to the embeddings of a model on disk.

    Nothing is downloaded. CLIP and SigLIP make their joint embeddings; other models
    what they call pooled, or without it the mean of the last states, of texts over
    what is no padding.

    Args:
      folder: a model of transformers' save_pretrained (safetensors) with its tokenizer
        or image processor.
      inputs: "text", for strings; "image", for uint8 (H, W, 3) or PIL images.
      output: "pooled", float32 (n, D); "tokens", (n, L, D), the last states, of texts
        filled up to the tokenizer's length with zeros.

    Raises:
      FileNotFoundError: no such folder.
      UsageError: another input or output, a model that cannot be read.
    """
    import torch
    import transformers

    if inputs not in ("text", "image") or output not in OUTPUTS:
        raise UsageError(
            f"expected inputs 'text' or 'image' and output {' or '.join(OUTPUTS)}, got "
            f"{inputs!r} and {output!r}"
        )
    if not (pathlib.Path(folder) / "config.json").is_file():
        raise FileNotFoundError(f"{str(folder)!r} holds no model: no config.json")
    only = {"local_files_only": True}
    try:
        model: Any = transformers.AutoModel.from_pretrained(
            folder, use_safetensors=True, **only
        ).eval()
        reader = "AutoTokenizer" if inputs == "text" else "AutoImageProcessor"
        prepare = getattr(transformers, reader).from_pretrained(folder, **only)
    except (OSError, ValueError, KeyError) as error:
        raise UsageError(
            f"{folder} cannot be read by transformers: {str(error).splitlines()[0]}"
        ) from error
    tower = getattr(model, f"{'text' if inputs == 'text' else 'vision'}_model", model)
    joint = getattr(model, f"get_{inputs}_features", None)

    @torch.no_grad()
    def encode(batch):
        if inputs == "text":
            options = {"padding": "max_length" if output == "tokens" else True}
            given = prepare(
                list(batch), truncation=True, return_tensors="pt", **options
            )
        else:
            given = prepare(images=list(batch), return_tensors="pt")
        if output == "pooled" and joint is not None:
            found = joint(**given)
            return getattr(found, "pooler_output", found).float().numpy()
        states = tower(**given)
        last, mask = states.last_hidden_state, given.get("attention_mask")
        mask = torch.ones(last.shape[:2]) if mask is None else mask
        last = last * mask[..., None]
        if output == "tokens":
            return last.float().numpy()
        pooled = getattr(states, "pooler_output", None)
        if pooled is None:
            pooled = last.sum(1) / mask.sum(1, keepdim=True)
        return pooled.float().numpy()

    return encode
