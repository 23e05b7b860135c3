"""diffusers' UNet2DConditionModel as Kandinsky 2.2 has it, and our decoder.

Both of the things that the image embedding becomes, tokens and a part of the time
embedding, are in the UNet itself. The unconditional embedding, that of an empty image,
is in no file: whoever loads a decoder asks the CLIP for it, see `with_null_embedding`.
"""

import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from unclip_jax.errors import UsageError
from unclip_jax.interop import diffusers_decoder, diffusers_unet, mapping, weights
from unclip_jax.interop.diffusers_config import (
    check_holds,
    check_settings,
    read_config,
    write_model,
)
from unclip_jax.interop.diffusers_ddpm import read_ddpm
from unclip_jax.interop.mapping import Entry
from unclip_jax.models.decoder import HINT_CONVS

UNET, MID_BLOCK = diffusers_decoder.UNET, diffusers_decoder.MID_BLOCK
NUM_CLIP_TOKENS = 32  # of their ImageProjection, which has no setting for it
USUAL = {"sampling_steps": 100, "guidance": 4.0}  # of their pipelines
DEFAULTS = {
    **diffusers_decoder.DEFAULTS,
    "addition_embed_type": None,
    "encoder_hid_dim": None,
}
FIXED = {
    **diffusers_decoder.FIXED,
    "class_embed_type": None,
    "encoder_hid_dim_type": "image_proj",
}
del DEFAULTS["class_embed_type"], FIXED["addition_embed_type"], FIXED["encoder_hid_dim"]
# (in_channels, addition_embed_type) -> what the decoder sees besides latents
EXTRAS = {(4, "image"): "none", (9, "image"): "inpaint", (8, "image_hint"): "hint"}


def is_kandinsky(config: Mapping[str, Any]) -> bool:
    """Whether the config of a UNet is of such a decoder."""
    return config.get("encoder_hid_dim_type") == "image_proj"


def table(fields: Mapping[str, Any]) -> list[Entry]:
    """Every tensor of their UNet, for the `fields` of models.Decoder."""
    entries = [
        *diffusers_unet.table(fields),
        *mapping.dense("clip_to_tokens", "encoder_hid_proj.image_embeds"),
        *mapping.norm("clip_to_tokens_norm/norm", "encoder_hid_proj.norm"),
        *mapping.dense("clip_to_time", "add_embedding.image_proj"),
        *mapping.norm("clip_to_time_norm/norm", "add_embedding.image_norm"),
    ]
    if fields["extra"] == "hint":
        for i in range(len(HINT_CONVS) + 1):
            theirs = f"add_embedding.input_hint_block.{2 * i}"  # SiLUs between
            entries += mapping.conv(f"hint/conv_{i}", theirs)
    return entries


