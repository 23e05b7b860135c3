"""diffusers' PriorTransformer (Karlo, Kandinsky) and our prior, in both directions.

Their file holds neither what CLIP makes of the empty caption (their pipelines run it
each time) nor the tokenizer's numbers: whoever loads one has them at hand.
"""

import os
from collections.abc import Mapping
from typing import Any

from unclip_jax.errors import UsageError
from unclip_jax.interop import mapping, weights
from unclip_jax.interop.diffusers_config import (
    check_holds,
    check_settings,
    read_config,
    write_model,
)
from unclip_jax.interop.diffusers_scheduler import read_scheduler
from unclip_jax.interop.mapping import SQUEEZE_1, SQUEEZE_2, Entry
from unclip_jax.models.clip_caption import EMPTY_CAPTION

CLASS = "PriorTransformer"
KARLO = {  # what Karlo's scheduler says; Kandinsky bounds x0 by 10
    "schedule": "cosine",
    "num_steps": 1000,
    "prediction": "x0",
    "clip": 5.0,
    "sampler": "ddpm",
    "sampling_steps": 25,  # of their pipelines
}

# What their class fills in where config.json is silent.
DEFAULTS = {
    "num_attention_heads": 32,
    "attention_head_dim": 64,
    "num_layers": 20,
    "embedding_dim": 768,
    "num_embeddings": 77,
    "additional_embeddings": 4,
    "dropout": 0.0,
}
# Settings for which we have no counterpart but these.
FIXED = {
    "additional_embeddings": 4,
    "time_embed_act_fn": "silu",
    "norm_in_type": None,
    "embedding_proj_norm_type": None,
    "encoder_hid_proj_type": "linear",
    "added_emb_type": "prd",
}
# Widths that None leaves as they are by default, the only ones that we have.
WIDTHS = ("time_embed_dim", "embedding_proj_dim", "clip_embed_dim")


def table(depth: int) -> list[Entry]:
    """Every tensor of a PriorTransformer of `depth` layers."""
    entries = [
        Entry("positional_embedding", "positional_embedding", SQUEEZE_1),
        Entry("query", "prd_embedding", SQUEEZE_2),
        Entry("space/mean", "clip_mean", SQUEEZE_1),
        Entry("space/std", "clip_std", SQUEEZE_1),
        *mapping.dense("time_1", "time_embedding.linear_1"),
        *mapping.dense("time_2", "time_embedding.linear_2"),
        *mapping.dense("clip_image_in", "proj_in"),
        *mapping.dense("clip_text_in", "embedding_proj"),
        *mapping.dense("text_states_in", "encoder_hidden_states_proj"),
        *mapping.norm("ln_final/norm", "norm_out"),
        *mapping.dense("clip_image_out", "proj_to_clip_embeddings"),
    ]
    for i in range(depth):
        ours, theirs = f"transformer/block_{i}", f"transformer_blocks.{i}"
        entries += [
            *mapping.norm(f"{ours}/ln_1/norm", f"{theirs}.norm1"),
            *mapping.dense(f"{ours}/attn/q", f"{theirs}.attn1.to_q"),
            *mapping.dense(f"{ours}/attn/k", f"{theirs}.attn1.to_k"),
            *mapping.dense(f"{ours}/attn/v", f"{theirs}.attn1.to_v"),
            *mapping.dense(f"{ours}/attn/out", f"{theirs}.attn1.to_out.0"),
            *mapping.norm(f"{ours}/ln_2/norm", f"{theirs}.norm3"),
            *mapping.dense(f"{ours}/fc_1", f"{theirs}.ff.net.0.proj"),
            *mapping.dense(f"{ours}/fc_2", f"{theirs}.ff.net.2"),
        ]
    return entries


def load_prior(
    folder: str | os.PathLike,
    scheduler: str | os.PathLike | None = None,
    *,
    eot_id: int = 49407,
    vocab_size: int = 49408,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """A prior of diffusers as a part of ours.

    Args:
      folder: holds config.json and the weights.
      scheduler: folder of its scheduler_config.json; None takes Karlo's.
      eot_id, vocab_size: the tokenizer's; OpenAI's by default.

    Returns:
      (part config, parameters). The parameters lack the empty caption: give it with
      models.clip_caption.with_empty_caption.

    Raises:
      FileNotFoundError: a file is missing.
      UsageError: settings that have no counterpart here, or tensors that do not fit.
    """
    fields = model_fields(read_config(folder), f"{folder}/config.json")
    fields |= {"eot_id": eot_id, "vocab_size": vocab_size}
    diffusion = read_scheduler(scheduler, KARLO, learned_sigma=False)
    tensors = weights.read_weights(folder)
    params = mapping.from_torch(
        table(fields["depth"]), tensors, f"the prior in {folder}"
    )
    config = {"model": fields, "diffusion": diffusion, "embedding": "standardize"}
    return config, params


def save_prior(
    part_config: Mapping[str, Any],
    params: Mapping[str, Any],
    folder: str | os.PathLike,
    dtype: str = "float32",
) -> None:
    """Writes a prior as diffusers' PriorTransformer.from_pretrained reads it.

    Args:
      part_config: of a part or a stage's export.
      params: nested dict of arrays.
      folder: made if it does not exist.
      dtype: of the weights, see weights.write_weights.

    Raises:
      UsageError: a prior that their class cannot hold.
    """
    config = _their_config(part_config)
    depth = part_config["model"]["depth"]
    params = mapping.unstack_blocks(params)
    tensors = mapping.to_torch(table(depth), params, keep=EMPTY_CAPTION)
    write_model(folder, config, tensors, dtype)


def model_fields(config: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The fields of our module for a config of theirs, without the tokenizer's.

    Raises UsageError naming a setting that has no counterpart here.
    """
    settings = check_settings(config, CLASS, DEFAULTS, FIXED, WIDTHS, where)
    heads, dim = settings["num_attention_heads"], settings["embedding_dim"]
    width = heads * settings["attention_head_dim"]
    for name, value in zip(WIDTHS, (width, dim, dim), strict=True):
        if config.get(name) not in (None, value):
            raise UsageError(
                f"{where}: {name} is {config[name]!r}; only {value!r} is supported"
            )
    return {
        "caption": "clip_states",
        "embed_dim": dim,
        "text_width": dim,
        "context_length": settings["num_embeddings"],
        "width": width,
        "depth": settings["num_layers"],
        "num_heads": heads,
        "dropout": settings["dropout"],
    }


def _their_config(part_config):
    fields = part_config["model"]
    dim = fields["embed_dim"]
    held = {
        "caption": (fields.get("caption"), "clip_states"),
        "embedding": (part_config["embedding"], "standardize"),
        "text_width": (fields.get("text_width") or dim, dim),
    }
    check_holds(CLASS, "priors", held)
    return {
        "_class_name": CLASS,
        **DEFAULTS,
        "num_attention_heads": fields["num_heads"],
        "attention_head_dim": fields["width"] // fields["num_heads"],
        "num_layers": fields["depth"],
        "embedding_dim": fields["embed_dim"],
        "num_embeddings": fields["context_length"],
        "dropout": fields.get("dropout", 0.0),
    }
