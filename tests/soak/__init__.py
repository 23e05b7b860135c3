"""Runs that are killed, stopped and starved, and must end like one that was left alone.

    python -m tests.soak --kills=200 --folder=/tmp/soak --report=docs/reliability.md

A run is a child forked from a process that has imported everything, with one device and
a cache of compiled programs, so that starting again takes about a second. It trains
tests/training/toy.py with a checkpoint, a preview and an evaluator every four steps,
says through a pipe what it begins to do, and is killed in the middle of that. Whoever
is not killed any more ends, and is then compared with the run that nothing disturbed:
parameters, moving averages, optimizer state, losses, scores, previews, and which files
there are.
"""

import contextlib
import dataclasses
import json
import os
import pathlib
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable

STEPS, EVERY = 24, 4  # of training; between checkpoints, previews and evaluators
PATIENCE = 120  # seconds that anything may take

# What a run says it begins, one byte each.
MOMENTS = {
    "b": "starting",
    "r": "restoring",
    "c": "compiling",
    "t": "training",
    "f": "first save",
    "s": "saving",
    "d": "deleting an old checkpoint",
    "p": "preview",
    "e": "evaluators",
    "P": "last preview",
    "E": "last evaluators",
}


class Run:
    """One workdir, and the process that trains in it, if there is one.

    Attributes:
      folder: the workdir; `output` beside it has what its processes printed.
    """

    def __init__(self, folder: pathlib.Path, cache: pathlib.Path):
        self.folder, self._cache = folder, cache
        self.output = folder.with_name(f"{folder.name}.txt")
        self._seen, self._code = "", None

    def start(self, prepare: Callable[[], None] = lambda: None, pause: float = 0.0):
        """Forks a process that trains, after `prepare` was called in it."""
        self._seen, self._code = "", None
        self._pipe, writing = os.pipe()
        os.set_blocking(self._pipe, False)
        self._printed = self.output.stat().st_size if self.output.exists() else 0
        self.pid = os.fork()
        if self.pid:
            os.close(writing)
            return self
        code = 1
        try:
            with self.output.open("a") as file:
                os.dup2(file.fileno(), 1)
                os.dup2(file.fileno(), 2)
            sys.stdout = open(1, "w", buffering=1, closefd=False)
            sys.stderr = open(2, "w", buffering=1, closefd=False)
            code = _train(self.folder, self._cache, writing, prepare, pause)
            sys.stdout.flush()
        except BaseException:
            traceback.print_exc()
        finally:  # nothing of what the parent has on its stack
            os._exit(code)

    def wait_for(self, moment: str, times: int = 1) -> bool:
        """Whether the run begins `moment` so many times, before it ends."""
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            self._read()
            if self._seen.count(moment) >= times:
                return True
            if self._ended():
                return False
            time.sleep(0.001)
        raise AssertionError(f"no {MOMENTS[moment]} in {PATIENCE} s: {self.printed()}")

    def last_moment(self) -> str:
        """What it began last."""
        self._read()
        return MOMENTS[self._seen[-1]] if self._seen else "starting"

    def send(self, number: signal.Signals) -> None:
        """Sends a signal."""
        os.kill(self.pid, number)

    def finish(self) -> int:
        """The exit code, or minus the signal that ended it."""
        end = time.monotonic() + PATIENCE
        while not self._ended():
            if time.monotonic() > end:
                os.kill(self.pid, signal.SIGKILL)
                raise AssertionError(
                    f"still there after {PATIENCE} s: {self.printed()}"
                )
            self._read()
            time.sleep(0.002)
        self._read()
        os.close(self._pipe)
        return self._code

    def printed(self) -> str:
        """What the last process printed."""
        with self.output.open() as file:
            file.seek(self._printed)
            return file.read()

    def committed(self) -> int:
        """The newest step whose checkpoint is whole; -1 for none."""
        folder = self.folder / "checkpoints"
        names = os.listdir(folder) if folder.is_dir() else []
        return max((int(name) for name in names if name.isdigit()), default=-1)

    def result(self) -> dict:
        """Everything of a finished run that must not depend on what happened to it."""
        meta = self.folder / "checkpoints" / str(STEPS) / "meta" / "metadata"
        sums = json.loads(meta.read_text())["checksums"]
        rows = (self.folder / "metrics.jsonl").read_text().splitlines()
        previews = sorted((self.folder / "previews").iterdir())
        names = sorted(os.listdir(self.folder / "checkpoints"))
        names += sorted(set(os.listdir(self.folder)) - {"skipped_steps.jsonl"})
        return {
            "sums": [sums["state"], sums["ema"]],
            "rows": [_values(json.loads(row)) for row in rows],
            "previews": [[p.name, p.read_bytes().hex()] for p in previews],
            "names": names,
            "status": json.loads((self.folder / "status.json").read_text()),
        }

    def _read(self):
        with contextlib.suppress(BlockingIOError):
            while data := os.read(self._pipe, 4096):
                self._seen += data.decode()

    def _ended(self) -> bool:
        if self._code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self._code = os.waitstatus_to_exitcode(status) if pid else None
        return self._code is not None


