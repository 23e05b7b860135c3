"""safetensors files, written and compared one tensor at a time.

The library's own writer wants all tensors at once. The format: the length of the header
as a little-endian uint64, the header (json: dtype, shape and offsets of each tensor),
then the data.
"""

import json
import os
from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np
import safetensors

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


def is_float(dtype) -> bool:
    """Whether numbers of this dtype may be stored as another float."""
    # numpy does not count bfloat16 among its floating types
    return np.issubdtype(dtype, np.floating) or dtype == ml_dtypes.bfloat16


def stored_dtype(wanted: str | None, dtype) -> np.dtype:
    """The dtype in the file: floats become `wanted`; None leaves all as they are.

    Raises ValueError for an unknown `wanted`.
    """
    if wanted is not None and wanted not in FLOATS:
        raise ValueError(f"dtype {wanted!r}: expected one of {', '.join(FLOATS)}")
    return FLOATS[wanted] if wanted and is_float(dtype) else np.dtype(dtype)


def stored_bytes(tensor, wanted: str | None) -> int:
    """How many bytes a tensor, or Lazy, takes in the file."""
    count = int(np.prod(tensor.shape))
    return count * stored_dtype(wanted, tensor.dtype).itemsize


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
    """
    dtypes = {name: stored_dtype(dtype, t.dtype) for name, t in tensors.items()}
    # wide ones first, as the library does: so each starts where its dtype can be read
    names = sorted(tensors, key=lambda name: (-dtypes[name].itemsize, name))
    header, offsets, end = {"__metadata__": dict(metadata)}, {}, 0
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
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in sorted(names, key=lambda n: getattr(tensors[n], "order", 0)):
            array = np.asarray(tensors[name], dtypes[name], order="C")
            if array.shape != tuple(tensors[name].shape):
                raise ValueError(f"{name} has shape {array.shape}, not as announced")
            file.seek(first + offsets[name])
            file.write(array.reshape(-1).view(np.uint8))  # bfloat16 has no buffer
        file.truncate(first + end)


def differing(
    path: str | os.PathLike, tensors: Mapping[str, Any], dtype: str | None
) -> list[str]:
    """What in a safetensors file is not what `write_tensors` writes, one line each."""
    lines = []
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            there = set(file.keys())
            lines += [
                f"{name} is unexpected" for name in sorted(there - tensors.keys())
            ]
            lines += [f"{name} is missing" for name in sorted(tensors.keys() - there)]
            for name, tensor in tensors.items():
                if name not in there:
                    continue
                found = file.get_tensor(name)
                wanted = np.asarray(tensor, stored_dtype(dtype, tensor.dtype))
                if not same(found, wanted):
                    lines.append(f"{name} differs")
    except safetensors.SafetensorError as error:
        lines.append(f"not a whole safetensors file: {error}")
    return lines


def same(a: np.ndarray, b: np.ndarray) -> bool:
    """Equal dtypes, shapes and bits."""
    if (a.dtype, a.shape) != (b.dtype, b.shape):
        return False
    a, b = (np.ascontiguousarray(x).reshape(-1).view(np.uint8) for x in (a, b))
    return np.array_equal(a, b)
