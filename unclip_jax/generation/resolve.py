"""Checks the options of sampling, and completes them for a part of a stack.

What is not asked for is as the part's export recommends (its config's "diffusion", from
the training config), else as these tables say.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from unclip_jax.diffusion.samplers.ancestral import VARIANCES
from unclip_jax.errors import UsageError
from unclip_jax.generation import checks
from unclip_jax.generation import options as options_lib
from unclip_jax.generation.loading import Stack
from unclip_jax.generation.options import (
    DecoderOptions,
    PriorOptions,
    UpsamplerOptions,
)

USUAL_STEPS = {"prior": 64, "decoder": 50}  # 27 for upsamplers
USUAL_SAMPLER = {"prior": "ddpm"}  # "ddim" for others
USUAL_GUIDANCE = {"prior": 4.0, "ar_prior": 4.0, "decoder": 8.0}  # 1 for upsamplers


@dataclasses.dataclass(frozen=True)
class SamplerOptions:
    """What a program that draws is compiled for; equal ones share a program.

    Attributes:
      steps: sampling steps, or a respacing of diffusion.schedule.respace.
      sampler: a name in diffusion.samplers.SAMPLERS.
      variance: of the steps of "ddpm", see diffusion.samplers.ancestral; None for
        other samplers.
      guided: whether the guidance is not 1.
      guidance_interval, guidance_rescale: see diffusion.guidance.
      dynamic_threshold: see diffusion.process; None is a fixed bound on |x0|.
      inverted: whether the noise to start from is what DDIM inversion found, see
        sampling.invert_images.
      size: (rows, columns) of what the decoder denoises; None: as it was trained.
      strength: the share of the timesteps that is visited, the last ones, by what
        starts from a picture or an embedding rather than from noise.
    """

    steps: int | str
    sampler: str
    variance: str | None = None
    guided: bool = False
    guidance_interval: tuple[int, int] | None = None
    guidance_rescale: float = 0.0
    dynamic_threshold: float | None = None
    inverted: bool = False
    size: tuple[int, int] | None = None
    strength: float = 1.0


def resolve_options(
    stack: Stack,
    kind: str,
    options: PriorOptions | DecoderOptions | UpsamplerOptions,
    inverted: bool = False,
) -> tuple[np.float32, SamplerOptions]:
    """The scale of guidance, and everything else, for sampling with the part `kind`.

    Raises:
      UsageError: what is wrong with an argument, under the part's name.
      FileNotFoundError: there is no such part, or variance "analytic" without a table;
        the message names the command that adds it.
    """
    part = stack.part(kind)
    diffusion = part.config["diffusion"]
    most = diffusion["num_steps"]
    values = dataclasses.asdict(options)
    scale = resolve_guidance(stack, kind, values.get("guidance"))
    steps, sampler = values["steps"], values.get("sampler")
    if steps is None:
        steps = diffusion.get("sampling_steps")
    if steps is None:
        steps = min(USUAL_STEPS.get(kind, 27), most)
    if sampler is None:
        sampler = diffusion.get("sampler") or USUAL_SAMPLER.get(kind, "ddim")
    sampler = checks.sampler(f"{kind} sampler", sampler)
    if sampler == "consistency" and not diffusion.get("consistency"):
        raise UsageError(
            f"{kind} sampler 'consistency': the {kind} of {stack.origin} was not "
            "trained with config.diffusion.consistency"
        )
    if inverted and sampler != "ddim":
        raise UsageError(f"inverted noise is undone by ddim only, not by {sampler}")
    interval = values.get("guidance_interval")
    if interval is None and kind == "decoder":
        interval = diffusion.get("guidance_interval")
    interval = _interval(f"{kind} guidance interval", interval, most)
    rescale = values.get("guidance_rescale", 0.0)
    rescale = checks.number(f"{kind} guidance rescale", rescale, 0, 1)
    checks.number("eta", values.get("eta", 0.0), 0)
    _check_noise_level(stack, part, values.get("noise_level", 0))
    _check_tile(stack, part, values.get("tile"))
    dynamic_threshold = values.get("dynamic_threshold")
    if dynamic_threshold is not None:
        dynamic_threshold = checks.number("dynamic threshold", dynamic_threshold, 0, 1)
        if not dynamic_threshold:
            raise UsageError("dynamic threshold must be more than 0, got 0")
    resolved = SamplerOptions(
        steps=checks.steps(f"{kind} steps", steps, most),
        sampler=sampler,
        variance=_variance(stack, part, sampler, values.get("variance")),
        dynamic_threshold=dynamic_threshold,
        inverted=inverted,
        size=_size(stack, part, values.get("height"), values.get("width")),
    )
    if scale != 1:
        resolved = dataclasses.replace(
            resolved, guided=True, guidance_interval=interval, guidance_rescale=rescale
        )
    return scale, resolved


def resolve_guidance(stack: Stack, kind: str, guidance: float | None) -> np.float32:
    """The scale of guidance for sampling with the part `kind`."""
    if guidance is None:
        guidance = stack.part(kind).config.get("diffusion", {}).get("guidance")
    if guidance is None:
        guidance = USUAL_GUIDANCE.get(kind, 1.0)
    return np.float32(checks.number(f"{kind} guidance", guidance))


def resolve_all(
    stack: Stack, kinds: Sequence[str], options: Mapping[str, Any]
) -> dict[str, dict[str, Any]]:
    """How parts of a stack draw with the given options of UnCLIP.text2image.

    Args:
      stack: the parts.
      kinds: of the parts, in native.KINDS; those that the stack lacks are left out.
      options: arguments of text2image, of any part or of none.

    Returns:
      part -> {"sampler", "steps", "variance", "guidance", ...}, JSON-able, without what
      does not apply; of an autoregressive prior, its guidance alone.

    Raises what `resolve_options` does.
    """
    resolved = {}
    if "prior" in kinds and not {"prior", "ar_prior"}.isdisjoint(stack.parts):
        prior = PriorOptions(**options_lib.select(PriorOptions, options))
        kind = checks.prior(prior.prior, stack.parts)
        if kind == "prior":
            resolved[kind] = _plain(*resolve_options(stack, kind, prior))
        else:
            scale = resolve_guidance(stack, kind, prior.guidance)
            resolved[kind] = {"guidance": float(scale)}
    if "decoder" in kinds and "decoder" in stack.parts:
        decoder = DecoderOptions(**options_lib.select(DecoderOptions, options))
        resolved["decoder"] = _plain(*resolve_options(stack, "decoder", decoder))
    if "upsampler" in kinds:
        upsampler = UpsamplerOptions(**options_lib.select(UpsamplerOptions, options))
        for name in stack.upsamplers:
            resolved[name] = _plain(*resolve_options(stack, name, upsampler))
    return resolved


def _plain(scale: np.float32, resolved: SamplerOptions) -> dict[str, Any]:
    values = dataclasses.asdict(resolved).items()
    hidden = ("guided", "strength")  # strength is of a call, not of a part
    values = {k: v for k, v in values if v not in (None, False) and k not in hidden}
    return {**values, "guidance": float(scale)}


def _variance(stack, part, sampler, variance):
    """The variance of the steps, checked; None for samplers that have no choice."""
    name = f"{part.kind} variance {variance!r}"
    learned = getattr(part.module, "learned_sigma", False)
    if variance is None:
        if sampler != "ddpm":
            return None
        variance = part.config["diffusion"].get("variance")
        name = (
            f"{part.kind} variance {variance!r}, which its training config recommends,"
        )
    if variance is None:
        return "learned_range" if learned else "fixed_small"
    if variance not in VARIANCES:
        raise UsageError(f"{name}: expected one of {', '.join(VARIANCES)}")
    if sampler != "ddpm":
        raise UsageError(f"{name} is an option of the sampler ddpm, not of {sampler}")
    if variance == "learned_range" and not learned:
        raise UsageError(f"{name}: this {part.kind} does not predict its variance")
    if variance == "analytic" and part.analytic is None:
        raise FileNotFoundError(
            f"{name} needs a table that the {part.kind} of {stack.origin} lacks; add "
            f"it with `python -m unclip_jax.estimate_variance --model={stack.origin} "
            f"--records=FOLDER_OF_RECORDS`, or ask for another variance, one of "
            f"{', '.join(VARIANCES)}"
        )
    return variance


def _check_noise_level(stack, part, level):
    augmentation = part.config["diffusion"].get("augmentation")
    if augmentation:
        checks.integer("noise_level", level, 0, augmentation["num_steps"] - 1)
    elif level:
        raise UsageError(
            f"noise_level {level}: the decoder of {stack.origin} takes embeddings "
            "without noise; leave it out"
        )


def _check_tile(stack, part, tile):
    if tile is None:
        return
    if not part.module.is_latent:
        raise UsageError(
            f"tile {tile}: the decoder of {stack.origin} draws pixels, and no latents"
        )
    least = 4 * stack.part("autoencoder").module.factor
    checks.integer("tile", tile, least, 2**15)
    if tile % least:
        raise UsageError(f"tile must be a multiple of {least}, got {tile}")


def with_strength(kind: str, resolved: SamplerOptions, strength: float):
    """The options of what starts from a picture or an embedding.

    Raises UsageError for a strength that is not in (0, 1].
    """
    strength = checks.fraction(f"{kind} strength", strength)
    if not strength:
        raise UsageError(f"{kind} strength must be more than 0: nothing would change")
    return dataclasses.replace(resolved, strength=strength)


def _size(stack, part, height, width):
    """(rows, columns) of what the decoder denoises, None for the trained size."""
    if height is None and width is None:
        return None
    if stack.upsamplers:
        raise UsageError(
            "height and width are of the images of a decoder without upsamplers, which "
            f"take images of one size; {stack.origin} has {', '.join(stack.upsamplers)}"
        )
    module = part.module
    factor = stack.part("autoencoder").module.factor if module.is_latent else 1
    if module.size_multiple is None:
        raise UsageError(
            f"the decoder of {stack.origin} draws images of {module.image_size} pixels "
            "and no others: leave out height and width"
        )
    multiple = factor * module.size_multiple
    sides = {"height": height, "width": width}
    for name, value in sides.items():
        side = module.image_size * factor if value is None else value
        sides[name] = checks.integer(name, side, multiple, 2**15)
        if side % multiple:
            raise UsageError(f"{name} must be a multiple of {multiple}, got {side}")
    return sides["height"] // factor, sides["width"] // factor


def _interval(name, value, most):
    if value is None:
        return None
    if not isinstance(value, Sequence) or len(value) != 2:
        raise UsageError(f"{name} must be (first, last) timestep, got {value!r}")
    first, last = (checks.integer(name, i, 0, most - 1) for i in value)
    if first > last:
        raise UsageError(f"{name} {value!r} is reversed: it is (first, last)")
    return first, last
