"""diffusers' UNet2DConditionModel as Stable unCLIP 2.1 has it, and our decoder."""

import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from unclip_jax.errors import UsageError
from unclip_jax.interop import diffusers_decoder, diffusers_unet, mapping, weights
from unclip_jax.interop.diffusers_config import (
    check_settings,
    read_config,
    write_model,
)
from unclip_jax.interop.diffusers_ddpm import read_ddpm
from unclip_jax.interop.mapping import Entry

UNET, NORMALIZER = diffusers_decoder.UNET, "StableUnCLIPImageNormalizer"
MID_BLOCK = "UNetMidBlock2DCrossAttn"
USUAL = {"sampling_steps": 20, "guidance": 10.0}  # of their pipelines
DEFAULTS = {
    **diffusers_decoder.DEFAULTS,
    "num_attention_heads": None,
    "projection_class_embeddings_input_dim": None,
}
FIXED = {
    **diffusers_decoder.FIXED,
    "class_embed_type": "projection",
    "downsample_padding": 1,
    "dual_cross_attention": False,
    "mid_block_type": MID_BLOCK,
    "transformer_layers_per_block": 1,
    "use_linear_projection": True,
}
for name in ("class_embed_type", "mid_block_type"):
    del DEFAULTS[name]
for name in ("num_attention_heads", "projection_class_embeddings_input_dim"):
    del FIXED[name]
UNUSED = tuple(n for n in diffusers_decoder.UNUSED if n not in FIXED)
PLAIN = {"down": "DownBlock2D", "up": "UpBlock2D"}
ATTENTION = {"down": "CrossAttnDownBlock2D", "up": "CrossAttnUpBlock2D"}


def table(fields: Mapping[str, Any]) -> list[Entry]:
    """Every tensor of their UNet, for the `fields` of models.StableDecoder."""
    widths = [fields["channels"] * mult for mult in fields["channel_mult"]]
    depth, heads = fields["num_res_blocks"], fields["num_heads"]
    h = widths[0]
    skips = [h]
    entries = [
        *mapping.dense("unet/time_1", "time_embedding.linear_1"),
        *mapping.dense("unet/time_2", "time_embedding.linear_2"),
        *mapping.dense("unet/label_1", "class_embedding.linear_1"),
        *mapping.dense("unet/label_2", "class_embedding.linear_2"),
        *mapping.conv("unet/conv_in", "conv_in"),
        *mapping.norm("unet/norm_out", "conv_norm_out"),
        *mapping.conv("unet/conv_out", "conv_out"),
    ]
    for i, width in enumerate(widths):
        theirs = f"down_blocks.{i}"
        for j in range(depth):
            names = f"down_{i}_res_{j}", f"{theirs}.resnets.{j}"
            entries += diffusers_unet.res_block(*names, h, width)
            if heads[i]:
                names = f"down_{i}_attn_{j}", f"{theirs}.attentions.{j}"
                entries += _transformer(*names)
            h = width
            skips.append(h)
        if i + 1 < len(widths):
            ours = f"unet/down_{i}_downsample"
            entries += mapping.conv(ours, f"{theirs}.downsamplers.0.conv")
            skips.append(h)
    for j in range(2):
        names = f"mid_res_{j}", f"mid_block.resnets.{j}"
        entries += diffusers_unet.res_block(*names, h, h)
    entries += _transformer("mid_attn", "mid_block.attentions.0")
    for k, i in enumerate(reversed(range(len(widths)))):
        theirs, width = f"up_blocks.{k}", widths[i]
        for j in range(depth + 1):
            names = f"up_{i}_res_{j}", f"{theirs}.resnets.{j}"
            entries += diffusers_unet.res_block(*names, h + skips.pop(), width)
            if heads[i]:
                names = f"up_{i}_attn_{j}", f"{theirs}.attentions.{j}"
                entries += _transformer(*names)
            h = width
        if i:
            ours = f"unet/up_{i}_upsample"
            entries += mapping.conv(ours, f"{theirs}.upsamplers.0.conv")
    return entries


