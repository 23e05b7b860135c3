"""The options of sampling: each one's default, type, flag and help stand here only.

The arguments of UnCLIP.text2image, the flags of unclip_jax.sample, the defaults of its
modes and the keys of an evaluation's `generation` are read off these classes. What may
be None is then as the export recommends; generation.resolve checks and completes it.
"""

import dataclasses
import difflib
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar, get_args

# Options whose flags begin with the component's name.
SHARED = ("guidance", "steps", "sampler", "variance")
SHARED += ("guidance_interval", "guidance_rescale")
# What these are called elsewhere.
SYNONYMS = {"num_inference_steps": "steps", "num_steps": "steps"}
SYNONYMS |= {"guidance_scale": "guidance", "scheduler": "sampler"}


def option(default: Any, text: str) -> Any:
    """Declares an option: its default, where None is the export's, and its help.

    `flags` adds a default that is not None to the help.
    """
    return dataclasses.field(default=default, metadata={"help": text})


@dataclasses.dataclass(frozen=True, kw_only=True)
class PriorOptions:
    """How image embeddings are sampled for captions, by whichever prior."""

    COMPONENT: ClassVar = "prior"

    prior: str = option(
        "auto",
        "diffusion, autoregressive, or auto: whichever the export has",
    )
    guidance: float | None = option(
        None, "guidance scale of the prior; 1 is none (default the export's, else 4)"
    )
    steps: int | str | None = option(
        None,
        "sampling steps of the prior: a number, or a respacing such as ddim25 or "
        "10,10,3,2,2 (default the export's, else 64)",
    )
    sampler: str | None = option(
        None,
        "ddim, ddpm, dpmpp_2m, dpmpp_2m_sde, heun, or consistency for a model trained "
        "for it (default the export's, else ddpm)",
    )
    variance: str | None = option(
        None, "variance of the prior's ddpm steps; see --decoder_variance"
    )
    num_candidates: int = option(
        2,
        "embeddings that the prior draws per prompt; the one closest to the text "
        "embedding is decoded",
    )
    negative_prompt: str | None = option(
        None,
        "what guidance leads away from, instead of the empty caption; that of a "
        "decoder too which sees no caption",
    )
    temperature: float = option(
        1.0,
        "autoregressive prior: softmax temperature; 0 takes the likeliest code",
    )
    top_k: int = option(
        0,
        "autoregressive prior: sample among the k likeliest codes; 0 is all",
    )
    top_p: float = option(
        1.0, "autoregressive prior: nucleus sampling with this probability"
    )
    dot_quantile: float = option(
        0.5,
        "autoregressive prior: condition on dot products of image and text embedding "
        "above this quantile",
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class DecoderOptions:
    """How images are sampled for embeddings."""

    COMPONENT: ClassVar = "decoder"

    guidance: float | None = option(
        None,
        "guidance scale of the decoder; 1 is none (default the export's, else 8; 1 "
        "from inverted noise)",
    )
    steps: int | str | None = option(
        None,
        "sampling steps of the decoder, as --prior_steps (default the export's, else "
        "50; 250 from inverted noise)",
    )
    sampler: str | None = option(
        None, "as --prior_sampler (default the export's, else ddim)"
    )
    variance: str | None = option(
        None,
        "variance of ddpm steps: fixed_small, fixed_large, learned_range, or analytic, "
        "which needs unclip_jax.estimate_variance first (default the export's)",
    )
    guidance_interval: tuple[int, int] | None = option(
        None, "FIRST,LAST: guide these timesteps only (default the export's, else all)"
    )
    guidance_rescale: float = option(
        0.0,
        "0 to 1: how much of the contrast that guidance adds is removed",
    )
    dynamic_threshold: float | None = option(
        None,
        "quantile for dynamic thresholding of the predicted x_0, e.g. 0.995 (default "
        "off: clip to [-1, 1])",
    )
    eta: float = option(0.0, "eta of DDIM: 0 is deterministic; variations take 1")
    height: int | None = option(
        None, "rows of the images, if not as many as the decoder was trained on"
    )
    width: int | None = option(None, "columns of the images, as --height")
    tile: int | None = option(
        None,
        "pixels a side of the overlapping tiles that latents are decoded by, one at a "
        "time, for images larger than memory (default the image as a whole)",
    )
    noise_level: int = option(
        0,
        "noise added to the CLIP embedding, up to 999, for a decoder that was trained "
        "with it (Stable unCLIP): the more, the less of the image is kept",
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class UpsamplerOptions:
    """How images are enlarged."""

    COMPONENT: ClassVar = "upsampler"

    steps: int | str | None = option(
        None, "sampling steps of each upsampler (default the export's, else 27)"
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class EmbeddingOptions:
    """How an embedding prior is sampled, see generation.Prior."""

    COMPONENT: ClassVar = ""  # there is no other

    guidance: float | None = option(
        None, "guidance scale; 1 is none (default the export's, else 1)"
    )
    steps: int | str | None = option(
        None,
        "sampling steps: a number, or a respacing such as ddim25 (default the "
        "export's, else 32)",
    )
    sampler: str | None = option(
        None,
        "ddim, ddpm, dpmpp_2m, dpmpp_2m_sde, heun, or consistency for a model trained "
        "for it (default the export's, else ddpm)",
    )
    strength: float = option(
        1.0,
        "the share of the steps that is taken, in (0, 1], where embeddings to start "
        "from are given",
    )


OPTIONS = (PriorOptions, DecoderOptions, UpsamplerOptions)  # of text2image


def names(cls: type) -> tuple[str, ...]:
    """The names of a class's options, without the part's."""
    return tuple(field.name for field in dataclasses.fields(cls))


def flag(cls: type, name: str) -> str:
    """Returns what an option is called beside those of other components."""
    return f"{cls.COMPONENT}_{name}" if name in SHARED and cls.COMPONENT else name


def defaults(*classes: type) -> dict[str, Any]:
    """Returns {flag: default} of the options of these classes."""
    fields = [(cls, field) for cls in classes for field in dataclasses.fields(cls)]
    return {flag(cls, field.name): field.default for cls, field in fields}


def flags(cls: type) -> dict[str, tuple[type, str]]:
    """Returns {flag: (its type, its help)}, as command_line.run takes them.

    What is not plainly a number is written as text.
    """

    def flag_type(annotation):
        types = {*get_args(annotation), annotation}
        return next((t for t in (int, float) if t in types and str not in types), str)

    def help_text(field):
        text, default = field.metadata["help"], field.default
        if default is None:
            return text
        shown = f"{default:g}" if isinstance(default, int | float) else default
        return f"{text} (default {shown})"

    return {
        flag(cls, field.name): (flag_type(field.type), help_text(field))
        for field in dataclasses.fields(cls)
    }


def select(cls: type, values: Mapping[str, Any]) -> dict[str, Any]:
    """Returns {name: value} of those `values`, named by flag, that `cls` has."""
    pairs = [(name, flag(cls, name)) for name in names(cls)]
    return {name: values[key] for name, key in pairs if key in values}


def build(values: Mapping[str, Any], *classes: type) -> tuple[Any, ...]:
    """Returns an instance of each class, from `values` named by flag.

    Raises TypeError for a name that is no option of any.
    """
    check_names(values, defaults(*classes))
    return tuple(cls(**select(cls, values)) for cls in classes)


def make(cls: type, values: Mapping[str, Any]) -> Any:
    """Returns an instance of the class; TypeError for a name that it does not have."""
    check_names(values, names(cls))
    return cls(**values)


def check_names(given: Iterable[str], valid: Iterable[str]) -> None:
    """Raises TypeError for a name that is not valid, with those that may be meant."""
    valid = [*valid]
    for name in given:
        if name in valid:
            continue
        word = SYNONYMS.get(name, name)
        near = [
            v
            for v in valid
            if word == v or v.endswith(f"_{word}") or word.endswith(f"_{v}")
        ]
        near = near or difflib.get_close_matches(word, valid, n=2)
        hint = f"did you mean {' or '.join(map(repr, near))}?" if near else ""
        hint = hint or f"the options are {', '.join(valid)}"
        raise TypeError(f"unexpected keyword argument {name!r}: {hint}")


def takes(*classes: type, by_flag: bool = False) -> Callable:
    """Decorates a method with `**options`: its signature then lists their options.

    Args:
      classes: whose options.
      by_flag: whether the options have the names of their flags.
    """

    def decorate(method):
        signature = inspect.signature(method)
        own = [p for p in signature.parameters.values() if p.kind != p.VAR_KEYWORD]
        options = [
            inspect.Parameter(
                flag(cls, field.name) if by_flag else field.name,
                inspect.Parameter.KEYWORD_ONLY,
                default=field.default,
                annotation=field.type,
            )
            for cls in classes
            for field in dataclasses.fields(cls)
        ]
        method.__signature__ = signature.replace(parameters=[*own, *options])
        return method

    return decorate
