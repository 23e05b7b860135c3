"""Parameters to start a training run from: an export's, or a folder of diffusers."""

import os
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

from unclip_jax import models
from unclip_jax.errors import UsageError
from unclip_jax.interop import components, mapping, native
from unclip_jax.interop.diffusers_decoder import load_decoder
from unclip_jax.interop.diffusers_prior import load_prior
from unclip_jax.interop.diffusers_upsampler import load_upsampler
from unclip_jax.models.clip_caption import EMPTY_CAPTION
from unclip_jax.models.layers import UNIT_SCALES

# Kinds of parts that can be read from diffusers: folders in a pipeline, and the reader.
DIFFUSERS: dict[str, tuple[tuple[str, ...], Callable]] = {
    "prior": (("prior",), load_prior),
    "decoder": (("text_proj", "decoder"), load_decoder),
    "upsampler": (("super_res_first",), load_upsampler),
}


def load_initial(folder: str | os.PathLike, run: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters for a new run of the same model, from the part of its kind.

    Args:
      folder: a native export; or a folder of diffusers, a pipeline's or the module's
        (but for a decoder, which is two modules there).
      run: what the run says of itself: "export" (what its stage's export() returned)
        and "data_info".

    Returns:
      Nested dict of arrays, blocks stacked if the run's model stacks them. What CLIP
      makes of the empty caption is left out where the folder has no place for it.

    Raises:
      FileNotFoundError: no such part there.
      UsageError: a part of another CLIP, another process, or with tensors that do not
        fit; each is named.
    """
    part, config = run["export"]["part"], run["export"]["config"]
    where = f"config.init_from {str(folder)!r}"
    theirs, params, clip = _read(pathlib.Path(folder), part, where)
    wanted_clip = run["data_info"].get("clip_fingerprint")
    if clip and wanted_clip and clip != wanted_clip:
        raise UsageError(
            f"{where} learnt from the embeddings of the CLIP {clip[:12]}..., the data "
            f"are of {wanted_clip[:12]}...: embed them with the CLIP of that export"
        )
    for name, ours in _process(config).items():
        found = _process(theirs).get(name)
        if found != ours:
            raise UsageError(f"{where} has {name} {found!r}, the config {ours!r}")
    params = mapping.unstack_blocks(params)
    if config["model"].get("scan_layers"):
        params = mapping.stack_blocks(params)
    kind = native.kind_of(part)
    shapes = components.param_shapes(kind, models.build(kind, config["model"]))
    left_out = {name for name in EMPTY_CAPTION if name not in params}
    shapes = {name: s for name, s in shapes.items() if name not in left_out}
    native.check_tensors(params, shapes, where)
    return params


def _read(folder, part, where):
    """(part config, parameters, fingerprint of its CLIP or None)."""
    if native.is_export(folder):
        config, params, meta = native.read_part(folder, part)
        return config, params, meta.get("clip_fingerprint")
    if reader := DIFFUSERS.get(native.kind_of(part)):
        names, load = reader
        alternatives = [[folder / name for name in names]]
        if len(names) == 1:
            alternatives.append([folder])
        for places in alternatives:
            if all((place / "config.json").is_file() for place in places):
                return *load(*places), None
    raise FileNotFoundError(
        f"{where} holds no {part}: expected a native export (see `python -m "
        f"unclip_jax.export`) or, for {', '.join(DIFFUSERS)}, a folder of diffusers"
    )


def _process(config):
    """What parameters mean beyond their shapes."""
    prediction = config.get("diffusion", {}).get("prediction")
    embedding = config.get("embedding")
    if embedding in UNIT_SCALES:  # one scale under two names is the same
        scale = UNIT_SCALES[embedding](config["model"]["embed_dim"])
        embedding = f"unit norm times {scale:.6g}"
    return {"embedding": embedding, "prediction": prediction}
