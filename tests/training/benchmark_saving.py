"""What saving costs a training run, and what an export holds in memory.

    python tests/training/benchmark_saving.py            # both, a state of 1 GB
    python tests/training/benchmark_saving.py saving --gb=0.2

`saving` trains a network whose state has the given size (Adam, EMA: four copies of the
parameters), saves once, and prints how long the step loop stood still, how much longer
the steps took until the checkpoint was committed, in steps, and the most host memory
beyond what training alone takes. On a CPU the state itself is host memory, too. A save
with no training beside it then tells what CPU time it takes.
`exporting` saves a prior of that state and exports it in a process of its own.
"""

import argparse
import json
import os
import pathlib
import resource
import subprocess
import sys
import tempfile
import threading
import time

ROOT = pathlib.Path(__file__).parents[2]
EXPORT = r"""
import json, pathlib, re, sys
from unclip_jax.interop import lazy
from unclip_jax.interop.export import compare, export
from unclip_jax.training.checkpoint import open_run
run, out, work, dtype = sys.argv[1:]
def peak():  # ru_maxrss would be that of the process which started this one
    status = pathlib.Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+)", status)[1]) * 1.024e-3
shapes, read, meta = open_run({small!r}, "ema")  # so that the libraries are loaded
export(lazy.tree(shapes, read), meta, run, out + "-small", work, dtype)
before = peak()
shapes, read, meta = open_run(run, "ema")
verified = peak()
export(lazy.tree(shapes, read), meta, run, out, work, dtype)
written = peak()
compare(lazy.tree(shapes, read), meta, run, out, work, dtype)
print(json.dumps([before, verified, written, peak()]))
"""


class Memory:
    """The most resident memory since `start`, in bytes."""

    def __init__(self):
        self.most, self._stop = 0, threading.Event()
        threading.Thread(target=self._watch, daemon=True).start()

    @staticmethod
    def now() -> int:
        pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
        return pages * resource.getpagesize()

    def start(self) -> int:
        self.most = self.now()
        return self.most

    def _watch(self):
        while not self._stop.wait(0.01):
            self.most = max(self.most, self.now())


