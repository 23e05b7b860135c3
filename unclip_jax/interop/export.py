"""From a trained run to a part of an export."""

import os
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from etils import epath

from unclip_jax import models
from unclip_jax.errors import UsageError
from unclip_jax.interop import (
    components,
    diffusers,
    diffusers_lora,
    kandinsky,
    native,
    public_clip,
    stable_unclip,
    verify,
    weights,
)
from unclip_jax.interop.frozen_autoencoder import FrozenAutoencoder, is_public
from unclip_jax.interop.init_from import load_initial
from unclip_jax.interop.recommended import Recommended
from unclip_jax.models.lora import merge_adapters

# formats of pipelines that draw latents
LATENT = {"kandinsky": kandinsky, "stable_unclip": stable_unclip}
AS_TRAINED = Recommended()
FORMATS = ("native", "diffusers", "lora", *LATENT, *public_clip.FORMATS)


def export(
    params: Mapping[str, Any],
    meta: Mapping[str, Any],
    run: str | os.PathLike,
    folder: str | os.PathLike,
    format: str = "native",
    dtype: str = "float32",
    recommended: Recommended = AS_TRAINED,
    guide: bool = False,
) -> str:
    """Adds the model of a run to the export in `folder`, or replaces it there.

    A CLIP brings its tokenizer along, a decoder of latents the public autoencoder that
    config.autoencoder named; a prior or decoder the mean and covariance of the
    embeddings it learnt from, while its records are where they were. No more than one
    tensor is held in memory when `params` are Lazy, unless they are adapters: these are
    merged into what they were trained on, which must still be where it was.

    Args:
      params: the run's parameters (EMA), arrays or Lazy.
      meta: the run's description: "step", "config", "export" (what the stage's
        export() returned) and "data_info".
      run: the run's folder.
      folder: the export.
      format: one of FORMATS.
      dtype: that floats are stored as, "float32", "bfloat16" or "float16".
      recommended: for its sampling, where it is not what the training config says.
      guide: of a decoder: whether it is the weaker one that guides that of `folder`.

    Returns:
      A sentence that says what was written.

    Raises:
      UsageError: unknown format, or one that is for a CLIP only; parameters that do
        not fit the run's config; a part of another CLIP than those in `folder`.
      FileNotFoundError: the CLIP's tokenizer is not there.
    """
    if format == "lora":
        kind, tensors, what = _adapters(params, meta, run)
        diffusers_lora.write_lora(folder, kind, tensors, dtype)
        verify.write_sums(folder)
        return f"exported {what} to {pathlib.Path(folder) / diffusers_lora.FILE}"
    params = merged(params, meta)
    part, kept, what = _part(params, meta, run, format, dtype, recommended)
    kind, data_info = part.kind, meta["data_info"]
    if guide:
        if (kind, format) != ("decoder", "native"):
            raise UsageError(
                f"--guide: a weaker model guides a decoder, in the native format; this "
                f"is a {kind} for {format}"
            )
        native.write_part(folder, native.GUIDE, part.config, params, kept, dtype)
        return f"exported {what} to {folder}, as the weaker one that guides its decoder"
    tokenizer = tokenizer_folder(run, data_info) if kind == "clip" else None
    if format == "diffusers":
        diffusers.write_part(folder, part, dtype, tokenizer)
    elif format in LATENT:
        LATENT[format].write_part(pathlib.Path(folder), part, dtype, tokenizer)
    elif format in public_clip.FORMATS:
        public_clip.write_public_clip(folder, part, tokenizer, format, dtype)
    if format != "native":
        what += _add_autoencoder(part, meta, folder, format, dtype)
        verify.write_sums(folder)
        return f"exported {what} to {folder}, for {format}"
    native.write_part(folder, kind, part.config, params, kept, dtype)
    _add_autoencoder(part, meta, folder, format, dtype)
    if tokenizer is not None:
        native.write_tokenizer(folder, tokenizer)
    records = meta["config"].get("data", {}).get("path")
    statistics = epath.Path(records or run) / "statistics.npz"
    # the decoder sees them last: of unit embeddings, if those are what it sees
    ours = kind == "decoder" or "decoder" not in native.read_index(folder)["parts"]
    ours = ours and kind not in native.EMBEDDING_PRIORS
    if ours and statistics.is_file():  # records may be gone by now: only PCA needs it
        with statistics.open("rb") as file, np.load(file) as arrays:
            unit = getattr(part.module, "unit_norm", False) and "unit_mean" in arrays
            mean, cov = (f"unit_{k}" if unit else k for k in ("mean", "cov"))
            native.write_statistics(folder, arrays[mean], arrays[cov], unit)
    have = ", ".join(sorted(native.read_index(folder)["parts"]))
    return f"exported {what} to {folder}, which now has: {have}"


