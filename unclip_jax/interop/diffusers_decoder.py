"""diffusers' UnCLIPTextProjModel and UNet2DConditionModel, and our decoder.

Theirs are two folders, ours is one module. Their files hold neither what CLIP makes of
the empty caption (their pipelines run it each time) nor the tokenizer's numbers: who
loads a decoder has them at hand.
"""

import dataclasses
import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from unclip_jax.errors import UsageError
from unclip_jax.interop import diffusers_unet, mapping, weights
from unclip_jax.interop.diffusers_config import (
    check_holds,
    check_settings,
    read_config,
    write_model,
)
from unclip_jax.interop.diffusers_scheduler import read_scheduler
from unclip_jax.interop.mapping import DENSE, Entry, Layout
from unclip_jax.models.clip_caption import EMPTY_CAPTION

TEXT_PROJ, UNET = "UnCLIPTextProjModel", "UNet2DConditionModel"
MID_BLOCK = "UNetMidBlock2DSimpleCrossAttn"
KARLO = {
    "schedule": "cosine",
    "num_steps": 1000,
    "prediction": "epsilon",
    "clip": 1.0,
    "sampler": "ddpm",
    "sampling_steps": 25,
}
TEXT_PROJ_DEFAULTS = {
    "clip_embeddings_dim": 768,
    "clip_extra_context_tokens": 4,
    "cross_attention_dim": None,
    "time_embed_dim": None,
}
DEFAULTS = {
    **diffusers_unet.DEFAULTS,
    "attention_head_dim": 8,
    "class_embed_type": None,
    "cross_attention_dim": 1280,
    "mid_block_type": "UNetMidBlock2DCrossAttn",
}
FIXED = {
    **diffusers_unet.FIXED,
    "addition_embed_type": None,
    "class_embed_type": "identity",
    "class_embeddings_concat": False,
    "conv_in_kernel": 3,
    "conv_out_kernel": 3,
    "cross_attention_norm": None,
    "encoder_hid_dim": None,
    "encoder_hid_dim_type": None,
    "mid_block_only_cross_attention": None,
    "mid_block_type": MID_BLOCK,
    "num_attention_heads": None,
    "only_cross_attention": False,
    "projection_class_embeddings_input_dim": None,
    "resnet_out_scale_factor": 1.0,
    "resnet_skip_time_act": False,
    "time_cond_proj_dim": None,
    "time_embedding_act_fn": None,
    "timestep_post_act": None,
}
UNUSED = (
    *diffusers_unet.UNUSED,
    "addition_embed_type_num_heads",
    "addition_time_embed_dim",
    "attention_type",
    "dual_cross_attention",
    "reverse_transformer_layers_per_block",
    "transformer_layers_per_block",
    "upcast_attention",
    "use_linear_projection",
)


@dataclasses.dataclass(frozen=True)
class TokensLast(Layout):
    """A projection to several tokens whose outputs are (channel, token) in theirs.

    Attributes:
      tokens: how many; ours are (token, channel).
    """

    tokens: int = 1

    def from_torch(self, a):
        """Their array -> ours."""
        split = a.reshape(-1, self.tokens, *a.shape[1:])
        return super().from_torch(split.swapaxes(0, 1).reshape(a.shape))

    def to_torch(self, a):
        """Our array -> theirs."""
        a = super().to_torch(a)
        split = a.reshape(self.tokens, -1, *a.shape[1:])
        return split.swapaxes(0, 1).reshape(a.shape)


