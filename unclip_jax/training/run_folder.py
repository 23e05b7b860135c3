"""The folder of a run: which config it belongs to, and whether it may be used.

config.json      what the run was started with
sharding.txt     every array of the state: shape, how it is split, bytes per device
checkpoints/     see checkpoint.py
status.json      the step known to be saved, and whether all is done: steps, last
                 preview and evaluators
metrics.jsonl    one row per logged step (in a bucket: see mirror.py)
tensorboard/     the same, as curves, and the previews
previews/        grids of pictures, one per preview step
tokenizer/       where the run trained one
goodput.json     see timing.py; skipped_steps.jsonl, hung/, profile/: when there are any
run.lock         held by the process that writes here, for as long as it lives
"""

import fcntl
import json
import os
import socket
import time
from collections.abc import Sequence
from typing import IO, Any

import jax
from etils import epath

from unclip_jax.config import to_plain, with_defaults
from unclip_jax.errors import UsageError
from unclip_jax.files import PARTIAL, atomic_write, is_bucket, read_json
from unclip_jax.training.run_config import config_defaults

# Keys that may differ when a run goes on: they do not change what a step computes, but
# for rounding. Of data.path the fingerprint is compared when the state is restored.
FREE = (
    "model.remat",
    "log_every",
    "checkpoint",
    "preview",
    "evaluators",
    "mesh",
    "sharding_rules",
    "data.cache",
    "data.feed",
    "data.path",
    "diffusion.sampler",  # as are all recommendations for sampling
    "diffusion.sampling_steps",
    "diffusion.variance",
    "diffusion.guidance",
    "diffusion.guidance_interval",
    "max_skipped",
    "wandb",
    "watchdog",
)
# Keys that change the steps to come, and may differ where `allow_change` names them.
# Micro-batches have noise of their own, and CLIP's loss compares within them.
CHANGEABLE = (
    "steps",
    "grad_accum",
    "ema_decay",
    "optimizer.learning_rate",
    "optimizer.schedule",
    "optimizer.warmup_steps",
    "optimizer.decay_fraction",
    "optimizer.weight_decay",
)

# What a start leaves in its folder before the first step.
LEFT = ("config.json", "sharding.txt", "metrics.jsonl", "goodput.json", "wandb_run.txt")
LEFT_FOLDERS = ("checkpoints", "previews", "tensorboard", "tokenizer")
LOCK = "run.lock"
PATIENCE = 10.0  # seconds that a start waits for another process to leave the folder


class Claim:
    """Takes a folder for a run, and back what a start that is refused left there.

    On a disk only one run at a time has a folder: a file in it is locked, which the
    system undoes when the process ends, however it ends.

    A folder that was empty or not there is that again if an exception ends the `with`
    block before `keep` is called, so that the next start may have another config.

    Attributes:
      folder: as of `claim`.
      changes: [(key, value before, value now)] of what `allow_change` let differ.
    """

    def __init__(self, workdir, config: dict, allow_change: Sequence[str] = ()):
        """Raises what `claim` does, and UsageError while another run has the folder."""
        self.folder, self.changes = _check_free(workdir, config, allow_change)
        self._lock = None
        if jax.process_index() == 0 and not is_bucket(workdir):
            self._lock = _lock(self.folder / LOCK)
        self._is_new = not (self.folder / "config.json").exists()
        self._config, self._kept = config, False
        if self._is_new:
            self._write_config()

    def keep(self) -> None:
        """Keeps the folder and what has changed in its config: a step was taken."""
        if not self._kept:
            self._write_config()
        self._is_new, self._kept = False, True

    def _write_config(self) -> None:
        if jax.process_index() == 0:  # buckets refuse a file that many hosts write
            _write_config(self.folder, self._config)

    def remove_partials(self) -> None:
        """Removes what killed processes left half-written.

        To be called when every process of this run has found the folder to be its own.
        """
        if self._lock is None:
            return
        for folder in (self.folder, self.folder / "previews"):
            for path in folder.glob(f".*{PARTIAL}") if folder.is_dir() else ():
                path.unlink(missing_ok=True)

    def __enter__(self):
        """Returns itself."""
        return self

    def __exit__(self, kind, *_) -> None:
        """Takes back what `keep` did not keep; the next run may have the folder."""
        if kind is not None and self._is_new and not jax.process_index():
            for name in (*LEFT, LOCK):
                (self.folder / name).unlink(missing_ok=True)
            for name in LEFT_FOLDERS:
                if (self.folder / name).is_dir():
                    (self.folder / name).rmtree()
        if self._lock is not None:
            self._lock.close()


def _lock(path) -> IO[bytes]:
    """A file that no other process has locked, to be closed at the end of the run.

    Raises UsageError if one has it for PATIENCE seconds. A file system that knows no
    locks refuses nobody.
    """
    end = time.monotonic() + PATIENCE
    while True:
        file = open(path, "a+b")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > end:
                file.seek(0)
                holder = file.read(200).decode(errors="replace").strip()
                raise UsageError(
                    f"{path.parent} is in use by another run ({holder or 'unknown'}): "
                    "wait until it has ended, or use another --workdir"
                ) from None
        except OSError:
            return file
        else:
            # one that was refused may have removed the file in the meantime
            if path.exists() and os.path.samestat(
                os.stat(path), os.fstat(file.fileno())
            ):
                file.truncate(0)
                file.write(
                    f"process {os.getpid()} on {socket.gethostname()}\n".encode()
                )
                file.flush()
                return file
        file.close()
        time.sleep(0.2)


