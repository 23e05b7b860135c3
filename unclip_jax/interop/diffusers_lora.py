"""Adapters (LoRA) under the names of diffusers and PEFT, written and read.

    pytorch_lora_weights.safetensors
        unet.down_blocks.1.attentions.0.to_q.lora_A.weight    (rank, in)
        unet.down_blocks.1.attentions.0.to_q.lora_B.weight    (out, rank)

Names that begin with "unet." are of the decoder, those with "prior." of the prior; one
file may have both. A pipeline's `load_lora_weights` and a module's `load_lora_adapter`
look for this file. Products are added as they are: our scale is in B.
"""

import json
import os
import pathlib
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import safetensors

from unclip_jax.errors import UsageError
from unclip_jax.interop import (
    diffusers_prior,
    diffusers_stable,
    diffusers_unet,
    mapping,
)
from unclip_jax.interop.components import Component
from unclip_jax.interop.native import leaves, unflatten
from unclip_jax.interop.weights import read_tensors, to_float32, write_tensors
from unclip_jax.models.decoder import UNetDecoder
from unclip_jax.models.lora import merge_adapters
from unclip_jax.models.stable_decoder import StableDecoder

FILE = "pytorch_lora_weights.safetensors"
PREFIXES = {"decoder": "unet", "prior": "prior"}  # by the kind of a part
METADATA = "lora_adapter_metadata"  # their key in the file's header, of JSON
# the names that diffusers' scripts for Kandinsky gave: of attention processors
OLD = re.compile(
    r"(?P<block>.+?)(\.processor)?\.(?P<layer>to_[qkv]|to_out|add_[kv]_proj)_lora"
    r"\.(?P<side>down|up)\.weight"
)
PEFT = re.compile(r"(?P<layer>.+)\.lora_(?P<side>[AB])\.weight")
ALPHA = re.compile(r"(?P<layer>.+)\.alpha")


def layer_names(kind: str, module: Any) -> dict[str, str]:
    """{path of our kernel: their name of the layer} of all that can be adapted.

    Raises UsageError for a model that is none of diffusers'.
    """
    names = module.__dataclass_fields__.keys() - {"parent", "name"}
    fields: dict[str, Any] = {name: getattr(module, name) for name in names}
    if kind == "prior" and module.caption == "clip_states":
        table = diffusers_prior.table(fields["depth"])
    elif isinstance(module, StableDecoder):
        table = diffusers_stable.table(fields)
    elif isinstance(module, UNetDecoder) and module.caption != "tokens":
        table = diffusers_unet.table(fields)  # but for the projections before it
    else:
        raise UsageError(
            f"diffusers has no names for the adapters of this {kind}, whose caption is "
            f"{module.caption!r}: export it in the native format, which merges them"
        )
    return {
        entry.ours: entry.theirs.removesuffix(".weight")
        for entry in table
        if entry.layout == mapping.DENSE
    }


def to_torch(
    kind: str, module: Any, adapters: Mapping[str, Any], scale: float
) -> dict[str, np.ndarray]:
    """Tensors by their names.

    Args:
      kind: "decoder" or "prior".
      module: the adapted model.
      adapters: nested dict with {"a", "b"} in place of kernels; see models.lora.
      scale: what products are multiplied by.

    Raises UsageError for an adapted kernel that they have no name for.
    """
    names, tensors = layer_names(kind, module), {}
    for path, array in leaves(mapping.unstack_blocks(adapters)):
        layer, _, side = path.rpartition("/")
        if f"{layer}/kernel" not in names:
            raise UsageError(
                f"diffusers has no name for an adapter of {layer}: leave "
                "config.lora.targets as it is, or export in a format that merges"
            )
        matrix = np.asarray(array, np.float32).T
        name = f"{PREFIXES[kind]}.{names[f'{layer}/kernel']}.lora_{side.upper()}.weight"
        tensors[name] = np.ascontiguousarray(matrix * (scale if side == "b" else 1))
    return tensors


def write_lora(
    folder: str | os.PathLike,
    kind: str,
    tensors: Mapping[str, np.ndarray],
    dtype: str = "float32",
) -> None:
    """Writes what `to_torch` gives into FILE of `folder`, in place of its `kind`'s.

    Args:
      folder: made if it does not exist.
      kind: "decoder" or "prior"; what the file has of the other stays.
      tensors: of that part.
      dtype: of the file, see weights.write_tensors.
    """
    path = pathlib.Path(folder) / FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    there = read_tensors(path) if path.is_file() else {}
    rest = {k: a for k, a in there.items() if not k.startswith(f"{PREFIXES[kind]}.")}
    write_tensors(path, {**to_float32(rest), **tensors}, {"format": "pt"}, dtype)