def load_decoder(
    folder: str | os.PathLike,
    scheduler: str | os.PathLike,
    normalizer: str | os.PathLike,
    *,
    pad_id: int,
    context_length: int = 77,
    eot_id: int = 49407,
    vocab_size: int = 49408,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """A decoder of Stable unCLIP as a part of ours.

    Args:
      folder: unet/ of the pipeline, with config.json and the weights.
      scheduler: the folder with its scheduler_config.json.
      normalizer: image_normalizer/ of the pipeline.
      pad_id, context_length, eot_id, vocab_size: the tokenizer's.

    Returns:
      (part config, parameters), without the states of the empty caption.

    Raises:
      FileNotFoundError: a file is missing.
      UsageError: settings that have no counterpart here, or tensors that do not fit.
    """
    fields: dict[str, Any] = {
        **model_fields(read_config(folder), f"{folder}/config.json"),
        "context_length": context_length,
        "eot_id": eot_id,
        "pad_id": pad_id,
        "vocab_size": vocab_size,
    }
    statistics = weights.read_weights(normalizer)
    dim = statistics["mean"].size
    if dim != fields["embed_dim"]:
        raise UsageError(
            f"{normalizer} is of embeddings of {dim} numbers, the decoder in {folder} "
            f"takes {fields['embed_dim']}: they are of different models"
        )
    tensors = weights.read_weights(folder)
    params = mapping.from_torch(table(fields), tensors, f"the decoder in {folder}")
    space = {name: statistics[name].reshape(dim) for name in ("mean", "std")}
    diffusion = {**USUAL, **read_ddpm(scheduler, learned_sigma=False)}
    config = {"model": fields, "diffusion": diffusion, "embedding": "raw"}
    return config, {**params, "space": space}


def save_decoder(
    part_config: Mapping[str, Any],
    params: Mapping[str, Any],
    folder: str | os.PathLike,
    normalizer: str | os.PathLike,
    dtype: str = "float32",
) -> None:
    """Writes a decoder as their two classes' from_pretrained read it.

    Args:
      part_config: of a part.
      params: nested dict of arrays.
      folder, normalizer: made if they do not exist.
      dtype: of the weights, see weights.write_weights.
    """
    fields = {"num_res_blocks": 2, "norm_groups": 32, **part_config["model"]}
    tensors = mapping.to_torch(table(fields), {"unet": params["unet"]})
    write_model(folder, _their_config(fields), tensors, dtype)
    statistics = {k: np.asarray(params["space"][k])[None] for k in ("mean", "std")}
    config = {"_class_name": NORMALIZER, "embedding_dim": fields["embed_dim"]}
    write_model(normalizer, config, statistics, dtype)


def model_fields(config: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The fields of models.StableDecoder, without the tokenizer's.

    Raises UsageError naming a setting that has no counterpart here.
    """
    unet = check_settings(config, UNET, DEFAULTS, FIXED, UNUSED, where)
    if (unet["in_channels"], unet["out_channels"]) != (4, 4):
        raise UsageError(
            f"{where}: channels are {unet['in_channels']} in, {unet['out_channels']} "
            "out; only latents of 4 channels are supported"
        )
    if unet["resnet_time_scale_shift"] != "default" or unet["dropout"]:
        raise UsageError(
            f"{where}: resnet_time_scale_shift must be 'default' and dropout 0"
        )
    label = unet["projection_class_embeddings_input_dim"]
    if not isinstance(label, int) or label % 2:
        raise UsageError(
            f"{where}: projection_class_embeddings_input_dim is {label}; it must be "
            "twice the width of the embeddings"
        )
    widths = unet["block_out_channels"]
    # their attention_head_dim has always meant the number of heads here
    heads = unet["num_attention_heads"] or unet["attention_head_dim"]
    heads = [heads] * len(widths) if isinstance(heads, int) else list(heads)
    attends = _attention_levels(unet, where)
    return {
        "backbone": "stable_diffusion",
        "image_size": unet["sample_size"],
        "embed_dim": label // 2,
        "text_width": unet["cross_attention_dim"],
        "channels": widths[0],
        "channel_mult": tuple(width // widths[0] for width in widths),
        "num_res_blocks": unet["layers_per_block"],
        "num_heads": tuple(n * has for n, has in zip(heads, attends, strict=True)),
        "mid_heads": heads[-1],
        "norm_groups": unet["norm_num_groups"],
    }


def _attention_levels(settings, where):
    down, up = list(settings["down_block_types"]), list(settings["up_block_types"])
    attends = [name == ATTENTION["down"] for name in down]
    if [down, up] != _block_types(attends):
        raise UsageError(
            f"{where}: the blocks are {', '.join(down)} and {', '.join(up)}; supported "
            f"are {PLAIN['down']} and {ATTENTION['down']}, with {PLAIN['up']} and "
            f"{ATTENTION['up']} at the same levels"
        )
    return attends


def _block_types(attends):
    """[down, up], the way up from the lowest resolution."""
    down = [(ATTENTION if has else PLAIN)["down"] for has in attends]
    return [down, [(ATTENTION if has else PLAIN)["up"] for has in reversed(attends)]]


def _their_config(fields):
    heads = fields["num_heads"]
    down, up = _block_types([bool(n) for n in heads])
    return {
        "_class_name": UNET,
        **FIXED,
        "attention_head_dim": [n or fields["mid_heads"] for n in heads],
        "block_out_channels": [fields["channels"] * m for m in fields["channel_mult"]],
        "cross_attention_dim": fields["text_width"],
        "down_block_types": down,
        "up_block_types": up,
        "in_channels": 4,
        "out_channels": 4,
        "layers_per_block": fields["num_res_blocks"],
        "norm_num_groups": fields["norm_groups"],
        "projection_class_embeddings_input_dim": 2 * fields["embed_dim"],
        "sample_size": fields["image_size"],
    }


def _transformer(ours, theirs):
    """A transformer over the pixels, of one block."""
    ours, inner, block = (
        f"unet/{ours}",
        f"unet/{ours}/block",
        f"{theirs}.transformer_blocks.0",
    )
    entries = [
        *mapping.norm(f"{ours}/norm", f"{theirs}.norm"),
        *mapping.dense(f"{ours}/proj_in", f"{theirs}.proj_in"),
        *mapping.dense(f"{ours}/proj_out", f"{theirs}.proj_out"),
        *mapping.dense(f"{inner}/fc_1", f"{block}.ff.net.0.proj"),
        *mapping.dense(f"{inner}/fc_2", f"{block}.ff.net.2"),
    ]
    for i in (1, 2, 3):
        entries += mapping.norm(f"{inner}/ln_{i}/norm", f"{block}.norm{i}")
    for name, attn in (("self_attn", "attn1"), ("cross_attn", "attn2")):
        for key in "qkv":
            entries += mapping.dense(
                f"{inner}/{name}/{key}", f"{block}.{attn}.to_{key}", bias=False
            )
        entries += mapping.dense(f"{inner}/{name}/out", f"{block}.{attn}.to_out.0")
    return entries
