"""Where the time of a run goes: its steps, its waiting, and what came of it.

And how much of the devices it uses.
"""

import json
import time

import jax
import numpy as np
from etils import epath
from jax.experimental import multihost_utils

from unclip_jax import files
from unclip_jax.errors import UsageError
from unclip_jax.training.flops import model_flops
from unclip_jax.training.hardware import GIB, peak_flops


class StepTimer:
    """The steps since the last log: their metrics and their time.

    Attributes:
      skipped: of each step of the window closed last, whether it changed nothing.
    """

    def __init__(self, batch_size: int, devices: int, skipped: int = 0):
        """`skipped`: so many steps were skipped before."""
        self._batch_size, self._devices = batch_size, devices
        self._metrics = []
        self._skipped = skipped
        self.skipped = []
        self._began = time.perf_counter()
        self._paused = 0.0
        self._mark = self._began

    def add(self, metrics, wait: bool) -> None:
        """Counts a step that was started; `wait` for it to end."""
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
        totals = [self._skipped, *(int(row["skipped"]) for row in host)]
        self.skipped = [b > a for a, b in zip(totals, totals[1:], strict=False)]
        rate = self._batch_size * len(host) / seconds
        values |= {
            "skipped_steps": totals[-1],
            "step_seconds": seconds / len(host),
            "images_per_second": rate,
            "images_per_second_per_chip": rate / self._devices,
            "data_wait": min(waited / seconds, 1.0),
        }
        self._skipped = totals[-1]
        self._metrics, self._paused = [], 0.0
        self._began = self._mark = now
        return values


WORST = ("data_wait", "hbm_gib", "hbm_peak_gib")


def worst_process(values: dict[str, float]) -> dict[str, float]:
    """Of each measure of WORST in `values` the largest that a process has.

    Called by all processes at the same step. Of several, `data_wait_process` is the
    number of the one that waited longest: all others waited for it, in the step, and
    so did not for data.
    """
    if jax.process_count() == 1:
        return {}
    names = [name for name in WORST if name in values]
    own = np.array([values[name] for name in names], np.float32)
    everyone = np.asarray(multihost_utils.process_allgather(own))  # (P, names)
    worst = dict(zip(names, everyone.max(axis=0).tolist(), strict=True))
    return worst | {"data_wait_process": int(everyone[:, 0].argmax())}


class Goodput:
    """The share of a run's time that went into steps it still has, over all its starts.

        goodput = productive / up

    `up` are the seconds from each start to its last log: restoring, compiling, saving,
    drawing, evaluating and waiting for data are in it, the time between two starts is
    not. `productive` are those of the steps, less the waiting for data; when a crash
    undid some of the steps, it loses their share. Both are kept in goodput.json.
    """

    FILE = "goodput.json"

    def __init__(self, workdir, start_step: int, began: float):
        """`began`: time.perf_counter() when the program was started."""
        self._path, self._began = epath.Path(workdir) / self.FILE, began
        found = {"step": 0, "up_seconds": 0.0, "productive_seconds": 0.0}
        if self._path.exists():
            found |= files.read_json(self._path, "")
            if not all(isinstance(value, int | float) for value in found.values()):
                raise UsageError(f"{self._path} is damaged: {found}; remove it")
        self._up = found["up_seconds"]
        left = min(start_step / found["step"], 1.0) if found["step"] else 0.0
        self._productive = left * found["productive_seconds"]

    def add(self, step: int, productive: float) -> float:
        """Counts the productive seconds up to `step`; the goodput so far, in [0, 1]."""
        self._productive += productive
        up = self._up + time.perf_counter() - self._began
        if jax.process_index() == 0:
            row = {
                "step": step,
                "up_seconds": up,
                "productive_seconds": self._productive,
            }
            files.atomic_write(self._path, json.dumps(row) + "\n")
        return self._productive / up


class DeviceUse:
    """Measures of one run; those that its devices do not have are left out.

    mfu           model_flops(...) / (step time * devices * peak), where the peak is
                  that of bfloat16, whatever the run computes in (hardware.py)
    hbm_gib       memory in use, of the fullest of this process's devices
    hbm_peak_gib  the most that it ever was
    """

    def __init__(self, stage, mesh, batch_size: int, params):
        """`params` may be ShapeDtypeStructs: they are only traced."""
        peak = peak_flops(mesh.devices.flat[0].device_kind)
        self._local = mesh.local_devices
        self._peak = peak * mesh.size if peak else None
        # tracing takes seconds for a large model: only where it is of use
        self._flops = model_flops(stage, batch_size, params) if peak else 0

    def at(self, step_seconds: float) -> dict[str, float]:
        """The measures, given the mean time of a step."""
        values = {}
        if self._peak:
            values["mfu"] = self._flops / (step_seconds * self._peak)
        found = [device.memory_stats() for device in self._local]
        for name, key in (
            ("hbm_gib", "bytes_in_use"),
            ("hbm_peak_gib", "peak_bytes_in_use"),
        ):
            sizes = [stats[key] for stats in found if stats and key in stats]
            if sizes:
                values[name] = max(sizes) / GIB
        return values
