"""One line that says how far embedding is, how fast, and how long it will take."""

import datetime
import sys
import time


class Progress:
    """Counts examples; rewrites one line on a terminal, else prints one at times.

    The speed is that of this run after its first batch, which includes compilation;
    what an earlier run wrote (`done`) does not count.
    """

    def __init__(self, what: str, total: int, done: int = 0, stream=None):
        self._what, self._total, self._done = what, total, done
        self._stream = stream or sys.stderr
        self._tty = self._stream.isatty()
        self._since: tuple[float, int] | None = None  # time and count at the first add
        self._shown = -float("inf")
        if done < total:
            self._stream.write(f"{what}: {total - done:,} examples, compiling\n")
            self._stream.flush()

    def add(self, count: int) -> None:
        """`count` more examples are through."""
        if count == 0:
            return
        self._done += count
        now = time.monotonic()
        last = self._done >= self._total
        if now - self._shown < (0.5 if self._tty else 10) and not last:
            return
        self._shown = now
        text = f"{self._what}: {self._done:,}/{self._total:,} examples"
        if self._since is None:
            self._since = now, self._done
        else:
            start, before = self._since
            rate = (self._done - before) / max(now - start, 1e-9)
            seconds = (self._total - self._done) / max(rate, 1e-9)
            left = datetime.timedelta(seconds=round(seconds))
            text += f", {rate:,.0f}/s, {left} left"
        if self._tty:
            self._stream.write(f"\r{text:<79}" + ("\n" if last else ""))
        else:
            self._stream.write(f"{text}\n")
        self._stream.flush()
