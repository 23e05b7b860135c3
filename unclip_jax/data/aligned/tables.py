"""Arrays of files, one row per example: numpy, parquet, HDF5, TFDS, text and tars."""

import glob
import io
import pathlib
import re
import tarfile
from typing import Any

import numpy as np

from unclip_jax import files
from unclip_jax.data.aligned.tfds_tables import is_tfds, read_tfds
from unclip_jax.errors import UsageError

SUFFIXES = (".npy", ".npz", ".parquet", ".h5", ".hdf5", ".tar", ".txt")
KEY = "__key__"  # of tars: the samples' names, webdataset's own word


class HDF5Rows:
    """An array of an HDF5 file that is read by rows, in any order, not as a whole."""

    def __init__(self, dataset):
        """Of an open h5py.Dataset."""
        self._dataset = dataset
        self.shape, self.dtype = dataset.shape, dataset.dtype
        self.ndim, self.itemsize = dataset.ndim, dataset.dtype.itemsize

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows) -> np.ndarray:
        """Returns some rows; h5py wants them ascending and once each."""
        if isinstance(rows, slice):
            return self._dataset[rows]
        wanted, places = np.unique(rows, return_inverse=True)
        if len(wanted) and wanted[-1] - wanted[0] < 2 * len(wanted):
            block = self._dataset[wanted[0] : wanted[-1] + 1]  # far faster than a list
            return block[np.asarray(rows) - wanted[0]]
        return self._dataset[wanted][places]

    def __array__(self, dtype=None, copy=None):
        return np.asarray(self._dataset[()], dtype)


def open_table(name: str, where: str) -> np.ndarray:
    """The array that a file holds, rows first.

    A .npy is memory-mapped and HDF5 read by rows; the others are read into memory.

    Args:
      name: "file.npy"; "file.npz:NAME", of one array NAME may be left out;
        "file.parquet:COLUMN", lists of numbers or of lists of numbers, lists of
        integers of other lengths are filled up with -1; "file.h5:NAME"; "*.tar:NAME",
        of samples in webdataset's form, "KEY.NAME" a .npy each, or with __key__ for
        NAME their keys; "FOLDER:SPLIT/FIELD" of a version that TFDS prepared;
        "file.txt", a text per line.
      where: whose it is, for messages.

    Raises:
      FileNotFoundError: no such file.
      UsageError: another kind of file, an array or column that is not there, or that
        is no array of numbers or texts.
    """
    path, member = _split(name, where)
    if path.suffix == ".tar":
        return _read_tars(path, member, where)
    if not path.is_file() and not is_tfds(path):
        raise FileNotFoundError(f"{where}: {str(path)!r} does not exist")
    array: Any
    try:
        if path.is_dir():
            array = read_tfds(path, member, where)
        elif path.suffix == ".npy":
            array = np.load(path, mmap_mode="r")
        elif path.suffix == ".npz":
            array = _read_npz(path, member, where)
        elif path.suffix in (".h5", ".hdf5"):
            array = _open_hdf5(path, member, where)
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
    return np.asarray(array).astype(str)


def files_of(name: str) -> list[str]:
    """The files that a name as of `open_table` stands for."""
    path, _ = _split(name, "")
    if path.is_dir():
        return sorted(str(file) for file in path.iterdir())
    return sorted(glob.glob(str(path))) if path.suffix == ".tar" else [str(path)]


def _split(name, where):
    match = re.fullmatch(r"(.+\.(?:npz|parquet|h5|hdf5|tar)):(.+)", str(name))
    folder, _, field = str(name).rpartition(":")
    if folder and is_tfds(pathlib.Path(folder)):
        return pathlib.Path(folder), field
    path = pathlib.Path(match[1] if match else name)
    if path.suffix not in SUFFIXES:
        raise UsageError(
            f"{where}: {name!r}: expected one of {', '.join(SUFFIXES)}, or "
            "FOLDER:SPLIT/FIELD of a folder with TFDS's dataset_info.json"
        )
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


def _open_hdf5(path, member, where):
    try:
        import h5py
    except ImportError:
        raise UsageError(f"{where}: reading {path} needs pip install h5py") from None
    names: list[str] = []
    file = h5py.File(path, "r")  # stays open as long as its rows are wanted
    kind = h5py.Dataset
    file.visititems(lambda n, item: names.append(n) if isinstance(item, kind) else None)
    dataset = file[_pick(member.lstrip("/"), names, path, where)]
    if h5py.check_string_dtype(dataset.dtype):
        return dataset.asstr()[()].astype(str)
    return HDF5Rows(dataset) if dataset.ndim else dataset[()]


def _read_tars(path, member, where):
    """Rows of all shards, in the order of their names."""
    shards = sorted(glob.glob(str(path)))
    if not shards:
        raise FileNotFoundError(f"{where}: no file is called {str(path)!r}")
    keys, rows, names = [], [], set()
    member = member.removesuffix(".npy")
    for shard in shards:
        try:
            with tarfile.open(shard) as tar:
                for entry in tar:
                    key, _, name = entry.name.rpartition("/")[2].partition(".")
                    if not entry.isfile() or not name.endswith(".npy"):
                        continue
                    name = name.removesuffix(".npy")
                    names.add(name)
                    if name == member or (member == KEY and key not in keys[-1:]):
                        keys.append(key)
                    if name == member:
                        data = tar.extractfile(entry)
                        assert data is not None  # of a plain file it is not
                        rows.append(np.load(io.BytesIO(data.read())))
        except (tarfile.TarError, *files.NUMPY_DAMAGE) as error:
            raise UsageError(f"{where}: {shard} cannot be read: {error}") from error
    if member != KEY and not rows:
        _pick(member, [*sorted(names), KEY], path, where)
    if member == KEY:
        return np.array(keys)
    if len({row.shape for row in rows}) > 1:
        other = next(i for i, row in enumerate(rows) if row.shape != rows[0].shape)
        raise UsageError(
            f"{where}: {path}:{member} has rows of other shapes: {keys[0]!r} "
            f"{rows[0].shape}, {keys[other]!r} {rows[other].shape}"
        )
    return np.stack(rows)


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
