"""CLIP in OpenCLIP's and OpenAI's own names: one state dict, q, k and v in one tensor.

`load_open_clip` reads a folder of the Hugging Face hub (open_clip_config.json and its
weights) or a bare state dict, whose sizes its shapes tell; `save_open_clip` writes such
a folder. They give and take (fields, params) as interop.transformers_clip does.
"""

import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from unclip_jax import config as config_lib
from unclip_jax import models
from unclip_jax.errors import UsageError
from unclip_jax.files import atomic_write, read_json
from unclip_jax.interop import lazy, mapping
from unclip_jax.interop.clip_pixels import read_preprocess_cfg
from unclip_jax.interop.mapping import IDENTITY, Entry, conv, dense, norm
from unclip_jax.interop.weights import read_tensors, to_float32, write_weights

CONFIG = "open_clip_config.json"
STEM = "open_clip_model"
WEIGHTS = (f"{STEM}.safetensors", "open_clip_pytorch_model.bin")
EXPECTED = (
    "a state dict (OpenAI's own downloads are programs, TorchScript: save "
    "model.state_dict() of one and read that)"
)
# Keys of a model's config that ours understands; others change what is computed.
TOP = ("embed_dim", "quick_gelu", "vision_cfg", "text_cfg")
VISION = ("image_size", "layers", "width", "head_width", "patch_size", "mlp_ratio")
TEXT = ("context_length", "vocab_size", "width", "heads", "layers", "mlp_ratio")
TEXT += ("hf_tokenizer_name",)  # of a folder, whose own tokenizer OpenCLIP then reads
TEXT_HEADS, HEAD_WIDTH = 8, 64  # where a config is silent
# What OpenAI's files add to the weights, and a buffer of some of OpenCLIP's.
OPENAI_ONLY = ("input_resolution", "context_length", "vocab_size")
IGNORE = (*OPENAI_ONLY, "attn_mask")
# Shapes do not tell the heads: 64 wide each, but 16 in OpenCLIP's H, g and bigG.
WIDE_HEADS = {1280: 80, 1408: 88, 1664: 104}


def is_open_clip(path: str | os.PathLike) -> bool:
    """Whether `path` is a folder that says it is OpenCLIP's."""
    return (pathlib.Path(path) / CONFIG).is_file()


