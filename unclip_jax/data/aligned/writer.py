"""Writing of aligned arrays: a folder of memory-mapped arrays per split.

A finished folder holds

    manifest.json        what is in it, see `write_split`
    target.npy           float (n, *shape)
    NAME.npy             a condition, (n, *shape); zeros, or -1, where it is missing
    NAME_mask.npy        bool, of conditions that may be missing or have a mask
    keys.npy             a text per example
    statistics.npz       mean and std, float64: of each number of the target, and of
                         each dimension of float conditions; mean_norm of the target

The manifest is written last, so that a folder without one is unfinished; the same
command writes it anew.
"""

import hashlib
import json
import os
import pathlib
from typing import Any

import numpy as np

from unclip_jax import config as config_lib
from unclip_jax import files
from unclip_jax.data.aligned.alignment import Alignment, Column, chunks
from unclip_jax.data.aligned.config import AlignConfig
from unclip_jax.data.aligned.tables import files_of

FORMAT, VERSION = "unclip_jax-arrays", 1
MANIFEST, STATISTICS, KEYS, TARGET = "manifest.json", "statistics.npz", "keys", "target"
MASK = "_mask"  # as in models/conditions.py


class Moments:
    """Mean and standard deviation of numbers that come in parts (Chan et al. 1979)."""

    def __init__(self, shape: tuple[int, ...]):
        """Of nothing yet; `shape` is one row's."""
        self.count, self.mean = 0, np.zeros(shape)
        self._squares = np.zeros(shape)

    def add(self, rows: np.ndarray) -> None:
        """Takes in rows (n, *shape), in float64."""
        if not len(rows):
            return
        rows = rows.astype(np.float64)
        mean = rows.mean(0)
        squares = np.square(rows - mean).sum(0)
        total = self.count + len(rows)
        delta = mean - self.mean
        self._squares += squares + delta**2 * self.count * len(rows) / total
        self.mean = self.mean + delta * len(rows) / total
        self.count = total

    @property
    def std(self) -> np.ndarray:
        """Of the population: divided by the count."""
        return np.sqrt(self._squares / max(self.count, 1))


def write(config: AlignConfig, alignment: Alignment, workdir, say=print) -> None:
    """Writes every split into workdir/NAME.

    Raises FileExistsError for a folder that holds something else.
    """
    sources = _sources(config)
    encoder = config.encoder or f"sha256 {_hash(alignment.columns[0].array)}"
    plan = {
        "format": FORMAT,
        "version": VERSION,
        "config": config_lib.to_plain(config),
        "sources": sources,
        "encoder": encoder,
        "left_out": alignment.left_out,
    }
    plan = json.loads(json.dumps(plan))
    for name, rows in alignment.splits.items():
        folder = pathlib.Path(workdir) / name
        if _is_finished(folder, plan):
            say(f"{folder}: finished already")
            continue
        manifest = write_split(folder, alignment, rows, plan)
        absent = ", ".join(f"{n} of {k}" for k, n in manifest["missing"].items() if n)
        say(
            f"{folder}: {len(rows):,} examples"
            + (f", missing: {absent}" if absent else "")
        )


def write_split(folder: pathlib.Path, alignment: Alignment, rows, plan) -> dict:
    """Writes some rows of the target and what belongs to them; returns the manifest.

    It has, besides the plan, "num_examples", "arrays" ({name: {"dtype", "shape",
    "sha256"}}), "conditions" ({name: fields of models.conditions.Condition}),
    "missing" ({name: how many examples lack it}) and "fingerprint".
    """
    folder.mkdir(parents=True, exist_ok=True)
    manifest: dict[str, Any] = {**plan, "num_examples": len(rows), "arrays": {}}
    manifest |= {"conditions": {}, "missing": {}}
    statistics: dict[str, Any] = {}
    for column in alignment.columns:
        there = column.present[rows]
        moments, norms = _write_column(folder, column, rows, there, manifest)
        if column.options is not None:
            manifest["conditions"][column.name] = _describe(column, moments)
            manifest["missing"][column.name] = int((~there).sum())
        if moments is not None:
            prefix = "" if column.options is None else f"{column.name}/"
            statistics[f"{prefix}mean"] = moments.mean
            statistics[f"{prefix}std"] = moments.std
        if norms is not None and column.options is None:
            statistics["mean_norm"] = norms.mean
    keys = alignment.keys[rows]
    files.atomic_write(folder / f"{KEYS}.npy", lambda f: np.save(f, keys))
    manifest["keys_sha256"] = files.sha256_json(keys.tolist())
    files.atomic_write(folder / STATISTICS, lambda f: np.savez(f, **statistics))
    identity = [manifest[k] for k in ("arrays", "conditions", "keys_sha256", "encoder")]
    manifest["fingerprint"] = files.sha256_json(identity)
    text = json.dumps(manifest, indent=1, ensure_ascii=False) + "\n"
    files.atomic_write(folder / MANIFEST, text)
    return manifest