def preload() -> None:
    """Imports what a run needs, without starting a backend or a thread."""
    # training needs no torch, but tensorboardX imports it where it is installed
    sys.modules["torch"] = None
    import tensorboardX  # noqa: F401

    from tests.training import toy  # noqa: F401
    from unclip_jax.training import loop  # noqa: F401


def differences(a: dict, b: dict) -> list[str]:
    """What of two results differs, in words."""
    return [f"{key}: {a[key]} != {b[key]}"[:600] for key in a if a[key] != b[key]]


def _values(row) -> list:
    """The step, and the numbers of a row that are not times."""
    kept = {k: v for k, v in row.items() if k in ("loss", "largest") or "/" in k}
    kept = {k: v for k, v in kept.items() if not k.startswith(("images/", "tokens/"))}
    return [row["step"], sorted(kept.items())]


def _train(folder, cache, pipe, prepare, pause) -> int:
    """The child: trains, and says what it begins. Returns the exit code."""
    import jax

    from tests.training import toy
    from unclip_jax.errors import UsageError
    from unclip_jax.training import actions, checkpoint, evaluators, loop

    os.environ["JAX_COMPILATION_CACHE_DIR"] = str(cache)
    jax.config.update("jax_compilation_cache_dir", str(cache))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)

    def say(moment):
        os.write(pipe, moment.encode())

    def announced(function, moment):
        def announcing(*args, **kwargs):
            say(moment(*args) if callable(moment) else moment)
            return function(*args, **kwargs)

        return announcing

    say("b")
    for cls, name, moment in (
        (checkpoint.Checkpoints, "restore", "r"),
        (
            checkpoint.Checkpoints,
            "save",
            lambda self, *_: "fs"[self.latest() is not None],
        ),
        (actions.Previews, "run", lambda _, step, __: "pP"[step == STEPS]),
        (evaluators.Evaluators, "run", lambda _, step, __: "eE"[step == STEPS]),
    ):
        setattr(cls, name, announced(getattr(cls, name), moment))
    loop.lower_step = announced(loop.lower_step, "c")
    shutil.rmtree = _slow_rmtree(say)

    class Data(toy.Data):
        def _rows(self, *args):
            say("t")
            return super()._rows(*args)

    config = toy.make_config(
        STEPS,
        log_every=1,
        checkpoint={"every": EVERY, "keep": 1},
        preview={"every": EVERY, "count": 4},
        evaluators={"retrieval": {"every": EVERY, "count": 64}},
    )
    prepare()
    try:
        loop.train(config, folder, stage=toy.EmbeddingStage(), data=Data(pause))
    except (UsageError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _slow_rmtree(say):
    """shutil.rmtree that removes a file every two milliseconds, to be killed amid."""

    def rmtree(path, *args, **kwargs):
        if pathlib.Path(path).name.isdigit():
            say("d")
            for file in sorted(p for p in pathlib.Path(path).rglob("*") if p.is_file()):
                file.unlink(missing_ok=True)
                time.sleep(0.002)
        return original(path, *args, **kwargs)

    original = shutil.rmtree
    return rmtree


@dataclasses.dataclass
class Kill:
    """What one signal did.

    Attributes:
      moment: what the run was doing.
      signal: its name.
      logged: last step that was logged; saved: newest committed step afterwards.
      code: exit code.
    """

    moment: str
    signal: str
    logged: int
    saved: int
    code: int
