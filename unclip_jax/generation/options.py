"""How a diffusion part of a stack draws: what was asked for, checked and completed."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from unclip_jax.diffusion.samplers.ancestral import VARIANCES
from unclip_jax.generation import checks
from unclip_jax.generation.loading import Stack

USUAL_STEPS = {"prior": 64, "decoder": 50}  # 27 for upsamplers
USUAL_SAMPLER = {"prior": "ddpm"}  # "ddim" for others


@dataclasses.dataclass(frozen=True)
class Drawing:
    """What a program that draws is compiled for; equal ones share a program.

    Attributes:
      steps: sampling steps.
      sampler: a name in diffusion.samplers.SAMPLERS.
      variance: of the steps of "ddpm", see diffusion.samplers.ancestral.
      guided: whether the guidance is not 1.
      guidance_interval, guidance_rescale: see diffusion.guidance.
      dynamic_threshold: see diffusion.process; None is a fixed bound on |x0|.
    """

    steps: int
    sampler: str
    variance: str | None = None
    guided: bool = False
    guidance_interval: tuple[int, int] | None = None
    guidance_rescale: float = 0.0
    dynamic_threshold: float | None = None


def settle(
    stack: Stack,
    kind: str,
    *,
    guidance: float = 1.0,
    steps: int | None = None,
    sampler: str | None = None,
    variance: str | None = None,
    guidance_interval: Sequence[int] | None = None,
    guidance_rescale: float = 0.0,
    dynamic_threshold: float | None = None,
) -> tuple[np.float32, Drawing]:
    """The scale of guidance, and everything else, for drawing with the part `kind`.

    Steps and sampler that are None are what the part's config says is usual for it.

    Raises:
      ValueError: what is wrong with an argument, under the part's name.
      FileNotFoundError: there is no such part, or variance "analytic" without a table;
        the message names the command that adds it.
    """
    part = stack.part(kind)
    diffusion = part.config["diffusion"]
    most = diffusion["num_steps"]
    scale = checks.number(f"{kind} guidance", guidance)
    if steps is None:
        steps = diffusion.get("sampling_steps", USUAL_STEPS.get(kind, 27))
        steps = min(steps, most)
    if sampler is None:
        sampler = diffusion.get("sampler", USUAL_SAMPLER.get(kind, "ddim"))
    interval = _interval(f"{kind} guidance interval", guidance_interval, most)
    rescale = checks.number(f"{kind} guidance rescale", guidance_rescale, 0, 1)
    if dynamic_threshold is not None:
        dynamic_threshold = checks.number("dynamic threshold", dynamic_threshold, 0, 1)
        if not dynamic_threshold:
            raise ValueError("dynamic threshold must be more than 0, got 0")
    drawing = Drawing(
        steps=checks.integer(f"{kind} steps", steps, 1, most),
        sampler=checks.sampler(f"{kind} sampler", sampler),
        variance=variance,
        dynamic_threshold=dynamic_threshold,
    )
    if variance is not None:
        _check_variance(stack, part, drawing)
    if scale != 1:
        drawing = dataclasses.replace(
            drawing, guided=True, guidance_interval=interval, guidance_rescale=rescale
        )
    return np.float32(scale), drawing


def _interval(name, value, most):
    if value is None:
        return None
    if not isinstance(value, Sequence) or len(value) != 2:
        raise ValueError(f"{name} must be (first, last) timestep, got {value!r}")
    first, last = (checks.integer(name, i, 0, most - 1) for i in value)
    if first > last:
        raise ValueError(f"{name} {value!r} is reversed: it is (first, last)")
    return first, last


def _check_variance(stack, part, drawing):
    name = f"{part.kind} variance {drawing.variance!r}"
    if drawing.variance not in VARIANCES:
        raise ValueError(f"{name}: expected one of {', '.join(VARIANCES)}")
    if drawing.sampler != "ddpm":
        raise ValueError(
            f"{name} is an option of the sampler ddpm, not of {drawing.sampler}"
        )
    if drawing.variance == "learned_range" and not getattr(
        part.module, "learned_sigma", False
    ):
        raise ValueError(f"{name}: this {part.kind} does not predict its variance")
    if drawing.variance == "analytic" and part.analytic is None:
        raise FileNotFoundError(
            f"{name} needs a table that the {part.kind} of {stack.origin} lacks; add "
            f"it with `python -m unclip_jax.estimate_variance --model={stack.origin} "
            "--records=FOLDER_OF_RECORDS`"
        )
