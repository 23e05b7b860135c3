"""diffusers' UNet2DModel as unCLIP's super-resolution has it, and our upsampler.

Their config.json does not say how the small picture is enlarged (their pipeline does
it, bicubic and antialiased) nor how small it is.
"""

import os
from collections.abc import Mapping
from typing import Any

from unclip_jax.errors import UsageError
from unclip_jax.interop import diffusers_unet, mapping, weights
from unclip_jax.interop.diffusers_config import (
    check_holds,
    check_settings,
    read_config,
    write_model,
)
from unclip_jax.interop.diffusers_scheduler import read_scheduler

CLASS = "UNet2DModel"
DEFAULTS = {
    **diffusers_unet.DEFAULTS,
    "add_attention": True,
    "mid_block_type": "UNetMidBlock2D",
}
FIXED = {
    **diffusers_unet.FIXED,
    "add_attention": False,
    "class_embed_type": None,
    "mid_block_type": "UNetMidBlock2D",
}
UNUSED = (
    *diffusers_unet.UNUSED,
    "attention_head_dim",
    "attn_norm_num_groups",
    "downsample_type",
    "num_train_timesteps",
    "upsample_type",
)
KARLO = {  # the last step is taken by a network of its own
    "schedule": "cosine",
    "num_steps": 1000,
    "prediction": "epsilon",
    "clip": 1.0,
    "sampler": "ddpm",
    "sampling_steps": 7,
}


def load_upsampler(
    folder: str | os.PathLike,
    scheduler: str | os.PathLike | None = None,
    *,
    low_res_size: int | None = None,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """A super-resolution network of diffusers as a part of ours.

    Args:
      folder: .../super_res_first or .../super_res_last, with config.json and weights.
      scheduler: the folder with its scheduler_config.json; None is Karlo's.
      low_res_size: side of the small pictures; None is a quarter of the large ones.

    Returns:
      (part config, parameters).

    Raises:
      FileNotFoundError: a file is missing.
      UsageError: settings that have no counterpart here, or tensors that do not fit.
    """
    fields = model_fields(read_config(folder), f"{folder}/config.json")
    fields["low_res_size"] = low_res_size or fields["image_size"] // 4
    diffusion = read_scheduler(scheduler, KARLO, fields["learned_sigma"])
    tensors = weights.read_weights(folder)
    table = diffusers_unet.table(fields)
    params = mapping.from_torch(table, tensors, f"the upsampler in {folder}")
    return {"model": fields, "diffusion": diffusion}, params


def save_upsampler(
    part_config: Mapping[str, Any],
    params: Mapping[str, Any],
    folder: str | os.PathLike,
    dtype: str = "float32",
) -> None:
    """Writes an upsampler as UNet2DModel.from_pretrained reads it.

    Args:
      part_config: of a part or a stage's export.
      params: nested dict of arrays.
      folder: made if it does not exist.
      dtype: of the weights, see weights.write_weights.

    Raises UsageError for an upsampler that their class cannot hold.
    """
    fields = part_config["model"]
    held = {
        "resize": (fields.get("resize", "bilinear"), "bicubic"),
        "residual": (fields.get("residual", False), False),
    }
    check_holds(CLASS, "upsamplers", held)
    fields = {"learned_sigma": False, **fields}
    config = {
        "_class_name": CLASS,
        **FIXED,
        **diffusers_unet.their_settings(fields, in_channels=6),
    }
    tensors = mapping.to_torch(diffusers_unet.table(fields), params)
    write_model(folder, config, tensors, dtype)


def model_fields(config: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The fields of our module for a config of theirs, but for low_res_size.

    Raises UsageError naming a setting that has no counterpart here.
    """
    settings = check_settings(config, CLASS, DEFAULTS, FIXED, UNUSED, where)
    channels = settings["in_channels"], settings["out_channels"]
    if channels not in ((6, 3), (6, 6)):
        raise UsageError(
            f"{where}: channels are {channels[0]} in, {channels[1]} out; an upsampler "
            "takes two pictures (6) and makes one, or one and its variance (3 or 6)"
        )
    fields = diffusers_unet.model_fields(settings, where)
    if diffusers_unet.attention_resolutions(settings, where):
        raise UsageError(f"{where}: an upsampler has no attention")
    return {**fields, "resize": "bicubic"}