def saving(folder: pathlib.Path, gigabytes: float, batch: int) -> dict[str, float]:
    """Seconds, steps and shares of the state; see the module."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from unclip_jax.data_spec import DataSpec
    from unclip_jax.training import checkpoint, optimizer, run_folder, state, train_step

    width = 2048
    layers = max(1, round(gigabytes * 1e9 / 16 / width**2))

    class Stage:
        def init(self, rng):
            keys = jax.random.split(rng, layers)
            shape = width, width
            return {f"w{i}": jax.random.normal(k, shape) for i, k in enumerate(keys)}

        def loss(self, params, rng, batch):
            x = batch["x"]
            for w in params.values():
                x = jnp.tanh(x @ (w / width**0.5))
            return jnp.square(x - batch["x"]).mean(), {}

    tx = optimizer.make_optimizer(optimizer.OptimizerConfig(learning_rate=1e-3), 100)
    key = jax.random.key(0)
    current = jax.jit(lambda k: state.init_state(Stage(), tx, k))(key)
    size = sum(x.nbytes for x in jax.tree.leaves(current))
    rows = {"x": np.random.default_rng(0).normal(size=(batch, width)).astype("f")}
    update = train_step.make_step(Stage(), tx, 0.999, 1)
    step = jax.jit(update, donate_argnums=0).lower(current, key, rows).compile()
    meta = checkpoint.make_meta("toy", {"steps": 100}, {}, DataSpec())
    memory = Memory()

    def run(count):
        nonlocal current
        seconds = []
        for _ in range(count):
            began = time.perf_counter()
            current, metrics = step(current, key, rows)
            jax.block_until_ready(metrics["loss"])
            seconds.append(time.perf_counter() - began)
        return seconds

    run(2)
    memory.start()
    usual = float(np.median(run(6)))
    plain = memory.most
    with checkpoint.Checkpoints(run_folder.claim(folder, {"steps": 100})) as saved:
        zero = jnp.zeros((), jnp.int32)
        small = state.TrainState(zero, zero, *({"a": jnp.zeros(9)} for _ in range(3)))
        saved.save(1, small, meta)  # what the first save ever sets up
        saved.wait()
        memory.start()
        began = time.perf_counter()
        saved.save(2, current, meta)
        blocked = time.perf_counter() - began
        later = []
        while saved.saving():
            later += run(1)
        committed = time.perf_counter() - began
        saved.wait()
        extra = memory.most - plain
        before = resource.getrusage(resource.RUSAGE_SELF)
        saved.save(3, current, meta)  # with nothing beside it
        saved.wait()
        after = resource.getrusage(resource.RUSAGE_SELF)
    slower = sum(later) - usual * len(later)
    return {
        "state_gb": size / 1e9,
        "step_s": usual,
        "blocked_s": blocked,
        "committed_s": committed,
        "blocked_steps": blocked / usual,
        "stalled_steps": (blocked + slower) / usual,
        "host_memory_of_state": extra / size,
        "program_cpu_s": after.ru_utime - before.ru_utime,
        "kernel_cpu_s": after.ru_stime - before.ru_stime,
    }


def exporting(folder: pathlib.Path, gigabytes: float, format: str, dtype: str):
    """MB of resident memory: libraries loaded, then checked, exported, verified."""
    from unclip_jax.interop import native

    small, large = folder / "small", folder / "large"
    _save_prior(small, 1, 64)
    depth = max(1, round(gigabytes * 1e9 / 16 / (12 * 1024**2)))
    params = _save_prior(large, depth, 1024)
    script = EXPORT.format(small=str(small))
    arguments = str(large), str(folder / "out"), format, dtype
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=True,
        capture_output=True,
        text=True,
    )
    before, *peaks = json.loads(done.stdout.splitlines()[-1])
    sizes = [a.nbytes / 1e6 for _, a in native.leaves(params)]
    return {
        "parameters_mb": sum(sizes),
        "largest_tensor_mb": max(sizes),
        "libraries_mb": before,
        "checked_mb": peaks[0] - before,
        "exported_mb": peaks[1] - before,
        "verified_mb": peaks[2] - before,
    }


def _save_prior(workdir, depth, width):
    import jax
    import jax.numpy as jnp
    import numpy as np

    from unclip_jax import models
    from unclip_jax.data_spec import DataSpec
    from unclip_jax.interop import components
    from unclip_jax.training import checkpoint, run_folder, state

    fields = {
        "embed_dim": 64,
        "vocab_size": 512,
        "context_length": 8,
        "eot_id": 3,
        "width": width,
        "depth": depth,
        "num_heads": 8,
        "caption": "clip_states",
    }
    diffusion = {"schedule": "cosine", "num_steps": 10, "prediction": "x0"}
    config = {"model": fields, "diffusion": diffusion, "embedding": "standardize"}
    shapes = components.param_shapes("prior", models.build("prior", fields))
    rng = np.random.default_rng(0)

    def fresh():
        draw = lambda s: jnp.asarray(rng.standard_normal(s.shape, "f"))  # noqa: E731
        return jax.tree.map(draw, shapes)

    params = fresh()
    counts = jnp.zeros((), jnp.int32)
    full = state.TrainState(counts, counts, params, fresh(), (fresh(), fresh()))
    described = {"part": "prior", "config": config}
    spec = DataSpec(clip_fingerprint="a-clip")
    meta = checkpoint.make_meta("prior", {"steps": 1}, described, spec)
    with checkpoint.Checkpoints(run_folder.claim(workdir, {"steps": 1})) as saved:
        saved.save(1, full, meta)
        saved.wait()
    return params


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", nargs="?", choices=("saving", "exporting"))
    parser.add_argument("--gb", type=float, default=1.0, help="of the state")
    parser.add_argument("--batch", type=int, default=128, help="rows of a step")
    parser.add_argument("--format", default="native", help="of the export")
    parser.add_argument("--dtype", default="float32", help="of the export")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        if asked.what != "exporting":
            for name, value in saving(folder / "run", asked.gb, asked.batch).items():
                print(f"{name:>24} {value:.3g}")
        if asked.what != "saving":
            made = exporting(folder, asked.gb, asked.format, asked.dtype)
            for name, value in made.items():
                print(f"{name:>24} {value:.4g}")


if __name__ == "__main__":
    main()
