"""CLIP in transformers' folders: CLIPModel, or its two towers one by one.

`load_clip_model` and `save_clip_model` are for a CLIPModel folder; `load_clip_towers`
and `save_clip_towers` for the text_encoder/ and image_encoder/ of a diffusers unCLIP
(CLIPTextModelWithProjection and CLIPVisionModelWithProjection). They give and take
(fields, params): the fields of models.CLIP and a nested dict of numpy arrays.
"""

import math
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from unclip_jax import config as config_lib
from unclip_jax import models
from unclip_jax.errors import UsageError
from unclip_jax.files import read_json, write_json
from unclip_jax.interop import mapping
from unclip_jax.interop.clip_pixels import BICUBIC, PREPROCESSOR, read_preprocessor
from unclip_jax.interop.mapping import Entry, conv, dense, norm
from unclip_jax.interop.weights import SHARD_BYTES, read_weights, write_weights
from unclip_jax.models.clip import CLIP

# What transformers takes for granted where a config.json is silent.
TEXT_DEFAULTS = {
    "vocab_size": 49408,
    "hidden_size": 512,
    "intermediate_size": 2048,
    "projection_dim": 512,
    "num_hidden_layers": 12,
    "num_attention_heads": 8,
    "max_position_embeddings": 77,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
    "eos_token_id": 49407,
}
VISION_DEFAULTS = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "projection_dim": 512,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "num_channels": 3,
    "image_size": 224,
    "patch_size": 32,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
}
# The image tower that is not there: no blocks, see models.CLIP.
NO_VISION = {**VISION_DEFAULTS, "num_hidden_layers": 0, "image_size": 0}
# Buffers that files of older versions hold.
IGNORE = (
    "text_model.embeddings.position_ids",
    "vision_model.embeddings.position_ids",
)
# The towers alone have no scale; training ends at its bound for every public CLIP.
TOWERS_LOGIT_SCALE = math.log(100)


