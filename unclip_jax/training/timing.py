"""Where the time of a run goes."""

import time

import jax
import numpy as np


class Window:
    """The steps since the last log: their metrics and their time."""

    def __init__(self, batch_size):
        self._batch_size = batch_size
        self._metrics = []
        self._skipped = 0
        self._began = time.perf_counter()
        self._paused = 0.0
        self._mark = self._began
        self.last_count = 0

    def add(self, metrics, wait: bool) -> None:
        self._metrics.append(metrics)
        # at most two steps in flight, so that no queue of batches builds up
        if wait or len(self._metrics) > 2:
            jax.block_until_ready(self._metrics[-1 if wait else -3])
        self._mark = time.perf_counter()

    def pause(self) -> None:
        """What happened since the last step (a save, a preview) is no step time."""
        now = time.perf_counter()
        self._paused += now - self._mark
        self._mark = now

    def busy(self) -> bool:
        """Whether the devices still have a step to finish."""
        return bool(self._metrics) and not self._metrics[-1]["loss"].is_ready()

    def close(self, waited: float) -> dict[str, float]:
        """Means over the window, and how fast it went. Starts the next one."""
        host = jax.device_get(self._metrics)
        now = time.perf_counter()
        seconds = max(now - self._began - self._paused, 1e-9)
        values = {
            name: float(np.mean([row[name] for row in host]))
            for name in host[0]
            if name != "skipped"
        }
        finite = [row["loss"] for row in host if np.isfinite(row["loss"])]
        values["loss"] = float(np.mean(finite)) if finite else float("nan")
        total = int(host[-1]["skipped"])
        self.last_count = len(host)
        values |= {
            "skipped_steps": total,
            "skipped_now": total - self._skipped,
            "images_per_second": self._batch_size * len(host) / seconds,
            "data_wait": min(waited / seconds, 1.0),
        }
        self._skipped = total
        self._metrics, self._paused = [], 0.0
        self._began = self._mark = now
        return values
