"""One line that says how far work is, how fast it goes and how long it will take.

A `progress` of the samplers is called with (rows done, of all): with 0 when sampling
starts, then after each batch. If it has a method `step`, that is called with (what,
step, steps) as each step of a loop within a batch starts.

Commands show a ProgressLine, Python a ProgressBar unless it is told otherwise.
"""

import sys
import time
from collections.abc import Callable
from typing import Any

from unclip_jax.errors import UsageError

Progress = Callable[[int, int], None]


def on_step(progress: Progress | None) -> Callable[[str, int, int], None] | None:
    """The method `step` of a progress, None if it has none."""
    return getattr(progress, "step", None)


def as_progress(
    progress: Progress | bool | None, name: str = "drawing", by_default: bool = True
) -> Progress:
    """What a method calls, of its argument `progress`.

    Args:
      progress: one, which is returned; True, a ProgressBar; False, nothing is shown;
        None, a bar where somebody watches: on a terminal and in a notebook.
      name: of the work, on the bar.
      by_default: whether None may be a bar.

    Raises UsageError for anything else.
    """
    if callable(progress):
        return progress
    if not (progress is None or isinstance(progress, bool)):
        raise UsageError(
            f"progress is {progress!r}: expected True, False, or a function of (rows "
            "done, of all)"
        )
    if progress is None:
        progress = by_default and _is_watched(sys.stderr)
    return ProgressBar(name) if progress else _silent


def _silent(done: int, total: int) -> None:
    """Shows nothing."""


def duration(seconds: float) -> str:
    """Returns "45s", "3m05s" or "2h10m"."""
    seconds = max(0, round(seconds))
    if seconds < 60:
        return f"{seconds}s"
    minutes, seconds = divmod(seconds, 60)
    if minutes < 60:
        return f"{minutes}m{seconds:02d}s"
    return f"{minutes // 60}h{minutes % 60:02d}m"


class ProgressLine:
    """A line that a terminal or notebook rewrites, printed now and then elsewhere.

    Called with (done, total) it is a `progress`. The first batch, and the first step of
    each loop, include compilation, which the estimates leave out.
    """

    def __init__(
        self, name: str, unit: str = "images", stream=None, every: float = 10.0
    ):
        """Starts its clock.

        Args:
          name: of the work, in front of every line.
          unit: of what is counted.
          stream: standard error by default.
          every: seconds between lines where they cannot be rewritten.
        """
        self._name, self._unit = name, unit
        self._stream = stream or sys.stderr
        self._tty = _is_watched(self._stream)
        self._every = 0.2 if self._tty else every
        self._start, self._shown = time.monotonic(), -float("inf")
        self._open = False  # an unfinished line stands on the terminal
        self._done = self._total = 0
        self._calls = 0
        self._first = 0, 0.0  # rows after the first batch, and when
        self._loop: tuple[str, int, float] | None = None  # likewise, of the steps

    def __call__(self, done: int, total: int) -> None:
        """`done` of `total` rows are through; the first call is before the first one.

        What an earlier run has done counts for the rows, not for the speed.
        """
        now, self._loop = time.monotonic(), None
        self._done, self._total = done, total
        self._calls += 1
        more = ""
        if self._calls == 1:
            more = ", compiling" if done < total else ""
        elif self._calls == 2:
            self._first = done, now
        else:
            rows, since = self._first
            rate = (done - rows) / max(now - since, 1e-9)
            more = f", {rate:.3g}/s"
            if done < total:
                more += f", {duration((total - done) / max(rate, 1e-9))} left"
        self._show_rows(more, self._calls < 3 or done >= total, done >= total)

    def add(self, count: int) -> None:
        """`count` more rows are through."""
        if count:
            self(self._done + count, self._total)

    def step(self, name: str, step: int, steps: int) -> None:
        """Step `step` of `steps`, from 0, of the loop `name` starts."""
        now = time.monotonic()
        if self._loop is None or self._loop[0] != name or step <= self._loop[1]:
            self._loop = name, step, now
            return
        _, first, since = self._loop
        left = duration((now - since) / (step - first) * (steps - step))
        self._show_rows(f", {name} step {step}/{steps}, {left} left of it")

    def show(self, text: str, at_once: bool = False, last: bool = False) -> None:
        """Shows the name and `text`, unless another line was shown just now.

        Args:
          text: what stands in the line.
          at_once: shows it anyway.
          last: nothing more is to come: the terminal's next line begins.
        """
        now = time.monotonic()
        if not (at_once or last) and now - self._shown < self._every:
            return
        self._shown = now
        text = f"{self._name}: {text}"
        self._open = self._tty and not last
        if self._tty:
            text = f"\r{text:<79}"
        self._stream.write(text + ("" if self._open else "\n"))
        self._stream.flush()

    def say(self, text: str) -> None:
        """Prints a line of its own."""
        start = "\n" if self._open else ""
        self._open = False
        self._stream.write(f"{start}{self._name}: {text}\n")
        self._stream.flush()

    def _show_rows(self, more, at_once=False, last=False):
        rows = f"{self._done:,}/{self._total:,} {self._unit}, " if self._calls else ""
        elapsed = duration(time.monotonic() - self._start)
        self.show(f"{rows}{elapsed}{more}", at_once, last)


class ProgressBar:
    """A bar of tqdm: of the rows, and of the steps where there are loops.

    A `progress` with steps; it ends with the last row.
    """

    def __init__(self, name: str):
        """Shows nothing before its first call."""
        self._name, self._loop = name, ""
        self._bar: Any = None

    def __call__(self, done: int, total: int) -> None:
        """`done` of `total` rows are through."""
        bar = self._open(total)
        bar.set_postfix_str(f"{done} of {total}", refresh=False)
        if done >= total:
            bar.n = bar.total
            bar.refresh()
            bar.close()
        elif not self._loop:
            bar.update(done - bar.n)

    def step(self, name: str, step: int, steps: int) -> None:
        """Step `step` of `steps`, from 0, of the loop `name` starts."""
        bar = self._open(steps)
        if name != self._loop or step < bar.n:
            self._loop = name
            bar.set_description_str(f"{self._name}: {name}", refresh=False)
            bar.reset(total=steps)
        bar.update(step - bar.n)

    def _open(self, total):
        if self._bar is None:
            from tqdm.auto import tqdm  # as notebooks or as consoles show it

            self._bar = tqdm(total=total, desc=self._name)
        return self._bar


def _is_watched(stream) -> bool:
    """Whether a stream is a terminal or a notebook's, which rewrite lines."""
    return stream.isatty() or type(stream).__module__.partition(".")[0] == "ipykernel"


class Within:
    """A progress for some rows of more: counts them after `done`, of `total`."""

    def __init__(self, progress: Progress, done: int, total: int):
        self._progress, self._done, self._total = progress, done, total
        if hasattr(progress, "step"):
            self.step = progress.step

    def __call__(self, done: int, total: int) -> None:
        """Passes the rows on; 0 of the later ones has been said."""
        del total
        if done or not self._done:
            self._progress(self._done + done, self._total)


class StepsOnly:
    """A progress for work before that of `progress`: only its steps are shown."""

    def __init__(self, progress: Progress | None):
        if hasattr(progress, "step"):
            self.step = progress.step

    def __call__(self, done: int, total: int) -> None:
        """Says nothing."""
