"""What the UNets of diffusers (UNet2DConditionModel, UNet2DModel) and ours share.

The models of the unCLIP family: res blocks everywhere, for down- and up-sampling too,
and attention to [context, pixels] in one softmax at some levels. diffusers counts the
blocks of the way up from the lowest resolution, we name them by their level.
"""

from collections.abc import Mapping
from typing import Any

from unclip_jax.errors import UsageError
from unclip_jax.interop import mapping
from unclip_jax.interop.mapping import Entry

# Settings of both classes that we follow, with what they take where they are not given.
DEFAULTS = {
    "sample_size": None,
    "in_channels": None,
    "out_channels": None,
    "block_out_channels": None,
    "down_block_types": None,
    "up_block_types": None,
    "layers_per_block": 2,
    "dropout": 0.0,
    "norm_num_groups": 32,
    "resnet_time_scale_shift": "default",
}
# Settings of both classes that have no counterpart here but this value.
FIXED = {
    "act_fn": "silu",
    "center_input_sample": False,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "mid_block_scale_factor": 1,
    "norm_eps": 1e-5,
    "num_class_embeds": None,
    "time_embedding_dim": None,
    "time_embedding_type": "positional",
}
# Settings of both that change nothing where down- and up-sampling are res blocks.
UNUSED = ("downsample_padding",)

PLAIN = {"down": "ResnetDownsampleBlock2D", "up": "ResnetUpsampleBlock2D"}
ATTENTION = {"down": "SimpleCrossAttnDownBlock2D", "up": "SimpleCrossAttnUpBlock2D"}


def table(fields: Mapping[str, Any]) -> list[Entry]:
    """Every tensor of a UNet, ours under "unet".

    Args:
      fields: channels, channel_mult, num_res_blocks, and where there is attention also
        image_size and attention_resolutions.
    """
    widths = [fields["channels"] * mult for mult in fields["channel_mult"]]
    depths = fields["num_res_blocks"]
    depths = [depths] * len(widths) if isinstance(depths, int) else depths
    attends = attention_levels(fields)
    h = fields["channels"]
    skips = [h]
    entries = [
        *mapping.dense("unet/time_1", "time_embedding.linear_1"),
        *mapping.dense("unet/time_2", "time_embedding.linear_2"),
        *mapping.conv("unet/conv_in", "conv_in"),
        *mapping.norm("unet/norm_out", "conv_norm_out"),
        *mapping.conv("unet/conv_out", "conv_out"),
    ]
    for i, width in enumerate(widths):
        theirs = f"down_blocks.{i}"
        for j in range(depths[i]):
            entries += res_block(f"down_{i}_res_{j}", f"{theirs}.resnets.{j}", h, width)
            if attends[i]:
                entries += _attention(f"down_{i}_attn_{j}", f"{theirs}.attentions.{j}")
            h = width
            skips.append(h)
        if i + 1 < len(widths):
            entries += res_block(
                f"down_{i}_downsample", f"{theirs}.downsamplers.0", h, h
            )
            skips.append(h)
    for j in range(2):
        entries += res_block(f"mid_res_{j}", f"mid_block.resnets.{j}", h, h)
    if any(attends):
        entries += _attention("mid_attn", "mid_block.attentions.0")
    for k, i in enumerate(reversed(range(len(widths)))):
        theirs, width = f"up_blocks.{k}", widths[i]
        for j in range(depths[i] + 1):
            inputs = h + skips.pop()
            entries += res_block(
                f"up_{i}_res_{j}", f"{theirs}.resnets.{j}", inputs, width
            )
            if attends[i]:
                entries += _attention(f"up_{i}_attn_{j}", f"{theirs}.attentions.{j}")
            h = width
        if i:
            entries += res_block(f"up_{i}_upsample", f"{theirs}.upsamplers.0", h, h)
    return entries


def attention_levels(fields: Mapping[str, Any]) -> list[bool]:
    """Which levels have attention, by the sides of their feature maps."""
    resolutions = fields.get("attention_resolutions", ())
    levels = range(len(fields["channel_mult"]))
    return [fields["image_size"] >> i in resolutions for i in levels]


