"""The queue of drawings: one at a time, each with its place, progress and a Stop."""

import concurrent.futures
import html
import time
from collections.abc import Callable
from typing import Any

from unclip_jax.errors import UsageError
from unclip_jax.progress import duration

WAITING_MOST = 16  # drawings in the queue
PATIENCE = 60.0  # seconds after which a drawing that nobody looks at ends


class Stopped(Exception):
    """Raised within a drawing that was stopped."""


class Job:
    """A drawing: the `progress` of UnCLIP's methods, and what it says of itself."""

    def __init__(self, function: Callable[["Job"], Any]):
        self._function = function
        self._stopped = False
        self._polled = time.monotonic()
        self._since: float | None = None
        self._rows = 0, 0
        self._loop: tuple[str, int, int] | None = None
        self.future: concurrent.futures.Future = concurrent.futures.Future()

    def stop(self) -> None:
        """Ends the drawing at its next step."""
        self._stopped = True

    def result(self) -> Any:
        """What was drawn; raises Stopped, or what the drawing raised."""
        error = self.future.exception()
        if error is not None and self._stopped:
            raise Stopped from error
        return self.future.result()

    def run(self) -> None:
        """Draws; called by the queue."""
        self._since = time.monotonic()
        try:
            self._check()
            self.future.set_result(self._function(self))
        except BaseException as error:
            self.future.set_exception(error)

    def __call__(self, done: int, total: int) -> None:
        """`done` of `total` pictures are drawn."""
        self._check()
        self._rows = done, total

    def step(self, what: str, step: int, steps: int) -> None:
        """Step `step` of `steps` of the loop `what` begins."""
        self._check()
        self._loop = what, step, steps

    def status(self, before: int) -> str:
        """What the page shows of it, as HTML; `before` drawings come first."""
        self._polled = time.monotonic()
        if before or self._since is None:
            return status(f"Waiting: number {before + 1} in the queue")
        span = duration(time.monotonic() - self._since)
        done, total = self._rows
        if self._loop is None and not done:
            return status(
                f"Compiling, {span}. Once per choice of settings.", moving=True
            )
        share, text = 0.0, ""
        if self._loop is not None:
            what, step, steps = self._loop
            share, text = step / steps, f"{what}, step {step + 1} of {steps}"
        if total:
            text = f"{done} of {total} pictures" + (f"; {text}" if text else "")
        return status(f"{text}, {span}", share=share)

    def _check(self):
        if time.monotonic() - self._polled > PATIENCE:
            self._stopped = True
        if self._stopped:
            raise Stopped


class Line:
    """The queue of a page's drawings, in the order in which they came."""

    def __init__(self, most: int = WAITING_MOST):
        self._most = most
        self._thread = concurrent.futures.ThreadPoolExecutor(1, "drawing")
        self._jobs: list[Job] = []

    def add(self, function: Callable[[Job], Any]) -> Job:
        """Puts a drawing last; raises UsageError if too many wait."""
        self._jobs = [job for job in self._jobs if not job.future.done()]
        if len(self._jobs) >= self._most:
            raise UsageError(f"{len(self._jobs)} drawings wait already: try later")
        job = Job(function)
        self._jobs.append(job)
        self._thread.submit(job.run)
        return job

    def before(self, job: Job) -> int:
        """How many drawings come before this one."""
        waiting = [other for other in self._jobs if not other.future.done()]
        return waiting.index(job) if job in waiting else 0


def status(
    text: str, share: float | None = None, moving: bool = False, error: bool = False
) -> str:
    """A line of text and perhaps a bar, as HTML."""
    bar = ""
    if share is not None:
        bar = f'<progress max="1" value="{share:.3f}"></progress>'
    elif moving:
        bar = "<progress></progress>"
    role = 'class="status error" role="alert"' if error else 'class="status"'
    return f"<div {role}>{bar}<span>{html.escape(text)}</span></div>"
