"""The options of sampling: each one's default, type, flag and help stand here only.

The arguments of UnCLIP.text2image, the flags of unclip_jax.sample, the defaults of its
modes and the keys of an evaluation's `generation` are read off these classes. What may
be None is then as the export recommends; generation.resolve checks and completes it.
"""

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from typing import Any


def option(default: Any, flag: str, kind: type, text: str) -> Any:
    """Declares an option of a part.

    Args:
      default: None leaves the choice to the export.
      flag: its name where options of several parts stand side by side.
      kind: type of the flag; str for what is written as text and parsed.
      text: help of the flag.
    """
    return dataclasses.field(
        default=default, metadata={"flag": flag, "kind": kind, "help": text}
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class PriorOptions:
    """How image embeddings are sampled for captions, by whichever prior."""

    prior: str = option(
        "auto",
        "prior",
        str,
        "diffusion, autoregressive, or auto: whichever the export has (default auto)",
    )
    guidance: float | None = option(
        None,
        "prior_guidance",
        float,
        "guidance scale of the prior; 1 is none (default the export's, else 4)",
    )
    steps: int | str | None = option(
        None,
        "prior_steps",
        str,
        "sampling steps of the prior: a number, or a respacing such as ddim25 or "
        "10,10,3,2,2 (default the export's, else 64)",
    )
    sampler: str | None = option(
        None,
        "prior_sampler",
        str,
        "ddim, ddpm, dpmpp_2m, dpmpp_2m_sde or heun (default the export's, else ddpm)",
    )
    variance: str | None = option(
        None,
        "prior_variance",
        str,
        "variance of the prior's ddpm steps; see --decoder_variance",
    )
    num_candidates: int = option(
        2,
        "num_candidates",
        int,
        "embeddings that the prior draws per prompt; the one closest to the text "
        "embedding is decoded (default 2)",
    )
    temperature: float = option(
        1.0,
        "temperature",
        float,
        "autoregressive prior: softmax temperature; 0 takes the likeliest code "
        "(default 1)",
    )
    top_k: int = option(
        0,
        "top_k",
        int,
        "autoregressive prior: sample among the k likeliest codes; 0 is all "
        "(default 0)",
    )
    top_p: float = option(
        1.0,
        "top_p",
        float,
        "autoregressive prior: nucleus sampling with this probability (default 1)",
    )
    dot_quantile: float = option(
        0.5,
        "dot_quantile",
        float,
        "autoregressive prior: condition on dot products of image and text embedding "
        "above this quantile (default 0.5)",
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class DecoderOptions:
    """How images are sampled for embeddings."""

    guidance: float | None = option(
        None,
        "decoder_guidance",
        float,
        "guidance scale of the decoder; 1 is none (default the export's, else 8; 1 "
        "from inverted noise)",
    )
    steps: int | str | None = option(
        None,
        "decoder_steps",
        str,
        "sampling steps of the decoder, as --prior_steps (default the export's, else "
        "50; 250 from inverted noise)",
    )
    sampler: str | None = option(
        None,
        "decoder_sampler",
        str,
        "as --prior_sampler (default the export's, else ddim)",
    )
    variance: str | None = option(
        None,
        "decoder_variance",
        str,
        "variance of ddpm steps: fixed_small, fixed_large, learned_range, or analytic, "
        "which needs unclip_jax.estimate_variance first (default the export's)",
    )
    guidance_interval: tuple[int, int] | None = option(
        None,
        "decoder_guidance_interval",
        str,
        "FIRST,LAST: guide these timesteps only (default all)",
    )
    guidance_rescale: float = option(
        0.0,
        "decoder_guidance_rescale",
        float,
        "0 to 1: how much of the contrast that guidance adds is removed (default 0)",
    )
    dynamic_threshold: float | None = option(
        None,
        "dynamic_threshold",
        float,
        "quantile for dynamic thresholding of the predicted x_0, e.g. 0.995 (default "
        "off: clip to [-1, 1])",
    )
    eta: float = option(
        0.0,
        "eta",
        float,
        "eta of DDIM: 0 is deterministic (default 0; variations 1)",
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class UpsamplerOptions:
    """How images are enlarged."""

    steps: int | str | None = option(
        None,
        "upsampler_steps",
        str,
        "sampling steps of each upsampler (default the export's, else 27)",
    )


OPTIONS = (PriorOptions, DecoderOptions, UpsamplerOptions)  # of text2image


def names(cls: type) -> tuple[str, ...]:
    """The names of a class's options, without the part's."""
    return tuple(field.name for field in dataclasses.fields(cls))


def defaults(*classes: type) -> dict[str, Any]:
    """Returns {flag: default} of the options of these classes."""
    fields = [field for cls in classes for field in dataclasses.fields(cls)]
    return {field.metadata["flag"]: field.default for field in fields}


def flags(cls: type) -> dict[str, tuple[type, str]]:
    """Returns {flag: (its type, its help)}, as config.run takes them."""
    metadata = [field.metadata for field in dataclasses.fields(cls)]
    return {each["flag"]: (each["kind"], each["help"]) for each in metadata}


def select(cls: type, values: Mapping[str, Any]) -> dict[str, Any]:
    """Returns {name: value} of those `values`, named by flag, that `cls` has."""
    fields = [(f.name, f.metadata["flag"]) for f in dataclasses.fields(cls)]
    return {name: values[flag] for name, flag in fields if flag in values}


def build(values: Mapping[str, Any], *classes: type) -> tuple[Any, ...]:
    """Returns an instance of each class, from `values` named by flag.

    Raises TypeError for a name that is no option of any.
    """
    if unknown := [*{*values} - {*defaults(*classes)}]:
        raise TypeError(f"unexpected keyword argument {unknown[0]!r}")
    return tuple(cls(**select(cls, values)) for cls in classes)


def takes(*classes: type, by_flag: bool = False) -> Callable:
    """Decorates a method with `**options`: its signature then lists their options.

    Args:
      classes: whose options.
      by_flag: whether the options have the names of their flags.
    """

    def decorate(method):
        signature = inspect.signature(method)
        own = [p for p in signature.parameters.values() if p.kind != p.VAR_KEYWORD]
        fields = [field for cls in classes for field in dataclasses.fields(cls)]
        options = [
            inspect.Parameter(
                field.metadata["flag"] if by_flag else field.name,
                inspect.Parameter.KEYWORD_ONLY,
                default=field.default,
                annotation=field.type,
            )
            for field in fields
        ]
        method.__signature__ = signature.replace(parameters=[*own, *options])
        return method

    return decorate
