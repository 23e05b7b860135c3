"""Parameters to start a training run from: an export's, or a folder of diffusers."""

import os
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

from unclip_jax import models
from unclip_jax.errors import UsageError
from unclip_jax.files import read_json
from unclip_jax.interop import (
    components,
    dalle2_pytorch,
    diffusers_kandinsky,
    diffusers_stable,
    mapping,
    native,
)
from unclip_jax.interop.diffusers_decoder import load_decoder
from unclip_jax.interop.diffusers_prior import load_prior
from unclip_jax.interop.diffusers_upsampler import load_upsampler
from unclip_jax.interop.tensor_checks import check_tensors
from unclip_jax.models.clip_caption import EMPTY_CAPTION
from unclip_jax.models.dalle2_prior import Dalle2Prior
from unclip_jax.models.layers import UNIT_SCALES

# Kinds of parts that can be read from diffusers: folders in a pipeline, and the reader.
DIFFUSERS: dict[str, tuple[tuple[str, ...], Callable]] = {
    "prior": (("prior",), load_prior),
    "decoder": (("text_proj", "decoder"), load_decoder),
    "upsampler": (("super_res_first",), load_upsampler),
}


# Fingerprints that a part and the data may have, and whose they are.
FROZEN = {
    "clip_fingerprint": "embeddings of the CLIP",
    "autoencoder_fingerprint": "latents of the autoencoder",
}
# Fields of a Dalle2Prior that its tensors' shapes do not tell.
MEANING = ("causal", "queries", "rotary")
# Parameters that CLIP makes, and diffusers' folders may have no place for.
OF_CLIP = (*EMPTY_CAPTION, "null_clip_image")


def load_initial(folder: str | os.PathLike, run: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters for a new run of the same model, from the part of its kind.

    Args:
      folder: a native export; or a folder of diffusers, a pipeline's or the module's
        (but for a decoder, whose pipeline it must be); for an embedding_prior also a
        file of DALLE2-pytorch.
      run: what the run says of itself: "export" (what its stage's export() returned)
        and "data_info".

    Returns:
      Nested dict of arrays, blocks stacked if the run's model stacks them. What CLIP
      makes of the empty caption or image is left out where the folder has no place for
      it.

    Raises:
      FileNotFoundError: no such part there.
      UsageError: a part of another CLIP or autoencoder, another process, or with
        tensors that do not fit; each is named.
    """
    part, config = run["export"]["part"], run["export"]["config"]
    where = f"config.init_from {str(folder)!r}"
    theirs, params, made = _read(pathlib.Path(folder), part, where)
    for name, what in FROZEN.items():
        found, ours = made.get(name), run["data_info"].get(name)
        if found and ours and found != ours:
            raise UsageError(
                f"{where} learnt from the {what} {found[:12]}..., the data are of "
                f"{ours[:12]}...: embed them with that of the export"
            )
    options = run.get("config", {}).get("stage_options", {})
    learns_null = options.get("null_embedding", "learned") == "learned"
    if learns_null and diffusers_kandinsky.needs_null(params):
        raise UsageError(
            f"{where} has no learned embedding for what is dropped: set "
            "config.stage_options.null_embedding='zero_image'"
        )
    process = _process(theirs)
    for name, ours in _process(config).items():
        found = process.get(name)
        if found != ours:
            raise UsageError(f"{where} has {name} {found!r}, the config {ours!r}")
    params = mapping.unstack_blocks(params)
    if config["model"].get("scan_layers"):
        params = mapping.stack_blocks(params)
    kind = native.kind_of(part)
    shapes = components.param_shapes(kind, models.build(kind, config["model"]))
    left_out = {name for name in OF_CLIP if name not in params}
    shapes = {name: s for name, s in shapes.items() if name not in left_out}
    check_tensors(params, shapes, where)
    return params


def _read(folder, part, where):
    """(part config, parameters, its fingerprints by name: see FROZEN)."""
    if native.is_export(folder):
        config, params, meta = native.read_part(folder, part)
        return config, params, meta
    if part == "embedding_prior" and dalle2_pytorch.is_dalle2_pytorch(folder):
        return *dalle2_pytorch.load_prior(folder), {}
    if part == "decoder":
        for root in (folder, folder / "decoder"):
            if (root / "unet" / "config.json").is_file():
                return *_read_latent_decoder(root), {}
    if reader := DIFFUSERS.get(native.kind_of(part)):
        names, load = reader
        alternatives = [[folder / name for name in names]]
        if len(names) == 1:
            alternatives.append([folder])
        for places in alternatives:
            if all((place / "config.json").is_file() for place in places):
                return *load(*places), {}
    raise FileNotFoundError(
        f"{where} holds no {part}: expected a native export (see `python -m "
        f"unclip_jax.export`) or, for {', '.join(DIFFUSERS)}, a folder of diffusers"
    )


def _read_latent_decoder(root):
    """The decoder of a pipeline of Kandinsky 2.2 or of Stable unCLIP."""
    unet, scheduler = root / "unet", root / "scheduler"
    if diffusers_kandinsky.is_kandinsky(read_json(unet / "config.json", "")):
        return diffusers_kandinsky.load_decoder(unet, scheduler)
    normalizer = root / "image_normalizer"
    return diffusers_stable.load_decoder(unet, scheduler, normalizer, pad_id=0)


def _process(config):
    """What parameters mean beyond their shapes."""
    prediction = config.get("diffusion", {}).get("prediction")
    embedding, model = config.get("embedding"), config["model"]
    names = MEANING if model.get("backbone") == "dalle2_pytorch" else ()
    more = {name: getattr(Dalle2Prior, name) for name in names}
    more = {f"model.{name}": model.get(name, value) for name, value in more.items()}
    if embedding in UNIT_SCALES:  # one scale under two names is the same
        dim = model.get("embed_dim") or model["target_shape"][-1]
        scale = UNIT_SCALES[embedding](dim)
        embedding = f"unit norm times {scale:.6g}"
    return {"embedding": embedding, "prediction": prediction, **more}
