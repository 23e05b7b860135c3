"""Checkpoints: Orbax behind one file.

A checkpoint has the items `state` (TrainState without averages), `ema`, `meta` (step,
stage, config, export description, data info, versions, checksums) and, of a run that
keeps them, `profiles`. It restores onto any mesh. Saving is asynchronous; a save that
failed raises at the next one.
"""

import contextlib
import errno
import importlib.metadata
import os
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from jax.experimental import multihost_utils

from unclip_jax import config as config_lib
from unclip_jax import files
from unclip_jax.data_spec import DataSpec
from unclip_jax.errors import UsageError
from unclip_jax.parallel.sharding import path_name
from unclip_jax.training import checksums, run_folder
from unclip_jax.training.damage import SET_ASIDE, compare, guarded
from unclip_jax.training.state import TrainState

FOLDER = "checkpoints"
READ_BYTES = 64 * 2**20  # leaves are read together up to so many, a larger one alone
LIBRARIES = ("jax", "flax", "optax", "orbax-checkpoint", "numpy")


def make_meta(stage_name: str, config: dict, export: dict, spec: DataSpec) -> dict:
    """What a checkpoint says of itself, JSON-able. Arrays and functions stay out."""
    return config_lib.to_plain(
        {
            "stage": stage_name,
            "config": config,
            "export": export,
            "data_info": spec.to_plain(),
            "versions": {n: importlib.metadata.version(n) for n in LIBRARIES},
        },
        "meta",
    )


class Checkpoints:
    """The checkpoints of one run. Use as a context manager: leaving it waits."""

    def __init__(
        self,
        workdir,
        keep: int = 2,
        restore_step: int | None = None,
        keep_every: int = 0,
    ):
        """`restore_step`: go on from this one; newer ones are set aside, not deleted.

        The `keep` newest are kept, and multiples of `keep_every`. Raises UsageError
        when there is no such step.
        """
        self._workdir = epath.Path(workdir)
        self.folder = _folder(workdir)
        if restore_step is not None:
            _set_aside_newer(self.folder, restore_step)
        self._manager = _manager(self.folder, keep, keep_every)
        self._keep, self._keep_every = keep, keep_every
        self._saving = None  # the step, until it is known to be saved

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        try:
            self._manager.close()
        except Exception:
            if kind is None:  # or it was said already
                raise

    def latest(self) -> int | None:
        """The newest committed step; half-written ones do not count."""
        return self._manager.latest_step()

    def save(self, step: int, state: TrainState, meta: dict) -> None:
        """Starts saving; device memory may be reused as soon as this returns."""
        if step == self.latest():
            return
        items = {"state": _without_ema(state), "ema": state.ema}
        if state.profiles is not None:
            items["profiles"] = state.profiles
        meta = {**meta, "step": step}
        sums = {name: checksums.tree_checksum(tree) for name, tree in items.items()}
        meta["checksums"] = {**sums, "meta": checksums.json_checksum(meta)}
        self.wait()  # Orbax would: one save at a time
        self._saving = step
        with self._failures_named():
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    **{k: ocp.args.PyTreeSave(tree) for k, tree in items.items()},
                    meta=ocp.args.JsonSave(meta),
                ),
            )

    def check(self) -> None:
        """Raises what `wait` does if the last save has failed; does not wait.

        Orbax's own check_for_errors does not see what its finalising thread caught.
        """
        if self._saving is not None and not self.saving():
            self.wait()
            self._saving = None

    def saving(self) -> bool:
        """Whether a save is still under way."""
        return self._manager.is_saving_in_progress()

    def wait(self) -> None:
        """Returns when the last save is committed.

        Raises OSError if it failed: a full disk, a bucket out of reach.
        """
        with self._failures_named():
            self._manager.wait_until_finished()
        latest = self.latest()
        if latest is not None and jax.process_index() == 0:
            run_folder.note_saved(self._workdir, latest)

    @contextlib.contextmanager
    def _failures_named(self):
        try:
            yield
        except Exception as error:  # Orbax raises many kinds
            reason = " ".join(str(error).split()) or type(error).__name__
            if len(reason) > 400:  # what failed comes first, why comes last
                reason = f"{reason[:200]} ... {reason[-200:]}"
            raise OSError(
                f"saving step {self._saving} to {self.folder} failed: {reason}; "
                + self._what_is_left()
            ) from error

    @contextlib.contextmanager
    def full_disk_named(self):
        """Where other files of the run are written."""
        try:
            yield
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            raise OSError(
                f"No space left on the disk of {self._workdir}: make some and run the "
                f"same command again; {self._what_is_left()}"
            ) from error

    def _what_is_left(self) -> str:
        self._manager.reload()  # it counts one whose save failed
        there = self._manager.all_steps()
        if not there:
            return "there is no checkpoint yet"
        return f"the checkpoint of step {max(there)} is intact"

    def restore(self, abstract: TrainState, like: dict) -> TrainState | None:
        """The newest state, or None where none was ever saved.

        Args:
          abstract: its shapes, dtypes and shardings.
          like: the meta that this run writes.

        Raises:
          UsageError: what was saved is gone or damaged, or of another stage, model or
            data.
        """
        step = self.latest()
        if step is None:
            run_folder.check_never_saved(self._workdir)
            return None
        meta = _read_meta(self._manager, step, self.folder)
        if meta["stage"] != like["stage"]:
            raise UsageError(
                f"{self.folder} holds checkpoints of stage {meta['stage']!r}, this "
                f"config trains {like['stage']!r}: use another --workdir"
            )
        then, now = (m["data_info"].get("fingerprint") for m in (meta, like))
        if then != now:
            raise UsageError(
                f"{self._workdir} was trained on the data {then!r} (fingerprint), now "
                f"they are {now!r}: put the old ones back, or use another --workdir"
            )
        if meta.get("init_checksum") != like.get("init_checksum"):
            raise UsageError(
                f"{self._workdir} trained adapters of other parameters than "
                f"{like['config']['init_from']!r} has now: put those back"
            )
        items = {"state": _without_ema(abstract), "ema": abstract.ema}
        if abstract.profiles is not None:
            items["profiles"] = abstract.profiles
        wanted = {name: _restore_args(tree) for name, tree in items.items()}
        sums = meta["checksums"]
        restored = _restore(self._manager, step, self.folder, sums, **wanted)
        for older in sorted(self._manager.all_steps())[: -self._keep]:
            if not self._keep_every or older % self._keep_every:
                self._manager.delete(older)  # a kill may have left half of it
        averages = {name: restored[name] for name in items if name != "state"}
        return TrainState(**restored["state"], **averages)