def model_fields(settings: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Our fields for those settings that both of their classes have.

    Args:
      settings: of config.json, completed and checked.
      where: the file, for messages.

    Raises UsageError naming what has no counterpart here.
    """
    for name, value in settings.items():
        if value is None:
            raise UsageError(f"{where} does not say {name}")
    widths = settings["block_out_channels"]
    if any(width % widths[0] for width in widths):
        raise UsageError(
            f"{where}: block_out_channels {widths} must be multiples of the first"
        )
    shift = settings["resnet_time_scale_shift"]
    if shift not in ("default", "scale_shift"):
        raise UsageError(
            f"{where}: resnet_time_scale_shift is {shift!r}, expected 'default' or "
            "'scale_shift'"
        )
    side = settings["sample_size"]
    if not isinstance(side, int) or side % 2 ** (len(widths) - 1):
        raise UsageError(
            f"{where}: sample_size is {side}; it must be one number that divides by "
            f"two at each of the {len(widths)} levels"
        )
    depths = settings["layers_per_block"]
    return {
        "image_size": side,
        "channels": widths[0],
        "channel_mult": tuple(width // widths[0] for width in widths),
        "num_res_blocks": depths if isinstance(depths, int) else tuple(depths),
        "learned_sigma": settings["out_channels"] == 6,
        "scale_shift": shift == "scale_shift",
        "dropout": settings["dropout"],
        "norm_groups": settings["norm_num_groups"],
    }


def attention_resolutions(settings: Mapping[str, Any], where: str) -> tuple[int, ...]:
    """The sides of the feature maps with attention.

    Raises UsageError for blocks of another type, or other blocks down than up.
    """
    down, up = settings["down_block_types"], settings["up_block_types"]
    attends = [name == ATTENTION["down"] for name in down]
    expected = _block_types(attends)
    if (list(down), list(up)) != expected:
        raise UsageError(
            f"{where}: the blocks are {', '.join(down)} and {', '.join(up)}; supported "
            f"are {PLAIN['down']} and {ATTENTION['down']}, with {PLAIN['up']} and "
            f"{ATTENTION['up']} at the same levels"
        )
    sides = (settings["sample_size"] >> i for i in range(len(down)))
    return tuple(side for side, has in zip(sides, attends, strict=True) if has)


def their_settings(fields: Mapping[str, Any], in_channels: int) -> dict[str, Any]:
    """The settings of both classes for a model of ours.

    Raises UsageError when their classes cannot hold it.
    """
    for name, found, theirs in (
        ("patch_size", fields.get("patch_size", 1), 1),
        ("refine_channels", fields.get("refine_channels", 0), 0),
        ("channel_mult[0]", fields["channel_mult"][0], 1),
    ):
        if found != theirs:
            raise UsageError(
                f"diffusers' UNets have {name} {theirs}; this one has {name} {found}: "
                "keep it in the native format"
            )
    depths = fields["num_res_blocks"]
    down, up = _block_types(attention_levels(fields))
    return {
        **FIXED,
        "sample_size": fields["image_size"],
        "in_channels": in_channels,
        "out_channels": fields.get("image_channels", 3) * (1 + fields["learned_sigma"]),
        "block_out_channels": [fields["channels"] * m for m in fields["channel_mult"]],
        "layers_per_block": depths if isinstance(depths, int) else list(depths),
        "down_block_types": down,
        "up_block_types": up,
        "dropout": fields.get("dropout", 0.0),
        "norm_num_groups": fields.get("norm_groups", 32),
        "resnet_time_scale_shift": "scale_shift"
        if fields.get("scale_shift", True)
        else "default",
    }


def _block_types(attends):
    """(down, up), the way up from the lowest resolution."""
    down = [(ATTENTION if has else PLAIN)["down"] for has in attends]
    up = [(ATTENTION if has else PLAIN)["up"] for has in reversed(attends)]
    return down, up


def res_block(ours, theirs, inputs, outputs):
    """A res block; its shortcut is a convolution if the number of channels changes."""
    ours = f"unet/{ours}"
    entries = [
        *mapping.norm(f"{ours}/norm_1", f"{theirs}.norm1"),
        *mapping.conv(f"{ours}/conv_1", f"{theirs}.conv1"),
        *mapping.dense(f"{ours}/time", f"{theirs}.time_emb_proj"),
        *mapping.norm(f"{ours}/norm_2", f"{theirs}.norm2"),
        *mapping.conv(f"{ours}/conv_2", f"{theirs}.conv2"),
    ]
    if inputs != outputs:
        entries += mapping.conv(f"{ours}/shortcut", f"{theirs}.conv_shortcut")
    return entries


def _attention(ours, theirs):
    """An attention block over [context, pixels]."""
    ours = f"unet/{ours}"
    return [
        *mapping.norm(f"{ours}/norm", f"{theirs}.group_norm"),
        *mapping.dense(f"{ours}/q", f"{theirs}.to_q"),
        *mapping.dense(f"{ours}/k", f"{theirs}.to_k"),
        *mapping.dense(f"{ours}/v", f"{theirs}.to_v"),
        *mapping.dense(f"{ours}/context_k", f"{theirs}.add_k_proj"),
        *mapping.dense(f"{ours}/context_v", f"{theirs}.add_v_proj"),
        *mapping.dense(f"{ours}/out", f"{theirs}.to_out.0"),
    ]
