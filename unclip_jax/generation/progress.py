"""One line that says how far sampling is and how long it will take."""

import sys
import time


class ProgressLine:
    """Callable (done, total); rewrites one line on a terminal, else prints lines.

    It is called with 0 first. The first batch includes compilation, which the estimate
    leaves out.
    """

    def __init__(self, what: str = "drawing", stream=None):
        self._what = what
        self._stream = stream or sys.stderr
        self._start = time.monotonic()
        self._first: tuple[int, float] | None = None

    def __call__(self, done: int, total: int) -> None:
        now = time.monotonic()
        text = f"{self._what}: {done}/{total}, {now - self._start:.0f} s"
        if done == 0:
            text += ", compiling"
        elif self._first is None:
            self._first = done, now
        elif done < total:
            rows, since = self._first
            left = (now - since) / (done - rows) * (total - done)
            text += f", {left:.0f} s left"
        if self._stream.isatty():
            self._stream.write(f"\r{text:<60}" + ("\n" if done == total else ""))
        else:
            self._stream.write(f"{text}\n")
        self._stream.flush()