Read = Callable[[str], np.ndarray]


def open_run(
    workdir, item: str = "ema", step: int | None = None
) -> tuple[dict[str, Any], Read, dict]:
    """The parameters of a run, to be read one by one; what was saved is checked first.

    No more is held at a time than READ_BYTES, or the largest tensor.

    Args:
      workdir: the run's folder, on a disk or gs://.
      item: "ema", or "params" for the raw ones.
      step: of which checkpoint; None is the newest.

    Returns:
      (nested dict of jax.ShapeDtypeStruct, function from a '/'-joined name in it to its
      numpy array, meta).

    Raises:
      FileNotFoundError: no run, or no checkpoint yet; UsageError: a damaged one, no
        such step.
    """
    if item not in ("ema", "params"):
        raise UsageError(f"item {item!r}: expected 'ema' or 'params'")
    with open_checkpoints(workdir, step) as (manager, folder, step):
        name = "ema" if item == "ema" else "state"
        tree, leaves, meta = open_item(manager, folder, step, name)
    params, prefix = (tree, "") if item == "ema" else (tree["params"], "params/")
    shapes = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), params)
    return shapes, lambda path: leaves.read(prefix + path), meta


def load_run(workdir, item: str = "ema") -> tuple[Any, dict]:
    """All of `open_run` at once: (nested dict of numpy arrays, meta)."""
    shapes, read, meta = open_run(workdir, item)
    tree = jax.tree_util.tree_map_with_path(lambda k, _: read(path_name(k)), shapes)
    return tree, meta


@contextlib.contextmanager
def open_checkpoints(workdir, step: int | None):
    """(manager, folder, the step asked for or the newest); raises as `open_run`."""
    run_folder.read_config(workdir)
    folder = _folder(workdir)
    missing = f"{workdir} has no checkpoint yet: train it further"
    if not folder.is_dir():
        raise FileNotFoundError(missing)
    with _manager(folder, None) as manager:
        steps = manager.all_steps()
        if not steps:
            raise FileNotFoundError(missing)
        yield manager, folder, _check_step(steps, step, folder)


def open_item(manager, folder, step: int, name: str) -> tuple[Any, "_Leaves", dict]:
    """(its tree of metadata, its arrays, meta) of a saved item, checked."""
    meta = _read_meta(manager, step, folder)
    described = guarded(lambda: manager.item_metadata(step)[name], step, folder)
    tree = getattr(described, "tree", described)
    leaves = _Leaves(folder, step, name, tree)
    compare(name, leaves.checksum(), meta["checksums"], step, folder)
    return tree, leaves, meta


