"""Folders of public CLIPs, in the format of either library, from and to a Component."""

import json
import os
import pathlib

from unclip_jax.errors import UsageError
from unclip_jax.interop import (
    components,
    open_clip,
    transformers_clip,
    weights,
)
from unclip_jax.tokenizer import copy_tokenizer

FORMATS = ("transformers", "open_clip")


def is_public_clip(folder: str | os.PathLike) -> bool:
    """Whether `folder` holds transformers' CLIPModel or an OpenCLIP model."""
    return open_clip.is_open_clip(folder) or _is_clip_model(folder)


def read_public_clip(
    folder: str | os.PathLike, dtype: str = "float32"
) -> components.Component:
    """The CLIP of such a folder; of both formats in one folder, transformers'.

    Folders of LAION and Apple have the configs of both, and may have the weights of
    one alone, which then decides.

    Its fingerprint is that of its weights, the same in either format.

    Raises what load_clip_model and load_open_clip do.
    """
    theirs = _is_clip_model(folder)
    if theirs and open_clip.is_open_clip(folder):
        theirs = weights.is_there(folder)
    if theirs:
        fields, params = transformers_clip.load_clip_model(folder)
    else:
        fields, params = open_clip.load_open_clip(folder)
    where = f"the CLIP of {folder}"
    return components.build_component(
        "clip", {"model": fields}, params, {}, dtype=dtype, where=where
    )


def write_public_clip(
    folder: str | os.PathLike,
    part: components.Component,
    tokenizer: str | os.PathLike | None,
    format: str,
    dtype: str = "float32",
) -> None:
    """Writes a CLIP, and the files of its tokenizer, as one of FORMATS.

    Its floats are stored as `dtype`, see weights.write_weights.

    Raises UsageError when `part` is no CLIP.
    """
    if part.kind != "clip":
        raise UsageError(f"format {format!r} is for a CLIP, and this is a {part.kind}")
    formats = dict(
        transformers=transformers_clip.save_clip_model,
        open_clip=open_clip.save_open_clip,
    )
    formats[format](folder, part.config["model"], part.params, dtype=dtype)
    if tokenizer is not None:
        copy_tokenizer(tokenizer, pathlib.Path(folder))


def _is_clip_model(folder) -> bool:
    file = pathlib.Path(folder) / "config.json"
    try:
        return json.loads(file.read_text(encoding="utf-8"))["model_type"] == "clip"
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return False
