"""Folders of Kandinsky 2.2: its prior's pipeline and its decoder's, read and written.

    kandinsky-2-2-prior/    model_index.json  prior/  scheduler/  image_encoder/
                            text_encoder/  tokenizer/  image_processor/
    kandinsky-2-2-decoder/  model_index.json  unet/  scheduler/  movq/

The two are published apart and drawn from together; -decoder-inpaint and
-controlnet-depth have the layout of the second. A combined pipeline has both in one
folder, the prior's under names that begin with "prior_".
"""

import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from unclip_jax.errors import UsageError
from unclip_jax.files import read_json, write_json
from unclip_jax.interop import (
    components,
    diffusers_autoencoder,
    diffusers_ddpm,
    diffusers_kandinsky,
    diffusers_prior,
    diffusers_scheduler,
    native,
    transformers_clip,
)
from unclip_jax.interop.components import Component
from unclip_jax.interop.diffusers_config import (
    OURS,
    add_fingerprint,
    check_modules,
    check_same_width,
    read_fingerprints,
)
from unclip_jax.models.clip_caption import with_empty_caption
from unclip_jax.tokenizer import Tokenizer, copy_tokenizer

INDEX = "model_index.json"
PREFIX = "KandinskyV22"
PRIOR = f"{PREFIX}PriorPipeline"
# what the decoder's pipeline is called, by what the decoder sees besides latents
DECODERS = {
    "none": f"{PREFIX}Pipeline",
    "inpaint": f"{PREFIX}InpaintPipeline",
    "hint": f"{PREFIX}ControlnetPipeline",
}
# module -> (library, class), as the index of a pipeline lists them
PRIOR_CLASSES = {
    "prior": ("diffusers", "PriorTransformer"),
    "image_encoder": ("transformers", "CLIPVisionModelWithProjection"),
    "text_encoder": ("transformers", "CLIPTextModelWithProjection"),
    "tokenizer": ("transformers", "CLIPTokenizer"),
    "scheduler": ("diffusers", "UnCLIPScheduler"),
    "image_processor": ("transformers", "CLIPImageProcessor"),
}
CLIP_MODULES = ("text_encoder", "tokenizer", "image_encoder", "image_processor")
DECODER_CLASSES = {
    "unet": ("diffusers", "UNet2DConditionModel"),
    "movq": ("diffusers", "VQModel"),
}
PRIOR_BOUND = 10.0  # on |x0|, in standard deviations
# The halves of an export for diffusers: each is a folder of one pipeline.
HALVES = {"clip": "prior", "prior": "prior", "decoder": "decoder"}
HALVES |= {"autoencoder": "decoder"}


def pipelines(folder: pathlib.Path) -> list[pathlib.Path]:
    """The pipelines of Kandinsky 2.2 in a folder: itself, or prior/ and decoder/."""
    names = [folder] if _class_name(folder) else [folder / "prior", folder / "decoder"]
    return [name for name in names if _class_name(name).startswith(PREFIX)]