def stored_dtype(dtype: np.dtype) -> str:
    """What an array is stored as: float16, float32 or int32."""
    if dtype.kind == "f":
        return "float16" if dtype == np.float16 else "float32"
    return "int32"


def _write_column(folder, column: Column, rows, there, manifest):
    """(Moments of its floats or None, Moments of a target's norms or None)."""
    shape, dtype = column.array.shape[1:], stored_dtype(column.array.dtype)
    moments = norms = None
    if column.options is None:
        moments, norms = Moments(shape), Moments(())
    elif dtype != "int32":
        moments = Moments(shape[-1:])

    masked = column.options is not None and (
        column.options.missing or column.mask is not None
    )
    mask = None
    if masked:
        mask = np.ones((len(rows), *_mask_shape(column)), bool)
        if column.mask is not None:
            at = column.rows[rows]
            mask = np.asarray(column.mask[at.clip(0)]).astype(bool)
        mask &= there.reshape(-1, *(1,) * (mask.ndim - 1))

    def parts():
        source = column.rows[rows].clip(0)
        for part, values in chunks(column.array, source):
            values, here = values.astype(dtype), there[part]
            if dtype == "int32":
                values[~here] = -1
                values[values < 0] = -1
            else:
                if mask is not None and mask.ndim == 2:
                    here = mask[part]
                values[~here] = 0
                if moments is not None:
                    own = values[here] if column.options is not None else values
                    moments.add(own.reshape(-1, *moments.mean.shape))
                if norms is not None:
                    norms.add(
                        np.linalg.norm(values.astype(np.float64), axis=-1).ravel()
                    )
            yield values

    manifest["arrays"][column.name] = _write_array(
        folder / f"{column.name}.npy", (len(rows), *shape), dtype, parts()
    )
    if mask is not None and column.kind not in ("tokens", "class"):
        manifest["arrays"][column.name + MASK] = _write_array(
            folder / f"{column.name}{MASK}.npy", mask.shape, "bool", [mask]
        )
    return moments, norms


def _mask_shape(column) -> tuple[int, ...]:
    return column.array.shape[1:-1] if column.kind in ("sequence", "repeats") else ()


def _describe(column: Column, moments) -> dict[str, Any]:
    masked = bool(column.options and column.options.missing) or column.mask is not None
    return {
        "kind": column.kind,
        "shape": list(column.array.shape[1:]),
        "dtype": stored_dtype(column.array.dtype),
        "size": column.size,
        "masked": masked and moments is not None,
    }


def _write_array(path, shape, dtype, parts) -> dict[str, Any]:
    """Writes a .npy part by part, whole or absent; its entry in the manifest."""
    digest = hashlib.sha256()
    with files.atomic_path(path) as partial:
        with open(partial, "wb") as file:
            header = {
                "descr": np.lib.format.dtype_to_descr(
                    np.dtype(dtype).newbyteorder("<")
                ),
                "fortran_order": False,
                "shape": tuple(shape),
            }
            np.lib.format.write_array_header_1_0(file, header)
            for part in parts:
                data = np.ascontiguousarray(part, np.dtype(dtype).newbyteorder("<"))
                digest.update(data.data)
                file.write(data.data)
    return {"dtype": dtype, "shape": list(shape[1:]), "sha256": digest.hexdigest()}


def _hash(array) -> str:
    digest = hashlib.sha256(f"{array.shape} {array.dtype.str}".encode())
    for _, values in chunks(array, np.arange(len(array))):
        digest.update(np.ascontiguousarray(values).data)
    return digest.hexdigest()


def _sources(config) -> dict[str, list[int]]:
    """{file: [bytes, time of change]} of what the config names."""
    names = [config.target.path, config.target.keys, config.groups, config.split_names]
    for options in config.condition_options().values():
        names += [options.path, options.keys, options.mask]
    found = {}
    for name in filter(None, names):
        for path in files_of(name):
            stat = os.stat(path)
            found[path] = [stat.st_size, stat.st_mtime_ns]
    return found


def _is_finished(folder, plan) -> bool:
    file = folder / MANIFEST
    if not file.is_file():
        known = (".npy", ".npz", ".partial")
        there = list(folder.iterdir()) if folder.is_dir() else []
        if other := [path.name for path in there if not path.name.endswith(known)]:
            raise FileExistsError(
                f"{str(folder)!r} holds {other[0]!r} and no aligned arrays; choose "
                "another folder"
            )
        return False
    found = files.read_json(file, "")
    if any(found.get(name) != value for name, value in plan.items()):
        raise FileExistsError(
            f"{str(folder)!r} holds arrays of other files or another config; choose "
            "another folder or remove it"
        )
    return True