def load_open_clip(
    path: str | os.PathLike, activation: str | None = None
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Reads an OpenCLIP folder, or a state dict in a .safetensors or torch file.

    Args:
      path: the folder or the file. Of a torch file nothing but tensors is unpickled.
      activation: "gelu" or "quick_gelu", for a bare state dict of OpenCLIP; a folder
        says which, and OpenAI's own state dicts are recognised.

    Returns:
      (fields, params) as transformers_clip.load_clip_model.

    Raises:
      FileNotFoundError: no such path, or no weights in the folder.
      UsageError: a model that ours cannot be, tensors that do not fit or that cannot
        be read, or no word about the activation.
    """
    path = pathlib.Path(path)
    config = {}
    file = path
    if path.is_dir():
        config = _read_config(path)
        found = [path / name for name in WEIGHTS if (path / name).is_file()]
        if not found:
            raise FileNotFoundError(f"{path} has none of {', '.join(WEIGHTS)}")
        file = found[0]
    elif not path.is_file():
        raise FileNotFoundError(f"OpenCLIP weights {str(path)!r} do not exist")
    tensors = to_float32(read_tensors(file, EXPECTED))
    model = config.get("model_cfg", {})
    if config:
        activation = "quick_gelu" if model.get("quick_gelu") else "gelu"
    elif activation is None and set(OPENAI_ONLY) <= tensors.keys():
        activation = "quick_gelu"
    if activation is None:
        raise UsageError(
            f'{path} does not say its activation: give activation="quick_gelu" for '
            'weights of OpenAI and for OpenCLIP\'s "-quickgelu" models, else "gelu"'
        )
    fields = fields_of(tensors, model, activation, str(path))
    _check_sizes(model, fields, f"{path / CONFIG}")
    pixels = config.get("preprocess_cfg") or {}
    fields |= read_preprocess_cfg(pixels, fields["image_size"], f"{path / CONFIG}")
    return fields, from_open_clip(fields, tensors, str(path))


def save_open_clip(
    folder: str | os.PathLike,
    fields: Mapping[str, Any],
    params: Mapping[str, Any],
    dtype: str = "float32",
) -> None:
    """Writes a folder that OpenCLIP loads ("local-dir:FOLDER") and we do.

    It takes its tokenizer from the folder, too: add its files.

    Args:
      folder: made if it does not exist.
      fields: of models.CLIP.
      params: nested dict of arrays, blocks one by one or stacked.
      dtype: of the weights, see weights.write_weights.
    """
    clip = models.build("clip", fields)
    model = {
        "embed_dim": clip.embed_dim,
        "quick_gelu": clip.activation == "quick_gelu",
        "vision_cfg": {
            "image_size": clip.image_size,
            "patch_size": clip.patch_size,
            "width": clip.vision_width,
            "layers": clip.vision_depth,
            "head_width": clip.vision_width // clip.vision_heads,
            "mlp_ratio": clip.vision_mlp_ratio,
        },
        "text_cfg": {
            "context_length": clip.context_length,
            "vocab_size": clip.vocab_size,
            "width": clip.text_width,
            "layers": clip.text_depth,
            "heads": clip.text_heads,
            "mlp_ratio": clip.text_mlp_ratio,
            # without it OpenCLIP takes OpenAI's; of a folder any name means its own
            "hf_tokenizer_name": "tokenizer of this folder",
        },
    }
    pixels = {
        "mean": clip.image_mean,
        "std": clip.image_std,
        "interpolation": "bicubic",
        "resize_mode": "shortest",
    }
    config = {"model_cfg": model, "preprocess_cfg": pixels}
    write_weights(folder, to_open_clip(fields, params), STEM, dtype)
    text = json.dumps(config_lib.to_plain(config), indent=2)
    atomic_write(pathlib.Path(folder) / CONFIG, text + "\n")


def from_open_clip(
    fields: Mapping[str, Any], tensors: Mapping[str, np.ndarray], where: str
) -> dict[str, Any]:
    """Their state dict as our parameters.

    Raises UsageError listing what is missing and what is not expected.
    """
    split = {}
    for name, value in tensors.items():
        if ".attn.in_proj_" in name:
            for letter, part in zip("qkv", np.split(value, 3), strict=True):
                split[name.replace("in_proj_", f"{letter}_proj.")] = part
        else:
            split[name] = value
    return mapping.from_torch(table(fields), split, where, IGNORE)


def to_open_clip(
    fields: Mapping[str, Any], params: Mapping[str, Any]
) -> dict[str, np.ndarray | lazy.Lazy]:
    """The inverse of `from_open_clip`; blocks one by one or stacked."""
    split = mapping.to_torch(table(fields), mapping.unstack_blocks(params))
    tensors = {}
    for name, value in split.items():
        if ".attn.q_proj." in name:
            parts = [split[name.replace(".q_", f".{letter}_")] for letter in "qkv"]
            tensors[name.replace("q_proj.", "in_proj_")] = lazy.concatenate(parts)
        elif ".attn.k_proj." not in name and ".attn.v_proj." not in name:
            tensors[name] = value
    return tensors


def table(fields: Mapping[str, Any]) -> list[Entry]:
    """Every tensor, see interop.mapping; q, k and v under names of their own."""
    entries = [
        Entry("logit_scale", "logit_scale"),
        Entry("text/token_embedding/embedding", "token_embedding.weight"),
        Entry("text/positional_embedding", "positional_embedding"),
        *norm("text/ln_final/norm", "ln_final"),
        Entry("text_projection/kernel", "text_projection", IDENTITY),  # not transposed
        Entry("vision/class_embedding", "visual.class_embedding"),
        Entry("vision/positional_embedding", "visual.positional_embedding"),
        *conv("vision/patch_embedding", "visual.conv1", bias=False),
        *norm("vision/ln_pre/norm", "visual.ln_pre"),
        *norm("vision/ln_post/norm", "visual.ln_post"),
        Entry("visual_projection/kernel", "visual.proj", IDENTITY),
    ]
    for ours, theirs in (("text", ""), ("vision", "visual.")):
        for i in range(fields[f"{ours}_depth"]):
            a, b = f"{ours}/transformer/block_{i}", f"{theirs}transformer.resblocks.{i}"
            entries += norm(f"{a}/ln_1/norm", f"{b}.ln_1")
            for name in ("q", "k", "v", "out"):
                entries += dense(f"{a}/attn/{name}", f"{b}.attn.{name}_proj")
            entries += norm(f"{a}/ln_2/norm", f"{b}.ln_2")
            entries += dense(f"{a}/fc_1", f"{b}.mlp.c_fc")
            entries += dense(f"{a}/fc_2", f"{b}.mlp.c_proj")
    return entries


def fields_of(tensors, model, activation, where) -> dict[str, Any]:
    """The fields of models.CLIP, sizes from the shapes, heads from the config."""
    try:
        vision_width, _, patch, _ = tensors["visual.conv1.weight"].shape
        patches = len(tensors["visual.positional_embedding"]) - 1
        vocab, text_width = tensors["token_embedding.weight"].shape
        text_mlp, vision_mlp = (
            len(tensors[f"{tower}transformer.resblocks.0.mlp.c_fc.weight"])
            for tower in ("", "visual.")
        )
        length = len(tensors["positional_embedding"])
        dim = tensors["text_projection"].shape[1]
    except (KeyError, ValueError, IndexError) as error:
        raise UsageError(
            f"{where} is not a CLIP with a vision transformer in OpenCLIP's names "
            f"({error}); it has {', '.join(sorted(tensors)[:5])}, ..."
        ) from error
    head_width = model.get("vision_cfg", {}).get("head_width")
    if head_width is None:
        narrow = min(HEAD_WIDTH, vision_width)
        head_width = HEAD_WIDTH if model else WIDE_HEADS.get(vision_width, narrow)
    text_heads = model.get("text_cfg", {}).get("heads")
    if text_heads is None:
        text_heads = TEXT_HEADS if model else max(text_width // HEAD_WIDTH, 1)
    for name, width, heads in (
        ("vision", vision_width, vision_width // head_width),
        ("text", text_width, text_heads),
    ):
        if heads < 1 or width % heads:
            raise UsageError(
                f"{where}: a {name} width of {width} does not divide into {heads} heads"
            )
    return {
        "embed_dim": dim,
        "image_size": patch * round(patches**0.5),
        "patch_size": patch,
        "vision_width": vision_width,
        "vision_depth": _depth(tensors, "visual.transformer"),
        "vision_heads": vision_width // head_width,
        "vision_mlp_ratio": vision_mlp / vision_width,
        "vocab_size": vocab,
        "context_length": length,
        "text_width": text_width,
        "text_depth": _depth(tensors, "transformer"),
        "text_heads": text_heads,
        "text_mlp_ratio": text_mlp / text_width,
        "eot_id": vocab - 1,  # the highest number marks the end
        "activation": activation,
    }


def _check_sizes(model, fields, file):
    """Raises UsageError where the config has other sizes than the weights.

    OpenCLIP interpolates positions to the config's sizes; that is not done here.
    """
    names = {
        "": ("embed_dim",),
        "vision": ("image_size", "patch_size", "width", "layers"),
        "text": ("context_length", "vocab_size", "width", "layers"),
    }
    for tower, keys in names.items():
        config = model.get(f"{tower}_cfg", {}) if tower else model
        for key in keys:
            ours = {"width": f"{tower}_width", "layers": f"{tower}_depth"}.get(key, key)
            if config.get(key, fields[ours]) != fields[ours]:
                raise UsageError(
                    f"{file}: {key} is {config[key]!r}, but the weights are those of "
                    f"{fields[ours]}: set it to that"
                )


def _depth(tensors, prefix: str) -> int:
    names = [n for n in tensors if n.startswith(f"{prefix}.resblocks.")]
    return len({n.removeprefix(f"{prefix}.resblocks.").split(".")[0] for n in names})


def _read_config(folder: pathlib.Path) -> dict[str, Any]:
    file = folder / CONFIG
    config = read_json(file, f"{folder} is no OpenCLIP model: no {CONFIG}")
    if "model_cfg" not in config:
        raise UsageError(f"{file} does not describe a model: no 'model_cfg'")
    model = config["model_cfg"]
    for part, known, where in (
        (model, TOP, "model_cfg"),
        (model.get("vision_cfg", {}), VISION, "vision_cfg"),
        (model.get("text_cfg", {}), TEXT, "text_cfg"),
    ):
        unknown = sorted(k for k, v in part.items() if v and k not in known)
        if unknown:
            raise UsageError(
                f"{file}: {where} has {', '.join(unknown)}, which our CLIP has not "
                f"(it has {', '.join(known)}): such a model cannot be read"
            )
    return config
