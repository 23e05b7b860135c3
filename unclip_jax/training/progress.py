"""One progress line: step, loss, images/s, data wait and time left."""

import io
import sys
import time

import jax


def duration(seconds: float) -> str:
    """Formats a time as "45s", "3m05s" or "2h10m"."""
    seconds = max(0, round(seconds))
    if seconds < 60:
        return f"{seconds}s"
    minutes, seconds = divmod(seconds, 60)
    if minutes < 60:
        return f"{minutes}m{seconds:02d}s"
    return f"{minutes // 60}h{minutes % 60:02d}m"


class Progress:
    """Rewrites one line on a terminal; prints a line now and then elsewhere.

    Of several processes only the first one speaks.
    """

    def __init__(
        self, name: str, total: int, batch_size: int, stream=None, every: float = 2.0
    ):
        self._name, self._total, self._batch = name, total, batch_size
        self._stream = sys.stdout if stream is None else stream
        if jax.process_index() != 0:
            self._stream = io.StringIO()
        self._tty = self._stream.isatty()
        self._every = every  # seconds between lines where they cannot be rewritten
        self._last = -float("inf")
        self._open = False  # an unfinished line stands on the terminal

    def update(self, step: int, loss: float, rate: float, wait: float) -> None:
        """rate: examples per second; wait: share of the time spent on data."""
        final = step >= self._total
        now = time.monotonic()
        if not (self._tty or final or now - self._last >= self._every):
            return
        self._last = now
        left = duration((self._total - step) * self._batch / max(rate, 1e-9))
        line = (
            f"{self._name} {step}/{self._total}  loss {loss:.4f}  {rate:.0f} images/s  "
            f"data wait {100 * wait:.0f}%  {left} left"
        )
        if self._tty:
            self._stream.write(f"\r{line:<78}")
            self._open = True
        else:
            self._stream.write(line + "\n")
        self._stream.flush()

    def say(self, text: str) -> None:
        """A line of its own."""
        prefix = "\n" if self._open else ""
        self._open = False
        self._stream.write(f"{prefix}{self._name}: {text}\n")
        self._stream.flush()
