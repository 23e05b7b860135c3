"""Arrays of files, one row per example: .npy, .npz, .parquet and .txt."""

import pathlib
import re

import numpy as np

from unclip_jax import files
from unclip_jax.errors import UsageError

SUFFIXES = (".npy", ".npz", ".parquet", ".txt")


def open_table(name: str, where: str) -> np.ndarray:
    """The array that a file holds, rows first.

    A .npy is memory-mapped; the others are read into memory.

    Args:
      name: "file.npy"; "file.npz:NAME", of one array NAME may be left out;
        "file.parquet:COLUMN", lists of numbers or of lists of numbers, lists of
        integers of other lengths are filled up with -1; "file.txt", a text per line.
      where: whose it is, for messages.

    Raises:
      FileNotFoundError: no such file.
      UsageError: another kind of file, an array or column that is not there, or that
        is no array of numbers or texts.
    """
    path, member = _split(name, where)
    if not path.is_file():
        raise FileNotFoundError(f"{where}: {str(path)!r} does not exist")
    try:
        if path.suffix == ".npy":
            array = np.load(path, mmap_mode="r")
        elif path.suffix == ".npz":
            array = _read_npz(path, member, where)
        elif path.suffix == ".parquet":
            array = _read_parquet(path, member, where)
        else:
            array = np.array(files.split_lines(files.read_utf8(path)))
    except files.NUMPY_DAMAGE as error:
        if isinstance(error, UsageError):
            raise
        raise UsageError(f"{where}: {path} cannot be read: {error}") from error
    if array.ndim == 0:
        raise UsageError(f"{where}: {name} is a single number, expected a row each")
    if array.dtype.kind not in "fiubUS":
        raise UsageError(
            f"{where}: {name} is of type {array.dtype}; expected numbers or texts "
            "(save bfloat16 as float32)"
        )
    return array


def open_numbers(name: str, where: str) -> np.ndarray:
    """`open_table`, of which each row holds numbers, at least one.

    Raises what `open_table` does, and UsageError for texts, no rows, or rows of width
    0.
    """
    array = open_table(name, where)
    if array.dtype.kind not in "fiub":
        raise UsageError(f"{where}: {name} holds texts, expected numbers")
    if 0 in array.shape:
        raise UsageError(
            f"{where}: {name} is empty, it has the shape {array.shape}: expected rows "
            "of at least one number"
        )
    return array


def open_texts(name: str, where: str) -> np.ndarray:
    """`open_table`, one text per row; numbers become their digits.

    Raises what `open_table` does, and UsageError for rows of several.
    """
    array = open_table(name, where)
    if array.ndim != 1 or array.dtype.kind == "f":
        raise UsageError(
            f"{where}: {name} is {array.dtype} {array.shape}, expected one text or "
            "whole number per row"
        )
    return array.astype(str)


def _split(name, where):
    match = re.fullmatch(r"(.+\.(?:npz|parquet)):(.+)", str(name))
    path = pathlib.Path(match[1] if match else name)
    if path.suffix not in SUFFIXES:
        raise UsageError(f"{where}: {name!r}: expected one of {', '.join(SUFFIXES)}")
    return path, match[2] if match else ""


def _pick(member, names, path, where):
    if not member and len(names) == 1:
        return names[0]
    if member not in names:
        raise UsageError(
            f"{where}: {path} has no array {member!r}; name one of them, as "
            f"{path}:NAME: {', '.join(names)}"
        )
    return member


def _read_npz(path, member, where):
    with np.load(path) as arrays:
        return arrays[_pick(member, list(arrays), path, where)]


def _read_parquet(path, member, where):
    import pyarrow
    import pyarrow.parquet

    try:
        names = pyarrow.parquet.read_schema(path).names
        column = _pick(member, names, path, where)
        values = pyarrow.parquet.read_table(path, columns=[column])[column]
    except pyarrow.ArrowException as error:
        raise UsageError(f"{where}: {path} cannot be read: {error}") from error
    if values.null_count:
        raise UsageError(f"{where}: {path}:{column} has {values.null_count} nulls")
    values, sizes = values.combine_chunks(), []
    while hasattr(values.type, "value_type"):
        lengths = np.asarray(values.value_lengths()) if _is_ragged(values) else None
        if lengths is not None and len(set(lengths.tolist())) > 1:
            if sizes or not pyarrow.types.is_integer(values.type.value_type):
                raise UsageError(
                    f"{where}: rows of {path}:{column} have {lengths.min()} to "
                    f"{lengths.max()} numbers; fill them up to one length, and give a "
                    "mask"
                )
            return _fill_up(values, lengths)
        sizes.append(len(values.flatten()) // max(len(values), 1))
        values = values.flatten()
    array = np.asarray(values.to_numpy(zero_copy_only=False))
    array = array.astype(str) if array.dtype == object else array
    return array.reshape(-1, *sizes) if sizes else array


def _is_ragged(values):
    return not hasattr(values.type, "list_size")


def _fill_up(values, lengths):
    numbers = values.flatten().to_numpy(zero_copy_only=False)
    out = np.full((len(lengths), lengths.max()), -1, np.int64)
    out[np.arange(out.shape[1]) < lengths[:, None]] = numbers
    return out