def claim(workdir, config: dict) -> epath.Path:
    """Makes `workdir` the folder of a run with `config`, or recognizes it as such.

    Args:
      workdir: a folder, on a disk or gs://; made when missing.
      config: plain dict of the config.

    Raises:
      UsageError: gs:// without its client; the folder holds something else, or a run
        whose config differs in more than what FREE lists. Nothing is written then.
    """
    folder, _ = _check_free(workdir, config)
    _write_config(folder, config)
    return folder


def _check_free(
    workdir, config, allow_change: Sequence[str] = ()
) -> tuple[epath.Path, list[tuple[str, Any, Any]]]:
    """The folder, made when missing, and the changes; for errors see `claim`."""
    for key in allow_change:
        if key not in CHANGEABLE:
            raise UsageError(
                f"--allow_change {key!r}: what may change in a run is "
                f"{', '.join(CHANGEABLE)} (and, without asking, {', '.join(FREE)})"
            )
    changes: list[tuple[str, Any, Any]] = []
    if str(workdir).startswith("gs://"):
        _check_client(workdir)
    folder = epath.Path(workdir)
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"--workdir {folder} is a file, expected a folder")
    path = folder / "config.json"
    if path.is_file():
        before = _complete(read_config(folder))
        differ = [
            change
            for change in differences(before, _complete(config))
            if not any(f"{change[0]}.".startswith(f"{free}.") for free in FREE)
        ]
        changes = [change for change in differ if change[0] in allow_change]
        differ = [change for change in differ if change not in changes]
        if differ:
            differ.sort(key=lambda change: not change[0].startswith("stage"))
            listed = [f"{key} ({old!r} there, {new!r} now)" for key, old, new in differ]
            more = f" and {len(differ) - 5} more" if len(differ) > 5 else ""
            asked = ",".join(key for key, *_ in differ if key in CHANGEABLE)
            change = f", or change it with --allow_change={asked}" if asked else ""
            raise UsageError(
                f"{folder} holds a run of another config; different: "
                f"{'; '.join(listed[:5])}{more}. Use another --workdir, or start that "
                f"run's own config to go on with it{change}"
            )
    elif folder.exists():
        # a half-written config.json is ours: a kill, or another process of this run
        entries = [e.name for e in folder.iterdir()]
        ours = (LOCK, ".config.json.")
        names = sorted(n for n in entries if not n.startswith(ours))[:5]
        if names:
            raise UsageError(
                f"{folder} is not empty and not a run (it has {', '.join(names)} but "
                "no config.json): use another --workdir"
            )
    folder.mkdir(parents=True, exist_ok=True)
    return folder, changes


def _write_config(folder, config) -> None:
    atomic_write(folder / "config.json", json.dumps(config, indent=1))


def read_config(folder) -> dict:
    """The config of the run in `folder`.

    Raises:
      FileNotFoundError: no run there; UsageError: its config.json is damaged.
    """
    path = epath.Path(folder) / "config.json"
    if not path.is_file():
        raise FileNotFoundError(
            f"{folder} is not the folder of a run (no config.json there); train it "
            "first with `python -m unclip_jax.train`"
        )
    return read_json(path, "")


def note_saved(folder, step: int) -> None:
    """Remembers that the checkpoint of `step` was committed."""
    before, steps = read_status(folder), read_config(folder)["steps"]
    done = before["done"] and (before["step"], before["steps"]) == (step, steps)
    _write_status(folder, {"step": step, "steps": steps, "done": done})


def note_done(folder) -> None:
    """Remembers that nothing is left to do: the last step is saved and looked at."""
    _write_status(folder, {**read_status(folder), "done": True})


def _write_status(folder, status) -> None:
    atomic_write(epath.Path(folder) / "status.json", json.dumps(status) + "\n")


def read_status(folder) -> dict:
    """{"step", "steps", "done"} of a run on a disk or gs://; step 0 before any save.

    Raises UsageError: gs:// without its client, or a damaged file.
    """
    if str(folder).startswith("gs://"):
        _check_client(folder)
    path = epath.Path(folder) / "status.json"
    status = {"step": 0, "steps": None, "done": False}
    if path.is_file():
        status |= read_json(path, "")
    if not isinstance(status["step"], int) or not isinstance(status["done"], bool):
        raise UsageError(
            f"{path} is damaged: {status}; remove it, the next start writes it anew"
        )
    return status


def check_never_saved(folder) -> None:
    """Raises UsageError when there were checkpoints once.

    Starting afresh would quietly throw away what they held.
    """
    path = epath.Path(folder) / "status.json"
    if path.is_file():
        raise UsageError(
            f"{folder} has no checkpoint any more, but had one ({path.name}: "
            f"{path.read_text().strip()}). Put its checkpoints/ back; or, to start "
            "afresh, remove the folder or use another --workdir"
        )


def differences(a, b, prefix=""):
    """[(key, value in a, value in b)] of the leaves in which two dicts differ."""
    if not (isinstance(a, dict) and isinstance(b, dict)):
        return [] if a == b else [(prefix, a, b)]
    found = []
    for key in sorted({*a, *b}):
        name = f"{prefix}.{key}" if prefix else key
        found += differences(a.get(key), b.get(key), name)
    return found


def _complete(config: dict) -> dict:
    """With the defaults of what it leaves out: another version may have it in full."""
    return to_plain(with_defaults(config, config_defaults(config)))


def _check_client(workdir) -> None:
    """Orbax asks it for the kind of the bucket, and would say so after compiling."""
    try:
        import google.cloud.storage  # noqa: F401
    except ImportError as error:
        raise UsageError(
            f"--workdir={workdir} needs Google's client: "
            "pip install 'google-cloud-storage>=2.18,<4'"
        ) from error
