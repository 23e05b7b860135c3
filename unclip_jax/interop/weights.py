"""Files of named tensors: safetensors and torch read, safetensors written.

Writing and comparing hold one tensor at a time; the safetensors library's own writer
wants all of them at once. The format: the length of the header as a little-endian
uint64, the header (json: dtype, shape and offsets of each tensor), then the data.
"""

import hashlib
import json
import os
import pathlib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import ml_dtypes
import numpy as np
import safetensors
import safetensors.numpy

from unclip_jax.errors import UsageError
from unclip_jax.files import atomic_path, write_json

SHARD_BYTES = 5 * 10**9
SAFE_TORCH = (2, 6)  # the first whose weights_only executes nothing
# the file stems of diffusers' modules and of transformers'
STEMS = ("diffusion_pytorch_model", "model")
FLOATS = {
    "float32": np.dtype(np.float32),
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
}
NAMES = {  # dtype -> as the format calls it
    "float64": "F64",
    "float32": "F32",
    "float16": "F16",
    "bfloat16": "BF16",
    "int64": "I64",
    "int32": "I32",
    "int16": "I16",
    "int8": "I8",
    "uint64": "U64",
    "uint32": "U32",
    "uint16": "U16",
    "uint8": "U8",
    "bool": "BOOL",
}


def read_weights(
    folder: str | os.PathLike, variant: str | None = None
) -> dict[str, np.ndarray]:
    """All tensors of a module's folder, as float32 (integers as they are).

    Args:
      folder: holds `<stem>.safetensors`, or shards `<stem>-00001-of-00002.safetensors`.
      variant: "fp16" reads `<stem>.fp16.safetensors`; None takes the plain files, or
        the only variant there is.

    Raises:
      FileNotFoundError: no such files, or a shard that the index names is missing.
      UsageError: a file that is not safetensors, or several variants to choose from.
    """
    tensors = {}
    for file in _files(pathlib.Path(folder), variant):
        tensors |= to_float32(read_tensors(file))
    return tensors


def read_tensors(
    path: str | os.PathLike,
    expected: str = "safetensors",
    states: Sequence[str] = ("state_dict",),
    skip_objects: bool = False,
) -> dict[str, np.ndarray]:
    """All tensors of a .safetensors or torch file, by name.

    Args:
      path: the file; anything but .safetensors is read by torch, which must then be
        installed, with `weights_only`: nothing in it is executed.
      expected: what the file should be, for messages.
      states: of a training checkpoint the first of these is read, without the "module."
        of its names.
      skip_objects: whether a torch file may hold other objects (an optimizer's state, a
        version), which are passed over: neither imported nor made.

    Raises:
      FileNotFoundError: no such file.
      UsageError: a broken file, or one with other things than tensors in it.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{str(path)!r} does not exist; expected {expected}")
    if path.suffix != ".safetensors":
        return _read_torch(path, expected, states, skip_objects)
    try:
        return safetensors.numpy.load_file(path)
    except (safetensors.SafetensorError, ValueError) as error:
        raise UsageError(
            f"{path} is not a whole safetensors file ({error}): download it again"
        ) from error


def to_float32(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Tensors with all floats as float32, integers as they are."""
    return {
        k: a.astype(np.float32) if is_float(a.dtype) else a for k, a in tensors.items()
    }


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
        write_json(folder / f"{stem}.safetensors.index.json", index)