def read_lora(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """{"their layer/a" and ".../b": float32, as ours lie} of a file of adapters.

    Args:
      path: the file, or the folder that has it as FILE. By PEFT's names or those of
        diffusers' scripts for Kandinsky; with a prefix of PREFIXES, which stays, or
        without. What scales products is multiplied into b.

    Raises:
      FileNotFoundError: no such file.
      UsageError: a broken file, tensors that are no adapters, or adapters of a kind
        that there is not here (DoRA, rsLoRA).
    """
    file = pathlib.Path(path)
    file = file / FILE if file.is_dir() else file
    tensors = to_float32(read_tensors(file, f"adapters, such as {FILE}"))
    found: dict[str, np.ndarray] = {}
    alphas: dict[str, float] = {}
    for name, array in tensors.items():
        if match := PEFT.fullmatch(name):
            layer, side = match["layer"], match["side"].lower()
        elif match := OLD.fullmatch(name):
            layer, side = f"{match['block']}.{match['layer']}", match["side"]
            layer += ".0" if match["layer"] == "to_out" else ""
            side = {"down": "a", "up": "b"}[side]
        elif match := ALPHA.fullmatch(name):
            alphas[match["layer"]] = float(array)
            continue
        else:
            raise UsageError(f"{file} has {name}, which is no tensor of LoRA")
        if array.ndim != 2:
            raise UsageError(
                f"{file}: {name} has shape {array.shape}; only adapters of dense "
                "layers are supported"
            )
        found[f"{layer}/{side}"] = array.T
    scale = _their_scale(file)
    for layer in {name.rpartition("/")[0] for name in found}:
        a, b = (found.get(f"{layer}/{side}") for side in "ab")
        if a is None or b is None or a.shape[1] != b.shape[0]:
            shapes = [None if m is None else m.shape[::-1] for m in (a, b)]
            raise UsageError(f"{file}: A and B of {layer} have shapes {shapes}")
        rank = a.shape[1]
        factor = alphas[layer] / rank if layer in alphas else scale(layer)
        found[f"{layer}/b"] = np.float32(factor) * b
    return found


def merge_lora(
    parts: Mapping[str, Component], path: str | os.PathLike
) -> dict[str, Mapping[str, Any]]:
    """The parameters of the parts that a file of adapters is of, with them merged.

    Args:
      parts: by name; "decoder" and "prior" are looked at.
      path: see `read_lora`.

    Returns:
      {part name: parameters} of those that are adapted.

    Raises what `read_lora` does, and UsageError for adapters of none of the parts, or
    of kernels of another shape.
    """
    rest, merged = read_lora(path), {}
    for kind in PREFIXES.keys() & parts.keys():
        part, adapters = parts[kind], {}
        params = mapping.unstack_blocks(part.params)
        kernels = dict(leaves(params))
        try:
            names = layer_names(kind, part.module)
        except UsageError:  # nobody has adapters of it
            continue
        for ours, theirs in names.items():
            layers = f"{PREFIXES[kind]}.{theirs}", theirs
            layer = next((name for name in layers if f"{name}/a" in rest), None)
            if layer is None:
                continue
            pair = {side: rest.pop(f"{layer}/{side}") for side in "ab"}
            shape = pair["a"].shape[0], pair["b"].shape[1]
            if shape != kernels[ours].shape:
                raise UsageError(
                    f"{path}: {layer} adapts a kernel of {shape[0]} x {shape[1]}, the "
                    f"{kind}'s is {kernels[ours].shape[0]} x {kernels[ours].shape[1]}: "
                    "they are of another model"
                )
            adapters[ours.removesuffix("/kernel")] = pair
        if adapters:
            params = merge_adapters(params, unflatten(adapters), 1.0)
            stacked = getattr(part.module, "scan_layers", False)
            merged[kind] = mapping.stack_blocks(params) if stacked else params
    if rest or not merged:
        layers = sorted({name.rpartition("/")[0] for name in rest}) or ["nothing"]
        raise UsageError(
            f"{path} adapts {', '.join(layers[:3])}, which is no layer of a prior or "
            f"decoder among the parts {', '.join(sorted(parts))}"
        )
    return merged


def _their_scale(file):
    """layer -> factor of its product, of what the file's header says of PEFT's config.

    Without, products are added as they are.
    """
    if file.suffix != ".safetensors":
        return lambda layer: 1.0
    with safetensors.safe_open(file, framework="numpy") as opened:
        text = (opened.metadata() or {}).get(METADATA)
    if text is None:
        return lambda layer: 1.0
    try:
        config = json.loads(text)
    except ValueError as error:
        raise UsageError(f"{file}: its {METADATA} is no JSON ({error})") from error

    def scale(layer):
        prefix = next((p for p in PREFIXES.values() if layer.startswith(f"{p}.")), "")
        own = {
            k.removeprefix(f"{prefix}."): v
            for k, v in config.items()
            if k.startswith(f"{prefix}." if f"{prefix}.r" in config else "")
        }
        for name in ("use_dora", "use_rslora", "alpha_pattern", "rank_pattern"):
            if own.get(name):
                raise UsageError(
                    f"{file}: its adapters have {name} {own[name]!r}, which is not "
                    "supported: merge them in diffusers (fuse_lora)"
                )
        return own.get("lora_alpha", 1) / own.get("r", 1)

    return scale
