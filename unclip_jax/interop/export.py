"""From a trained run to a part of an export."""

import os
from collections.abc import Mapping
from typing import Any

import numpy as np
from etils import epath

from unclip_jax.interop import diffusers, native, parts, public_clip

FORMATS = ("native", "diffusers", *public_clip.FORMATS)


def export(
    params: Mapping[str, Any],
    meta: Mapping[str, Any],
    run: str | os.PathLike,
    folder: str | os.PathLike,
    format: str = "native",
) -> str:
    """Adds the model of a run to the export in `folder`, or replaces it there.

    A CLIP brings its tokenizer along; a prior or decoder the mean and covariance of
    the embeddings it learnt from, while its records are where they were.

    Args:
      params: the run's parameters (EMA).
      meta: the run's description: "step", "config", "export" (what the stage's
        export() returned) and "data_info".
      run: the run's folder.
      folder: the export.
      format: one of FORMATS.

    Returns:
      A sentence that says what was written.

    Raises:
      ValueError: unknown format, or one that is for a CLIP only; parameters that do
        not fit the run's config; a part of another CLIP than those in `folder`.
      FileNotFoundError: the CLIP's tokenizer is not there.
    """
    if format not in FORMATS:
        raise ValueError(f"--format {format!r}: expected one of {', '.join(FORMATS)}")
    kind, config = meta["export"]["part"], meta["export"]["config"]
    data_info = meta["data_info"]
    kept = {
        "step": meta["step"],
        "training_config": meta["config"],
        "data_fingerprint": data_info.get("fingerprint"),
    }
    if kind in ("prior", "ar_prior", "decoder"):
        kept["clip_fingerprint"] = data_info.get("clip_fingerprint")
    part = parts.make(kind, config, params, kept, where=f"the {kind} of {run}")
    tokenizer = tokenizer_folder(run, data_info) if kind == "clip" else None
    count = sum(array.size for array in native.flatten(params).values())
    what = f"exported the {kind} of {run} (step {meta['step']}, {count:,} parameters)"
    if format == "diffusers":
        diffusers.write_part(folder, part, tokenizer=tokenizer)
        return f"{what} to {folder}, for diffusers"
    if format in public_clip.FORMATS:
        public_clip.write_public_clip(folder, part, tokenizer, format)
        return f"{what} to {folder}, for {format}"
    native.write_part(folder, kind, config, params, kept)
    if tokenizer is not None:
        native.write_tokenizer(folder, tokenizer)
    records = meta["config"].get("data", {}).get("path")
    statistics = epath.Path(records or run) / "statistics.npz"
    if statistics.is_file():  # records may be gone by now: only PCA needs these
        with statistics.open("rb") as file, np.load(file) as arrays:
            native.write_statistics(folder, arrays["mean"], arrays["cov"])
    have = ", ".join(sorted(native.read_index(folder)["parts"]))
    return f"{what} to {folder}, which now has: {have}"


def tokenizer_folder(
    run: str | os.PathLike, data_info: Mapping[str, Any]
) -> epath.Path:
    """Where the tokenizer of a run is: in the run, or where its data said.

    Raises FileNotFoundError, naming both places.
    """
    own = epath.Path(run) / native.TOKENIZER
    named = epath.Path(data_info.get("tokenizer_folder") or own)
    for folder in (own, named):  # the run's own first: a run may have been moved
        if folder.is_dir():
            return folder
    raise FileNotFoundError(
        f"the tokenizer of {run} is neither in {own} nor in {named}"
    )
