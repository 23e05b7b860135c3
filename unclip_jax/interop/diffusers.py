"""Folders of diffusers' UnCLIPPipeline: a whole unCLIP, read and written.

    model_index.json  tokenizer/  text_encoder/  image_encoder/  feature_extractor/
    prior/  prior_scheduler/  text_proj/  decoder/  decoder_scheduler/
    super_res_first/  super_res_last/  super_res_scheduler/

Each module is a folder that diffusers' or transformers' own class loads. What their
formats have no place for is not lost: the unconditional caption is computed from the
CLIP when a folder is read, and unclip_jax.json names the CLIP each part belongs to.
"""

import os
import pathlib
from collections.abc import Sequence

from unclip_jax.errors import UsageError
from unclip_jax.files import read_json, write_json
from unclip_jax.interop import (
    components,
    diffusers_decoder,
    diffusers_embedding_prior,
    diffusers_prior,
    diffusers_scheduler,
    diffusers_upsampler,
    native,
    transformers_clip,
)
from unclip_jax.interop.components import Component
from unclip_jax.interop.diffusers_config import (
    OURS,
    add_fingerprint,
    read_fingerprints,
)
from unclip_jax.models.clip_caption import with_empty_caption
from unclip_jax.tokenizer import Tokenizer, copy_tokenizer

INDEX = "model_index.json"
PIPELINE = "UnCLIPPipeline"
PIPELINES = (PIPELINE, "UnCLIPImageVariationPipeline")
# the folder of each of their modules -> (library, class), as their index lists them
CLASSES = {
    "tokenizer": ("transformers", "CLIPTokenizer"),
    "text_encoder": ("transformers", "CLIPTextModelWithProjection"),
    "image_encoder": ("transformers", "CLIPVisionModelWithProjection"),
    "feature_extractor": ("transformers", "CLIPImageProcessor"),
    "prior": ("diffusers", "PriorTransformer"),
    "prior_scheduler": ("diffusers", "UnCLIPScheduler"),
    # where diffusers has it since 0.38; older releases take "unclip" for the module
    "text_proj": (
        "diffusers.pipelines.deprecated.unclip.text_proj",
        "UnCLIPTextProjModel",
    ),
    "decoder": ("diffusers", "UNet2DConditionModel"),
    "decoder_scheduler": ("diffusers", "UnCLIPScheduler"),
    "super_res_first": ("diffusers", "UNet2DModel"),
    "super_res_last": ("diffusers", "UNet2DModel"),
    "super_res_scheduler": ("diffusers", "UnCLIPScheduler"),
}
FIRST, LAST = "super_res_first", "super_res_last"


def is_pipeline(folder: str | os.PathLike) -> bool:
    """Whether `folder` holds a pipeline of diffusers."""
    return (pathlib.Path(folder) / INDEX).is_file()


def load_diffusers(
    folder: str | os.PathLike,
    wanted: Sequence[str] = native.KINDS,
    dtype: str = "float32",
) -> tuple[dict[str, Component], Tokenizer]:
    """The parts of a pipeline and its tokenizer.

    Args:
      folder: of the pipeline; image_encoder/ and the super-resolution may be absent.
      wanted: kinds of parts: "clip", "prior", "decoder", "upsampler".
      dtype: of the computation, "float32" or "bfloat16"; files may be of any.

    Returns:
      ({part name: Component}, tokenizer). The two networks of the super-resolution are
      "upsampler_256" and "upsampler_256_last" (or of whatever size they are).

    Raises:
      FileNotFoundError: a file is missing.
      UsageError: another pipeline, settings that have no counterpart here, or tensors
        that do not fit; the message lists them.
    """
    folder = pathlib.Path(folder)
    _check_pipeline(folder)
    clip = _read_clip(folder, dtype)
    module = clip.module
    tokenizer = Tokenizer.load(folder / "tokenizer", module.context_length, warn=True)
    tokens = {"eot_id": module.eot_id, "vocab_size": module.vocab_size}
    made_for = read_fingerprints(folder)
    found = {"clip": clip}
    loaded = {}
    if "prior" in wanted and (folder / "prior").is_dir():
        loaded["prior"] = diffusers_prior.load_prior(
            folder / "prior", folder / "prior_scheduler", **tokens
        )
    if "decoder" in wanted and (folder / "decoder").is_dir():
        loaded["decoder"] = diffusers_decoder.load_decoder(
            folder / "text_proj",
            folder / "decoder",
            folder / "decoder_scheduler",
            context_length=module.context_length,
            **tokens,
        )
    empty = components.encode_empty_caption(clip, tokenizer) if loaded else ()
    for kind, (config, params) in loaded.items():
        params = with_empty_caption(params, *empty)
        meta = {"clip_fingerprint": made_for.get(kind, clip.clip_fingerprint)}
        found[kind] = _part(folder, kind, config, params, meta, dtype)
    if "upsampler" in wanted and (folder / FIRST).is_dir():
        small = found["decoder"].module.image_size if "decoder" in found else None
        found |= _read_upsamplers(folder, small, dtype)
    return {k: p for k, p in found.items() if native.kind_of(k) in wanted}, tokenizer


