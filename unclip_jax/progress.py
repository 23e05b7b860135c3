"""How far drawing is and how long it will take, over rows and within a batch of them.

A `progress` is called with (rows done, of all): with 0 when drawing starts, then after
each batch. If it has a method `step`, that is called with (what, step, steps) as each
step of a loop within a batch starts; the compiled programs then report to the host.
"""

import sys
import time
from collections.abc import Callable

Progress = Callable[[int, int], None]


class ProgressLine:
    """A progress that rewrites one line on a terminal, else prints lines.

    The first batch and the first step of each loop include compilation, which the
    estimates leave out.
    """

    def __init__(self, what: str = "drawing", stream=None):
        self._what = what
        self._stream = stream or sys.stderr
        self._tty = self._stream.isatty()
        self._start = self._shown = time.monotonic()
        self._first: tuple[int, float] | None = None  # rows done, and when
        self._loop: tuple[str, int, float] | None = None  # likewise, of the steps
        self._rows = ""

    def __call__(self, done: int, total: int) -> None:
        now = time.monotonic()
        self._loop, self._rows = None, f"{done}/{total}, "
        left = ""
        if done == 0:
            left = ", compiling"
        elif self._first is None:
            self._first = done, now
        elif done < total:
            rows, since = self._first
            left = (now - since) / (done - rows) * (total - done)
            left = f", {left:.0f} s left"
        self._write(now, left, end=done == total)

    def step(self, what: str, step: int, steps: int) -> None:
        """Step `step` of `steps` starts, from 0; shown at times."""
        now = time.monotonic()
        if self._loop is None or self._loop[0] != what or step <= self._loop[1]:
            self._loop = what, step, now
        elif now - self._shown > (0.2 if self._tty else 10):
            _, first, since = self._loop
            left = (now - since) / (step - first) * (steps - step)
            self._write(now, f", {what} step {step}/{steps}, {left:.0f} s left of it")

    def _write(self, now, more, end=False):
        self._shown = now
        text = f"{self._what}: {self._rows}{now - self._start:.0f} s{more}"
        if self._tty:
            self._stream.write(f"\r{text:<79}" + ("\n" if end else ""))
        else:
            self._stream.write(f"{text}\n")
        self._stream.flush()


class Within:
    """A progress for some rows of more: counts them after `done`, of `total`."""

    def __init__(self, progress: Progress, done: int, total: int):
        self._progress, self._done, self._total = progress, done, total
        if hasattr(progress, "step"):
            self.step = progress.step

    def __call__(self, done: int, total: int) -> None:
        del total
        if done or not self._done:  # 0 of the later rows has been said
            self._progress(self._done + done, self._total)


class StepsOnly:
    """A progress for work before that of `progress`: only its steps are shown."""

    def __init__(self, progress: Progress | None):
        if hasattr(progress, "step"):
            self.step = progress.step

    def __call__(self, done: int, total: int) -> None:
        """Says nothing."""
