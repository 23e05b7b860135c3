"""Training stages: one file each, joining a model with its loss.

A stage is a frozen dataclass made from (StageConfig, DataSpec) with

    batch_spec                              {name: (shape, dtype)} of one example
    init(rng) -> params
    loss(params, rng, batch) -> (scalar float32, {name: scalar})
    export() -> {"part", "config"}          what rebuilds the model for sampling

and, where it can,

    preview(params, rng, batch) -> uint8 (N, H, W, 3)       for config.preview;
                                or latents, float (N, h, w, C)
    embed(params, rng, batch) -> {name: (B, D)}             for config.evaluators

The training loop knows nothing else about it. To add one, write
stages/<name>.py with a `Stage` class and name it in a config; one that denoises is a
`DiffusionStage` (see diffusion.py).
"""

import dataclasses
import importlib
import pkgutil
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp

from unclip_jax import config as config_lib
from unclip_jax import models
from unclip_jax.data_spec import DataSpec
from unclip_jax.errors import UsageError
from unclip_jax.models.clip_caption import EMPTY_CAPTION
from unclip_jax.models.layers import UNIT_SCALES

# Parameters that describe the data: no gradient reaches them, no decay may either.
CONSTANTS = ("space", "codebook", *EMPTY_CAPTION)
_SHARED = (
    "diffusion",
    "embedding",
    "lora",
)  # modules of this package that are no stage


@dataclasses.dataclass(frozen=True, kw_only=True)
class StageConfig:
    """The keys of a training config that say what is trained."""

    stage: str  # one of `names`
    data: dict[str, Any]  # the source and its options, see data.loader.open_data
    model: dict[str, Any]  # fields of the stage's module, see models/
    diffusion: dict[str, Any] = dataclasses.field(default_factory=dict)
    stage_options: dict[str, Any] = dataclasses.field(default_factory=dict)
    compute_dtype: str = "float32"  # or "bfloat16"; parameters are float32


def names() -> list[str]:
    """The stages there are, by file name."""
    modules = (module.name for module in pkgutil.iter_modules(__path__))
    return sorted(name for name in modules if name not in _SHARED)


def stage_defaults(config) -> dict[str, Any]:
    """{"model", "diffusion", "stage_options"} of the stage that `config` names.

    Their defaults, in the form of config.defaults; {} where there is no such stage.
    """
    name, model = config.get("stage"), config_lib.section(config, "model")
    if name not in names():
        return {}
    module = importlib.import_module(f"{__name__}.{name}")
    fields = config_lib.defaults(models.module_of(name, model.get("backbone")))
    del fields["dtype"]
    if name in models.DEFAULT_BACKBONES:
        fields["backbone"] = models.DEFAULT_BACKBONES[name]
    diffusion = getattr(module, "Diffusion", None)
    return {
        "model": fields,
        "diffusion": config_lib.defaults(diffusion) if diffusion else {},
        "stage_options": config_lib.defaults(module.Options),
    }


def make_stage(config: StageConfig, spec: DataSpec):
    """The stage that `config.stage` names, fitted to the data.

    Raises:
      UsageError: no such stage, or a config that does not fit it or the data.
    """
    if config.stage not in names():
        raise UsageError(
            f"config.stage {config.stage!r}: expected one of {', '.join(names())}"
        )
    module = importlib.import_module(f"{__name__}.{config.stage}")
    return module.Stage.from_config(config, spec)


def model_fields(
    config: StageConfig, spec: DataSpec, from_data: Iterable[str], text_width: str = ""
) -> dict[str, Any]:
    """config.model completed with the fields the data decides.

    Args:
      config: of the training.
      spec: of the data.
      from_data: names that fields and `spec` have in common.
      text_width: the field that takes the width of CLIP's text states, if one does.

    Raises:
      UsageError: the config and the data disagree, or the data lacks a field.
    """
    fields = dict(config.model)
    sizes = {name: getattr(spec, name) for name in from_data}
    if text_width:
        sizes[text_width] = spec.text_width
    for name, value in sizes.items():
        if value is None:
            flag = " --config.text_states=True" if name == text_width else ""
            where = config.data.get("path", config.data.get("source"))
            raise UsageError(
                f"stage {config.stage!r} needs {name!r} and the data in {where} has "
                "none: make records "
                f"with `python -m unclip_jax.embed{flag}` first"
            )
        if fields.setdefault(name, value) != value:
            raise UsageError(
                f"config.model.{name} is {fields[name]}, but the data has {value}: "
                "leave it out of the config or train on other records"
            )
    return fields


def compute_dtype(config: StageConfig):
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


def with_constants(params, convention: str, spec: DataSpec):
    """Writes what the data decides into fresh parameters: the CONSTANTS they have.

    The embedding convention (see `with_embedding_space`) and, for a model on CLIP's
    text states, what the frozen CLIP makes of the empty caption.
    """
    empty = [name for name in EMPTY_CAPTION if name in params]
    params = {**params, **{name: jnp.asarray(getattr(spec, name)) for name in empty}}
    return with_embedding_space(params, convention, spec)


def with_embedding_space(params, convention: str, spec: DataSpec):
    """Writes the embedding convention into params["space"] (see EmbeddingSpace).

    "standardize" takes the records' per-dimension mean and std (the priors of Karlo and
    Kandinsky); "raw" leaves embeddings as CLIP makes them (their decoders);
    "unit_scaled" is the paper's, for which the module is built with unit_norm: norm 1,
    then a scale of 0.5375 sqrt(D), 17.2 in the paper; "unit_17.2" is 17.2 for any D.
    """
    space = params["space"]
    if convention == "standardize":
        if spec.embedding_convention == "unit":
            raise UsageError(
                "the records' image embeddings have norm 1 (clip-retrieval's), which "
                "CLIP's own have not: set stage_options.embedding='unit_scaled'"
            )
        mean = jnp.asarray(spec.embedding_mean, jnp.float32)
        std = jnp.asarray(spec.embedding_std, jnp.float32).clip(1e-6)
    elif convention == "raw":
        mean, std = space["mean"], space["std"]
    elif convention in UNIT_SCALES:
        scale = UNIT_SCALES[convention](space["std"].shape[-1])
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