class _Leaves:
    """The arrays of one saved item, by their '/'-joined names."""

    def __init__(self, folder, step, name, tree, limit=READ_BYTES):
        self._where, self._tree = (folder, step, name), tree
        leaves, self._structure = jax.tree_util.tree_flatten_with_path(tree)
        self._names = [path_name(path) for path, _ in leaves]
        self._groups = [[]]
        size = 0
        for i, (_, leaf) in enumerate(leaves):
            count = int(np.prod(leaf.shape)) * np.dtype(leaf.dtype).itemsize
            if self._groups[-1] and size + count > limit:
                self._groups.append([])
                size = 0
            self._groups[-1].append(i)
            size += count
        self._group_of = {
            self._names[i]: g for g, group in enumerate(self._groups) for i in group
        }
        self._held: int | None = None  # the group read last
        self._arrays: dict[str, np.ndarray] = {}

    def again(self, limit: int) -> "_Leaves":
        """The same, to be read by up to `limit` bytes."""
        return _Leaves(*self._where, self._tree, limit)

    def read(self, name: str) -> np.ndarray:
        """One array; its group is kept, because neighbours are asked for next."""
        group = self._group_of[name]
        if group != self._held:
            self._held, self._arrays = None, {}  # let go before, or both are held
            self._arrays = self._read_group(self._groups[group])
            self._held = group
        return self._arrays[name]

    def checksum(self) -> str:
        return checksums.lines_checksum(
            checksums.line(name, array, checksums.word_sum(array))
            for name, array in ((n, self.read(n)) for n in self._names)
        )

    def _read_group(self, wanted) -> dict[str, np.ndarray]:
        folder, step, name = self._where
        count = len(self._names)
        items: list[Any] = [ocp.PLACEHOLDER] * count
        for i in wanted:
            items[i] = 0
        as_numpy = [ocp.RestoreArgs(restore_type=np.ndarray)] * count
        args = ocp.args.PyTreeRestore(
            item=jax.tree.unflatten(self._structure, items),
            restore_args=jax.tree.unflatten(self._structure, as_numpy),
        )
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
            path = folder / str(step) / name
            tree = guarded(lambda: checkpointer.restore(path, args=args), step, folder)
        found = self._structure.flatten_up_to(tree)
        return {self._names[i]: np.asarray(found[i]) for i in wanted}


def _folder(workdir) -> epath.Path:
    workdir = epath.Path(workdir)
    if not files.is_bucket(workdir):
        workdir = epath.Path(os.path.abspath(workdir))
    return workdir / FOLDER


class _Manager(ocp.CheckpointManager):
    """Leaves asking for preemption to the loop.

    jax counts the questions of a process, and the processes agree on the number of the
    next. Orbax asks during a save, with the step instead of the number: a signal that
    comes then would be answered to a question that nobody asks any more.
    """

    def reached_preemption(self, step: int) -> bool:
        del step
        return False


def _manager(folder, keep, keep_every=0):
    """`keep` None opens for reading only."""
    options = ocp.CheckpointManagerOptions(
        max_to_keep=keep,
        keep_period=keep_every or None,
        create=keep is not None,
        cleanup_tmp_directories=keep is not None,  # what killed runs left half-written
    )
    # numbers of float32 hardly shrink, and what is compressed is a second copy of the
    # state in host memory
    arrays = {"use_compression": False}
    handlers = {  # named, or Orbax warns that it cannot guess them
        "state": ocp.PyTreeCheckpointHandler(**arrays),
        "ema": ocp.PyTreeCheckpointHandler(**arrays),
        "profiles": ocp.PyTreeCheckpointHandler(**arrays),
        "meta": ocp.JsonCheckpointHandler(),
    }
    return _Manager(folder, options=options, item_handlers=handlers)


def _check_step(steps, wanted, folder) -> int:
    """The newest of `steps`, or the wanted one if it is among them."""
    if wanted is not None and wanted not in steps:
        listed = ", ".join(map(str, sorted(steps))) or "none"
        raise UsageError(f"{folder} has no checkpoint {wanted}; it has {listed}")
    return max(steps) if wanted is None else wanted


def _set_aside_newer(folder, step: int) -> None:
    """Moves what was saved after `step` out of the way; by the first process."""
    with _manager(folder, None) as manager:
        steps = manager.all_steps() if folder.is_dir() else []
    _check_step(steps, step, folder)
    if jax.process_index() == 0:
        for newer in (s for s in steps if s > step):
            target = folder.parent / f"{SET_ASIDE}{newer}"
            if target.exists():  # from an earlier time
                target.rmtree()
            (folder / str(newer)).rename(target)
    multihost_utils.sync_global_devices("newer checkpoints are set aside")


def _restore_args(abstract):
    wanted = ocp.checkpoint_utils.construct_restore_args(abstract)
    return ocp.args.PyTreeRestore(item=abstract, restore_args=wanted)


def _without_ema(state: TrainState) -> dict:
    fields = ("step", "skipped", "params", "opt_state")
    return {name: getattr(state, name) for name in fields}


def _read_meta(manager, step, folder) -> dict:
    args = {"meta": ocp.args.JsonRestore()}
    meta = _restore(manager, step, folder, {}, **args)["meta"]
    meta.setdefault("checksums", {})
    compare("meta", checksums.json_checksum(meta), meta["checksums"], step, folder)
    return meta


def _restore(manager, step, folder, saved_sums, **args):
    """The items, compared with the checksums that there are."""
    restored = guarded(
        lambda: manager.restore(step, args=ocp.args.Composite(**args)), step, folder
    )
    for name in args:
        if name in saved_sums:
            found = checksums.tree_checksum(restored[name])
            compare(name, found, saved_sums, step, folder)
    return restored
