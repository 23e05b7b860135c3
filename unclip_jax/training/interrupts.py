"""SIGTERM and Ctrl-C end a run between two steps, or in an evaluation, after saving.

With several processes all must stop at the same place: jax's preemption service, which
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
        self._polls = 0
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

    def poll(self) -> signal.Signals | None:
        """The signal on account of which the run should stop here, if any.

        All processes must ask equally often: they get the same answer to each question.
        """
        if self.received is None and jax.process_count() > 1:
            self._polls += 1
            if multihost_utils.reached_preemption_sync_point(self._polls):
                self.received = signal.SIGTERM
        return self.received

    def _note(self, number, frame):
        del frame
        if self.received == signal.SIGINT and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = signal.Signals(number)
