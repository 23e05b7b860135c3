"""Weight files of diffusers and transformers folders: safetensors, whole or sharded."""

import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from unclip_jax.interop.tensor_stream import (
    is_float,
    stored_bytes,
    stored_dtype,
    write_tensors,
)

SHARD_BYTES = 5 * 10**9
# the file stems of diffusers' modules and of transformers'
STEMS = ("diffusion_pytorch_model", "model")


def read_weights(
    folder: str | os.PathLike, variant: str | None = None
) -> dict[str, np.ndarray]:
    """All tensors of a module's folder, as float32 (integers as they are).

    Args:
      folder: holds `<stem>.safetensors`, or shards and `<stem>.safetensors.index.json`.
      variant: "fp16" reads `<stem>.fp16.safetensors`; None takes the plain files, or
        the only variant there is.

    Raises:
      FileNotFoundError: no such files, or a shard that the index names is missing.
      ValueError: a file that is not safetensors, or several variants to choose from.
    """
    folder = pathlib.Path(folder)
    tensors = {}
    for file in _files(folder, variant):
        tensors.update(read_file(file))
    return tensors


def write_weights(
    folder: str | os.PathLike,
    tensors: Mapping[str, Any],
    stem: str,
    dtype: str = "float32",
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Writes tensors as one safetensors file, or as shards with their index.

    No more than one of them is held in memory.

    Args:
      folder: made if it does not exist.
      tensors: name -> array, or Lazy; floating ones are stored as `dtype`.
      stem: "diffusion_pytorch_model" or "model".
      dtype: "float32", "float16" or "bfloat16".
      shard_bytes: the most a file holds, unless a single tensor is larger.
    """
    stored_dtype(dtype, np.float32)  # refuses one that is not known
    shards: list[dict[str, Any]] = [{}]
    size = total = 0
    for name, array in tensors.items():
        count = stored_bytes(array, dtype)
        if shards[-1] and size + count > shard_bytes:
            shards.append({})
            size = 0
        shards[-1][name] = array
        size += count
        total += count
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    metadata = {"format": "pt"}  # what both libraries expect to find
    where = {}
    for i, shard in enumerate(shards, 1):
        file = f"{stem}.safetensors"
        if len(shards) > 1:
            file = f"{stem}-{i:05d}-of-{len(shards):05d}.safetensors"
        write_tensors(folder / file, shard, metadata, dtype)
        where.update(dict.fromkeys(shard, file))
    if len(shards) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": where}
        text = json.dumps(index, indent=2, sort_keys=True) + "\n"
        (folder / f"{stem}.safetensors.index.json").write_text(text)


def _files(folder: pathlib.Path, variant: str | None) -> list[pathlib.Path]:
    for stem in STEMS:
        middle = f".{variant}" if variant else ""
        index = folder / f"{stem}.safetensors.index{middle}.json"
        if index.is_file():
            names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
            missing = [name for name in names if not (folder / name).is_file()]
            if missing:
                raise FileNotFoundError(
                    f"{index} names {', '.join(missing)}, which {folder} lacks: "
                    "download the folder again"
                )
            return [folder / name for name in names]
        file = folder / f"{stem}{middle}.safetensors"
        if file.is_file():
            return [file]
    have = sorted(f.name for f in folder.glob("*")) if folder.is_dir() else []
    others = [name for name in have if name.endswith(".safetensors")]
    if variant is None and len(others) == 1:
        return [folder / others[0]]
    if others:
        raise ValueError(
            f"{folder} has {', '.join(others)}: say which variant to read "
            '(the word before ".safetensors", as "fp16")'
        )
    raise FileNotFoundError(
        f"{folder} has no safetensors weights (it has {', '.join(have) or 'nothing'}); "
        "pickled weights are not read: convert them with the library that wrote them"
    )


def read_file(file: str | os.PathLike) -> dict[str, np.ndarray]:
    """All tensors of one safetensors file, as `read_weights` gives them.

    Raises ValueError when it is no such file, or broken.
    """
    try:
        tensors = safetensors.numpy.load_file(file)
    except (safetensors.SafetensorError, ValueError) as error:
        raise ValueError(
            f"{file} is not a whole safetensors file ({error}): download it again"
        ) from error
    return {
        name: a.astype(np.float32) if is_float(a.dtype) else a
        for name, a in tensors.items()
    }
