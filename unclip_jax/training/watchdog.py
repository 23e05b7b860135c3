"""Says what a run waits for when nothing happens any more.

    config.watchdog = dict(warn=300, stop=3600)

After `warn` seconds without progress, and again after twice, four times ... as many, a
line on the standard error says what is waited for, and the stacks of all threads follow
it there and in the run's folder hung/. The run goes on waiting: storage that was away
for a while comes back. After `stop` seconds the process ends with an error: whatever
starts it again goes on from the last checkpoint, and the other processes of a run find
a lost peer instead of waiting for ever.
"""

import dataclasses
import faulthandler
import os
import sys
import tempfile
import threading
import time

import jax
from etils import epath

from unclip_jax.errors import UsageError

FOLDER = "hung"


@dataclasses.dataclass(frozen=True)
class WatchdogOptions:
    """config.watchdog."""

    warn: float = 300.0  # seconds without progress; 0: never
    stop: float = 3600.0  # seconds; 0: never. Longer than any save or evaluation

    def __post_init__(self):
        if self.warn < 0 or self.stop < 0:
            raise UsageError(
                "config.watchdog: warn and stop must be seconds, 0 for never, got "
                f"{self.warn} and {self.stop}"
            )


class Watchdog:
    """Watches one run from a thread of its own. Use as a context manager."""

    def __init__(self, workdir, options: WatchdogOptions):
        self._folder = epath.Path(workdir) / FOLDER
        self._options = options
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._state = ("the start", time.monotonic())  # what is waited for, since when

    def __enter__(self):
        limits = [s for s in (self._options.warn, self._options.stop) if s]
        if limits:
            self._often = min(1.0, min(limits) / 4)
            self._state = ("the start", time.monotonic())
            self._thread.start()
        return self

    def __exit__(self, *_):
        self._ended.set()

    def waiting_for(self, what: str) -> None:
        """Progress: from now on the run waits for something else."""
        self._state = (what, time.monotonic())

    def _watch(self):
        warn, stop = self._options.warn, self._options.stop
        warned, limit = None, warn
        while not self._ended.wait(self._often):
            state = self._state
            what, since = state
            waited = time.monotonic() - since
            if warned is not None and state is not warned:
                print(f"watchdog: {warned[0]} came", file=sys.stderr, flush=True)
                warned, limit = None, warn
            if stop and waited >= stop:
                self._report(
                    f"error: hung: waited {waited:.0f} s for {what} "
                    "(config.watchdog.stop). Start the same command again to go on "
                    "from the last checkpoint"
                )
                sys.stdout.flush()
                os._exit(1)  # the thread that hangs cannot be told
            if warn and waited >= limit:
                self._report(f"watchdog: waiting for {what} since {waited:.0f} s")
                warned, limit = state, 2 * limit

    def _report(self, message):
        stacks = all_stacks()
        print(f"{message}\n{stacks}", file=sys.stderr, flush=True)
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            path = self._folder / f"process-{jax.process_index()}.txt"
            path.write_text(f"{time.strftime('%F %T')} {message}\n{stacks}")
        except OSError as error:  # a disk that hangs may well be the reason
            print(f"watchdog: {self._folder}: {error}", file=sys.stderr, flush=True)


def all_stacks() -> str:
    """The stack of every thread, innermost call first."""
    with tempfile.TemporaryFile("w+") as file:
        faulthandler.dump_traceback(file, all_threads=True)
        file.seek(0)
        return file.read()