def load_kandinsky(
    folders: Sequence[pathlib.Path],
    kinds: Sequence[str] = native.KINDS,
    dtype: str = "float32",
) -> tuple[dict[str, Component], Tokenizer]:
    """The parts of Kandinsky 2.2 and its tokenizer.

    Args:
      folders: the prior's pipeline and, to draw images, a decoder's; or a combined one.
      kinds: of parts: "clip", "prior", "decoder", "autoencoder".
      dtype: of the computation, "float32" or "bfloat16"; files may be of any.

    Returns:
      ({part name: Component}, tokenizer).

    Raises:
      FileNotFoundError: a file is missing.
      UsageError: a decoder without the prior's folder, which has the CLIP; other
        pipelines; settings that have no counterpart here; tensors that do not fit.
    """
    prior, decoder = _sort(folders)
    needed = [prior[name] for name in CLIP_MODULES]
    if "prior" in kinds:
        needed += [prior["prior"], prior["scheduler"]]
    if "decoder" in kinds and decoder is not None:
        needed += [decoder["unet"], decoder["scheduler"]]
    if "autoencoder" in kinds and decoder is not None:
        needed.append(decoder["movq"])
    check_modules(needed)
    clip = _read_clip(prior, dtype)
    module = clip.module
    tokenizer = Tokenizer.load(prior["tokenizer"], module.context_length, warn=True)
    numbers = {"eot_id": module.eot_id, "vocab_size": module.vocab_size}
    parts = {"clip": clip}
    where = " and ".join(map(str, folders))

    def add(kind, config, params):
        fingerprint = _fingerprint(folders, kind) or clip.clip_fingerprint
        parts[kind] = components.build_component(
            kind,
            config,
            params,
            {"clip_fingerprint": fingerprint},
            dtype=dtype,
            where=f"the {kind} of {where}",
        )

    if "prior" in kinds:
        config, params = diffusers_prior.load_prior(
            prior["prior"], prior["scheduler"], **numbers
        )
        width = config["model"]["embed_dim"]
        check_same_width("prior", where, width, module.embed_dim)
        empty = components.encode_empty_caption(clip, tokenizer)
        add("prior", config, with_empty_caption(params, *empty))
    if "decoder" in kinds and decoder is not None:
        config, params = diffusers_kandinsky.load_decoder(
            decoder["unet"],
            decoder["scheduler"],
            context_length=module.context_length,
            **numbers,
        )
        width = config["model"]["embed_dim"]
        check_same_width("decoder", where, width, module.embed_dim)
        null = encode_zeros(clip)
        add("decoder", config, diffusers_kandinsky.with_null_embedding(params, null))
    if "autoencoder" in kinds and decoder is not None:
        add("autoencoder", *diffusers_autoencoder.load_autoencoder(decoder["movq"]))
    return {k: part for k, part in parts.items() if k in kinds}, tokenizer


def tokenizer_folder(folders: Sequence[pathlib.Path]) -> pathlib.Path:
    """Where the tokenizer of pipelines is."""
    return _sort(folders)[0]["tokenizer"]


def encode_zeros(clip: Component) -> jax.Array:
    """The raw embedding (D,) of an image of zeros, as the image tower sees them.

    That is an image of the mean color of the tower's training, not a black one: the
    unconditional embedding of Kandinsky's decoder.
    """
    side = clip.module.image_size

    def encode(params):
        zeros = jnp.zeros((1, side, side, 3))
        method = "encode_normalized"
        return clip.module.apply({"params": params}, zeros, method=method)[0]

    return jax.jit(encode)(clip.params)


def write_part(
    folder: pathlib.Path,
    part: Component,
    dtype: str = "float32",
    tokenizer: str | os.PathLike | None = None,
) -> None:
    """Adds a part to the pipelines in prior/ and decoder/ of `folder`.

    Args:
      folder: made if it does not exist.
      part: "clip", "prior", "decoder" or "autoencoder".
      dtype: of the files, "float32", "float16" or "bfloat16".
      tokenizer: folder of the tokenizer, with a CLIP.

    Raises:
      UsageError: a part that their classes cannot hold, or one of another CLIP than
        those in `folder`.
    """
    if part.kind not in HALVES:
        raise UsageError(
            f"Kandinsky's pipelines have no {part.kind}: export it in the native format"
        )
    half, halves = folder / HALVES[part.kind], [folder / "prior", folder / "decoder"]
    made_for = {k: v for one in halves for k, v in read_fingerprints(one).items()}
    made_for = add_fingerprint(made_for, part, folder)
    config, params = part.config, part.params
    if part.kind == "clip":
        towers = half / "text_encoder", half / "image_encoder"
        processor = half / "image_processor"
        fields = config["model"]
        transformers_clip.save_clip_towers(
            *towers, fields, params, processor, dtype=dtype
        )
        if tokenizer is not None:
            copy_tokenizer(tokenizer, half / "tokenizer")
    elif part.kind == "prior":
        diffusers_prior.save_prior(config, params, half / "prior", dtype)
        diffusion = config["diffusion"]
        diffusers_scheduler.write_scheduler(
            half / "scheduler",
            diffusion,
            diffusion.get("clip") or PRIOR_BOUND,
            learned_sigma=False,
        )
    elif part.kind == "decoder":
        diffusers_kandinsky.save_decoder(config, params, half / "unet", dtype)
        diffusers_ddpm.write_ddpm(half / "scheduler", config["diffusion"])
    else:
        if not part.module.num_codes:
            raise UsageError(
                "Kandinsky's pipelines have a VQModel, and this autoencoder is "
                "variational: export it in the native format"
            )
        diffusers_autoencoder.save_autoencoder(config, params, half / "movq", dtype)
    own = {
        kind: clip for kind, clip in made_for.items() if folder / HALVES[kind] == half
    }
    write_json(half / OURS, {"clip_fingerprints": own})
    _write_index(half, part)