def compare(
    params: Mapping[str, Any],
    meta: Mapping[str, Any],
    run: str | os.PathLike,
    folder: str | os.PathLike,
    format: str = "native",
    dtype: str = "float32",
) -> str:
    """Reads back what `export` wrote with these arguments; a sentence if it is so.

    Raises what `export` and verify.verify do.
    """
    if format == "lora":
        kind, tensors, what = _adapters(params, meta, run)
        count = verify.verify_adapters(folder, kind, tensors, dtype)
        return f"{folder} holds {what}: {count} tensors compared, none differs"
    params = merged(params, meta)
    part, _, what = _part(params, meta, run, format, dtype)
    count = verify.verify(folder, part, format, dtype)
    return f"{folder} holds {what}: {count} tensors compared, none differs"


def _add_autoencoder(part, meta, folder, format, dtype) -> str:
    """Adds the public autoencoder of a decoder, unless there is one; says if it did.

    One that was trained here has a run of its own, to be exported by.
    """
    source = meta["config"].get("autoencoder")
    if part.kind != "decoder" or not source or not is_public(source):
        return ""
    if format == "native":
        there = "autoencoder" in native.read_index(folder)["parts"]
    else:
        there = LATENT[format].has_autoencoder(pathlib.Path(folder))
    if there:
        return ""
    public = FrozenAutoencoder.load(source)
    made = meta["data_info"].get("autoencoder_fingerprint")
    if made != public.fingerprint:
        raise UsageError(
            f"config.autoencoder {source!r} is not the one that the run was trained "
            "with any more: put it back, or export another autoencoder first"
        )
    if format == "native":
        config, params = public.part.config, public.part.params
        native.write_part(folder, "autoencoder", config, params, {}, dtype)
    else:
        LATENT[format].write_part(pathlib.Path(folder), public.part, dtype)
    return " with its autoencoder"


def merged(
    params: Mapping[str, Any],
    meta: Mapping[str, Any],
    checksum: Callable[[Any], str] | None = None,
) -> Mapping[str, Any]:
    """The parameters; of a run of adapters, those that it began with and these.

    Args:
      params, meta: as of `export`.
      checksum: training.checksums.tree_checksum, to see whether what the run began
        with is unchanged.

    Raises:
      UsageError: it is not; and what load_initial raises.
    """
    if "adapters" not in params:
        return params
    folder = meta["config"]["init_from"]
    began = load_initial(folder, meta)
    if checksum is not None and checksum(began) != meta["init_checksum"]:
        raise UsageError(
            f"the adapters were trained on other parameters than {folder!r} has now: "
            "put those back, and export to another folder"
        )
    of_data = {k: v for k, v in params["of_data"].items() if k not in began}
    return merge_adapters({**of_data, **began}, params["adapters"], _scale(meta))


def _scale(meta) -> float:
    """What the products of a run's adapters are multiplied by."""
    options = meta["config"]["lora"]
    alpha = options.get("alpha")
    return 1.0 if alpha is None else alpha / options["rank"]


def _adapters(params, meta, run):
    """(kind of the part, its adapters in diffusers' names, "the adapters of ...")."""
    kind, where = meta["export"]["part"], f"the {meta['export']['part']} of {run}"
    if "adapters" not in params:
        raise UsageError(
            f"--format=lora: all parameters of {where} were trained, and there are no "
            "adapters; they come of config.lora.rank"
        )
    module = models.build(kind, meta["export"]["config"]["model"])
    scale = _scale(meta)
    tensors = diffusers_lora.to_torch(kind, module, params["adapters"], scale)
    rank = meta["config"]["lora"]["rank"]
    what = f"the adapters of {where} (step {meta['step']}, rank {rank})"
    return kind, tensors, what


def _part(params, meta, run, format, dtype, recommended=AS_TRAINED):
    """(the part, what is kept of the run's description, "the prior of ...")."""
    if format not in FORMATS:
        raise UsageError(f"--format {format!r}: expected one of {', '.join(FORMATS)}")
    weights.stored_dtype(dtype, np.float32)  # refuses one that is not known
    kind = meta["export"]["part"]
    config = recommended.apply(meta["export"]["config"], kind)
    data_info = meta["data_info"]
    kept = {
        "step": meta["step"],
        "training_config": meta["config"],
        "data_fingerprint": data_info.get("fingerprint"),
    }
    if kind in ("prior", "ar_prior", "decoder", *native.EMBEDDING_PRIORS):
        kept["clip_fingerprint"] = data_info.get("clip_fingerprint")
    if kind == "decoder" and data_info.get("autoencoder_fingerprint"):
        kept["autoencoder_fingerprint"] = data_info.get("autoencoder_fingerprint")
    where = f"the {kind} of {run}"
    part = components.build_component(kind, config, params, kept, where=where)
    count = sum(int(np.prod(a.shape)) for _, a in native.leaves(params))
    return part, kept, f"{where} (step {meta['step']}, {count:,} parameters)"


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