def write_tensors(
    path: str | os.PathLike,
    tensors: Mapping[str, Any],
    metadata: Mapping[str, str],
    dtype: str | None = None,
) -> None:
    """Writes a safetensors file, holding one tensor in memory.

    Args:
      path: the file.
      tensors: name -> array, or Lazy.
      metadata: of the header.
      dtype: that floating tensors are stored as: "float32", "float16", "bfloat16"; None
        leaves them as they are.

    Raises UsageError for a number that is too large for `dtype`; nothing is written.
    """
    dtypes = {name: stored_dtype(dtype, t.dtype) for name, t in tensors.items()}
    # wide ones first, as the library does: so each starts where its dtype can be read
    names = sorted(tensors, key=lambda name: (-dtypes[name].itemsize, name))
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    offsets, end = {}, 0
    for name in names:
        start, end = end, end + stored_bytes(tensors[name], dtype)
        offsets[name] = start
        header[name] = {
            "dtype": NAMES[dtypes[name].name],
            "shape": list(tensors[name].shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    first = 8 + len(text)
    with atomic_path(path) as partial, open(partial, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in sorted(names, key=lambda n: getattr(tensors[n], "order", 0)):
            array = _stored(name, tensors[name], dtypes[name])
            if array.shape != tuple(tensors[name].shape):
                raise UsageError(f"{name} has shape {array.shape}, not as announced")
            file.seek(first + offsets[name])
            file.write(array.reshape(-1).view(np.uint8).data)  # bfloat16 has no buffer
        file.truncate(first + end)


def diff_tensors(
    path: str | os.PathLike, tensors: Mapping[str, Any], dtype: str | None
) -> list[str]:
    """What in a safetensors file is not what `write_tensors` writes, one line each."""
    lines = []
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            there = set(file.keys())
            lines += [f"{name} is unexpected" for name in sorted(there - set(tensors))]
            lines += [f"{name} is missing" for name in sorted(set(tensors) - there)]
            for name in (name for name in tensors if name in there):
                tensor = tensors[name]
                expected = _stored(name, tensor, stored_dtype(dtype, tensor.dtype))
                if not same(file.get_tensor(name), expected):
                    lines.append(f"{name} differs")
    except safetensors.SafetensorError as error:
        lines.append(f"not a whole safetensors file: {error}")
    return lines


def same(a: np.ndarray, b: np.ndarray) -> bool:
    """Whether dtypes, shapes and bits are equal."""
    if (a.dtype, a.shape) != (b.dtype, b.shape):
        return False
    a, b = (np.ascontiguousarray(x).reshape(-1).view(np.uint8) for x in (a, b))
    return np.array_equal(a, b)


def hash_tensors(header: str, named: Iterable[tuple[str, np.ndarray]]) -> str:
    """sha256 over a text and tensors as little-endian float32, by name."""
    digest = hashlib.sha256(header.encode())
    for name, array in sorted(named):
        digest.update(f"\n{name} {tuple(array.shape)}\n".encode())
        digest.update(np.asarray(array, "<f4", order="C").tobytes())
    return digest.hexdigest()


def is_float(dtype) -> bool:
    """Whether numbers of this dtype may be stored as another float."""
    # numpy does not count bfloat16 among its floating types
    return np.issubdtype(dtype, np.floating) or dtype == ml_dtypes.bfloat16


def stored_dtype(name: str | None, dtype) -> np.dtype:
    """The dtype in the file: floats become `name`; None leaves all as they are.

    Raises UsageError for an unknown `name`.
    """
    if name is not None and name not in FLOATS:
        raise UsageError(f"dtype {name!r}: expected one of {', '.join(FLOATS)}")
    return FLOATS[name] if name and is_float(dtype) else np.dtype(dtype)


def stored_bytes(tensor, name: str | None) -> int:
    """How many bytes a tensor, or Lazy, takes in the file."""
    count = int(np.prod(tensor.shape))
    return count * stored_dtype(name, tensor.dtype).itemsize


def _stored(name, tensor, dtype) -> np.ndarray:
    """The tensor as the file holds it; UsageError for what overflows."""
    array = np.asarray(tensor)
    with np.errstate(over="ignore"):
        stored = np.asarray(array, dtype, order="C")
    if array.dtype != stored.dtype and is_float(stored.dtype):
        lost = np.isfinite(array.astype(np.float32)) & ~np.isfinite(
            stored.astype(np.float32)
        )
        if lost.any():
            raise UsageError(
                f"{name} holds {array[lost].flat[0]:.6g}, which is too large for "
                f"{stored.dtype}: take bfloat16 or float32"
            )
    return stored


class _Skipped:
    """Stands for an object of a torch file that is not wanted."""

    def __init__(self, *args, **kwargs):
        """Takes and keeps nothing."""

    def __setstate__(self, state):
        """Keeps nothing."""


def _read_torch(path, expected, states, skip_objects):
    try:
        import torch
    except ImportError:
        raise UsageError(
            f"reading {str(path)!r} needs PyTorch (its CPU build will do): "
            "pip install torch, or convert the file to safetensors"
        ) from None
    if tuple(map(int, torch.__version__.split(".")[:2])) < SAFE_TORCH:
        raise UsageError(
            f"PyTorch {torch.__version__} can be made to execute what is in "
            f"{str(path)!r}, weights_only or not (CVE-2025-32434): pip install "
            "'torch>=2.6', or convert the file to safetensors"
        )
    try:
        skipped: list[Any] = []
        if skip_objects:
            unknown = torch.serialization.get_unsafe_globals_in_checkpoint(path)
            skipped = [(_Skipped, name) for name in unknown]
        with torch.serialization.safe_globals(skipped):
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # pickle's and zip's, and RuntimeError for TorchScript
        raise UsageError(
            f"{str(path)!r} is not a PyTorch file of plain tensors: it is broken or "
            f"holds more than tensors ({str(error).splitlines()[0]}); expected "
            f"{expected}"
        ) from None
    if isinstance(state, dict):
        state = next((state[k] for k in states if k in state), state)
    if not isinstance(state, dict):
        raise UsageError(
            f"{str(path)!r} holds a {type(state).__name__}, no dict of tensors"
        )
    tensors = {k: t for k, t in state.items() if isinstance(t, torch.Tensor)}
    return {
        name.removeprefix("module."): (
            tensor.float() if tensor.dtype == torch.bfloat16 else tensor
        ).numpy()
        for name, tensor in tensors.items()
    }


def is_there(folder: str | os.PathLike) -> bool:
    """Whether a module's folder has safetensors of its own, whole or in shards."""
    return bool(_variants(pathlib.Path(folder)))


def _files(folder: pathlib.Path, variant: str | None) -> list[pathlib.Path]:
    """The files of a variant; of None the plain ones, or the only variant there is."""
    variants = _variants(folder)
    name = variant or ""
    if variant is None and "" not in variants and len(variants) == 1:
        (name,) = variants
    if name in variants:
        return variants[name]
    if variants:
        have = ", ".join(repr(v) if v else "the plain one" for v in sorted(variants))
        raise UsageError(
            f"{folder} has weights of the variants {have}"
            + (f", not {variant!r}" if variant else "")
            + ": keep the files of one of them in the folder"
        )
    have = sorted(f.name for f in folder.glob("*")) if folder.is_dir() else []
    raise FileNotFoundError(
        f"{folder} has no safetensors weights (it has {', '.join(have) or 'nothing'}); "
        "pickled weights are not read: convert them with the library that wrote them"
    )


def _variants(folder: pathlib.Path) -> dict[str, list[pathlib.Path]]:
    """Variant ("" is the plain one) -> its files, whole if there is one, or shards.

    Raises FileNotFoundError for shards of which some are missing.
    """
    variants: dict[str, list[pathlib.Path]] = {}
    names = sorted(f.name for f in folder.glob("*")) if folder.is_dir() else []
    for stem in STEMS:
        whole = re.compile(rf"{stem}(?:\.([^.]+))?\.safetensors")
        # model.fp16-00001-of-00002.safetensors, and older model-00001-of-00002.fp16
        shard = re.compile(
            rf"{stem}(?:\.([^.]+))?-(\d+)-of-(\d+)(?:\.([^.]+))?\.safetensors"
        )
        shards: dict[tuple[str, int], dict[int, str]] = {}  # (variant, how many)
        for name in names:
            if match := shard.fullmatch(name):
                key = match[1] or match[4] or "", int(match[3])
                shards.setdefault(key, {})[int(match[2])] = name
            elif match := whole.fullmatch(name):
                variants.setdefault(match[1] or "", [folder / name])
        for (variant, count), parts in shards.items():
            absent = [i for i in range(1, count + 1) if i not in parts]
            if variant in variants:
                continue
            if absent:
                number, name = next(iter(parts.items()))
                names = [name.replace(f"{number:05}-of", f"{i:05}-of") for i in absent]
                raise FileNotFoundError(
                    f"{folder} has {name}, but not {', '.join(names)}: download the "
                    "folder again"
                )
            variants[variant] = [folder / parts[i] for i in sorted(parts)]
    return variants