def load_clip_model(
    folder: str | os.PathLike, variant: str | None = None
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Reads a CLIPModel folder: config.json, safetensors (whole or sharded).

    Mean and std of the pixels come from its preprocessor_config.json, if there.

    Args:
      folder: the folder.
      variant: of the weights, see weights.read_weights.

    Returns:
      (fields, params); blocks one by one.

    Raises:
      FileNotFoundError: no config or no weights.
      UsageError: another model, one that ours cannot be, or tensors that do not fit.
    """
    config = _read_config(folder, "clip")
    fields = fields_of(config, {}, str(folder))
    fields |= read_preprocessor(folder, fields["image_size"])
    tensors = read_weights(folder, variant)
    params = mapping.from_torch(table(fields), tensors, str(folder), IGNORE)
    return fields, params


def fields_of(
    config: Mapping[str, Any], pixels: Mapping[str, Any], where: str
) -> dict[str, Any]:
    """The fields of models.CLIP for the config.json of a CLIPModel.

    Args:
      config: its contents.
      pixels: image_mean and image_std, or nothing.
      where: whose it is, for messages.

    Raises UsageError for a model that ours cannot be.
    """

    def tower(name, defaults):
        tower_config = config.get(f"{name}_config") or {}
        # files of older versions say it twice; this one counts, defaults included
        old = config.get(f"{name}_config_dict") or {}
        for part in (tower_config, old):
            if not isinstance(part, Mapping):
                raise UsageError(f"{where}: {name}_config is {part!r}")
        if old:
            tower_config = {**tower_config, **defaults, **old}
        dim = config.get("projection_dim", defaults["projection_dim"])
        return {**defaults, **tower_config, "projection_dim": dim}

    text, vision = tower("text", TEXT_DEFAULTS), tower("vision", VISION_DEFAULTS)
    return _fields(text, vision, pixels, where)


def load_clip_towers(
    text_folder: str | os.PathLike,
    image_folder: str | os.PathLike | None,
    feature_extractor: str | os.PathLike | None = None,
    variant: str | None = None,
    text_projects: bool = True,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Reads a text and an image tower into one CLIP.

    The scale of the logits, which towers do not have, becomes log 100.

    Args:
      text_folder: a CLIPTextModelWithProjection.
      image_folder: a CLIPVisionModelWithProjection; None for a CLIP without image
        tower.
      feature_extractor: folder with the preprocessor_config.json, for mean and std of
        the pixels; by default `image_folder`, which need not have one.
      variant: of the weights, see weights.read_weights.
      text_projects: whether the text tower is one; else it is a CLIPTextModel, of any
        CLIP, of which states are asked, but no embedding.

    Returns and raises what `load_clip_model` does, and UsageError when the towers'
    embeddings differ in width.
    """
    text = {**TEXT_DEFAULTS, **_read_config(text_folder, "clip_text_model")}
    if image_folder is None:
        same = ("projection_dim", "hidden_act")
        vision = {**NO_VISION, **{name: text[name] for name in same}}
        pixels, where = {}, str(text_folder)
    else:
        vision = {**VISION_DEFAULTS, **_read_config(image_folder, "clip_vision_model")}
        pixels = read_preprocessor(
            feature_extractor or image_folder,
            int(vision["image_size"]),
            required=feature_extractor is not None,
        )
        where = f"{text_folder} and {image_folder}"
    own = {}
    if not text_projects:
        own = {"text_projects": False, "text_activation": text["hidden_act"]}
        text |= {name: vision[name] for name in ("projection_dim", "hidden_act")}
    fields = {**_fields(text, vision, pixels, where), **own}
    params = {"logit_scale": np.float32(TOWERS_LOGIT_SCALE)}
    towers = [(_text_table(fields), text_folder)]
    if image_folder is not None:
        towers.append((_vision_table(fields), image_folder))
    for tower, folder in towers:
        tensors = read_weights(folder, variant)
        if folder == text_folder and not text_projects:
            # transformers 5 writes a CLIPTextModel without the prefix of all others
            prefix = "text_model."
            tensors = {prefix + k.removeprefix(prefix): a for k, a in tensors.items()}
        params |= mapping.from_torch(tower, tensors, str(folder), IGNORE)
    return fields, params


def save_clip_model(
    folder: str | os.PathLike,
    fields: Mapping[str, Any],
    params: Mapping[str, Any],
    dtype: str = "float32",
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Writes what transformers.CLIPModel and CLIPImageProcessor load.

    Args:
      folder: made if it does not exist.
      fields: of models.CLIP.
      params: nested dict of arrays, blocks one by one or stacked.
      dtype, shard_bytes: see weights.write_weights.

    Raises UsageError when fields and params do not fit together.
    """
    clip = _module(fields)
    text, vision = _text_config(clip), _vision_config(clip)
    config = {
        "architectures": ["CLIPModel"],
        "model_type": "clip",
        "projection_dim": clip.embed_dim,
        "text_config": text,
        "vision_config": vision,
    }
    tensors = mapping.to_torch(table(fields), mapping.unstack_blocks(params))
    _write(folder, config, tensors, dtype, shard_bytes)
    _write_preprocessor(folder, clip)


def save_clip_towers(
    text_folder: str | os.PathLike,
    image_folder: str | os.PathLike,
    fields: Mapping[str, Any],
    params: Mapping[str, Any],
    feature_extractor: str | os.PathLike | None = None,
    dtype: str = "float32",
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Writes the towers as `load_clip_towers` reads them; arguments as there.

    The scale of the logits has no place in them, and an image tower that is not there
    is not written. Raises as `save_clip_model`.
    """
    clip = _module(fields)
    params = mapping.unstack_blocks(params)
    text = (
        text_folder,
        "CLIPTextModelWithProjection" if clip.text_projects else "CLIPTextModel",
        _text_config(clip),
        _text_table(fields),
        ("text", "text_projection"),
    )
    vision = (
        image_folder,
        "CLIPVisionModelWithProjection",
        _vision_config(clip),
        _vision_table(fields),
        ("vision", "visual_projection"),
    )
    towers = (text, vision) if clip.vision_depth else (text,)
    for folder, name, config, tower, own in towers:
        kept = {k: v for k, v in params.items() if k in own}
        tensors = mapping.to_torch(tower, kept)
        config = {"architectures": [name], **config}
        _write(folder, config, tensors, dtype, shard_bytes)
    if clip.vision_depth:
        _write_preprocessor(feature_extractor or image_folder, clip)


_SIZES = ("hidden_size", "intermediate_size", "num_attention_heads", "projection_dim")
_COUNTS = ("num_hidden_layers", "image_size")  # 0 of a tower that is not there
_VISION_SIZES = (*_SIZES, "patch_size")
_TEXT_SIZES = (*_SIZES, "vocab_size", "max_position_embeddings", "eos_token_id")


def _check_sizes(config, positive, where) -> None:
    for name in (*positive, *_COUNTS):
        value = config.get(name, 1)
        whole = isinstance(value, int) and not isinstance(value, bool)
        if not whole or not (name in positive) <= value < 2**31:
            raise UsageError(f"{where}: {name} is {value!r}, expected a number")


def _fields(text, vision, pixels, where) -> dict[str, Any]:
    """The fields of models.CLIP for their two configs."""
    _check_sizes(text, _TEXT_SIZES, where)
    _check_sizes(vision, _VISION_SIZES, where)
    agree = {
        "projection_dim": (text["projection_dim"], vision["projection_dim"]),
        "hidden_act": (text["hidden_act"], vision["hidden_act"]),
    }
    for name, (a, b) in agree.items():
        if a != b:
            raise UsageError(
                f"{where}: the towers of a CLIP share one {name}, but text has {a!r} "
                f"and vision {b!r}"
            )
    for name, value, wanted in (
        ("hidden_act", text["hidden_act"], ("gelu", "quick_gelu")),
        ("text layer_norm_eps", text["layer_norm_eps"], (1e-5,)),
        ("vision layer_norm_eps", vision["layer_norm_eps"], (1e-5,)),
        ("num_channels", vision["num_channels"], (3,)),
    ):
        if value not in wanted:
            raise UsageError(
                f"{where}: {name} is {value!r}; ours can be "
                f"{' or '.join(map(repr, wanted))}"
            )
    eot = text["eos_token_id"]
    return {
        "embed_dim": text["projection_dim"],
        "image_size": vision["image_size"],
        "patch_size": vision["patch_size"],
        "vision_width": vision["hidden_size"],
        "vision_depth": vision["num_hidden_layers"],
        "vision_heads": vision["num_attention_heads"],
        "vision_mlp_ratio": vision["intermediate_size"] / vision["hidden_size"],
        "vocab_size": text["vocab_size"],
        "context_length": text["max_position_embeddings"],
        "text_width": text["hidden_size"],
        "text_depth": text["num_hidden_layers"],
        "text_heads": text["num_attention_heads"],
        "text_mlp_ratio": text["intermediate_size"] / text["hidden_size"],
        # configs from before transformers 4.31 say 2 and mean the highest number
        "eot_id": text["vocab_size"] - 1 if eot == 2 else eot,
        "activation": text["hidden_act"],
        **pixels,
    }


def _text_config(clip: CLIP) -> dict[str, Any]:
    return {
        "model_type": "clip_text_model",
        "vocab_size": clip.vocab_size,
        "hidden_size": clip.text_width,
        "intermediate_size": round(clip.text_width * clip.text_mlp_ratio),
        "projection_dim": clip.embed_dim,
        "num_hidden_layers": clip.text_depth,
        "num_attention_heads": clip.text_heads,
        "max_position_embeddings": clip.context_length,
        "hidden_act": clip.text_activation or clip.activation,
        "layer_norm_eps": 1e-5,
        "bos_token_id": clip.eot_id - 1,
        "eos_token_id": clip.eot_id,
        "pad_token_id": clip.eot_id,
    }


def _vision_config(clip: CLIP) -> dict[str, Any]:
    return {
        "model_type": "clip_vision_model",
        "hidden_size": clip.vision_width,
        "intermediate_size": round(clip.vision_width * clip.vision_mlp_ratio),
        "projection_dim": clip.embed_dim,
        "num_hidden_layers": clip.vision_depth,
        "num_attention_heads": clip.vision_heads,
        "num_channels": 3,
        "image_size": clip.image_size,
        "patch_size": clip.patch_size,
        "hidden_act": clip.activation,
        "layer_norm_eps": 1e-5,
    }


def table(fields: Mapping[str, Any]) -> list[Entry]:
    """Every tensor of a CLIPModel, see interop.mapping."""
    scale = Entry("logit_scale", "logit_scale")
    return [scale, *_text_table(fields), *_vision_table(fields)]


def _text_table(fields) -> list[Entry]:
    embeddings = "text_model.embeddings"
    projection = dense("text_projection", "text_projection", bias=False)
    return [
        Entry(
            "text/token_embedding/embedding",
            f"{embeddings}.token_embedding.weight",
        ),
        Entry(
            "text/positional_embedding",
            f"{embeddings}.position_embedding.weight",
        ),
        *_blocks("text", "text_model", fields["text_depth"]),
        *norm("text/ln_final/norm", "text_model.final_layer_norm"),
        *(projection if fields.get("text_projects", True) else ()),
    ]


def _vision_table(fields) -> list[Entry]:
    embeddings = "vision_model.embeddings"
    return [
        Entry("vision/class_embedding", f"{embeddings}.class_embedding"),
        Entry(
            "vision/positional_embedding",
            f"{embeddings}.position_embedding.weight",
        ),
        *conv("vision/patch_embedding", f"{embeddings}.patch_embedding", bias=False),
        *norm("vision/ln_pre/norm", "vision_model.pre_layrnorm"),  # their spelling
        *_blocks("vision", "vision_model", fields["vision_depth"]),
        *norm("vision/ln_post/norm", "vision_model.post_layernorm"),
        *dense("visual_projection", "visual_projection", bias=False),
    ]


def _blocks(ours: str, theirs: str, depth: int) -> list[Entry]:
    entries = []
    for i in range(depth):
        a, b = f"{ours}/transformer/block_{i}", f"{theirs}.encoder.layers.{i}"
        entries += norm(f"{a}/ln_1/norm", f"{b}.layer_norm1")
        for name in ("q", "k", "v", "out"):
            entries += dense(f"{a}/attn/{name}", f"{b}.self_attn.{name}_proj")
        entries += norm(f"{a}/ln_2/norm", f"{b}.layer_norm2")
        entries += dense(f"{a}/fc_1", f"{b}.mlp.fc1")
        entries += dense(f"{a}/fc_2", f"{b}.mlp.fc2")
    return entries


def _module(fields) -> CLIP:
    return models.build("clip", {k: v for k, v in fields.items() if k != "dtype"})


def _read_config(folder, model_type: str) -> dict[str, Any]:
    file = pathlib.Path(folder) / "config.json"
    config = read_json(file, f"{folder} is no transformers model: no config.json")
    found = config.get("model_type")
    if found != model_type:
        raise UsageError(f"{file}: model_type is {found!r}, expected {model_type!r}")
    return config


def _write_preprocessor(folder, clip: CLIP) -> None:
    side = clip.image_size
    config = {
        "image_processor_type": "CLIPImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"shortest_edge": side},
        "resample": BICUBIC,
        "do_center_crop": True,
        "crop_size": {"height": side, "width": side},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": clip.image_mean,
        "image_std": clip.image_std,
    }
    _write_json(folder, PREPROCESSOR, config)


def _write(folder, config, tensors, dtype, shard_bytes) -> None:
    write_weights(folder, tensors, "model", dtype, shard_bytes)
    _write_json(folder, "config.json", {**config, "dtype": dtype})


def _write_json(folder, name: str, value) -> None:
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / name, config_lib.to_plain(value))