def write_part(
    folder: str | os.PathLike,
    part: Component,
    dtype: str = "float32",
    tokenizer: str | os.PathLike | None = None,
) -> None:
    """Adds a part to the pipeline in `folder`, or replaces it there.

    An embedding prior is no part of a pipeline: there are its modules alone.

    Args:
      folder: made if it does not exist.
      part: the prior and the decoder must have been trained on CLIP's text states
        (caption "clip_states"): no class of diffusers has a text encoder of its own.
      dtype: of the files, "float32", "float16" or "bfloat16".
      tokenizer: folder of the tokenizer, with a CLIP.

    Raises:
      UsageError: a part that their classes cannot hold, or one of another CLIP than
        those in `folder`.
    """
    folder = pathlib.Path(folder)
    kind = native.kind_of(part.kind)
    made_for = add_fingerprint(read_fingerprints(folder), part, folder)
    config, params = part.config, part.params
    if kind in native.EMBEDDING_PRIORS:  # of no pipeline
        diffusers_embedding_prior.save_embedding_prior(
            config, params, folder / "prior", dtype
        )
        _write_scheduler(folder / "prior_scheduler", part)
        return
    if kind == "clip":
        transformers_clip.save_clip_towers(
            folder / "text_encoder",
            folder / "image_encoder",
            config["model"],
            params,
            folder / "feature_extractor",
            dtype=dtype,
        )
        if tokenizer is not None:
            copy_tokenizer(tokenizer, folder / "tokenizer")
    elif kind == "prior":
        diffusers_prior.save_prior(config, params, folder / "prior", dtype)
        _write_scheduler(folder / "prior_scheduler", part)
    elif kind == "decoder":
        diffusers_decoder.save_decoder(
            config, params, folder / "text_proj", folder / "decoder", dtype
        )
        _write_scheduler(folder / "decoder_scheduler", part)
    elif kind == "upsampler":
        # one network of ours is both of theirs, unless it has a last one of its own
        names = (LAST,) if part.kind.endswith("_last") else (FIRST, LAST)
        for name in names:
            diffusers_upsampler.save_upsampler(config, params, folder / name, dtype)
        _write_scheduler(folder / "super_res_scheduler", part)
    else:
        raise UsageError(
            f"diffusers' {PIPELINE} has no {part.kind}: export it in the native format"
        )
    write_json(folder / OURS, {"clip_fingerprints": made_for})
    there = {k: list(v) for k, v in CLASSES.items() if (folder / k).is_dir()}
    write_json(folder / INDEX, {"_class_name": PIPELINE, **there})


def _check_pipeline(folder):
    found = read_json(folder / INDEX, "").get("_class_name")
    if found not in PIPELINES:
        raise UsageError(
            f"{folder} is a {found}; expected one of {', '.join(PIPELINES)}"
        )


def _read_clip(folder, dtype) -> Component:
    image = folder / "image_encoder"
    extractor = folder / "feature_extractor"
    fields, params = transformers_clip.load_clip_towers(
        folder / "text_encoder",
        image if image.is_dir() else None,
        extractor if extractor.is_dir() else None,
    )
    ours = read_fingerprints(folder).get("clip")  # what was rounded is still that CLIP
    meta = {"clip_fingerprint": ours} if ours else {}
    return _part(folder, "clip", {"model": fields}, params, meta, dtype)


def _read_upsamplers(folder, small, dtype) -> dict[str, Component]:
    found = {}
    for name, suffix in ((FIRST, ""), (LAST, "_last")):
        if not (folder / name).is_dir():
            continue
        config, params = diffusers_upsampler.load_upsampler(
            folder / name,
            folder / "super_res_scheduler",
            low_res_size=small,
        )
        kind = f"upsampler_{config['model']['image_size']}{suffix}"
        found[kind] = _part(folder, kind, config, params, {}, dtype)
    return found


def _part(folder, kind, config, params, meta, dtype) -> Component:
    where = f"the {kind} of {folder}"
    return components.build_component(
        kind, config, params, meta, dtype=dtype, where=where
    )


def _write_scheduler(folder, part: Component):
    diffusion = part.config["diffusion"]
    # the bound that sampling takes where the part does not say one
    clip = 5.0 if part.kind == "prior" else 1.0
    if part.kind in native.EMBEDDING_PRIORS:
        clip = None
    diffusers_scheduler.write_scheduler(
        folder,
        diffusion,
        diffusion.get("clip") or clip,
        getattr(part.module, "learned_sigma", False),
    )
