"""Checkpoints: Orbax behind one file.

A checkpoint has the items `state` (TrainState without the EMA), `ema` and `meta`
(step, stage, config, export description, data info, versions, checksums). It restores
onto any mesh. Saving is asynchronous; a save that failed raises at the next one.

The checksums are of the values: Orbax keeps none for arrays, and most bits flipped in
its data files would come back as other parameters without a word.
"""

import functools
import gc
import hashlib
import importlib.metadata
import json
import logging
import os
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from jax.sharding import SingleDeviceSharding

from unclip_jax import config as config_lib
from unclip_jax.parallel.sharding import path_name
from unclip_jax.training import run_folder
from unclip_jax.training.state import TrainState

FOLDER = "checkpoints"
LIBRARIES = ("jax", "flax", "optax", "orbax-checkpoint", "numpy")


def make_meta(stage_name: str, config: dict, export: dict, data_info) -> dict:
    """What a checkpoint says of itself, JSON-able. Arrays and functions stay out."""
    info = {
        name: value
        for name, value in data_info.items()
        if not isinstance(value, np.ndarray) and not callable(value)
    }
    return config_lib.to_plain(
        {
            "stage": stage_name,
            "config": config,
            "export": export,
            "data_info": info,
            "versions": {n: importlib.metadata.version(n) for n in LIBRARIES},
        },
        "meta",
    )


class Checkpoints:
    """The checkpoints of one run. Use as a context manager: leaving it waits."""

    def __init__(self, workdir, keep: int = 2):
        self._workdir = epath.Path(workdir)
        self.folder = _folder(workdir)
        self._manager = _manager(self.folder, keep)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._manager.close()

    def latest(self) -> int | None:
        """The newest committed step; half-written ones do not count."""
        return self._manager.latest_step()

    def save(self, step: int, state: TrainState, meta: dict) -> None:
        """Starts saving; device memory may be reused as soon as this returns."""
        if step == self.latest():
            return
        items = {"state": _without_ema(state), "ema": state.ema}
        meta = {**meta, "step": step}
        sums = {name: checksum(tree) for name, tree in items.items()}
        meta["checksums"] = {**sums, "meta": _meta_checksum(meta)}
        try:
            self.wait()  # Orbax would: one save at a time
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    **{k: ocp.args.StandardSave(tree) for k, tree in items.items()},
                    meta=ocp.args.JsonSave(meta),
                ),
            )
        except OSError as error:
            raise OSError(
                f"saving step {step} to {self.folder} failed: {error}; the checkpoint "
                f"of step {self.latest()} is intact"
            ) from error

    def wait(self) -> None:
        """Returns when the last save is committed; raises if it failed."""
        self._manager.wait_until_finished()
        if self.latest() is not None and jax.process_index() == 0:
            run_folder.note_saved(self._workdir, self.latest())

    def restore(self, abstract: TrainState, like: dict) -> TrainState | None:
        """The newest state, or None where none was ever saved.

        Args:
          abstract: its shapes, dtypes and shardings.
          like: the meta that this run writes.

        Raises:
          ValueError: what was saved is gone or damaged, or of another stage, model or
            data.
        """
        step = self.latest()
        if step is None:
            run_folder.check_never_saved(self._workdir)
            return None
        meta = _read_meta(self._manager, step, self.folder)
        if meta["stage"] != like["stage"]:
            raise ValueError(
                f"{self.folder} holds checkpoints of stage {meta['stage']!r}, this "
                f"config trains {like['stage']!r}: use another --workdir"
            )
        then, now = (m["data_info"].get("fingerprint") for m in (meta, like))
        if then != now:
            raise ValueError(
                f"{self._workdir} was trained on the data {then!r} (fingerprint), now "
                f"they are {now!r}: put the old ones back, or use another --workdir"
            )
        restored = _restore(
            self._manager,
            step,
            self.folder,
            meta["checksums"],
            state=ocp.args.StandardRestore(_without_ema(abstract)),
            ema=ocp.args.StandardRestore(abstract.ema),
        )
        return TrainState(**restored["state"], ema=restored["ema"])