def text_proj_table(num_clip_tokens: int) -> list[Entry]:
    """Every tensor of an UnCLIPTextProjModel."""
    tokens = "clip_extra_context_tokens_proj"
    kernel = TokensLast(DENSE.permutation, tokens=num_clip_tokens)
    image_to_time = "clip_image_embeddings_project_to_time_embeddings"
    return [
        Entry("null_clip_image", "learned_classifier_free_guidance_embeddings"),
        *mapping.dense("clip_to_time", image_to_time),
        *mapping.dense("text_to_time", "embedding_proj"),
        Entry("clip_to_tokens/kernel", f"{tokens}.weight", kernel),
        Entry(
            "clip_to_tokens/bias", f"{tokens}.bias", TokensLast(tokens=num_clip_tokens)
        ),
        *mapping.dense("text_states_in", "encoder_hidden_states_proj"),
        *mapping.norm("text_states_norm/norm", "text_encoder_hidden_states_norm"),
    ]


def load_decoder(
    text_proj_folder: str | os.PathLike,
    decoder_folder: str | os.PathLike,
    scheduler: str | os.PathLike | None = None,
    *,
    context_length: int = 77,
    eot_id: int = 49407,
    vocab_size: int = 49408,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """A decoder of diffusers as a part of ours.

    Args:
      text_proj_folder, decoder_folder: each holds config.json and weights.
      scheduler: the folder with its scheduler_config.json; None is Karlo's.
      context_length, eot_id, vocab_size: the tokenizer's; OpenAI's by default.

    Returns:
      (part config, parameters). The parameters lack the empty caption: give it with
      models.clip_caption.with_empty_caption.

    Raises:
      FileNotFoundError: a file is missing.
      UsageError: settings that have no counterpart here, two folders that do not fit
        together, or tensors that do not fit.
    """
    fields: dict[str, Any] = {
        **model_fields(
            read_config(text_proj_folder),
            read_config(decoder_folder),
            f"{text_proj_folder}/config.json",
            f"{decoder_folder}/config.json",
        ),
        "context_length": context_length,
        "eot_id": eot_id,
        "vocab_size": vocab_size,
    }
    text_proj = mapping.from_torch(
        text_proj_table(fields["num_clip_tokens"]),
        weights.read_weights(text_proj_folder),
        f"the text_proj in {text_proj_folder}",
    )
    unet = mapping.from_torch(
        diffusers_unet.table(fields),
        weights.read_weights(decoder_folder),
        f"the decoder in {decoder_folder}",
    )
    dim = fields["embed_dim"]
    space = {"mean": np.zeros(dim, np.float32), "std": np.ones(dim, np.float32)}
    diffusion = read_scheduler(scheduler, KARLO, fields["learned_sigma"])
    config = {"model": fields, "diffusion": diffusion, "embedding": "raw"}
    return config, {**text_proj, **unet, "space": space}


def save_decoder(
    part_config: Mapping[str, Any],
    params: Mapping[str, Any],
    text_proj_folder: str | os.PathLike,
    decoder_folder: str | os.PathLike,
    dtype: str = "float32",
) -> None:
    """Writes a decoder as the two classes' from_pretrained read it.

    Theirs take raw embeddings: the statistics of a decoder that learnt on standardised
    ones are folded into its projections, which changes no output.

    Args:
      part_config: of a part or a stage's export.
      params: nested dict of arrays.
      text_proj_folder, decoder_folder: made if they do not exist.
      dtype: of the weights, see weights.write_weights.

    Raises UsageError for a decoder that their classes cannot hold.
    """
    fields = {"learned_sigma": True, "num_clip_tokens": 4, **part_config["model"]}
    _check_holds(fields)
    cross, time = fields["text_width"], 4 * fields["channels"]
    text_proj = {
        "_class_name": TEXT_PROJ,
        "clip_embeddings_dim": fields["embed_dim"],
        "clip_extra_context_tokens": fields["num_clip_tokens"],
        "cross_attention_dim": cross,
        "time_embed_dim": time,
    }
    unet = {
        "_class_name": UNET,
        **FIXED,
        **diffusers_unet.their_settings(fields, in_channels=3),
        "attention_head_dim": fields.get("head_channels", 64),
        "cross_attention_dim": cross,
    }
    params = fold_normalization(params)
    rest = {k: v for k, v in params.items() if k not in ("unet", *EMPTY_CAPTION)}
    table = text_proj_table(fields["num_clip_tokens"])
    text_proj_tensors = mapping.to_torch(table, rest)
    table = diffusers_unet.table(fields)
    unet_tensors = mapping.to_torch(table, {"unet": params["unet"]})
    write_model(text_proj_folder, text_proj, text_proj_tensors, dtype)
    write_model(decoder_folder, unet, unet_tensors, dtype)


def model_fields(
    text_proj: Mapping[str, Any],
    unet: Mapping[str, Any],
    text_proj_where: str,
    unet_where: str,
) -> dict[str, Any]:
    """The fields of our module for two configs of theirs, without the tokenizer's.

    Args:
      text_proj, unet: the two config.json.
      text_proj_where, unet_where: the files, for messages.

    Raises UsageError naming a setting that has no counterpart here.
    """
    text_proj = check_settings(
        text_proj, TEXT_PROJ, TEXT_PROJ_DEFAULTS, {}, (), text_proj_where
    )
    unet = check_settings(unet, UNET, DEFAULTS, FIXED, UNUSED, unet_where)
    channels = unet["in_channels"], unet["out_channels"]
    if channels not in ((3, 3), (3, 6)):
        raise UsageError(
            f"{unet_where}: channels are {channels[0]} in, {channels[1]} out; a "
            "decoder takes a picture (3) and makes one, with its variance or not (3, 6)"
        )
    for name in ("attention_head_dim", "cross_attention_dim"):
        if not isinstance(unet[name], int):
            raise UsageError(
                f"{unet_where}: {name} is {unet[name]}; only one number is supported"
            )
    fields = diffusers_unet.model_fields(unet, unet_where)
    expected = {
        "cross_attention_dim": unet["cross_attention_dim"],
        "time_embed_dim": 4 * fields["channels"],
    }
    for name, value in expected.items():
        if text_proj[name] != value:
            raise UsageError(
                f"{text_proj_where}: {name} is {text_proj[name]}, but the decoder in "
                f"{unet_where} has {value}"
            )
    return {
        **fields,
        "attention_resolutions": diffusers_unet.attention_resolutions(unet, unet_where),
        "caption": "clip_states",
        "embed_dim": text_proj["clip_embeddings_dim"],
        "head_channels": unet["attention_head_dim"],
        "num_clip_tokens": text_proj["clip_extra_context_tokens"],
        "text_width": unet["cross_attention_dim"],
    }


def fold_normalization(params: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters that do to raw embeddings what `params` do to normalised ones.

    W ((z - mean) / std) + b = (W / std) z + (b - W (mean / std)), for both projections
    of the image embedding; the result has no "space".
    """
    params = dict(params)
    space = params.pop("space")
    mean, std = (np.asarray(space[name], np.float64) for name in ("mean", "std"))
    for name in ("clip_to_time", "clip_to_tokens"):
        kernel = np.asarray(params[name]["kernel"], np.float64) / std[:, None]
        bias = np.asarray(params[name]["bias"], np.float64) - mean @ kernel
        params[name] = {
            "kernel": kernel.astype(np.float32),
            "bias": bias.astype(np.float32),
        }
    null = np.asarray(params["null_clip_image"], np.float64) * std + mean
    return {**params, "null_clip_image": null.astype(np.float32)}


def _check_holds(fields):
    """Raises UsageError for what their classes have no place for."""
    dim = fields["embed_dim"]
    held = {
        "backbone": (fields.get("backbone", "unet"), "unet"),
        "caption": (fields.get("caption", "tokens"), "clip_states"),
        "unit_norm": (fields.get("unit_norm", False), False),
        "text_states_width": (fields.get("text_states_width") or dim, dim),
    }
    check_holds(TEXT_PROJ, "decoders", held)
    if not any(diffusers_unet.attention_levels(fields)):
        raise UsageError(f"diffusers' {MID_BLOCK} has attention; this decoder has none")