def has_autoencoder(folder: pathlib.Path) -> bool:
    """Whether one is there already."""
    return (folder / "decoder" / "movq").is_dir()


def read_params(folder: pathlib.Path, kind: str) -> dict[str, Any]:
    """The parameters of a part that `write_part` wrote, as far as the files have them.

    Raises what the functions that load the part do.
    """
    half = folder / HALVES[kind]
    if kind == "clip":
        towers = half / "text_encoder", half / "image_encoder"
        params = transformers_clip.load_clip_towers(*towers)[1]
        del params["logit_scale"]  # towers have none
    elif kind == "prior":
        params = diffusers_prior.load_prior(half / "prior")[1]
    elif kind == "decoder":
        folders = half / "unet", half / "scheduler"
        params = diffusers_kandinsky.load_decoder(*folders)[1]
        del params["space"]  # folded into the projections
    else:
        params = diffusers_autoencoder.load_autoencoder(half / "movq")[1]
    return params


def _write_index(half, part):
    name, classes = PRIOR, PRIOR_CLASSES
    if HALVES[part.kind] == "decoder":
        extra = getattr(part.module, "extra", None)
        name = DECODERS[extra] if extra else _class_name(half) or DECODERS["none"]
        scheduler = {"scheduler": ("diffusers", _scheduler_class(half))}
        classes = {**DECODER_CLASSES, **scheduler}
    there = {k: list(v) for k, v in classes.items() if (half / k).is_dir()}
    write_json(half / INDEX, {"_class_name": name, **there})


def _scheduler_class(half):
    file = half / "scheduler" / diffusers_ddpm.FILE
    return read_json(file, "").get("_class_name", "") if file.is_file() else ""


def _sort(folders):
    """(module -> folder of the prior's pipeline, the same of the decoder's or None)."""
    prior, decoder = None, None

    def only(before, folder, kind):
        if before is not None:
            raise UsageError(
                f"{before['scheduler'].parent} and {folder} both have a {kind}: name "
                "one of them"
            )

    for folder in folders:
        name = _class_name(folder)
        if not name.startswith(PREFIX):
            raise UsageError(
                f"{folder} is a {name or 'folder without ' + INDEX}; expected a "
                f"pipeline of Kandinsky 2.2, such as {PRIOR} or {DECODERS['none']}"
            )
        is_combined = "Combined" in name
        if is_combined or name.startswith(f"{PREFIX}Prior"):
            only(prior, folder, "prior")
            prefix = "prior_" if is_combined else ""
            prior = {k: folder / f"{prefix}{k}" for k in PRIOR_CLASSES}
        if is_combined or not name.startswith(f"{PREFIX}Prior"):
            only(decoder, folder, "decoder")
            decoder = {k: folder / k for k in (*DECODER_CLASSES, "scheduler")}
    if prior is None:
        raise UsageError(
            f"{folders[0]} has the decoder alone, and the CLIP is in the prior's "
            "folder: give both, as kandinsky-2-2-prior,kandinsky-2-2-decoder"
        )
    return prior, decoder


def _read_clip(prior: Mapping[str, pathlib.Path], dtype) -> Component:
    fields, params = transformers_clip.load_clip_towers(
        prior["text_encoder"], prior["image_encoder"], prior["image_processor"]
    )
    root = prior["text_encoder"].parent
    ours = read_fingerprints(root).get("clip")  # what was rounded is still that CLIP
    meta = {"clip_fingerprint": ours} if ours else {}
    return components.build_component(
        "clip",
        {"model": fields},
        params,
        meta,
        dtype=dtype,
        where=f"the clip of {root}",
    )


def _class_name(folder: pathlib.Path) -> str:
    """Of the pipeline in a folder; empty if there is none."""
    if not (folder / INDEX).is_file():
        return ""
    return read_json(folder / INDEX, "").get("_class_name", "")


def _fingerprint(folders, kind):
    found = [read_fingerprints(folder).get(kind) for folder in folders]
    return next(filter(None, found), None)
