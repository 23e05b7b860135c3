"""Is an export what the run's checkpoint says? Reads both, writes nothing."""

import os
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from unclip_jax.errors import UsageError
from unclip_jax.files import atomic_write, sha256_file
from unclip_jax.interop import (
    diffusers,
    diffusers_embedding_prior,
    diffusers_lora,
    init_from,
    kandinsky,
    mapping,
    native,
    open_clip,
    stable_unclip,
    transformers_clip,
    weights,
)
from unclip_jax.interop.components import Component
from unclip_jax.interop.diffusers_decoder import fold_normalization

SUMS = "SHA256SUMS"  # as `sha256sum -c` reads it


def write_sums(folder: str | os.PathLike) -> None:
    """Lists the sha256 of every file in the folder; unclip.json does so for ours."""
    folder = pathlib.Path(folder)
    lines = [f"{sha256_file(folder / name)}  {name}\n" for name in _files(folder)]
    atomic_write(folder / SUMS, "".join(lines))


def check_sums(folder: str | os.PathLike) -> None:
    """Compares the files of an export with the list of their hashes.

    Raises UsageError naming each file that is missing or differs, and
    FileNotFoundError when there is no list.
    """
    folder = pathlib.Path(folder)
    wrong = []
    for line in (folder / SUMS).read_text().splitlines():
        wanted, name = line.split("  ", 1)
        if not (folder / name).is_file():
            wrong.append(f"{name} is missing")
        elif sha256_file(folder / name) != wanted:
            wrong.append(f"{name} is not the file that was exported")
    _refuse(folder, wrong)


def verify(folder: str | os.PathLike, part: Component, format: str, dtype: str) -> int:
    """Compares a part of an export with what it was made from, bit by bit.

    Of the native format one tensor is held at a time; the others are read back by the
    functions that load them for sampling, so that layouts are checked too.

    Args:
      folder: the export.
      part: of the run; its tensors may be Lazy.
      format: "native", "diffusers", "kandinsky", "stable_unclip", "transformers" or
        "open_clip".
      dtype: that floats were stored as.

    Returns:
      How many tensors were compared.

    Raises:
      FileNotFoundError: the part, or a file of it, is not there.
      UsageError: naming the files and tensors that differ.
    """
    folder = pathlib.Path(folder)
    if format == "native":
        tensors = dict(native.leaves(part.params))
        path = native.part_folder(folder, part.kind)
        wrong = weights.diff_tensors(path / native.WEIGHTS, tensors, dtype)
        _refuse(path, wrong)
        return len(tensors)
    check_sums(folder)
    found = dict(native.leaves(_read_back(folder, part, format)))
    wanted = dict(native.leaves(_as_read_back(part, format)))
    wrong = [
        f"{name} differs"
        for name, array in found.items()
        if name not in wanted or not _equal(array, wanted[name], dtype)
    ]
    _refuse(folder, wrong)
    return len(found)


def verify_adapters(
    folder: str | os.PathLike, kind: str, tensors: Mapping[str, np.ndarray], dtype: str
) -> int:
    """Compares adapters in a folder with those that diffusers_lora.to_torch gives.

    Returns how many tensors were compared; raises what `verify` does.
    """
    check_sums(folder)
    path = pathlib.Path(folder) / diffusers_lora.FILE
    found = weights.to_float32(weights.read_tensors(path))
    own = {k for k in found if k.startswith(f"{diffusers_lora.PREFIXES[kind]}.")}
    wrong = [f"{name} is unexpected" for name in sorted(own - tensors.keys())]
    for name, array in tensors.items():
        if name not in found or not _equal(found[name], array, dtype):
            wrong.append(f"{name} differs")
    _refuse(path, wrong)
    return len(tensors)


def _read_back(folder, part, format) -> Mapping[str, Any]:
    if format == "transformers":
        return transformers_clip.load_clip_model(folder)[1]
    if format == "open_clip":
        return open_clip.load_open_clip(folder)[1]
    if format == "kandinsky":
        return kandinsky.read_params(folder, part.kind)
    if format == "stable_unclip":
        return stable_unclip.read_params(folder, part.kind)
    if part.kind == "clip":
        image = folder / "image_encoder"
        towers = transformers_clip.load_clip_towers(
            folder / "text_encoder", image if image.is_dir() else None
        )[1]
        return {k: v for k, v in towers.items() if k != "logit_scale"}  # has none
    if part.kind in native.EMBEDDING_PRIORS:
        return weights.read_weights(folder / "prior")
    names, load = init_from.DIFFUSERS[native.kind_of(part.kind)]
    if part.kind.endswith(native.LAST):
        names = (diffusers.LAST,)
    params = load(*(folder / name for name in names))[1]
    if part.kind == "decoder":
        params.pop("space")  # folded into its projections
    return params


def _as_read_back(part, format) -> Mapping[str, Any]:
    params = part.params
    if part.kind in native.EMBEDDING_PRIORS:
        return diffusers_embedding_prior.their_tensors(part.config, params)
    if format in ("diffusers", "kandinsky") and part.kind == "decoder":
        params = fold_normalization(params)
    return mapping.unstack_blocks(params)


def _equal(found, wanted, dtype) -> bool:
    """Whether the file's number, read as float32, is ours as it was stored."""
    stored = np.asarray(wanted, weights.stored_dtype(dtype, wanted.dtype))
    return weights.same(np.asarray(found), stored.astype(found.dtype))


def _files(folder) -> list[str]:
    paths = [p for p in folder.rglob("*") if p.is_file() and p.name != SUMS]
    return sorted(p.relative_to(folder).as_posix() for p in paths)


def _refuse(where, wrong):
    if wrong:
        more = f" and {len(wrong) - 5} more" if len(wrong) > 5 else ""
        raise UsageError(f"{where}: {'; '.join(wrong[:5])}{more}: export it again")
