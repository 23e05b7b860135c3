"""diffusers' AutoencoderKL and VQModel, and our autoencoder, in both directions.

VQModel with spatial norms is MoVQ, Kandinsky's; AutoencoderKL is Stable Diffusion's.
Kandinsky's pipelines take latents as they are, whatever `scaling_factor` their files
say.
"""

import os
import pathlib
from collections.abc import Mapping
from typing import Any

from unclip_jax.errors import UsageError
from unclip_jax.files import read_json
from unclip_jax.interop import mapping, weights
from unclip_jax.interop.diffusers_config import (
    check_settings,
    read_config,
    write_model,
)
from unclip_jax.interop.mapping import Entry

VARIATIONAL, QUANTIZED = "AutoencoderKL", "VQModel"
# What both classes fill in where config.json is silent.
DEFAULTS = {
    "block_out_channels": (64,),
    "down_block_types": ("DownEncoderBlock2D",),
    "up_block_types": ("UpDecoderBlock2D",),
    "layers_per_block": 1,
    "latent_channels": 4,
    "mid_block_add_attention": True,
    "norm_num_groups": 32,
    "sample_size": 32,
}
OWN_DEFAULTS = {
    VARIATIONAL: {"scaling_factor": 0.18215},
    QUANTIZED: {
        "latent_channels": 3,
        "norm_type": "group",
        "num_vq_embeddings": 256,
        "vq_embed_dim": None,
    },
}
# Settings for which we have no counterpart but these.
FIXED = {"act_fn": "silu", "in_channels": 3, "out_channels": 3}
OWN_FIXED = {
    VARIATIONAL: {
        "latents_mean": None,
        "latents_std": None,
        "shift_factor": None,
        "use_post_quant_conv": True,
        "use_quant_conv": True,
    },
    QUANTIZED: {"lookup_from_codebook": False},
}
UNUSED = {
    VARIATIONAL: ("force_upcast",),
    QUANTIZED: ("force_upcast", "scaling_factor"),
}
PLAIN = {"down": "DownEncoderBlock2D", "up": "UpDecoderBlock2D"}
ATTENTION = {"down": "AttnDownEncoderBlock2D", "up": "AttnUpDecoderBlock2D"}
SPATIAL_GROUPS = 32  # of their spatial norms, whatever norm_num_groups says
# Names of the projections of attention before diffusers 0.17, theirs today.
OLD_NAMES = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


def table(fields: Mapping[str, Any]) -> list[Entry]:
    """Every tensor of an autoencoder with the `fields` of models.Autoencoder."""
    widths = [fields["channels"] * mult for mult in fields["channel_mult"]]
    depth, attends = fields["num_res_blocks"], fields["attention_levels"]
    spatial = fields["spatial_norm"]
    entries = [
        *mapping.conv("quant_conv", "quant_conv"),
        *mapping.conv("post_quant_conv", "post_quant_conv"),
        *mapping.conv("encoder/conv_in", "encoder.conv_in"),
        *_norm("encoder/norm_out", "encoder.conv_norm_out"),
        *mapping.conv("encoder/conv_out", "encoder.conv_out"),
        *mapping.conv("decoder/conv_in", "decoder.conv_in"),
        *_norm("decoder/norm_out", "decoder.conv_norm_out", spatial),
        *mapping.conv("decoder/conv_out", "decoder.conv_out"),
    ]
    if fields["num_codes"]:
        entries.append(Entry("codebook", "quantize.embedding.weight"))
    for side, modulated in (("encoder", False), ("decoder", spatial)):
        for j in range(2):
            ours, theirs = f"{side}/mid_res_{j}", f"{side}.mid_block.resnets.{j}"
            entries += _res(ours, theirs, False, modulated)
        if fields["mid_attention"]:
            theirs = f"{side}.mid_block.attentions.0"
            entries += _attention(f"{side}/mid_attn", theirs, modulated)
    h = widths[0]
    for i, width in enumerate(widths):
        ours, theirs = f"encoder/down_{i}", f"encoder.down_blocks.{i}"
        for j in range(depth):
            entries += _res(f"{ours}_res_{j}", f"{theirs}.resnets.{j}", h != width)
            if i in attends:
                entries += _attention(f"{ours}_attn_{j}", f"{theirs}.attentions.{j}")
            h = width
        if i + 1 < len(widths):
            entries += mapping.conv(
                f"{ours}_downsample", f"{theirs}.downsamplers.0.conv"
            )
    for k, i in enumerate(reversed(range(len(widths)))):
        ours, theirs = f"decoder/up_{i}", f"decoder.up_blocks.{k}"
        for j in range(depth + 1):
            inner = f"{ours}_res_{j}", f"{theirs}.resnets.{j}"
            entries += _res(*inner, h != widths[i], spatial)
            if i in attends:
                inner = f"{ours}_attn_{j}", f"{theirs}.attentions.{j}"
                entries += _attention(*inner, spatial)
            h = widths[i]
        if i:
            entries += mapping.conv(f"{ours}_upsample", f"{theirs}.upsamplers.0.conv")
    return entries


