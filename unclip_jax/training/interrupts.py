"""SIGTERM and Ctrl-C end a run at a step boundary, after saving."""

import signal
import threading


class Interrupts:
    """Remembers a signal instead of dying of it; the second Ctrl-C is immediate.

    Attributes:
      received: None, signal.SIGTERM or signal.SIGINT.
    """

    def __init__(self):
        self.received = None
        self._old = {}

    def __enter__(self):
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._old[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_):
        for number, handler in self._old.items():
            signal.signal(number, handler)

    def _note(self, number, frame):
        del frame
        if self.received == signal.SIGINT and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = signal.Signals(number)