def load_decoder(
    folder: str | os.PathLike,
    scheduler: str | os.PathLike,
    *,
    context_length: int = 77,
    eot_id: int = 49407,
    vocab_size: int = 49408,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """A decoder of Kandinsky 2.2 as a part of ours.

    Args:
      folder: unet/ of a pipeline, with config.json and the weights.
      scheduler: the folder with its scheduler_config.json.
      context_length, eot_id, vocab_size: the tokenizer's; it sees no captions.

    Returns:
      (part config, parameters), without the null embedding: `with_null_embedding`.

    Raises:
      FileNotFoundError: a file is missing.
      UsageError: settings that have no counterpart here, or tensors that do not fit.
    """
    fields: dict[str, Any] = {
        **model_fields(read_config(folder), f"{folder}/config.json"),
        "context_length": context_length,
        "eot_id": eot_id,
        "vocab_size": vocab_size,
    }
    tensors = weights.read_weights(folder)
    params = mapping.from_torch(table(fields), tensors, f"the decoder in {folder}")
    dim = fields["embed_dim"]
    space = {"mean": np.zeros(dim, np.float32), "std": np.ones(dim, np.float32)}
    diffusion = {**USUAL, **read_ddpm(scheduler, fields["learned_sigma"])}
    config = {"model": fields, "diffusion": diffusion, "embedding": "raw"}
    return config, {**params, "space": space}


def with_null_embedding(params: Mapping[str, Any], embedding) -> dict[str, Any]:
    """The parameters with the raw CLIP embedding (D,) of an empty image."""
    return {**params, "null_clip_image": np.asarray(embedding, np.float32)}


def needs_null(params: Mapping[str, Any]) -> bool:
    """Whether these are parameters of such a decoder without that embedding."""
    return "clip_to_tokens_norm" in params and "null_clip_image" not in params


def save_decoder(
    part_config: Mapping[str, Any],
    params: Mapping[str, Any],
    folder: str | os.PathLike,
    dtype: str = "float32",
) -> None:
    """Writes a decoder as UNet2DConditionModel.from_pretrained reads it.

    Args:
      part_config: of a part or a stage's export.
      params: nested dict of arrays.
      folder: made if it does not exist.
      dtype: of the weights, see weights.write_weights.

    Raises UsageError for a decoder that their class cannot hold.
    """
    fields: dict[str, Any]
    fields = {"learned_sigma": True, "extra": "none", **part_config["model"]}
    check_holds(UNET, "decoders of latents", _held(fields))
    extras = {extra: setting for setting, extra in EXTRAS.items()}
    in_channels, embed_type = extras[fields["extra"]]
    config = {
        "_class_name": UNET,
        **FIXED,
        **diffusers_unet.their_settings(fields, in_channels),
        "addition_embed_type": embed_type,
        "attention_head_dim": fields.get("head_channels", 64),
        "cross_attention_dim": fields["text_width"],
        "encoder_hid_dim": fields["embed_dim"],
    }
    params = diffusers_decoder.fold_normalization(params)
    del params["null_clip_image"]
    tensors = mapping.to_torch(table(fields), params)
    write_model(folder, config, tensors, dtype)


def model_fields(config: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The fields of models.Decoder for a config of theirs, without the tokenizer's.

    Raises UsageError naming a setting that has no counterpart here.
    """
    unet = check_settings(
        config, UNET, DEFAULTS, FIXED, diffusers_decoder.UNUSED, where
    )
    kind = unet["in_channels"], unet["addition_embed_type"]
    if kind not in EXTRAS or unet["out_channels"] not in (4, 8):
        known = ", ".join(f"{n} ({name!r})" for n, name in EXTRAS)
        raise UsageError(
            f"{where}: in_channels are {kind[0]} with addition_embed_type {kind[1]!r}, "
            f"out_channels {unet['out_channels']}; supported are in_channels {known} "
            "and out_channels 4 or 8"
        )
    for name in ("attention_head_dim", "cross_attention_dim", "encoder_hid_dim"):
        if not isinstance(unet[name], int):
            raise UsageError(
                f"{where}: {name} is {unet[name]}; only one number is supported"
            )
    return {
        **diffusers_unet.model_fields(unet, where),
        "attention_resolutions": diffusers_unet.attention_resolutions(unet, where),
        "caption": "none",
        "clip_norm": True,
        "embed_dim": unet["encoder_hid_dim"],
        "extra": EXTRAS[kind],
        "head_channels": unet["attention_head_dim"],
        "image_channels": 4,
        "learned_sigma": unet["out_channels"] == 8,
        "num_clip_tokens": NUM_CLIP_TOKENS,
        "text_width": unet["cross_attention_dim"],
    }


def _held(fields):
    return {
        "caption": (fields.get("caption"), "none"),
        "clip_norm": (fields.get("clip_norm"), True),
        "image_channels": (fields.get("image_channels"), 4),
        "num_clip_tokens": (fields.get("num_clip_tokens"), NUM_CLIP_TOKENS),
        "unit_norm": (fields.get("unit_norm", False), False),
        "attention in the middle": (
            any(diffusers_unet.attention_levels(fields)),
            True,
        ),
    }
