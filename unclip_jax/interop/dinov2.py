"""DINOv2 from transformers' folders (Dinov2Model), for pictures of another size.

The published models are trained on 518 pixels and have a position for each of 37 x 37
patches; for smaller pictures the positions are resampled, as the original code does.
"""

import os
import pathlib
import re
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from unclip_jax.errors import UsageError
from unclip_jax.files import read_json
from unclip_jax.interop import mapping
from unclip_jax.interop.mapping import SQUEEZE_1, SQUEEZE_2, Entry, conv, dense, norm
from unclip_jax.interop.tensor_checks import check_tensors
from unclip_jax.interop.weights import read_weights
from unclip_jax.models.dinov2 import DinoV2

# torch's interpolate; Pillow and others use -0.5
BICUBIC_A = -0.75
# The original models (torch.hub) resample to this much more than the patches: features
# published as DINOv2's are made so. transformers does not.
OFFSET = 0.1
# config.json's defaults, and what else ours can be: nothing
DEFAULTS = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12}
DEFAULTS |= {"mlp_ratio": 4, "patch_size": 14}
FIXED = {"hidden_act": "gelu", "layer_norm_eps": 1e-6, "qkv_bias": True}
FIXED |= {"use_swiglu_ffn": False, "num_channels": 3}
NEW_NAMES = {  # transformers 5 may write them so
    "attention.q_proj": "attention.attention.query",
    "attention.k_proj": "attention.attention.key",
    "attention.v_proj": "attention.attention.value",
    "attention.o_proj": "attention.output.dense",
}


def load_dinov2(
    folder: str | os.PathLike, image_size: int = 224, offset: float = OFFSET
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Reads a Dinov2Model folder: config.json and safetensors.

    Args:
      folder: the folder, e.g. of facebook/dinov2-large.
      image_size: side of the pictures that it shall see, a multiple of its patches.
      offset: see OFFSET; 0 is transformers' way.

    Returns:
      (fields of models.DinoV2, params).

    Raises:
      FileNotFoundError: no config or no weights.
      UsageError: another model (with registers, the giant one), or tensors that do not
        fit.
    """
    fields = _fields(folder, image_size)
    tensors = {_old_name(k): a for k, a in read_weights(folder).items()}
    ignore = ("embeddings.mask_token",)
    table = _table(fields["depth"])
    params = mapping.from_torch(table, tensors, str(folder), ignore)
    side = image_size // fields["patch_size"]
    positions = params["positional_embedding"]
    params["positional_embedding"] = resample_positions(positions, side, offset)
    params = mapping.stack_blocks(params)
    _check_shapes(fields, params, folder)
    return fields, params


def resample_positions(positions: np.ndarray, side: int, offset: float) -> np.ndarray:
    """(1 + M * M, W) -> (1 + side * side, W) float32, bicubic without antialiasing.

    The first, the class token's, stays as it is; so do all where M is `side`.
    """
    old = round((len(positions) - 1) ** 0.5)
    if old == side:
        return positions
    grid = positions[1:].reshape(old, old, -1).astype(np.float64)
    weights = _bicubic(old, side, (side + offset) / old)
    grid = np.einsum("oh,pw,hwc->opc", weights, weights, grid)
    grid = grid.reshape(side * side, -1).astype(np.float32)
    return np.concatenate([positions[:1], grid])


def _bicubic(size: int, out: int, scale: float) -> np.ndarray:
    """torch's matrix (out, size) for a scale_factor, align_corners=False."""
    centre = (np.arange(out) + 0.5) / scale - 0.5
    first = np.floor(centre).astype(int)
    matrix = np.zeros((out, size))
    for tap in range(-1, 3):
        column = np.clip(first + tap, 0, size - 1)  # the border goes on
        np.add.at(matrix, (np.arange(out), column), _cubic(centre - first - tap))
    return matrix


def _cubic(x):
    a, x = BICUBIC_A, np.abs(x)
    near = ((a + 2) * x - (a + 3)) * x**2 + 1
    far = ((a * x - 5 * a) * x + 8 * a) * x - 4 * a
    return np.where(x <= 1, near, far)


def _fields(folder, image_size) -> dict[str, Any]:
    file = pathlib.Path(folder) / "config.json"
    missing = (
        f"{folder} has no config.json: expected a folder of transformers' "
        "Dinov2Model, such as a download of facebook/dinov2-large"
    )
    config = read_json(file, missing)
    if config.get("model_type") != "dinov2":
        raise UsageError(
            f"{file}: model_type is {config.get('model_type')!r}, expected 'dinov2'"
        )
    found: Mapping[str, Any] = {**DEFAULTS, **FIXED, **config}
    for name, wanted in FIXED.items():
        if found[name] != wanted:
            raise UsageError(f"{file}: {name} is {found[name]!r}; ours can be {wanted}")
    if image_size % found["patch_size"]:
        raise UsageError(
            f"pictures of {image_size} pixels do not divide into patches of "
            f"{found['patch_size']}"
        )
    return {
        "image_size": image_size,
        "patch_size": found["patch_size"],
        "width": found["hidden_size"],
        "depth": found["num_hidden_layers"],
        "num_heads": found["num_attention_heads"],
        "mlp_ratio": float(found["mlp_ratio"]),
    }


def _check_shapes(fields, params, folder) -> None:
    side = fields["image_size"]
    x = jax.ShapeDtypeStruct((1, side, side, 3), np.float32)
    shapes = jax.eval_shape(DinoV2(**fields).init, jax.random.key(0), x)["params"]
    check_tensors(params, shapes, str(folder))


def _old_name(name: str) -> str:
    name = re.sub(r"^dinov2\.", "", name)
    for new, old in NEW_NAMES.items():
        name = name.replace(f".{new}.", f".{old}.")
    return name


def _table(depth: int) -> list[Entry]:
    table = [
        Entry("class_embedding", "embeddings.cls_token", SQUEEZE_2),
        Entry("positional_embedding", "embeddings.position_embeddings", SQUEEZE_1),
        *conv("patch_embedding", "embeddings.patch_embeddings.projection"),
        *norm("ln_final/norm", "layernorm"),
    ]
    for i in range(depth):
        ours, theirs = f"block_{i}", f"encoder.layer.{i}"
        attention = f"{theirs}.attention"
        table += [
            *norm(f"{ours}/ln_1/norm", f"{theirs}.norm1"),
            *norm(f"{ours}/ln_2/norm", f"{theirs}.norm2"),
            *dense(f"{ours}/attn/q", f"{attention}.attention.query"),
            *dense(f"{ours}/attn/k", f"{attention}.attention.key"),
            *dense(f"{ours}/attn/v", f"{attention}.attention.value"),
            *dense(f"{ours}/attn/out", f"{attention}.output.dense"),
            *dense(f"{ours}/fc_1", f"{theirs}.mlp.fc1"),
            *dense(f"{ours}/fc_2", f"{theirs}.mlp.fc2"),
            Entry(f"{ours}/scale_1", f"{theirs}.layer_scale1.lambda1"),
            Entry(f"{ours}/scale_2", f"{theirs}.layer_scale2.lambda1"),
        ]
    return table