def is_autoencoder(folder: pathlib.Path) -> bool:
    """Whether a folder holds the config of one of the two classes."""
    file = folder / "config.json"
    return file.is_file() and read_json(file, "").get("_class_name") in OWN_DEFAULTS


def load_autoencoder(
    folder: str | os.PathLike,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """An AutoencoderKL or a VQModel as a part of ours.

    Args:
      folder: vae/ or movq/ of a pipeline, with config.json and the weights.

    Returns:
      (part config, parameters).

    Raises:
      FileNotFoundError: a file is missing.
      UsageError: settings that have no counterpart here, or tensors that do not fit.
    """
    fields = model_fields(read_config(folder), f"{folder}/config.json")
    tensors = {_new_name(k): a for k, a in weights.read_weights(folder).items()}
    params = mapping.from_torch(table(fields), tensors, f"the autoencoder in {folder}")
    return {"model": fields}, params


def save_autoencoder(
    part_config: Mapping[str, Any],
    params: Mapping[str, Any],
    folder: str | os.PathLike,
    dtype: str = "float32",
) -> None:
    """Writes an autoencoder as their class's from_pretrained reads it.

    Args:
      part_config: of a part.
      params: nested dict of arrays.
      folder: made if it does not exist.
      dtype: of the weights, see weights.write_weights.

    Raises UsageError for an autoencoder that their classes cannot hold.
    """
    fields = _completed(part_config["model"])
    tensors = mapping.to_torch(table(fields), params)
    write_model(folder, _their_config(fields), tensors, dtype)


def class_name(fields: Mapping[str, Any]) -> str:
    """Their class for an autoencoder of ours."""
    return QUANTIZED if fields.get("num_codes") else VARIATIONAL


def model_fields(config: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The fields of models.Autoencoder for a config of theirs.

    Raises UsageError naming a setting that has no counterpart here.
    """
    name = config.get("_class_name")
    if name not in OWN_DEFAULTS:
        raise UsageError(
            f"{where}: expected an {VARIATIONAL} or a {QUANTIZED}, found a {name}"
        )
    settings = check_settings(
        config,
        name,
        {**DEFAULTS, **OWN_DEFAULTS[name]},
        {**FIXED, **OWN_FIXED[name]},
        UNUSED[name],
        where,
    )
    widths = settings["block_out_channels"]
    if any(width % widths[0] for width in widths):
        raise UsageError(
            f"{where}: block_out_channels {widths} must be multiples of the first"
        )
    fields = {
        "channels": widths[0],
        "channel_mult": tuple(width // widths[0] for width in widths),
        "num_res_blocks": settings["layers_per_block"],
        "attention_levels": _attention_levels(settings, where),
        "mid_attention": settings["mid_block_add_attention"],
        "latent_channels": settings["latent_channels"],
        "image_size": settings["sample_size"],
        "norm_groups": settings["norm_num_groups"],
    }
    if name == VARIATIONAL:
        return _completed({**fields, "latent_scale": settings["scaling_factor"]})
    if settings["norm_type"] not in ("group", "spatial"):
        raise UsageError(
            f"{where}: norm_type is {settings['norm_type']!r}, expected 'group' or "
            "'spatial'"
        )
    fields |= {
        "num_codes": settings["num_vq_embeddings"],
        "code_channels": settings["vq_embed_dim"] or settings["latent_channels"],
        "spatial_norm": settings["norm_type"] == "spatial",
    }
    if fields["spatial_norm"] and fields["norm_groups"] != SPATIAL_GROUPS:
        raise UsageError(
            f"{where}: norm_num_groups is {fields['norm_groups']}; with spatial norms, "
            f"which have {SPATIAL_GROUPS}, only {SPATIAL_GROUPS} is supported"
        )
    return _completed(fields)


def _completed(fields):
    """The fields, with the defaults of models.Autoencoder that the table reads."""
    return {
        "num_res_blocks": 2,
        "attention_levels": (),
        "mid_attention": True,
        "latent_channels": 4,
        "num_codes": 0,
        "code_channels": None,
        "spatial_norm": False,
        "latent_scale": 1.0,
        "image_size": 256,
        "norm_groups": 32,
        **fields,
    }


def _their_config(fields):
    levels = len(fields["channel_mult"])
    types = {
        key: [
            (ATTENTION if i in fields["attention_levels"] else PLAIN)[key]
            for i in range(levels)
        ]
        for key in PLAIN
    }
    name = class_name(fields)
    config = {
        "_class_name": name,
        **FIXED,
        **OWN_FIXED[name],
        "block_out_channels": [fields["channels"] * m for m in fields["channel_mult"]],
        "down_block_types": types["down"],
        "up_block_types": types["up"][::-1],
        "layers_per_block": fields["num_res_blocks"],
        "latent_channels": fields["latent_channels"],
        "mid_block_add_attention": fields["mid_attention"],
        "norm_num_groups": fields["norm_groups"],
        "sample_size": fields["image_size"],
    }
    if name == VARIATIONAL:
        return {**config, "scaling_factor": fields["latent_scale"]}
    if fields["latent_scale"] != 1:
        raise UsageError(
            f"diffusers' {QUANTIZED} takes latents as they are; this autoencoder "
            f"scales them by {fields['latent_scale']}: keep it in the native format"
        )
    return {
        **config,
        "norm_type": "spatial" if fields["spatial_norm"] else "group",
        "num_vq_embeddings": fields["num_codes"],
        "vq_embed_dim": fields["code_channels"] or fields["latent_channels"],
    }


def _attention_levels(settings, where):
    down, up = settings["down_block_types"], settings["up_block_types"]
    attends = [name == ATTENTION["down"] for name in down]
    expected = [
        [(ATTENTION if has else PLAIN)["down"] for has in attends],
        [(ATTENTION if has else PLAIN)["up"] for has in reversed(attends)],
    ]
    if [list(down), list(up)] != expected:
        raise UsageError(
            f"{where}: the blocks are {', '.join(down)} and {', '.join(up)}; supported "
            f"are {PLAIN['down']} and {ATTENTION['down']}, with {PLAIN['up']} and "
            f"{ATTENTION['up']} at the same levels"
        )
    return tuple(i for i, has in enumerate(attends) if has)


def _new_name(name):
    """What diffusers calls a tensor today; the files of Stable Diffusion are older."""
    if ".attentions." not in name:
        return name
    head, last, kind = name.rsplit(".", 2)
    return f"{head}.{OLD_NAMES.get(last, last)}.{kind}"


def _norm(ours, theirs, spatial=False):
    if not spatial:
        return mapping.norm(ours, theirs)
    return [
        *mapping.norm(f"{ours}/norm", f"{theirs}.norm_layer"),
        *mapping.conv(f"{ours}/modulation_scale", f"{theirs}.conv_y"),
        *mapping.conv(f"{ours}/modulation_shift", f"{theirs}.conv_b"),
    ]


def _res(ours, theirs, shortcut, spatial=False):
    entries = [
        *_norm(f"{ours}/norm_1", f"{theirs}.norm1", spatial),
        *mapping.conv(f"{ours}/conv_1", f"{theirs}.conv1"),
        *_norm(f"{ours}/norm_2", f"{theirs}.norm2", spatial),
        *mapping.conv(f"{ours}/conv_2", f"{theirs}.conv2"),
    ]
    if shortcut:
        entries += mapping.conv(f"{ours}/shortcut", f"{theirs}.conv_shortcut")
    return entries


def _attention(ours, theirs, spatial=False):
    norm = "spatial_norm" if spatial else "group_norm"
    return [
        *_norm(f"{ours}/norm", f"{theirs}.{norm}", spatial),
        *mapping.dense(f"{ours}/q", f"{theirs}.to_q"),
        *mapping.dense(f"{ours}/k", f"{theirs}.to_k"),
        *mapping.dense(f"{ours}/v", f"{theirs}.to_v"),
        *mapping.dense(f"{ours}/out", f"{theirs}.to_out.0"),
    ]
