"""One line that says how far embedding is, how fast, and how long it will take."""

import datetime
import sys
import time


class Progress:
    """Counts examples; rewrites one line on a terminal, else prints one at times.

    The speed is that of this run: what an earlier one wrote (`done`) does not count.
    """

    def __init__(self, what: str, total: int, done: int = 0, stream=None):
        self._what, self._total, self._done = what, total, done
        self._stream = stream or sys.stderr
        self._tty = self._stream.isatty()
        self._start, self._before = time.monotonic(), done
        self._shown = -float("inf")

    def add(self, count: int) -> None:
        """`count` more examples are through."""
        self._done += count
        now = time.monotonic()
        last = self._done >= self._total
        if now - self._shown < (0.5 if self._tty else 10) and not last:
            return
        self._shown = now
        rate = (self._done - self._before) / max(now - self._start, 1e-9)
        seconds = (self._total - self._done) / max(rate, 1e-9)
        text = (
            f"{self._what}: {self._done:,}/{self._total:,} examples, {rate:,.0f}/s, "
            f"{datetime.timedelta(seconds=round(seconds))} left"
        )
        if self._tty:
            self._stream.write(f"\r{text:<79}" + ("\n" if last else ""))
        else:
            self._stream.write(f"{text}\n")
        self._stream.flush()
