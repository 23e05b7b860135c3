"""A trace of some training steps, for TensorBoard's profiler or Perfetto."""

import jax

from unclip_jax.errors import UsageError
from unclip_jax.training.mirror import Mirror

FOLDER = "profile"


def parse_steps(text: str) -> tuple[int, int] | None:
    """Parses "10:12" into (10, 12), and "" into None; else raises UsageError."""
    if not text:
        return None
    first, _, last = text.partition(":")
    if not (first.isdigit() and last.isdigit() and 1 <= int(first) <= int(last)):
        raise UsageError(
            f"--profile_steps={text}: expected first:last, such as 10:12; steps are "
            "counted from 1"
        )
    return int(first), int(last)


class Profile:
    """Traces steps first to last, both included, into the run's folder profile/.

    Each process traces its own devices. Steps that a resumed run has behind it are not
    traced.
    """

    def __init__(self, workdir, steps: tuple[int, int] | None):
        self._workdir = workdir
        self._first, self._last = steps or (0, 0)
        self._mirror = None  # while a trace runs

    def before(self, step: int) -> None:
        """To be called before each step, with its number."""
        if self._mirror is None and self._first <= step <= self._last:
            self._mirror = Mirror(self._workdir, fetch="")
            jax.profiler.start_trace(str(self._mirror.folder / FOLDER))

    def after(self, step: int, results) -> None:
        """To be called after each step, with what it is going to return."""
        if self._mirror is not None and step >= self._last:
            jax.block_until_ready(results)
            self.close()

    def close(self) -> None:
        """Writes the trace, if one is running."""
        if self._mirror is not None:
            jax.profiler.stop_trace()
            self._mirror.close()
            self._mirror = None
