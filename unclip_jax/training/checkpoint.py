"""Checkpoints: Orbax behind one file.

A checkpoint has the items `state` (TrainState without the EMA), `ema` and `meta`
(step, stage, config, export description, data info, versions). It restores onto any
mesh. Saving is asynchronous; a save that failed raises at the next one.
"""

import importlib.metadata
import pathlib
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.sharding import SingleDeviceSharding

from unclip_jax import config as config_lib
from unclip_jax.training import run_folder
from unclip_jax.training.state import TrainState

FOLDER = "checkpoints"
LIBRARIES = ("jax", "flax", "optax", "orbax-checkpoint", "numpy")


def make_meta(stage_name: str, config: dict, export: dict, data_info) -> dict:
    """What a checkpoint says of itself, JSON-able. Arrays of data_info stay out."""
    info = {k: v for k, v in data_info.items() if not isinstance(v, np.ndarray)}
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
        self.folder = pathlib.Path(workdir).absolute() / FOLDER
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
        try:
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(_without_ema(state)),
                    ema=ocp.args.StandardSave(state.ema),
                    meta=ocp.args.JsonSave({**meta, "step": step}),
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

    def restore(self, abstract: TrainState, stage_name: str) -> TrainState:
        """The newest state, placed as `abstract` (ShapeDtypeStructs) says.

        Raises:
          ValueError: no checkpoint, one of another stage or model, or a damaged one.
        """
        step = self.latest()
        meta = _read_meta(self._manager, step, self.folder)
        if meta["stage"] != stage_name:
            raise ValueError(
                f"{self.folder} holds checkpoints of stage {meta['stage']!r}, this "
                f"config trains {stage_name!r}: use another --workdir"
            )
        restored = _restore(
            self._manager,
            step,
            self.folder,
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
    folder = pathlib.Path(workdir).absolute() / FOLDER
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
        tree = _restore(manager, step, folder, **args)[name]
    tree = tree if item == "ema" else tree["params"]
    return jax.tree.map(np.asarray, jax.device_get(tree)), meta


def _manager(folder, keep):
    options = ocp.CheckpointManagerOptions(max_to_keep=keep, read_only=keep is None)
    return ocp.CheckpointManager(folder, options=options)


def _without_ema(state: TrainState) -> dict:
    fields = ("step", "skipped", "params", "opt_state")
    return {name: getattr(state, name) for name in fields}


def _read_meta(manager, step, folder) -> dict:
    return _restore(manager, step, folder, meta=ocp.args.JsonRestore())["meta"]


def _restore(manager, step, folder, **args):
    return _guarded(
        lambda: manager.restore(step, args=ocp.args.Composite(**args)), step, folder
    )


def _guarded(read, step, folder):
    try:
        return read()
    except Exception as error:  # Orbax raises many kinds for a damaged checkpoint
        reason = " ".join(str(error).split())[:300]
        raise ValueError(
            f"the checkpoint {folder / str(step)} cannot be restored: {reason}. If it "
            "is damaged, move that folder away and run the same command again to go "
            "on from the one before"
        ) from error
