"""The modes of `python -m unclip_jax.sample`: which options each takes, and its row.

A mode either draws a list of independent pictures, in chunks and resumable, or one
figure. `options` maps the flags it takes to their defaults; NEEDED must be given, and
None leaves the choice to the model.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from unclip_jax.errors import UsageError
from unclip_jax.generation.cli import figures, listings
from unclip_jax.generation.manipulations import INVERTED as EXACT
from unclip_jax.generation.options import (
    DecoderOptions,
    PriorOptions,
    UpsamplerOptions,
    defaults,
)

NEEDED = object()

TEXTS = {"prompt": (), "prompts_file": ""}
IMAGES = {"image": NEEDED}
HINT = {"hint": ()}  # of decoders that see one
PRIOR = defaults(PriorOptions)
DECODER = defaults(DecoderOptions)
STEPPED = {k: v for k, v in DECODER.items() if k != "decoder_guidance"}
LATENTS = {  # drawn by ddim
    k: v
    for k, v in DECODER.items()
    if k not in ("decoder_sampler", "decoder_variance", "eta")
}
CORRECTED = {**LATENTS, "corrections": 0}
INVERTED = {**CORRECTED, **{f"decoder_{key}": value for key, value in EXACT.items()}}


@dataclasses.dataclass(frozen=True)
class Mode:
    """One mode.

    Attributes:
      says: what it draws, in a few words.
      options: flag -> default.
      draw: of a list, (model, options, captions, slice, progress) -> uint8
        (n, H, W, 3); of a figure, (model, options, progress) -> figures.Figure.
      captions: of a list, options -> a caption per picture; None for a figure.
    """

    says: str
    options: Mapping[str, Any]
    draw: Callable
    captions: Callable[[Mapping[str, Any]], Sequence[str]] | None = None


MODES = {
    "text2image": Mode(
        "pictures of prompts",
        {**TEXTS, **HINT, "samples": 1, **PRIOR, **DECODER}
        | defaults(UpsamplerOptions),
        listings.text2image,
        listings.prompts,
    ),
    "variations": Mode(
        "pictures with the content of others",
        {**IMAGES, **HINT, "prompt": (), "samples": 1, **CORRECTED, "eta": 1.0}
        | {"inverted": False},
        listings.variations,
        listings.names,
    ),
    "reconstruct": Mode(
        "pictures through their latents and back",
        {**IMAGES, **HINT, **INVERTED},
        listings.reconstruct,
        listings.names,
    ),
    "inpaint": Mode(
        "pictures painted anew where the mask is white",
        {**IMAGES, **HINT, "mask": NEEDED, "prompt": (), "samples": 1}
        | {**PRIOR, **DECODER},
        listings.inpaint,
        listings.names,
    ),
    "img2img": Mode(
        "pictures drawn over, as a prompt or their own embedding says",
        {**IMAGES, **HINT, "prompt": (), "strength": 0.3, "samples": 1}
        | {**PRIOR, **DECODER},
        listings.img2img,
        listings.names,
    ),
    "emb2emb": Mode(
        "pictures of embeddings that the prior has changed as a prompt says",
        {**IMAGES, **HINT, "prompt": (), "strength": 0.3, "samples": 1}
        | {**PRIOR, **DECODER},
        listings.emb2emb,
        listings.names,
    ),
    "interpolate": Mode(
        "the way from one picture to another",
        {
            **IMAGES,
            **HINT,
            "frames": 8,
            "noise": "inverted",
            **CORRECTED,
        },
        figures.interpolate,
    ),
    "text_diff": Mode(
        "pictures changed as a caption changes",
        {
            **IMAGES,
            **HINT,
            "source": "a photo",
            "target": NEEDED,
            "thetas": "0,0.1,0.2,0.3,0.4",
            **INVERTED,
        },
        figures.text_diff,
    ),
    "pca": Mode(
        "pictures from few principal components of their embeddings",
        {**IMAGES, "dims": "20,30,40,80,120,160,200,320", **LATENTS},
        figures.pca,
    ),
    "zero_shot": Mode(
        "which label CLIP finds likeliest",
        {**IMAGES, "label": NEEDED, "template": ("{}",)},
        figures.zero_shot,
    ),
    "typographic": Mode(
        "CLIP's labels of attacked pictures, beside variations of them",
        {**IMAGES, "label": NEEDED, "template": ("{}",), "samples": 3}
        | {**LATENTS, "eta": 1.0},
        figures.typographic,
    ),
    "conditioning": Mode(
        "a prompt by caption, by text embedding and by the prior's embedding",
        {**TEXTS, **PRIOR, **DECODER},
        figures.conditioning,
    ),
    "guidance": Mode(
        "a prompt at rising guidance of the decoder",
        {**TEXTS, "scales": "1,2,3,4,6,8", **PRIOR, **STEPPED},
        figures.guidance,
    ),
}


def find_mode(name: str) -> Mode:
    """Raises UsageError listing the modes."""
    if name not in MODES:
        raise UsageError(f"--mode {name!r}: expected one of {', '.join(MODES)}")
    return MODES[name]


def resolve_flags(name: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the options of a mode: what the user set, else its defaults.

    Args:
      name: of the mode.
      values: flag -> value, of those that the user set.

    Raises:
      UsageError: a flag that the mode does not take, or lacks.
    """
    options = find_mode(name).options
    for flag in values:
        if flag not in options:
            raise UsageError(
                f"--{flag} means nothing to --mode={name}, which takes "
                + ", ".join(f"--{key}" for key in options)
            )
    for flag, default in options.items():
        if default is NEEDED and not values.get(flag):
            raise UsageError(f"--mode={name} needs --{flag}")
    complete = {flag: values.get(flag, default) for flag, default in options.items()}
    if complete.get("inverted") or complete.get("noise") == "inverted":
        for key, default in EXACT.items():
            if complete[f"decoder_{key}"] is None:
                complete[f"decoder_{key}"] = default
    return complete
