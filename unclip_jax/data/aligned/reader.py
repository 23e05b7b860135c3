"""A folder of aligned arrays as a source: memory-mapped, read row by row."""

import hashlib
import os
import pathlib
import warnings
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from unclip_jax import files
from unclip_jax.data.aligned.writer import (
    FORMAT,
    KEYS,
    MANIFEST,
    STATISTICS,
    TARGET,
    VERSION,
)
from unclip_jax.errors import UsageError

LIMIT = 4 << 30  # bytes; larger files are not hashed when they are opened
REMEDY = "make it with `python -m unclip_jax.align`"


class AlignedArrays:
    """Targets and conditions that `python -m unclip_jax.align` wrote.

    Attributes:
      path: their folder.
      manifest: what is in them, see writer.py.
      arrays: {name: (dtype, shape)} of what each example holds.
      statistics: of target and conditions.
      image_size: None, there are no images.
      fingerprint: another for other examples.
    """

    image_size = None

    def __init__(self, path: str | os.PathLike):
        """Opens the arrays.

        Raises:
          FileNotFoundError: no such folder, or an unfinished one.
          UsageError: another format, a file that is not the one that was written.
        """
        self.path = pathlib.Path(path)
        file = self.path / MANIFEST
        if not self.path.is_dir():
            raise FileNotFoundError(
                f"data folder {str(path)!r} does not exist; {REMEDY}"
            )
        self.manifest = files.read_json(
            file, f"{str(path)!r} holds no finished arrays: no {MANIFEST}; {REMEDY}"
        )
        found = None
        if isinstance(self.manifest, dict):
            found = self.manifest.get("format"), self.manifest.get("version")
        if found != (FORMAT, VERSION):
            raise UsageError(
                f"{file} is {found}, this code reads {(FORMAT, VERSION)}; {REMEDY}"
            )
        self.fingerprint = self.manifest["fingerprint"]
        self.arrays = {
            name: (entry["dtype"], tuple(entry["shape"]))
            for name, entry in self.manifest["arrays"].items()
        }
        self._maps = {name: self._open(name) for name in self.arrays}
        try:
            with np.load(self.path / STATISTICS) as arrays:
                self.statistics = dict(arrays)
            self.keys = np.load(self.path / f"{KEYS}.npy")
        except files.NUMPY_DAMAGE as error:
            raise UsageError(f"{self.path} is damaged ({error}); {REMEDY}") from error

    def __len__(self) -> int:
        return self.manifest["num_examples"]

    def __getitem__(self, i: int) -> dict[str, Any]:
        """Returns {"key", and every array} of an example. Raises IndexError."""
        if not 0 <= i < len(self):
            raise IndexError(f"example {i} of {len(self)}")
        row = {name: np.array(array[i]) for name, array in self._maps.items()}
        return {"key": str(self.keys[i]), **row}

    def captions(self, n: int | None = None) -> list[str]:
        """Returns the keys of the first n examples: there are no captions."""
        return self.keys[:n].tolist()

    def fetch(self, indices: Sequence[int] | np.ndarray) -> list[Any]:
        """Reads nothing: pages come when they are looked at."""
        return [None] * len(indices)

    def read_batch(
        self,
        indices: Sequence[int] | np.ndarray,
        names: Iterable[str],
        caption_indices=None,
        positions=None,
        fetched=None,
    ) -> list[dict[str, np.ndarray]]:
        """Returns the named arrays of several examples, see `BatchReader`."""
        del caption_indices, positions, fetched  # neither captions nor images
        indices = np.asarray(indices)
        columns = {name: np.asarray(self._maps[name][indices]) for name in names}
        return [{n: a[row] for n, a in columns.items()} for row in range(len(indices))]

    def read(self, name: str) -> np.ndarray:
        """Returns all of an array, memory-mapped: (n, ...)."""
        return self._maps[name]

    def about_target(self) -> dict[str, Any]:
        """Returns the fields of DataSpec that say what target and conditions are."""
        dtype, shape = self.arrays[TARGET]
        conditions = self.manifest["conditions"]
        statistics = {
            name: {k: self.statistics[f"{name}/{k}"] for k in ("mean", "std")}
            for name in conditions
            if f"{name}/mean" in self.statistics
        }
        return {
            "target": TARGET,
            "target_shape": shape,
            "target_dtype": dtype,
            "embed_dim": shape[-1],
            "embedding_convention": "raw",
            "embedding_mean": self.statistics["mean"],
            "embedding_std": self.statistics["std"],
            "clip_fingerprint": self.manifest["encoder"],
            "conditions": conditions,
            "absent_conditions": tuple(
                name
                for name, count in self.manifest["missing"].items()
                if count == len(self)
            ),
            "condition_statistics": lambda: statistics,
        }

    def _open(self, name):
        file = self.path / f"{name}.npy"
        try:
            array = np.load(file, mmap_mode="r")
        except FileNotFoundError:
            raise FileNotFoundError(f"{file} is missing; {REMEDY} again") from None
        except files.NUMPY_DAMAGE as error:
            raise UsageError(f"{file} is damaged ({error}); {REMEDY} again") from error
        dtype, shape = self.arrays[name]
        expected = (len(self), *shape), dtype
        if (array.shape, array.dtype.name) != expected:
            raise UsageError(
                f"{file} is {array.dtype} {array.shape}, {MANIFEST} says {expected}; "
                f"{REMEDY} again"
            )
        if array.nbytes > LIMIT:
            warnings.warn(
                f"{file} ({array.nbytes / 2**30:.0f} GiB) is not compared to its hash",
                stacklevel=4,
            )
        elif _digest(array) != self.manifest["arrays"][name]["sha256"]:
            raise UsageError(
                f"{file} holds other numbers than were written, in the same shape; "
                f"copy it again, or {REMEDY} in another folder"
            )
        return array


def _digest(array: np.ndarray) -> str:
    return hashlib.sha256(array.reshape(-1).view(np.uint8).data).hexdigest()
