"""Training stages: one file each, joining a model with its loss.

A stage is a frozen dataclass made from (config, data_info) with

    batch_spec                              {name: (shape, dtype)} of one example
    init(rng) -> params
    loss(params, rng, batch) -> (scalar float32, {name: scalar})
    export() -> {"part", "config"}          what rebuilds the model for sampling

and, where it can,

    preview(params, rng, batch) -> uint8 (N, H, W, 3)       for config.preview
    embed(params, rng, batch) -> {name: (B, D)}             for config.evaluators

The training loop knows nothing else about it. To add one, write
stages/<name>.py with a `Stage` class and name it in a config; one that denoises is a
`DiffusionStage` (see diffusion.py).
"""

import importlib
import pkgutil
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from unclip_jax.errors import UsageError
from unclip_jax.models.clip_caption import EMPTY_CAPTION, with_empty_caption
from unclip_jax.models.layers import UNIT_SCALES

# Parameters that describe the data: no gradient reaches them, no decay may either.
CONSTANTS = ("space", "codebook", *EMPTY_CAPTION)
_SHARED = ("diffusion",)  # modules of this package that are no stage
# What embed must be told for records to have a field that it leaves out.
_FLAGS = dict.fromkeys(
    ("text_width", "text_states_width"), " --config.text_states=True"
)


def names() -> list[str]:
    """The stages there are, by file name."""
    modules = (module.name for module in pkgutil.iter_modules(__path__))
    return sorted(name for name in modules if name not in _SHARED)


def make_stage(config, data_info: Mapping[str, Any]):
    """The stage that `config.stage` names, fitted to the data.

    Raises:
      UsageError: no such stage, or a config that does not fit it or the data.
    """
    if config.stage not in names():
        raise UsageError(
            f"config.stage {config.stage!r}: expected one of {', '.join(names())}"
        )
    module = importlib.import_module(f"{__name__}.{config.stage}")
    return module.Stage.from_config(config, data_info)


def model_fields(config, data_info: Mapping[str, Any], from_data) -> dict[str, Any]:
    """config.model completed with the fields the data decides.

    Raises:
      UsageError: the config and the data disagree, or the data lacks a field.
    """
    fields = dict(config.model)
    for name in from_data:
        value = data_info.get(name)
        if value is None:
            raise UsageError(
                f"stage {config.stage!r} needs {name!r} and the data in "
                f"{config.data.get('path', config.data.source)} has none: make records "
                f"with `python -m unclip_jax.embed{_FLAGS.get(name, '')}` first"
            )
        if fields.setdefault(name, value) != value:
            raise UsageError(
                f"config.model.{name} is {fields[name]}, but the data has {value}: "
                "leave it out of the config or train on other records"
            )
    return fields


def compute_dtype(config):
    """The dtype of config.compute_dtype, "float32" or "bfloat16"."""
    table = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}
    if config.compute_dtype not in table:
        raise UsageError(
            f"config.compute_dtype {config.compute_dtype!r}: expected one of "
            f"{', '.join(table)}"
        )
    return table[config.compute_dtype]


def example_batch(batch_spec) -> dict[str, Any]:
    """Returns a batch of one example, all zeros, to initialize a model with."""
    return {name: jnp.zeros((1, *s), dtype) for name, (s, dtype) in batch_spec.items()}


def with_constants(params, convention: str, data_info: Mapping[str, Any]):
    """Writes what the data decides into fresh parameters: the CONSTANTS they have.

    The embedding convention (see `with_embedding_space`) and, for a model on CLIP's
    text states, what the frozen CLIP makes of the empty caption.
    """
    if set(EMPTY_CAPTION) <= params.keys():
        empty = (jnp.asarray(data_info[name]) for name in EMPTY_CAPTION)
        params = with_empty_caption(params, *empty)
    return with_embedding_space(params, convention, data_info)


def with_embedding_space(params, convention: str, data_info: Mapping[str, Any]):
    """Writes the embedding convention into params["space"] (see EmbeddingSpace).

    "standardize" takes the records' per-dimension mean and std (the priors of Karlo and
    Kandinsky); "raw" leaves embeddings as CLIP makes them (their decoders);
    "unit_scaled" is the paper's, for which the module is built with unit_norm: norm 1,
    then a scale of 0.5375 sqrt(D), 17.2 in the paper; "unit_17.2" is 17.2 for any D.
    """
    space = params["space"]
    if convention == "standardize":
        if data_info.get("embedding_convention") == "unit":
            raise UsageError(
                "the records' image embeddings have norm 1 (clip-retrieval's), which "
                "CLIP's own have not: set stage_options.embedding='unit_scaled'"
            )
        mean = jnp.asarray(data_info["embedding_mean"], jnp.float32)
        std = jnp.asarray(data_info["embedding_std"], jnp.float32).clip(1e-6)
    elif convention == "raw":
        mean, std = space["mean"], space["std"]
    elif convention in UNIT_SCALES:
        scale = UNIT_SCALES[convention](space["std"].size)
        mean, std = space["mean"], jnp.full_like(space["std"], 1 / scale)
    else:
        raise UsageError(
            f"stage_options.embedding {convention!r}: expected 'standardize', "
            f"'raw', {', '.join(map(repr, UNIT_SCALES))}"
        )
    return {**params, "space": {"mean": mean, "std": std}}


def cosine(a, b):
    """(B,) cosines of the rows of a and b (B, D)."""
    norms = jnp.linalg.norm(a, axis=-1) * jnp.linalg.norm(b, axis=-1)
    return (a * b).sum(-1) / norms.clip(1e-12)


def bernoulli(rng, probability: float, n: int):
    """(n,) bool, True with the given probability."""
    return jax.random.bernoulli(rng, probability, (n,))
