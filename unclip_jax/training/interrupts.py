"""SIGTERM and Ctrl-C end a run at a step boundary, after saving.

With several processes all must stop at the same step: jax's preemption service, which
catches SIGTERM itself, agrees on one (and Ctrl-C keeps its usual meaning).
"""

import signal
import threading

import jax
from jax.experimental import multihost_utils


class Interrupts:
    """Remembers a signal instead of dying of it; the second Ctrl-C is immediate.

    Attributes:
      received: None, signal.SIGTERM or signal.SIGINT.
    """

    def __init__(self):
        self.received = None
        self._old = {}

    def __enter__(self):
        in_main = threading.current_thread() is threading.main_thread()
        if in_main and jax.process_count() == 1:
            for number in (signal.SIGTERM, signal.SIGINT):
                self._old[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_):
        for number, handler in self._old.items():
            signal.signal(number, handler)

    def at_step(self, step: int) -> signal.Signals | None:
        """The signal on account of which the run should stop after `step`, if any."""
        several = jax.process_count() > 1
        if several and multihost_utils.reached_preemption_sync_point(step):
            self.received = signal.SIGTERM
        return self.received

    def _note(self, number, frame):
        del frame
        if self.received == signal.SIGINT and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = signal.Signals(number)