def load_run(workdir, item: str = "ema") -> tuple[Any, dict]:
    """The newest parameters of a run, as float32 numpy arrays, and its meta.

    Args:
      workdir: the run's folder.
      item: "ema", or "params" for the raw ones.

    Raises:
      FileNotFoundError: no run, or no checkpoint yet; ValueError: a damaged one.
    """
    if item not in ("ema", "params"):
        raise ValueError(f"item {item!r}: expected 'ema' or 'params'")
    run_folder.read_config(workdir)
    folder = _folder(workdir)
    if not folder.is_dir():
        raise FileNotFoundError(f"{workdir} has no checkpoint yet: train it further")
    with _manager(folder, None) as manager:
        step = manager.latest_step()
        if step is None:
            raise FileNotFoundError(
                f"{workdir} has no checkpoint yet: train it further"
            )
        meta = _read_meta(manager, step, folder)
        name = "ema" if item == "ema" else "state"
        described = _guarded(lambda: manager.item_metadata(step)[name], step, folder)
        place = SingleDeviceSharding(jax.local_devices()[0])
        abstract = jax.tree.map(
            lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=place),
            getattr(described, "tree", described),
        )
        args = {name: ocp.args.StandardRestore(abstract)}
        tree = _restore(manager, step, folder, meta["checksums"], **args)[name]
    tree = tree if item == "ema" else tree["params"]
    return jax.tree.map(np.asarray, jax.device_get(tree)), meta


def checksum(tree: Any) -> str:
    """Of the names, dtypes, shapes and values of all leaves; the same on any mesh."""
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    sums = jax.device_get([_word_sum(leaf) for _, leaf in leaves])
    lines = sorted(
        f"{path_name(path)} {leaf.dtype} {leaf.shape} {value}"
        for (path, leaf), value in zip(leaves, sums, strict=True)
    )
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _word_sum(x: jax.Array):
    """() uint32: the sum of the bit patterns modulo 2^32, exact in any order."""
    words = {1: np.uint8, 2: np.uint16, 4: np.uint32}[x.dtype.itemsize]
    if jax.default_backend() != "cpu" or not x.is_fully_addressable:
        return _device_sum(x, words)
    # on the host's own memory: a program for each shape takes seconds to compile
    shards = [np.asarray(s.data) for s in x.addressable_shards if s.replica_id == 0]
    sums = [s.reshape(-1).view(words).sum(dtype=np.uint32) for s in shards]
    return np.sum(sums, dtype=np.uint32)


@functools.partial(jax.jit, static_argnums=1)
def _device_sum(x, words):
    return jax.lax.bitcast_convert_type(x, words).sum(dtype=jnp.uint32)


def _meta_checksum(meta: dict) -> str:
    rest = {key: value for key, value in meta.items() if key != "checksums"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def _folder(workdir) -> epath.Path:
    workdir = epath.Path(workdir)
    if not run_folder.is_bucket(workdir):
        workdir = epath.Path(os.path.abspath(workdir))
    return workdir / FOLDER


def _manager(folder, keep):
    """`keep` None opens for reading only."""
    options = ocp.CheckpointManagerOptions(
        max_to_keep=keep,
        create=keep is not None,
        cleanup_tmp_directories=keep is not None,  # what killed runs left half-written
    )
    handlers = {  # named, or Orbax warns that it cannot guess them
        "state": ocp.StandardCheckpointHandler(),
        "ema": ocp.StandardCheckpointHandler(),
        "meta": ocp.JsonCheckpointHandler(),
    }
    return ocp.CheckpointManager(folder, options=options, item_handlers=handlers)


def _without_ema(state: TrainState) -> dict:
    fields = ("step", "skipped", "params", "opt_state")
    return {name: getattr(state, name) for name in fields}


def _read_meta(manager, step, folder) -> dict:
    args = {"meta": ocp.args.JsonRestore()}
    meta = _restore(manager, step, folder, {}, **args)["meta"]
    meta.setdefault("checksums", {})
    _compare("meta", _meta_checksum(meta), meta["checksums"], step, folder)
    return meta


def _restore(manager, step, folder, checksums, **args):
    """The items, compared with the checksums that there are."""
    restored = _guarded(
        lambda: manager.restore(step, args=ocp.args.Composite(**args)), step, folder
    )
    for name in args:
        if name in checksums:
            _compare(name, checksum(restored[name]), checksums, step, folder)
    return restored


def _compare(name, found, checksums, step, folder):
    if checksums.get(name, found) != found:
        raise _damaged(step, folder, f"its {name!r} is not what was saved")


def _guarded(read, step, folder):
    try:
        return read()
    except Exception as error:  # Orbax raises many kinds for a damaged checkpoint
        reason = " ".join(str(error).split())[:300]
    _forget_failed_reads()
    raise _damaged(step, folder, reason)


def _forget_failed_reads():
    """Collects Orbax's abandoned reads, whose pages of traceback would drown the one
    line that says what is wrong."""
    hook, sys.unraisablehook = sys.unraisablehook, lambda *_: None
    logger = logging.getLogger("asyncio")
    disabled, logger.disabled = logger.disabled, True
    try:
        gc.collect()
    finally:
        sys.unraisablehook, logger.disabled = hook, disabled


def _damaged(step, folder, reason) -> ValueError:
    return ValueError(
        f"the checkpoint {folder / str(step)} cannot be restored: {reason}. If it is "
        "damaged, move that folder away and run the same command again to go on from "
        "the one before"
    )
