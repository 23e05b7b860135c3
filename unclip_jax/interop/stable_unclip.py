"""Folders of Stable unCLIP 2.1, read and written: variations of images.

    model_index.json  image_encoder/  feature_extractor/  image_normalizer/
    image_noising_scheduler/  text_encoder/  tokenizer/  unet/  scheduler/  vae/

The text encoder is a CLIP's, without projection and not necessarily of the image
encoder's CLIP; captions are filled up with the tokenizer's own padding, which the UNet
sees. The pipeline for texts has Karlo's prior and the text tower of its CLIP instead of
an image encoder:

    prior/  prior_scheduler/  prior_text_encoder/  prior_tokenizer/

Its text_encoder/ is then a part of its own, native.TEXT_ENCODER.
"""

import os
import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from unclip_jax.errors import UsageError
from unclip_jax.files import read_json, write_json
from unclip_jax.interop import (
    components,
    diffusers_autoencoder,
    diffusers_ddpm,
    diffusers_prior,
    diffusers_scheduler,
    diffusers_stable,
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
from unclip_jax.models.text_transformer import fill_captions
from unclip_jax.tokenizer import Tokenizer, copy_tokenizer

INDEX = "model_index.json"
PIPELINES = ("StableUnCLIPImg2ImgPipeline", "StableUnCLIPPipeline")
# module -> (library, class), as the index of a pipeline lists them
CLASSES = {
    "feature_extractor": ("transformers", "CLIPImageProcessor"),
    "image_encoder": ("transformers", "CLIPVisionModelWithProjection"),
    "image_normalizer": ("stable_diffusion", "StableUnCLIPImageNormalizer"),
    "image_noising_scheduler": ("diffusers", "DDPMScheduler"),
    "tokenizer": ("transformers", "CLIPTokenizer"),
    "text_encoder": ("transformers", "CLIPTextModel"),
    "unet": ("diffusers", "UNet2DConditionModel"),
    "scheduler": ("diffusers", "DDIMScheduler"),
    "vae": ("diffusers", "AutoencoderKL"),
    "prior": ("diffusers", "PriorTransformer"),
    "prior_scheduler": ("diffusers", "UnCLIPScheduler"),
    "prior_text_encoder": ("transformers", "CLIPTextModelWithProjection"),
    "prior_tokenizer": ("transformers", "CLIPTokenizer"),
}
PRIOR_BOUND = 5.0  # on |x0|, in standard deviations: Karlo's


def is_stable_unclip(folder: pathlib.Path) -> bool:
    """Whether a folder holds a pipeline of Stable unCLIP."""
    path = folder / INDEX
    return path.is_file() and read_json(path, "").get("_class_name") in PIPELINES


def load_stable_unclip(
    folder: pathlib.Path,
    kinds: Sequence[str] = native.KINDS,
    dtype: str = "float32",
) -> tuple[dict[str, Component], Tokenizer]:
    """The parts of Stable unCLIP and its tokenizer.

    Args:
      folder: of the pipeline.
      kinds: of parts: "clip", "prior", "decoder", "autoencoder".
      dtype: of the computation, "float32" or "bfloat16"; files may be of any.

    Returns:
      ({part name: Component}, tokenizer); with a decoder of the pipeline for texts,
      native.TEXT_ENCODER is one of the parts.

    Raises:
      FileNotFoundError: a file is missing.
      UsageError: settings that have no counterpart here, or tensors that do not fit.
    """
    made_for = read_fingerprints(folder)

    def build(kind, config, params, fingerprint=None):
        meta = {"clip_fingerprint": fingerprint} if fingerprint else {}
        where = f"the {kind} of {folder}"
        return components.build_component(
            kind, config, params, meta, dtype=dtype, where=where
        )

    for_texts = read_json(folder / INDEX, "").get("_class_name") == PIPELINES[1]
    check_modules(folder / name for name in _modules(kinds, for_texts))

    def read_towers(kind, text, image=None, projects=False):
        processor = image and folder / "feature_extractor"
        fields, params = transformers_clip.load_clip_towers(
            folder / text, image and folder / image, processor, text_projects=projects
        )
        return build(kind, {"model": fields}, params, made_for.get(kind))

    if for_texts:
        clip = read_towers("clip", "prior_text_encoder", projects=True)
        encoder = read_towers(native.TEXT_ENCODER, "text_encoder")
    else:
        clip = encoder = read_towers("clip", "text_encoder", "image_encoder")
    length = clip.module.context_length
    named = folder / ("prior_tokenizer" if for_texts else "tokenizer")
    tokenizer = Tokenizer.load(named, length, warn=True)
    parts = {"clip": clip}
    fingerprint = made_for.get("decoder") or clip.clip_fingerprint
    numbers = {"eot_id": clip.module.eot_id, "vocab_size": clip.module.vocab_size}
    if "prior" in kinds and for_texts:
        config, params = diffusers_prior.load_prior(
            folder / "prior", folder / "prior_scheduler", **numbers
        )
        width = clip.module.embed_dim
        check_same_width("prior", folder, config["model"]["embed_dim"], width)
        empty = components.encode_empty_caption(clip, tokenizer)
        params = with_empty_caption(params, *empty)
        of_prior = made_for.get("prior") or clip.clip_fingerprint
        parts["prior"] = build("prior", config, params, of_prior)
    if "decoder" in kinds:
        config, params = diffusers_stable.load_decoder(
            folder / "unet",
            folder / "scheduler",
            folder / "image_normalizer",
            context_length=length,
            pad_id=pad_id(folder / "tokenizer", tokenizer),
            **numbers,
        )
        noising = folder / "image_noising_scheduler"
        process = diffusers_ddpm.read_ddpm(noising, learned_sigma=False)
        config["diffusion"]["augmentation"] = {
            name: process[name] for name in ("schedule", "num_steps")
        }
        model = config["model"]
        width = clip.module.embed_dim
        check_same_width("decoder", folder, model["embed_dim"], width)
        params["empty_text_states"] = _empty_states(encoder, tokenizer, model["pad_id"])
        parts["decoder"] = build("decoder", config, params, fingerprint)
        if for_texts:
            parts[native.TEXT_ENCODER] = encoder
    if "autoencoder" in kinds:
        loaded = diffusers_autoencoder.load_autoencoder(folder / "vae")
        parts["autoencoder"] = build("autoencoder", *loaded)
    kinds = (*kinds, native.TEXT_ENCODER)
    return {k: part for k, part in parts.items() if k in kinds}, tokenizer


def _modules(kinds, for_texts) -> list[str]:
    """The folders that these parts are read from."""
    needed = ["text_encoder", "tokenizer"]
    if for_texts:
        needed += ["prior_text_encoder", "prior_tokenizer"]
    else:
        needed += ["image_encoder", "feature_extractor"]
    if "prior" in kinds and for_texts:
        needed += ["prior", "prior_scheduler"]
    if "decoder" in kinds:
        needed += ["unet", "scheduler", "image_normalizer", "image_noising_scheduler"]
    return needed + ["vae"] * ("autoencoder" in kinds)


def write_part(
    folder: pathlib.Path,
    part: Component,
    dtype: str = "float32",
    tokenizer: str | os.PathLike | None = None,
) -> None:
    """Adds a part to the pipeline in `folder`.

    Args:
      folder: made if it does not exist.
      part: "clip", "prior", "decoder", "autoencoder" or native.TEXT_ENCODER.
      dtype: of the files, "float32", "float16" or "bfloat16".
      tokenizer: folder of the tokenizer, with a CLIP; the text encoder's own is beside
        it, in tokenizer/.

    Raises UsageError for a part that their classes cannot hold, or one of another CLIP
    than those in `folder`.
    """
    made_for = read_fingerprints(folder)
    if part.kind != native.TEXT_ENCODER:  # a CLIP of its own
        made_for = add_fingerprint(made_for, part, folder)
    config, params = part.config, part.params
    if native.kind_of(part.kind) == "clip":
        text, image, tokens = _towers(folder, part)
        transformers_clip.save_clip_towers(
            text,
            image,
            config["model"],
            params,
            folder / "feature_extractor",
            dtype=dtype,
        )
        if tokenizer is not None and part.kind == native.TEXT_ENCODER:
            # beside the prior's tokenizer, and with another padding
            tokenizer = pathlib.Path(tokenizer).parent / "tokenizer"
        if tokenizer is not None:
            copy_tokenizer(tokenizer, folder / tokens)
    elif part.kind == "prior":
        diffusers_prior.save_prior(config, params, folder / "prior", dtype)
        diffusion = config["diffusion"]
        bound = diffusion.get("clip") or PRIOR_BOUND
        diffusers_scheduler.write_scheduler(
            folder / "prior_scheduler", diffusion, bound, learned_sigma=False
        )
    elif part.kind == "decoder":
        diffusers_stable.save_decoder(
            config, params, folder / "unet", folder / "image_normalizer", dtype
        )
        diffusion = config["diffusion"]
        diffusers_ddpm.write_ddpm(folder / "scheduler", diffusion)
        noising = {"sampler": "ddpm", "prediction": "epsilon"}
        noising |= diffusion["augmentation"]
        diffusers_ddpm.write_ddpm(folder / "image_noising_scheduler", noising)
    elif part.kind == "autoencoder":
        if part.module.num_codes:
            raise UsageError(
                f"diffusers' {PIPELINES[0]} has an AutoencoderKL, and this autoencoder "
                "is vector-quantized: export it in the native format"
            )
        diffusers_autoencoder.save_autoencoder(config, params, folder / "vae", dtype)
    else:
        raise UsageError(
            f"diffusers' {PIPELINES[0]} has no {part.kind}: export it in the native "
            "format"
        )
    write_json(folder / OURS, {"clip_fingerprints": made_for})
    there = {k: list(v) for k, v in CLASSES.items() if (folder / k).is_dir()}
    if "scheduler" in there:
        file = folder / "scheduler" / diffusers_ddpm.FILE
        there["scheduler"][1] = read_json(file, "").get("_class_name", "")
    name = PIPELINES["prior" in there]
    write_json(folder / INDEX, {"_class_name": name, **there})


def has_autoencoder(folder: pathlib.Path) -> bool:
    """Whether one is there already."""
    return (folder / "vae").is_dir()


def read_params(folder: pathlib.Path, kind: str) -> dict[str, Any]:
    """The parameters of a part that `write_part` wrote, as far as the files have them.

    Raises what the functions that load the part do.
    """
    if native.kind_of(kind) == "clip":
        of_prior = kind == "clip" and (folder / "prior_text_encoder").is_dir()
        towers = folder / "text_encoder", folder / "image_encoder"
        if of_prior:
            towers = folder / "prior_text_encoder", None
        elif kind == native.TEXT_ENCODER:
            towers = folder / "text_encoder", None
        params = transformers_clip.load_clip_towers(*towers, text_projects=of_prior)[1]
        del params["logit_scale"]  # towers have none
    elif kind == "prior":
        params = diffusers_prior.load_prior(folder / "prior")[1]
    elif kind == "decoder":
        names = ("unet", "scheduler", "image_normalizer")
        params = diffusers_stable.load_decoder(*(folder / n for n in names), pad_id=0)[
            1
        ]
    else:
        params = diffusers_autoencoder.load_autoencoder(folder / "vae")[1]
    return params


def _towers(folder, part) -> tuple[pathlib.Path, pathlib.Path, str]:
    """Folders of the text and the image tower, and the name of the tokenizer's."""
    image = folder / "image_encoder"
    if part.kind == "clip" and not part.module.vision_depth:
        return folder / "prior_text_encoder", image, "prior_tokenizer"
    return folder / "text_encoder", image, "tokenizer"


def pad_id(folder: pathlib.Path, tokenizer: Tokenizer) -> int:
    """The token that fills captions, as the tokenizer's files say."""
    token = None
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        path = folder / name
        config = read_json(path, "") if path.is_file() else {}
        token = token or config.get("pad_token")
    if isinstance(token, dict):
        token = token.get("content")
    number = tokenizer.eot_id if token is None else tokenizer.token_id(token)
    if number is None:
        raise UsageError(f"{folder}: the vocabulary lacks its pad_token {token!r}")
    return number


def _empty_states(clip: Component, tokenizer: Tokenizer, pad_id: int) -> np.ndarray:
    """The text encoder's states (L, W) of the empty caption."""

    @jax.jit
    def encode(params, tokens):
        tokens = fill_captions(tokens, clip.module.eot_id, pad_id)
        return clip.module.apply({"params": params}, tokens, method="text_states")[0]

    return np.asarray(encode(clip.params, tokenizer.encode([""])), np.float32)
