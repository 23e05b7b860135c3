"""Embedding priors as diffusers' PriorTransformer, where that class can hold them.

Its sequence is a condition of any length (encoder_hidden_states), a vector
(proj_embedding), the timestep, the noised tokens and, if there is one, a query: ours,
if there are no other conditions. Their class knows no condition that is missing, so the
tokens that stand for one, and guidance with them, stay behind.
"""

import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from unclip_jax.errors import UsageError
from unclip_jax.interop import diffusers_prior, mapping
from unclip_jax.interop.diffusers_config import check_holds, write_model
from unclip_jax.models.conditions import FLOATS, describe

CLASS = diffusers_prior.CLASS
# our names of the conditions' layers -> those of the paper's prior, see diffusers_prior
VECTOR, SEQUENCE = "clip_text_in", "text_states_in"


def save_embedding_prior(
    part_config: Mapping[str, Any],
    params: Mapping[str, Any],
    folder: str | os.PathLike,
    dtype: str = "float32",
) -> None:
    """Writes an embedding prior as PriorTransformer.from_pretrained reads it.

    A causal one wants an attention_mask (ones, of the sequence's length, which is 0
    without one), the others None: with a mask their class is causal.

    Args:
      part_config: of a part or a stage's export.
      params: nested dict of arrays.
      folder: made if it does not exist.
      dtype: of the weights, see weights.write_weights.

    Raises:
      UsageError: a prior that their class cannot hold.
    """
    config, tensors = their_config(part_config), their_tensors(part_config, params)
    write_model(folder, config, tensors, dtype)


def their_config(part_config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a PriorTransformer; raises what `save_embedding_prior` does."""
    fields = part_config["model"]
    sequence, vector = _inputs(fields)
    *tokens, dim = fields["target_shape"]
    count = tokens[0] if tokens else 1
    queries = fields.get("queries", True)
    masked = bool(sequence and sequence.masked)
    held = {
        "backbone": (fields.get("backbone", "transformer"), "transformer"),
        "single_pass": (fields.get("single_pass", False), False),
        "vector_tokens": (fields.get("vector_tokens", 1), 1),
        "learned queries": (count if queries else 1, 1),
        "a sequence of width": (sequence.shape[-1] if sequence else dim, dim),
        "causal": (fields.get("causal", True) or not masked, True),
    }
    check_holds(CLASS, "priors", held)
    return {
        "_class_name": CLASS,
        **diffusers_prior.DEFAULTS,
        "num_attention_heads": fields["num_heads"],
        "attention_head_dim": fields["width"] // fields["num_heads"],
        "num_layers": fields["depth"],
        "embedding_dim": dim,
        "embedding_proj_dim": vector.shape[-1],
        "num_embeddings": sequence.shape[0] if sequence else 0,
        "additional_embeddings": 2 + count + queries,
        "encoder_hid_proj_type": "linear" if sequence else None,
        "added_emb_type": "prd" if queries else None,
        "dropout": fields.get("dropout", 0.0),
    }


def their_tensors(
    part_config: Mapping[str, Any], params: Mapping[str, Any]
) -> dict[str, Any]:
    """The tensors of a PriorTransformer, whose conditions are raw ones.

    Raises UsageError for statistics of the target that differ between tokens.
    """
    fields = part_config["model"]
    params = dict(mapping.unstack_blocks(params))
    names = dict(zip((SEQUENCE, VECTOR), _names(fields), strict=True))
    for theirs, name in names.items():
        if name:
            params[theirs] = _raw_input(params.pop(f"condition_{name}"))
    params["clip_image_in"] = params.pop("noised_in")
    params["clip_image_out"] = params.pop("out")
    params["space"] = {k: _one_row(np.asarray(a)) for k, a in params["space"].items()}
    queries = "query" in params
    if queries:
        params["query"] = np.asarray(params["query"])[0]
    absent = {SEQUENCE} - {theirs for theirs, name in names.items() if name}
    absent |= set() if queries else {"query"}
    entries = diffusers_prior.table(fields["depth"])
    entries = [e for e in entries if e.ours.split("/")[0] not in absent]
    return mapping.to_torch(entries, params)


def _names(fields) -> tuple[str | None, str]:
    """(name of the sequence or None, name of the vector)."""
    conditions = describe(fields["conditions"])
    kinds = [condition.kind for condition in conditions.values()]
    forms = [("sequence" if k == "sequence" else "vector") for k in kinds]
    if forms not in (["vector"], ["sequence", "vector"]) or not set(kinds) <= {*FLOATS}:
        raise UsageError(
            f"diffusers' {CLASS} holds priors of one vector, or of one sequence and "
            f"one vector in this order; this one has {', '.join(map(repr, kinds))}: "
            "keep it in the native format"
        )
    *sequence, vector = conditions
    return (sequence[0] if sequence else None), vector


def _inputs(fields):
    """(the sequence or None, the vector), each a Condition."""
    conditions = describe(fields["conditions"])
    sequence, vector = _names(fields)
    return conditions.get(sequence) if sequence else None, conditions[vector]


def _raw_input(params) -> dict[str, np.ndarray]:
    """The layer that does to raw numbers what "in" does to standardized ones."""
    mean, std = (np.asarray(params["space"][k], np.float64) for k in ("mean", "std"))
    kernel = np.asarray(params["in"]["kernel"], np.float64) / std[:, None]
    bias = np.asarray(params["in"]["bias"], np.float64) - mean @ kernel
    return {"kernel": kernel.astype(np.float32), "bias": bias.astype(np.float32)}


def _one_row(a: np.ndarray) -> np.ndarray:
    rows = a.reshape(-1, a.shape[-1])
    if (rows != rows[0]).any():
        raise UsageError(
            f"diffusers' {CLASS} has one mean and deviation for all tokens; this prior "
            "has one for each (standardize_tokens): keep it in the native format"
        )
    return rows[0]
